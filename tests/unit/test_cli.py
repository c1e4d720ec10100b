import json
import os
import shlex
import socket
import subprocess
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import Result
from support.book import rewrite_manifest
from support.small_job import SmallJob
from typer.testing import CliRunner

import magbatch
from magbatch.cli.app import app
from magbatch.cli.run import remembered
from magbatch.errors import EngineStartError, ErrorCode, InterruptedJobError, LeaseError, Step, TooManyFailedError
from magbatch.jobs.compact import merge_objects
from magbatch.jobs.retry import Choice, Retry, prepare
from magbatch.ledger.lease import Lease
from magbatch.model.checkpoint import locate
from magbatch.model.tokenizer import Tokenizer
from magbatch.pipeline.write import ObjectWriter
from magbatch.report.heartbeat import Heartbeat
from magbatch.report.progress import JobProgress
from magbatch.rows import Answer, DeadLetter, FinishedRow, ReasoningStatus
from magbatch.storage import open_store

HEAVY = ("torch", "ray", "vllm", "pyarrow", "numpy", "boto3", "mistral_common", "PIL", "cv2")
ENGINES = ("torch", "ray", "vllm")


@pytest.fixture
def job(tmp_path: Path) -> SmallJob:
    job = SmallJob(tmp_path)
    job.ask(10)
    return job


def spec_file(job: SmallJob, **sections: Any) -> str:
    """The job's spec as a YAML file."""
    path = Path(job.root, "job.yaml")
    path.write_text(job.spec(**sections).to_yaml(), encoding="utf-8")
    return str(path)


