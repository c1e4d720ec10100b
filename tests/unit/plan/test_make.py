"""Making a plan: row ids, refused inputs, and the engine arguments that suit an input."""

import io
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.small_job import SmallJob

from magbatch.errors import InputError, ModelError, SpecError
from magbatch.jobs.steps import steps_of
from magbatch.model.checkpoint import resolve
from magbatch.plan.make import engine_hints, make_plan, subset_plan
from magbatch.plan.plan import Plan
from magbatch.spec import parse


def rows_by_file(plan: Plan) -> dict[str, list[str]]:
    """Row ids in the order of the plan, by the name of their file."""
    found: dict[str, list[str]] = {}
    for shard in plan.shards():
        for segment in shard.segments:
            found.setdefault(segment.path.rpartition("/input/")[2], []).extend(segment.row_ids())
    return found


def test_row_ids_depend_on_their_file_and_position_alone(either_job: SmallJob) -> None:
    either_job.ask(5, "m.parquet")
    either_job.ask(7, "sub/m.parquet")
    before = rows_by_file(either_job.plan)
    assert len(set(before["m.parquet"]) | set(before["sub/m.parquet"])) == 12

    either_job.ask(4, "a.parquet")  # listed before them
    either_job.ask(4, "z.parquet")
    for shard_rows in (1, 3, 100):
        after = rows_by_file(make_plan(either_job.spec(input={"shard_rows": shard_rows})))
        assert after.keys() == {"a.parquet", "m.parquet", "sub/m.parquet", "z.parquet"}
        assert {name: after[name] for name in before} == before
    as_glob = make_plan(either_job.spec(input={"path": f"{either_job.input}/m.*"}))
    assert rows_by_file(as_glob) == {"m.parquet": before["m.parquet"]}
    as_file = make_plan(either_job.spec(input={"path": f"{either_job.input}/m.parquet"}))
    assert rows_by_file(as_file) == {"m.parquet": before["m.parquet"]}


def test_the_same_input_has_the_same_row_ids_wherever_it_lies(tmp_path: Path, s3: str) -> None:
    found = []
    for number, root in enumerate([str(tmp_path / "here"), str(tmp_path / "there"), f"{s3}/a", f"{s3}/b"]):
        job = SmallJob(tmp_path / str(number), root)
        job.ask(3)
        job.ask(3, "sub/b.parquet")
        found.append(rows_by_file(job.plan))
    assert found == [found[0]] * 4


def test_no_data_is_read(either_job: SmallJob) -> None:
    either_job.ask(5000)
    data = bytearray(either_job.store.read("input/a.parquet"))
    footer = int.from_bytes(data[-8:-4], "little")
    data[4 : -8 - footer] = b"\xff" * (len(data) - 12 - footer)
    either_job.put("input/a.parquet", bytes(data))
    with pytest.raises(OSError, match=r"\S"):
        pq.read_table(io.BytesIO(bytes(data)))
    assert either_job.plan.rows == 5000


def test_a_glob_that_yields_a_file_twice_has_it_once(either_job: SmallJob) -> None:
    job = either_job
    job.ask(3, "sub/a.parquet")
    assert make_plan(job.spec(input={"path": f"{job.input}/**/**/*.parquet"})).rows == 3
    assert make_plan(job.spec(input={"path": f"{job.input}/**/*.parquet"})).rows == 3


def test_a_key_with_an_empty_part_is_read(tmp_path: Path, s3: str) -> None:
    job = SmallJob(tmp_path, s3)
    job.ask(3)
    job.ask(2, "/b.parquet")
    assert make_plan(job.spec()).rows == 5
    asked = [prompt.row_id for shard in job.plan.shards() for prompt in job.preparer(shard).prompts]
    assert len(asked) == 5


@pytest.mark.parametrize(
    "path", ["{root}", "{root}/", "{root}/input/../", "{root}/**/*.parquet", "{root}/*/*/*.parquet"]
)
def test_a_job_that_would_read_its_own_answers_is_refused(either_job: SmallJob, path: str) -> None:
    if ".." in path and either_job.root.startswith("s3://"):
        path = "{root}"  # a key has no parents
    either_job.ask(3)
    with pytest.raises(SpecError, match=r"output\.path .* and input\.path .* lie one inside the other"):
        make_plan(either_job.spec(input={"path": path.format(root=either_job.root)}))


def test_a_job_that_would_write_among_its_input_is_refused(either_job: SmallJob) -> None:
    job = either_job
    job.ask(3)
    for inside in (job.root, job.input, f"{job.input}/answers"):
        with pytest.raises(SpecError, match="lie one inside the other"):
            make_plan(job.spec(output={"path": inside}))
    assert (
        make_plan(job.spec(input={"path": f"{job.input}/*.parquet"}, output={"path": f"{job.input}/answers"})).rows == 3
    )


@pytest.mark.parametrize("name", ["größe 日本", "no-break\u00a0space", "wide\u3000space", "👩\u200d💻", "it's 100% #1"])
def test_a_file_may_have_any_name_that_is_text(either_job: SmallJob, name: str) -> None:
    either_job.ask(2, f"{name}.parquet")
    assert list(rows_by_file(Plan.from_bytes(either_job.plan.to_bytes()))) == [f"{name}.parquet"]
    assert len(either_job.prompts(0).prompts) == 2


def test_a_file_name_that_is_no_text_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "input"
    folder.mkdir()
    name = os.fsencode(folder) + b"/bad-\xff.parquet"
    pq.write_table(pa.table({"question": ["What is 1?"]}), tmp_path / "good.parquet")
    os.link(tmp_path / "good.parquet", name)
    spec = parse(
        f"name: x\nmodel: {{source: builtin:tiny}}\ninput: {{path: {folder}, columns: {{prompt: question}}}}\n"
        f"output: {{path: {tmp_path}/out}}\n"
    )
    with pytest.raises(InputError, match="not valid text"):
        make_plan(spec)


