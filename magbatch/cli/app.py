"""The `magbatch` command.

Heavy packages are imported inside the commands, so `--help` answers at once.

Exit codes: 0 complete. 1 too many dead letters, or not verified. 2 wrong spec or input. 3 interrupted; repeat the same
command to continue. 4 a defect in magbatch.
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

CRASHED = 4  # exit code of a defect


class _Commands(typer.core.TyperGroup):
    """Group of all commands. Control characters in their output, usage errors included, are shown as escapes."""

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
    help="Run very large offline jobs of reasoning models over text and image documents.",
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
    """Run the command in this process, then end the process."""
    code = _exit_code()
    # A library may have turned the interrupt into another error.
    if guard.was_interrupted() and code not in {0, guard.INTERRUPTED}:
        guard.leave_interrupted()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # the reader has closed the pipe
            stream.flush()
    guard.announce(code)
    # The interpreter's teardown is skipped. Native thread pools can abort there ("terminate called without an active
    # exception", seen after a complete job), and the command would end with the wrong code.
    atexit._run_exitfuncs()
    os._exit(code)


def _exit_code() -> int:
    """Run the command; returns one of the exit codes above, whatever the command raises."""
    try:
        app()
    except SystemExit as end:
        if not isinstance(end.code, int | None):  # a text: Python itself would exit with 1
            with plain_streams():
                print(end.code, file=sys.stderr)
            return CRASHED
        code = end.code or 0
        return code if 0 <= code <= CRASHED else CRASHED
    except KeyboardInterrupt:
        guard.leave_interrupted()
    except Exception:  # noqa: BLE001 - a defect must not get the exit code of a job
        if not guard.was_interrupted():
            with plain_streams():
                traceback.print_exc()
        return CRASHED
    return 0
