"""`plan` and `run` refuse a wrong spec, input or output with one clear message."""

import json
from pathlib import Path

import pytest
import yaml
from support.commands import command, loaded_by, refused, spec_file
from support.small_job import SmallJob

from magbatch.model.checkpoint import locate
from magbatch.model.tokenizer import Tokenizer

ENGINES = ("torch", "ray", "vllm")


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


def test_run_refuses_another_spec_with_the_difference(job: SmallJob) -> None:
    job.answer()
    message = refused(command("run", spec_file(job), "--set", "sampling.max_tokens=9"))
    assert "sampling.max_tokens: 400 -> 9" in message
    assert job.ledger.manifest() is None


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


def test_the_spec_that_is_stored_is_a_spec(job: SmallJob) -> None:
    """The spec below the output is a complete spec, so the job can be planned again."""
    job.begin()
    stored = Path(job.output, "_magbatch", "spec.yaml")
    assert command("plan", str(stored)).exit_code == 0
    assert yaml.safe_load(stored.read_text())["name"] == "small"
    assert job.ledger.check_same(job.spec())
