"""Fixtures of the Hub tests: the double, the real client, and a pico zoo on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from hub_client import Client
from hub_double import HubDouble


@dataclass(frozen=True)
class Published:
    """A double with the pico zoo on it, a client of it, and the folders that were published."""

    hub: HubDouble
    client: Client
    local: dict[str, Path]


@pytest.fixture
def hub():
    """A running double without repositories."""
    with HubDouble() as double:
        yield double


@pytest.fixture
def client(hub, tmp_path):
    return Client(hub, tmp_path)


@pytest.fixture(scope="session")
def zoo(tmp_path_factory):
    """The manifest of the pico zoo; its folder is shared by all tests, so they leave it as it is."""
    from pico_zoo import write_zoo

    return write_zoo(tmp_path_factory.mktemp("zoo"))


@pytest.fixture(scope="session")
def staged_descendant(zoo, tmp_path_factory):
    """`pico-clip` of the pico zoo, staged for the namespace `demo`: copy it before you change it."""
    from upload.manifest import read_manifest
    from upload.staging import stage

    manifest = read_manifest(zoo)
    return stage(manifest["pico-clip"], manifest, tmp_path_factory.mktemp("staged") / "pico-clip", "demo")


@pytest.fixture(scope="session")
def published(zoo, tmp_path_factory):
    """The pico zoo as published: the double (`hub`), a `client`, and `local`, the staged folder of each artifact."""
    from upload.manifest import read_manifest
    from upload.staging import stage

    manifest = read_manifest(zoo)
    folder = tmp_path_factory.mktemp("published")
    local = {a.name: stage(a, manifest, folder / "local" / a.name, "demo") for a in manifest.artifacts}
    with HubDouble() as hub:
        client = Client(hub, folder)
        client.run(
            f"""
            from pathlib import Path
            from huggingface_hub import HfApi
            from upload.publishing import Plan, publish
            for name in {list(local)!r}:
                plan = Plan("demo/" + name, Path({str(folder / "local")!r}) / name, "Publish")
                publish(HfApi(), plan, tag="v1", revision=None, create_pr=False, private=None)
            """
        )
        yield Published(hub, client, local)
