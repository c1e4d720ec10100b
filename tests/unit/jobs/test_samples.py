"""Samples of a complete job show its questions, and never stand in the way of a finished job."""

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from support.small_job import SmallJob

from magbatch.jobs.run import RunOutcome, run
from magbatch.spec import JobSpec


def go(spec: JobSpec, limit: int | None = None) -> tuple[RunOutcome, str]:
    """Run a job whose rows are all committed, so no fleet is needed; returns the outcome and what the console said."""
    said = io.StringIO()
    return run(spec, Console(file=said, width=300), limit), said.getvalue()


def test_a_chat_shows_its_last_question(job: SmallJob) -> None:
    chat = [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Yes."}, {"role": "user", "content": "And two?"},
    ]  # fmt: skip
    job.write(pa.table({"talk": [chat]}))
    job.set("input", columns={"messages": "talk"})
    job.answer()
    assert [sample.question for sample in go(job.spec())[0].samples] == ["And two?"]


def test_a_template_shows_what_it_made(job: SmallJob) -> None:
    job.ask(2)
    job.set("prompt", template="{{ id }}: {{ question }}")
    job.answer()
    assert [sample.question for sample in go(job.spec())[0].samples] == ["a0: What is a0?", "a1: What is a1?"]


def test_an_input_that_is_gone_by_then_spoils_no_finished_job(job: SmallJob) -> None:
    job.ask(2)
    job.ask(2, "b.parquet")
    job.answer()
    Path(job.input, "a.parquet").unlink()
    outcome, _ = go(job.spec())
    assert "no longer readable" in outcome.samples[0].question
    assert outcome.samples[2].question == "What is b0?"


def test_a_carried_value_that_python_cannot_hold_spoils_no_finished_job(job: SmallJob) -> None:
    job.write(pa.table({"id": ["x"], "question": ["What?"], "day": pa.array([10**7], pa.int32()).cast(pa.date32())}))
    job.set("input", carry=["day"])
    job.answer()
    outcome, _ = go(job.spec())
    assert outcome.samples[0].question == "What?"
    assert pq.read_table(f"{job.output}/{job.objects()[0]}").column("day").type == pa.date32()
