"""Specs of a folder are read when their files change, and a wrong one is reported once."""

from datetime import timedelta
from pathlib import Path

import pytest
from support.schedules import NOW, write

from magbatch.errors import InputError, SpecError
from magbatch.schedule.folder import SpecFolder, spec_files
from magbatch.schedule.scheduled import EndedTick


class Reports:
    """A folder of specs, and everything that it says."""

    def __init__(self, folder: Path) -> None:
        self.said, self.problems = list[str](), list[str]()
        self.folder = SpecFolder(str(folder), 60, self.said.append, self.take)

    def take(self, path: str, error: SpecError) -> None:
        self.problems.append(Path(path).name)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such folder"):
        spec_files(str(tmp_path / "none"))


def test_files_that_are_not_yaml_are_left_out(tmp_path: Path) -> None:
    for name in ("b.yml", "a.yaml", "notes.md"):
        (tmp_path / name).write_text("")
    (tmp_path / "folder.yaml").mkdir()
    assert spec_files(str(tmp_path)) == [f"{tmp_path}/a.yaml", f"{tmp_path}/b.yml"]


def test_a_changed_file_is_read_again_and_a_removed_one_forgotten(tmp_path: Path) -> None:
    write(tmp_path, "a", cron="0 6 * * *")
    reports = Reports(tmp_path)
    reports.folder.update(NOW)
    (job,) = reports.folder.jobs.values()
    reports.folder.update(NOW)
    assert [*reports.folder.jobs.values()] == [job], "an unchanged file is not read again"
    write(tmp_path, "a", cron="0 7 * * 1,2")
    job.ended = EndedTick(NOW, 0, "")
    reports.folder.update(NOW)
    assert [*reports.folder.jobs.values()] == [job], "a job stays as it is until its tick is judged"
    job.ended = None
    reports.folder.update(NOW)
    assert [job.schedule.cron for job in reports.folder.jobs.values()] == ["0 7 * * 1,2"]
    (tmp_path / "a.yaml").unlink()
    reports.folder.update(NOW)
    assert reports.folder.jobs == {}


def test_a_wrong_file_is_reported_once_and_read_again_when_it_changes(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("name: [")
    reports = Reports(tmp_path)
    for seconds in (0, 1, 61):
        reports.folder.update(NOW + timedelta(seconds=seconds))
    assert (reports.problems, len(reports.said)) == (["a.yaml"], 1)
    write(tmp_path, "a", cron="0 6 * * *")
    reports.folder.update(NOW + timedelta(seconds=62))
    assert [*reports.folder.jobs] == [f"{tmp_path}/a.yaml"]


def test_a_folder_that_is_away_keeps_its_jobs(tmp_path: Path) -> None:
    folder = tmp_path / "specs"
    folder.mkdir()
    write(folder, "a", cron="0 6 * * *")
    reports = Reports(folder)
    reports.folder.update(NOW)
    folder.rename(tmp_path / "away")
    reports.folder.update(NOW)
    reports.folder.update(NOW)
    assert [*reports.folder.jobs] == [f"{folder}/a.yaml"]
    (tmp_path / "away").rename(folder)
    reports.folder.update(NOW)
    assert reports.said == [
        f"{folder}: there is no such folder of specs; specs that were read before stay in use",
        f"{folder}: can be read again",
    ]