def command(*args: str) -> Result:
    """Run the command in this process; an exception that is none of its own exits fails the test."""
    result = CliRunner().invoke(app, list(args))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def refused(result: Result) -> str:
    """The one message of a command that ended with exit code 2."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert result.stderr.count("magbatch: ") == 1
    assert result.stderr.startswith("magbatch: ")
    return result.stderr.removeprefix("magbatch: ").rstrip("\n")


def loaded_by(*args: str) -> set[str]:
    """The top-level modules in a fresh process after it ran the command."""
    program = (
        "import atexit, json, runpy, sys\n"
        "atexit.register(lambda: print('\\n' + json.dumps(sorted({name.partition('.')[0] for name in sys.modules}))))\n"
        f"sys.argv = ['magbatch', *{list(args)!r}]\n"
        "runpy.run_module('magbatch', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


# Help


@pytest.mark.parametrize("args", [["--help"], ["run", "--help"], ["--version"]], ids=" ".join)
def test_help_loads_nothing_heavy(args: list[str]) -> None:
    loaded = loaded_by(*args)
    assert "typer" in loaded
    assert loaded & set(HEAVY) == set()


def test_help_names_every_command() -> None:
    text = command("--help").stdout
    for name in ("plan", "run", "status", "verify", "retry", "compact"):
        assert f" {name} " in text
        assert command(name, "--help").exit_code == 0


def test_the_version_is_the_packages() -> None:
    assert command("--version").stdout == f"magbatch {magbatch.__version__}\n"


# plan


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


def test_plan_for_a_program(job: SmallJob) -> None:
    shown = json.loads(command("plan", spec_file(job), "--json").stdout)
    assert (shown["rows"], shown["shards"], shown["rows_in_a_shard"]) == (10, 3, [2, 4])
    assert shown["first_prompt"] == {
        "row_id": job.row_ids()[0],
        "tokens": len(job.prompts(0).prompts[0].token_ids),
        "images": 0,
        "parts": 1,
        "text": "<s>[INST]What is a0?[/INST]",
    }
    assert shown["settings"]["model"]["engine_args"]["max_num_seqs"] == 4


def test_plan_lists_its_shards(job: SmallJob) -> None:
    path = spec_file(job)
    lines = [line for line in command("plan", path, "--shards").stdout.splitlines() if line.startswith("shard ")]
    assert lines == [f"shard {number}: {rows} rows of {job.input}/a.parquet" for number, rows in enumerate([4, 4, 2])]
    shown = json.loads(command("plan", path, "--shards", "--json").stdout)
    assert [shard["rows"] for shard in shown["shard_list"]] == [4, 4, 2]


def test_plan_starts_nothing_and_writes_nothing(job: SmallJob) -> None:
    path = spec_file(job)
    before = sorted(Path(job.root).rglob("*"))
    loaded = loaded_by("plan", path)
    assert "pyarrow" in loaded
    assert loaded & set(ENGINES) == set()
    assert sorted(Path(job.root).rglob("*")) == before


def test_plan_takes_overrides_and_a_limit(job: SmallJob) -> None:
    path = spec_file(job)
    args = [
        "--set",
        "input.shard_rows=3",
        "--set",
        "prompt.system=Be brief.",
        "--set",
        "sampling={max_tokens: 7, n: 2}",
    ]
    shown = json.loads(command("plan", path, *args, "--limit", "5", "--json").stdout)
    assert (shown["rows"], shown["rows_in_a_shard"]) == (5, [2, 3])
    assert shown["output"] == f"{job.output}-limit-5"
    assert "[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT]" in shown["first_prompt"]["text"]
    assert (shown["settings"]["sampling"]["max_tokens"], shown["settings"]["sampling"]["n"]) == (7, 2)


def test_plan_shows_all_and_then_what_this_machine_lacks(job: SmallJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    path = spec_file(job, replicas={"gpus": 99})
    result = command("plan", path)
    assert result.exit_code == 2
    assert "  | <s>[INST]What is a0?[/INST]" in result.stdout.splitlines()
    assert "Next:" not in result.stdout
    assert result.stderr.startswith("magbatch: replicas.gpus: a replica asks for 99, this machine has ")
    assert refused(command("run", path)) == result.stderr.removeprefix("magbatch: ").rstrip("\n")
    shown = json.loads(command("plan", path, "--json").stdout)
    assert (shown["rows"], shown["error"], shown["exit_code"]) == (10, "SpecError", 2)
    assert "replicas.gpus" in shown["message"]


def test_plan_says_where_a_job_stands(job: SmallJob) -> None:
    path = spec_file(job)
    job.begin()
    lines = command("plan", path, "--set", "sampling.max_tokens=9").stdout.splitlines()
    assert lines[1] == (
        f"output: {job.output} (begun by another spec, which has answered nothing: this one takes its place)"
    )
    job.answer()
    lines = command("plan", path).stdout.splitlines()
    assert lines[1] == f"output: {job.output} (10 of 10 rows are done; run goes on with the rest)"
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
    assert f"note: sampling.max_tokens 400 is cut to what the context leaves: first row {100 - tokens}" in result.stdout


def test_a_context_without_room_for_any_row_is_refused(job: SmallJob) -> None:
    path = spec_file(job, prompt={"system": "Be brief."})
    tokenizer = Tokenizer(locate(job.spec().model, weights=False).path)
    shown = json.loads(command("plan", path, "--json").stdout)["first_prompt"]
    chat = shown["tokens"] - len(tokenizer.encode_text("What is a0?"))
    least = ["--set", f"model.engine_args.max_model_len={chat}"]
    for name in ("plan", "run"):
        assert refused(command(name, path, *least)) == (
            f"model.engine_args.max_model_len: {chat} is too few for any row: the system prompt and the chat around a "
            f"question take {chat} tokens, and an answer 1 or more"
        )
    assert not Path(job.output).exists()
    assert command("plan", path, "--set", f"model.engine_args.max_model_len={chat + 1}").exit_code == 0
    text = [
        "--set",
        "prompt.template='Name the capital of the country: {{ question }}{% if question %} Now!{% endif %}'",
    ]
    said = refused(command("plan", path, *text, "--set", "limits.max_prompt_tokens=12"))
    assert said.startswith("limits.max_prompt_tokens: 12 is too few for any row: ")
    assert "and the fixed text of prompt.template " in said


def test_a_bad_file_is_reported_before_anything_starts(job: SmallJob) -> None:
    job.put("input/bad.parquet", b"no Parquet")
    path = spec_file(job)
    for name in ("plan", "run"):
        message = refused(command(name, path))
        assert f"{job.input}/bad.parquet: not a readable Parquet file" in message
        assert "input.on_bad_file: dead_letter" in message
    assert not Path(job.output).exists()
    result = command("plan", path, "--set", "input.on_bad_file=dead_letter")
    assert result.exit_code == 0
    assert f"bad file, becomes a dead letter: {job.input}/bad.parquet: not a readable" in result.stdout


@pytest.mark.parametrize("name", ["plan", "run"])
@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["sampling.temprature=1"], "sampling.temprature: no such field; did you mean `temperature`?"),
        (["sampling.temperature=hot"], "sampling.temperature: "),
        (["input.columns.prompt=nope"], "input.columns.prompt: no input file has a column 'nope'"),
        (["input.path=/nowhere/at/all"], "input.path /nowhere/at/all: there is no such file or directory"),
        (["prompt.template='{{ question'"], "prompt.template: line 1: "),
        (["prompt.template='{{ nope }}'"], "prompt.template: no input file has a column 'nope'"),
        (["model.source=/nowhere/at/all"], "model.source /nowhere/at/all: there is no such directory"),
        (["model.source=builtin:huge"], "model.source builtin:huge: the built-in model is builtin:tiny"),
        (["sampling"], "--set sampling: write key.path=value"),
        (["name=x y"], "name: "),
    ],
)
def test_a_wrong_spec_gets_one_clear_message(job: SmallJob, name: str, overrides: list[str], says: str) -> None:
    args = [item for override in overrides for item in ("--set", override)]
    assert says in refused(command(name, spec_file(job), *args))
    assert not Path(job.output).exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "there is no such file"),
        ("- a list", "a spec is a mapping"),
        ("a: [", "not YAML"),
        ("", "a spec is a mapping"),
    ],
)
def test_a_file_that_is_no_spec_gets_one_clear_message(tmp_path: Path, content: str | None, says: str) -> None:
    path = tmp_path / "job.yaml"
    if content is not None:
        path.write_text(content)
    message = refused(command("plan", str(path)))
    assert message.startswith(f"{path}: ")
    assert says in message


def test_an_error_for_a_program_is_a_document(job: SmallJob) -> None:
    result = command("plan", spec_file(job), "--set", "sampling.top_p=2", "--json")
    assert result.exit_code == 2
    assert result.stderr == ""
    error = json.loads(result.stdout)
    assert (error["error"], error["exit_code"]) == ("SpecError", 2)
    assert "sampling.top_p" in error["message"]


@pytest.mark.parametrize("args", [["--limit", "0"], ["--limit", "-3"], ["--limit", "many"], ["--nope"]])
def test_wrong_options_are_no_job(job: SmallJob, args: list[str]) -> None:
    result = command("plan", spec_file(job), *args)
    assert (result.exit_code, result.stdout) == (2, "")


# run, as far as no engine is needed: the rows are committed already


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
            "2 rows failed, more than limits.max_failed_rows allows (1). Their codes: missing_"
        )
        assert "missing_value 2; such as \"column 'question' is null in this row\"" in result.stderr
        assert f"Dead letters: {job.output}/errors/*.parquet. Fix the cause and run magbatch retry" in result.stderr
        assert result.stdout.splitlines()[-1] == f"Next: magbatch retry {job.output}"
        assert result.output.count(f"{job.output}/errors/*.parquet") == 1
    assert command("run", path, "--json").exit_code == 1
    assert command("run", path, "--set", "limits.max_failed_rows=2").exit_code == 0


def test_run_refuses_another_spec_with_the_difference(job: SmallJob) -> None:
    job.answer()
    message = refused(command("run", spec_file(job), "--set", "sampling.max_tokens=9"))
    assert "sampling.max_tokens: 400 -> 9" in message
    assert job.ledger.manifest() is None


# status


def test_status_of_a_job_that_is_not_complete(job: SmallJob) -> None:
    job.begin()
    lines = command("status", job.output).stdout.splitlines()
    assert lines == [
        "small: not complete, 0 of 10 rows done (0.0%)",
        "  0 answered, 0 failed",
        "  0 of 3 shards done",
        f"Next: magbatch run {job.output}/_magbatch/spec.yaml",
    ]
    job.answer()
    job.ledger.store.delete(job.objects()[0])
    result = command("status", job.output)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0].startswith("small: not complete, 6 of 10 rows done (60.0%)")


def test_status_of_a_complete_job(job: SmallJob) -> None:
    job.answer()
    job.finalise()
    result = command("status", job.output)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0] == "small: complete, 10 of 10 rows done (100.0%)"
    assert result.stdout.splitlines()[-1] == f"Next: magbatch verify {job.output}"
    found = json.loads(command("status", job.output, "--json").stdout)
    assert found == {
        "by_code": {},
        "job": "small", "output": job.output, "complete": True, "planned": 10, "done": 10, "answered": 10, "failed": 0,
        "shards": 3, "shards_done": 3, "run": None, "state": "complete", "at": None, "why": None, "exit_code": 0,
        "work": None, "next": f"magbatch verify {job.output}",
    }  # fmt: skip


def test_status_tells_how_a_run_goes_and_when_it_has_died(job: SmallJob) -> None:
    job.begin()
    run = {
        "version": 1, "running": True, "at": time.time() - 3, "host": "node-7", "pid": 42, "truncated": 2,
        "rows_per_s": 12.5, "tokens_per_s": 3400.0, "replicas": {"serving": 1, "starting": 2, "lost": 0},
        "cost": 7.5, "currency": "USD",
        "eta": {"expected_s": 3600, "early_s": 3500, "late_s": 4000}, "spent": {"device_s": 5400}, "history": [],
    }  # fmt: skip
    store = open_store(job.output)
    store.write("_magbatch/progress.json", json.dumps(run).encode())
    lines = command("status", job.output).stdout.splitlines()
    assert lines[0] == "small: running, 0 of 10 rows done (0.0%)"
    assert "  12.5 rows/s, 3,400 tokens/s, 2 truncated, 1 replica serving, 2 starting" in lines
    assert "  ETA 1h (58m20s to 1h6m)" in lines
    assert any(line.endswith("s ago, from host node-7, process 42") for line in lines)
    assert "  1.50 device hours so far, 7.50 USD" in lines
    assert lines[-1] == f"Next: magbatch status {job.output}"
    store.write("_magbatch/progress.json", json.dumps(run | {"at": time.time() - 7200}).encode())
    lines = command("status", job.output).stdout.splitlines()
    assert lines[0].startswith("small: lost, ")
    assert not any("ETA" in line or "tokens/s" in line or "serving" in line for line in lines), "nobody works on it"
    assert any(line.startswith("  no sign of life since 20") for line in lines)
    assert "  last sign of life 7,200 s ago, from host node-7, process 42" in lines
    assert lines[-1] == f"Next: magbatch run {job.output}/_magbatch/spec.yaml"
    shown = json.loads(command("status", job.output, "--json").stdout)["run"]
    assert (shown["rows_per_s"], shown["eta"], shown["replicas"]["serving"]) == (0, None, 0)


def test_status_of_a_run_that_was_killed_says_so_at_once(job: SmallJob) -> None:
    """No minute passes: the process was on this machine, and is gone. Its parent has not asked after it yet."""
    job.begin()
    program = (
        "import os, sys\n"
        "from magbatch.ledger.lease import Lease\n"
        "from magbatch.report.heartbeat import Heartbeat\nfrom magbatch.ledger.layout import RECORD\n"
        "from magbatch.ledger.ledger import Ledger\n"
        "from magbatch.report.progress import JobProgress\n"
        "ledger = Ledger(sys.argv[1])\n"
        "progress = JobProgress(ledger.spec(), 10, 0)\n"
        "heartbeat = Heartbeat(ledger.store, progress, lambda: None, print)\n"
        "with Lease(ledger.store, print).acquire(), heartbeat.beating():\n"
        "    while not os.path.exists(f'{sys.argv[1]}/{RECORD}'): pass\n"
        "    print('works', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    arguments = [sys.executable, "-c", program, job.output]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "works\n"
        lines = command("status", job.output).stdout.splitlines()
        assert lines[0] == "small: starting, 0 of 10 rows done (0.0%)"
        assert lines[-1] == f"Next: magbatch status {job.output}"
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        lines = command("status", job.output).stdout.splitlines()
    assert lines[0] == "small: killed, 0 of 10 rows done (0.0%)"
    assert any("its process on this machine is gone" in line for line in lines)
    assert not any("ETA" in line or "rows/s" in line for line in lines)
    assert lines[-1] == f"Next: magbatch run {job.output}/_magbatch/spec.yaml"


@pytest.mark.parametrize(
    ("error", "state", "says", "code"),
    [
        (InterruptedJobError("stopped"), "interrupted", "; what was committed stays", 3),
        (KeyboardInterrupt(), "interrupted", "; what was committed stays", 3),
        (TooManyFailedError("31 rows failed, too many"), "ended early", ": 31 rows failed, too many", 1),
        (EngineStartError("no device has 80 GiB free\nmore"), "failed", ": no device has 80 GiB free", 2),
        (ZeroDivisionError("by zero"), "failed", ": ZeroDivisionError: by zero", 4),
    ],
)
def test_status_says_how_a_run_ended(job: SmallJob, error: BaseException, state: str, says: str, code: int) -> None:
    job.begin()
    path = spec_file(job)
    store, following = open_store(job.output), JobProgress(job.spec(), 10, 0)
    with pytest.raises(type(error)), Heartbeat(store, following, lambda: None, print).beating():
        raise error
    lines = command("status", path).stdout.splitlines()
    assert lines[0] == f"small: {state}, 0 of 10 rows done (0.0%)"
    (line,) = (line for line in lines if line.startswith(f"  {state} at 20"))
    assert line.endswith(f", with exit code {code}{says}")
    more = " --set limits.max_failed_rows=100%" if state == "ended early" else ""
    assert lines[-1] == f"Next: magbatch run {path}{more}"
    found = json.loads(command("status", path, "--json").stdout)
    assert (found["state"], found["exit_code"], found["run"]["alive"]) == (state, code, False)


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


def test_a_retry_that_is_not_finished_is_said_with_the_command_that_goes_on(failed: SmallJob) -> None:
    found = prepare(failed.ledger, Choice(), [])
    assert isinstance(found, Retry)
    words = ("retry", "--where", "missing_value", "--set", "sampling.max_tokens=9")
    with suppress(InterruptedError), Lease(failed.ledger.store, print, command=words).acquire():
        found.place().begin(found.spec, found.plan)
        lines = command("status", failed.output).stdout.splitlines()
        assert any(line.startswith("  a retry of it is under way (host ") for line in lines)
        assert lines[-1] == f"Next: magbatch status {failed.output}"
        raise InterruptedError
    lines = command("status", failed.output).stdout.splitlines()
    assert lines[0].startswith("small: complete, ")
    assert any(line.startswith("  a retry of it was begun and is not finished") for line in lines)
    assert lines[-1] == (f"Next: magbatch retry {failed.output} --where missing_value --set sampling.max_tokens=9")


def test_a_secret_that_is_set_for_a_retry_is_refused_and_stored_nowhere(failed: SmallJob) -> None:
    gateway = "metrics.push_gateway=http://u:S3CRETPW@h:9091"
    said = refused(command("retry", failed.output, "--set", gateway))
    assert "S3CRETPW" not in said
    stored = {item.name: failed.ledger.store.read(item.name) for item in failed.ledger.store.list("")}
    assert stored
    assert not [name for name, data in stored.items() if b"S3CRETPW" in data]


def test_a_secret_that_an_earlier_version_stored_with_a_retry_is_not_shown(failed: SmallJob) -> None:
    found = prepare(failed.ledger, Choice(), [])
    assert isinstance(found, Retry)
    secret = "metrics.push_gateway=http://u:S3CRETPW@h:9091"
    with suppress(InterruptedError), Lease(failed.ledger.store, print, command=("retry", "--set", secret)).acquire():
        found.place().begin(found.spec, found.plan)
        raise InterruptedError
    name = max(item.name for item in failed.ledger.store.list("_magbatch/lease-"))
    record = json.loads(failed.ledger.store.read(name))
    assert "S3CRETPW" not in str(record)
    failed.ledger.store.write(name, json.dumps(record | {"command": ["retry", "--set", secret]}).encode())
    for option in ([], ["--json"]):
        said = command("status", failed.output, *option).output
        assert "http://(hidden)@h:9091" in said
        assert "S3CRETPW" not in said


def test_a_stored_spec_that_holds_a_secret_goes_on_in_its_own_output(job: SmallJob) -> None:
    job.sections["metrics"] = {"push_gateway": "http://me:S3CR@host:9091"}
    job.begin()
    stored = f"{job.output}/_magbatch/spec.yaml"
    assert command("status", job.output).stdout.splitlines()[-1] == f"Next: magbatch run {stored}"
    result = command("plan", stored)
    assert result.exit_code == 0, result.output
    assert "S3CR" not in result.output
    other = Path(job.root, "copy.yaml")
    other.write_bytes(Path(stored).read_bytes())
    assert "metrics.push_gateway: holds a secret" in refused(command("plan", str(other)))
    said = refused(command("plan", stored, "--set", "model.engine_args.hf_token=S3CR"))
    assert "model.engine_args.hf_token: holds a secret" in said


@pytest.mark.parametrize(
    "item",
    [
        "model.engine_args={hf_token: [S3CR1}",
        "metrics.port=hf_S3CR1",
        "input.path=https://h/a?sig=S3CR1",
        "model.engine_args.api_key=[S3CR1",
    ],
)
def test_an_error_repeats_no_secret(job: SmallJob, item: str) -> None:
    path = spec_file(job)
    assert "S3CR1" not in refused(command("plan", path, "--set", item))
    assert "S3CR1" not in json.loads(command("plan", path, "--set", item, "--json").stdout)["message"]


def test_an_address_with_a_secret_is_not_repeated() -> None:
    assert "S3CR1" not in refused(command("jobs", "--address", "http://127.0.0.1:1/?token=S3CR1"))


def test_a_run_of_a_job_that_another_has_says_who_and_what_to_do(job: SmallJob) -> None:
    path = spec_file(job)
    job.begin()
    with Lease(job.ledger.store, print).acquire():
        result = command("run", path)
    assert result.exit_code == 3
    assert f"{socket.gethostname()}, process {os.getpid()}, since 20" in result.stderr
    assert f"magbatch status {job.output}" in result.stderr
    assert "Run the same command again" not in result.stderr


def test_rows_that_a_limit_fails_are_asked_again_with_the_limit_named() -> None:
    from magbatch.cli.failed import retry_command, retry_lines

    counts = {"missing_value": 1, "prompt_too_long": 2}
    raised = "magbatch retry /o --where prompt_too_long --set limits.max_prompt_tokens=N"
    assert retry_command("/o", counts) == raised
    assert retry_lines("/o", counts) == [
        "ask failed rows again: magbatch retry /o", f"raise limits.max_prompt_tokens: {raised}"
    ]  # fmt: skip
    assert retry_command("/o", {"missing_value": 3}) == "magbatch retry /o"


def test_a_job_that_is_not_complete_is_named_with_the_command_that_completes_it(job: SmallJob) -> None:
    job.begin()
    for verb in ("retry", "compact"):
        assert f"first: magbatch run {job.output}/_magbatch/spec.yaml" in refused(command(verb, job.output))


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
    assert line.startswith("None of 3 rows was answered, each is a dead letter. Their codes: missing_value 3; such as")
    assert command("run", path, "--set", "limits.max_failed_rows=100%").exit_code == 0
    assert command("run", path, "--json").exit_code == 1
    again = command("retry", path, "--where", "row_timeout")
    assert again.exit_code == 0, again.output


def test_status_of_no_rows(tmp_path: Path) -> None:
    job = SmallJob(tmp_path)
    job.ask(0)
    job.begin()
    assert "0 of 0 rows done (100%)" in command("status", job.output).stdout


@pytest.mark.parametrize("name", ["status", "verify"])
def test_a_place_without_a_job_gets_one_clear_message(tmp_path: Path, name: str) -> None:
    assert f"{tmp_path}: no magbatch job here" in refused(command(name, str(tmp_path)))
    result = command(name, str(tmp_path / "nowhere"), "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["error"] == "OutputError"


@pytest.mark.parametrize("file", ["plan.parquet", "spec.yaml", "manifest.json"])
def test_a_damaged_job_gets_one_clear_message(job: SmallJob, file: str) -> None:
    job.answer()
    job.finalise()
    job.put(f"output/_magbatch/{file}", b"\xff\xfe nothing of the kind: [")
    assert file in refused(command("status", job.output))
    found = command("verify", job.output)
    assert (found.exit_code, found.stdout.count(f"  _magbatch/{file}")) == (1, 1)


@pytest.mark.parametrize("file", ["plan.parquet", "spec.yaml"])
@pytest.mark.parametrize("data", [b"", b"[]", b"PAR1", b"\xff\xfe nothing of the kind: [", b"[" * 100_000])
def test_a_damaged_job_that_is_not_complete_gets_one_clear_message(job: SmallJob, file: str, data: bytes) -> None:
    job.begin()
    job.put(f"output/_magbatch/{file}", data)
    assert file in refused(command("status", job.output))
    found = command("verify", job.output)
    assert (found.exit_code, found.stdout.count(f"  _magbatch/{file}")) == (1, 1)


def test_verify_says_what_has_no_checksum_in_an_output_of_the_version_before(job: SmallJob) -> None:
    job.answer()
    job.finalise()
    report = json.loads(job.ledger.store.read("_magbatch/report.json"))
    report.pop("letters", None)  # which no version before has written
    job.ledger.store.write("_magbatch/report.json", json.dumps(report).encode())
    rewrite_manifest(job.ledger, version=1, files=())
    found = command("verify", job.output)
    assert (found.exit_code, found.stdout.splitlines()[2]) == (
        0, "  _magbatch/manifest.json is of an older version: it has no checksums of _magbatch/spec.yaml and "
        "_magbatch/report.json",
    )  # fmt: skip


def test_an_output_may_be_named_from_where_the_user_stands(job: SmallJob, monkeypatch: pytest.MonkeyPatch) -> None:
    job.answer()
    job.finalise()
    monkeypatch.chdir(job.root)
    assert json.loads(command("status", "output", "--json").stdout)["output"] == job.output
    assert command("verify", "output/").exit_code == 0


def test_jobs_in_object_storage_are_shown_alike(tmp_path: Path, s3: str) -> None:
    job = SmallJob(tmp_path, f"{s3}/job")
    job.ask(5)
    path = tmp_path / "job.yaml"
    path.write_text(job.spec().to_yaml())
    assert "5 rows in 1 file " in command("plan", str(path)).stdout
    job.answer()
    done = command("run", str(path))
    assert done.exit_code == 0
    assert f"  results: {s3}/job/output/results/*.parquet" in done.stdout.splitlines()
    assert json.loads(command("status", job.output, "--json").stdout)["complete"] is True
    assert command("verify", job.output).exit_code == 0


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


# Signals and crashes


def test_a_platforms_signal_ends_any_command_as_an_interrupt() -> None:
    """Here `status`, while it waits for a store that never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        process = subprocess.Popen(
            [sys.executable, "-m", "magbatch", "status", "s3://bucket/out"],
            env=os.environ | {"AWS_ENDPOINT_URL": endpoint}, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        with silent.accept()[0]:
            process.terminate()
            _, said = process.communicate(timeout=60)
    assert process.returncode == 3, said
    assert said.splitlines() == [
        "magbatch: interrupted; what was committed stays", "Run the same command again to go on.",
    ]  # fmt: skip


def test_a_defect_has_an_exit_code_of_its_own() -> None:
    program = "import magbatch.cli.app as cli\ncli.app = lambda: 1 / 0\ncli.main()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert "ZeroDivisionError" in done.stderr


@pytest.mark.parametrize("code", ["'no licence'", "None", "0", "1"])
def test_a_library_that_ends_the_process_is_a_defect_and_not_a_job_that_is_complete(tmp_path: Path, code: str) -> None:
    (tmp_path / "boto3.py").write_text(f"import sys\nsys.exit({code})\n")
    done = subprocess.run(
        [sys.executable, "-m", "magbatch", "status", "s3://bucket/out"], check=False, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"},
    )  # fmt: skip
    assert done.returncode == 4
    assert done.stderr.startswith(f"magbatch: SystemExit: a library ended the command, saying '{code.strip(chr(39))}'")
    assert "boto3.py" in done.stderr


def test_a_text_that_ends_the_process_is_shown_and_no_exit_code_of_a_job() -> None:
    program = "import sys, magbatch.cli.app as cli\ncli.app = lambda: sys.exit('no licence')\ncli.main()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (4, "no licence\n")


# verify


def test_verify_proves_a_complete_job(tmp_path: Path) -> None:
    job = SmallJob(tmp_path)
    job.ask(5, question=["What?", None, "Who?", "Why?", "When?"])
    job.answer()
    job.finalise()
    result = command("verify", job.output)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0] == "planned 5 = 4 answered + 1 dead letter"
    assert "every row once" in result.stdout
    counts = json.loads(command("verify", job.output, "--json").stdout)
    assert counts == {
        "planned": 5, "answered": 4, "failed": 1, "objects": len(job.objects()) + len(job.objects("errors")),
        "complete": True, "verified": True, "problems": [],
    }  # fmt: skip


