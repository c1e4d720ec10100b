"""A process that is confined keeps what requests need and gives up the rest; here without a sandbox around it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from magbatch.sandbox.confine import landlock_version

confined = pytest.mark.skipif(landlock_version() < 1, reason="this kernel has no Landlock: files may be opened")


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process that is confined to 200 MB."""
    script = f"import os, sys\nfrom magbatch.sandbox.confine import confine\nconfine(200, os.getppid())\n{code}"
    places = os.pathsep.join(filter(None, sys.path))
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=os.environ | {"PYTHONPATH": places}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_memory_is_bounded_and_what_fits_is_given() -> None:
    assert run("bytes(50 << 20)").returncode == 0
    assert "MemoryError" in run("bytes(400 << 20)").stderr


def test_no_file_is_written(tmp_path: Path) -> None:
    done = run("open(sys.argv[1], 'w').write('x')", str(tmp_path / "new"))
    assert done.returncode != 0
    assert not (tmp_path / "new").exists() or (tmp_path / "new").stat().st_size == 0


@confined
def test_files_of_packages_are_read_and_others_are_not(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    assert run("open(os.__file__).read()").returncode == 0
    assert "PermissionError" in run("open(sys.argv[1]).read()", str(tmp_path / "secret")).stderr


def test_a_process_without_its_caller_ends_at_once() -> None:
    code = "from magbatch.sandbox.confine import confine\nconfine(200, 1)\nprint('goes on')"
    places = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": places}, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, b"")
