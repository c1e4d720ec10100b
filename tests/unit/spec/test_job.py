"""Rules between the sections of a spec, and the differences that make two specs two jobs."""

from collections.abc import Iterator
from typing import Any

import pydantic
import pytest
import yaml
from support.small_spec import complaint, complaint_about, spec, whole

from magbatch.errors import SpecError
from magbatch.spec import FREE_FIELDS, JobSpec, differences, parse


def test_a_short_spec_has_defaults() -> None:
    job = spec()
    assert (job.model.engine, job.model.engine_args, job.model.revision) == ("vllm", {}, None)
    assert (job.input.on_bad_file, job.input.carry, job.input.columns.images) == ("fail", [], [])
    assert (job.prompt.system, job.prompt.template) == ("model", None)
    assert (job.sampling.temperature, job.sampling.top_p, job.sampling.max_tokens) == (0.7, 0.95, 32768)
    assert (job.sampling.n, job.sampling.seed) == (1, None)
    assert job.output.commit_interval_s == 5
    assert (job.replicas.min, job.replicas.max, job.replicas.gpus) == (1, 1, 1)
    assert (job.limits.max_prompt_tokens, job.limits.max_images) == (40_000, 10)
    assert (job.limits.max_image_pixels, job.limits.max_failed_rows) == (50_000_000, None)


@pytest.mark.parametrize(
    ("field", "value", "right"),
    [
        ("name", "two words", "write 1 to 63 letters, digits"),
        ("name", 2026, 'YAML reads an unquoted 2026 as a number; write "2026"'),
        ("nmae", "x", "did you mean `name`?"),
    ],
)
def test_a_wrong_field_is_named_with_what_to_write(field: str, value: Any, right: str) -> None:
    assert right in complaint_about(field, value)


@pytest.mark.parametrize("field", ["name", "model", "model.source", "input", "input.path", "output", "output.path"])
def test_a_missing_field_is_named_with_its_description(field: str) -> None:
    data = whole()
    *groups, last = field.split(".")
    node = data
    for group in groups:
        node = node[group]
    del node[last]
    with pytest.raises(SpecError) as caught:
        parse(yaml.safe_dump(data))
    part: Any = JobSpec
    for group in groups:
        part = part.model_fields[group].annotation
    assert f"  {field}: is missing: {part.model_fields[last].description}" in str(caught.value)


def test_prompt_and_messages_exclude_each_other() -> None:
    said = complaint(input__columns={"prompt": "q", "messages": "m"})
    assert "input: columns: set `prompt` or `messages`, not both" in said


def test_messages_and_a_template_exclude_each_other() -> None:
    said = complaint(input__columns={"messages": "m"}, prompt__template="{{ q }}")
    assert "prompt.template cannot be used with input.columns.messages" in said


def test_something_must_be_asked() -> None:
    said = complaint(input__columns={"images": ["scan"]})
    assert "set input.columns.prompt, input.columns.messages or prompt.template" in said
    assert spec(input__columns={"images": ["scan"]}, prompt__template="Read this.").prompt.template == "Read this."


SCHEMA = {"type": "object", "properties": {"total": {"type": "number"}}}


@pytest.mark.parametrize(
    ("fields", "right"),
    [
        (
            {"reasoning__budget_tokens": 100, "sampling__max_tokens": 100},
            "reasoning.budget_tokens (100) leaves nothing",
        ),
        ({"answer__schema": {"type": "object", "properties": {"row_id": {}}}}, "['row_id'] are columns of the output"),
        ({"answer__schema": {"type": "object", "properties": {"vote": {}}}}, "['vote'] are columns of the output"),
        ({"answer__schema": {"type": "object"}}, "describe an object with named properties"),
        ({"answer__schema": SCHEMA, "answer__vote": "majority"}, "set sampling.n to 2 or more"),
    ],
)
def test_an_impossible_answer_section_is_refused(fields: dict[str, Any], right: str) -> None:
    assert right in complaint(**fields)


def test_engine_and_replica_agree_on_their_devices() -> None:
    said = complaint(model__engine_args={"tensor_parallel_size": 4}, replicas__gpus=2)
    assert "model.engine_args asks for 4 devices a replica, replicas.gpus for 2" in said
    for tensor, pipeline, gpus in ((2, None, 3), (1, None, 2), (None, 2, 3), (None, 2, 1), (2, 2, 2)):
        arguments = {"tensor_parallel_size": tensor, "pipeline_parallel_size": pipeline}
        assert "make them equal" in complaint(model__engine_args=arguments, replicas__gpus=gpus)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"tensor_parallel_size": 4},
        {"pipeline_parallel_size": 2},
        {"pipeline_parallel_size": 4},
        {"tensor_parallel_size": 2, "pipeline_parallel_size": 2},
    ],
)
def test_devices_of_a_replica_may_be_split_either_way(arguments: dict[str, int]) -> None:
    assert spec(model__engine_args=arguments, replicas__gpus=4).model.engine_args == arguments


@pytest.mark.parametrize("size", ["two", [2], 0, 1.5])
def test_a_wrong_parallel_size_is_named(size: Any) -> None:
    said = complaint(model__engine_args={"tensor_parallel_size": size})
    assert f"model.engine_args.tensor_parallel_size is a whole number of 1 or more, not {size!r}" in said


