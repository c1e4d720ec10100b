"""Find the input files behind `input.path`, each real file once.

Tables (whose files hold deleted rows too) and outputs of jobs are refused.
"""

import os
from collections import Counter
from dataclasses import dataclass, field

from magbatch.errors import InputError, SpecError
from magbatch.spec import is_remote
from magbatch.storage.base import ObjectInfo
from magbatch.storage.formats import advice, counted
from magbatch.storage.globs import WILDCARD, is_below, matches
from magbatch.storage.search_bucket import find_in_bucket
from magbatch.storage.search_disk import find_on_disk
from magbatch.storage.tables import ANSWERS, RUNS

# Names that a job writes and that a glob could select: below its output, and below one run of a schedule.
_WRITTEN = tuple(
    f"{run}{kind}/00000000-0-0000.n1.parquet" for run in ("", f"{RUNS}/2026-11-24T06-00-00Z/") for kind in ANSWERS
)


@dataclass(slots=True)
class FoundInput:
    """Files behind an `input.path`.

    Attributes:
        files: Input files, sorted by name; names are whole paths or URLs.
        passed_over: Number of other files in a directory, by suffix; files whose names start with `_` or `.` are not
            counted.
    """

    files: list[ObjectInfo]
    passed_over: Counter[str] = field(default_factory=Counter)

    @property
    def notes(self) -> list[str]:
        """Notes for the user, a sentence each."""
        count = self.passed_over.total()
        if not count:
            return []
        were = "file that is not *.parquet was" if count == 1 else "files that are not *.parquet were"
        return [f"{count:,} {were} passed over: {counted(self.passed_over)}"]


def find_input(path: str, *, may_be_none: bool = False) -> FoundInput:
    """Find the input files behind a path.

    Names that start with `_` or `.` are skipped unless the glob spells them out. A file that links give several names
    is found once, by the name without links.

    Args:
        path: File, directory (every *.parquet below it), or glob in which `**` crosses folders; local or s3://.
        may_be_none: Whether it is not an error if no file matches. A missing directory or bucket always is.

    Raises:
        InputError: No file matches, a file belongs to a table or to a job's output, or the path can never be listed.
        StorageError: The path cannot be listed now.
    """
    found = FoundInput(*(find_in_bucket(path) if is_remote(path) else find_on_disk(path)))
    if not found.files and not may_be_none:
        kind = "no file matches the glob" if WILDCARD.search(path) else "no *.parquet file here"
        if found.passed_over:
            kind += f", but {counted(found.passed_over)}; {advice(path, found.passed_over)}"
        raise InputError(f"input.path {path}: {kind}")
    found.files.sort(key=lambda file: file.name)
    return found


def input_folder(path: str) -> str:
    """Return the folder of an `input.path`: a file's folder, a glob's folder before wildcards, or the folder itself.

    >>> input_folder("/in/2026-*/x.parquet"), input_folder("*.parquet"), input_folder("s3://bucket/in/")
    ('/in', '.', 's3://bucket/in')
    """
    exists = not is_remote(path) and os.path.exists(path)
    wildcard = None if exists else WILDCARD.search(path)
    if wildcard or (exists and not os.path.isdir(path)):
        fixed = path[: wildcard.start()] if wildcard else path
        folder, slash, _ = fixed.rpartition("/")
        return folder or slash or "."
    return path.rstrip("/") or "/"


def check_apart(input_path: str, output_path: str) -> None:
    """Refuse a job that would read its own answers, or write among its input.

    Raises:
        SpecError: The input lies inside the output, or the output inside the input.
    """
    output, folder = _real(output_path), _real(input_folder(input_path))
    is_glob = folder != _real(input_path) and WILDCARD.search(input_path) is not None
    if is_glob and is_below(output, folder) and output != folder:
        pattern = [*folder.split("/"), *input_path[len(input_folder(input_path)) :].strip("/").split("/")]
        reached = any(matches([*output.split("/"), *name.split("/")], pattern) for name in _WRITTEN)
    else:
        given = folder if is_glob else _real(input_path)
        reached = is_below(output, given) or is_below(given, output)
    if reached:
        raise SpecError(
            f"output.path {output_path} and input.path {input_path} lie one inside the other: the job would read its "
            "own answers; give each its own folder"
        )


def _real(path: str) -> str:
    return path.rstrip("/") if is_remote(path) else os.path.realpath(path)
