"""A preview shows what a run would do, refuses what a run refuses, and writes nothing."""

import io
import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console
from support.small_job import SmallJob

from magbatch.errors import OutputError, SpecChangedError, SpecError
from magbatch.fleet.devices import gpus_here
from magbatch.jobs.preview import (
    FirstFailure,
    FirstPrompt,
    OutputContent,
    OutputState,
    ShardPreview,
    not_default,
    preview,
)
from magbatch.jobs.run import RunOutcome, run
from magbatch.spec import JobSpec


def go(spec: JobSpec, limit: int | None = None) -> tuple[RunOutcome, str]:
    """Run a job whose rows are all committed, so no fleet is needed; returns the outcome and what the console said."""
    said = io.StringIO()
    return run(spec, Console(file=said, width=300), limit), said.getvalue()


def test_a_preview_shows_the_job_and_writes_nothing(either_job: SmallJob) -> None:
    job = either_job
    job.ask(10)
    job.set("sampling", max_tokens=9000)
    before = sorted(item.name for item in job.store.list("input/"))
    shown = preview(job.spec())
    assert (shown.job, shown.rows, shown.files, shown.shards) == ("small", 10, 1, 3)
    assert shown.rows_in_a_shard == (2, 4)
    assert shown.output == job.output
    assert shown.bad_files == []
    first = shown.first
    assert isinstance(first, FirstPrompt)
    assert (first.row_id, first.images) == (job.row_ids()[0], 0)
    assert first.text == "<s>[INST]What is a0?[/INST]"
    assert first.tokens == len(job.prompts(0).prompts[0].token_ids)
    args = shown.settings["model"]["engine_args"]
    assert (args["max_num_seqs"], args["max_model_len"]) == (4, 8192)  # one set, one resolved
    room = 8192 - first.tokens
    assert shown.notes == [f"sampling.max_tokens 9000 exceeds the context: the first row has room for {room}"]
    assert list(job.store.list("output/")) == []
    assert sorted(item.name for item in job.store.list("input/")) == before
    assert job.asked() == {}


def test_a_preview_of_a_sample_has_a_place_of_its_own(job: SmallJob) -> None:
    job.ask(10)
    shown = preview(job.spec(), limit=3)
    assert (shown.rows, shown.output) == (3, f"{job.output}-limit-3")
    assert [shard.rows for shard in preview(job.spec(), limit=3, shards=True).shard_list or []] == [3]


def test_a_preview_lists_its_shards(job: SmallJob) -> None:
    job.ask(3)
    job.ask(3, "b.parquet")
    job.set("input", shard_rows=2)
    a, b = f"{job.input}/a.parquet", f"{job.input}/b.parquet"
    assert preview(job.spec(), shards=True).shard_list == [
        ShardPreview(0, 2, [a]),
        ShardPreview(1, 2, [a, b]),
        ShardPreview(2, 2, [b]),
    ]


def test_a_preview_of_no_rows_has_no_prompt(job: SmallJob) -> None:
    job.ask(0)
    shown = preview(job.spec())
    assert (shown.first, shown.rows_in_a_shard, shown.shards) == (None, (0, 0), 0)


def test_a_preview_says_that_the_first_row_would_fail(job: SmallJob) -> None:
    job.ask(2, question=[None, "What?"])
    assert preview(job.spec()).first == FirstFailure(
        row_id=job.row_ids()[0], step="render", code="missing_value", error="column 'question' is null in this row"
    )


def test_a_preview_passes_over_files_that_cannot_be_read(job: SmallJob) -> None:
    job.put("input/a.parquet", b"no Parquet")
    job.ask(2, "b.parquet")
    job.set("input", on_bad_file="dead_letter", shard_rows=1)
    shown = preview(job.spec())
    assert isinstance(shown.first, FirstPrompt)
    assert shown.first.text == "<s>[INST]What is b0?[/INST]"
    assert len(shown.bad_files) == 1
    assert shown.rows == 3


def test_a_preview_of_a_job_that_is_begun_is_of_its_frozen_plan(job: SmallJob) -> None:
    job.ask(10)
    assert preview(job.spec()).output_state == OutputState(OutputContent.NEW)
    job.answer()
    job.ledger.store.delete(job.objects()[0])
    job.ask(10, "later.parquet")
    shown = preview(job.spec())
    assert (shown.rows, shown.output_state.state, shown.output_state.done) == (10, "begun", 6)


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
    assert shown.output_state == OutputState(OutputContent.COMPLETE, 4, 3, 1)
    assert shown.settings["model"]["engine_args"]["max_num_seqs"] == 4
    (name, *_) = job.objects()
    job.ledger.store.delete(name)
    with pytest.raises(OutputError, match="the job is complete, but 1 object of its manifest is missing"):
        preview(job.spec())


def test_a_preview_refuses_an_output_as_a_run_does(job: SmallJob, tmp_path: Path) -> None:
    job.ask(10)
    (tmp_path / "file").write_text("x")
    (tmp_path / "other" / "results").mkdir(parents=True)
    (tmp_path / "other" / "results" / "a.parquet").write_text("x")
    for output, said in [
        ("file", "is a file; name a folder"),
        ("file/x", "is a file"),
        ("other", "holds objects, but no magbatch job made them"),
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
    (said,) = preview(spec).refused
    assert said.startswith(
        f"replicas.gpus: a replica asks for 99, this machine has {gpus_here()}; set it to 0 for CPUs"
    )
    with pytest.raises(SpecError) as caught:
        go(spec)
    assert str(caught.value) == said
    assert not Path(job.output).exists()
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert preview(spec).refused == []


def test_only_settings_that_are_no_defaults_are_told_apart(job: SmallJob) -> None:
    job.ask(1)
    shown = not_default(preview(job.spec(sampling={"top_k": 3})).settings)
    assert shown["sampling"] == {"top_k": 3} | {"max_tokens": 400}
    assert shown["model"].keys() == {"source", "revision", "engine", "engine_args"}
    assert shown["name"] == "small"
    assert "metrics" not in shown
    assert "on_bad_file" not in shown["input"]


def test_the_json_form_is_what_programs_read(job: SmallJob) -> None:
    job.ask(3)
    shown = preview(job.spec(), shards=True).to_dict()
    assert [*shown] == [
        "job", "files", "bad_files", "rows", "shards", "rows_in_a_shard", "output", "output_state", "group",
        "shard_list", "first_prompt", "notes", "refused", "settings",
    ]  # fmt: skip
    assert [*shown["first_prompt"]] == ["row_id", "tokens", "images", "parts", "text"]
    assert shown["output_state"] == {"state": "new", "done": 0, "answered": 0, "failed": 0}
    assert shown["shard_list"] == [{"shard": 0, "rows": 3, "files": [f"{job.input}/a.parquet"]}]
    assert json.loads(json.dumps(shown)) == shown
    assert "shard_list" not in preview(job.spec()).to_dict()