def test_verify_lists_what_is_wrong_and_ends_with_1(job: SmallJob) -> None:
    job.answer()
    job.finalise()
    name = job.objects()[0]
    job.ledger.store.delete(name)
    result = command("verify", job.output)
    assert result.exit_code == 1
    problems = [line.strip() for line in result.stdout.splitlines() if line.startswith("  ")]
    assert result.stdout.splitlines()[0] == f"{job.output}: {len(problems)} problems"
    assert any(name in problem for problem in problems)
    shown = command("verify", job.output, "--json")
    assert shown.exit_code == 1
    assert json.loads(shown.stdout)["verified"] is False
    assert json.loads(shown.stdout)["problems"] == problems


def test_verify_of_an_unfinished_job_sums_up_and_ends_with_1(job: SmallJob) -> None:
    job.answer()
    job.ledger.store.delete(job.objects()[0])
    path = spec_file(job)
    result = command("verify", path)
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        f"{job.output}: not complete: 6 of 10 rows are done",
        "  what is there is right: 2 objects, 6 answered, 0 failed",
        "  the job is not running (not complete)",
        f"Next: magbatch run {path}",
    ]
    assert json.loads(command("verify", job.output, "--json").stdout)["problems"] == [
        "no manifest: the job is not complete"
    ]


