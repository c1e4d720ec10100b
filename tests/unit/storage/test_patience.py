"""Refusals that may pass are waited out; others are raised at once."""

import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from magbatch.errors import InterruptedJobError, StorageError
from magbatch.storage import ObjectInfo, patience
from magbatch.storage.disk import LocalStore
from magbatch.storage.patience import PatientStore


class Moody(LocalStore):
    """A real store that refuses the first calls, and breaks off each of its listings once."""

    def __init__(self, root: str, refusals: int, *, passing: bool = True) -> None:
        super().__init__(root)
        self.left, self.passing = refusals, passing

    def _refuse(self) -> None:
        if self.left:
            self.left -= 1
            raise StorageError("not now", passing=self.passing)

    def read(self, name: str) -> bytes:
        self._refuse()
        return super().read(name)

    def write(self, name: str, data: bytes) -> None:
        self._refuse()
        super().write(name, data)

    def create(self, name: str, data: bytes) -> bool:
        self._refuse()
        return super().create(name, data)

    def list(self, prefix: str, after: str = "") -> Iterator[ObjectInfo]:
        for number, item in enumerate(super().list(prefix, after)):
            if number == 3:
                self._refuse()
            yield item

    def move(self, name: str, target: str) -> None:
        self._refuse()
        super().move(name, target)

    def delete(self, name: str) -> None:
        self._refuse()
        super().delete(name)


def test_what_passes_is_waited_out_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PATIENT_WAIT_S", 0.05)
    said: list[str] = []
    moody = Moody(str(tmp_path), 0)
    store = PatientStore(moody, 30, lambda error: said.append(str(error)))
    names = [f"results/{number}" for number in range(8)]
    operations: list[Callable[[], object]] = [
        *(lambda name=name: store.write(name, b"x") for name in names),  # type: ignore[misc]
        lambda: store.create("lease", b"me"),
        lambda: store.read("lease") == b"me",
        lambda: [item.name for item in store.list("results/")] == names,
        lambda: store.move("lease", "old"),
        lambda: store.delete("old"),
    ]
    for operation in operations:
        moody.left = 2
        assert operation() is not False
        assert moody.left == 0
    assert len(said) == 2 * len(operations)
    assert set(said) == {"not now"}


def test_patience_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PATIENT_WAIT_S", 0.05)
    moody = Moody(str(tmp_path), 10**9)
    with pytest.raises(StorageError, match="not now"):
        PatientStore(moody, 0.3).write("a", b"")
    assert moody.left < 10**9 - 2


def test_what_will_not_pass_is_not_waited_for(tmp_path: Path) -> None:
    moody = Moody(str(tmp_path), 10, passing=False)
    with pytest.raises(StorageError, match="not now"):
        PatientStore(moody, 3600).write("a", b"")
    assert moody.left == 9
    with pytest.raises(FileNotFoundError):
        PatientStore(LocalStore(str(tmp_path)), 3600).read("no such object")


def test_an_error_keeps_its_nature_between_processes() -> None:
    for passing in (True, False):
        error = pickle.loads(pickle.dumps(StorageError("s3://b/a: SlowDown", passing=passing)))
        assert (str(error), error.passing, error.exit_code) == ("s3://b/a: SlowDown", passing, 3 if passing else 2)


def test_what_ends_the_waiting_may_be_raised_where_it_is_said(tmp_path: Path) -> None:
    def stop(error: StorageError) -> None:
        raise InterruptedJobError(str(error))

    with pytest.raises(InterruptedJobError, match="not now"):
        PatientStore(Moody(str(tmp_path), 10**9), 3600, stop).write("a", b"")


def test_a_process_that_has_too_many_files_open_may_wait_for_one(tmp_path: Path) -> None:
    script = f"""
import resource
from magbatch.errors import StorageError
from magbatch.storage import open_store
store = open_store({str(tmp_path)!r})
store.write("a", b"")
resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
for act in (lambda: store.read("a"), lambda: store.write("b", b""), lambda: store.create("c", b"")):
    try:
        act()
    except StorageError as error:
        print(error.passing, error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert [line.partition(f" {tmp_path}/")[0] for line in done.stdout.splitlines()] == ["True"] * 3
