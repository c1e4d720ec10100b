"""A model is found at its source, or the message names the source."""

import shutil
from pathlib import Path

import pytest
from support.checkpoint_files import FILES

from magbatch.errors import ModelError
from magbatch.model.checkpoint import locate
from magbatch.model.files import cache_dir
from magbatch.spec import ModelSpec


def test_the_builtin_model_is_made_on_first_use(own_cache: Path) -> None:
    path = locate(ModelSpec(source="builtin:tiny"), weights=True).path
    assert path.parent == own_cache == cache_dir()
    assert all((path / name).is_file() for name in FILES)
    assert locate(ModelSpec(source="builtin:tiny"), weights=False).path == path


def test_a_local_directory_is_taken_as_it_is(checkpoint: Path) -> None:
    assert locate(ModelSpec(source=str(checkpoint)), weights=True).path == checkpoint


@pytest.mark.parametrize("missing", ["params.json", "tekken.json"])
def test_a_directory_that_is_no_checkpoint_names_what_is_missing(
    checkpoint: Path, tmp_path: Path, missing: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoint, folder)
    (folder / missing).unlink()
    with pytest.raises(ModelError) as caught:
        locate(ModelSpec(source=str(folder)), weights=False)
    assert str(caught.value) == (
        f"model.source {folder}: {missing} is missing; magbatch runs checkpoints in Mistral's format"
    )


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("/nowhere/model", "there is no such directory"),
        ("builtin:large", "the built-in model is builtin:tiny"),
        ("not a hub id", "fetching it from the hub failed"),
        ("a/b/c", "fetching it from the hub failed"),
        ("s3://no-such-bucket/model", "there is no such bucket"),
    ],
)
def test_a_model_that_is_not_there_names_the_source(s3_endpoint: str, source: str, why: str) -> None:
    with pytest.raises(ModelError) as caught:
        locate(ModelSpec(source=source), weights=False)
    assert str(caught.value).startswith(f"model.source {source}: ")
    assert why in str(caught.value)


# Which version of them a job has.


# What they say.
