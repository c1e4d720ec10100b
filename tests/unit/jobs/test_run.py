import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from support.book import Breaking, Hand
from support.small_job import SmallJob

from magbatch.errors import ModelError, OutputError, SpecChangedError, SpecError, StorageError
from magbatch.fleet.devices import gpus_here
from magbatch.jobs.compact import compact
from magbatch.jobs.opening import begun, limited, take_place
from magbatch.jobs.preview import not_default, preview
from magbatch.jobs.run import Outcome, run
from magbatch.jobs.status import status
from magbatch.ledger.finalise import renew
from magbatch.ledger.layout import PAGE, RECORD, REPORT, SPEC
from magbatch.ledger.lease import Lease
from magbatch.ledger.ledger import Ledger
from magbatch.ledger.verify import verify
from magbatch.plan.make import make_plan
from magbatch.report.stored import stored_report
from magbatch.spec import JobSpec, differences, parse
from magbatch.storage import open_store


def go(spec: JobSpec, limit: int | None = None) -> tuple[Outcome, str]:
    """Run a job of which every row is committed: no fleet is needed. Returns what the console was told, too."""
    said = io.StringIO()
    return run(spec, Console(file=said, width=300), limit), said.getvalue()


def test_a_job_without_rows_is_complete(either_job: SmallJob) -> None:
    either_job.ask(0)
    outcome, _ = go(either_job.spec())
    assert (outcome.already, outcome.too_many_failed, outcome.samples) == (False, False, [])
    assert outcome.report["planned"] == 0
    assert json.loads(either_job.ledger.store.read("_magbatch/report.json")) == outcome.report
    assert verify(either_job.ledger).problems == ()
    again, _ = go(either_job.spec())
    assert again.already
    assert again.report == outcome.report


def test_a_job_whose_rows_are_all_committed_only_ends(either_job: SmallJob) -> None:
    job = either_job
    job.ask(9, question=[None if row == 4 else f"What is {row}?" for row in range(9)], id=["same"] * 3 + list("defghi"))
    job.answer()
    asked = job.asked()
    outcome, said = go(job.spec())
    assert "9 of 9 rows are committed already" in said
    assert outcome.already is False
    totals = outcome.report["totals"]
    assert (totals["answered"], totals["failed"], totals["by_code"]) == (8, 1, {"missing_value": 1})
    assert totals["prompt_tokens"] == sum(row["prompt_tokens"] for row in job.records())
    assert outcome.report["duplicate_ids"] == 2
    assert outcome.lines[0] == "8 of 9 rows answered, 1 failed"
    assert [question for question, _, _ in outcome.samples] == ["What is 0?", "What is 1?", "What is 2?"]
    for (_, reasoning, answer), row in zip(
        outcome.samples, sorted(job.records(), key=lambda row: row["row_id"]), strict=False
    ):
        assert (reasoning, answer) == (row["reasoning"], row["answer"])
    again, said = go(job.spec())
    assert (again.already, again.samples, said) == (True, [], "")
    assert again.report == outcome.report
    assert job.asked() == asked
    assert verify(job.ledger).problems == ()


def test_a_page_that_the_end_was_interrupted_before_is_written_by_the_next_run(either_job: SmallJob) -> None:
    job = either_job
    job.ask(3)
    job.answer()
    go(job.spec())
    page = job.ledger.store.read(PAGE)
    assert b"of 3 rows answered" in page
    job.ledger.store.delete(PAGE)
    assert list(verify(job.ledger).problems) == [
        f"{PAGE}: in the manifest, but not there; magbatch run SPEC writes it again"
    ]
    assert go(job.spec())[0].already
    assert b"of 3 rows answered" in job.ledger.store.read(PAGE)
    assert verify(job.ledger).verified


