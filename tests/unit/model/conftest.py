"""A cache of its own for each test, and a checkpoint in object storage."""

from pathlib import Path

import pytest
from support.checkpoint_files import FILES

from magbatch.storage import open_store


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = tmp_path / "cache"
    monkeypatch.setenv("MAGBATCH_CACHE", str(cache))
    return cache


@pytest.fixture
def remote(s3: str, checkpoint: Path) -> str:
    """The tiny model in object storage, among other files."""
    store = open_store(f"{s3}/models/tiny")
    for name in FILES:
        store.write(name, (checkpoint / name).read_bytes())
    for name in ("README.md", "model-00001-of-00010.safetensors", "original/params.json"):
        store.write(name, b"of no use")
    return f"{s3}/models/tiny"
