"""An output as a run finds it: new, begun by this job, complete, or another's."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
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
from magbatch.report.heartbeat import last_record
from magbatch.schema import ERRORS, RESULTS
from magbatch.spec import JobSpec, is_remote
from magbatch.storage.inputs import stat_input
from magbatch.storage.patience import patiently

FIRST_PATIENCE_S = 4.0  # with the store of an input that refuses the first request of a command


def limited(spec: JobSpec, limit: int | None) -> JobSpec:
    """The job of a sample: the same spec, with an output of its own beside the job's; inside it where that is a root.

    A bucket's name, or `/`, with something added to it would be another bucket, or a folder that nobody asked for.
    """
    if limit is None:
        return spec
    path = spec.output.path.rstrip("/")
    is_root = not path or (path.startswith("s3://") and "/" not in path.removeprefix("s3://"))
    return spec.with_output(f"{path}{'/' if is_root else '-'}limit-{limit}")


def begun(spec: JobSpec, ledger: Ledger) -> Plan | None:
    """The frozen plan of this job; None where there is none yet, or a job of another spec that has answered nothing.

    Raises:
        SpecChangedError: The output holds answers to another spec; with the difference.
        OutputError: The output cannot be one.
    """
    _check_place(ledger.path)
    with first_look():
        try:
            return ledger.plan() if ledger.check_same(spec) else None
        except SpecChangedError:
            if holds_rows(ledger):
                raise
            return None


def _check_place(path: str) -> None:
    """Raises OutputError where no folder can be on a disk: a file is in its way, or its parent may not be written."""
    if is_remote(path):
        return
    there = Path(path)
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    if not there.is_dir():
        what = "a link that leads nowhere" if there.is_symlink() else "a file"
        raise OutputError(f"output.path: {path}: {there} is {what}; give a folder, or a place where one can be made")
    if not os.access(there, os.W_OK | os.X_OK):
        raise OutputError(f"output.path: {path}: {there} may not be written: it is read-only, or another user's")


def holds_rows(ledger: Ledger) -> bool:
    """Whether a job has answered a row: by its objects, or by its run's own record, for a listing may be late."""
    record = last_record(ledger.store) or {}
    return bool(record.get("done")) or ledger.has_objects()


def take_place(spec: JobSpec, ledger: Ledger, lease: Lease, console: Console, wait_s: float = EXPIRY_S) -> None:
    """Before a job takes the place of one of another spec: nothing of that one may come any more.

    Args:
        spec: The job.
        ledger: The output.
        lease: A hold on it.
        console: Where it is said what is waited for.
        wait_s: Seconds after which replicas of a run whose lease is lost commit nothing.

    Raises:
        SpecChangedError: Its replicas have committed rows meanwhile.
        LeaseError: Another run has taken the output over.
    """
    if ledger.spec() is None:
        return
    console.print("another spec was begun here and has answered nothing: this one takes its place", highlight=False)
    if not lease.inherited:
        return
    console.print(
        f"the run before has not given this output back; waiting {wait_s:.0f} s for what its replicas may still commit",
        markup=False,
        highlight=False,
    )
    until = time.monotonic() + wait_s
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(left, 1.0))
        lease.check()
    begun(spec, ledger)


def check_unused(ledger: Ledger) -> None:
    """Raises OutputError where a new output is a glob, or one without a job holds objects all the same."""
    if wildcard := next((char for char in "*?" if char in ledger.path), None):
        raise OutputError(f"output.path: {ledger.path}: an output is one folder, not a glob: leave the {wildcard} out")
    for kind in (RESULTS, ERRORS):
        if any(True for _ in ledger.store.list(f"{kind}/")):
            raise OutputError(
                f"{ledger.path}/{kind} holds objects, but there is no magbatch job here: set output.path to a new place"
            )


def check_input(spec: JobSpec, plan: Plan, done: "np.ndarray[Any, np.dtype[np.int64]]") -> None:
    """Ask the store of the input for one file that is to be read, before engines start and readers wait for it.

    Args:
        spec: The job.
        plan: Its plan.
        done: Rows that are done, by shard.

    Raises:
        InputError: The store refuses it, and does so for seconds: who gets access may get it late.
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
            return  # it says so for its rows
        except StorageError as error:
            if error.lasting or error.refused:
                raise
            # Away for now: readers wait that out.

    try:
        patiently(ask, FIRST_PATIENCE_S)
    except StorageError as error:
        raise InputError(f"input.path {spec.input.path}: {error}") from error


@contextmanager
def under_way() -> Iterator[None]:
    """What a person has to mend in the middle of a job loses nothing: it is said that the job goes on."""
    try:
        yield
    except StorageError as error:
        if error.lasting and not error.mistake:
            error.add_note("What was committed stays: once this is mended, the same command goes on.")
        raise


def new_plan(spec: JobSpec, ledger: Ledger, limit: int | None) -> Plan:
    """The plan of a job that has none yet.

    Raises:
        OutputError: The output holds objects of something else.
        SpecError: The job is one that runs by its schedule.
        JobError: As `make_plan` does.
    """
    check_unused(ledger)
    if spec.input.incremental and limit is None:
        raise SpecError(
            "input.incremental: such a job runs by its schedule: magbatch schedule tick SPEC; or --limit N for a trial"
        )
    return make_plan(spec, limit)


@contextmanager
def first_look(*, new: bool = False) -> Iterator[None]:
    """What an output refuses at first, and will go on to refuse, is a wrong output.path; a full disk is, to a new job.

    Args:
        new: Nothing of the job is there yet.
    """
    try:
        yield
    except StorageError as error:
        if error.wrong_at_first:
            raise OutputError(f"output.path: {error}") from error
        if new and error.full:
            raise OutputError(f"output.path: {error}; make room there, or set output.path to another disk") from error
        raise
