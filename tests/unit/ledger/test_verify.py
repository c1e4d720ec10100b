"""Whatever is changed in an output is noticed, and named; nothing ends the proof with a traceback."""

import copy
import io
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from support.book import rewrite_manifest, stored
from support.small_job import SmallJob

from magbatch.errors import OutputError
from magbatch.jobs.compact import compact
from magbatch.jobs.run import run
from magbatch.ledger.lease import Lease
from magbatch.ledger.ledger import Ledger
from magbatch.ledger.manifest import Manifest, RetryRecord
from magbatch.ledger.verify import verify
from magbatch.report.stored import mend
from magbatch.schema import ObjectName
from magbatch.storage import open_store

QUIET = Console(file=io.StringIO())
MANIFEST, SPEC, PLAN = "_magbatch/manifest.json", "_magbatch/spec.yaml", "_magbatch/plan.parquet"
REPORT, PAGE = "_magbatch/report.json", "_magbatch/report.html"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SmallJob:
    """A complete job of 10 rows in 3 shards, one of them a dead letter."""
    job = SmallJob(tmp_path_factory.mktemp("made"))
    job.ask(10, question=[None if row == 4 else f"What is {row}?" for row in range(10)])
    job.set("input", shard_rows=4)
    job.answer()
    run(job.spec(), QUIET)
    return job


@pytest.fixture
def out(made: SmallJob, tmp_path: Path) -> Path:
    """Its output, to be spoiled."""
    shutil.copytree(made.output, tmp_path / "out")
    return tmp_path / "out"


def problems(out: Path) -> tuple[str, ...]:
    found = verify(Ledger(str(out)))
    assert found.verified == (not found.problems)
    return found.problems


def an_object(out: Path) -> Path:
    return min((out / "results").iterdir())


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def test_what_nobody_has_touched_verifies(out: Path) -> None:
    found = verify(Ledger(str(out)))
    assert (found.planned, found.answered, found.failed, found.open) == (10, 9, 1, 0)
    assert (found.complete, found.verified, found.problems, found.notes) == (True, True, (), ())
    assert [file.name for file in stored(Ledger(str(out))).files] == [SPEC, PLAN, REPORT, PAGE]


def of_the_version_before(out: Path) -> None:
    """Make an output one that the version before has written."""
    before_that = ("letters", "began", "ended")
    report = {name: value for name, value in json.loads((out / REPORT).read_text()).items() if name not in before_that}
    (out / REPORT).write_text(json.dumps(report))
    rewrite_manifest(Ledger(str(out)), version=1, files=())


# The manifest, field by field. `edit` leaves its checksum as it was; `sign` makes one that fits.


