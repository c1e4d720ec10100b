"""Where a model's files come from, which version of them a job has, and what they say about the model.

The reading steps need only the tokenizer and the configuration; an engine needs the weights too.
Each node fetches either at most once. A job has one version of both: a plan resolves it, and every
node takes that one or none.
"""

import errno
import json
import os
import re
import shutil
import socket
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx

from magbatch.errors import ModelError, RowError, StorageError, mistake_in
from magbatch.spec import ModelSpec
from magbatch.storage import open_store
from magbatch.storage.contact import is_unattended
from magbatch.storage.input_file import DiskFile
from magbatch.storage.inputs import fetch_prefix

SMALL_FILES = ("params.json", "tekken.json", "SYSTEM_PROMPT.txt")
_SMALL = re.compile(r"(params\.json|tekken\.json|SYSTEM_PROMPT\.txt)")
# Mistral's own format; the same weights in Hugging Face's format are left where they are.
_ALL = re.compile(r"(params\.json|tekken\.json|SYSTEM_PROMPT\.txt|consolidated.*\.(safetensors|json))")
_OF_NETWORK = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN)
_SUMMED = "sha256:"  # what the revision of files that have none of their own begins with


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the checkpoint's configuration says, as far as the steps need it.

    Attributes:
        context: Tokens that the model can hold.
        image_size: Longest side of an image in pixels; None for a model without vision.
        image_cell: Pixels of the side of one image token (patch size x spatial merge).
        latent: Whether its attention keeps latent vectors in place of keys and values (MLA).
    """

    context: int
    image_size: int | None
    image_cell: int
    latent: bool = False


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model's files on this node, and what they say: made once by a process, and carried from there.

    Attributes:
        path: The directory.
        facts: What its configuration says.
        revision: Version of the files that was asked for; None before a plan has frozen one.
    """

    path: Path
    facts: ModelFacts
    revision: str | None


def cache_dir() -> Path:
    """Where fetched and built checkpoints are kept: `$MAGBATCH_CACHE`, else ~/.cache/magbatch."""
    return Path(os.environ.get("MAGBATCH_CACHE") or Path.home() / ".cache" / "magbatch")


