"""Files of a gene on the Hub: fetched as far as needed, checked against their hashes, failures in one sentence."""

import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.sha import git_hash, sha_fileobj
from transformers.utils.hub import extract_commit_hash

from .errors import LearngeneError, first_line
from .saving import WEIGHTS, WEIGHTS_INDEX, is_needed, read_index

REPO_ID = re.compile(r"(?!.*\.\.)[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")

PICKLED_WEIGHTS = ("pytorch_model.bin", "pytorch_model.bin.index.json")
# Files of a processor, as regular expressions: its own config holds both of its parts' settings.
IMAGE_PROCESSOR = r"(pre)?processor_config\.json"
TOKENIZER = (
    r"processor_config\.json|(tokenizer|tokenizer_config|vocab|special_tokens_map|added_tokens)\.json|merges\.txt"
)
ATTEMPTS = 3
# httpx's own base class: huggingface_hub moved from httpx to httpx2, and both may be installed.
HTTPError: type[Exception] = HfHubHTTPError.__bases__[0]


def check_repo_id(repo_id: str) -> str:
    """Return a Hub id if it is one: "name" or "namespace/name" of letters, digits, '-', '_' and single '.'."""
    if not REPO_ID.fullmatch(repo_id):
        raise LearngeneError(
            f"{repo_id!r} is neither an existing folder nor a Hub id "
            "(namespace/name, of letters, digits, '-', '_' and single '.')"
        )
    return repo_id


def check_subfolder(subfolder: str) -> str:
    """Return a folder inside a repository if it stays inside."""
    if subfolder and (subfolder.startswith(("/", "~")) or not re.fullmatch(r"[\w./-]+", subfolder)):
        raise LearngeneError(f"subfolder is {subfolder!r}: it takes a relative path of plain names")
    if ".." in subfolder.split("/"):
        raise LearngeneError(f"subfolder is {subfolder!r}: it cannot lead out of the repository with '..'")
    return subfolder


def fetch_learngene(
    repo_id: str,
    *,
    modality: str | None = None,
    with_processor: bool = False,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    subfolder: str = "",
) -> tuple[Path, str]:
    """Bring the config and the weights of a gene into the Hub's cache.

    Every file is compared with the hash that the Hub announced for it, SHA-256 for large files and git's SHA-1 for
    others; a file that differs is removed from the cache and fetched again, as are downloads that fail half-way, three
    times in all.

    Args:
        modality: "image" or "text" fetches only the shards, and of the processor only the part, that descendants of
            that modality need. None and "multimodal" fetch all.
        with_processor: fetch the processor too, where one is stored with the gene.
        revision: branch, tag or commit; None takes main.
        token: a Hub token; None takes the saved one, False sends none.
        cache_dir: None takes the Hub's own.
        local_files_only: take what is in the cache without asking the Hub.
        force_download: fetch again what is in the cache.
        subfolder: where in the repository the gene is.

    Returns:
        the folder with the files, and the commit they are of.

    Raises:
        LearngeneError: the id or subfolder is none, there is no such repository, revision or gene, access is refused,
            the weights are pickled only, or the download failed or was damaged every time.
    """
    check_repo_id(repo_id)
    settings: dict[str, Any] = {
        "cache_dir": cache_dir,
        "token": token,
        "subfolder": check_subfolder(subfolder) or None,
    }
    settings |= {"local_files_only": local_files_only, "force_download": force_download}

    def fetch(name: str, at: str | None) -> Path:
        return _fetch_checked(repo_id, name, revision=at, **settings)

    with _no_folder_either(repo_id), explain_hub_errors(repo_id, revision):
        try:
            config = fetch("config.json", revision)
        except EntryNotFoundError as error:
            if isinstance(error, LocalEntryNotFoundError):
                raise
            where = f"{repo_id}/{subfolder}" if subfolder else repo_id
            raise LearngeneError(f"{where} holds no model: it has no config.json") from None
    folder = config.parent
    commit = str(extract_commit_hash(str(config), None))
    with explain_hub_errors(repo_id, revision):
        names = _weight_files(repo_id, commit, fetch, is_needed(modality), token)
        if with_processor and not (local_files_only or constants.HF_HUB_OFFLINE):
            names += _processor_files(repo_id, commit, subfolder, modality, token)
        for name in names:
            fetch(name, commit)
    return folder, commit


