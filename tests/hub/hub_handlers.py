"""The double's HTTP side: one handler that routes each call of the real client to a method."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import time
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

from hub_state import LARGE_FILE_BYTES, MAIN, Blob, Commit, HubError, Repo
from hub_validate import card_errors

if TYPE_CHECKING:
    from hub_double import HubDouble

REPO = r"(?P<repo>[^/]+/[^/]+)"
API = rf"/api/models/{REPO}"


class HubRequestHandler(BaseHTTPRequestHandler):
    """Answers one connection. `hub` is set on a subclass by `HubDouble`."""

    hub: ClassVar[HubDouble]
    protocol_version = "HTTP/1.1"
    # Many calls are tiny; without this each waits for the delayed acknowledgement of the one before.
    disable_nagle_algorithm = True

    ROUTES: ClassVar[list[tuple[str, str, str]]] = [
        ("GET", r"/api/whoami-v2", "who_am_i"),
        ("POST", r"/api/repos/create", "create_repo"),
        ("POST", r"/api/validate-yaml", "validate_card"),
        ("POST", rf"{API}/preupload/(?P<revision>[^/]+)", "preupload"),
        ("POST", rf"{API}/commit/(?P<revision>[^/]+)", "commit"),
        ("POST", rf"{API}/branch/(?P<branch>.+)", "create_branch"),
        ("POST", rf"{API}/tag/(?P<revision>.+)", "create_tag"),
        ("DELETE", rf"{API}/tag/(?P<tag>.+)", "delete_tag"),
        ("GET", rf"{API}/refs", "references"),
        ("GET", rf"{API}/commits/(?P<revision>[^/]+)", "commit_list"),
        ("POST", rf"{API}/paths-info/(?P<revision>[^/]+)", "paths_info"),
        ("GET", rf"{API}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?", "tree"),
        ("GET", rf"{API}(?:/revision/(?P<revision>.+))?", "model_info"),
        ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", "large_file_batch"),
        ("PUT", r"/upload-large-file/(?P<sha256>[0-9a-f]{64})", "put_large_file"),
        ("POST", rf"/verify-large-file/{REPO}", "verify_large_file"),
        ("HEAD", rf"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
        ("GET", rf"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
        ("HEAD", rf"/large-files/{REPO}/(?P<sha256>[0-9a-f]{{64}})/(?P<path>.+)", "large_file"),
        ("GET", rf"/large-files/{REPO}/(?P<sha256>[0-9a-f]{{64}})/(?P<path>.+)", "large_file"),
    ]

    def log_message(self, *_: object) -> None:
        """Quiet: the double keeps its own log."""

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    # Plumbing

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        self.query = parse_qs(parts.query)
        # Repositories of Spaces have paths of their own, which are otherwise those of models.
        self.route = re.sub(r"^(/api)?/spaces/", lambda found: "/api/models/" if found[1] else "/", parts.path)
        self.kind = "model" if self.route == parts.path else "space"
        self.body = self._read_body()
        if len(self.body) < int(self.headers.get("Content-Length") or 0):  # the client is gone
            self.close_connection = True
            return
        self.hub.on_moment()
        self.fault = self.hub.take_fault(self.command, unquote(self.route))
        if self.fault is not None and self.fault.kind == "status":
            self._send(self.fault.status, {"error": "planted fault"}, self.fault.headers)
            return
        try:
            with self.hub.lock:
                self._dispatch()
            self.hub.on_moment()
        except HubError as error:
            headers = {**error.headers, "X-Error-Message": error.message}
            if error.code is not None:
                headers["X-Error-Code"] = error.code
            self._send(error.status, {"error": error.message, **error.body}, headers)

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _dispatch(self) -> None:
        header = self.headers.get("Authorization")
        self.user = self.hub.state.user(header.removeprefix("Bearer ") if header else None)
        for old, new in self.hub.state.renamed.items():
            if f"/{old}/" in f"{self.route}/":
                self._send(307, b"", {"Location": self.path.replace(old, new)})
                return
        for method, pattern, name in self.ROUTES:
            if method == self.command and (match := re.fullmatch(pattern, self.route)):
                given = {key: value and unquote(value) for key, value in match.groupdict().items()}
                self._check_kind(given.get("repo"))
                getattr(self, name)(**given)
                return
        raise HubError(404, f"The double has no {self.command} {self.route}")

    def _check_kind(self, repo: str | None) -> None:
        known = self.hub.state.repos.get(repo or "")
        if known is not None and known.kind != self.kind:
            raise HubError(404, f"{repo} is no {self.kind}", "RepoNotFound")

    def _send(self, status: int, body: bytes | dict | list, headers: dict[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **(headers or {})}
        fault = self.fault if self.fault is not None and self.fault.kind != "status" else None
        if fault is not None and fault.kind == "corrupt" and content:
            content = content[:-1] + bytes([content[-1] ^ 0xFF])
        self.send_response(status)
        announced = len(content) + (fault.keep if fault is not None and fault.kind == "length" else 0)
        for name, value in {"Content-Length": str(announced), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        sent = b"" if self.command == "HEAD" else content
        if fault is not None and fault.kind == "cut":
            sent = sent[: fault.keep]
        self._log(status, len(sent))
        pieces = 10 if fault is not None and fault.kind == "drip" else 1
        step = -(-len(sent) // pieces) or 1
        for start in range(0, len(sent), step):
            self.wfile.write(sent[start : start + step])
            if pieces > 1:
                self.hub.on_moment()
                time.sleep(0.02 * (pieces - 1))
        if fault is not None and fault.kind in ("cut", "length"):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True

    def _log(self, status: int, sent: int) -> None:
        from hub_double import Request

        request = Request(self.command, unquote(self.route), status, sent, self.headers.get("Range"))
        with self.hub.lock:
            self.hub.requests.append(request)

    def _json(self) -> dict:
        return json.loads(self.body or b"{}")

    # Accounts and repositories

    def who_am_i(self) -> None:
        if self.user is None:
            raise HubError(401, "Invalid username or password.")
        organisations = [{"type": "org", "name": name, "roleInOrg": "write"} for name in self.user.write[1:]]
        self._send(
            200, {"type": "user", "name": self.user.name, "orgs": organisations, "auth": {"type": "access_token"}}
        )

    def create_repo(self) -> None:
        request = self._json()
        private = request.get("visibility") == "private" or request.get("private", False)
        namespace = request.get("organization")
        kind = request.get("type") or "model"
        if kind == "space" and request.get("sdk") not in ("gradio", "docker", "static"):
            raise HubError(400, "A Space needs an sdk: gradio, docker or static")
        repo = self.hub.state.create_repo(self.user, namespace, request["name"], private, self.hub.url, kind)
        self._send(200, {"url": f"{self.hub.url}/{repo.id}", "name": repo.id, "id": repo.id})

    def validate_card(self) -> None:
        errors = [{"message": message} for message in card_errors(self._json()["content"])]
        self._send(400 if errors else 200, {"errors": errors, "warnings": []})

    def model_info(self, repo: str, revision: str | None) -> None:
        found = self.hub.state.readable(repo, self.user)
        commit = found.commit_at(revision or MAIN)
        siblings = [{"rfilename": path} for path in sorted(commit.files)]
        info = {"_id": repo, "id": repo, "modelId": repo, "sha": commit.oid, "private": found.private, "tags": []}
        self._send(200, {**info, "gated": "manual" if found.gated else False, "siblings": siblings, "downloads": 0})

    def references(self, repo: str) -> None:
        found = self.hub.state.readable(repo, self.user)

        def listed(names: dict[str, str], prefix: str) -> list[dict]:
            return [{"name": name, "ref": prefix + name, "targetCommit": oid} for name, oid in names.items()]

        answer = {"branches": listed(found.branches, "refs/heads/"), "tags": listed(found.tags, "refs/tags/")}
        self._send(200, {**answer, "converts": [], "pullRequests": listed(found.pull_requests, "")})

    def commit_list(self, repo: str, revision: str) -> None:
        found = self.hub.state.readable(repo, self.user)
        found.commit_at(revision)
        entry = {"authors": [], "date": "2025-01-01T00:00:00.000Z", "message": ""}
        self._send(200, [{**entry, "id": c.oid, "title": c.title} for c in reversed(found.commits.values())])

    def tree(self, repo: str, revision: str, folder: str | None) -> None:
        found = self.hub.state.readable(repo, self.user)
        commit = found.commit_at(revision)
        prefix = f"{folder}/" if folder else ""
        files = {path: blob for path, blob in commit.files.items() if path.startswith(prefix)}
        if folder and not files:
            raise HubError(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        self._send(200, [self._entry(path, blob) for path, blob in sorted(files.items())])

    def paths_info(self, repo: str, revision: str) -> None:
        commit = self.hub.state.readable(repo, self.user).commit_at(revision)
        wanted = self._json().get("paths", [])
        self._send(200, [self._entry(path, commit.files[path]) for path in wanted if path in commit.files])

    @staticmethod
    def _entry(path: str, blob: Blob) -> dict:
        entry: dict = {"type": "file", "path": path, "size": len(blob.content), "oid": blob.git_sha1}
        if blob.sha256 is not None:
            entry["lfs"] = {"oid": blob.sha256, "size": len(blob.content), "pointerSize": 130}
        return entry

    # Writing

    def preupload(self, repo: str, revision: str) -> None:
        found = self.hub.state.writable(repo, self.user)
        known = found.commit_at(revision).files
        answer = []
        for file in self._json()["files"]:
            binary = b"\0" in base64.b64decode(file["sample"]) or file["path"].endswith(".safetensors")
            mode = "lfs" if binary or file["size"] >= LARGE_FILE_BYTES else "regular"
            entry = {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
            if file["path"] in known:
                entry["oid"] = known[file["path"]].oid
            answer.append(entry)
        self._send(200, {"files": answer})

    def large_file_batch(self, repo: str) -> None:
        self.hub.state.writable(repo, self.user)
        objects = []
        for item in self._json()["objects"]:
            entry = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.hub.state.large_files:
                upload = {"href": f"{self.hub.url}/upload-large-file/{item['oid']}", "header": {}}
                verify = {"href": f"{self.hub.url}/verify-large-file/{repo}", "header": {}}
                entry["actions"] = {"upload": upload, "verify": verify}
            objects.append(entry)
        self._send(200, {"transfer": "basic", "objects": objects})

    def put_large_file(self, sha256: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != sha256:
            raise HubError(400, "The content does not have the announced SHA-256")
        self.hub.state.large_files[sha256] = self.body
        self._send(200, {})

    def verify_large_file(self, repo: str) -> None:
        self.hub.state.writable(repo, self.user)
        request = self._json()
        if len(self.hub.state.large_files.get(request["oid"], b"")) != request["size"]:
            raise HubError(404, "The large file was not uploaded in full")
        self._send(200, {})

    def commit(self, repo: str, revision: str) -> None:
        found = self.hub.state.writable(repo, self.user)
        lines = [json.loads(line) for line in self.body.splitlines() if line]
        header = next(line["value"] for line in lines if line["key"] == "header")
        parent = found.commit_at(revision)
        if header.get("parentCommit") not in (None, parent.oid):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        files = self._apply(parent, lines)
        as_pull_request = "create_pr" in self.query
        reference = f"refs/pr/{len(found.pull_requests) + 1}" if as_pull_request else revision
        if not as_pull_request and revision not in {**found.branches, **found.pull_requests}:
            raise HubError(400, f"{revision} is not a branch")
        commit = found.add_commit(reference, files, header["summary"])
        url = f"{self.hub.url}/{repo}"
        answer = {"success": True, "commitOid": commit.oid, "commitUrl": f"{url}/commit/{commit.oid}"}
        if as_pull_request:
            answer["pullRequestUrl"] = f"{url}/discussions/{reference.rsplit('/', 1)[1]}"
        self._send(200, answer)

    def _apply(self, parent: Commit, lines: list[dict]) -> dict[str, Blob]:
        files = dict(parent.files)
        for line in lines:
            key, value = line["key"], line["value"]
            if key == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]))
            elif key == "lfsFile":
                if value["oid"] not in self.hub.state.large_files:
                    raise HubError(400, f"The large file of {value['path']} was never uploaded")
                files[value["path"]] = Blob(self.hub.state.large_files[value["oid"]], value["oid"])
            elif key == "deletedFile":
                if files.pop(value["path"], None) is None:
                    raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
            elif key == "deletedFolder":
                files = {path: blob for path, blob in files.items() if not path.startswith(value["path"])}
        errors = card_errors(files["README.md"].content.decode()) if "README.md" in files else []
        if errors:
            raise HubError(400, f"Invalid metadata in README.md: {errors[0]}")
        return files

    def create_branch(self, repo: str, branch: str) -> None:
        found = self.hub.state.writable(repo, self.user)
        if branch in found.branches:
            raise HubError(409, f"Reference already exists: refs/heads/{branch}")
        found.branches[branch] = found.commit_at(self._json().get("startingPoint") or MAIN).oid
        self._send(201, {})

    def create_tag(self, repo: str, revision: str) -> None:
        found = self.hub.state.writable(repo, self.user)
        tag = self._json()["tag"]
        if tag in found.tags:
            raise HubError(409, f"Tag reference exists already: refs/tags/{tag}")
        found.tags[tag] = found.commit_at(revision).oid
        self._send(201, {})

    def delete_tag(self, repo: str, tag: str) -> None:
        found = self.hub.state.writable(repo, self.user)
        if found.tags.pop(tag, None) is None:
            raise HubError(404, f"No tag {tag}", "RevisionNotFound")
        self._send(200, {})

    # Reading files

    def resolve(self, repo: str, revision: str, path: str) -> None:
        found: Repo = self.hub.state.readable(repo, self.user)
        self.hub.state.check_gate(found, self.user)
        commit = found.commit_at(revision)
        if path not in commit.files:
            raise HubError(404, "Entry not found", "EntryNotFound", {"X-Repo-Commit": commit.oid})
        blob = commit.files[path]
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{blob.etag}"', "Accept-Ranges": "bytes"}
        if blob.sha256 is None:
            self._send_content(blob.content, headers)
            return
        # The Hub sends large files from another host; what the client must know is on the redirect.
        headers["Location"] = f"{self.hub.large_file_url}/large-files/{repo}/{blob.sha256}/{path}"
        headers["X-Linked-Etag"], headers["X-Linked-Size"] = f'"{blob.sha256}"', str(len(blob.content))
        if self.fault is not None:  # A fault planted on a large file strikes where its bytes are sent.
            self.fault.happened -= 1
            self.fault = None
        self._send(302, b"", headers)

    def large_file(self, repo: str, sha256: str, path: str) -> None:
        content = self.hub.state.large_files[sha256]
        self._send_content(content, {"ETag": f'"{sha256}"', "Accept-Ranges": "bytes"})

    def _send_content(self, content: bytes, headers: dict[str, str]) -> None:
        headers = {"Content-Type": "application/octet-stream", **headers}
        match = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        if match is None:
            self._send(200, content, headers)
            return
        total = len(content)
        first = int(match[1]) if match[1] else max(total - int(match[2]), 0)
        last = min(int(match[2]), total - 1) if match[1] and match[2] else total - 1
        if first >= total:
            raise HubError(416, "Range Not Satisfiable", headers={"Content-Range": f"bytes */{total}"})
        self._send(206, content[first : last + 1], {**headers, "Content-Range": f"bytes {first}-{last}/{total}"})
