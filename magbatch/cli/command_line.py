"""Command lines that a user can paste: they start magbatch as the user did, and quote each word for a shell."""

import os
import re
import shlex
import shutil
import sys

_COMMAND = re.compile(
    r"(?<![\w./-])magbatch "
    r"(?=(?:plan|run|status|verify|retry|compact|submit|jobs|logs|cancel|resume|deploy|schedule|bench) )"
)


def command(*words: str) -> str:
    """Command line of magbatch.

    Args:
        words: Words after `magbatch`.

    >>> command("verify", "out/my job")  # in an activated environment
    "magbatch verify 'out/my job'"
    >>> command("verify", "out/my job")  # under `uv run`
    "uv run --no-sync magbatch verify 'out/my job'"
    """
    return f"{_prefix()} {shlex.join(words)}"


def again(verb: str, spec: str, overrides: list[str] | None = None, limit: int | None = None) -> str:
    """Another command about the same job.

    Args:
        verb: Command, such as `run` or `schedule tick`.
        spec: File of the spec, or output of the job.
        overrides: Values of `--set`.
        limit: Value of `--limit`.

    >>> again("run", "my job.yaml", ["sampling.n=2"], 10)
    "magbatch run 'my job.yaml' --set sampling.n=2 --limit 10"
    """
    return command(*verb.split(), spec, *set_options(overrides), *([] if limit is None else ["--limit", str(limit)]))


def set_options(overrides: list[str] | tuple[str, ...] | None) -> list[str]:
    """Options of `--set`, as words: `["--set", "sampling.n=2"]`."""
    return [word for item in overrides or [] for word in ("--set", item)]


def with_prefix(text: str) -> str:
    """A message in which each command (`magbatch verify OUTPUT`) starts as the user's own."""
    return _COMMAND.sub(lambda _: f"{_prefix()} ", text)


def _prefix() -> str:
    """Words that start magbatch as the user did. None of them installs packages."""
    if "UV_RUN_RECURSION_DEPTH" in os.environ:  # uv sets this variable for the command of `uv run`
        return "uv run --no-sync magbatch"
    typed, found = sys.argv[0], shutil.which("magbatch")
    is_found = found is not None and os.path.realpath(found) == os.path.realpath(typed)
    if is_found or os.path.basename(typed) != "magbatch":
        return "magbatch"
    return shlex.quote(typed)  # for example .venv/bin/magbatch, if the environment is not activated


def shown_path(output: str) -> str:
    """An output as a person writes it: relative to the working directory if it lies below that."""
    relative = os.path.relpath(output) if not output.startswith("s3://") else output
    return output if relative.startswith("..") else relative


def output_path(path: str) -> str:
    """Full path of an output that a person wrote; s3:// URLs stay as they are."""
    return path if path.startswith("s3://") else os.path.abspath(os.path.expanduser(path))
