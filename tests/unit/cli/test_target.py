"""A job is named by its output or its spec, and the next command names it in the same way."""

import json
from pathlib import Path

import pytest
from support.commands import command, refused, spec_file
from support.small_job import SmallJob

from magbatch.cli.run import remembered
from magbatch.ledger.lease import Lease
from magbatch.storage import open_store


def test_a_job_is_named_by_its_spec_too(job: SmallJob) -> None:
    path = spec_file(job)
    assert f"{job.output}: no job here yet" in refused(command("status", path))
    job.answer()
    job.finalise()
    job.ledger.store.write("_magbatch/report.json", b"{}")
    for name in ("status", "verify"):
        assert command(name, path).stdout.splitlines()[:1] == command(name, job.output).stdout.splitlines()[:1]
    assert f"{job.output}-limit-5: no job here yet" in refused(command("status", path, "--limit", "5"))
    elsewhere = ["--set", f"output.path={job.root}/elsewhere"]
    assert f"{job.root}/elsewhere: no job here yet" in refused(command("verify", path, *elsewhere))
    assert "--limit: changes a spec" in refused(command("status", job.output, "--limit", "5"))
    assert "nowhere.yaml" in refused(command("status", f"{job.root}/nowhere.yaml"))


@pytest.mark.parametrize("name", ["status", "verify"])
def test_a_place_without_a_job_gets_one_clear_message(tmp_path: Path, name: str) -> None:
    assert f"{tmp_path}: no magbatch job here" in refused(command(name, str(tmp_path)))
    result = command(name, str(tmp_path / "nowhere"), "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["error"] == "OutputError"


def test_an_output_may_be_named_from_where_the_user_stands(job: SmallJob, monkeypatch: pytest.MonkeyPatch) -> None:
    job.answer()
    job.finalise()
    monkeypatch.chdir(job.root)
    assert json.loads(command("status", "output", "--json").stdout)["output"] == job.output
    assert command("verify", "output/").exit_code == 0


def test_what_comes_next_of_a_job_on_s3_is_the_command_that_was_typed_here(tmp_path: Path, s3: str) -> None:
    job = SmallJob(tmp_path, f"{s3}/job")
    job.ask(5)
    job.begin()
    spec = tmp_path / "my job.yaml"
    spec.write_text(job.spec().to_yaml())
    sets = ["prompt.system=be brief"]

    def following(command_line: tuple[str, ...]) -> str:
        with Lease(open_store(job.output), print, command=command_line).acquire():
            pass
        return command("status", job.output).stdout.splitlines()[-1]

    assert following(("run",)) == "Next: run the job's spec again"
    again = f"Next: magbatch run '{spec}' --set 'prompt.system=be brief' --limit 9"
    assert following(remembered(str(spec), sets, 9)) == again
    secret = remembered(str(spec), ["metrics.push_gateway=http://user:word@host:9091"], None)
    assert secret == ("run",), "a secret is not kept in the output"
    remembered_spec = remembered(str(spec), None, None)
    spec.unlink()
    assert following(remembered_spec) == "Next: run the job's spec again"