def test_the_spec_that_is_stored_is_a_spec(job: SmallJob) -> None:
    """What stands beside an output can be planned again."""
    job.begin()
    stored = Path(job.output, "_magbatch", "spec.yaml")
    assert command("plan", str(stored)).exit_code == 0
    assert yaml.safe_load(stored.read_text())["name"] == "small"
    assert job.ledger.check_same(job.spec())


# retry and compact


@pytest.fixture
def failed(tmp_path: Path) -> SmallJob:
    """A complete job with two dead letters."""
    job = SmallJob(tmp_path)
    job.ask(5, question=["What?", None, "Who?", None, "When?"])
    path = spec_file(job)
    job.answer()
    assert command("run", path).exit_code == 0
    return job


@pytest.mark.parametrize("args", [["--where", "row_timeout"], ["--only", "truncated"]])
def test_nothing_to_retry_ends_with_0(failed: SmallJob, args: list[str]) -> None:
    result = command("retry", failed.output, *args)
    assert result.exit_code == 0
    assert result.stdout.startswith("small: nothing to retry: there are no ")
    assert json.loads(command("retry", failed.output, *args, "--json").stdout)["rows"] == 0
    assert json.loads(command("retry", failed.output, "--drop", "--json").stdout) == {"dropped": False}
    assert "no retry is unfinished" in command("retry", failed.output, "--drop").stdout


