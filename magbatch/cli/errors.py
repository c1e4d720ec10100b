"""Errors of a command: each ends it with one clear message and an exit code."""

import errno
import os
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from magbatch import guard
from magbatch.cli.command_line import with_prefix
from magbatch.cli.show import note, print_json

if TYPE_CHECKING:
    from magbatch.errors import JobError

_FREE_SPACE = "free space there, or choose another folder"
_GRANT_ACCESS = "let this user write there, or choose another folder"
# Errors of the machine, not of magbatch, and what to do about each.
_OF_THE_MACHINE = {
    errno.ENOSPC: _FREE_SPACE,
    errno.EDQUOT: _FREE_SPACE,
    errno.EROFS: _GRANT_ACCESS,
    errno.EACCES: _GRANT_ACCESS,
    errno.EMFILE: "raise the limit of open files: ulimit -n 4096",
    errno.ENFILE: "raise the limit of open files of this machine: sysctl fs.file-max",
}


@contextmanager
def errors(as_json: bool) -> Iterator[None]:
    """Turn a job's error into one message and its exit code.

    Args:
        as_json: Whether the message is a JSON document for a program.
    """
    from magbatch.errors import DefectError, InterruptedJobError, JobError, SettingsError
    from magbatch.storage import contact

    before = signal.signal(signal.SIGTERM, guard.interrupt)  # a platform sends SIGTERM where a person presses Ctrl-C
    try:
        try:
            _check_folder()
            with contact.command():
                yield
        except KeyboardInterrupt as interrupt:
            raise InterruptedJobError(guard.LEFT) from interrupt
        except SystemExit as end:  # raised by a library: a command of ours ends by `typer.Exit`
            defect = DefectError(f"SystemExit: a library ended the command, saying {str(end.code)!r}")
            defect.add_note("".join(traceback.format_exception(end)).rstrip())
            raise defect from end
        except OSError as error:
            if error.errno not in _OF_THE_MACHINE:
                raise
            where = error.filename or "this machine"
            remedy = _OF_THE_MACHINE[error.errno]
            raise SettingsError(f"{where}: {error.strerror}; {remedy}") from error
    except JobError as error:
        _print_error(error, as_json=as_json)
        raise typer.Exit(error.exit_code) from error
    finally:
        signal.signal(signal.SIGTERM, before)


def _print_error(error: "JobError", *, as_json: bool) -> None:
    from magbatch.errors import LeaseError
    from magbatch.spec.secrets import without_secrets

    # Settings, and messages of libraries about them, may hold secrets.
    said = without_secrets(str(error))
    guard.tell_starter(said)
    if as_json:
        print_json({"error": type(error).__name__, "message": said, "exit_code": error.exit_code}, indent=None)
        return
    notes = map(without_secrets, getattr(error, "__notes__", []))
    note(f"magbatch: {with_prefix(said)}", *notes)
    if error.exit_code == 3 and not isinstance(error, LeaseError):  # LeaseError: another command has the job
        note("Run the same command again to continue.")


def _check_folder() -> None:
    """Check that the working directory exists: paths could not be shown in full, and libraries need it too.

    Raises:
        SettingsError: The directory was deleted.
    """
    from magbatch.errors import SettingsError

    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise SettingsError(
            "Working directory: the folder that this command was started in no longer exists; change to another folder"
        ) from error


def exit_code(*, too_many_failed: bool) -> int:
    """Exit code of a complete job, announced at once: errors while its result is printed do not change it.

    Args:
        too_many_failed: Whether more rows failed than the spec allows, or no row was answered.
    """
    code = 1 if too_many_failed else 0
    guard.announce(code)
    return code
