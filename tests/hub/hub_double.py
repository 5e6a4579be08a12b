"""A double of the Hugging Face Hub: a real HTTP server on loopback that the real `huggingface_hub` client talks to.

It keeps everything in memory, answers the calls that the client makes when it creates, uploads, tags, lists and
downloads, logs each request, and misbehaves on request:

    with HubDouble() as hub:
        hub.plant("cut", path="model.safetensors", method="GET", times=1)

`HF_ENDPOINT` is read when `huggingface_hub` is imported, so clients run in processes of their own, started with
`hub.environment(home)`.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer

from hub_handlers import HubRequestHandler
from hub_state import MAIN, Blob, HubState, Repo, User

FAULTS = ("status", "cut", "corrupt", "drip", "length")


@dataclass
class Fault:
    """One planted misbehaviour.

    `kind` "status" answers with `status` and `headers` in place of the real answer, "cut" closes the connection after
    `keep` bytes of the body, "corrupt" changes the last byte and leaves the length, "drip" sends the body in pieces
    with pauses, "length" announces `keep` bytes more than the body has, or fewer. `path` is a regular expression
    searched in the request's path, `times` how often it happens.
    """

    kind: str
    path: str
    method: str | None = None
    times: int = 1
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    keep: int = 0
    happened: int = 0

    def matches(self, method: str, path: str) -> bool:
        wanted = self.method in (None, method) and self.happened < self.times
        return wanted and re.search(self.path, path) is not None


@dataclass(frozen=True)
class Request:
    """One line of the log; `sent` counts the bytes of the answer's body, `range` is the header of that name."""

    method: str
    path: str
    status: int
    sent: int
    range: str | None


class Server(ThreadingHTTPServer):
    """A server that says nothing of clients that were killed."""

    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class HubDouble:
    """The running double. `owner` may write to its own namespace and to `demo`; `guest` only to its own."""

    OWNER_TOKEN, GUEST_TOKEN, READER_TOKEN = "hf_owner", "hf_guest", "hf_reader"

    def __init__(self) -> None:
        self.state = HubState()
        self.state.users = {
            self.OWNER_TOKEN: User("owner", ("owner", "demo")),
            self.GUEST_TOKEN: User("guest", ("guest",)),
            self.READER_TOKEN: User("reader", ()),
        }
        self.lock = threading.RLock()
        self.requests: list[Request] = []
        # Called when a request has arrived, when it has been answered, and after each piece of a file that drips.
        self.on_moment: Callable[[], None] = lambda: None
        self._faults: list[Fault] = []
        handler = type("BoundHandler", (HubRequestHandler,), {"hub": self})
        self._server = Server(("127.0.0.1", 0), handler)
        port = self._server.server_address[1]
        # Two names for one server: the client treats a redirect to another host differently.
        self.url, self.large_file_url = f"http://127.0.0.1:{port}", f"http://localhost:{port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> HubDouble:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    # What a test does to it

    def plant(self, kind: str, path: str, **settings) -> Fault:
        """Misbehave as `Fault` describes from the next matching request on."""
        if kind not in FAULTS:
            raise ValueError(f"Unknown fault {kind!r}; known: {', '.join(FAULTS)}")
        fault = Fault(kind, path, **settings)
        with self.lock:
            self._faults.append(fault)
        return fault

    def heal(self) -> None:
        """Forget every planted fault."""
        with self.lock:
            self._faults.clear()

    def take_fault(self, method: str, path: str) -> Fault | None:
        """The first planted fault that this request meets, counted as having happened."""
        with self.lock:
            for fault in self._faults:
                if fault.matches(method, path):
                    fault.happened += 1
                    return fault
        return None

    def forget_requests(self) -> None:
        with self.lock:
            self.requests.clear()

    def downloads(self, repo_id: str) -> dict[str, int]:
        """Bytes given out for each file of a repository since the log was last cleared."""
        totals: dict[str, int] = {}
        for request in self.requests:
            match = re.fullmatch(rf"/(?:{repo_id}/resolve|large-files/{repo_id})/[^/]+/(.+)", request.path)
            if match and request.method == "GET" and request.status in (200, 206):
                totals[match[1]] = totals.get(match[1], 0) + request.sent
        return totals

    def copy_repo(self, repo_id: str, name: str, *, private: bool = False, **changes: bytes | None) -> str:
        """Make `demo/NAME` with the files of a repository, some of them changed (None leaves one out)."""
        self.state.create_repo(self.state.users[self.OWNER_TOKEN], "demo", name, private)
        for path, content in {**self.files(repo_id), **changes}.items():
            if content is not None:
                self.put_file(f"demo/{name}", path, content)
        return f"demo/{name}"

    # What a test looks at

    def repo(self, repo_id: str) -> Repo:
        return self.state.repos[repo_id]

    def files(self, repo_id: str, revision: str = MAIN) -> dict[str, bytes]:
        """The content of every file of a repository at a revision."""
        return {path: blob.content for path, blob in self.repo(repo_id).commit_at(revision).files.items()}

    def put_file(self, repo_id: str, path: str, content: bytes, revision: str = MAIN) -> None:
        """Commit one file without the client, for repositories that no well-behaved client would make."""
        repo = self.repo(repo_id)
        sha256 = hashlib.sha256(content).hexdigest() if b"\0" in content or path.endswith(".safetensors") else None
        if sha256 is not None:
            self.state.large_files[sha256] = content
        files = {**repo.commit_at(revision).files, path: Blob(content, sha256)}
        repo.add_commit(revision, files, f"Put {path}")

    def environment(self, home: os.PathLike | str, token: str | None = None, **extra: str) -> dict[str, str]:
        """Variables for a client process: this endpoint, its own cache under `home`, no saved login but `token`."""
        kept = {
            key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))
        }
        token_variable = {} if token is None else {"HF_TOKEN": token}
        return {
            **kept,
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "*",
            **token_variable,
            **extra,
        }
