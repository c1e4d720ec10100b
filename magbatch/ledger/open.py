"""Opening an output: with patience for its storage, and held by one command at a time."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

from magbatch.errors import StorageError
from magbatch.ledger.lease import Lease
from magbatch.ledger.ledger import Ledger
from magbatch.spec import JobSpec
from magbatch.storage import open_store


def refusal_shown(console: Console, what: str) -> Callable[[StorageError], None]:
    """Make a function that shows a refusal of the storage while it is waited out.

    Args:
        console: Console that shows the line.
        what: Name of the storage in the line.
    """

    def say(error: StorageError) -> None:
        console.print(f"{what} refuses, trying again: {error}", markup=False, highlight=False)

    return say


def patient_ledger(spec: JobSpec, console: Console) -> Ledger:
    """The ledger of a job that has started; its storage may be away for `output.patience_s`."""
    return Ledger(spec.output.path, spec.output.patience_s, refusal_shown(console, "the output's storage"))


def lease_on(
    path: str, say: Callable[[str], None], patience_s: float = 0.0, command: tuple[str, ...] = ("run",)
) -> Lease:
    """Make a lease on an output without taking it; the arguments are those of `hold`."""
    return Lease(open_store(path, quick=True), say, patience_s, command)


@contextmanager
def hold(
    path: str, say: Callable[[str], None], patience_s: float = 0.0, command: tuple[str, ...] = ("run",)
) -> Iterator[Lease]:
    """Hold an output for the length of a block.

    Args:
        path: Local directory or s3:// prefix of the output.
        say: Function that shows one line to a person.
        patience_s: Seconds that the output's storage may refuse before the holder gives up.
        command: Command line of the holder after `magbatch`, without the output.

    Raises:
        LeaseError: Another command works on the output.
        OutputError: The output cannot be written, or its store cannot keep two runs apart.
        StorageError: The output's storage is away.
    """
    lease = lease_on(path, say, patience_s, command)
    with lease.acquire():
        yield lease
