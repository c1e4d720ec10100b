"""Checkpoints in object storage, fetched at most once per node and version."""

import shutil
import tempfile
from hashlib import sha256
from pathlib import Path

from magbatch.errors import ModelError
from magbatch.model.files import ALL, SMALL, SUMMED, cache_dir, check_files, only_one
from magbatch.model.version import must_be, s3_version
from magbatch.storage.inputs import fetch_prefix


def fetch(source: str, frozen: str | None, weights: bool) -> Path:
    """Fetch a checkpoint, unless this node has that version already.

    Args:
        source: URL of the checkpoint, s3://bucket/prefix.
        frozen: Version that the checkpoint must have; None takes the present one.
        weights: Whether the weights are needed too.

    Returns:
        Directory of the files on this node.

    Raises:
        ModelError: The files are missing, have another version, or change while they are fetched.
    """
    kind = "all" if weights else "small"
    models, name = cache_dir() / "models", sha256(source.encode()).hexdigest()[:16]
    version = frozen or s3_version(source)
    if version is None:
        kept = sorted(models.glob(f"{name}-*-{kind}"), key=lambda path: path.stat().st_mtime)
        if kept:  # a fetched copy is used even if its source is gone
            return kept[-1]
    target = models / f"{name}-{(version or '').removeprefix(SUMMED)}-{kind}"
    with only_one(target.with_suffix(".lock")):
        if not target.is_dir():
            draft = Path(tempfile.mkdtemp(prefix="draft-", dir=target.parent))
            try:
                before = s3_version(source)
                if version is not None:
                    must_be(source, version, before, weights=weights)
                fetch_prefix(source, draft, ALL if weights else SMALL)
                check_files(source, draft)  # an upload that is not complete yet must not count as fetched
                if s3_version(source) != before:
                    raise ModelError(f"model.source {source}: its files changed while they were fetched")
                draft.rename(target)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
    return target
