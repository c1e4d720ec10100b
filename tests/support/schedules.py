"""Folders of specs with schedules, and processes that stand in for their ticks."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

from magbatch.schedule.history import History

NOW = datetime(2026, 11, 24, 5, 1, tzinfo=UTC)
BEFORE = NOW - timedelta(days=3)


def write(folder: Path, name: str, **schedule: Any) -> History:
    """A spec in a folder, with a schedule if one is given; returns the history of its output."""
    data: dict[str, Any] = {
        "name": name,
        "model": {"source": "builtin:tiny"},
        "input": {"path": str(folder / "in"), "columns": {"prompt": "q"}},
        "output": {"path": str(folder / "out" / name)},
    }
    if schedule:
        data["schedule"] = schedule
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(data))
    return History(data["output"]["path"])


class Runs:
    """Begins processes that end with a code, and notes which ticks were begun."""

    def __init__(self, code: int = 0) -> None:
        self.code = code
        self.begun: list[tuple[str, datetime]] = []

    def __call__(self, path: str, tick: datetime) -> "subprocess.Popen[bytes]":
        self.begun.append((Path(path).stem, tick))
        done = History(str(Path(path).parent / "out" / Path(path).stem))
        done.begin(tick)
        if self.code == 0:
            done.end(tick, "complete", files=2, rows=10, failed=0)
        return subprocess.Popen([sys.executable, "-c", f"raise SystemExit({self.code})"])
