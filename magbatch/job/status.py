"""Where a job stands, seen from any machine: from its objects, and from what its run has last said of itself."""

import time
from typing import Any

from magbatch.job.heartbeat import ALIVE_S, last_record
from magbatch.job.ledger import Ledger
from magbatch.rows import ERRORS


def status(output: str) -> dict[str, Any]:
    """Where a job stands: counts from one listing of its objects, speed and end from its run's last sign of life.

    Returns:
        `run` is that sign of life, with its age in seconds and whether the run goes on; None where there is none.

    Raises:
        OutputError: There is no job here.
    """
    ledger = Ledger(output)
    spec, plan = ledger.open_job()
    manifest = ledger.manifest()
    if manifest is not None:
        answered, failed, rows_done = manifest.totals.answered, manifest.totals.failed, plan.rows
        shards = plan.num_shards
    else:
        done = ledger.done_counts(plan)
        failed = sum(part.rows for part in ledger.parts(ERRORS))
        rows_done = int(done.sum())
        answered = rows_done - failed
        shards = int((done >= plan.shard_sizes).sum())
    return {
        "job": spec.name,
        "output": ledger.path,
        "complete": manifest is not None,
        "planned": plan.rows,
        "done": rows_done,
        "answered": answered,
        "failed": failed,
        "shards": plan.num_shards,
        "shards_done": shards,
        "run": _run(ledger),
    }


def _run(ledger: Ledger) -> dict[str, Any] | None:
    found = last_record(ledger.store)
    if found is None:
        return None
    age_s = max(0.0, time.time() - found["at"])  # the clocks of two machines: near enough to tell life from death
    shown = {name: value for name, value in found.items() if name not in {"version", "versions", "running", "history"}}
    return {"alive": bool(found.get("running")) and age_s < ALIVE_S, "age_s": age_s, **shown}
