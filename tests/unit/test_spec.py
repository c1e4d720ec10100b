"""A wrong spec gets one clear message with the field's path and what would be right; a right one loses nothing."""

from pathlib import Path
from typing import Any

import pydantic
import pytest
import yaml

from magbatch.errors import SpecError
from magbatch.spec import FREE_FIELDS, JobSpec, differences, is_remote, load, parse
from magbatch.spec.columns import carried_columns

ROOT = Path(__file__).parents[2]
JOBS = sorted((ROOT / "jobs").glob("*.yaml"))


def whole(**overrides: Any) -> dict[str, Any]:
    """The least spec there is, with dotted paths set."""
    data: dict[str, Any] = {
        "name": "invoices",
        "model": {"source": "builtin:tiny"},
        "input": {"path": "s3://docs/november/", "columns": {"prompt": "question"}},
        "output": {"path": "s3://results/november"},
    }
    for path, value in overrides.items():
        *groups, last = path.split("__")
        node = data
        for group in groups:
            node = node.setdefault(group, {})
        node[last] = value
    return data


def spec(*overrides: str, **fields: Any) -> JobSpec:
    return parse(yaml.safe_dump(whole(**fields)), list(overrides))


def complaint(*overrides: str, **fields: Any) -> str:
    with pytest.raises(SpecError) as caught:
        spec(*overrides, **fields)
    return str(caught.value)


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_every_shipped_job_is_a_right_spec(path: Path) -> None:
    job = load(str(path))
    assert job.name
    assert parse(job.to_yaml()) == job


def test_jobs_are_shipped() -> None:
    assert {"quickstart.yaml", "magistral-text.yaml", "magistral-documents.yaml"} <= {path.name for path in JOBS}


def test_what_a_short_spec_leaves_out_has_its_default() -> None:
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


# Wrong specs: the field, the wrong value, and what the message says besides the field's path.
WRONG: list[tuple[str, Any, str]] = [
    ("name", "two words", "write 1 to 63 letters, digits"),
    ("name", 2026, 'YAML reads an unquoted 2026 as a number; write "2026"'),
    ("nmae", "x", "did you mean `name`?"),
    ("input.columns.imagez", ["scan"], "did you mean `images`?"),
    ("sampling.temprature", 0.5, "did you mean `temperature`?"),
    ("limits.zzz", 1, "the fields here are max_prompt_tokens, max_images"),
    ("model.engine", "vlm", "did you mean vllm? It is one of vllm or fake (it is 'vlm')"),
    ("input.on_bad_file", "skip", "write fail or dead_letter (it is 'skip')"),
    ("input.carry", "doc_id", "write a list, such as [doc_id] (it is 'doc_id')"),
    ("input.shard_rows", 0, "write a whole number of 1 or more (it is 0)"),
    ("input.path", "", "is empty: write a local path or s3://bucket/prefix"),
    ("input.path", "gs://docs/", "only local paths and s3:// are known (it is 'gs://docs/')"),
    ("output.path", "s3://", "names no bucket: write s3://bucket/prefix"),
    ("output.path", "hdfs://x", "only local paths and s3:// are known"),
    ("sampling.top_p", 3, "write a number of 1 or less (it is 3)"),
    ("sampling.max_tokens", "many", "write a whole number (it is 'many')"),
    ("sampling.n", 0, "write a whole number of 1 or more (it is 0)"),
    ("output.commit_interval_s", 0, "write a number above 0 (it is 0)"),
    ("limits.max_failed_rows", -1, "greater than or equal to 0"),
    ("limits.max_failed_rows", "101%", "a share of all rows such as 5%"),
    ("limits.max_failed_rows", "many", "a share of all rows such as 5%"),
    ("limits.max_failed_rows", 0.05, "a share of all rows such as 5%"),
    ("limits.max_failed_rows", True, "a share of all rows such as 5%"),
    ("replicas.gpus", -1, "write a whole number of 0 or more (it is -1)"),
    ("prompt.template", "", "is empty; write text, or leave it out"),
    ("sampling", 7, "write a group of fields, such as {temperature: …, top_p: …} (it is 7)"),
    ("sampling", None, "write a group of fields, such as {temperature: …, top_p: …} (it is null)"),
]


@pytest.mark.parametrize(("field", "value", "right"), WRONG, ids=[f"{field}={value}" for field, value, _ in WRONG])
def test_a_wrong_field_is_named_and_so_is_what_would_be_right(field: str, value: Any, right: str) -> None:
    said = complaint(**{field.replace(".", "__"): value})
    assert f"\n  {field}: " in said
    assert right in said.partition(f"\n  {field}: ")[2]