def edit(out: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    manifest = json.loads((out / MANIFEST).read_text())
    change(manifest)
    (out / MANIFEST).write_text(json.dumps(manifest, indent=1))


def sign(out: Path, **changes: Any) -> None:
    rewrite_manifest(Ledger(str(out)), **changes)


FIELDS: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda m: m.update(planned_rows=11), "says planned_rows 11, the plan gives 10"),
    (lambda m: m.update(job="other"), "says job other, the spec gives small"),
    (lambda m: m.update(job="\x1b]52;c;evil\x07"), "says job"),
    (lambda m: m.update(job="\ud800"), "says job"),
    (lambda m: m.update(schema_version="0"), "says schema_version 0, the objects give 1"),
    (lambda m: m.update(version=1), "files is an unknown field"),
    (lambda m: m.update(version=3), "version is 3; this version of magbatch knows 1 and 2"),
    (lambda m: m.update(version=True), "version is true, not a whole number"),
    (lambda m: m.update(answered=8), "says answered 8, the objects give 9"),
    (lambda m: m.update(answered=9.0), "answered is 9.0, not a whole number"),
    (lambda m: m.update(answered=-1), "answered is -1, not a whole number"),
    (lambda m: m.update(answered=10**400), "says answered 1000"),
    (lambda m: m.update(by_code={}), "says by_code {}, the objects give {'missing_value': 1}"),
    (lambda m: m.update(by_code=None), "by_code is null, not an object"),
    (lambda m: m.update(by_status={"complete": "9"}), 'by_status.complete is "9", not a whole number'),
    (lambda m: m.update(squared_tokens=0), "says squared_tokens 0, the objects give"),
    (lambda m: m.pop("prompt_tokens"), "prompt_tokens is missing"),
    (lambda m: m.pop("by_latency"), "by_latency is missing"),
    (lambda m: m.pop("graded_by"), "graded_by is missing"),
    (lambda m: m.pop("answered"), "answered is missing"),
    (lambda m: m.pop("job"), "job is missing"),
    (lambda m: m.update(finished_at="1999-01-01T00:00:00+00:00"), "manifest_sha256 does not fit"),
    (lambda m: m.update(finished_at=7), "finished_at is 7, not text"),
    (lambda m: m.update(graded_by=2), "says graded_by 2, its version has 3"),
    (lambda m: m.update(compacted_to_bytes=1), "manifest_sha256 does not fit"),
    (lambda m: m.update(model_revision="abc"), "says model_revision abc, the plan gives"),
    (lambda m: m.update(retries=[]), "manifest_sha256 does not fit"),
    (lambda m: m.update(retries=[{}]), "retries[0].finished_at is missing"),
    (lambda m: m.update(retries=[{"finished_at": "", "dropped": 1}]), "retries[0].dropped is 1, not true"),
    (lambda m: m.update(extra=1), "extra is an unknown field"),
    (lambda m: m.update(plan_sha256="0" * 64), "says plan_sha256 0000"),
    (lambda m: m.update(plan_sha256="x"), 'plan_sha256 is "x", not a SHA-256 in hex'),
    (lambda m: m.update(manifest_sha256="0" * 64), "manifest_sha256 does not fit"),
    (lambda m: m.pop("manifest_sha256"), "manifest_sha256 is missing"),
    (lambda m: m.update(parts=None), "parts is null, not a list"),
    (lambda m: m.update(parts={}), "parts is an object, not a list"),
    (lambda m: m.update(parts=[]), "not in the manifest"),
    (lambda m: m["parts"].append(None), "parts[4] is null, not an object"),
    (lambda m: m["parts"].append(m["parts"][0]), "is named twice"),
    (lambda m: m["parts"].reverse(), "manifest_sha256 does not fit"),
    (lambda m: m["parts"].pop(), "not in the manifest"),
    (lambda m: m["parts"][0].pop("sha256"), "parts[0].sha256 is missing"),
    (lambda m: m["parts"][0].update(sha256=None), "parts[0].sha256 is null, not a SHA-256 in hex"),
    (lambda m: m["parts"][0].update(sha256="0" * 64), "its checksum is not the manifest's"),
    (lambda m: m["parts"][0].update(rows=3), "has 3 rows, it has 4"),
    (lambda m: m["parts"][0].update(records=3), "has 3 records, it has 4"),
    (lambda m: m["parts"][0].update(bytes=3), "has 3 bytes, it has"),
    (lambda m: m["parts"][0].update(rows="4"), 'parts[0].rows is "4", not a whole number'),
    (lambda m: m["parts"][0].update(more=1), "parts[0].more is an unknown field"),
    (lambda m: m["parts"][0].update(name="../../etc/passwd"), "parts[0].name is"),
    (lambda m: m["parts"][0].update(name=m["parts"][0]["name"].replace(".n4.", ".n04.")), "parts[0].name is"),
    (lambda m: m["parts"][0].update(name=m["parts"][0]["name"].upper()), "parts[0].name is"),
    (lambda m: m["parts"][0].update(name=m["parts"][0]["name"].replace("results", "errors")), "in the manifest, but"),
    (lambda m: m.update(files=[]), f"files lacks {SPEC}"),
    (lambda m: m["files"][0].update(sha256="0" * 64), f"{SPEC}: its checksum is not the manifest's"),
    (lambda m: m["files"][2].update(bytes=1), f"{REPORT}: its checksum is not the manifest's"),
    (lambda m: m["files"].append(m["files"][0]), "files[4].name: _magbatch/spec.yaml is named twice"),
    (lambda m: m["files"][0].update(name="/etc/passwd"), 'files[0].name is "/etc/passwd", not one of'),
]  # fmt: skip


