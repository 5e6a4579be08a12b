"""The zoo of this repository: its cards, and the whole of it published to the double and loaded again."""

from __future__ import annotations

import re

import pytest
from hub_client import Client
from hub_double import HubDouble
from loading_ways import WITH_PACKAGE, WITHOUT_PACKAGE, save_expected, start_ways

from upload.manifest import read_manifest
from upload.rendering import CARDS, out_of_date
from upload.staging import stage

GENE, CLIP, SIZE = "mmlg-fashion-48", "mmlg-fashion-48-clip-3x96", (3, 96)


def upload(client, *arguments, **settings):
    done = client.start(["-m", "upload", *arguments], **settings)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def zoo_hub(tmp_path_factory):
    """The double with the whole zoo, published by the command line under `demo`, and what the command printed."""
    with HubDouble() as hub:
        client = Client(hub, tmp_path_factory.mktemp("zoo-hub"))
        yield hub, client, upload(client, "publish", "--namespace", "demo", "--yes")


def test_the_cards_in_the_repository_are_what_templates_and_results_give():
    assert out_of_date(read_manifest(), CARDS) == []


def test_every_rendered_card_passes_the_lint(hub, client):
    folders = sorted(path for path in CARDS.iterdir() if path.is_dir())
    assert [folder.name for folder in folders] == sorted(
        a.name for a in read_manifest().artifacts if a.kind != "space"
    )
    assert upload(client, "lint", *folders).count("fit to be published") == len(folders)


def test_the_dry_run_plans_the_whole_zoo_without_a_token_or_a_request(hub, client):
    plan = upload(client, "publish", "--namespace", "demo", token=None)
    for artifact in read_manifest().artifacts:
        assert f"demo/{artifact.name}\n" in plan
        assert f"Commit message: Publish {artifact.name} {read_manifest().version}" in plan
    assert hub.requests == []


def test_publishing_the_whole_zoo_verifies_it_and_a_second_run_changes_nothing(zoo_hub):
    hub, client, printed = zoo_hub
    artifacts = read_manifest().artifacts
    assert len(re.findall(r": published as [0-9a-f]{40}\n", printed)) == len(artifacts)
    assert printed.count("verified, ") == len(artifacts)
    again = upload(client, "publish", "--namespace", "demo", "--yes")
    assert again.count("nothing changed, no commit") == len(artifacts)
    assert all(len(repo.commits) == 2 for repo in hub.state.repos.values())


def test_the_published_zoo_loads_in_every_way(zoo_hub):
    hub, client, _ = zoo_hub
    manifest = read_manifest()
    local = {name: stage(manifest[name], manifest, client.folder / "local" / name, "demo") for name in (GENE, CLIP)}
    save_expected(local[GENE], local[CLIP], client.folder)
    gene = hub.files(f"demo/{GENE}")
    moved = {**dict.fromkeys(gene), **{f"inner/gene/{name}": content for name, content in gene.items()}}
    commit = hub.repo(f"demo/{GENE}").branches["main"]
    hostile = {name: b"raise SystemExit('code ran')" for name in gene if name.endswith(".py")}
    begin = start_ways(
        client.folder,
        gene=f"demo/{GENE}",
        clip=f"demo/{CLIP}",
        nested=hub.copy_repo(f"demo/{GENE}", "nested", **moved),
        hostile=hub.copy_repo(f"demo/{GENE}", "hostile", **hostile),
        size=SIZE,
        tag=f"v{manifest.version}",
        commit=commit,
    )
    settings = {"preamble": begin, "home": client.new_home(), "token": None}
    assert client.run(WITH_PACKAGE, **settings) == [[], f"demo/{GENE}", commit]
    hub.forget_requests()
    assert client.run(WITH_PACKAGE, HF_HUB_OFFLINE="1", **settings) == [[], f"demo/{GENE}", commit]
    assert hub.requests == []
    assert client.run(WITHOUT_PACKAGE, preamble=begin, with_package=False, token=None) == []
