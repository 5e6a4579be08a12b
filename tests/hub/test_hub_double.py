"""The double itself: the real `huggingface_hub` client sees what the Hub would show it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hub_client import GOES_ON
from hub_double import HubDouble

PREAMBLE = """
import hashlib, io, warnings
from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download, snapshot_download
from huggingface_hub import errors
api = HfApi()
def text(name, content): return CommitOperationAdd(name, content.encode())
def error_of(call):
    try:
        call()
    except Exception as error:
        return type(error).__name__
    return "no error"
"""
WEIGHTS = bytes(range(256)) * 4000
STRANGER = {"token": None}


@pytest.fixture
def published(hub):
    """`demo/pico` with a small text file and a large binary file, made without the client."""
    hub.state.create_repo(hub.state.users[HubDouble.OWNER_TOKEN], "demo", "pico", private=False)
    hub.put_file("demo/pico", "config.json", b'{"a": 1}')
    hub.put_file("demo/pico", "model.safetensors", WEIGHTS)
    return hub


def test_writing_covers_create_commit_no_op_branch_tag_and_pull_request(hub, client):
    result = client.run(
        """
        api.create_repo("demo/pico", private=True)
        conflict = error_of(lambda: api.create_repo("demo/pico"))
        again = api.create_repo("demo/pico", exist_ok=True).repo_id
        weights = bytes(range(256)) * 4000
        files = lambda: [text("config.json", "{}"), CommitOperationAdd("model.safetensors", weights)]
        first = api.create_commit("demo/pico", files(), commit_message="Add").oid
        second = api.create_commit("demo/pico", files(), commit_message="Add again").oid
        api.create_tag("demo/pico", tag="v1")
        same_tag = error_of(lambda: api.create_tag("demo/pico", tag="v1"))
        api.create_branch("demo/pico", branch="trial")
        api.create_commit("demo/pico", [text("config.json", "[1]")], commit_message="Try", revision="trial")
        pull = api.create_commit("demo/pico", [text("config.json", "[2]")], commit_message="Ask", create_pr=True)
        refs = api.list_repo_refs("demo/pico", include_pull_requests=True)
        bad_card = [text("README.md", "---\\nlicense: made-up\\n---\\n")]
        result = dict(
            who=api.whoami()["name"], again=again, conflict=conflict, first=first, second=second, same_tag=same_tag,
            tag=refs.tags[0].target_commit, branches=[b.name for b in refs.branches],
            pull=(pull.pr_url, pull.pr_revision, [p.ref for p in refs.pull_requests]),
            bad_card=error_of(lambda: api.create_commit("demo/pico", bad_card, commit_message="Card")),
            foreign=error_of(lambda: api.create_repo("guest/pico")),
            stale=error_of(lambda: api.create_commit("demo/pico", [text("x", "x")], commit_message="x",
                                                     parent_commit="0" * 40)),
        )
        """,
        preamble=PREAMBLE,
    )
    repo = hub.repo("demo/pico")
    assert repo.private
    assert result["who"] == "owner"
    assert result["again"] == "demo/pico"
    assert result["conflict"] == result["same_tag"] == result["stale"] == "HfHubHTTPError"
    assert result["first"] == result["second"] == result["tag"] == repo.branches["main"]
    assert result["branches"] == ["main", "trial"]
    assert result["pull"] == [f"{hub.url}/demo/pico/discussions/1", "refs/pr/1", ["refs/pr/1"]]
    assert result["bad_card"] == "ValueError"
    assert result["foreign"] == "HfHubHTTPError"
    files = hub.files("demo/pico")
    assert files["config.json"] == b"{}"
    assert files["model.safetensors"] == WEIGHTS
    assert repo.commit_at("main").files["model.safetensors"].sha256 == hashlib.sha256(WEIGHTS).hexdigest()
    assert hub.files("demo/pico", "trial")["config.json"] == b"[1]"
    assert hub.files("demo/pico", "refs/pr/1")["config.json"] == b"[2]"


def test_reading_covers_commits_errors_ranges_and_offline_use(published, client):
    first = published.repo("demo/pico").branches["main"]
    published.put_file("demo/pico", "config.json", b'{"a": 2}')
    published.repo("demo/pico").tags["v1"] = first
    if GOES_ON:
        published.plant("cut", path="model.safetensors", method="GET", keep=300_000)
    result = client.run(
        """
        import os
        from huggingface_hub import constants
        constants.DOWNLOAD_CHUNK_SIZE = 50_000
        read = lambda **kw: open(hf_hub_download("demo/pico", "config.json", **kw)).read()
        folder = snapshot_download("demo/pico")
        weights = open(os.path.join(folder, "model.safetensors"), "rb").read()
        os.environ["HF_HUB_OFFLINE"] = "1"
        result = dict(
            main=read(), tag=read(revision="v1"), files=sorted(os.listdir(folder)),
            same=weights == bytes(range(256)) * 4000,
            no_repo=error_of(lambda: hf_hub_download("demo/none", "config.json")),
            no_file=error_of(lambda: hf_hub_download("demo/pico", "none.json")),
            no_revision=error_of(lambda: hf_hub_download("demo/pico", "config.json", revision="v9")),
            listed=sorted(entry.path for entry in api.list_repo_tree("demo/pico")),
            offline=snapshot_download("demo/pico", local_files_only=True) == folder,
        )
        """,
        preamble=PREAMBLE,
        **STRANGER,
    )
    assert result["main"] == '{"a": 2}'
    assert result["tag"] == '{"a": 1}'
    assert result["files"] == result["listed"] == [".gitattributes", "config.json", "model.safetensors"]
    assert result["same"]
    assert result["no_repo"] == "RepositoryNotFoundError"
    assert result["no_file"] == "RemoteEntryNotFoundError"
    assert result["no_revision"] == "RevisionNotFoundError"
    assert result["offline"]
    resumed = [request for request in published.requests if request.range == "bytes=300000-"]
    assert [request.sent for request in resumed] == [len(WEIGHTS) - 300_000] * GOES_ON


def test_access_rules_and_faults_reach_the_client_as_the_hub_sends_them(published, client):
    published.state.create_repo(published.state.users[HubDouble.OWNER_TOKEN], "demo", "closed", private=True)
    published.put_file("demo/closed", "config.json", b"{}")
    published.repo("demo/pico").gated = True
    published.plant("status", path="api/models/demo/limited", status=429, headers={"Retry-After": "1"})
    published.plant("status", path="api/models/demo/broken", status=500, times=9)
    published.state.create_repo(published.state.users[HubDouble.OWNER_TOKEN], "demo", "limited", private=False)
    code = """
        from huggingface_hub.utils import get_session, http_backoff
        download = lambda name, **kw: error_of(lambda: hf_hub_download(name, "config.json", **kw))
        api_url = api.endpoint + "/api/models/demo/"
        result = dict(
            bad_token=download("demo/closed", token="hf_unknown"),
            gated=[download("demo/pico", token=token) for token in (False, "hf_guest", "hf_owner")],
            private=[download("demo/closed", token=token) for token in (False, "hf_guest", "hf_owner")],
            limited=http_backoff("GET", api_url + "limited").status_code,
            broken=get_session().get(api_url + "broken").status_code,
        )
        """
    result = client.run(code, preamble=PREAMBLE, **STRANGER)
    assert result["gated"] == ["GatedRepoError", "GatedRepoError", "no error"]
    assert result["private"] == ["RepositoryNotFoundError", "RepositoryNotFoundError", "no error"]
    assert result["bad_token"] != "no error"
    assert result["limited"] == 200
    assert result["broken"] == 500
    assert [request.status for request in published.requests if request.path.endswith("limited")] == [429, 200]


def test_a_corrupt_file_keeps_its_length_and_the_plain_client_does_not_notice(published, client):
    published.plant("corrupt", path="model.safetensors", method="GET")
    path = client.run('result = hf_hub_download("demo/pico", "model.safetensors")', preamble=PREAMBLE)
    content = Path(path).read_bytes()
    assert len(content) == len(WEIGHTS)
    assert content != WEIGHTS
