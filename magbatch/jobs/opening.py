"""Checks of an output before a run: is it new, does it hold this job, or does it belong to something else?"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from magbatch.errors import (
    InputError,
    OutputError,
    SpecChangedError,
    SpecError,
    StorageError,
)
from magbatch.ledger.holder import EXPIRY_S
from magbatch.ledger.lease import Lease
from magbatch.ledger.ledger import Ledger
from magbatch.plan.make import make_plan
from magbatch.plan.plan import Plan
from magbatch.report.record import last_record
from magbatch.schema import ERRORS, RESULTS
from magbatch.spec import JobSpec, is_remote
from magbatch.storage.inputs import stat_input
from magbatch.storage.patience import patiently

FIRST_PATIENCE_S = 4.0  # time to repeat the first request to the input's store: new access rights apply after seconds


def frozen_plan(spec: JobSpec, ledger: Ledger) -> Plan | None:
    """Frozen plan of a job that was started before.

    Args:
        spec: The job.
        ledger: Output of the job.

    Returns:
        The plan. None if the output is new, or holds a job of another spec that has no answers yet.

    Raises:
        SpecChangedError: The output holds answers to another spec. The message lists the differences.
        OutputError: The path cannot be an output.
    """
    _check_folder(ledger.path)
    with as_output_error():
        try:
            return ledger.plan() if ledger.check_same(spec) else None
        except SpecChangedError:
            if holds_rows(ledger):
                raise
            return None


def _check_folder(path: str) -> None:
    """Check that a local output can be created: no file has its path, and its parent is writable.

    Raises:
        OutputError: The output cannot be created.
    """
    if is_remote(path):
        return
    there = Path(path)
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    if not there.is_dir():
        what = "a link to a missing target" if there.is_symlink() else "a file"
        raise OutputError(f"output.path: {path}: {there} is {what}; name a folder, or a path where one can be created")
    if not os.access(there, os.W_OK | os.X_OK):
        raise OutputError(
            f"output.path: {path}: {there} is not writable: it is read-only, or belongs to another user; "
            "choose another folder, or change its permissions"
        )


def holds_rows(ledger: Ledger) -> bool:
    """Whether a job has answered a row.

    The record of the job's run counts too, because a listing can miss an object that was written moments ago.
    """
    record = last_record(ledger.store)
    return (record is not None and bool(record.get("done"))) or ledger.has_objects()


def replace_unanswered_job(
    spec: JobSpec, ledger: Ledger, lease: Lease, console: Console, wait_s: float = EXPIRY_S
) -> None:
    """Wait until a job without answers can be replaced: its replicas must no longer commit.

    Args:
        spec: The job that replaces it.
        ledger: The output.
        lease: Held lease on the output.
        console: Console for progress messages.
        wait_s: Seconds after which replicas of a run that lost its lease commit nothing.

    Raises:
        SpecChangedError: Replicas of the old job committed rows during the wait.
        LeaseError: Another run has taken the output over.
    """
    if ledger.spec() is None:
        return
    console.print(
        "note: the output holds a job of another spec without any answer; this job replaces it", highlight=False
    )
    if not lease.inherited:
        return
    console.print(
        f"note: the previous run did not release this output; waiting {wait_s:.0f} s for late commits of its replicas",
        markup=False,
        highlight=False,
    )
    until = time.monotonic() + wait_s
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(left, 1.0))
        lease.check()
    frozen_plan(spec, ledger)


def check_unused(ledger: Ledger) -> None:
    """Check that a new output is one folder without objects.

    Raises:
        OutputError: The path is a glob, or holds objects though there is no job.
    """
    if wildcard := next((char for char in "*?" if char in ledger.path), None):
        raise OutputError(f"output.path: {ledger.path}: an output is one folder, not a glob; remove the {wildcard}")
    for kind in (RESULTS, ERRORS):
        if any(True for _ in ledger.store.list(f"{kind}/")):
            raise OutputError(
                f"{ledger.path}/{kind}: holds objects, but no magbatch job made them; set output.path to a new folder"
            )


def check_input(spec: JobSpec, plan: Plan, done: NDArray[np.int64]) -> None:
    """Ask the input's store for one file that a run will read, before engines start.

    Only access is checked. A missing file fails only its own rows, and readers wait for a store that does not answer.

    Args:
        spec: The job.
        plan: Plan of the job.
        done: int64 array (shards,): rows of each shard that are done.

    Raises:
        InputError: The store denies access for `FIRST_PATIENCE_S`.
    """
    shards = np.flatnonzero(done < plan.shard_sizes)
    segments = plan.shard(int(shards[0])).segments if len(shards) else ()
    path = next((segment.path for segment in segments if segment.problem is None), "")
    if not is_remote(path):
        return

    def ask() -> None:
        try:
            stat_input(path)
        except FileNotFoundError:
            return
        except StorageError as error:
            if error.lasting or error.refused:
                raise

    try:
        patiently(ask, FIRST_PATIENCE_S)
    except StorageError as error:
        raise InputError(f"input.path {spec.input.path}: {error}") from error


@contextmanager
def with_resume_note() -> Iterator[None]:
    """Add to lasting storage errors of a running job that no committed row is lost."""
    try:
        yield
    except StorageError as error:
        if error.lasting and not error.mistake:
            error.add_note("Committed rows are kept. Fix the cause, then repeat the same command to continue.")
        raise


def new_plan(spec: JobSpec, ledger: Ledger, limit: int | None) -> Plan:
    """Plan of a job that was not started before.

    Args:
        spec: The job.
        ledger: Output of the job.
        limit: Rows of a sample; None for the whole job.

    Raises:
        OutputError: The output holds other objects.
        SpecError: The job runs by its schedule only.
        JobError: The same errors as `make_plan` raises.
    """
    check_unused(ledger)
    if spec.input.incremental and limit is None:
        raise SpecError(
            "input.incremental: such a job runs by its schedule: magbatch schedule tick SPEC; for a trial: --limit N"
        )
    return make_plan(spec, limit)


@contextmanager
def as_output_error(*, new: bool = False) -> Iterator[None]:
    """Turn lasting storage errors of a job's first access to its output into errors of `output.path`.

    Args:
        new: Whether the job is new. A full disk is then an error of `output.path` too.

    Raises:
        OutputError: The store refuses, and a later request would be refused too.
    """
    try:
        yield
    except StorageError as error:
        if error.wrong_at_first:
            raise OutputError(f"output.path: {error}") from error
        if new and error.full:
            raise OutputError(f"output.path: {error}; free space there, or set output.path to another disk") from error
        raise