WRONG_SCHEDULES: list[tuple[str, Any, str]] = [
    ("schedule.cron", {"cron": "0 25 * * *"}, "such as `0 6 * * *`: Bad hour (it is '0 25 * * *')"),
    ("schedule.cron", {"cron": "0 6 * *"}, "it has 4 fields, not 5 (it is '0 6 * *')"),
    ("schedule.cron", {"cron": "0 6 30 2 *"}, "Bad day-of-month"),
    ("schedule.timezone", {"cron": "0 6 * * *", "timezone": "Europe"}, "no such time zone: write an IANA name"),
    (
        "schedule.timezone",
        {"cron": "0 6 * * *", "timezone": "Mars/Olympus"},
        "such as Europe/Paris or UTC (it is 'Mars/Ol",
    ),
    ("schedule.timezone", {"cron": "0 6 * * *", "timezone": "../etc"}, "no such time zone"),
    ("schedule.missed", {"cron": "0 6 * * *", "missed": "all"}, "write catch_up or skip (it is 'all')"),
    ("schedule.timezon", {"cron": "0 6 * * *", "timezon": "UTC"}, "did you mean `timezone`?"),
    ("schedule.cron", {"timezone": "UTC"}, "is missing: Start times in cron's five fields"),
]


@pytest.mark.parametrize(("field", "schedule", "right"), WRONG_SCHEDULES)
def test_a_wrong_schedule_is_named_and_so_is_what_would_be_right(field: str, schedule: Any, right: str) -> None:
    said = complaint(schedule=schedule)
    assert said.count("\n") == 1
    assert right in said.partition(f"\n  {field}: ")[2]


def test_what_is_taken_bit_by_bit_needs_a_schedule() -> None:
    assert "input.incremental is for jobs that run again and again: set schedule.cron too" in complaint(
        input__incremental=True
    )
    job = spec(input__incremental=True, schedule={"cron": "0 6 * * *", "timezone": "Europe/Paris"})
    assert job.schedule is not None
    assert job.schedule.missed == "catch_up"
    assert parse(job.to_yaml()) == job


def test_every_wrong_field_is_named_at_once_and_the_message_begins_with_the_file() -> None:
    with pytest.raises(SpecError) as caught:
        parse(yaml.safe_dump(whole(sampling__n=0, limits__max_images=-1)), origin="jobs/x.yaml")
    lines = str(caught.value).splitlines()
    assert lines[0] == "jobs/x.yaml: 2 wrong fields"
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["sampling.n", "limits.max_images"]


@pytest.mark.parametrize("field", ["name", "model", "model.source", "input", "input.path", "output", "output.path"])
def test_a_missing_field_is_named_with_what_belongs_there(field: str) -> None:
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


def test_a_column_is_carried_once() -> None:
    assert "carry names ['a'] twice" in complaint(input__carry=["a", "b", "a"])
    job = spec(input__carry=["customer", "doc"], input__columns={"prompt": "q", "id": "doc"})
    assert carried_columns(job.input) == ["doc", "customer"]


def test_greedy_sampling_has_one_sample() -> None:
    assert "sampling: n > 1 needs temperature > 0" in complaint(sampling={"temperature": 0, "n": 3})


def test_nodes_are_preferred_by_the_labels_that_ray_gives_them() -> None:
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


def test_priority_has_bounds_that_a_stored_spec_of_before_need_not_keep() -> None:
    wild = yaml.safe_dump(whole(replicas__priority=10**9))
    with pytest.raises(SpecError, match=r"replicas.priority: write a number from -100 to 100"):
        parse(wild, new=True)
    assert parse(wild).replicas.priority == 10**9


def test_the_least_number_of_replicas_is_not_above_the_most() -> None:
    assert "replicas: min (4) is above max (2)" in complaint(replicas={"min": 4, "max": 2})


def test_devices_are_asked_for_once() -> None:
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
def test_a_parallel_size_that_is_no_number_is_named(size: Any) -> None:
    said = complaint(model__engine_args={"tensor_parallel_size": size})
    assert f"model.engine_args.tensor_parallel_size is a whole number of 1 or more, not {size!r}" in said


@pytest.mark.parametrize("text", ["", "- a\n- b", "just words", "7", "null"])
def test_a_spec_is_a_mapping(text: str) -> None:
    with pytest.raises(SpecError, match="a spec is a mapping that begins with `name:`, and this is "):
        parse(text)


@pytest.mark.parametrize("text", ["a: [1", "a: b: c", "\tname: x", "name: 2026-13-45", "a: \x00"])
def test_what_is_not_yaml_is_said_to_be_so(text: str) -> None:
    with pytest.raises(SpecError, match=r"^jobs/x\.yaml: not YAML: "):
        parse(text, origin="jobs/x.yaml")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    right = tmp_path / "right.yaml"
    right.write_text("name: x")
    (tmp_path / "latin.yaml").write_bytes(b"name: \xfc")
    for path, said in (
        (tmp_path / "none.yaml", "there is no such file"),
        (tmp_path / "rihgt.yaml", f"there is no such file; did you mean {right}?"),
        (tmp_path / "none" / "right.yaml", f"there is no such file, and no folder {tmp_path}/none"),
        (right / "right.yaml", f"there is no such file, and no folder {right}"),
        (tmp_path, "this is a folder; give one YAML file"),
        (tmp_path / "latin.yaml", "not UTF-8 text: byte 6 is 0xfc"),
    ):
        with pytest.raises(SpecError) as caught:
            load(str(path))
        assert str(caught.value) == f"{path}: {said}"


