"""Wrong sections of the model, its answers and the replicas are named, with what would be right."""

from typing import Any

import pytest
import yaml
from support.small_spec import complaint, complaint_about, spec, whole

from magbatch.errors import SpecError
from magbatch.spec import differences, parse


@pytest.mark.parametrize(
    ("field", "value", "right"),
    [
        ("sampling.temprature", 0.5, "did you mean `temperature`?"),
        ("model.engine", "vlm", "did you mean vllm? It is one of vllm or fake (it is 'vlm')"),
        ("sampling.top_p", 3, "write a number of 1 or less (it is 3)"),
        ("sampling.max_tokens", "many", "write a whole number (it is 'many')"),
        ("sampling.n", 0, "write a whole number of 1 or more (it is 0)"),
        ("replicas.gpus", -1, "write a whole number of 0 or more (it is -1)"),
        ("sampling", 7, "write a group of fields, such as {temperature: …, top_p: …} (it is 7)"),
        ("sampling", None, "write a group of fields, such as {temperature: …, top_p: …} (it is null)"),
    ],
)
def test_a_wrong_field_is_named_with_what_to_write(field: str, value: Any, right: str) -> None:
    assert right in complaint_about(field, value)


def test_greedy_sampling_has_one_sample() -> None:
    assert "sampling: n > 1 needs temperature > 0" in complaint(sampling={"temperature": 0, "n": 3})


def test_nodes_are_preferred_by_rays_labels() -> None:
    job = spec("replicas.prefer=[{accelerator: H100, market: spot}, {accelerator: A100, labels: {zone: b}}]")
    assert [shape.selector for shape in job.replicas.prefer] == [
        {"ray.io/accelerator-type": "H100", "ray.io/market-type": "spot"},
        {"ray.io/accelerator-type": "A100", "zone": "b"},
    ]
    assert differences(job, spec()) == [], "where it runs changes no answer"


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ({}, "replicas.prefer[0]: name an accelerator, a market or labels"),
        ({"market": "cheap"}, "replicas.prefer[0].market"),
        ({"gpu": "H100"}, "replicas.prefer[0].gpu"),
        ({"labels": {"ray.io/market-type": "spot"}}, "are what `accelerator` and `market` are for"),
    ],
)
def test_a_wrong_kind_of_node_is_named(shape: dict[str, Any], said: str) -> None:
    assert said in complaint(replicas__prefer=[shape])


def test_priority_is_bounded_in_new_specs_only() -> None:
    wild = yaml.safe_dump(whole(replicas__priority=10**9))
    with pytest.raises(SpecError, match=r"replicas.priority: write a number from -100 to 100"):
        parse(wild, new=True)
    assert parse(wild).replicas.priority == 10**9


def test_min_replicas_are_not_above_max_replicas() -> None:
    assert "replicas: min (4) is above max (2)" in complaint(replicas={"min": 4, "max": 2})


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ({"extract": "(a"}, "answer.extract: is not a regular expression: missing )"),
        ({"extract": "(a)"}, "answer.extract: write whole, boxed, or a regular expression with a group (?P<answer>…)"),
        ({"schema": {"type": "wrong"}}, "answer.schema: is not a JSON Schema: $.type: "),
    ],
)
def test_a_wrong_answer_section_is_named(answer: dict[str, Any], right: str) -> None:
    assert right in complaint(answer=answer)


@pytest.mark.parametrize(
    ("answer", "may_refuse"),
    [
        ({}, False),
        ({"extract": "whole"}, False),
        ({"extract": "boxed"}, False),
        ({"extract": "(?P<answer>a)"}, True),
        ({"schema": {"type": "object", "properties": {"x": {}}}}, True),
    ],
)
def test_only_a_schema_or_a_pattern_may_refuse_an_answer(answer: dict[str, Any], may_refuse: bool) -> None:
    assert spec(answer=answer).answer.may_refuse is may_refuse


def test_a_reasoning_budget_without_reasoning_is_refused() -> None:
    said = complaint(reasoning={"effort": "none", "budget_tokens": 10})
    assert "reasoning: effort: none leaves nothing for budget_tokens" in said


def test_a_node_kind_is_shown_in_one_line() -> None:
    (shape,) = spec(replicas__prefer=[{"accelerator": "L4", "market": "spot", "labels": {"zone": "b"}}]).replicas.prefer
    assert str(shape) == "spot L4 zone=b"
