"""The spec's names of engines, and the tables that know each of them."""

import ast
from pathlib import Path
from typing import get_args

import pytest
from support.parsed import parsed

import magbatch
from magbatch import engines
from magbatch.spec import ModelSpec, needs_weights, unchecked
from magbatch.spec.engines import ENGINES, engine_mistakes

NAMES = set(get_args(ModelSpec.model_fields["engine"].annotation))


def test_each_name_of_the_spec_has_its_entry_in_both_tables() -> None:
    assert set(ENGINES) == NAMES
    assert set(engines.ENGINES) == NAMES


def test_no_module_compares_the_name_of_an_engine() -> None:
    found = {
        f"{path}:{node.lineno}"
        for path in Path(magbatch.__file__).parent.rglob("*.py")
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Compare)
        for side in (node.left, *node.comparators)
        if isinstance(side, ast.Constant) and side.value in NAMES
    }
    assert not found, "give the engine's entry in spec/engines.py or engines/__init__.py what this place asks"


@pytest.mark.parametrize(("engine", "expected"), [("vllm", True), ("fake", False)])
def test_weights_are_loaded_by_real_engines_only(engine: str, expected: bool) -> None:
    assert needs_weights(ModelSpec.model_validate({"source": "a/b", "engine": engine})) is expected


def test_each_engine_checks_its_own_arguments() -> None:
    wrong = {"max_num_seqs": 0, "tokens": 0}
    said = {name: engine_mistakes(name, wrong, lambda _: None) for name in ("vllm", "fake", "unknown")}
    assert [line.partition(":")[0] for line in said["fake"]] == [
        "model.engine_args.max_num_seqs",
        "model.engine_args.tokens",
    ]
    assert said["vllm"][0].startswith("model.engine_args.max_num_seqs: write a whole number of 1 or more")
    assert said["unknown"] == said["vllm"][:1]
    assert engine_mistakes("vllm", "no mapping", lambda _: None) == []


def test_an_engine_without_arguments_has_nothing_unchecked() -> None:
    assert unchecked(ModelSpec(source="a/b")) is None
    assert unchecked(ModelSpec(source="a/b", engine="fake", engine_args={"tokens": 1})) is None