def test_overrides_set_fields_by_their_path() -> None:
    job = spec(
        "sampling.temperature=0",
        "sampling.seed=7",
        "input.carry=[a, b]",
        "model.engine_args.max_num_seqs=8",
        "limits.max_failed_rows=null",
        "prompt.system='none'",
        "output.path=s3://else/where",
        sampling__seed=1,
        limits__max_failed_rows=3,
    )
    assert (job.sampling.temperature, job.sampling.seed, job.input.carry) == (0, 7, ["a", "b"])
    assert job.model.engine_args == {"max_num_seqs": 8}
    assert (job.limits.max_failed_rows, job.prompt.system) == (None, "none")
    assert job.output.path == "s3://else/where"


def test_an_override_fills_a_group_that_the_file_left_empty() -> None:
    text = yaml.safe_dump(whole()) + "sampling:\n"
    assert parse(text, ["sampling.temperature=0"]).sampling.temperature == 0


@pytest.mark.parametrize(
    ("override", "right"),
    [
        ("sampling.temperature", "write key.path=value"),
        ("=5", "write key.path=value"),
        ("name.first=x", "name is a value, not a group of fields"),
        ("input.carry=[a", "the value is not YAML; put text in quotes"),
        ("prompt.template={{ q }}", "text that begins so needs quotes"),
        ("prompt..template=x", "a name between its dots is empty"),
        ("input.carry.0=x", "input.carry is a list: set it as a whole, --set 'input.carry=[first, second]'"),
        ("input.carry[0]=x", "input.carry is a list: set it as a whole"),
        ("sampling.n=.inf", ".inf is not a number that a spec can hold"),
    ],
)
def test_a_wrong_override_is_named(override: str, right: str) -> None:
    said = complaint(override, input__carry=["a"])
    assert said.startswith(f"--set {override}: ")
    assert right in said


def test_an_override_of_a_field_that_is_none_gets_the_nearest_one() -> None:
    assert "  sampling.temprature: no such field; did you mean `temperature`?" in complaint("sampling.temprature=0")


def test_local_paths_become_absolute_and_others_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    (tmp_path / "checkpoint").mkdir()
    job = spec(input__path="data/*.parquet", output__path="~/out/", model__source="checkpoint")
    assert job.input.path == f"{tmp_path}/data/*.parquet"
    assert job.output.path == "/home/someone/out"
    assert job.model.source == f"{tmp_path}/checkpoint"
    assert spec(model__source="./none").model.source == f"{tmp_path}/none"
    assert spec(model__source="mistralai/Magistral-Small-2509").model.source == "mistralai/Magistral-Small-2509"
    assert spec(model__source="s3://models/a").model.source == "s3://models/a"
    remote = spec(output__path="s3://results/november/")
    assert (remote.input.path, remote.output.path) == ("s3://docs/november/", "s3://results/november")
    assert is_remote(remote.output.path)
    assert not is_remote(job.output.path)


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


def leaves(part: Any, path: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, field in part.model_fields.items():
        here = f"{path}{name}"
        found.append((here, field))
        if isinstance(field.annotation, type) and issubclass(field.annotation, pydantic.BaseModel):
            found += leaves(field.annotation, f"{here}.")
    return found


@pytest.mark.parametrize(("path", "field"), leaves(JobSpec), ids=[path for path, _ in leaves(JobSpec)])
def test_every_field_is_described(path: str, field: Any) -> None:
    assert field.description, path
    assert field.description.endswith("."), path


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
def test_what_changes_no_answer_may_change_between_runs(field: str, value: Any) -> None:
    changed = spec(**{field: value})
    assert changed != spec()
    assert differences(spec(), changed) == []


@pytest.mark.parametrize(("field", "value", "line"), REAL, ids=[line.split(":")[0] for _, _, line in REAL])
def test_what_changes_an_answer_is_a_difference(field: str, value: Any, line: str) -> None:
    assert differences(spec(), spec(**{field: value})) == [line]


def test_differences_stand_in_the_order_of_their_paths_with_the_free_ones_left_out() -> None:
    changed = spec(sampling__seed=1, name="other", input__carry=["a"], model__revision="v2")
    assert [line.split(":")[0] for line in differences(spec(), changed)] == [
        "input.carry",
        "model.revision",
        "sampling.seed",
    ]


def test_every_free_field_exists() -> None:
    known = {path for path, _ in leaves(JobSpec)}
    assert {path for path in FREE_FIELDS if not path.startswith("model.engine_args.")} <= known


def test_shards_are_as_large_as_the_spec_says_or_fit_the_job() -> None:
    assert spec(input__shard_rows=7).shard_rows(10**6) == 7
    assert spec().shard_rows(0) == 4
    assert spec().shard_rows(10**9) == 256
    assert spec(replicas={"max": 10}).shard_rows(32_000) == 100
    sizes = [spec().shard_rows(rows) for rows in range(0, 10_000, 37)]
    assert sizes == sorted(sizes)


def test_another_output_is_all_that_with_output_changes() -> None:
    moved = spec().with_output("s3://else")
    assert moved.output.path == "s3://else"
    assert moved.with_output(spec().output.path) == spec()
