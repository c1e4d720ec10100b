"""Every path below an output, once: the job's own files in `_magbatch/`, and the globs of the objects that users read.

Names of committed objects are made by `magbatch.schema.ObjectName`.
"""

from magbatch.schema import ERRORS, RESULTS
from magbatch.storage.disk import DRAFTS
from magbatch.storage.tables import OUTPUT, RUNS

__all__ = ["DRAFTS", "RUNS"]

SPEC = f"{OUTPUT}/spec.yaml"
PLAN = f"{OUTPUT}/plan.parquet"
REPORT = f"{OUTPUT}/report.json"
PAGE = f"{OUTPUT}/report.html"
RECORD = f"{OUTPUT}/progress.json"
MANIFEST = f"{OUTPUT}/manifest.json"
DRIVER_LOG = f"{OUTPUT}/driver.log"
LOGS = f"{OUTPUT}/logs/"
# A lease is `lease-<n>.json`; a run that waits for the lease of another run is `watch-<id>.json`.
LEASES = f"{OUTPUT}/lease-"
WATCHERS = f"{OUTPUT}/watch-"
STAGED = f"{OUTPUT}/staged/"
SUPERSEDED = f"{OUTPUT}/superseded"
RETRIES = f"{OUTPUT}/retries"
# Files of a schedule, in the output that its runs share. Each run has an output of its own in RUNS.
TICKS = f"{OUTPUT}/schedule/"
SINCE = f"{TICKS}since.json"
TAKEN = f"{TICKS}taken.parquet"
# The job's own files that a manifest names with their checksums, in this order.
NAMED_FILES = (SPEC, PLAN, REPORT, PAGE)


def results_glob(output: str) -> str:
    """Glob of the objects that hold the answers.

    >>> results_glob("/out")
    '/out/results/*.parquet'
    """
    return f"{output}/{RESULTS}/*.parquet"


def errors_glob(output: str) -> str:
    """Glob of the objects that hold the dead letters."""
    return f"{output}/{ERRORS}/*.parquet"


def spec_of(output: str) -> str:
    """Path of the stored spec."""
    return f"{output}/{SPEC}"


def page_of(output: str) -> str:
    """Path of the report's page."""
    return f"{output}/{PAGE}"


def retry_output(output: str, number: int) -> str:
    """Output of a retry; the first retry of a job has number 1."""
    return f"{output}/{RETRIES}/{number:04d}"