def test_a_report_that_an_interrupted_end_has_not_put_in_its_place_is_put_there_by_the_next_run(job: SmallJob) -> None:
    job.ask(3)
    job.answer()
    go(job.spec())
    _, plan, manifest = job.ledger.complete_job()
    report = json.loads(job.ledger.store.read(REPORT)) | {"currency": "EUR"}
    broken = Ledger(job.output)
    broken.store = Breaking(broken.store, 2, "before")  # the report is staged, the manifest renewed, and then it dies
    with pytest.raises(StorageError):
        renew(broken, job.spec(), plan, manifest, [], [], {REPORT: json.dumps(report).encode()})
    (problem,) = verify(job.ledger).problems
    assert (
        problem == f"{REPORT}: an interrupted run left it in _magbatch/staged/; magbatch run SPEC moves it to its place"
    )
    assert stored_report(job.ledger).to_dict()["currency"] == "EUR"
    assert go(job.spec())[0].already
    assert verify(job.ledger).verified
    assert list(job.ledger.store.list("_magbatch/staged/")) == []


def test_a_report_that_was_edited_is_not_believed(job: SmallJob) -> None:
    job.ask(3)
    job.answer()
    go(job.spec())
    job.put(f"output/{REPORT}", job.ledger.store.read(REPORT).replace(b'"planned": 3', b'"planned": 4'))
    assert not verify(job.ledger).verified
    outcome, _ = go(job.spec())
    assert (outcome.already, outcome.report["planned"]) == (True, 3)
    assert verify(job.ledger).verified


def test_an_end_that_was_interrupted_is_tidied(job: SmallJob) -> None:
    job.ask(3)
    job.answer()
    go(job.spec())
    stray = "results/00000000-zzz-0000.n1.parquet"
    job.put(f"output/{stray}", job.ledger.store.read(job.objects()[0]))
    assert go(job.spec())[0].already
    assert stray not in job.objects()
    assert verify(job.ledger).problems == ()


@pytest.mark.parametrize(("allowed", "too_many"), [(None, False), (2, False), (1, True), (0, True)])
def test_failed_rows_above_the_limit_are_too_many(job: SmallJob, allowed: int | None, too_many: bool) -> None:
    job.ask(3, question=[None, "What?", None])
    job.answer()
    spec = job.spec(limits={"max_failed_rows": allowed})  # may change from run to run
    assert go(spec)[0].too_many_failed is too_many
    assert go(spec)[0].too_many_failed is too_many


def test_another_spec_is_refused_and_nothing_is_touched(job: SmallJob) -> None:
    job.ask(3)
    job.answer()
    with pytest.raises(SpecChangedError, match=r"sampling\.seed: None -> 1"):
        go(job.spec(sampling={"seed": 1}))
    assert job.ledger.manifest() is None


def test_a_place_with_objects_of_somebody_else_is_refused(either_job: SmallJob) -> None:
    either_job.ask(3)
    either_job.put("output/errors/theirs.parquet", b"theirs")
    with pytest.raises(OutputError, match="output/errors holds objects"):
        go(either_job.spec())
    assert [item.name for item in either_job.ledger.store.list("_magbatch/")] == []


@pytest.mark.parametrize("content", [None, b"{", b"{}", b"[]"])
def test_a_complete_job_without_its_report_gets_one_from_its_objects(job: SmallJob, content: bytes | None) -> None:
    job.ask(1)
    job.answer()
    go(job.spec())
    if content is None:
        job.ledger.store.delete("_magbatch/report.json")
    else:
        job.put("output/_magbatch/report.json", content)
    assert not verify(job.ledger).verified
    outcome, _ = go(job.spec())
    assert (outcome.already, outcome.report["totals"]["answered"]) == (True, 1)
    assert verify(job.ledger).verified


def test_a_wrong_model_stops_the_job_before_anything_is_written(job: SmallJob, tmp_path: Path) -> None:
    job.ask(3)
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("params.json", "tekken.json"):
        shutil.copy(job.checkpoint / name, bare)
    model: dict[str, Any] = {"engine": "fake"}
    for wrong, message in [
        (job.spec(model=model | {"source": str(tmp_path / "nowhere")}), "no such directory"),
        (job.spec(model=model | {"source": str(bare)}, prompt={"system": "model"}), r"SYSTEM_PROMPT\.txt"),
    ]:
        with pytest.raises(ModelError, match=message):
            go(wrong)
        with pytest.raises(ModelError, match=message):
            preview(wrong)
    assert not Path(job.output).exists()


