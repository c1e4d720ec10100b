"""An error about temporary files names the setting to change."""

import tempfile
from pathlib import Path

import pytest

from magbatch.errors import StorageError
from magbatch.temporary import check_temporary_files, temporary_files


@pytest.fixture
def no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """TMPDIR is a file: nothing can be written below it."""
    file = tmp_path / "file"
    file.write_bytes(b"")
    monkeypatch.setattr(tempfile, "tempdir", str(file))
    return file


def test_an_error_names_tmpdir_its_folder_and_the_room_needed(no_folder: Path) -> None:
    with pytest.raises(StorageError) as caught, temporary_files("3 GB"):
        tempfile.mkstemp()
    why = "Not a directory; make room there (3 GB), or set TMPDIR to another folder"
    assert str(caught.value) == f"TMPDIR: temporary files in {no_folder}: {why}"
    assert caught.value.exit_code == 2


def test_a_trial_file_is_written_before_a_job_begins(no_folder: Path) -> None:
    with pytest.raises(StorageError, match="TMPDIR"):
        check_temporary_files()


def test_the_folder_of_ray_is_tried_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "ray"))
    check_temporary_files()
    assert list((tmp_path / "ray").iterdir()) == []
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "file"))
    with pytest.raises(StorageError, match=f"RAY_TMPDIR={tmp_path}/file: "):
        check_temporary_files()