def test_a_retry_says_what_came_of_it(failed: SmallJob) -> None:
    """Its rows are committed by hand: no fleet is needed."""
    found = prepare(failed.ledger, Choice(), [])
    assert isinstance(found, Retry)
    found.place().begin(found.spec, found.plan)
    one, other = (DeadLetter(row_id, Step.RENDER, ErrorCode.MISSING_VALUE, "") for row_id in found.plan.row_ids())
    carried = pa.table({"id": ["a1", "a3"]})
    writer = ObjectWriter(found.place().store, carried, {one.row_id: 0, other.row_id: 1}, "tiny", 0)
    writer.errors([one])
    answer = Answer("because", ReasoningStatus.COMPLETE, "so", "stop", 5, 2)
    writer.results([FinishedRow(other.row_id, 7, 3, 0.5, [answer], datetime.now(UTC))])
    result = command("retry", failed.output)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        "small: 2 rows retried: 1 answered, 1 as before",
        "  failed again: missing_value 1",
        "  the job now: 4 rows answered, 1 failed",
        f"  results: {failed.output}/results/*.parquet",
        f"  dead letters: {failed.output}/errors/*.parquet",
        f"Next: magbatch verify {failed.output}",
    ]
    assert command("verify", failed.output).exit_code == 0
    assert "4 of 5 rows answered, 1 failed" in command("run", spec_file(failed)).stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--where", "row_timeot"], "did you mean row_timeout?"),
        (["--set", "model.source=x"], "model.source may not change in a retry"),
        (["--set", "sampling.max_tokens=0"], "sampling.max_tokens"),
    ],
)
def test_a_wrong_retry_gets_one_clear_message(failed: SmallJob, args: list[str], message: str) -> None:
    assert message in refused(command("retry", failed.output, *args))


