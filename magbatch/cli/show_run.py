"""Output of `run`: the outcome of the job, the paths of its results, and a few samples."""

from typing import TYPE_CHECKING

from magbatch.cli.command_line import command, shown_path
from magbatch.cli.retry_hints import retry_command, retry_lines
from magbatch.cli.show import note, say, say_indented, say_next

if TYPE_CHECKING:
    from magbatch.jobs.run import RunOutcome


def print_run(outcome: "RunOutcome") -> None:
    """Print the outcome of a run for a person."""
    from magbatch.ledger.layout import errors_glob, page_of, results_glob

    report, totals, why = outcome.report, outcome.report.totals, outcome.why
    output = report.output
    unanswered = ", but no row was answered" if totals.failed and not totals.answered and why is None else ""
    say(f"{report.job}: {'complete already, nothing to do' if outcome.already else 'complete'}{unanswered}")
    say_indented(report.lines(already=outcome.already))
    if totals.answered:
        say(f"  results: {results_glob(shown_path(output))}")
    say(f"  report: {page_of(shown_path(output))}")
    if totals.failed and why is None:  # otherwise `why` names the dead letters
        say(f"  dead letters: {errors_glob(shown_path(output))}")
    say_indented(retry_lines(output, totals.by_code))
    for sample in outcome.samples:
        say(
            "sample:",
            f"  question:  {sample.question}",
            f"  reasoning: {sample.reasoning}",
            f"  answer:    {sample.answer}",
        )
    if why is not None:
        note(why)
    say_next(command("verify", shown_path(output)) if why is None else retry_command(output, totals.by_code))