def _weight_files(
    repo_id: str, commit: str, fetch: Callable, wanted: Callable[[str], bool], token: str | bool | None
) -> list[str]:
    """The safetensors files of the gene that hold a wanted tensor."""
    try:
        weight_map = read_index(fetch(WEIGHTS_INDEX, commit), repo_id)
    except EntryNotFoundError as no_index:
        try:
            fetch(WEIGHTS, commit)
        except EntryNotFoundError:
            if isinstance(no_index, LocalEntryNotFoundError):
                raise no_index from None
            for name in PICKLED_WEIGHTS:
                if HfApi().file_exists(repo_id, name, revision=commit, token=token):
                    raise LearngeneError(
                        f"{repo_id} has pickled weights only ({name}), which can run code when they are opened: "
                        "save the model as safetensors"
                    ) from None
            raise LearngeneError(f"{repo_id} has no weights: it needs {WEIGHTS}") from None
        return []
    return sorted({shard for tensor, shard in weight_map.items() if wanted(tensor)})


def _processor_files(
    repo_id: str, commit: str, subfolder: str, modality: str | None, token: str | bool | None
) -> list[str]:
    """The files of the processor that lie beside the gene."""
    wanted = {"image": IMAGE_PROCESSOR, "text": TOKENIZER}.get(modality or "", f"{IMAGE_PROCESSOR}|{TOKENIZER}")
    prefix = subfolder.rstrip("/") + "/" if subfolder else ""
    files = HfApi().list_repo_files(repo_id, revision=commit, token=token)
    return [
        name for file in files if re.fullmatch(wanted, name := file.removeprefix(prefix)) and file == prefix + name
    ]


