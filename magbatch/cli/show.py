"""What every command shows alike: errors, JSON documents, paths, exit codes."""

import errno
import os
import re
import shlex
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from magbatch import guard
from magbatch.terminal import json_text, visible

if TYPE_CHECKING:
    from rich.console import Console

_ROOM = "make room there, or name another place"
_RIGHTS = "give this user the right to write there, or name another place"
# What a machine refuses wherever it is asked, and what to do: no defect of magbatch.
_OF_THE_MACHINE = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EROFS: _RIGHTS,
    errno.EACCES: _RIGHTS,
    errno.EMFILE: "raise the limit of open files: ulimit -n 4096",
    errno.ENFILE: "raise the limit of open files of this machine: sysctl fs.file-max",
}


@contextmanager
def errors(as_json: bool) -> Iterator[None]:
    """A job's error is one clear message and its exit code."""
    from magbatch.errors import DefectError, InterruptedJobError, JobError, LeaseError, SettingsError
    from magbatch.storage import contact

    before = signal.signal(signal.SIGTERM, guard.interrupt)  # a platform's SIGTERM is as a person's Ctrl-C
    try:
        try:
            _check_folder()
            with contact.command():
                yield
        except KeyboardInterrupt as interrupt:
            raise InterruptedJobError(guard.LEFT) from interrupt
        except SystemExit as end:  # by a library: a command's own ends are `typer.Exit`
            defect = DefectError(f"SystemExit: a library ended the command, saying {str(end.code)!r}")
            defect.add_note("".join(traceback.format_exception(end)).rstrip())
            raise defect from end
        except OSError as error:
            if error.errno not in _OF_THE_MACHINE:
                raise
            where = error.filename or "this machine"
            what_to_do = _OF_THE_MACHINE[error.errno]
            raise SettingsError(f"{where}: {error.strerror}; {what_to_do}") from error
    except JobError as error:
        from magbatch.spec.secrets import without_secrets

        # What a person has set, and what a library says of it, may hold a secret.
        said = without_secrets(str(error))
        guard.tell_starter(said)
        if as_json:
            print_json({"error": type(error).__name__, "message": said, "exit_code": error.exit_code}, indent=None)
        else:
            notes = map(without_secrets, getattr(error, "__notes__", []))
            print(f"magbatch: {with_prefix(said)}", *notes, sep="\n", file=sys.stderr)
        if error.exit_code == 3 and not as_json and not isinstance(error, LeaseError):  # the other run goes on
            print("Run the same command again to go on.", file=sys.stderr)
        raise typer.Exit(error.exit_code) from error
    finally:
        signal.signal(signal.SIGTERM, before)


def _check_folder() -> None:
    """Refuse to work from a folder that is gone: no path could be told in full, and libraries ask for it too."""
    from magbatch.errors import SettingsError

    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise SettingsError(
            "Working directory: the folder that this command was started in is gone; change to one that is there"
        ) from error


def counted(what: str, every_s: float = 5.0) -> Callable[[int, int], None]:
    """Show on stderr how far a long command is: `12,000 of 40,000 objects checked`.

    Args:
        what: Words after the numbers.
        every_s: Seconds between two lines, and before the first.
    """
    shown = time.monotonic()

    def show(done: int, all_of_them: int) -> None:
        nonlocal shown
        if time.monotonic() - shown >= every_s:
            shown = time.monotonic()
            print(f"{done:,} of {all_of_them:,} {what}", file=sys.stderr, flush=True)

    return show


_COMMAND = re.compile(
    r"(?<![\w./-])magbatch "
    r"(?=(?:plan|run|status|verify|retry|compact|submit|jobs|logs|cancel|resume|deploy|schedule|bench) )"
)


def command(*words: str) -> str:
    """A magbatch command as the user can paste it here, each word quoted where a shell needs that.

    `command("verify", "out/my job")` is `magbatch verify 'out/my job'` in an activated environment, and
    `uv run --no-sync magbatch verify 'out/my job'` under `uv run`.
    """
    return f"{_prefix()} {shlex.join(words)}"


def with_prefix(text: str) -> str:
    """A message whose commands (`magbatch verify OUTPUT`) begin as they must here."""
    return _COMMAND.sub(lambda _: f"{_prefix()} ", text)


def _prefix() -> str:
    """The words that start magbatch: as the user did, but never touching the environment."""
    if "UV_RUN_RECURSION_DEPTH" in os.environ:  # uv sets it for the command that `uv run` starts
        return "uv run --no-sync magbatch"
    typed, found = sys.argv[0], shutil.which("magbatch")
    is_found = found is not None and os.path.realpath(found) == os.path.realpath(typed)
    if is_found or os.path.basename(typed) != "magbatch":
        return "magbatch"
    return shlex.quote(typed)  # .venv/bin/magbatch, of an environment that is not activated


def note(text: str) -> None:
    """Print one line for a person, beside what the command prints for programs."""
    print(text, file=sys.stderr)


def print_json(data: Any, indent: int | None = 1) -> None:
    """Print one document for a program, on standard output."""
    print(json_text(data, indent))


@contextmanager
def live_console() -> Iterator["Console"]:
    """A console for progress, on a stderr of its own: what Ray and native code say stays off the live line.

    It steers the terminal; the texts that it is given do not.
    """
    from rich.console import Console
    from rich.text import Text

    class Plain(Console):
        def print(self, *objects: Any, **more: Any) -> None:
            super().print(*map(plain, objects), **more)

    def plain(item: Any) -> Any:
        if isinstance(item, Text):  # what a thread prints while the live line is there
            return Text("\n").join(Text(visible(line.plain), line.style) for line in item.split("\n"))
        return visible(item) if isinstance(item, str) else item

    with os.fdopen(os.dup(2), "w") as stderr:
        yield Plain(file=stderr)


def exit_code(*, too_many_failed: bool) -> int:
    """The exit code of a job that is complete: nothing that happens while this is told changes it."""
    code = 1 if too_many_failed else 0
    guard.announce(code)
    return code


def shown_path(output: str) -> str:
    """An output as a person writes it: relative to the working directory, if it is below that."""
    relative = os.path.relpath(output) if not output.startswith("s3://") else output
    return output if relative.startswith("..") else relative


def output_path(path: str) -> str:
    """The full path of an output that a person has written."""
    return path if path.startswith("s3://") else os.path.abspath(os.path.expanduser(path))


def again(verb: str, spec: str, overrides: list[str] | None = None, limit: int | None = None) -> str:
    """Another command on the same job: with its `--set` and `--limit`, each word quoted for a shell.

    >>> again("run", "my job.yaml", ["sampling.n=2"], 10)
    "magbatch run 'my job.yaml' --set sampling.n=2 --limit 10"
    """
    sets = [word for item in overrides or [] for word in ("--set", item)]
    return command(*verb.split(), spec, *sets, *([] if limit is None else ["--limit", str(limit)]))
