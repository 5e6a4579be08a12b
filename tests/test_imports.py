"""What is imported when, which module may import which, and a gene loaded by its own code without the package."""

import ast
import importlib
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
from pico_genes import image_gene, multimodal_gene

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "mmlg_hf"

# A module imports from its own stage and earlier ones. A package stands for all of its modules.
STAGES = (
    {"errors", "shell"},
    {"saving", "hub", "checkpoints", "gene_files"},
    {"families", "configuration_learngene", "expansion"},
    {"modeling_text_classification", "growth", "modeling_encoders", "modeling_learngene"},
    {"genes", "descendants"},
    {"data"},
    {"training"},
    {"inspection", "extraction", "evaluation"},
    {"cards"},
    {"alignment", "clip_moe", "demo"},
    {"export"},
    {"app"},
    {"cli", "__main__"},
    {"upload"},
)
# These only name the others, and import them when a name is used.
LAZY = {"__init__", "_auto"}


def modules():
    """Every module of the package and of upload, by its dotted name below the package."""
    found = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
    found |= {f"upload.{path.stem}": path for path in (ROOT / "upload").glob("*.py")}
    return {name: path for name, path in found.items() if name not in LAZY}


def imports_of(name, path, at_import_only=False):
    """The package's modules that a module imports, as dotted names below the package."""
    package = [] if path.parent == PACKAGE else list(path.parent.relative_to(PACKAGE.parent).parts)
    package = package[1:] if package[:1] == ["mmlg_hf"] else package
    found = set()
    for node in statements(ast.parse(path.read_text(encoding="utf-8")), at_import_only):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            targets = [node.module] if node.module else [alias.name for alias in node.names]
            found |= {".".join([*base, target]) for target in targets}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mmlg_hf."):
            found.add(node.module.removeprefix("mmlg_hf."))
    return {target for target in found if target in modules()}


def statements(tree, at_import_only):
    for node in ast.iter_child_nodes(tree):
        yield node
        later = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        never = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if not (at_import_only and (later or never)):
            yield from statements(node, at_import_only)


def stage_of(name):
    top = name.partition(".")[0]
    return next((number for number, stage in enumerate(STAGES) if top in stage), None)


def run(code, **environment):
    """Run a program in a new process, away from the checkout, and return what it prints."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **environment}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=variables, cwd=ROOT.anchor, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


# --- layers ----------------------------------------------------------------------------------------------------------


def test_every_module_has_its_stage():
    assert [name for name in modules() if stage_of(name) is None] == []


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_point_one_way(name):
    later = {target for target in imports_of(name, modules()[name]) if stage_of(target) > stage_of(name)}
    assert later == set()


def test_no_module_imports_itself_by_way_of_others():
    graph = {name: imports_of(name, path, at_import_only=True) for name, path in modules().items()}
    finished: set[str] = set()

    def visit(name, way):
        assert name not in way, " -> ".join([*way, name])
        if name not in finished:
            for target in graph[name]:
                visit(target, [*way, name])
            finished.add(name)

    for name in graph:
        visit(name, [])


def test_the_expansion_imports_torch_alone():
    tree = ast.parse((PACKAGE / "expansion.py").read_text(encoding="utf-8"))
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert {name.partition(".")[0] for name in names} <= {"torch", "collections"}


def remote_code(name):
    """A module and all those it imports, by name: the files that go along with a model to the Hub."""
    found, todo = set(), [name]
    while todo:
        current = todo.pop()
        if current not in found:
            found.add(current)
            todo += imports_of(current, modules()[current])
    return found


@pytest.mark.parametrize("name", ["modeling_learngene", "modeling_text_classification", "clip_moe.modeling_clip_moe"])
def test_files_that_go_to_the_hub_import_siblings_in_the_one_way_that_works_there(name):
    for module in remote_code(name):
        assert module.rpartition(".")[0] == name.rpartition(".")[0], f"{module} is no sibling of {name}"
        for node in ast.walk(ast.parse(modules()[module].read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                where = f"{module}, line {node.lineno}"
                assert node.module, f"{where}: `from . import x` fails when loaded from the Hub"
                assert node.level < 2, f"{where}: only siblings are copied"
                assert not (node.level and "." in node.module), f"{where}: only siblings are copied"
                assert node.module.partition(".")[0] != "mmlg_hf", f"{where}: absolute imports are not copied"
                assert node.module != "__future__" or not module.startswith(("modeling", "configuration")), where


# --- new processes ---------------------------------------------------------------------------------------------------


def test_importing_the_package_imports_neither_torch_nor_transformers():
    loaded = run("import mmlg_hf, sys; print(*sys.modules)").split()
    heavy = {"torch", "transformers", "datasets", "numpy", "safetensors", "huggingface_hub", "accelerate", "PIL"}
    assert not heavy & set(loaded)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Both kinds of gene and a text classifier, saved."""
    folder = tmp_path_factory.mktemp("saved")
    multimodal_gene().save_pretrained(folder / "gene")
    image_gene().save_pretrained(folder / "image")
    multimodal_gene().descendant(1, 8, "text", num_labels=3).save_pretrained(folder / "text")
    return folder


