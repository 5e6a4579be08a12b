"""Publishing with the real client against the double: one atomic commit, none without change, clear refusals."""

from __future__ import annotations

import re
import shutil

import pytest
import yaml
from hub_double import HubDouble
from pico_zoo import write_zoo
from typer.testing import CliRunner

from mmlg_hf.errors import LearngeneError
from upload.cli import app
from upload.manifest import read_manifest

PREAMBLE = """
from pathlib import Path
from huggingface_hub import HfApi
from mmlg_hf.errors import LearngeneError
from upload.publishing import Plan, check_login, publish
def write(folder, name="demo/pico", **settings):
    defaults = dict(tag="v1", revision=None, create_pr=False, private=None)
    outcome = publish(HfApi(), Plan(name, Path(folder), "Publish"), **{**defaults, **settings})
    return [outcome.commit, outcome.changed, outcome.pull_request]
def refusal(call):
    try:
        call()
    except LearngeneError as error:
        return str(error)
"""


@pytest.fixture
def folder(tmp_path):
    """Something small to publish; what is in it does not matter to publishing."""
    folder = tmp_path / "artifact"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Pico\n")
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"\0" * 3000)
    return folder


def upload(client, zoo, *arguments, **settings):
    return client.start(["-m", "upload", *arguments, "--manifest", zoo], **settings)


def test_publishing_is_one_commit_that_is_tagged_and_not_repeated(hub, client, folder):
    result = client.run(
        f"""
        folder = Path({str(folder)!r})
        first, second = write(folder), write(folder)
        (folder / "config.json").write_text("[1]")
        (folder / "old.json").unlink(missing_ok=True)
        same_version = refusal(lambda: write(folder))
        third = write(folder, tag="v2")
        (folder / "config.json").rename(folder / "new.json")
        fourth = write(folder, tag="v3")
        result = [first, second, same_version, third, fourth]
        """,
        preamble=PREAMBLE,
    )
    first, second, same_version, third, fourth = result
    repo = hub.repo("demo/pico")
    assert [commit.title for commit in repo.commits.values()] == ["initial commit", "Publish", "Publish", "Publish"]
    assert first[1:] == [True, None]
    assert second == [first[0], False, None]
    assert re.search(r"demo/pico already has v1 with other content \(\w{7}\): raise the version", same_version)
    assert repo.tags == {"v1": first[0], "v2": third[0], "v3": fourth[0]}
    assert sorted(hub.files("demo/pico")) == [".gitattributes", "README.md", "model.safetensors", "new.json"]


def test_branches_pull_requests_and_private_repositories_leave_main_alone(hub, client, folder):
    client.run(
        f"""
        write({str(folder)!r}, private=True)
        (Path({str(folder)!r}) / "config.json").write_text("[1]")
        branch = write({str(folder)!r}, revision="trial")
        again = write({str(folder)!r}, revision="trial")
        assert again == [branch[0], False, None], again
        pull = write({str(folder)!r}, create_pr=True)
        assert pull[2].endswith("/demo/pico/discussions/1"), pull
        """,
        preamble=PREAMBLE,
    )
    repo = hub.repo("demo/pico")
    assert repo.private
    assert hub.files("demo/pico")["config.json"] == b"{}"
    assert hub.files("demo/pico", "trial")["config.json"] == b"[1]"
    assert hub.files("demo/pico", "refs/pr/1")["config.json"] == b"[1]"
    assert list(repo.tags) == ["v1"]


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ({"path": "/commit/", "status": 500}, "the Hub answered 500 for demo/pico"),
        ({"path": "/commit/", "status": 429, "times": 9}, "the Hub limits your requests for demo/pico"),
        ({"path": "/upload-large-file/", "status": 403, "times": 9}, "Error while uploading 'model.safetensors'"),
        ({"path": "/preupload/", "status": 403, "times": 9}, "your token has no right to do this with demo/pico"),
    ],
)
def test_a_failure_half_way_publishes_nothing_and_running_again_finishes(hub, client, folder, fault, sentence):
    hub.plant("status", **fault)
    failed = client.run(f"result = refusal(lambda: write({str(folder)!r}))", preamble=PREAMBLE)
    assert sentence in failed
    assert failed.endswith("Nothing half-done is visible in demo/pico; run again to finish")
    assert list(hub.files("demo/pico")) == [".gitattributes"]
    hub.heal()
    client.run(f"write({str(folder)!r})", preamble=PREAMBLE)
    assert "model.safetensors" in hub.files("demo/pico")


