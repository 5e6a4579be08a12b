"""What the double of the Hub remembers: users, repositories, commits, references and large files."""

from __future__ import annotations

import hashlib
import itertools
import re
from dataclasses import dataclass, field

MAIN = "main"
# A regular file this size or larger is stored as a large file, like a binary one.
LARGE_FILE_BYTES = 10 * 2**20
GITATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
ALLOWED_REPO_NAME = re.compile(r"[\w.-]{1,96}")


class HubError(Exception):
    """An answer other than success: HTTP status, text, and the code that `huggingface_hub` reads from a header."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        headers: dict[str, str] | None = None,
        body: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code
        self.headers, self.body = headers or {}, body or {}


@dataclass(frozen=True)
class User:
    """An account. `write` lists the namespaces it may write to."""

    name: str
    write: tuple[str, ...]


@dataclass(frozen=True)
class Blob:
    """The content of one file at one commit; `sha256` is set for files stored as large files only."""

    content: bytes
    sha256: str | None = None

    @property
    def git_sha1(self) -> str:
        content = self.content
        if self.sha256 is not None:
            content = (
                f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(content)}\n".encode()
            )
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    @property
    def oid(self) -> str:
        """What the client compares with its local file to see whether it changed."""
        return self.sha256 or self.git_sha1

    @property
    def etag(self) -> str:
        return self.oid


@dataclass(frozen=True)
class Commit:
    oid: str
    title: str
    files: dict[str, Blob]


@dataclass
class Repo:
    """One repository of a model or a Space: commits by id, and the names that point at them."""

    id: str
    private: bool = False
    kind: str = "model"
    gated: bool = False
    readers: set[str] = field(default_factory=set)
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pull_requests: dict[str, str] = field(default_factory=dict)
    _counter: itertools.count = field(default_factory=itertools.count)

    def add_commit(self, reference: str, files: dict[str, Blob], title: str) -> Commit:
        """Make `files` the tree of a new commit and point `reference` (branch or pull request) at it."""
        listing = "".join(f"{path}:{blob.oid}" for path, blob in sorted(files.items()))
        oid = hashlib.sha1(f"{self.id}{next(self._counter)}{title}{listing}".encode()).hexdigest()
        commit = self.commits[oid] = Commit(oid, title, dict(files))
        (self.pull_requests if reference.startswith("refs/pr/") else self.branches)[reference] = oid
        return commit

    def commit_at(self, revision: str) -> Commit:
        """The commit that a branch, tag, pull request, full or shortened commit id names."""
        for references in (self.branches, self.tags, self.pull_requests):
            if revision in references:
                return self.commits[references[revision]]
        if re.fullmatch(r"[0-9a-f]{7,40}", revision):
            for oid, commit in self.commits.items():
                if oid.startswith(revision):
                    return commit
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")


class HubState:
    """All of the double's memory, and who may do what."""

    def __init__(self) -> None:
        self.users: dict[str, User] = {}
        self.repos: dict[str, Repo] = {}
        self.large_files: dict[str, bytes] = {}
        self.renamed: dict[str, str] = {}  # which the Hub redirects

    def user(self, token: str | None) -> User | None:
        """The account of a token; None without one; an unknown token is refused."""
        if token is None:
            return None
        if token not in self.users:
            raise HubError(401, "Invalid credentials in Authorization header")
        return self.users[token]

    def create_repo(
        self,
        user: User | None,
        namespace: str | None,
        name: str,
        private: bool,
        endpoint: str = "",
        kind: str = "model",
    ) -> Repo:
        if user is None:
            raise HubError(401, "Unauthorized")
        namespace = namespace or user.name
        if namespace not in user.write:
            raise HubError(403, f'You don\'t have the rights to create a model under the namespace "{namespace}"')
        if not ALLOWED_REPO_NAME.fullmatch(name) or ".." in name:
            raise HubError(400, f"Invalid repository name {name!r}")
        repo_id = f"{namespace}/{name}"
        if repo_id in self.repos:
            raise HubError(409, "You already created this model repo", body={"url": f"{endpoint}/{repo_id}"})
        repo = self.repos[repo_id] = Repo(repo_id, private, kind=kind)
        repo.add_commit(MAIN, {".gitattributes": Blob(GITATTRIBUTES)}, "initial commit")
        return repo

    def readable(self, repo_id: str, user: User | None) -> Repo:
        """The repository if this account may know that it exists (gating is checked where content is given out)."""
        repo = self.repos.get(repo_id)
        hidden = repo is not None and repo.private and not self._is_reader(repo, user)
        if repo is None or hidden:
            # The Hub does not tell a stranger whether a private repository exists.
            raise HubError(404 if user is not None else 401, "Repository not found", "RepoNotFound")
        return repo

    def writable(self, repo_id: str, user: User | None) -> Repo:
        repo = self.readable(repo_id, user)
        if user is None or repo_id.split("/")[0] not in user.write:
            raise HubError(403, "Forbidden: you must use a write token to upload to a repository")
        return repo

    def check_gate(self, repo: Repo, user: User | None) -> None:
        if repo.gated and not self._is_reader(repo, user):
            raise HubError(401 if user is None else 403, f"Access to model {repo.id} is restricted", "GatedRepo")

    @staticmethod
    def _is_reader(repo: Repo, user: User | None) -> bool:
        return user is not None and (user.name in repo.readers or repo.id.split("/")[0] in user.write)
