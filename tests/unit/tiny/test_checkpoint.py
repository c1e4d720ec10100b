"""`ensure()`: the same whole directory for everybody, however many ask at once."""

import hashlib
import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

from magbatch.errors import ModelError
from magbatch.tiny import checkpoint

FILES = {"params.json", "consolidated.safetensors", "tekken.json", "SYSTEM_PROMPT.txt"}


def digests(directory: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in directory.iterdir()}


def ensure_at(cache: str, gate: "multiprocessing.synchronize.Event") -> str:
    os.environ["MAGBATCH_CACHE"] = cache
    gate.wait()
    return str(checkpoint.ensure())


def child(cache: str, gate: "multiprocessing.synchronize.Event", answers: "multiprocessing.Queue[str]") -> None:
    answers.put(ensure_at(cache, gate))


def test_the_directory_is_complete_and_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MAGBATCH_CACHE", str(tmp_path))
    directory = checkpoint.ensure()
    assert directory.parent == tmp_path
    assert {file.name for file in directory.iterdir()} == FILES
    made = (directory / "params.json").stat().st_mtime_ns
    assert checkpoint.ensure() == directory
    assert (directory / "params.json").stat().st_mtime_ns == made
    assert list(tmp_path.iterdir()) == [directory]


def test_two_caches_hold_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    found = []
    for name in ("one", "two"):
        monkeypatch.setenv("MAGBATCH_CACHE", str(tmp_path / name))
        found.append(checkpoint.ensure())
    assert found[0].name == found[1].name
    assert digests(found[0]) == digests(found[1])


def test_processes_that_race_all_get_the_directory(tmp_path: Path):
    context = multiprocessing.get_context("spawn")
    gate, answers = context.Event(), context.Queue()
    children = [context.Process(target=child, args=(str(tmp_path), gate, answers)) for _ in range(4)]
    for process in children:
        process.start()
    gate.set()
    directories = {answers.get(timeout=60) for _ in children}
    for process in children:
        process.join()
        assert process.exitcode == 0
    (directory,) = directories
    assert {file.name for file in Path(directory).iterdir()} == FILES
    assert [str(entry) for entry in tmp_path.iterdir()] == [directory]


def test_a_failed_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MAGBATCH_CACHE", str(tmp_path))

    def full_disk(self: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.ensure()
    assert list(tmp_path.iterdir()) == []


def test_an_installation_without_weights_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MAGBATCH_CACHE", str(tmp_path))
    monkeypatch.setattr(checkpoint, "_WEIGHTS_FILE", "none.safetensors")
    with pytest.raises(ModelError, match=r"lacks .*none\.safetensors; install it again"):
        checkpoint.ensure()
    assert list(tmp_path.iterdir()) == []


def test_tensors_are_those_of_params_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MAGBATCH_CACHE", str(tmp_path))
    directory = checkpoint.ensure()
    assert json.loads((directory / "params.json").read_text()) == checkpoint.params()
    with safe_open(directory / "consolidated.safetensors", framework="np") as weights:
        shapes = {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    assert shapes == checkpoint.weight_shapes()


def test_the_package_stays_small():
    weights = Path(checkpoint.__file__).parent / "weights"
    assert {file.name for file in weights.iterdir()} == {"consolidated.safetensors", "MODEL_CARD.md"}
    assert sum(file.stat().st_size for file in weights.glob("*")) <= 12_000_000


def test_importing_loads_no_framework():
    code = "import sys, magbatch.tiny.checkpoint; print({'torch', 'vllm', 'ray', 'PIL'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
