"""`deploy render` prints files or writes them, and its help lists the options in groups."""

from pathlib import Path

from support.commands import command, refused, spec_file
from support.small_job import SmallJob

IMAGE = ["--image", "registry.example.com/magbatch:1"]


def test_the_help_lists_options_in_groups() -> None:
    text = command("deploy", "render", "--help").stdout
    assert all(f"\n{group}:\n" in text for group in ("Arguments", "Options", "Nodes", "Pods", "Kubernetes"))


def test_files_are_written_and_named(job: SmallJob, tmp_path: Path) -> None:
    shared = {"path": "s3://acme/in"}, {"path": "s3://acme/out"}
    spec = spec_file(job, input=shared[0], output=shared[1])
    done = command("deploy", "render", spec, *IMAGE, "--out", str(tmp_path / "out"))
    assert done.exit_code == 0, done.output
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert sorted(done.stdout.splitlines()[1 : 1 + len(names)]) == [f"  {name}" for name in names]
    assert done.stdout.splitlines()[-1].startswith("Next: ")


def test_an_accelerator_that_is_named_twice_is_refused(job: SmallJob) -> None:
    words = ["--accelerator", "H100", "--accelerator", "H100"]
    assert "--accelerator H100: is given twice" in refused(command("deploy", "render", spec_file(job), *IMAGE, *words))
