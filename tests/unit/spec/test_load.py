"""A spec file or text becomes a job, or one message that names every wrong field."""

from pathlib import Path

import pytest
import yaml
from support.small_spec import complaint, spec, whole

from magbatch.errors import SpecError
from magbatch.spec import is_remote, load, parse

ROOT = Path(__file__).parents[3]
JOBS = sorted((ROOT / "jobs").glob("*.yaml"))


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_every_shipped_job_is_a_valid_spec(path: Path) -> None:
    job = load(str(path))
    assert job.name
    assert parse(job.to_yaml()) == job


def test_jobs_are_shipped() -> None:
    assert {"quickstart.yaml", "magistral-text.yaml", "magistral-documents.yaml"} <= {path.name for path in JOBS}


def test_every_wrong_field_is_named_at_once_and_the_message_begins_with_the_file() -> None:
    with pytest.raises(SpecError) as caught:
        parse(yaml.safe_dump(whole(sampling__n=0, limits__max_images=-1)), origin="jobs/x.yaml")
    lines = str(caught.value).splitlines()
    assert lines[0] == "jobs/x.yaml: 2 wrong fields"
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["sampling.n", "limits.max_images"]


@pytest.mark.parametrize("text", ["", "- a\n- b", "just words", "7", "null"])
def test_a_spec_is_a_mapping(text: str) -> None:
    with pytest.raises(SpecError, match="a spec is a mapping that begins with `name:`, and this is "):
        parse(text)


@pytest.mark.parametrize("text", ["a: [1", "a: b: c", "\tname: x", "name: 2026-13-45", "a: \x00"])
def test_text_that_is_not_yaml_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match=r"^jobs/x\.yaml: not YAML: "):
        parse(text, origin="jobs/x.yaml")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    right = tmp_path / "right.yaml"
    right.write_text("name: x")
    (tmp_path / "latin.yaml").write_bytes(b"name: \xfc")
    for path, said in (
        (tmp_path / "none.yaml", "there is no such file"),
        (tmp_path / "rihgt.yaml", f"there is no such file; did you mean {right}?"),
        (tmp_path / "none" / "right.yaml", f"there is no such file, and no folder {tmp_path}/none"),
        (right / "right.yaml", f"there is no such file, and no folder {right}"),
        (tmp_path, "this is a folder; give one YAML file"),
        (tmp_path / "latin.yaml", "not UTF-8 text: byte 6 is 0xfc"),
    ):
        with pytest.raises(SpecError) as caught:
            load(str(path))
        assert str(caught.value) == f"{path}: {said}"


def test_overrides_set_fields_by_their_path() -> None:
    job = spec(
        "sampling.temperature=0",
        "sampling.seed=7",
        "input.carry=[a, b]",
        "model.engine_args.max_num_seqs=8",
        "limits.max_failed_rows=null",
        "prompt.system='none'",
        "output.path=s3://else/where",
        sampling__seed=1,
        limits__max_failed_rows=3,
    )
    assert (job.sampling.temperature, job.sampling.seed, job.input.carry) == (0, 7, ["a", "b"])
    assert job.model.engine_args == {"max_num_seqs": 8}
    assert (job.limits.max_failed_rows, job.prompt.system) == (None, "none")
    assert job.output.path == "s3://else/where"


def test_an_override_fills_a_group_that_the_file_left_empty() -> None:
    text = yaml.safe_dump(whole()) + "sampling:\n"
    assert parse(text, ["sampling.temperature=0"]).sampling.temperature == 0


@pytest.mark.parametrize(
    ("override", "right"),
    [
        ("sampling.temperature", "write key.path=value"),
        ("=5", "write key.path=value"),
        ("name.first=x", "name is a value, not a group of fields"),
        ("input.carry=[a", "the value is not YAML; put text in quotes"),
        ("prompt.template={{ q }}", "text that begins with a bracket needs quotes"),
        ("prompt..template=x", "a name between its dots is empty"),
        ("input.carry.0=x", "input.carry is a list: set it as a whole, --set 'input.carry=[first, second]'"),
        ("input.carry[0]=x", "input.carry is a list: set it as a whole"),
        ("sampling.n=.inf", ".inf is not a number that a spec can hold"),
    ],
)
def test_a_wrong_override_is_named(override: str, right: str) -> None:
    said = complaint(override, input__carry=["a"])
    assert said.startswith(f"--set {override}: ")
    assert right in said


def test_an_override_of_an_unknown_field_suggests_the_nearest_one() -> None:
    assert "  sampling.temprature: no such field; did you mean `temperature`?" in complaint("sampling.temprature=0")


def test_local_paths_become_absolute_and_others_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    (tmp_path / "checkpoint").mkdir()
    job = spec(input__path="data/*.parquet", output__path="~/out/", model__source="checkpoint")
    assert job.input.path == f"{tmp_path}/data/*.parquet"
    assert job.output.path == "/home/someone/out"
    assert job.model.source == f"{tmp_path}/checkpoint"
    assert spec(model__source="./none").model.source == f"{tmp_path}/none"
    assert spec(model__source="mistralai/Magistral-Small-2509").model.source == "mistralai/Magistral-Small-2509"
    assert spec(model__source="s3://models/a").model.source == "s3://models/a"
    remote = spec(output__path="s3://results/november/")
    assert (remote.input.path, remote.output.path) == ("s3://docs/november/", "s3://results/november")
    assert is_remote(remote.output.path)
    assert not is_remote(job.output.path)