def test_a_tag_that_failed_is_set_by_the_next_run_without_another_commit(hub, client, folder):
    hub.plant("status", path="/tag/", status=500)
    code = f"result = [refusal(lambda: write({str(folder)!r})), write({str(folder)!r})]"
    failed, again = client.run(code, preamble=PREAMBLE)
    assert "the Hub answered 500" in failed
    assert again[1] is False
    assert hub.repo("demo/pico").tags == {"v1": again[0]}


def test_of_two_publishers_at_once_the_second_is_told_and_the_first_ones_content_stands(hub, client, folder):
    other = folder.with_name("other")
    shutil.copytree(folder, other)
    (other / "config.json").write_text("[2]")
    told = client.run(
        f"""
        class Overtaken(HfApi):
            def create_commit(self, *args, **kwargs):
                write({str(other)!r})  # another process, between this one's look at the repository and its commit
                return super().create_commit(*args, **kwargs)
        plan = Plan("demo/pico", Path({str(folder)!r}), "Publish")
        settings = dict(tag="v1", revision=None, create_pr=False, private=None)
        result = refusal(lambda: publish(Overtaken(), plan, **settings))
        """,
        preamble=PREAMBLE,
    )
    assert told == (
        "demo/pico has changed meanwhile: run it again. Nothing half-done is visible in demo/pico; run again to finish"
    )
    assert hub.files("demo/pico")["config.json"] == b"[2]"
    assert hub.files("demo/pico", "v1")["config.json"] == b"[2]"


def test_a_rate_limit_with_retry_after_is_waited_for(hub, client, folder):
    hub.plant("status", path="/preupload/", status=429, headers={"Retry-After": "1"})
    assert client.run(f"result = write({str(folder)!r})", preamble=PREAMBLE)[1] is True


def test_without_a_token_or_the_right_to_write_nothing_is_begun(hub, client):
    code = 'result = refusal(lambda: check_login(HfApi(), "demo"))'
    anonymous = client.run(code, preamble=PREAMBLE, token=None)
    assert anonymous == "There is no Hugging Face token: log in with `hf auth login`, or set HF_TOKEN"
    assert hub.requests == []
    stranger = client.run(code, preamble=PREAMBLE, token=HubDouble.GUEST_TOKEN)
    assert stranger == "The account guest cannot write to the namespace 'demo', only to guest"
    unknown = client.run(code, preamble=PREAMBLE, token="hf_unknown")
    assert unknown.startswith("the Hub does not accept your token")
    assert [(request.method, request.path) for request in hub.requests] == [("GET", "/api/whoami-v2")] * 2
    assert hub.state.repos == {}


@pytest.mark.slow
def test_the_command_line_plans_publishes_and_verifies(hub, client, zoo):
    plan = upload(client, zoo, "publish", "--namespace", "demo", token=None)
    assert plan.returncode == 0, plan.stderr
    for text in (
        "demo/pico-gene",
        "demo/pico-clip",
        "demo/pico-classifier",
        "Commit message: Publish pico-gene 1.0.0",
    ):
        assert text in plan.stdout
    assert re.search(r"│ config\.json +│ +[\d,]+ │", plan.stdout)
    assert "base_model: demo/pico-gene" in plan.stdout
    assert plan.stdout.rstrip().endswith("Dry run: nothing was written. Add --yes to publish.")
    assert hub.requests == []

    written = upload(client, zoo, "publish", "--namespace", "demo", "--yes")
    assert written.returncode == 0, written.stderr
    assert written.stdout.count("published as") == 3
    assert written.stdout.count("verified, ") == 3
    assert sorted(hub.state.repos) == ["demo/pico-classifier", "demo/pico-clip", "demo/pico-gene"]
    assert all(repo.tags == {"v1.0.0": repo.branches["main"]} for repo in hub.state.repos.values())

    hub.put_file("demo/pico-clip", "config.json", hub.files("demo/pico-clip")["config.json"] + b" ")
    verified = upload(client, zoo, "verify", "demo/pico-clip", "--revision", "v1.0.0")
    assert re.search(r"verified, \d+ files and the outputs logits_per_image, .* are equal", verified.stdout)
    changed = upload(client, zoo, "verify", "demo/pico-clip")
    assert changed.returncode == 2
    assert changed.stderr.endswith("demo/pico-clip at main differs from the local artifact in config.json\n")


