"""What goes wrong between a user and a gene on the Hub, and the one sentence that they get."""

from __future__ import annotations

import functools
import json
import pickle
import re

import pytest
import torch
from hub_client import GOES_ON
from safetensors.torch import load, save

PREAMBLE = """
import os, time, torch
from pathlib import Path
time.sleep = lambda seconds: None  # the client's pauses between attempts
from mmlg_hf import LearngeneModel, from_learngene
from mmlg_hf.errors import LearngeneError
def refusal(*arguments, load=LearngeneModel.from_pretrained, **settings):
    try:
        load(*arguments, **settings)
    except LearngeneError as error:
        return str(error)
    return "loaded"
def grow(*arguments, **settings):
    return refusal(*arguments, load=from_learngene, **settings)
"""
SHARED = "model-shared.safetensors"
NO_IDS = ["../gene", "demo/../gene", "/no/such/gene", "a/b/c", "demo/ge ne", "demo/gene;rm", "~/gene", "", "demo/"]


@pytest.fixture
def copy_gene(published):
    """Makes a repository from the published gene's, see `HubDouble.copy_repo`."""
    yield functools.partial(published.hub.copy_repo, "demo/pico-gene")
    published.hub.heal()


def changed(published, file: str, **tensors: torch.Tensor | None) -> bytes:
    """A weight file of the published gene with some tensors replaced, added, or (None) left out."""
    weights = {**load(published.hub.files("demo/pico-gene")[file]), **tensors}
    return save({name: tensor for name, tensor in weights.items() if tensor is not None}, metadata={"format": "pt"})


def make_unfitting(published, copy_gene) -> None:
    """Repositories that claim to hold a gene and do not."""
    hub = published.hub
    index = {"model.safetensors.index.json": None}
    shards = dict.fromkeys(["model-shared.safetensors", "model-image.safetensors", "model-text.safetensors"])
    text = "model-text.safetensors"
    projection = {"text_projection.weight": None, "text_projection.other": torch.zeros(1)}
    weight_map = json.loads(hub.files("demo/pico-gene")["model.safetensors.index.json"])
    weight_map["weight_map"] |= {"logit_scale": "../../secret.safetensors"}
    copy_gene("missing", **{text: changed(published, text, **projection)})
    copy_gene("shape", **{text: changed(published, text, **{"text_projection.weight": torch.zeros(3, 3)})})
    copy_gene("nan", **{SHARED: changed(published, SHARED, logit_scale=torch.tensor(float("nan")))})
    copy_gene("truncated", **{text: hub.files("demo/pico-gene")[text][:-10]})
    copy_gene("pickled", **index, **shards, **{"pytorch_model.bin": pickle.dumps({})})
    copy_gene("empty", **index, **shards)
    copy_gene("outside", **{"model.safetensors.index.json": json.dumps(weight_map).encode()})
    copy_gene("garbled", **{"config.json": b"{"})


@pytest.fixture(scope="module")
def refusals(published):
    """What one process was told about repositories that cannot be read or that hold no fitting gene."""
    copy_gene = functools.partial(published.hub.copy_repo, "demo/pico-gene")
    copy_gene("closed", private=True)
    copy_gene("gated")
    published.hub.repo("demo/gated").gated = True
    make_unfitting(published, copy_gene)
    return published.client.run(
        f"""
        access = dict(
            missing=refusal("demo/none"), grown_missing=grow("demo/none", 1),
            closed=refusal("demo/closed"), closed_owner=refusal("demo/closed", token="hf_owner"),
            gated=refusal("demo/gated"), gated_guest=grow("demo/gated", 1, token="hf_guest"),
            gated_owner=grow("demo/gated", 1, token="hf_owner"),
            token=refusal("demo/pico-gene", token="hf_unknown"),
            revision=refusal("demo/pico-gene", revision="v9"), grown_revision=grow("demo/pico-gene", 1, revision="v9"),
            subfolder=refusal("demo/pico-gene", subfolder="inner"),
        )
        names = ("missing", "shape", "nan", "truncated", "pickled", "empty", "outside", "garbled", "pico-clip")
        fit = {{name: refusal("demo/" + name) for name in names}}
        fit["grown text"] = grow("demo/missing", 1, 16, "text")
        fit["grown shape"] = grow("demo/shape", 1, 16, "text")
        fit["grown image"] = grow("demo/missing", 1, 16, "image")
        ids = [[name, refusal(name), grow(name, 1)] for name in {NO_IDS!r}]
        folders = [refusal("demo/pico-gene", subfolder=name) for name in ("../x", "/x", "a/../../x", "a b")]
        result = dict(access=access, fit=fit, ids=ids, folders=folders)
        """,
        preamble=PREAMBLE,
        token=None,
    )


