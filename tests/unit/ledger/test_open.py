"""Opening an output."""

import io
from pathlib import Path

import pytest
from rich.console import Console
from support.small_job import SmallJob

from magbatch.errors import LeaseError, StorageError
from magbatch.ledger.holder import holder_of
from magbatch.ledger.open import hold, patient_ledger, refusal_shown
from magbatch.storage import open_store


def test_an_output_is_held_by_one_command_at_a_time(tmp_path: Path) -> None:
    said: list[str] = []
    with hold(str(tmp_path), said.append, command=("compact",)) as lease:
        lease.check()
        with pytest.raises(LeaseError, match="another run is working on it"), hold(str(tmp_path), said.append):
            pytest.fail("two commands hold one output")
        holder = holder_of(open_store(str(tmp_path)))
        assert holder is not None
        assert (holder.command, holder.released) == (("compact",), False)
    with hold(str(tmp_path), said.append):
        assert said == []


def test_a_refusal_is_shown_once_for_each_try(job: SmallJob) -> None:
    console = Console(file=io.StringIO(), width=200)
    refusal_shown(console, "the output's storage")(StorageError("503 [SlowDown]", passing=True))
    assert console.file.getvalue() == "the output's storage refuses, trying again: 503 [SlowDown]\n"  # type: ignore[attr-defined]


def test_a_job_that_has_begun_is_patient(job: SmallJob) -> None:
    job.set("output", patience_s=0.5)
    ledger = patient_ledger(job.spec(), Console(file=io.StringIO()))
    assert (ledger.path, ledger.store.patience_s, ledger.refusals) == (job.output, 0.5, 0)