@pytest.mark.parametrize(("change", "named"), FIELDS, ids=[named for _, named in FIELDS])
def test_every_field_of_the_manifest_is_held_against_what_is_there(
    out: Path, change: Callable[[dict[str, Any]], Any], named: str
) -> None:
    edit(out, change)
    found = problems(out)
    assert any(named in problem for problem in found), found
    assert all(problem.isprintable() for problem in found)
    with pytest.raises(OutputError, match=r"_magbatch/manifest\.json is damaged"):  # and nobody else believes it
        Ledger(str(out)).manifest()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"planned_rows": 11}, "says planned_rows 11, the plan gives 10"),
        ({"job": "other"}, "says job other, the spec gives small"),
        ({"schema_version": "0"}, "says schema_version 0, the objects give 1"),
        ({"plan_sha256": "0" * 64}, "says plan_sha256 000"),
        ({"model_revision": "x"}, "says model_revision x, the plan gives"),
        ({"files": ()}, f"files lacks {SPEC}"),
        ({"graded_by": None}, "graded_by is missing"),
        ({"graded_by": 2}, "says graded_by 2, its version has 3"),
        ({"retries": (RetryRecord("", dropped=True),)}, "has 1 retries, _magbatch/report.json has counted 0"),
        ({"version": 1, "files": ()}, f"has version 1, but a later version wrote {REPORT}"),
        ({"objects": ()}, "not in the manifest"),
    ],
)
def test_a_checksum_that_fits_does_not_help_a_lie(out: Path, changes: dict[str, Any], named: str) -> None:
    sign(out, **changes)
    found = problems(out)
    assert any(named in problem for problem in found), found


def test_every_sum_is_counted_again(out: Path) -> None:
    manifest = stored(Ledger(str(out)))
    for name in json.loads(manifest.to_json()).keys() & set(type(manifest.totals).__slots__):
        old = getattr(manifest.totals, name)
        sign(out, totals=replace(manifest.totals, **{name: old + 1 if isinstance(old, int) else old | {"x": 1}}))
        (problem,) = problems(out)
        assert f"says {name} " in problem


RAW = {
    "nothing": b"", "no JSON": b"{", "a list": b"[]", "null": b"null", "a number": b"7", "text": b'"parts"',
    "no UTF-8": b"\xff\xfe{}", "a BOM": b"\xef\xbb\xbf{}", "UTF-16": '{"parts": []}'.encode("utf-16"),
    "deep": b"[" * 200_000, "deep and whole": b"[" * 90_000 + b"]" * 90_000,
    "deep in a field": b'{"version": 2, "parts": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_001,
    "a huge number": b'{"version": ' + b"9" * 100_000 + b"}", "not a number": b'{"version": NaN}',
    "an endless number": b'{"version": 1e999}', "a field twice": b'{"version": 2, "version": 2}',
    "a null byte": b'{"version": 2}\0',
}  # fmt: skip