def test_compact_says_what_came_of_it(failed: SmallJob) -> None:
    objects = len(failed.objects()) + len(failed.objects("errors"))
    assert objects > 2
    assert f"small: {objects} objects -> 2, " in command("compact", failed.output).stdout
    assert "small: nothing to merge: 2 objects, " in command("compact", failed.output).stdout
    assert json.loads(command("compact", failed.output, "--json").stdout)["merged"] == 0
    assert command("verify", failed.output).exit_code == 0


@pytest.mark.parametrize("name", ["retry", "compact"])
def test_an_open_job_is_left_alone(job: SmallJob, name: str) -> None:
    job.begin()
    assert "not complete" in refused(command(name, job.output))


def test_verify_names_the_command_that_mends_a_job(job: SmallJob) -> None:
    """A compaction that is under way, or was interrupted; a report that is gone: no row is to be paid for again."""
    job.set("input", shard_rows=4)
    job.answer()
    job.finalise()

    def confirm() -> None:
        found = command("verify", job.output)
        assert found.exit_code == 1
        assert "  a compaction of it is under way: verify again when it is over" in found.stdout.splitlines()
        assert found.stdout.splitlines()[-1] == f"Next: magbatch status {job.output}"
        raise LeaseError("ended here")

    lease = Lease(open_store(job.output), print, command=("compact", "--target-mb", "1"))
    with pytest.raises(LeaseError, match="ended here"), lease.acquire():
        merge_objects(job.ledger, 10**6, confirm)
    found = command("verify", job.output)
    assert (found.exit_code, found.stdout.splitlines()[-1]) == (
        1, f"Next: magbatch compact {job.output} --target-mb 1",
    )  # fmt: skip
    assert command("compact", job.output, "--target-mb", "1").exit_code == 0
    assert command("verify", job.output).exit_code == 0
    Path(job.output, "_magbatch/report.json").unlink()
    found = command("verify", job.output)
    *_, following = found.stdout.splitlines()
    assert (found.exit_code, following) == (1, f"Next: magbatch run {job.output}/_magbatch/spec.yaml")
    assert command("run", f"{job.output}/_magbatch/spec.yaml").exit_code == 0
    assert command("verify", job.output).exit_code == 0


