"""`schedule list` tells what each schedule did last and when it runs next, and writes nothing."""

import json
from pathlib import Path

from support.schedules import BEFORE, NOW, write

from magbatch.schedule.listing import ListedProblem, ListedSchedule, listing


def test_each_schedule_is_listed_with_its_last_tick(tmp_path: Path) -> None:
    done = write(tmp_path, "done", cron="0 6 * * *", timezone="Europe/Paris")
    done.since(BEFORE)
    done.begin(NOW)
    done.end(NOW, "complete", files=2, rows=10, failed=1)
    write(tmp_path, "open", cron="0 6 * * *", timezone="Europe/Paris").begin(NOW)
    write(tmp_path, "due", cron="0 6 * * *", timezone="Europe/Paris").since(BEFORE)
    write(tmp_path, "unseen", cron="0 3 * * *")
    write(tmp_path, "plain")
    (tmp_path / "wrong.yaml").write_text("name: [")
    before = sorted(tmp_path.rglob("*"))
    rows = {row.job: row for row in listing(str(tmp_path), NOW) if isinstance(row, ListedSchedule)}
    assert sorted(tmp_path.rglob("*")) == before
    assert [*rows] == ["done", "due", "open", "unseen"]
    assert json.loads(json.dumps(rows["done"].to_dict())) == {
        "spec": f"{tmp_path}/done.yaml", "job": "done", "output": done.output, "cron": "0 6 * * *",
        "timezone": "Europe/Paris", "runs": 1,
        "last": {
            "tick": NOW.isoformat(), "state": "complete", "output": done.run_path(NOW), "files": 2, "rows": 10,
            "failed": 1,
        },
        "due": None, "next": "2026-11-25T05:00:00+00:00",
    }  # fmt: skip
    last = rows["open"].last
    assert last is not None
    assert (last.state, last.facts) == ("interrupted", {})
    assert rows["due"].to_dict()["due"] == "2026-11-24T05:00:00+00:00"
    assert (rows["unseen"].last, rows["unseen"].runs, rows["unseen"].due) == (None, 0, None)


def test_a_wrong_spec_is_listed_with_its_problem(tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text("name: [")
    (row,) = listing(str(tmp_path), NOW)
    assert isinstance(row, ListedProblem)
    assert [*row.to_dict()] == ["spec", "problem"]
    assert row.problem.startswith(f"{tmp_path}/wrong.yaml: ")
