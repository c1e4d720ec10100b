"""Output of `retry` and `compact`: what changed in a complete job."""

from typing import TYPE_CHECKING

from magbatch.cli.command_line import command, shown_path
from magbatch.cli.show import note, say, say_indented, say_next
from magbatch.counts import counted

if TYPE_CHECKING:
    from magbatch.jobs.compact import CompactOutcome
    from magbatch.jobs.retry import RetryOutcome


def print_retry(outcome: "RetryOutcome", output: str) -> None:
    """Print the outcome of a retry for a person.

    Args:
        outcome: The outcome.
        output: Path or URL of the job's output.
    """
    from magbatch.ledger.layout import errors_glob, results_glob

    if outcome.whole_files:
        whole = counted(outcome.whole_files, "dead letter is a whole file", "dead letters are whole files")
        say(
            f"{whole} that could not be read when the job was planned:",
            "  a retry does not read such files again; repair them and run them as a job of their own",
        )
    if not outcome.rows:
        say(f"{outcome.job}: nothing to retry: there are no {outcome.chosen}")
        say_next(command("status", shown_path(output)))
        return
    unchanged = outcome.rows - outcome.answered
    rows = counted(outcome.rows, "row")
    say(f"{outcome.job}: {rows} retried: {outcome.answered:,} answered, {unchanged:,} as before")
    say_indented(f"failed again: {code} {count:,}" for code, count in sorted(outcome.failed.items()))
    if outcome.truncated:
        say(f"  truncated again: {outcome.truncated:,}")
    say(f"  the job now: {counted(outcome.totals.answered, 'row')} answered, {outcome.totals.failed:,} failed")
    if outcome.totals.answered:
        say(f"  results: {results_glob(shown_path(output))}")
    if outcome.totals.failed:
        say(f"  dead letters: {errors_glob(shown_path(output))}")
    if outcome.why is not None:
        note(outcome.why)
    say_next(command("verify", shown_path(output)))


def print_drop(output: str, *, dropped: bool) -> None:
    """Print the outcome of `retry --drop` for a person.

    Args:
        output: Path or URL of the job's output.
        dropped: Whether there was an unfinished retry.
    """
    where = shown_path(output)
    say(f"{where}: {'the unfinished retry is dropped' if dropped else 'no retry is unfinished'}")
    say_next(command("status", where))


def print_compact(outcome: "CompactOutcome", output: str) -> None:
    """Print the outcome of a compaction for a person.

    Args:
        outcome: The outcome.
        output: Path or URL of the job's output.
    """
    from magbatch.ledger.layout import results_glob

    objects = counted(outcome.objects, "object")
    if outcome.merged:
        say(
            f"{outcome.job}: {counted(outcome.objects_before, 'object')} -> {outcome.objects:,}, "
            f"{outcome.bytes_before / 1e6:,.1f} MB -> {outcome.bytes / 1e6:,.1f} MB"
        )
    else:
        say(f"{outcome.job}: nothing to merge: {objects}, {outcome.bytes / 1e6:,.1f} MB")
    say(f"  results: {results_glob(shown_path(output))}")
    say_next(command("verify", shown_path(output)))
