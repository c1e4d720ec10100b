"""The proof of a job's objects: every change is noticed and named, and ends with a message, not a traceback."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from support.small_job import SmallJob
from support.spoiled_output import an_object, name_of, problems, rewritten

from magbatch.errors import StorageError
from magbatch.ledger.layout import MANIFEST, PLAN
from magbatch.ledger.ledger import Ledger
from magbatch.ledger.verify import verify
from magbatch.schema import ObjectName
from magbatch.storage import open_store
from magbatch.storage.disk import LocalStore


def test_objects_are_checked_also_where_the_plan_is_not_to_be_trusted(out: Path) -> None:
    (out / PLAN).write_bytes(b"no plan")
    path = an_object(out)
    path.write_bytes(path.read_bytes() + b"more")
    (out / "results" / "00000000-abc-0000.n1.parquet").write_bytes(b"an extra one")
    gone = min((out / "errors").iterdir())
    gone.unlink()
    assert set(problems(out)) == {
        f"{PLAN}: its checksum differs from the manifest's",
        f"{name_of(path)}: its checksum differs from the manifest's",
        "results/00000000-abc-0000.n1.parquet: not in the manifest",
        f"{name_of(gone)}: in the manifest, but missing",
    }


def test_an_object_that_cannot_be_read_hides_no_other_problem(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (out / PLAN).write_bytes(b"no plan")
    name = name_of(an_object(out))
    read = LocalStore.read

    def refused(self: LocalStore, path: str) -> bytes:
        if path == name:
            raise StorageError(f"{path}: Permission denied")
        return read(self, path)

    monkeypatch.setattr(LocalStore, "read", refused)
    found = problems(out)
    assert f"{PLAN}: its checksum differs from the manifest's" in found
    assert f"{name}: cannot be read: {name}: Permission denied" in found


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
    "gone": (lambda path: path.unlink(), "in the manifest, but missing"),
    "hidden": (hidden, "not an object of this job"),
    "in capitals": (lambda path: path.rename(path.with_name(path.name.upper())), "not an object of this job"),
    "of another spelling": (
        lambda path: path.rename(path.with_name(path.name.replace(".n4.", ".n04."))), "not an object of this job",
    ),
    "behind a link": (behind_a_link, "a symbolic link, not the object itself"),
    "all behind a link": (folder_behind_a_link, "results: a symbolic link, not the folder itself"),
    "a dangling link next to it": (
        lambda path: path.with_name("x.parquet").symlink_to("nowhere"), "x.parquet: a symbolic link",
    ),
    "a link to itself next to it": (
        lambda path: path.with_name("x.parquet").symlink_to("x.parquet"), "x.parquet: a symbolic link",
    ),
    "a link to its own folder": (lambda path: path.with_name("loop").symlink_to("."), "loop: a symbolic link"),
    "a folder next to it": (lambda path: path.with_name("x.parquet").mkdir(), "results/x.parquet: a folder, not"),
    "a pipe in its place": (lambda path: (path.unlink(), os.mkfifo(path)), "neither a file nor a folder"),
    "a folder in its place": (lambda path: (path.unlink(), path.mkdir()), "a folder, not an object"),
    "folder in other case": (
        lambda path: (path.parents[1] / "Results").mkdir(), "Results: its name differs from results in upper",
    ),
    "a foreign file": (lambda path: path.with_name("_SUCCESS").touch(), "results/_SUCCESS: not an object of this job"),
    "a name that is not text": (
        lambda path: Path(os.fsdecode(bytes(path.parent) + b"/\xff\x1b]0;x\x07")).touch(), "not an object of this job",
    ),
    "below a folder": (
        lambda path: (path.with_name("a").mkdir(), path.rename(path.with_name("a") / path.name)), "not an object of",
    ),
    "of the other kind": (
        lambda path: path.rename(path.parents[1] / "errors" / path.name), "in the manifest, but missing",
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
        assert f"{name_of(path)}: its checksum differs from the manifest's" in problems(out)
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
    assert f"{name}: in the manifest, but missing" in found
    assert sum("not an object of this job" in problem for problem in found) == 1
