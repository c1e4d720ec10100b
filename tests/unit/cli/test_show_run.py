"""`run` prints the outcome of the job, the paths of its results, and the command to run next."""

import json
from pathlib import Path

from support.commands import command, spec_file
from support.small_job import SmallJob


def test_run_ends_a_job_and_says_what_to_do_next(job: SmallJob) -> None:
    job.answer()
    path = spec_file(job)
    result = command("run", path)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[:2] == ["small: complete", "  10 of 10 rows answered, 0 failed"]
    assert f"  results: {job.output}/results/*.parquet" in lines
    assert lines.count("sample:") == 3
    assert "  question:  What is a0?" in lines
    assert lines[-1] == f"Next: magbatch verify {job.output}"
    again = command("run", path)
    assert again.exit_code == 0
    assert again.stdout.startswith("small: complete already, nothing to do\n")
    assert "this run:" not in again.stdout
    shown = json.loads(command("run", path, "--json").stdout)
    assert (shown["planned"], shown["already_complete"]) == (10, True)
    assert shown["results"] == f"{job.output}/results/*.parquet"


def test_run_ends_with_1_when_too_many_rows_failed(tmp_path: Path) -> None:
    job = SmallJob(tmp_path)
    job.ask(3, question=[None, "What?", None])
    job.answer()
    path = spec_file(job, limits={"max_failed_rows": 1})
    for _ in range(2):
        result = command("run", path)
        assert result.exit_code == 1
        assert result.stderr.startswith(
            "2 rows failed, more than limits.max_failed_rows allows (1). Fix the cause and run magbatch retry, or "
            "raise limits.max_failed_rows. Their codes: missing_"
        )
        assert "missing_value 2; such as \"column 'question' is null in this row\"" in result.stderr
        assert result.stderr.splitlines()[0].endswith(f"Dead letters: {job.output}/errors/*.parquet")
        assert result.stdout.splitlines()[-1] == f"Next: magbatch retry {job.output}"
        assert result.output.count(f"{job.output}/errors/*.parquet") == 1
    assert command("run", path, "--json").exit_code == 1
    assert command("run", path, "--set", "limits.max_failed_rows=2").exit_code == 0


def test_a_job_without_an_answer_is_not_well(tmp_path: Path) -> None:
    job = SmallJob(tmp_path)
    job.ask(3, question=[None] * 3)
    path = spec_file(job)
    job.answer()
    result = command("run", path)
    assert result.exit_code == 1
    assert result.stdout.startswith("small: complete\n")
    assert "results:" not in result.stdout
    (line,) = result.stderr.splitlines()
    stands = command("status", path).stdout.splitlines()
    assert f"  {line}" in stands
    assert stands[-1] == f"Next: magbatch retry {job.output}"
    assert json.loads(command("status", path, "--json").stdout)["exit_code"] == 1
    assert command("verify", path).stdout.splitlines()[-1] == f"Next: magbatch retry {job.output}"
    assert line.startswith("None of 3 rows was answered: each is a dead letter. Fix the cause and run magbatch retry")
    assert "Their codes: missing_value 3; such as" in line
    assert command("run", path, "--set", "limits.max_failed_rows=100%").exit_code == 0
    assert command("run", path, "--json").exit_code == 1
    again = command("retry", path, "--where", "row_timeout")
    assert again.exit_code == 0, again.output