@pytest.mark.parametrize("data", RAW.values(), ids=RAW.keys())
def test_a_manifest_that_is_none_is_named(out: Path, data: bytes) -> None:
    (out / MANIFEST).write_bytes(data)
    found = problems(out)
    assert [problem for problem in found if problem.startswith(f"{MANIFEST} is damaged: ")] == list(found)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data + b"\n", lambda data: b" " + data, lambda data: data.replace(b"\n ", b"\n  "),
        lambda data: data.replace(b'"job": "small"', b'"job": "other", "job": "small"'),
        lambda data: data.replace(b'"small"', b'"sm\\u0061ll"'), lambda data: json.dumps(json.loads(data)).encode(),
    ],
)  # fmt: skip
def test_every_byte_of_the_manifest_counts(out: Path, change: Callable[[bytes], bytes]) -> None:
    old = (out / MANIFEST).read_bytes()
    (out / MANIFEST).write_bytes(change(old))
    assert (out / MANIFEST).read_bytes() != old
    (problem,) = problems(out)
    assert problem.startswith(MANIFEST)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a JSON document."""
    yield path
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*path, key))


VALUES: list[Any] = [None, True, False, 0, 1, -1, 7, 10**30, 1.5, 0.0, "", "x", "0" * 64, [], {}, [None], {"x": 1}]


def mutations(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Each value replaced, left out, doubled, or with something beside it: one at a time."""
    for *above, last in (path for path in places(manifest) if path):

        def changed(change: Callable[[Any], Any], above: list[Any] = above) -> dict[str, Any]:
            found = copy.deepcopy(manifest)
            holder: Any = found
            for key in above:
                holder = holder[key]
            change(holder)
            return found

        for value in VALUES:
            yield changed(lambda holder, value=value, last=last: holder.__setitem__(last, value))
        yield changed(lambda holder, last=last: holder.pop(last))
        yield changed(
            lambda holder, last=last: (
                holder.append(holder[last]) if isinstance(holder, list) else holder.__setitem__("more", holder[last])
            )
        )


def test_no_mutation_of_the_manifest_goes_unseen(out: Path) -> None:
    data = (out / MANIFEST).read_bytes()
    manifest = json.loads(data)
    found = [mutation for mutation in mutations(manifest) if json.dumps(mutation) != json.dumps(manifest)]
    assert len(found) > 1000
    for mutation in found:
        with pytest.raises(OutputError, match="is damaged"):
            Manifest.from_json(json.dumps(mutation, indent=1).encode())
    for mutation in random.Random(7).sample(found, 40):
        (out / MANIFEST).write_text(json.dumps(mutation, indent=1))
        assert problems(out), mutation


# The job's own files


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


def test_objects_are_checked_also_where_the_plan_is_not_to_be_trusted(out: Path) -> None:
    (out / PLAN).write_bytes(b"no plan")
    path = an_object(out)
    path.write_bytes(path.read_bytes() + b"more")
    (out / "results" / "00000000-abc-0000.n1.parquet").write_bytes(b"an extra one")
    gone = min((out / "errors").iterdir())
    gone.unlink()
    assert set(problems(out)) == {
        f"{PLAN}: its checksum is not the manifest's",
        f"{name_of(path)}: its checksum is not the manifest's",
        "results/00000000-abc-0000.n1.parquet: not in the manifest",
        f"{name_of(gone)}: in the manifest, but not there",
    }


@pytest.mark.parametrize("name", [REPORT, PAGE])
@pytest.mark.parametrize("way", ["gone", "damaged", "not named"])
@pytest.mark.parametrize("version", [1, 2])
def test_a_report_is_made_anew_from_the_objects(out: Path, name: str, way: str, version: int) -> None:
    """By the command that verify names."""
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


def test_a_plan_that_does_not_fit_its_checksum_is_used_by_nobody(out: Path) -> None:
    of_the_version_before(out)
    pq.write_table(pq.read_table(out / PLAN), out / PLAN, compression="none")  # the same plan, in other bytes
    with pytest.raises(OutputError, match=r"plan\.parquet: its checksum is not the manifest's"):
        Ledger(str(out)).complete_job()


# Objects


