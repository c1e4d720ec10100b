"""A row that makes a replica stand still: nothing in its process can say or end anything any more."""

import subprocess
import sys

from support.magbatch_cli import ROOT, JobFiles, magbatch, read

SILENCE_S = 6.0
# As `magbatch run` does, but with a shorter silence: a minute is the least that a job waits.
FLEET = """
import sys
import numpy as np
from magbatch.fleet.cluster import run_fleet
from magbatch.ledger.lease import Lease
from magbatch.ledger.ledger import Ledger
from magbatch.plan.make import make_plan
from magbatch.pipeline.context import JobContext
from magbatch.spec import load
from magbatch.storage import open_store

class Unwatched:
    def watch(self, snapshot):
        return None

    say = watch

spec, plan = load(sys.argv[1]), make_plan(load(sys.argv[1]))
ledger = Ledger(spec.output.path)
ledger.begin(spec, plan)
lease = Lease(open_store(ledger.path), print)
with lease.acquire():
    done = np.zeros(plan.num_shards, dtype=np.int64)
    last = run_fleet(
        JobContext(spec, plan.columns), plan, done, Unwatched(), lease.token,
        slots=4, any_may_have_rows=False, silence=float(sys.argv[2]),
    )
print(last.done.answered, last.done.failed, last.engine_deaths)
"""


def test_a_row_that_freezes_three_replicas_is_a_dead_letter_and_all_others_are_answered(job: JobFiles) -> None:
    """The fake engine holds Python's lock, as a regular expression that backtracks does."""
    rows = 60
    job.write_input(rows)
    job.engine |= {"max_num_seqs": 4, "token_s": 0.002, "script": [{"contains": "What is 31?", "do": "block"}]}
    spec = job.write_spec(replicas={"gpus": 0, "min": 1, "max": 1, "cpus": 0.5})
    done = subprocess.run(
        [sys.executable, "-c", FLEET, str(spec), str(SILENCE_S)],
        cwd=ROOT, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answered, failed, deaths = map(int, done.stdout.split())
    assert (failed, deaths) == (1, 3)
    assert answered <= rows - 1, "a replica may freeze between a commit and its report; the objects below count"
    (letter,) = read(job.output, "errors")
    assert (letter["id"], letter["error_code"]) == ("id-31", "engine_killer")
    assert sorted(row["id"] for row in read(job.output)) == sorted(f"id-{n}" for n in range(rows) if n != 31)
    ended = magbatch("run", str(spec))
    assert ended.returncode == 0, ended.stderr
    verified = magbatch("verify", str(job.output))
    assert verified.returncode == 0, verified.stdout