AUTO = """
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, AutoModelForSequenceClassification
config = AutoConfig.from_pretrained(r"{folder}/gene")
print(type(config).__name__, type(AutoModel.from_config(config)).__name__)
print(type(AutoModel.from_pretrained(r"{folder}/gene")).__name__)
print(type(AutoModelForImageClassification.from_pretrained(r"{folder}/image")).__name__)
print(type(AutoModelForSequenceClassification.from_pretrained(r"{folder}/text")).__name__)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "first",
    [
        "import mmlg_hf",
        "import mmlg_hf; import transformers.models.clip.modeling_clip",
        "import mmlg_hf; from mmlg_hf import from_learngene",
        "import mmlg_hf.configuration_learngene; import transformers.modeling_utils",
        "from transformers import AutoModel; import mmlg_hf",
        "from transformers import AutoConfig; import mmlg_hf.modeling_learngene",
    ],
)
def test_the_auto_classes_know_both_genes_once_the_package_is_imported_in_whatever_order(first, saved):
    printed = run(first + AUTO.format(folder=saved)).split()
    assert printed == [
        *("LearngeneConfig", "LearngeneModel", "LearngeneModel"),
        *("LearngeneForImageClassification", "CLIPTextForSequenceClassification"),
    ]


REMOTE = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "mmlg_hf":
            raise ModuleNotFoundError(f"No module named {{name!r}}")

sys.meta_path.insert(0, Hidden())
import torch
from transformers import AutoModel, AutoModelForImageClassification

gene = AutoModel.from_pretrained(r"{folder}/gene", trust_remote_code=True)
image = AutoModelForImageClassification.from_pretrained(r"{folder}/image", trust_remote_code=True)
inputs = torch.load(r"{folder}/inputs.pt")
results = {{}}
with torch.no_grad():
    results["gene"] = gene(**inputs).logits_per_image
    results["sized"] = gene(**inputs, depth=2, width=16).logits_per_image
    results["descendant"] = gene.descendant(2, 16)(**inputs).logits_per_image
    results["image"] = image(inputs["pixel_values"]).logits
    results["classifier"] = image.descendant(2, 16)(inputs["pixel_values"]).logits
torch.save(results, r"{folder}/results.pt")
print(type(gene).__module__, not [name for name in sys.modules if name.partition(".")[0] == "mmlg_hf"])
"""