def rewritten(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    sink = io.BytesIO()
    pq.write_table(change(pq.read_table(io.BytesIO(path.read_bytes()))), sink)
    path.write_bytes(sink.getvalue())


def flipped(path: Path, at: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(at * (len(data) - 1))] ^= 1
    path.write_bytes(bytes(data))


def with_footer(table: pa.Table) -> pa.Table:
    return table.replace_schema_metadata((table.schema.metadata or {}) | {"by": "somebody else"})


def hidden(path: Path) -> None:
    path.rename(path.with_name(f".{path.name}"))


def behind_a_link(path: Path) -> None:
    target = path.parents[1] / "elsewhere.parquet"
    path.rename(target)
    path.symlink_to(target)


def folder_behind_a_link(path: Path) -> None:
    target = path.parents[1] / "elsewhere"
    path.parent.rename(target)
    path.parent.symlink_to(target)


OBJECTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "rows in another order": (lambda path: rewritten(path, lambda table: table.take([3, 2, 1, 0])), "checksum"),
    "another footer": (lambda path: rewritten(path, with_footer), "checksum"),
    "other types": (
        lambda path: rewritten(path, lambda table: table.set_column(0, "row_id", pa.array([1, 2, 3, 4]))), "checksum",
    ),
    "a column less": (lambda path: rewritten(path, lambda table: table.drop_columns(["answer"])), "checksum"),
    "no rows": (lambda path: rewritten(path, lambda table: table.slice(0, 0)), "checksum"),
    "no bytes": (lambda path: path.write_bytes(b""), "checksum"),
    "one byte more": (lambda path: path.write_bytes(path.read_bytes() + b"\0"), "checksum"),
    "gone": (lambda path: path.unlink(), "in the manifest, but not there"),
    "hidden": (hidden, "not an object of this job"),
    "in capitals": (lambda path: path.rename(path.with_name(path.name.upper())), "not an object of this job"),
    "of another spelling": (
        lambda path: path.rename(path.with_name(path.name.replace(".n4.", ".n04."))), "not an object of this job",
    ),
    "behind a link": (behind_a_link, "a symbolic link, not the object itself"),
    "all behind a link": (folder_behind_a_link, "results: a symbolic link, not the folder itself"),
    "a dangling link beside it": (
        lambda path: path.with_name("x.parquet").symlink_to("nowhere"), "x.parquet: a symbolic link",
    ),
    "a link to itself beside it": (
        lambda path: path.with_name("x.parquet").symlink_to("x.parquet"), "x.parquet: a symbolic link",
    ),
    "a link to its own folder": (lambda path: path.with_name("loop").symlink_to("."), "loop: a symbolic link"),
    "a folder beside it": (lambda path: path.with_name("x.parquet").mkdir(), "results/x.parquet: a folder, not"),
    "a pipe in its place": (lambda path: (path.unlink(), os.mkfifo(path)), "neither a file nor a folder"),
    "a folder in its place": (lambda path: (path.unlink(), path.mkdir()), "a folder, not an object"),
    "folder in other case": (
        lambda path: (path.parents[1] / "Results").mkdir(), "Results: its name differs from results in upper",
    ),
    "a foreign file": (lambda path: path.with_name("_SUCCESS").touch(), "results/_SUCCESS: not an object of this job"),
    "a name that is no text": (
        lambda path: Path(os.fsdecode(bytes(path.parent) + b"/\xff\x1b]0;x\x07")).touch(), "not an object of this job",
    ),
    "below a folder": (
        lambda path: (path.with_name("a").mkdir(), path.rename(path.with_name("a") / path.name)), "not an object of",
    ),
    "of the other kind": (
        lambda path: path.rename(path.parents[1] / "errors" / path.name), "in the manifest, but not there",
    ),
    "a copy": (
        lambda path: shutil.copy(path, path.with_name("00000000-zzz-0000.n4.parquet")), "not in the manifest",
    ),
    "of a huge shard": (
        lambda path: shutil.copy(path, path.with_name("99999999-zzz-0000.n4.parquet")), "not in the manifest",
    ),
    "of very many shards": (
        lambda path: shutil.copy(path, path.with_name("r00000000-99999999-zzz-0000.n4.parquet")), "not in the manifest",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "named"), OBJECTS.values(), ids=OBJECTS.keys())
