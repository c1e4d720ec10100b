"""Changes to the output of a complete job, and its proof after them."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from magbatch.ledger.layout import MANIFEST, REPORT
from magbatch.ledger.ledger import Ledger
from magbatch.ledger.verify import verify
from support.book import rewrite_manifest


def problems(out: Path) -> tuple[str, ...]:
    """Problems that the proof finds."""
    found = verify(Ledger(str(out)))
    assert found.verified == (not found.problems)
    return found.problems


def an_object(out: Path) -> Path:
    """The first object with answers."""
    return min((out / "results").iterdir())


def name_of(path: Path) -> str:
    """Name of an object below the output."""
    return f"{path.parent.name}/{path.name}"


def of_the_version_before(out: Path) -> None:
    """Make the output one that version 1 of the manifest describes."""
    before_that = ("letters", "began", "ended")
    report = {name: value for name, value in json.loads((out / REPORT).read_text()).items() if name not in before_that}
    (out / REPORT).write_text(json.dumps(report))
    rewrite_manifest(Ledger(str(out)), version=1, files=())


def edit(out: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the manifest's JSON, and leave its own checksum as it was."""
    manifest = json.loads((out / MANIFEST).read_text())
    change(manifest)
    (out / MANIFEST).write_text(json.dumps(manifest, indent=1))


def sign(out: Path, **changes: Any) -> None:
    """Change the manifest, and give it a checksum that fits."""
    rewrite_manifest(Ledger(str(out)), **changes)


def rewritten(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Change the records of an object."""
    sink = io.BytesIO()
    pq.write_table(change(pq.read_table(io.BytesIO(path.read_bytes()))), sink)
    path.write_bytes(sink.getvalue())