@pytest.mark.slow
def test_where_the_package_is_not_installed_a_genes_own_code_loads_it_and_grows_from_it(tmp_path):
    import torch
    from pico_genes import pair_inputs

    gene, image, inputs = multimodal_gene(), image_gene(), pair_inputs()
    for model, auto in ((gene, "AutoModel"), (image, "AutoModelForImageClassification")):
        cls, config_cls = type(model), type(model.config)
        before = cls._auto_class, config_cls._auto_class
        try:
            cls.register_for_auto_class(auto)
            config_cls.register_for_auto_class()
            model.save_pretrained(tmp_path / ("gene" if model is gene else "image"))
        finally:
            cls._auto_class, config_cls._auto_class = before
    torch.save(inputs, tmp_path / "inputs.pt")
    printed = run(REMOTE.format(folder=tmp_path), HF_MODULES_CACHE=str(tmp_path / "code"), PYTHONPATH="")
    module, hidden = printed.split()
    assert module.startswith("transformers_modules.")
    assert hidden == "True"
    results = torch.load(tmp_path / "results.pt")
    with torch.no_grad():
        expected = {
            "gene": gene(**inputs).logits_per_image,
            "sized": gene(**inputs, depth=2, width=16).logits_per_image,
            "descendant": gene.descendant(2, 16)(**inputs).logits_per_image,
            "image": image(inputs["pixel_values"]).logits,
            "classifier": image.descendant(2, 16)(inputs["pixel_values"]).logits,
        }
    for name, logits in expected.items():
        torch.testing.assert_close(results[name], logits, atol=1e-5, rtol=1e-5, msg=name)


REMOTE_FAMILY = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "mmlg_hf":
            raise ModuleNotFoundError(f"No module named {{name!r}}")

sys.meta_path.insert(0, Hidden())
import torch
from transformers import AutoModel

gene = AutoModel.from_pretrained(r"{folder}/gene", trust_remote_code=True)
inputs = torch.load(r"{folder}/inputs.pt")
with torch.no_grad():
    outputs = [gene(**inputs), gene.descendant(1, 16)(**inputs)]
found = [o.logits_per_image if "logits_per_image" in o else o.pooler_output for o in outputs]
torch.save(found, r"{folder}/results.pt")
print(type(gene).__name__)
"""


@pytest.mark.slow
@pytest.mark.parametrize("cls", ["LearngeneSiglipModel", "LearngeneViTModel"])
def test_a_gene_of_another_family_too_is_loaded_by_its_own_code(tmp_path, cls):
    import torch
    from pico_families import family_inputs, make_hostile, pico_ancestor
    from transformers import ViTConfig, ViTModel

    from mmlg_hf.extraction.ancestors import gene_config
    from mmlg_hf.modeling_learngene import LearngeneModel

    inputs = family_inputs("siglip")
    if cls == "LearngeneViTModel":
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
        vit, inputs = (
            ViTModel(ViTConfig(**sizes, image_size=16, patch_size=8)),
            {"pixel_values": inputs["pixel_values"]},
        )
        config = gene_config(vit, num_multimodal_blocks=0, num_unimodal_blocks=2, mixing="linear")
    else:
        config = gene_config(pico_ancestor("siglip"), num_multimodal_blocks=1, num_unimodal_blocks=1, mixing="linear")
    gene = make_hostile(LearngeneModel(config))
    gene.save_pretrained(tmp_path / "gene", with_code=True)
    torch.save(inputs, tmp_path / "inputs.pt")
    printed = run(REMOTE_FAMILY.format(folder=tmp_path), HF_MODULES_CACHE=str(tmp_path / "code"), PYTHONPATH="")
    assert printed.split() == [cls]
    own, grown = torch.load(tmp_path / "results.pt")
    with torch.no_grad():
        torch.testing.assert_close(own, answer(gene(**inputs)), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(grown, answer(gene.descendant(1, 16)(**inputs)), atol=1e-5, rtol=1e-5)


def answer(output):
    return output.logits_per_image if "logits_per_image" in output else output.pooler_output


PROGRAMS = sorted(path for folder in ("benchmarks", "examples", "upload") for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", PROGRAMS, ids=[str(path.relative_to(ROOT)) for path in PROGRAMS])
def test_what_programs_take_from_the_package_is_there(path):
    """Packages name their parts lazily, so that neither an import nor mypy finds out."""
    tree, held = ast.parse(path.read_text(encoding="utf-8")), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "mmlg_hf":
            for alias in node.names:
                try:
                    found = getattr(importlib.import_module(node.module), alias.name)
                except AttributeError:
                    found = importlib.import_module(f"{node.module}.{alias.name}")
                held[alias.asname or alias.name] = found
    taken = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)]
    for node in taken:
        module = held.get(node.value.id)
        if isinstance(module, types.ModuleType):
            assert hasattr(module, node.attr), f"{node.value.id}.{node.attr}"
