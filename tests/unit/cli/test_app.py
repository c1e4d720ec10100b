"""The command answers `--help` at once, and its exit codes are those of the contract."""

import subprocess
import sys

import pytest
from support.commands import command, loaded_by, spec_file
from support.small_job import SmallJob

import magbatch

HEAVY = ("torch", "ray", "vllm", "pyarrow", "numpy", "boto3", "mistral_common", "PIL", "cv2")


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


@pytest.mark.parametrize("args", [["--limit", "0"], ["--limit", "-3"], ["--limit", "many"], ["--nope"]])
def test_wrong_options_are_no_job(job: SmallJob, args: list[str]) -> None:
    result = command("plan", spec_file(job), *args)
    assert (result.exit_code, result.stdout) == (2, "")


def test_a_defect_has_an_exit_code_of_its_own() -> None:
    program = "import magbatch.cli.app as cli\ncli.app = lambda: 1 / 0\ncli.main()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert "ZeroDivisionError" in done.stderr


def test_a_text_that_ends_the_process_is_shown_and_no_exit_code_of_a_job() -> None:
    program = "import sys, magbatch.cli.app as cli\ncli.app = lambda: sys.exit('no licence')\ncli.main()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (4, "no licence\n")
