"""Run transformers' own model tests (`ModelTesterMixin`, `ConfigTester`) against this package's classes.

    python tests/conformance/run.py [CASE ...] [--quick] [--work DIR] [-- PYTEST ARGUMENTS]

The tests come from the source distribution of the installed transformers version, downloaded by pip into DIR and never
kept in this repository. Each case is a file beside this one that describes our classes the way transformers' own test
files do: `case_clip_moe.py`, ... Without CASE all are run. Exit code 0 means that no test failed.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

import transformers

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent

# The sdist's tests import these, but the sdist leaves them out. The mixins add tests for export and for generate(),
# the dictionary holds values for the fields that every config once had.
STUBS = {
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "utils/test_configuration_utils.py": 'config_common_kwargs = {"return_dict": False, "output_attentions": True}\n',
}


def fetch(work: Path) -> Path:
    """Return the unpacked source distribution, with `parameterized` beside it; both are downloaded once.

    Raises:
        subprocess.CalledProcessError: if pip cannot have one of them.
    """
    source = work / f"transformers-{transformers.__version__}"
    pip = [sys.executable, "-m", "pip"]
    if not (source / "tests" / "test_modeling_common.py").exists():
        work.mkdir(parents=True, exist_ok=True)
        options = ["--no-deps", "--no-binary", "transformers", "-q", "-d", str(work)]
        subprocess.run([*pip, "download", f"transformers=={transformers.__version__}", *options], check=True)
        with tarfile.open(source.with_suffix(source.suffix + ".tar.gz")) as archive:
            archive.extractall(work, filter="data")
    if not (work / "site" / "parameterized").exists():
        subprocess.run([*pip, "install", "-q", "--target", str(work / "site"), "parameterized"], check=True)
    return source


def prepare(source: Path, cases: list[str]) -> list[Path]:
    """Write the stubs and copy the cases to where the sdist's tests can be imported relatively."""
    tests = source / "tests"
    for name, text in STUBS.items():
        path = tests / name
        path.parent.mkdir(exist_ok=True)
        (path.parent / "__init__.py").touch()
        if not path.exists():
            path.write_text(text)
    (tests / "__init__.py").touch()
    own = tests / "mmlg_hf_conformance"
    shutil.rmtree(own, ignore_errors=True)
    own.mkdir()
    (own / "__init__.py").touch()
    return [Path(shutil.copy(HERE / f"case_{case}.py", own / f"test_{case}.py")) for case in cases]


def run(source: Path, files: list[Path], site: Path, pytest_arguments: list[str]) -> int:
    """Run the copied cases in a process of their own; print the counts, and each reason to skip with its count."""
    report = source.parent / "report.xml"
    path = os.pathsep.join([str(source), str(REPOSITORY), str(site)])
    command = [sys.executable, "-m", "pytest", "-q", "-n", "auto", "-p", "no:cacheprovider", "--no-header"]
    command += ["--import-mode=importlib", "-W", "ignore", "-o", "addopts=", f"--rootdir={source}"]
    command += [f"--junitxml={report}", *map(str, files), *pytest_arguments]
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    code = subprocess.run(command, cwd=source, env=environment).returncode
    tests = list(ElementTree.parse(report).getroot().iter("testcase"))  # subtests count with their test
    failed = [test for test in tests if test.find("failure") is not None or test.find("error") is not None]
    marks = [mark for test in tests if test not in failed and (mark := test.find("skipped")) is not None]
    print(f"conformance with transformers {transformers.__version__}")
    print(f"{len(tests) - len(failed) - len(marks)} passed, {len(failed)} failed, {len(marks)} skipped:")
    for reason, count in Counter(mark.get("message") or "no reason given" for mark in marks).most_common():
        print(f"{count:5} {reason}")
    return code


def main() -> None:
    known = sorted(path.stem.removeprefix("case_") for path in HERE.glob("case_*.py"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"any of {', '.join(known)}; default all")
    parser.add_argument("--work", type=Path, default=REPOSITORY / "build" / "conformance", help="where to download to")
    parser.add_argument("--if-available", action="store_true", help="exit code 0 where pip cannot have the tests")
    parser.add_argument("--quick", action="store_true", help="without the longest comparisons")
    arguments = sys.argv[1:]
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    options = parser.parse_args(arguments[:cut])
    unknown = sorted(set(options.cases) - set(known))
    if unknown:
        parser.error(f"no case {', '.join(unknown)}: there are {', '.join(known)}")
    try:
        source = fetch(options.work.resolve())
    except subprocess.CalledProcessError as error:
        print(f"transformers' source distribution or parameterized cannot be had: {error}", file=sys.stderr)
        raise SystemExit(0 if options.if_available else 1) from None
    files = prepare(source, options.cases or known)
    # Two thirds of the time: each attention in each precision with each padding, and tuples against dictionaries.
    chosen = ["-k", "not eager_matches and not outputs_equivalence"] if options.quick else []
    raise SystemExit(run(source, files, options.work.resolve() / "site", [*chosen, *arguments[cut + 1 :]]))


if __name__ == "__main__":
    main()
