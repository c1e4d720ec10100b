"""The job that `status`, `verify`, `retry` and `compact` work on: named by its output or by its spec."""

import os
import shlex
from dataclasses import dataclass

from magbatch.cli.command_line import again, command, output_path, set_options, shown_path

SPEC_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True, slots=True)
class Target:
    """A job as the user named it.

    Attributes:
        output: Full path or URL of its output.
        named: Word of the command line that named the job.
        spec: File of the spec; None if the output was named.
        overrides: Values of `--set` that change the spec.
        limit: Value of `--limit`.
        schedule: File of the spec if the job is a run of a schedule; else None.
    """

    output: str
    named: str
    spec: str | None = None
    overrides: tuple[str, ...] = ()
    limit: int | None = None
    schedule: str | None = None

    def again(self, verb: str) -> str:
        """Another command about the job, which names it in the same way."""
        return again(verb, self.named, list(self.overrides), self.limit)

    def run(self, *more: str, started: tuple[str, ...] | None = None) -> str:
        """The command that continues the job.

        Without the user's spec, the command names the spec stored in the output. `run` cannot read a spec from s3://;
        for such an output, the command line of the last run is repeated if its spec still exists on this machine.

        Args:
            more: Further values of `--set`.
            started: Command line after `magbatch` that started the last run: `run`, its spec, its options.
        """
        spec, sets = self.spec, [*self.overrides, *more]
        if self.schedule is not None:
            return command("schedule", "tick", self.schedule, *set_options(sets))
        if spec is None:
            from magbatch.ledger.layout import spec_of

            stored = spec_of(self.output)
            if not stored.startswith("s3://"):
                spec = shown_path(stored)
            elif started is not None and os.path.exists(started[1]):
                verb, path, *options = started
                return command(verb, shown_path(path), *options, *set_options(sets))
            else:
                also = "".join(f" with --set {shlex.quote(item)}" for item in sets)
                return f"run the job's spec again{also}"
        return again("run", spec, sets, self.limit)


def target(named: str, overrides: list[str] | None = None, limit: int | None = None) -> Target:
    """The job that a word of the command line names.

    Args:
        named: Path of a spec if it ends in .yaml or .yml, else path or URL of an output.
        overrides: `key.path=value` items over the spec.
        limit: Rows of a sample, which has an output of its own; None for the whole job.

    Raises:
        SpecError: The spec is wrong, or an option that changes a spec is given together with an output.
        OutputError: The output is not a possible path, or holds no job yet.
    """
    from magbatch.errors import OutputError, SpecError
    from magbatch.spec import load, reachable

    if not named.endswith(SPEC_SUFFIXES) or os.path.isdir(named):
        if overrides or limit is not None:
            option = "--set" if overrides else "--limit"
            raise SpecError(f"{option}: changes a spec, but {named} is an output; name the spec, or leave {option} out")
        try:
            return Target(output_path(reachable(named)), named)
        except ValueError as error:
            raise OutputError(f"OUTPUT {named!r}: {error}") from error
    from magbatch.jobs.limit import limited
    from magbatch.ledger.ledger import Ledger

    spec = limited(load(named, overrides), limit)
    output = spec.output.path
    found = Target(output, named, named, tuple(overrides or ()), limit)
    if Ledger(output).spec() is not None:
        return found
    if spec.schedule is not None and limit is None:
        return Target(_latest_run(named, output), named, None, tuple(overrides or ()), schedule=named)
    raise OutputError(f"{output}: no job here yet; to start the job of {named}: {found.run()}")


def _latest_run(spec: str, output: str) -> str:
    """Output of a schedule's latest run that had files.

    Args:
        spec: File of the spec.
        output: Output of the schedule.

    Raises:
        OutputError: There is no such run yet.
    """
    from magbatch.errors import OutputError
    from magbatch.schedule.history import EMPTY, History

    history = History(output)
    ran = [tick for tick, state in history.ticks().states.items() if state != EMPTY]
    if not ran:
        folder = os.path.dirname(spec) or "."
        raise OutputError(f"{output}: no run of this schedule yet; for its next tick: magbatch schedule list {folder}")
    return history.run_path(max(ran))