def test_refused_access_says_which_repository_and_what_to_do(published, refusals):
    absent = (
        "There is no repository demo/{0}, or it is private and your token (see `hf auth whoami`) cannot read it; "
        "there is no folder 'demo/{0}' either"
    )
    ask = f"demo/gated is gated: ask for access at {published.hub.url}/demo/gated, then log in with `hf auth login`"
    assert refusals["access"] == {
        "missing": absent.format("none"),
        "grown_missing": absent.format("none"),
        "closed": absent.format("closed"),
        "closed_owner": "loaded",
        "gated": ask,
        "gated_guest": ask,
        "gated_owner": "loaded",
        "token": "the Hub does not accept your token: log in again with `hf auth login`",
        "revision": "demo/pico-gene has no revision 'v9'",
        "grown_revision": "demo/pico-gene has no revision 'v9'",
        "subfolder": "demo/pico-gene/inner holds no model: it has no config.json",
    }


def test_a_failing_download_is_tried_again_and_refused_if_it_lasts_with_a_clean_cache(published, copy_gene):
    hub = published.hub
    hub.plant("cut", path=f"{copy_gene('cut')}/.*{SHARED}", method="GET", keep=100)
    hub.plant("corrupt", path=f"{copy_gene('corrupt')}/.*{SHARED}", method="GET", times=2)
    hub.plant("corrupt", path=f"{copy_gene('corrupt-text')}/.*config.json", method="GET", times=2)
    hub.plant("status", path=f"{copy_gene('broken')}/.*{SHARED}", method="GET", status=500, times=2)
    hub.plant("status", path=f"{copy_gene('limited')}/", status=429, headers={"Retry-After": "1"}, times=2)
    # The client itself tries a cut download six times if it goes on with one, and we try three times.
    times = 18 if GOES_ON else 3
    hub.plant("cut", path=f"{copy_gene('always-cut')}/.*{SHARED}", method="GET", keep=100, times=times)
    hub.plant("corrupt", path=f"{copy_gene('always-corrupt')}/.*{SHARED}", method="GET", times=3)
    hub.plant("status", path=f"{copy_gene('always-broken')}/.*{SHARED}", method="GET", status=500, times=3)
    result = published.client.run(
        """
        import hashlib
        passing = [refusal("demo/" + name) for name in ("cut", "corrupt", "corrupt-text", "broken", "limited")]
        names = ["demo/always-cut", "demo/always-corrupt", "demo/always-broken"]
        first = [refusal(name) for name in names]
        blobs = [path for path in Path(os.environ["HF_HOME"]).rglob("blobs/*") if len(path.name) == 64]
        damaged = [str(path) for path in blobs if hashlib.sha256(path.read_bytes()).hexdigest() != path.name]
        result = dict(passing=passing, first=first, damaged=damaged, second=[refusal(name) for name in names])
        """,
        preamble=PREAMBLE,
        token=None,
    )
    cut, corrupt, broken = result["first"]
    assert result["passing"] == ["loaded"] * 5
    assert cut.startswith("The connection to the Hub failed for demo/always-cut (RemoteProtocolError): try again")
    assert corrupt.startswith(f"{SHARED} of demo/always-corrupt arrived damaged 3 times (its hash is not the one")
    assert broken == "the Hub answered 500 for demo/always-broken: try again later"
    assert result["damaged"] == []
    assert result["second"] == ["loaded"] * 3


def test_slow_and_lying_answers_and_a_new_name_load_what_is_there(published, copy_gene):
    hub = published.hub
    hub.plant("drip", path=f"{copy_gene('drip')}/.*{SHARED}", method="GET")
    hub.plant("length", path=f"{copy_gene('long')}/.*{SHARED}", method="GET", keep=50)
    hub.plant("length", path=f"{copy_gene('short')}/.*{SHARED}", method="GET", keep=-50)
    hub.plant("length", path=f"{copy_gene('always-short')}/.*{SHARED}", method="GET", keep=-50, times=99)
    hub.state.renamed["demo/old-name"] = copy_gene("new-name")
    names = ("drip", "long", "short", "old-name", "always-short")
    result = published.client.run(
        f'result = {{name: refusal("demo/" + name) for name in {names!r}}}', preamble=PREAMBLE, token=None
    )
    refused = result.pop("always-short")
    assert result == dict.fromkeys(names[:-1], "loaded")
    assert "demo/always-short" in refused