def test_a_chat_shows_its_last_question(job: SmallJob) -> None:
    chat = [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Yes."}, {"role": "user", "content": "And two?"},
    ]  # fmt: skip
    job.write(pa.table({"talk": [chat]}))
    job.set("input", columns={"messages": "talk"})
    job.answer()
    assert [question for question, _, _ in go(job.spec())[0].samples] == ["And two?"]


def test_a_template_shows_what_it_made(job: SmallJob) -> None:
    job.ask(2)
    job.set("prompt", template="{{ id }}: {{ question }}")
    job.answer()
    assert [question for question, _, _ in go(job.spec())[0].samples] == ["a0: What is a0?", "a1: What is a1?"]


def test_an_input_that_is_gone_by_then_spoils_no_finished_job(job: SmallJob) -> None:
    job.ask(2)
    job.ask(2, "b.parquet")
    job.answer()
    Path(job.input, "a.parquet").unlink()
    outcome, _ = go(job.spec())
    assert "no longer readable" in outcome.samples[0][0]
    assert outcome.samples[2][0] == "What is b0?"


def test_a_carried_value_that_python_cannot_hold_spoils_no_finished_job(job: SmallJob) -> None:
    job.write(pa.table({"id": ["x"], "question": ["What?"], "day": pa.array([10**7], pa.int32()).cast(pa.date32())}))
    job.set("input", carry=["day"])
    job.answer()
    outcome, _ = go(job.spec())
    assert outcome.samples[0][0] == "What?"
    assert pq.read_table(f"{job.output}/{job.objects()[0]}").column("day").type == pa.date32()


# What `plan` shows


def test_a_preview_shows_the_job_and_writes_nothing(either_job: SmallJob) -> None:
    job = either_job
    job.ask(10)
    job.set("sampling", max_tokens=9000)
    before = sorted(item.name for item in job.store.list("input/"))
    shown = preview(job.spec())
    assert (shown["job"], shown["rows"], shown["files"], shown["shards"]) == ("small", 10, 1, 3)
    assert shown["rows_in_a_shard"] == [2, 4]
    assert shown["output"] == job.output
    assert shown["bad_files"] == []
    first = shown["first_prompt"]
    assert (first["row_id"], first["images"]) == (job.row_ids()[0], 0)
    assert first["text"] == "<s>[INST]What is a0?[/INST]"
    assert first["tokens"] == len(job.prompts(0).prompts[0].token_ids)
    args = shown["settings"]["model"]["engine_args"]
    assert (args["max_num_seqs"], args["max_model_len"]) == (4, 8192)  # one set, one resolved
    room = 8192 - first["tokens"]
    assert shown["notes"] == [f"sampling.max_tokens 9000 is cut to what the context leaves: first row {room}"]
    assert list(job.store.list("output/")) == []
    assert sorted(item.name for item in job.store.list("input/")) == before
    assert job.asked() == {}


def test_a_preview_of_a_sample_has_a_place_of_its_own(job: SmallJob) -> None:
    job.ask(10)
    shown = preview(job.spec(), limit=3)
    assert (shown["rows"], shown["output"]) == (3, f"{job.output}-limit-3")
    assert [record["rows"] for record in preview(job.spec(), limit=3, shards=True)["shard_list"]] == [3]


def test_a_preview_lists_its_shards(job: SmallJob) -> None:
    job.ask(3)
    job.ask(3, "b.parquet")
    job.set("input", shard_rows=2)
    a, b = f"{job.input}/a.parquet", f"{job.input}/b.parquet"
    assert preview(job.spec(), shards=True)["shard_list"] == [
        {"shard": 0, "rows": 2, "files": [a]},
        {"shard": 1, "rows": 2, "files": [a, b]},
        {"shard": 2, "rows": 2, "files": [b]},
    ]


def test_a_preview_of_no_rows_has_no_prompt(job: SmallJob) -> None:
    job.ask(0)
    shown = preview(job.spec())
    assert (shown["first_prompt"], shown["rows_in_a_shard"], shown["shards"]) == (None, [0, 0], 0)


