"""A job that fails too much ends before it is paid for, with what it has finished, and can be gone on with."""

import json

from support.magbatch_cli import JobFiles, committed, journal, magbatch, read

ROWS = 1500


def test_too_many_failures_end_a_job_and_a_higher_limit_lets_it_go_on(job: JobFiles) -> None:
    job.write_input(ROWS, question=[None if row % 5 == 0 else f"What is {row}?" for row in range(ROWS)])
    job.engine |= {"token_s": 0.01, "max_num_seqs": 16}
    spec = job.write_spec(limits={"max_prompt_tokens": 2000, "max_failed_rows": "2%"})
    ended = magbatch("run", spec)
    assert ended.returncode == 1, ended.stderr
    assert "more than limits.max_failed_rows allows (30, 2% of 1,500)" in ended.stderr
    assert "such as \"column 'question' is null in this row\"" in ended.stderr
    assert f"Next: magbatch run {spec} --set limits.max_failed_rows=100%" in ended.stderr.splitlines()
    assert "Traceback" not in ended.stderr
    done = {row["row_id"] for kind in ("results", "errors") for row in read(job.output, kind)}
    assert 30 < committed(job.output) == len(done) < ROWS
    assert len(read(job.output)) > 0, "finished rows are committed"
    asked = journal(job.journal)
    again = magbatch("run", spec)
    assert (again.returncode, journal(job.journal)) == (1, asked), "nothing is asked while the limit is the same"
    status = json.loads(magbatch("status", str(job.output), "--json").stdout)
    assert (status["complete"], status["done"]) == (False, len(done))
    assert (status["state"], status["exit_code"]) == ("ended early", 1)
    assert " rows failed, more than limits.max_failed_rows allows (30, 2% of 1,500)" in status["why"]
    assert status["next"].endswith(" --set limits.max_failed_rows=100%")
    faster = ["--set", "model.engine_args.max_num_seqs=1024"]
    last = magbatch("run", spec, "--set", "limits.max_failed_rows=20%", *faster)
    assert last.returncode == 0, last.stderr
    assert magbatch("verify", str(job.output)).returncode == 0
    assert len(read(job.output, "errors")) == ROWS // 5
    assert all(count == 1 for row_id, count in journal(job.journal).items() if row_id in done)


def test_a_job_whose_first_rows_all_fail_with_one_code_ends(job: JobFiles) -> None:
    job.write_input(ROWS)
    job.engine |= {"token_s": 0.005, "max_num_seqs": 16}
    schema = {"type": "object", "properties": {"total": {"type": "integer"}}, "required": ["total"]}
    ended = magbatch("run", job.write_spec(answer={"schema": schema}))
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert "rows failed, each with the code answer_invalid, and none was answered" in ended.stderr
    assert committed(job.output) < ROWS