def test_a_token_that_expires_and_a_repository_that_is_deleted_in_the_middle_are_told(published, copy_gene):
    hub = published.hub
    gone = {"X-Error-Code": "RepoNotFound"}
    hub.plant("status", path=f"{copy_gene('expiring')}/.*model-", method="HEAD", status=401, times=99)
    hub.plant("status", path=f"{copy_gene('deleted')}/.*model-", method="HEAD", status=404, headers=gone, times=99)
    expired, deleted = published.client.run(
        """
        result = [refusal("demo/expiring"), refusal("demo/deleted")]
        left = [str(path) for path in Path(os.environ["HF_HOME"]).rglob("*.incomplete")]
        assert left == [], left
        """,
        preamble=PREAMBLE,
    )
    assert expired == "the Hub does not accept your token: log in again with `hf auth login`"
    assert deleted.startswith("There is no repository demo/deleted, or it is private and your token")


def test_offline_a_gene_that_is_missing_or_damaged_in_the_cache_is_named(published):
    client, home = published.client, published.client.new_home()
    code = """
        (blob,) = {path.resolve() for path in Path(os.environ["HF_HOME"]).rglob("model-text.safetensors")}
        content = blob.read_bytes()
        blob.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        result = dict(
            image=grow("demo/pico-gene", 1, 16, "image"), damaged=refusal("demo/pico-gene"),
            gone=refusal("demo/pico-gene"), none=refusal("demo/none"),
            revision=refusal("demo/pico-gene", revision="v9"),
        )
        """
    client.run('from huggingface_hub import snapshot_download; snapshot_download("demo/pico-gene")', home=home)
    result = client.run(code, preamble=PREAMBLE, home=home, HF_HUB_OFFLINE="1")
    gone = "is not in the cache in full, and the Hub is not asked (offline)"
    assert result == {
        "image": "loaded",
        "damaged": "model-text.safetensors of demo/pico-gene is damaged in the cache and was removed from it: "
        "load it again with network",
        "gone": f"demo/pico-gene {gone}",
        "none": f"demo/none {gone}; there is no folder 'demo/none' either",
        "revision": f"demo/pico-gene at revision 'v9' {gone}; there is no folder 'demo/pico-gene' either",
    }


def test_a_repository_that_holds_no_fitting_gene_is_refused_with_the_reason(refusals):
    fitting = refusals["fit"]
    fit = "The tensors of demo/{} do not fit its config: {}"
    unfitting = fit.format("missing", "missing text_projection.weight; unexpected text_projection.other")
    misshapen = fit.format("shape", "text_projection.weight is [3, 3] in place of [16, 16]")
    assert fitting == {
        "missing": unfitting,
        "shape": misshapen,
        "nan": "logit_scale of demo/nan is not finite: a gene with NaN or infinity is of no use",
        "truncated": fitting["truncated"],
        "pickled": "demo/pickled has pickled weights only (pytorch_model.bin), which can run code when they are "
        "opened: save the model as safetensors",
        "empty": "demo/empty has no weights: it needs model.safetensors",
        "outside": "model.safetensors.index.json of demo/outside names a shard '../../secret.safetensors', "
        "which is no plain file name",
        "garbled": "The config.json of demo/garbled is not JSON",
        "pico-clip": "demo/pico-clip holds a 'clip' model, not a learngene: extract one from it first",
        "grown text": unfitting,
        "grown shape": misshapen,
        "grown image": "loaded",
    }
    assert fitting["truncated"].startswith("The weights of demo/truncated are truncated or no safetensors file:")


def test_names_that_are_no_hub_ids_are_refused_before_any_request(published, refusals):
    for name, *sentences in refusals["ids"]:
        for sentence in sentences:
            assert sentence.startswith(f"{name!r} is neither an existing folder nor a Hub id"), (name, sentence)
    assert all(sentence.startswith("subfolder is ") for sentence in refusals["folders"])
    odd = re.compile(r"\.\.|no/such|a/b|ge ne|;rm|~")
    assert [request for request in published.hub.requests if odd.search(request.path)] == []
