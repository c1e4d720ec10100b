"""The files of a model: their source, their version, and the facts that they hold about the model.

Reading needs the tokenizer and the configuration only; an engine needs the weights as well. Each node fetches either at
most once. A plan freezes the version of a job's model, and every node uses that version or fails.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path

from magbatch.errors import ModelError, mistake_in
from magbatch.model import bucket, hub
from magbatch.model.facts import ModelFacts, facts
from magbatch.model.files import SMALL_FILES, SUMMED, check_files, in_cache
from magbatch.model.version import local_version, must_be, s3_version
from magbatch.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model's files on this node. A process makes it once and hands it on: the driver, a replica, a reader.

    Attributes:
        path: Directory of the files.
        facts: Facts from the configuration.
        revision: Version of the files, as a plan freezes it; None if nobody has asked for it yet.
    """

    path: Path
    facts: ModelFacts
    revision: str | None


def resolve(model: ModelSpec) -> Checkpoint:
    """Find a model's files without weights, and their present version. `locate` accepts no others once a plan froze it.

    Args:
        model: The spec's `model`.

    Returns:
        The files. Their revision is the commit of a hub model. For other sources it is `sha256:A-B`: A is a checksum of
        the small files, B of the weights. Each covers names and ETags in object storage, names and contents in a
        directory (samples of large files).

    Raises:
        ModelError: `locate` fails, or the spec names a revision that its source does not have.
        StorageError: Object storage refuses the request.
    """
    there = locate(model, weights=False)
    if _is_hub(model.source):
        return there
    with mistake_in("model.source", ModelError):
        is_bucket = model.source.startswith("s3://")
        found = s3_version(model.source) if is_bucket else local_version(model.source, there.path)
    if found is None:
        raise ModelError(f"model.source {model.source}: its files are gone")
    if model.revision not in (None, found):
        raise ModelError(
            f"model.revision {model.revision}: {model.source} is {found}; only hub models have other revisions: remove "
            "model.revision, or name the directory of that version in model.source"
        )
    return replace(there, revision=found)


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
    frozen = model.revision if model.revision and model.revision.startswith(SUMMED) else None
    if source == "builtin:tiny":
        from magbatch.tiny.checkpoint import ensure

        with in_cache():
            path = ensure()
    elif source.startswith("builtin:"):
        raise ModelError(f"model.source {source}: the built-in model is builtin:tiny")
    elif source.startswith("s3://"):
        with mistake_in("model.source", ModelError), in_cache():
            path = bucket.fetch(source, frozen, weights)
    elif os.path.isabs(source):
        path = Path(source)
        if not path.is_dir():
            raise ModelError(f"model.source {source}: there is no such directory")
    else:
        path = hub.fetch(source, model.revision, [*SMALL_FILES, *(["consolidated*"] if weights else [])])
    check_files(source, path)
    if frozen is not None and not source.startswith("s3://"):
        must_be(source, frozen, local_version(source, path), weights=weights)
    # The hub's cache has a folder for each commit.
    return Checkpoint(path, facts(path), path.name if _is_hub(source) else frozen)


def _is_hub(source: str) -> bool:
    return not source.startswith(("builtin:", "s3://")) and not os.path.isabs(source)
