"""The proof of a job's own files."""

import io
import json
import os
from pathlib import Path

import pytest
from rich.console import Console
from support.book import stored
from support.spoiled_output import of_the_version_before, problems, sign

from magbatch.errors import OutputError
from magbatch.jobs.compact import compact
from magbatch.ledger.layout import MANIFEST, PAGE, PLAN, REPORT, SPEC
from magbatch.ledger.lease import Lease
from magbatch.ledger.ledger import Ledger
from magbatch.ledger.verify import verify
from magbatch.report.stored import mend
from magbatch.storage import open_store

QUIET = Console(file=io.StringIO())


@pytest.mark.parametrize("name", [SPEC, PLAN, REPORT, PAGE])
@pytest.mark.parametrize("way", ["edited", "emptied", "longer", "gone", "a link", "a folder", "a pipe"])
def test_every_file_of_the_job_is_held_against_its_checksum(out: Path, name: str, way: str) -> None:
    path = out / name
    data = path.read_bytes()
    path.unlink()
    if way == "edited":
        path.write_bytes(data[:-5] + bytes([data[-5] ^ 1]) + data[-4:])
    elif way == "emptied":
        path.write_bytes(b"")
    elif way == "longer":
        path.write_bytes(data + b"\n")
    elif way == "a link":
        (out.parent / "elsewhere").write_bytes(data)
        path.symlink_to(out.parent / "elsewhere")
    elif way == "a folder":
        path.mkdir()
    elif way == "a pipe":
        os.mkfifo(path)
    found = problems(out)
    assert any(problem.startswith(f"{name}: ") for problem in found), found


@pytest.mark.parametrize("name", [REPORT, PAGE])
@pytest.mark.parametrize("way", ["gone", "damaged", "not named"])
@pytest.mark.parametrize("version", [1, 2])
def test_a_report_is_made_anew_from_the_objects(out: Path, name: str, way: str, version: int) -> None:
    """The command that verify names puts the files right."""
    ledger, before = Ledger(str(out)), json.loads((out / REPORT).read_text())
    if version == 1:
        of_the_version_before(out)
    if way == "damaged":
        (out / name).write_text("{")
    else:
        (out / name).unlink()
    if way == "not named" and version > 1:
        sign(out, files=tuple(file for file in stored(ledger).files if file.name != name))
    found = verify(ledger)
    if version > 1 or name == REPORT:
        (problem,) = found.problems
        assert (found.run_mends, problem.startswith(f"{name}: ")) == (True, True)
        assert problem.endswith("magbatch run SPEC writes it again")
    mend(ledger, Lease(open_store(str(out)), print))  # as run of a complete job does
    if name == REPORT or way != "damaged" or version > 1:
        assert [file.name for file in stored(ledger).files] == [SPEC, PLAN, REPORT, PAGE]
        assert b"<html" in (out / PAGE).read_bytes()
    assert problems(out) == ()
    after = json.loads((out / REPORT).read_text())
    for field in ("job", "planned", "totals", "duplicate_ids", "spent", "history", "slowest", "letters"):
        assert (version == 1 and field == "letters") or after[field] == before[field]


def test_a_compaction_needs_no_report(out: Path) -> None:
    of_the_version_before(out)
    (out / REPORT).unlink()
    compact(str(out), 10**6, QUIET)
    assert problems(out) == ()


@pytest.mark.parametrize("name", [SPEC, PLAN])
def test_a_damaged_file_of_a_job_that_is_not_complete_is_named(out: Path, name: str) -> None:
    (out / MANIFEST).unlink()
    (out / name).write_bytes(b"\xff\xfe nothing of the kind: [")
    found = problems(out)
    assert found[0].startswith(f"{name}: cannot be read: ")


@pytest.mark.parametrize("gone", [[SPEC, MANIFEST], [PLAN, MANIFEST], [SPEC, PLAN, MANIFEST]])
def test_a_place_without_a_job_is_none(out: Path, gone: list[str]) -> None:
    for name in gone:
        (out / name).unlink()
    with pytest.raises(OutputError, match="no magbatch job here"):
        verify(Ledger(str(out)))


@pytest.mark.parametrize("gone", [SPEC, PLAN])
def test_a_complete_job_that_lost_its_spec_or_plan_does_not_verify(out: Path, gone: str) -> None:
    (out / gone).unlink()
    assert problems(out) == (f"{gone}: in the manifest, but missing",)


def test_an_output_of_the_version_before_verifies_as_it_did(out: Path) -> None:
    of_the_version_before(out)
    assert "files" not in json.loads((out / MANIFEST).read_text())
    found = verify(Ledger(str(out)))
    assert found.verified
    assert found.notes == (f"{MANIFEST} is of an older version: it has no checksums of {SPEC} and {REPORT}",)
    sign(out, planned_rows=11)
    (out / PLAN).write_bytes(b"another")
    assert f"{PLAN}: its checksum differs from the manifest's" in problems(out)
