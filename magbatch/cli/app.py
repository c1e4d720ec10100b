"""The `magbatch` command. Each command parses first and imports what is heavy after, so that `--help` answers at once.

Exit codes: 0 complete; 1 finished with more dead letters than the spec allows, or not verified;
2 bad spec or input; 3 interrupted, and the same command goes on; 4 a defect in magbatch.
"""

import atexit
import os
import sys
import traceback
from contextlib import suppress
from typing import Annotated, Any

import typer
import typer.core

import magbatch
from magbatch import guard
from magbatch.cli import bench, deploy, output, remote, run, schedule
from magbatch.terminal import plain_streams

CRASHED = 4


class _Commands(typer.core.TyperGroup):
    """All commands; what any of them prints, usage errors too, is text, and steers no terminal."""

    def main(self, *args: Any, **more: Any) -> Any:
        with plain_streams():
            return super().main(*args, **more)


app = typer.Typer(
    name="magbatch",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Very large offline jobs of reasoning models over text and image documents.",
)
for family in (run, output, remote, bench):
    app.add_typer(family.commands)
app.add_typer(deploy.commands, name="deploy")
app.add_typer(schedule.commands, name="schedule")


def _version(show: bool) -> None:
    if show:
        print(f"magbatch {magbatch.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    return


def main() -> None:
    """Run the command in this process, and end it."""
    code = _exit_code()
    if guard.was_interrupted() and code not in {0, guard.INTERRUPTED}:  # whatever a library made of the interrupt
        guard.leave_interrupted()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # nobody reads any more
            stream.flush()
    guard.announce(code)
    # Not through the interpreter's teardown: native thread pools can abort there ("terminate called without
    # an active exception", seen after a complete job), and a finished command would end with the wrong code.
    atexit._run_exitfuncs()
    os._exit(code)


def _exit_code() -> int:
    """Run the command; what it ends with is one of the codes above, whatever it raises."""
    try:
        app()
    except SystemExit as end:
        if not isinstance(end.code, int | None):  # what Python itself makes 1 of
            with plain_streams():
                print(end.code, file=sys.stderr)
            return CRASHED
        code = end.code or 0
        return code if 0 <= code <= CRASHED else CRASHED
    except KeyboardInterrupt:
        guard.leave_interrupted()
    except Exception:  # noqa: BLE001 - a defect: its exit code must be none of those that say how a job ended
        if not guard.was_interrupted():
            with plain_streams():
                traceback.print_exc()
        return CRASHED
    return 0
