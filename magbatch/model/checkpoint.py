"""The files of a model: their source, their version, and the facts that they hold about the model.

Reading needs the tokenizer and the configuration only; an engine needs the weights as well. Each node fetches either at
most once. A plan freezes the version of a job's model, and every node uses that version or fails.
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from magbatch.errors import ModelError, RowError, StorageError, mistake_in
from magbatch.model import hub
from magbatch.spec import ModelSpec
from magbatch.storage import open_store
from magbatch.storage.input_file import DiskFile
from magbatch.storage.inputs import fetch_prefix

SMALL_FILES = ("params.json", "tekken.json", "SYSTEM_PROMPT.txt")
_SMALL = re.compile(r"(params\.json|tekken\.json|SYSTEM_PROMPT\.txt)")
# Mistral's own format; files with the same weights in Hugging Face's format are not fetched.
_ALL = re.compile(r"(params\.json|tekken\.json|SYSTEM_PROMPT\.txt|consolidated.*\.(safetensors|json))")
_SUMMED = "sha256:"  # prefix of a revision that is made of checksums: only the hub's models have their own


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The part of a checkpoint's configuration that the steps need.

    Attributes:
        context: Tokens of the model's context.
        image_size: Longest side of an image (pixels); None for a model without vision.
        image_cell: Side of the square behind one image token (pixels): patch size x spatial merge.
        latent: Whether attention keeps latent vectors in place of keys and values (MLA).
    """

    context: int
    image_size: int | None
    image_cell: int
    latent: bool = False


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model's files on this node. A process makes it once and hands it on.

    Attributes:
        path: Directory of the files.
        facts: Facts from the configuration.
        revision: Version that was asked for; None before a plan has frozen one.
    """

    path: Path
    facts: ModelFacts
    revision: str | None


def cache_dir() -> Path:
    """The directory of fetched and built checkpoints: `$MAGBATCH_CACHE`, else ~/.cache/magbatch."""
    return Path(os.environ.get("MAGBATCH_CACHE") or Path.home() / ".cache" / "magbatch")


@contextmanager
def _in_cache() -> Iterator[None]:
    """Turn errors of the cache's disk into a message that names the variable to set.

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
    """Admit one process of this node at a time; a lock ends with the process that holds it.

    Args:
        path: Lock file, made if it is missing.
    """
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def resolve(model: ModelSpec) -> str:
    """The present version of a model's files. A plan freezes it, and `locate` then accepts no other files.

    Args:
        model: The spec's `model`.

    Returns:
        The commit of a hub model. For other sources `sha256:A-B`: A is a checksum of the small files, B of the weights.
        Each covers names and ETags in object storage, names and contents in a directory (samples of large files).

    Raises:
        ModelError: `locate` fails, or the spec names a revision that its source does not have.
        StorageError: Object storage refuses.
    """
    path = locate(model, weights=False).path
    if _is_hub(model.source):
        return path.name  # the hub's cache has a folder for each commit
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
    """Find a model's files on this node, and fetch them if this node has never done so.

    Args:
        model: The spec's `model`; its revision may come from `resolve`.
        weights: Whether the weights are needed, or only the tokenizer and the configuration.

    Raises:
        ModelError: The source is missing, has another version, or is not a checkpoint in Mistral's format.
        StorageError: Object storage or the hub refuses.
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
        path = hub.fetch(source, model.revision, [*SMALL_FILES, *(["consolidated*"] if weights else [])])
    _check(source, path)
    if frozen is not None and not source.startswith("s3://"):
        _must_be(source, frozen, _local_version(source, path), weights=weights)
    return Checkpoint(path, facts(path), model.revision)


def _is_hub(source: str) -> bool:
    return not source.startswith(("builtin:", "s3://")) and not os.path.isabs(source)


def _must_be(source: str, frozen: str, found: str | None, *, weights: bool) -> None:
    """Compare two versions; without weights, only the checksum of the small files has to agree.

    Raises:
        ModelError: The versions differ.
    """
    if found == frozen or (found is not None and not weights and found.partition("-")[0] == frozen.partition("-")[0]):
        return
    raise ModelError(
        f"model.source {source}: its files have changed since the job was planned ({frozen} then, {found} now); "
        "bring the old files back, or run the spec into a new output"
    )


def _version(marks: dict[str, str]) -> str:
    """The version of a checkpoint, `sha256:A-B`.

    Args:
        marks: File name to a text that changes with the content: a checksum, or size and ETag.
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
    """The version of a checkpoint in object storage; None if it has no files."""
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
        if kept:  # a fetched copy is used even if its source is gone
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
                _check(source, draft)  # an upload that is not complete yet must not count as fetched
                if _s3_version(source) != before:
                    raise ModelError(f"model.source {source}: its files changed while they were fetched")
                draft.rename(target)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
    return target


def facts(path: Path) -> ModelFacts:
    """Read facts from params.json.

    Args:
        path: Directory of the checkpoint.

    Raises:
        ModelError: The file is missing, or is not a configuration of Mistral's format.
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
