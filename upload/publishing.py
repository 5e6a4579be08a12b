"""Writing a staged artifact to the Hub as one commit, and comparing what can then be downloaded with it."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token, snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.utils.sha import git_hash

from mmlg_hf.errors import LearngeneError
from mmlg_hf.hub import explain_hub_errors

# The Hub makes this file itself when a repository is created.
OF_THE_HUB = {".gitattributes"}


@dataclass(frozen=True)
class Plan:
    """One artifact, ready to be written; `repo_type` is "model" or "space"."""

    repo_id: str
    folder: Path
    message: str
    repo_type: str = "model"

    @property
    def files(self) -> list[str]:
        """Paths inside the folder, sorted."""
        found = (path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file())
        return sorted(found)


@dataclass(frozen=True)
class Outcome:
    """What `publish` did: the commit that holds the artifact, whether it is new, and the pull request if one."""

    commit: str
    changed: bool
    pull_request: str | None = None


def check_login(api: HfApi, namespace: str) -> None:
    """Refuse to start without a token that may write to the namespace."""
    if not (api.token or get_token()):
        raise LearngeneError("There is no Hugging Face token: log in with `hf auth login`, or set HF_TOKEN")
    with explain_hub_errors(namespace):
        account = api.whoami()
    writable = [account["name"]]
    writable += [
        org["name"] for org in account.get("orgs", []) if org.get("roleInOrg") in ("admin", "write", "contributor")
    ]
    if namespace not in writable:
        raise LearngeneError(
            f"The account {account['name']} cannot write to the namespace {namespace!r}, only to {', '.join(writable)}"
        )


def publish(
    api: HfApi, plan: Plan, *, tag: str | None, revision: str | None, create_pr: bool, private: bool | None
) -> Outcome:
    """Make the repository hold exactly the planned files, in one commit, or in none if it already does.

    Args:
        tag: given to the commit, unless it goes to another revision or a pull request.
        revision: branch to write to, made from main if it is missing; None writes to main.
        create_pr: open a pull request instead.
        private: makes a new repository private.

    Raises:
        LearngeneError: the Hub refused; nothing of this artifact is then visible, and running again finishes.
    """
    try:
        with explain_hub_errors(plan.repo_id, revision):
            return _publish(api, plan, tag, revision, create_pr, private)
    except LearngeneError as error:
        raise LearngeneError(
            f"{error}. Nothing half-done is visible in {plan.repo_id}; run again to finish"
        ) from error
    except RuntimeError as error:  # how the client reports the upload of a large file
        reason = error.__cause__ or error
        raise LearngeneError(
            f"{str(error).rstrip('.')} ({str(reason).splitlines()[0]}). "
            f"Nothing half-done is visible in {plan.repo_id}; run again to finish"
        ) from error


def _publish(
    api: HfApi, plan: Plan, tag: str | None, revision: str | None, create_pr: bool, private: bool | None
) -> Outcome:
    kind: dict[str, Any] = {"repo_type": plan.repo_type}
    try:
        known = api.repo_info(plan.repo_id, **kind).sha
    except RepositoryNotFoundError:
        sdk: dict[str, Any] = {"space_sdk": "gradio"} if plan.repo_type == "space" else {}
        api.create_repo(plan.repo_id, private=private, exist_ok=True, **kind, **sdk)
        known = api.repo_info(plan.repo_id, **kind).sha
    references = api.list_repo_refs(plan.repo_id, **kind)
    if revision is not None and revision not in [branch.name for branch in references.branches]:
        api.create_branch(plan.repo_id, branch=revision, **kind)
    head = known if revision is None else api.repo_info(plan.repo_id, revision=revision, **kind).sha
    tagged = {reference.name: reference.target_commit for reference in references.tags}.get(tag or "")
    tag = None if revision is not None or create_pr else tag

    remote = {
        entry.path
        for entry in api.list_repo_tree(plan.repo_id, revision=head, recursive=True, **kind)
        if hasattr(entry, "size")
    }
    gone = sorted(remote - set(plan.files) - OF_THE_HUB)
    if tag is not None and tagged is not None and (gone or _differs(api, plan, tagged)):
        raise LearngeneError(
            f"{plan.repo_id} already has {tag} with other content ({tagged[:7]}): raise the version in the manifest"
        )
    operations: list[Any] = [CommitOperationAdd(name, str(plan.folder / name)) for name in plan.files]
    operations += [CommitOperationDelete(name) for name in gone]
    commit = api.create_commit(
        plan.repo_id,
        operations,
        commit_message=plan.message,
        revision=revision,
        create_pr=create_pr,
        parent_commit=None if create_pr else head,
        **kind,
    )
    if tag is not None and tagged is None:
        api.create_tag(plan.repo_id, tag=tag, revision=commit.oid, **kind)
    return Outcome(commit.oid, commit.oid != head, commit.pr_url)


def _differs(api: HfApi, plan: Plan, commit: str) -> bool:
    """Whether the files of a commit are others than the planned ones, by the Hub's hashes."""
    entries = api.list_repo_tree(plan.repo_id, revision=commit, recursive=True, repo_type=plan.repo_type)
    remote = {
        entry.path: entry.lfs.sha256 if entry.lfs else entry.blob_id  # type: ignore[union-attr]
        for entry in entries
        if hasattr(entry, "blob_id") and entry.path not in OF_THE_HUB
    }
    if sorted(remote) != plan.files:
        return True
    return any(oid not in _oids(plan.folder / name) for name, oid in remote.items())


def _oids(path: Path) -> set[str]:
    """The hashes by which the Hub may know a file: SHA-256 of large ones, git's SHA-1 of others."""
    content = path.read_bytes()
    return {sha256(content).hexdigest(), git_hash(content)}


def verify(repo_id: str, revision: str, folder: Path, token: str | None = None, repo_type: str = "model") -> str:
    """Download a published artifact into a fresh cache and compare files and a model's outputs with the local one.

    Returns:
        what was compared, in words.

    Raises:
        LearngeneError: a file or an output differs, or the download failed.
    """
    from .outputs import compare_outputs

    with tempfile.TemporaryDirectory() as cache:
        with explain_hub_errors(repo_id, revision):
            fetched = snapshot_download(repo_id, revision=revision, cache_dir=cache, token=token, repo_type=repo_type)
            downloaded = Path(fetched)
        local = Plan(repo_id, folder, "").files
        found = [name for name in Plan(repo_id, downloaded, "").files if name not in OF_THE_HUB]
        differing = sorted(set(local) ^ set(found)) or [
            name for name in local if (folder / name).read_bytes() != (downloaded / name).read_bytes()
        ]
        if differing:
            raise LearngeneError(f"{repo_id} at {revision} differs from the local artifact in {', '.join(differing)}")
        if repo_type == "space":
            return f"{len(local)} files are equal"
        compared = compare_outputs(folder, downloaded)
    return f"{len(local)} files and the outputs {', '.join(compared)} are equal"
