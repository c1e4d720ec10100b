"""The job that `status`, `verify`, `retry` and `compact` are about: named by its output, or by its spec."""

import os
import shlex
from dataclasses import dataclass

from magbatch.cli.show import again, command, output_path, shown_path

SPEC_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True, slots=True)
class Target:
    """A job as a person has named it.

    Attributes:
        output: Path or URL of its output, in full.
        named: Word of the command line that named it.
        spec: The spec's file; None where the output was named.
        overrides: `--set` of the command line that decide the spec.
        limit: `--limit` of the command line.
        schedule: The spec's file, where the job is a run of a schedule.
    """

    output: str
    named: str
    spec: str | None = None
    overrides: tuple[str, ...] = ()
    limit: int | None = None
    schedule: str | None = None

    def again(self, verb: str) -> str:
        """Another command about this job, named in the same way."""
        return again(verb, self.named, list(self.overrides), self.limit)

    def run(self, *more: str, started: tuple[str, ...] | None = None) -> str:
        """The command that goes on with the job, with more of `--set`.

        Without the user's spec, it is the one that lies in the output, which says the same; `run` takes no s3://.

        Args:
            more: Items of `--set`.
            started: The command line after `magbatch` that started the job's last run: `run`, its spec, its options.
        """
        spec, sets = self.spec, [*self.overrides, *more]
        if self.schedule is not None:
            return command("schedule", "tick", self.schedule, *(word for item in sets for word in ("--set", item)))
        if spec is None:
            stored = f"{self.output}/_magbatch/spec.yaml"
            if not stored.startswith("s3://"):
                spec = shown_path(stored)
            elif started is not None and os.path.exists(started[1]):
                verb, path, *options = started
                return command(verb, shown_path(path), *options, *(word for item in sets for word in ("--set", item)))
            else:
                also = "".join(f" with --set {shlex.quote(item)}" for item in sets)
                return f"run the job's spec again{also}"
        return again("run", spec, sets, self.limit)


def target(named: str, overrides: list[str] | None = None, limit: int | None = None) -> Target:
    """The job that a path names: a .yaml or .yml file is a spec, anything else an output.

    Args:
        named: The path.
        overrides: `key.path=value` items over the spec.
        limit: Rows of a sample, whose output is its own.

    Raises:
        SpecError: The spec is wrong; or an output was named together with what a spec alone takes.
        OutputError: The spec's job was not begun.
    """
    from magbatch.errors import OutputError, SpecError
    from magbatch.spec import load, reachable

    if not named.endswith(SPEC_SUFFIXES) or os.path.isdir(named):
        if overrides or limit is not None:
            option = "--set" if overrides else "--limit"
            raise SpecError(f"{option}: changes a spec; {named} is an output: name the spec instead, or leave it out")
        try:
            return Target(output_path(reachable(named)), named)
        except ValueError as error:
            raise OutputError(f"OUTPUT {named!r}: {error}") from error
    from magbatch.jobs.opening import limited
    from magbatch.ledger.ledger import Ledger

    spec = limited(load(named, overrides), limit)
    output = spec.output.path
    found = Target(output, named, named, tuple(overrides or ()), limit)
    if spec.schedule is not None and limit is None and Ledger(output).spec() is None:
        return Target(_latest_run(named, output), named, None, tuple(overrides or ()), schedule=named)
    if Ledger(output).spec() is None:
        raise OutputError(f"{output}: no job here yet; {named} is begun by: {found.run()}")
    return found


def _latest_run(named: str, output: str) -> str:
    """The output of the last run of a schedule that had files.

    Raises:
        OutputError: There was none yet.
    """
    from magbatch.errors import OutputError
    from magbatch.schedule.history import EMPTY, History

    history = History(output)
    ran = [tick for tick, state in history.ticks().states.items() if state != EMPTY]
    if not ran:
        folder = os.path.dirname(named) or "."
        raise OutputError(
            f"{output}: no run of this schedule yet; when the next is due: magbatch schedule list {folder}"
        )
    return history.run_path(max(ran))