def test_a_preview_says_that_the_first_row_would_fail(job: SmallJob) -> None:
    job.ask(2, question=[None, "What?"])
    assert preview(job.spec())["first_prompt"] == {
        "row_id": job.row_ids()[0],
        "step": "render",
        "code": "missing_value",
        "error": "column 'question' is null in this row",
    }


def test_a_preview_passes_over_files_that_cannot_be_read(job: SmallJob) -> None:
    job.put("input/a.parquet", b"no Parquet")
    job.ask(2, "b.parquet")
    job.set("input", on_bad_file="dead_letter", shard_rows=1)
    shown = preview(job.spec())
    assert shown["first_prompt"]["text"] == "<s>[INST]What is b0?[/INST]"
    assert len(shown["bad_files"]) == 1
    assert shown["rows"] == 3


def test_a_preview_of_a_job_that_is_begun_is_of_its_frozen_plan(job: SmallJob) -> None:
    job.ask(10)
    assert preview(job.spec())["output_state"] == {"state": "new", "done": 0, "answered": 0, "failed": 0}
    job.answer()
    job.ledger.store.delete(job.objects()[0])
    job.ask(10, "later.parquet")
    shown = preview(job.spec())
    assert (shown["rows"], shown["output_state"]["state"], shown["output_state"]["done"]) == (10, "begun", 6)


def test_a_preview_of_a_complete_job_needs_neither_its_input_nor_its_model(job: SmallJob, tmp_path: Path) -> None:
    job.ask(4, question=[None, "a", "b", "c"])
    folder = tmp_path / "model"
    shutil.copytree(job.checkpoint, folder)
    job.set("model", source=str(folder), engine="fake", engine_args=job.engine)
    job.answer()
    go(job.spec())
    shutil.rmtree(folder)
    shutil.rmtree(job.input)
    shown = preview(job.spec())
    assert shown["output_state"] == {"state": "complete", "done": 4, "answered": 3, "failed": 1}
    assert shown["settings"]["model"]["engine_args"]["max_num_seqs"] == 4
    (name, *_) = job.objects()
    job.ledger.store.delete(name)
    with pytest.raises(OutputError, match="the job is complete, but 1 object of its manifest is gone"):
        preview(job.spec())


def test_a_preview_refuses_an_output_as_a_run_does(job: SmallJob, tmp_path: Path) -> None:
    job.ask(10)
    (tmp_path / "file").write_text("x")
    (tmp_path / "other" / "results").mkdir(parents=True)
    (tmp_path / "other" / "results" / "a.parquet").write_text("x")
    for output, said in [
        ("file", "is a file; give a folder"),
        ("file/x", "is a file"),
        ("other", "holds objects, but there is no magbatch job here"),
    ]:
        spec = job.spec().with_output(str(tmp_path / output))
        for look in (preview, go):
            with pytest.raises(OutputError, match=said):
                look(spec)
    job.answer()
    for look in (preview, go):
        with pytest.raises(SpecChangedError, match=r"sampling\.max_tokens: 400 -> 9"):
            look(job.spec(sampling={"max_tokens": 9}))