@contextmanager
def _in_cache() -> Iterator[None]:
    """Raise what the cache's disk refuses as a mistake to mend.

    Raises:
        ModelError: The folder cannot be made or written, or is full.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:  # a RuntimeError: this user has no home
        set_by = os.environ.get("MAGBATCH_CACHE")
        where = f"MAGBATCH_CACHE={set_by}" if set_by else f"HOME={os.environ.get('HOME', '')}"
        reason = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
        raise ModelError(
            f"{where}: the model's files cannot be kept there ({reason}); set MAGBATCH_CACHE to a folder that can be "
            "written and has room"
        ) from error


@contextmanager
def _only_one(path: Path) -> Iterator[None]:
    """One process of this node at a time; the lock goes with the process that holds it."""
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def resolve(model: ModelSpec) -> str:
    """The version of a model's files as they are now, by which `locate` gives the same ones on every node.

    Args:
        model: The spec's model part.

    Returns:
        A hub model's commit; of other sources `sha256:` and checksums of the small files and of the weights: of names
        and ETags in object storage, of names and contents in a directory (of large files, of parts).

    Raises:
        ModelError: As `locate`; or the spec names a revision that its source does not have.
        StorageError: Object storage refuses.
    """
    path = locate(model, weights=False).path
    if _is_hub(model.source):
        return path.name  # the hub's own cache has a folder for each commit
    with mistake_in("model.source", ModelError):
        found = _s3_version(model.source) if model.source.startswith("s3://") else _local_version(model.source, path)
    if found is None:
        raise ModelError(f"model.source {model.source}: its files are gone")
    if model.revision not in (None, found):
        raise ModelError(
            f"model.revision {model.revision}: {model.source} is {found}; only models of the hub have others: leave "
            "model.revision out, or name the directory of that version in model.source"
        )
    return found


def locate(model: ModelSpec, *, weights: bool) -> Checkpoint:
    """The checkpoint on this node, fetched at most once per node.

    Args:
        model: The spec's model part; its revision may be one that `resolve` gave.
        weights: Whether the weights are needed, or the tokenizer and configuration alone.

    Raises:
        ModelError: The source is not there, has another version, or is no checkpoint in Mistral's format.
        StorageError: Object storage refuses.
    """
    source = model.source
    frozen = model.revision if model.revision and model.revision.startswith(_SUMMED) else None
    if source == "builtin:tiny":
        from magbatch.tiny.checkpoint import ensure

        with _in_cache():
            path = ensure()
    elif source.startswith("builtin:"):
        raise ModelError(f"model.source {source}: the built-in model is builtin:tiny")
    elif source.startswith("s3://"):
        with mistake_in("model.source", ModelError), _in_cache():
            path = _from_s3(source, frozen, weights)
    elif os.path.isabs(source):
        path = Path(source)
        if not path.is_dir():
            raise ModelError(f"model.source {source}: there is no such directory")
    else:
        path = _from_hub(source, model.revision, weights)
    _check(source, path)
    if frozen is not None and not source.startswith("s3://"):
        _must_be(source, frozen, _local_version(source, path), weights=weights)
    return Checkpoint(path, facts(path), model.revision)


def _is_hub(source: str) -> bool:
    return not source.startswith(("builtin:", "s3://")) and not os.path.isabs(source)


def _must_be(source: str, frozen: str, found: str | None, *, weights: bool) -> None:
    """Where the weights are not needed, they need not be there."""
    if found == frozen or (found is not None and not weights and found.partition("-")[0] == frozen.partition("-")[0]):
        return
    raise ModelError(
        f"model.source {source}: its files are not those that the job was planned with ({frozen} then, {found} now); "
        "bring those back, or run the spec into a new output"
    )


def _version(marks: dict[str, str]) -> str:
    """The version of a checkpoint.

    Args:
        marks: For each file by its name what changes when its content does.
    """

    def summed(of_weights: bool) -> str:
        chosen = sorted(item for item in marks.items() if (_SMALL.fullmatch(item[0]) is None) == of_weights)
        return sha256(json.dumps(chosen).encode()).hexdigest()[:16]

    return f"{_SUMMED}{summed(False)}-{summed(True)}"


def _local_version(source: str, path: Path) -> str:
    marks = {}
    try:
        for file in path.iterdir():
            if _SMALL.fullmatch(file.name):
                marks[file.name] = sha256(file.read_bytes()).hexdigest()
            elif _ALL.fullmatch(file.name):
                found = file.stat()
                with DiskFile(str(file), found.st_size, str(found.st_mtime_ns)) as weights:
                    marks[file.name] = f"{found.st_size} {weights.digest}"
    except (OSError, RowError) as error:
        raise ModelError(f"model.source {source}: {error}") from error
    return _version(marks)


def _s3_version(source: str) -> str | None:
    """None where there are no files."""
    try:
        found = list(open_store(source).list(""))
    except StorageError as error:
        if not error.missing_root:
            raise
        raise ModelError(f"model.source {source}: there is no such bucket") from error
    marks = {item.name: f"{item.size} {item.tag}" for item in found if _ALL.fullmatch(item.name)}
    return _version(marks) if marks else None


def _check(source: str, path: Path) -> None:
    for name in ("params.json", "tekken.json"):
        if not (path / name).is_file():
            raise ModelError(f"model.source {source}: {name} is missing; magbatch runs checkpoints in Mistral's format")


def _from_s3(source: str, frozen: str | None, weights: bool) -> Path:
    kind = "all" if weights else "small"
    models, name = cache_dir() / "models", sha256(source.encode()).hexdigest()[:16]
    version = frozen or _s3_version(source)
    if version is None:
        kept = sorted(models.glob(f"{name}-*-{kind}"), key=lambda path: path.stat().st_mtime)
        if kept:  # what was fetched before stays, also when its source is gone
            return kept[-1]
    target = models / f"{name}-{(version or '').removeprefix(_SUMMED)}-{kind}"
    with _only_one(target.with_suffix(".lock")):
        if not target.is_dir():
            draft = Path(tempfile.mkdtemp(prefix="draft-", dir=target.parent))
            try:
                before = _s3_version(source)
                if version is not None:
                    _must_be(source, version, before, weights=weights)
                fetch_prefix(source, draft, _ALL if weights else _SMALL)
                _check(source, draft)  # what is not there yet must not be remembered as fetched
                if _s3_version(source) != before:
                    raise ModelError(f"model.source {source}: its files changed while they were fetched")
                draft.rename(target)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
    return target


def _from_hub(source: str, revision: str | None, weights: bool) -> Path:
    from huggingface_hub import snapshot_download

    patterns = [*SMALL_FILES, *(["consolidated*"] if weights else [])]
    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=patterns))
    except (OSError, ValueError, httpx.HTTPError) as error:  # a ValueError: a name that the hub does not allow
        if _is_overloaded(error):
            raise StorageError(f"model.source {source}: the hub does not answer now: {error}", passing=True) from error
        text = f"model.source {source}: no such local directory, and the hub does not give it: {_hub_mistake(error)}"
        if is_unattended() and any(map(_is_of_network, _hub_causes(error))):
            raise StorageError(text, passing=True) from error
        raise ModelError(text) from error


def _hub_causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what it came from: `huggingface_hub` wraps why it could not ask in one that says too little."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _is_overloaded(error: BaseException) -> bool:
    answers = [getattr(one, "response", None) for one in _hub_causes(error)]
    codes = [answer.status_code for answer in answers if answer is not None]
    return any(code == HTTPStatus.TOO_MANY_REQUESTS or code >= HTTPStatus.INTERNAL_SERVER_ERROR for code in codes)


def _is_of_network(error: BaseException) -> bool:
    """Whether it is the network that refuses; a name that does not resolve is an OSError with a number, too."""
    kinds = httpx.TransportError | ConnectionError | TimeoutError | socket.gaierror | socket.herror | ssl.SSLError
    return isinstance(error, kinds) or (isinstance(error, OSError) and error.errno in _OF_NETWORK)


def _hub_mistake(error: BaseException) -> str:
    """What is wrong with a model of the hub, and what to do."""
    from huggingface_hub import errors

    token = "a private or gated one needs HF_TOKEN, of a user who has access"
    for one in _hub_causes(error):
        if isinstance(one, errors.OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set, and HF_HOME holds no copy; unset it, or set model.source to a directory"
        if isinstance(one, errors.GatedRepoError):
            return "access to it is granted on its page alone; ask there, and set HF_TOKEN"
        if isinstance(one, errors.RevisionNotFoundError):
            return "it has no such revision; write a branch, tag or commit of it in model.revision"
        if isinstance(one, errors.RepositoryNotFoundError):
            return f"it has no such model; write owner/name as on its page; {token}"
        if isinstance(one, errors.HFValidationError):
            return f"this is no model's name there; write owner/name ({one})"
        if isinstance(one, errors.HfHubHTTPError) and one.response is not None:
            return f"it answered {one.response.status_code}; {token}"
        if _is_of_network(one):
            where = os.environ.get("HF_ENDPOINT")
            address = f"HF_ENDPOINT={where}" if where else "huggingface.co"
            return (
                f"{address} cannot be reached from this machine ({one}); check the network, or set model.source to a "
                "directory or s3://"
            )
        if isinstance(one, OSError) and one.errno is not None:
            return f"{one.filename or 'the copy here'}: {one.strerror}; set HF_HOME to a folder that can be written"
    return str(error)


def facts(path: Path) -> ModelFacts:
    """Read params.json.

    Raises:
        ModelError: The file is not what Mistral's checkpoints have.
    """
    try:
        params: dict[str, Any] = json.loads((path / "params.json").read_text(encoding="utf-8"))
        context = int(params.get("max_position_embeddings") or params.get("max_seq_len") or 131_072)
        vision, latent = params.get("vision_encoder"), bool(params.get("kv_lora_rank"))
        if not vision:
            return ModelFacts(context, None, 0, latent)
        cell = int(vision["patch_size"]) * int(vision.get("spatial_merge_size", 1))
        return ModelFacts(context, int(vision["image_size"]), cell, latent)
    except KeyError as error:
        raise ModelError(f"{path / 'params.json'}: vision_encoder has no {error}") from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ModelError(f"{path / 'params.json'}: not a model's configuration: {error}") from error