def list_files(
    repo_id: str,
    wanted: Iterable[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike | None = None,
    local_files_only: bool = False,
    subfolder: str | None = None,
) -> set[str]:
    """Say which of these files a repository has; where the Hub is not asked or not reached, the cache.

    Raises:
        LearngeneError: as `fetch_learngene`; or the cache holds none of them, and does not know that there are none.
    """
    check_repo_id(repo_id)
    prefix = check_subfolder(subfolder or "").rstrip("/") + "/" if subfolder else ""
    unreached: LearngeneError | None = None
    if not (local_files_only or constants.HF_HUB_OFFLINE):
        try:
            with explain_hub_errors(repo_id, revision):
                files = set(HfApi().list_repo_files(repo_id, revision=revision, token=token))
                return {name for name in wanted if prefix + name in files}
        except LearngeneError as error:
            if isinstance(error.__cause__, HfHubHTTPError) and not _is_passing(error.__cause__):
                raise
            unreached = error
    cache = None if cache_dir is None else os.fspath(cache_dir)
    cached = {
        name: try_to_load_from_cache(repo_id, prefix + name, cache_dir=cache, revision=revision) for name in wanted
    }
    found = {name for name, path in cached.items() if isinstance(path, str)}
    if not found and any(path is None for path in cached.values()):
        at = f" at revision {revision!r}" if revision else ""
        raise unreached or LearngeneError(
            f"{repo_id}{at} has no processor in the cache, and the Hub is not asked (offline)"
        )
    return found


def _fetch_checked(repo_id: str, name: str, *, force_download: bool, **settings) -> Path:
    """Download one file and compare it with its hash, again up to `ATTEMPTS` times."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            path = Path(hf_hub_download(repo_id, name, force_download=force_download or attempt > 1, **settings))
        except (HTTPError, OSError) as error:
            if attempt == ATTEMPTS or not _is_passing(error):
                raise
        else:
            if _is_intact(path):
                return path
            _remove(path)
            if settings["local_files_only"] or constants.HF_HUB_OFFLINE:
                raise LearngeneError(
                    f"{name} of {repo_id} is damaged in the cache and was removed from it: load it again with network"
                )
        time.sleep(0.5 * 2 ** (attempt - 1))
    raise LearngeneError(
        f"{name} of {repo_id} arrived damaged {ATTEMPTS} times (its hash is not the one announced) and was not kept: "
        "try again, or another network"
    )


def _is_passing(error: Exception) -> bool:
    """Whether the same download may work in a moment: the server or the connection failed, not the request."""
    if isinstance(error, LocalEntryNotFoundError):
        return isinstance(error.__cause__, Exception) and _is_passing(error.__cause__)
    if isinstance(error, HfHubHTTPError):
        return error.response is not None and error.response.status_code >= 500
    if isinstance(error, OfflineModeIsEnabled):
        return False
    return isinstance(error, (HTTPError, ConnectionError)) or "Consistency check failed" in str(error)


def _is_intact(path: Path) -> bool:
    """Whether a cached file has the hash that it is filed under."""
    expected = path.resolve().name
    if re.fullmatch(r"[0-9a-f]{64}", expected):
        with path.open("rb") as file:
            return sha_fileobj(file).hex() == expected
    # A cache without links keeps no hash.
    return not re.fullmatch(r"[0-9a-f]{40}", expected) or git_hash(path.read_bytes()) == expected


def _remove(path: Path) -> None:
    blob = path.resolve()
    path.unlink(missing_ok=True)
    blob.unlink(missing_ok=True)


def upload_folder_of(
    repo_id: str,
    write: Callable[[Path], None],
    *,
    token: str | bool | None = None,
    private: bool | None = None,
    revision: str | None = None,
    **settings: Any,
) -> Any:
    """Have a folder written and upload all of it in one commit.

    Args:
        repo_id: made if need be.
        write: writes the files into the folder it is given.
        private: of a repository that is made; None takes the Hub's default.
        revision: branch; None takes main.
        settings: as of `HfApi.upload_folder`: `commit_message`, `commit_description`, `create_pr`.

    Returns:
        `huggingface_hub.CommitInfo`.

    Raises:
        LearngeneError: the Hub refuses it, in one sentence.
    """
    with tempfile.TemporaryDirectory() as temporary:
        write(Path(temporary))
        with explain_hub_errors(repo_id, revision):
            api = HfApi(token=token)
            repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            return api.upload_folder(repo_id=repo_id, folder_path=temporary, revision=revision, **settings)


@contextmanager
def explain_hub_errors(repo_id: str, revision: str | None = None) -> Iterator[None]:
    """Turn what `huggingface_hub` raises into a `LearngeneError` of one sentence that names the repository."""
    try:
        yield
    except LearngeneError:
        raise
    except (HTTPError, OSError, HFValidationError) as error:
        sentence = _explain(error, repo_id, revision)
        if sentence is None:
            raise
        raise LearngeneError(sentence) from error


@contextmanager
def _no_folder_either(repo_id: str) -> Iterator[None]:
    """Add, where a repository is not found, that there is no such folder: a mistyped path may look like a Hub id."""
    try:
        yield
    except LearngeneError as error:
        missing = (LocalEntryNotFoundError, OfflineModeIsEnabled, RepositoryNotFoundError)
        if not isinstance(error.__cause__, missing) or isinstance(error.__cause__, GatedRepoError):
            raise
        raise LearngeneError(f"{error}; there is no folder {repo_id!r} either") from error.__cause__


def _explain(error: BaseException, repo_id: str, revision: str | None) -> str | None:
    if isinstance(error, LocalTokenNotFoundError):
        return "There is no Hugging Face token: log in with `hf auth login`, or set HF_TOKEN"
    if isinstance(error, GatedRepoError):
        return (
            f"{repo_id} is gated: ask for access at {constants.ENDPOINT}/{repo_id}, then log in with `hf auth login`"
        )
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"There is no repository {repo_id}, or it is private and your token (see `hf auth whoami`) cannot read it"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{repo_id} has no revision {revision!r}"
    if isinstance(error, HFValidationError):
        return f"{repo_id!r} is no Hub id: {first_line(error)}"
    if isinstance(error, LocalEntryNotFoundError):
        if isinstance(error.__cause__, HfHubHTTPError):
            return _explain(error.__cause__, repo_id, revision)
        at = f" at revision {revision!r}" if revision else ""
        asked = not constants.HF_HUB_OFFLINE and error.__cause__ is not None
        reason = "the Hub cannot be reached" if asked else "the Hub is not asked (offline)"
        return f"{repo_id}{at} is not in the cache in full, and {reason}"
    if isinstance(error, OfflineModeIsEnabled):
        return f"{repo_id} cannot be reached: HF_HUB_OFFLINE is set"
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        status = error.response.status_code
        known = {
            401: "the Hub does not accept your token: log in again with `hf auth login`",
            403: f"your token has no right to do this with {repo_id}",
            412: f"{repo_id} has changed meanwhile: run it again",
            429: f"the Hub limits your requests for {repo_id}: try again in a few minutes",
        }
        return known.get(status) or f"the Hub answered {status} for {repo_id}: try again later"
    if isinstance(error, (HTTPError, ConnectionError)) or "Consistency check failed" in str(error):
        return f"The connection to the Hub failed for {repo_id} ({type(error).__name__}): try again"
    return None