ODD_VALUES = ["abc", None, [1], {}, 1e308, -1, True, 10**30]


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("name", ["lease-00000001.json", "progress.json"])
def test_a_small_record_that_is_damaged_counts_as_none(job: SmallJob, name: str, complete: bool) -> None:
    job.begin()
    if complete:
        job.answer()
        job.finalise()
    lease = Lease(open_store(job.output), print)
    with (
        lease.acquire(),
        Heartbeat(open_store(job.output), JobProgress(job.spec(), 10, 0), lambda: None, print).beating(),
    ):
        pass
    path = Path(job.output, "_magbatch", name)
    whole = json.loads(path.read_text())
    for number, field in enumerate(sorted(whole)):
        path.write_text(json.dumps(whole | {field: ODD_VALUES[(number + complete) % len(ODD_VALUES)]}))
        assert command("status", job.output).exit_code == 0, field
    path.write_text(json.dumps(whole | {"at": 1e308, "pid": "abc", "cost": "x"}))
    assert command("verify", job.output).exit_code == (0 if complete else 1)
    path.write_text(json.dumps({"version": 1, "at": whole["at"]}))
    assert command("status", job.output).exit_code == 0
    path.write_bytes(b"[" * 100_000)
    assert command("status", job.output).exit_code == 0


@pytest.mark.parametrize("verb", ["run", "verify"])
def test_a_working_directory_that_is_gone_is_a_mistake(tmp_path: Path, verb: str) -> None:
    (tmp_path / "here").mkdir()
    program = (
        f"import os; os.rmdir({str(tmp_path / 'here')!r}); import runpy, sys; sys.argv = ['magbatch', {verb!r}, 'x']; "
    )
    program += "runpy.run_module('magbatch', run_name='__main__')"
    path = {"PYTHONPATH": str(Path(magbatch.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path / "here", env=os.environ | path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.startswith("magbatch: Working directory: the folder"), done.stderr


def test_a_plan_of_more_rows_than_anybody_has_is_damaged(job: SmallJob) -> None:
    job.begin()
    path = Path(job.output, "_magbatch/plan.parquet")
    table = pq.read_table(path)
    place = table.schema.get_field_index("rows")
    pq.write_table(table.set_column(place, table.schema.field(place), pa.array([10**12] * table.num_rows)), path)
    assert "plan.parquet is damaged" in refused(command("status", job.output))
    assert "plan.parquet: cannot be read" in command("verify", job.output).stdout


def test_schedules_that_cannot_be_listed_end_with_2_and_none_are_said(tmp_path: Path) -> None:
    nothing = CliRunner().invoke(app, ["schedule", "list", str(tmp_path)])
    assert (nothing.exit_code, "Next:" in nothing.output) == (0, False)
    assert 'no spec here has a schedule; add schedule: {cron: "0 6 * * *"} to one' in nothing.output
    (tmp_path / "wrong.yaml").write_text("name: [", encoding="utf-8")
    for extra in ([], ["--json"]):
        assert CliRunner().invoke(app, ["schedule", "list", str(tmp_path), *extra]).exit_code == 2
