"""`plan` shows the job, its first prompt and the command that follows."""

import json
import shlex
from pathlib import Path

from support.commands import command, refused, spec_file
from support.small_job import SmallJob


def test_plan_shows_the_job_and_its_first_prompt(job: SmallJob) -> None:
    path = spec_file(job)
    result = command("plan", path)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    tokens = len(job.prompts(0).prompts[0].token_ids)
    assert lines[0] == "small: 10 rows in 1 file -> 3 shards of 2 to 4 rows"
    assert lines[1] == f"output: {job.output} (new)"
    at = lines.index(f"first prompt ({tokens} tokens, 0 images, row {job.row_ids()[0]}):")
    assert lines[at + 1] == "  | <s>[INST]What is a0?[/INST]"
    assert lines[-1] == f"Next: magbatch run {path}"
    assert "      max_num_seqs: 4" in lines  # as the spec sets it
    assert "      max_model_len: 2400" in lines  # as it was resolved
    assert "    temperature: 0.7" not in lines  # as nobody set it
    assert "    temperature: 0.7" in command("plan", path, "--settings").stdout.splitlines()


def test_plan_lists_its_shards(job: SmallJob) -> None:
    path = spec_file(job)
    lines = [line for line in command("plan", path, "--shards").stdout.splitlines() if line.startswith("shard ")]
    assert lines == [f"shard {number}: {rows} rows of {job.input}/a.parquet" for number, rows in enumerate([4, 4, 2])]
    shown = json.loads(command("plan", path, "--shards", "--json").stdout)
    assert [shard["rows"] for shard in shown["shard_list"]] == [4, 4, 2]


def test_plan_says_where_a_job_stands(job: SmallJob) -> None:
    path = spec_file(job)
    job.begin()
    lines = command("plan", path, "--set", "sampling.max_tokens=9").stdout.splitlines()
    assert lines[1] == (f"output: {job.output} (holds a job of another spec without any answer; this job replaces it)")
    job.answer()
    lines = command("plan", path).stdout.splitlines()
    assert lines[1] == f"output: {job.output} (10 of 10 rows are done; a run continues with the rest)"
    assert "sampling.max_tokens: 400 -> 9" in refused(command("plan", path, "--set", "sampling.max_tokens=9"))
    command("run", path)
    lines = command("plan", path).stdout.splitlines()
    assert lines[1] == f"output: {job.output} (complete already: 10 rows answered, 0 failed)"
    assert lines[-1] == f"Next: magbatch verify {job.output}"
    assert not [line for line in lines if line.startswith("first prompt")]


def test_plan_and_what_comes_next_are_one_job(job: SmallJob) -> None:
    path, sets = spec_file(job), ['prompt.system=Don\'t say "$HOME"', "sampling={max_tokens: 7, n: 2}"]
    args = [word for item in sets for word in ("--set", item)]
    last = command("plan", path, *args, "--limit", "5").stdout.splitlines()[-1]
    assert shlex.split(last) == ["Next:", "magbatch", "run", path, *args, "--limit", "5"]


def test_plan_of_no_rows(tmp_path: Path) -> None:
    job = SmallJob(tmp_path)
    job.ask(0)
    result = command("plan", spec_file(job))
    assert result.exit_code == 0
    assert "0 rows in 0 files -> 0 shards of 0 rows" in result.stdout
    assert "first prompt: none, the input has no rows" in result.stdout


def test_plan_says_what_the_first_row_would_become(tmp_path: Path) -> None:
    job = SmallJob(tmp_path)
    job.ask(1, question=[None])
    result = command("plan", spec_file(job))
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert f"WARNING: the first row would become a dead letter: missing_value, row {job.row_ids()[0]}:" in lines
    assert "  column 'question' is null in this row" in lines
    assert lines[-1] == f"Next: magbatch run {job.root}/job.yaml --limit 20"
    assert "Look at that row first." in lines


def test_plan_says_what_is_cut(job: SmallJob) -> None:
    result = command("plan", spec_file(job), "--set", "model.engine_args.max_model_len=100")
    tokens = len(job.prompts(0).prompts[0].token_ids)
    assert (
        f"note: sampling.max_tokens 400 exceeds the context: the first row has room for {100 - tokens}" in result.stdout
    )