def test_a_preview_says_what_this_machine_lacks(job: SmallJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    job.ask(10)
    spec = job.spec(replicas={"gpus": 99})
    (said,) = preview(spec)["refused"]
    assert said.startswith(
        f"replicas.gpus: a replica asks for 99, this machine has {gpus_here()}; set it to 0 for CPUs"
    )
    with pytest.raises(SpecError) as caught:
        go(spec)
    assert str(caught.value) == said
    assert not Path(job.output).exists()
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert preview(spec)["refused"] == []


def test_only_settings_that_are_no_defaults_are_told_apart(job: SmallJob) -> None:
    job.ask(1)
    shown = not_default(preview(job.spec(sampling={"top_k": 3}))["settings"])
    assert shown["sampling"] == {"top_k": 3} | {"max_tokens": 400}
    assert shown["model"].keys() == {"source", "revision", "engine", "engine_args"}
    assert shown["name"] == "small"
    assert "metrics" not in shown
    assert "on_bad_file" not in shown["input"]


# An output that a spec has frozen and that holds nothing


def test_a_spec_that_was_mended_takes_the_place_of_one_that_answered_nothing(either_job: SmallJob) -> None:
    job = either_job
    job.ask(10)
    job.begin()
    mended = job.spec(sampling={"max_tokens": 9}, input={"shard_rows": 5})
    assert preview(mended)["output_state"]["state"] == "replaced"
    ledger, said = job.ledger, io.StringIO()
    lease = Lease(open_store(job.output, quick=True), print)
    with lease.acquire():
        assert begun(mended, ledger) is None
        take_place(mended, ledger, lease, Console(file=said, width=200))
        ledger.begin(mended, make_plan(mended))
    assert "this one takes its place" in said.getvalue()
    assert differences(ledger.spec() or job.spec(), mended) == []
    plan = ledger.plan()
    assert plan is not None
    assert plan.num_shards == 2
    assert preview(mended)["output_state"]["state"] == "begun"


def test_one_answer_keeps_the_place(job: SmallJob) -> None:
    job.ask(10)
    job.answer()
    for name in job.objects()[1:]:
        job.ledger.store.delete(name)
    with pytest.raises(SpecChangedError):
        begun(job.spec(sampling={"max_tokens": 9}), job.ledger)


def test_an_answer_that_a_late_listing_does_not_show_keeps_the_place(job: SmallJob) -> None:
    job.ask(10)
    job.begin()
    job.ledger.store.write(RECORD, json.dumps({"version": 1, "at": 0.0, "done": 3}).encode())
    with pytest.raises(SpecChangedError):
        begun(job.spec(sampling={"max_tokens": 9}), job.ledger)


def test_what_replicas_of_a_run_that_was_killed_still_commit_keeps_the_place(job: SmallJob) -> None:
    job.ask(10)
    job.begin()
    mended, said = job.spec(sampling={"max_tokens": 9}), io.StringIO()
    lease = Lease(open_store(job.output, quick=True), print)
    with lease.acquire():
        lease.inherited = True  # as if its holder had been killed
        take_place(mended, job.ledger, lease, Console(file=said, width=200), wait_s=0.01)
        assert "waiting 0 s for what its replicas may still commit" in said.getvalue()
        job.answer()
        with pytest.raises(SpecChangedError):
            take_place(mended, job.ledger, lease, Console(file=said), wait_s=0.01)


def test_rows_of_a_spec_that_was_replaced_are_no_answers_of_the_new_one(either_job: SmallJob) -> None:
    job = either_job
    job.ask(10)
    job.begin()
    cut_off = Hand(job.ledger, job.plan)  # a replica whose commits are refused for a while
    store = job.ledger.store
    for name in (RECORD, REPORT, PAGE):  # what its run has told of itself
        store.write(name, json.dumps({"version": 1, "at": 1.0, "done": 0, "spent": {"runs": 7}}).encode())
    mended = job.spec(sampling={"max_tokens": 90})
    lease = Lease(open_store(job.output, quick=True), print)
    with lease.acquire():
        take_place(mended, job.ledger, lease, Console(file=io.StringIO()))
        plan = job.ledger.begin(mended, make_plan(mended))
    assert [name for name in (RECORD, REPORT, PAGE) if job.ledger.load(name) is not None] == []
    assert status(job.output)["run"] is None

    first = cut_off.answered(0, 0, 1, 2, 3)
    assert begun(job.spec(sampling={"max_tokens": 80}), job.ledger) is None, "they keep the place for no spec"
    assert status(job.output)["done"] == 0
    assert job.ledger.done_rows(0) == job.ledger.look_up([0])(0) == frozenset()
    found = verify(job.ledger)
    assert (found.answered, found.open, found.problems) == (0, 10, ())
    assert [note for note in found.notes if str(first) in note] != []

    job.set("sampling", max_tokens=90)
    job.plan = plan
    job.answer()
    late = cut_off.failed(1, 0, 1)
    outcome, said = go(mended)
    assert "10 of 10 rows are committed already" in said
    assert (outcome.report["totals"]["answered"], outcome.too_many_failed) == (10, False)
    manifest = job.ledger.manifest()
    assert manifest is not None
    assert {first, late}.isdisjoint(entry.name for entry in manifest.objects)
    assert sorted(str(entry.name) for entry in manifest.objects) == sorted(job.objects() + job.objects("errors"))
    assert "i" not in {row["answer"] for row in job.records()}
    assert sorted(set(job.done())) == sorted(job.row_ids())
    assert verify(job.ledger).verified

    last = cut_off.answered(2, 0)
    assert [line for line in verify(job.ledger).problems if str(last) in line] != []
    go(mended)
    assert verify(job.ledger).verified


def test_each_object_is_of_the_plan_of_its_job_and_each_plan_that_begins_has_an_id_of_its_own(job: SmallJob) -> None:
    job.ask(10, question=[None if row == 4 else f"What is {row}?" for row in range(10)])
    job.answer()
    go(job.spec())
    compact(job.output, 10_000_000, Console(file=io.StringIO()))
    assert job.plan.id is not None
    names = [*job.objects(), *job.objects("errors")]
    assert [name for name in names if f"p{job.plan.id}-" not in name] == []
    assert verify(job.ledger).verified
    plans = [job.ledger.begin(job.spec(), job.plan).id for _ in range(2)]
    assert len({job.plan.id, *plans}) == 3, "a plan that takes the place of another has an id of its own"
    assert job.ledger.plan_id == plans[-1]


def test_a_plan_never_stands_with_the_spec_of_another(job: SmallJob) -> None:
    job.ask(10)
    job.begin()
    mended = job.spec(sampling={"max_tokens": 9})

    class Cut(Exception):
        pass

    ledger, write = job.ledger, job.ledger.store.write

    def killed(name: str, data: bytes) -> None:
        if name == SPEC:
            raise Cut
        write(name, data)

    ledger.store.write = killed  # type: ignore[method-assign]
    with pytest.raises(Cut):
        ledger.begin(mended, make_plan(mended))
    assert Ledger(job.output).spec() is None


# Where a job stands


def test_status_follows_a_job_from_its_start_to_its_end(either_job: SmallJob) -> None:
    job = either_job
    job.ask(10, question=[None if row == 4 else f"What is {row}?" for row in range(10)])
    with pytest.raises(OutputError, match="no magbatch job here"):
        status(job.output)
    job.begin()
    fresh = {
        "job": "small", "output": job.output, "complete": False, "planned": 10, "done": 0, "answered": 0, "failed": 0,
        "shards": 3, "shards_done": 0, "run": None, "state": "not complete", "at": None, "why": None,
        "exit_code": None, "work": None, "by_code": {},
    }  # fmt: skip
    assert status(job.output) == fresh
    job.answer()
    open_end = fresh | {"done": 10, "answered": 9, "failed": 1, "shards_done": 3}
    assert status(job.output) == open_end
    go(job.spec())
    ended = status(job.output)
    assert ended["run"]["alive"] is False
    whole = {"complete": True, "state": "complete", "exit_code": 0, "by_code": {"missing_value": 1}}
    assert ended == open_end | whole | {"run": ended["run"]}


@pytest.mark.parametrize(
    ("output", "sample"),
    [
        ("s3://acme-results", "s3://acme-results/limit-5"),
        ("s3://acme-results/", "s3://acme-results/limit-5"),
        ("s3://acme-results//", "s3://acme-results/limit-5"),
        ("s3://acme-results/november", "s3://acme-results/november-limit-5"),
        ("s3://acme-results//november/", "s3://acme-results//november-limit-5"),
        ("/data/out", "/data/out-limit-5"),
        ("/data/out/", "/data/out-limit-5"),
        ("out/", f"{os.getcwd()}/out-limit-5"),
        (".", f"{os.getcwd()}-limit-5"),
        ("/", "/limit-5"),
        ("//", "/limit-5"),
    ],
)
def test_a_sample_stays_in_the_outputs_bucket(job: SmallJob, output: str, sample: str) -> None:
    spec = job.spec()
    written = parse(spec.with_output(output).to_yaml())  # as a spec's file gives it
    assert limited(written, 5).output.path == sample
    assert limited(spec.with_output(output), 5).output.path.endswith("limit-5")