def test_every_change_of_the_objects_is_named(out: Path, spoil: Callable[[Path], Any], named: str) -> None:
    spoil(an_object(out))
    found = problems(out)
    assert any(named in problem for problem in found), found
    assert all(problem.isprintable() for problem in found)


def test_every_bit_counts(out: Path) -> None:
    path = an_object(out)
    data = path.read_bytes()
    for step in range(25):
        flipped(path, step / 24)
        assert f"{name_of(path)}: its checksum is not the manifest's" in problems(out)
        path.write_bytes(data)


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table.set_column(0, "row_id", pa.array([1, 2, 3, 4])),
        lambda table: table.set_column(0, "row_id", pa.array([None] * 4, pa.string())),
        lambda table: table.set_column(1, "sample", pa.array([{"a": 1}] * 4)),
        lambda table: table.drop_columns(["latency_s"]),
        lambda table: table.drop_columns(["latency_s"]).append_column("latency_s", pa.array([float("nan")] * 4)),
        lambda table: table.drop_columns(["latency_s"]).append_column("latency_s", pa.array([float("inf")] * 4)),
        lambda table: table.drop_columns(["latency_s"]).append_column("latency_s", pa.array(["soon"] * 4)),
        lambda table: table.append_column("row_id", pa.array(["x"] * 4)),
    ],
)  # fmt: skip
def test_an_object_that_nobody_vouches_for_is_named_whatever_it_holds(
    out: Path, change: Callable[[pa.Table], pa.Table]
) -> None:
    (out / MANIFEST).unlink()
    path = an_object(out)
    rewritten(path, change)
    found = verify(Ledger(str(out)))
    assert (found.complete, found.verified) == (False, False)
    assert any(name_of(path) in problem for problem in found.problems), found.problems


# What is no job, and what is not complete


def test_a_job_that_is_not_complete_is_summed_up_without_alarm(made: SmallJob, out: Path) -> None:
    (out / MANIFEST).unlink()
    an_object(out).unlink()
    found = verify(Ledger(str(out)))
    assert (found.planned, found.answered, found.failed, found.open) == (10, 5, 1, 4)
    assert (found.complete, found.verified, found.problems) == (False, False, ())


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
    assert problems(out) == (f"{gone}: in the manifest, but not there",)


# The version before


def test_an_output_of_the_version_before_verifies_as_it_did(out: Path) -> None:
    of_the_version_before(out)
    assert "files" not in json.loads((out / MANIFEST).read_text())
    found = verify(Ledger(str(out)))
    assert found.verified
    assert found.notes == (f"{MANIFEST} is of an older version: it has no checksums of {SPEC} and {REPORT}",)
    sign(out, planned_rows=11)
    (out / PLAN).write_bytes(b"another")
    assert f"{PLAN}: its checksum is not the manifest's" in problems(out)


def test_progress_counts_the_objects(out: Path) -> None:
    told: list[tuple[int, int]] = []
    verify(Ledger(str(out)), lambda done, objects: told.append((done, objects)))
    assert told[-1] == (4, 4)
    assert told == sorted(told)


def test_objects_in_object_storage_are_held_against_their_names_too(made: SmallJob, s3: str) -> None:
    """Keys differ in case there, and there are no links."""
    local, store = open_store(made.output), open_store(f"{s3}/out")
    for item in local.list(""):
        store.write(item.name, local.read(item.name))
    assert verify(Ledger(f"{s3}/out")).verified
    name = next(item.name for item in store.list("results/"))
    store.move(name, name.replace("results/", "Results/"))
    store.write(name.upper(), b"x")
    part = ObjectName.of(name)
    store.write(f"results/{part.shard:08d}-{part.attempt}-{part.seq:05d}.n{part.rows}.parquet", b"x")
    found = verify(Ledger(f"{s3}/out")).problems
    assert f"{name}: in the manifest, but not there" in found
    assert sum("not an object of this job" in problem for problem in found) == 1
