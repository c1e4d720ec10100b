"""Output of `bench`: tables, targets met, and where the details are."""

from typing import TYPE_CHECKING

from magbatch.cli.command_line import command
from magbatch.cli.show import say, say_next
from magbatch.counts import counted

if TYPE_CHECKING:
    from magbatch.bench.run import Outcome


def print_bench(suite: str, outcome: "Outcome", seconds: float, report: str | None, folder: str | None) -> None:
    """Print the result of a benchmark for a person.

    Args:
        suite: Name of the suite.
        outcome: Result of the benchmark.
        seconds: Duration of the benchmark.
        report: File with every run; None if not written.
        folder: Folder with the files that the arms read and wrote; None if not kept.
    """
    say(outcome.markdown)
    targets = sum(target["bound"] is not None for target in outcome.document["targets"])
    met = f"{targets - outcome.missed} of {counted(targets, 'target')} met"
    say(f"\nbench {suite}: {met}, in {counted(round(seconds / 60), 'minute')}")
    if report is not None:
        say(f"  every run: {report}")
    if folder is not None:
        say(f"  files of the arms: {folder}")
    say_next(command("bench", "all" if suite != "all" else "SUITE", "--json", "bench.json"))