def test_nothing_there_is_said(either_job: SmallJob) -> None:
    with pytest.raises(InputError, match=r"input\.path .*input"):
        either_job.plan  # noqa: B018


def test_a_plan_freezes_the_version_of_the_model(job: SmallJob, checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoint, folder)
    job.set("model", source=str(folder), engine="fake", engine_args=job.engine)
    job.ask(3)
    plan = Plan.from_bytes(job.plan.to_bytes())
    assert plan.revision == resolve(job.spec().model).revision
    assert subset_plan(plan, list(plan.row_ids())[:1], job.spec()).revision == plan.revision
    job.answer()
    assert job.finalise() == []
    manifest = job.ledger.manifest()
    assert manifest is not None
    assert manifest.model_revision == plan.revision

    (folder / "SYSTEM_PROMPT.txt").write_text("You answer otherwise.")
    assert make_plan(job.spec()).revision != plan.revision
    with pytest.raises(ModelError, match="its files have changed since the job was planned"):
        steps_of(job.spec(), plan)
    old = Plan.from_bytes(replace(plan, revision=None).to_bytes())  # as older versions wrote it
    assert old.revision is None
    steps_of(job.spec(), old)


# Engine arguments that suit the input

NO_CACHE = {"mm_processor_cache_gb": 0}
SHM = {"mm_processor_cache_type": "shm"}
SCHEMA = {"type": "object", "properties": {"total": {"type": "number"}}, "required": ["total"]}


def scanned(job: SmallJob, pages: list[int], name: str = "a.parquet", **options: Any) -> None:
    """Rows that each show the image `<page>.png`."""
    scans = [f"{page}.png" for page in pages]
    ids = [f"{name}{row}" for row in range(len(pages))]
    job.write(pa.table({"id": ids, "question": ["What?"] * len(pages), "scan": scans}), name, **options)
    job.set("input", columns={"id": "id", "prompt": "question", "images": ["scan"]})


@pytest.mark.parametrize(
    ("pages", "group", "hints"),
    [
        (list(range(80)), None, NO_CACHE),
        ([row % 60 for row in range(80)], None, {}),  # some images come twice
        ([row % 10 for row in range(80)], "scan", {}),
    ],
)
def test_a_plan_freezes_that_images_hardly_repeat(
    job: SmallJob, pages: list[int], group: str | None, hints: dict[str, Any]
) -> None:
    scanned(job, pages)
    plan = job.plan
    assert (plan.group, plan.engine_hints) == (group, hints)
    assert Plan.from_bytes(plan.to_bytes()).engine_hints == hints
    some = subset_plan(plan, list(plan.row_ids())[:5], job.spec())
    assert Plan.from_bytes(some.to_bytes()).engine_hints == hints
    assert make_plan(job.spec(), limit=40).engine_hints == {}, "a sample has looked at no other rows"


@pytest.mark.parametrize(
    "changed",
    [
        {"reasoning": {"budget_tokens": 50}},
        {"answer": {"schema": {"type": "object", "properties": {"total": {"type": "number"}}}}},
        {"model": {"source": "builtin:tiny", "engine_args": {"mm_processor_cache_type": "shm"}}},
    ],
)
def test_a_retry_with_another_spec_works_its_hints_out_again(job: SmallJob, changed: dict[str, Any]) -> None:
    scanned(job, list(range(80)))
    plan = job.plan
    assert plan.engine_hints == {"mm_processor_cache_gb": 0}
    for section, fields in changed.items():
        job.set(section, **fields)
    assert subset_plan(plan, list(plan.row_ids())[:5], job.spec()).engine_hints == {}


@pytest.mark.parametrize("group", ["none", "scan"])
def test_images_that_planning_has_not_compared_may_repeat(job: SmallJob, group: str) -> None:
    scanned(job, list(range(80)))
    job.set("input", group=group)
    assert job.plan.engine_hints == {}


def test_images_in_a_file_without_dictionaries_may_repeat(job: SmallJob) -> None:
    scanned(job, list(range(80)), use_dictionary=False)
    assert job.plan.engine_hints == {}
    del job.plan
    scanned(job, list(range(80)))
    scanned(job, [row % 2 for row in range(80)], "b.parquet", use_dictionary=False)
    assert job.plan.engine_hints == {}


@pytest.mark.parametrize(
    ("columns", "sections", "distinct", "hints"),
    [
        ({"document": "d"}, {}, True, NO_CACHE),
        ({"images": ["i"]}, {}, True, NO_CACHE),
        ({"images": ["i"]}, {}, False, {}),
        ({"images": ["i", "j"]}, {}, True, {}),  # planning looks at the first image only
        ({"document": "d", "images": ["i"]}, {}, True, {}),
        ({}, {}, True, {}),  # text needs no cache of images
        # Two requests for each row:
        ({"images": ["i"]}, {"reasoning": {"budget_tokens": 9}}, True, {}),
        ({"images": ["i"]}, {"answer": {"schema": SCHEMA}}, True, {}),
        # The spec chooses the kind of cache, so it keeps vLLM's size:
        ({"images": ["i"]}, {"model": {"source": "a/b", "engine_args": SHM}}, True, {}),
    ],
)
def test_images_are_cached_if_they_may_come_again(
    job: SmallJob, columns: dict[str, Any], sections: dict[str, Any], distinct: bool, hints: dict[str, Any]
) -> None:
    job.set("input", columns={"prompt": "question"} | columns)
    schema = pa.schema([(name, pa.string()) for name in ("question", "d", "i", "j")])
    assert engine_hints(job.spec(**sections), schema, distinct=distinct) == hints