EVERYTHING: dict[str, Any] = {
    "model__revision": "v1",
    "model__engine": "fake",
    "model__engine_args": {"max_model_len": 100, "quantization": "fp8", "max_num_seqs": 4},
    "input__columns": {"id": "i", "prompt": "ü", "images": ["a", "b"]},
    "input__carry": ["c"],
    "input__on_bad_file": "dead_letter",
    "input__shard_rows": 9,
    "input__fetch_timeout_s": 3.5,
    "input__fetch_from": ["/pictures", "s3://pictures/2026/"],
    "prompt": {"system": "Denk nach.\n[THINK]…[/THINK]\n", "template": "{{ ü }}\n  'x': \"y\" "},
    "sampling": {"temperature": 1, "top_p": 0.5, "top_k": 3, "n": 3, "seed": 2**40, "max_tokens": 10},
    "replicas": {"min": 2, "max": 3, "gpus": 0, "cpus": 0.5},
    "limits": {"max_images": 0, "max_failed_rows": 0},
}


def test_a_stored_spec_reads_back_as_the_same_job() -> None:
    for job in (spec(), spec(**EVERYTHING)):
        again = parse(job.to_yaml())
        assert again == job
        assert differences(job, again) == []


def test_a_stored_spec_holds_every_field_defaults_included() -> None:
    stored = yaml.safe_load(spec().to_yaml())
    assert set(stored) == set(JobSpec.model_fields)
    assert stored["sampling"]["top_k"] == 0
    assert stored["limits"]["max_failed_rows"] is None


def paths(model: type[pydantic.BaseModel], above: str = "") -> Iterator[str]:
    """The paths of all fields."""
    for name, field in model.model_fields.items():
        yield f"{above}{name}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, pydantic.BaseModel):
            yield from paths(field.annotation, f"{above}{name}.")


FREE: list[tuple[str, Any]] = [
    ("name", "other"),
    ("replicas", {"min": 2, "max": 9, "gpus": 0}),
    ("output__commit_interval_s", 60),
    ("output__commit_rows", 1),
    ("limits__max_failed_rows", 5),
    ("schedule", {"cron": "0 6 * * *"}),
    ("input__fetch_timeout_s", 1),
    ("input__fetch_from", ["s3://pictures/2026"]),
    ("input__shard_rows", 3),
    ("input__on_bad_file", "dead_letter"),
    ("model__engine_args", {"max_num_seqs": 7, "enforce_eager": True, "compilation_config": {"level": 0}}),
]
REAL: list[tuple[str, Any, str]] = [
    ("model__source", "s3://models/b", "model.source: 'builtin:tiny' -> 's3://models/b'"),
    ("model__engine", "fake", "model.engine: 'vllm' -> 'fake'"),
    ("model__engine_args", {"quantization": "fp8"}, "model.engine_args.quantization: None -> 'fp8'"),
    ("model__engine_args", {"hf_overrides": {"a": 1}}, "model.engine_args.hf_overrides.a: None -> 1"),
    ("prompt__system", "none", "prompt.system: 'model' -> 'none'"),
    ("prompt__template", "{{ q }}", "prompt.template: None -> '{{ q }}'"),
    ("sampling__seed", 1, "sampling.seed: None -> 1"),
    ("sampling__n", 2, "sampling.n: 1 -> 2"),
    ("input__carry", ["a"], "input.carry: [] -> ['a']"),
    ("input__columns", {"prompt": "q"}, "input.columns.prompt: 'question' -> 'q'"),
    ("input__path", "s3://docs/december/", "input.path: 's3://docs/november/' -> 's3://docs/december/'"),
    ("limits__max_prompt_tokens", 9, "limits.max_prompt_tokens: 40000 -> 9"),
    ("limits__max_image_pixels", 9, "limits.max_image_pixels: 50000000 -> 9"),
]


@pytest.mark.parametrize(("field", "value"), FREE, ids=[field for field, _ in FREE])
def test_a_free_field_may_change_between_runs(field: str, value: Any) -> None:
    changed = spec(**{field: value})
    assert changed != spec()
    assert differences(spec(), changed) == []


@pytest.mark.parametrize(("field", "value", "line"), REAL, ids=[line.split(":")[0] for _, _, line in REAL])
def test_a_field_that_changes_answers_is_a_difference(field: str, value: Any, line: str) -> None:
    assert differences(spec(), spec(**{field: value})) == [line]


def test_differences_are_sorted_and_leave_free_fields_out() -> None:
    changed = spec(sampling__seed=1, name="other", input__carry=["a"], model__revision="v2")
    assert [line.split(":")[0] for line in differences(spec(), changed)] == [
        "input.carry",
        "model.revision",
        "sampling.seed",
    ]


def test_every_free_field_exists() -> None:
    assert {path for path in FREE_FIELDS if not path.startswith("model.engine_args.")} <= set(paths(JobSpec))


def test_shard_size_comes_from_the_spec_or_the_jobs_size() -> None:
    assert spec(input__shard_rows=7).shard_rows(10**6) == 7
    assert spec().shard_rows(0) == 4
    assert spec().shard_rows(10**9) == 256
    assert spec(replicas={"max": 10}).shard_rows(32_000) == 100
    sizes = [spec().shard_rows(rows) for rows in range(0, 10_000, 37)]
    assert sizes == sorted(sizes)


def test_shards_that_keep_a_prefix_together_are_no_smaller() -> None:
    assert spec().group_rows(0) == 4
    assert spec(replicas={"max": 10}).group_rows(16_000) == 200
    assert spec(replicas={"max": 10}).group_rows(10**6) == 256
    assert spec(input__shard_rows=7).group_rows(10**6) == 7


def test_with_output_changes_only_the_output() -> None:
    moved = spec().with_output("s3://else")
    assert moved.output.path == "s3://else"
    assert moved.with_output(spec().output.path) == spec()
