"""Facts that the steps need are read from a configuration."""

import json
from pathlib import Path
from typing import Any

import pytest

from magbatch.errors import ModelError
from magbatch.model.facts import ModelFacts, facts


def written(folder: Path, params: Any) -> Path:
    (folder / "params.json").write_text(params if isinstance(params, str) else json.dumps(params))
    return folder


MAGISTRAL = {
    "max_position_embeddings": 131072,
    "vision_encoder": {"image_size": 1540, "patch_size": 14, "spatial_merge_size": 2},
}


@pytest.mark.parametrize(
    ("params", "wanted"),
    [
        (MAGISTRAL, ModelFacts(131_072, 1540, 28)),
        ({"max_seq_len": 32_768}, ModelFacts(32_768, None, 0)),
        ({}, ModelFacts(131_072, None, 0)),
        ({"max_position_embeddings": None, "max_seq_len": 9, "vision_encoder": None}, ModelFacts(9, None, 0)),
        ({"vision_encoder": {"image_size": 1024, "patch_size": 16}}, ModelFacts(131_072, 1024, 16)),
    ],
)
def test_the_configuration_says_what_the_steps_need(tmp_path: Path, params: Any, wanted: ModelFacts) -> None:
    assert facts(written(tmp_path, params)) == wanted


def test_the_configuration_of_the_tiny_model(checkpoint: Path) -> None:
    assert facts(checkpoint) == ModelFacts(8192, 448, 28)


@pytest.mark.parametrize(
    ("params", "why"),
    [
        ("{", "not a model's configuration"),
        ("[]", "not a model's configuration"),
        ({"max_seq_len": "long"}, "not a model's configuration"),
        ({"vision_encoder": [1]}, "not a model's configuration"),
        ({"vision_encoder": {"image_size": None, "patch_size": 14}}, "not a model's configuration"),
        ({"vision_encoder": {"image_size": 1540}}, "vision_encoder has no 'patch_size'"),
        ({"vision_encoder": {"patch_size": 14}}, "vision_encoder has no 'image_size'"),
    ],
)
def test_a_configuration_that_says_something_else_is_a_model_error(tmp_path: Path, params: Any, why: str) -> None:
    with pytest.raises(ModelError) as caught:
        facts(written(tmp_path, params))
    assert str(caught.value).startswith(f"{tmp_path}/params.json: {why}")