def test_the_command_line_refuses_in_one_sentence_before_it_writes(hub, client, zoo):
    refusals = {
        ("publish", "--yes"): "There is no Hugging Face token",
        ("publish", "--namespace", "../demo"): "the namespace is '../demo': it takes",
        ("publish", "/etc/passwd"): "The zoo has no '/etc/passwd'; it has pico-gene",
        ("publish", "--revision", "trial", "--create-pr"): "--revision and --create-pr exclude each other",
        ("verify", "demo/../pico-gene"): "the name is '../pico-gene'",
        ("lint", "nowhere"): "nowhere is not a folder",
    }
    for arguments, sentence in refusals.items():
        done = upload(client, zoo, *arguments, token=None)
        assert done.returncode == 2
        assert done.stderr.startswith(f"Error: {sentence}")
        assert done.stderr.count("\n") == 1
    assert hub.requests == []


def test_ctrl_c_while_publishing_says_how_to_go_on(monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("upload.cli.read_manifest", interrupt)
    done = CliRunner().invoke(app, ["publish"])
    assert done.exit_code == 130
    assert done.stderr == "Stopped: to go on, give the same command again, which publishes what is missing.\n"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda m: m.pop("version"), "needs the keys artifacts, namespace, version"),
        (lambda m: m.update(namespace="a/b"), "namespace is 'a/b': it takes"),
        (lambda m: m["artifacts"][0].update(name="../gene"), "an artifact's name is '../gene'"),
        (lambda m: m["artifacts"][0].update(kind="queen"), "pico-gene: kind is 'queen'; it takes one of ancestor"),
        (lambda m: m["artifacts"][0].update(colour="red"), r"unknown keys \['colour'\]"),
        (lambda m: m["artifacts"][0].pop("license"), r"lacks \['license'\]"),
        (lambda m: m["artifacts"][1].update(name="pico-gene"), "names 'pico-gene' more than once"),
        (lambda m: m["artifacts"][1].update(source={"gene": "pico-classifier"}), "'pico-classifier' is not a gene"),
        (lambda m: m["artifacts"][1].update(source={"gene": "none"}), "The zoo has no 'none'"),
        (lambda m: m["artifacts"][1].update(source="gene"), "a descendant's source is a mapping that names its gene"),
        (lambda m: m["artifacts"][1].update(kind="mixture"), "or names its gene and its deltas"),
        (
            lambda m: m["artifacts"][1].update(kind="space"),
            "a Space's source is a mapping that names its gene",
        ),
    ],
)
def test_a_malformed_manifest_is_named(zoo, tmp_path, change, sentence):
    manifest = yaml.safe_load(zoo.read_text())
    change(manifest)
    (tmp_path / "zoo.yaml").write_text(yaml.safe_dump(manifest))
    with pytest.raises(LearngeneError, match=sentence):
        read_manifest(tmp_path / "zoo.yaml")


def test_building_an_artifact_again_gives_the_same_files(zoo, tmp_path):
    from upload.staging import stage

    manifest = read_manifest(zoo)
    for name in ("pico-gene", "pico-classifier"):
        folders = [stage(manifest[name], manifest, tmp_path / str(number) / name, "demo") for number in (1, 2)]
        first, second = ({p.name: p.read_bytes() for p in f.rglob("*") if p.is_file()} for f in folders)
        assert first == second


def test_an_artifact_whose_source_is_missing_is_named(zoo, tmp_path):
    from upload.staging import stage

    shutil.copy(zoo, tmp_path / "zoo.yaml")
    manifest = read_manifest(tmp_path / "zoo.yaml")
    with pytest.raises(LearngeneError, match=r"pico-gene: its source .*gene holds no model"):
        stage(manifest["pico-gene"], manifest, tmp_path / "out", "demo")


def test_rendered_cards_are_found_out_of_date_when_results_change(tmp_path):
    from upload.rendering import out_of_date, render_all

    manifest_path = write_zoo(tmp_path / "zoo")
    render_all(read_manifest(manifest_path), tmp_path / "cards")
    assert out_of_date(read_manifest(manifest_path), tmp_path / "cards") == []
    page = (tmp_path / "cards" / "README.md").read_text()
    link = "[demo](https://huggingface.co/demo/pico-clip)"
    assert re.search(
        rf"\| \[pico-clip\]\(pico-clip/README\.md\) \| descendant \| .* \| 31\.2 \| 10\.0 \| {re.escape(link)}", page
    )
    results = manifest_path.with_name("results.json")
    results.write_text(results.read_text().replace("0.4125", "0.4525"))
    stale = out_of_date(read_manifest(manifest_path), tmp_path / "cards")
    assert "README.md" in stale
    assert "pico-gene/README.md" in stale
