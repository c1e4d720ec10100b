"""Input files while a plan is made: the contents of their footers and paths, and problems with them."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256

from magbatch.errors import ErrorCode, ForeignError, InputError, RowError
from magbatch.plan.footers import FileFacts, PrefixColumn, read_footer
from magbatch.rows import Segment
from magbatch.spec import JobSpec
from magbatch.storage import ObjectInfo
from magbatch.storage.formats import Foreign, command, target_of
from magbatch.storage.input_file import open_input
from magbatch.storage.partitions import path_keys
from magbatch.storage.search import find_input

LISTED_FILES = 20  # bad files that a message names
FOOTER_READERS = 16  # footers are small and far away, so latency is the limit, not bandwidth


@dataclass(slots=True)
class PlannedFile:
    """An input file while a plan is made.

    Attributes:
        info: Path, size and tag from the listing.
        key: First 12 hex characters of the ids of the file's rows.
        facts: Content of the footer; None if the footer could not be read.
        digest: Fingerprint of a file on a disk; see `Segment.digest`.
        problem: Reason why the file cannot be used; None if it can.
        code: Error code of the problem.
        foreign: Format of the file, if it is not Parquet.
        keys: Values from the file's path, by column, for columns that the job reads and the file lacks.
    """

    info: ObjectInfo
    key: str
    facts: FileFacts | None = None
    digest: str | None = None
    problem: str | None = None
    code: ErrorCode | None = None
    foreign: Foreign | None = None
    keys: dict[str, str | None] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Number of rows; 0 if the footer could not be read."""
        return self.facts.rows if self.facts is not None else 0

    def refuse(self, code: ErrorCode, problem: str) -> None:
        """Mark the file as bad.

        Args:
            code: Error code of the dead letter that stands for the file.
            problem: Reason, without the file's name.
        """
        self.code, self.problem = code, RowError(code, f"{self.info.name}: {problem}").message

    def segment(self, start: int, rows: int) -> Segment:
        """Some consecutive rows of the file."""
        info = self.info
        return Segment(info.name, self.key, info.size, info.tag, start, rows, self.problem, self.code, self.digest)

    @property
    def listed(self) -> str:
        """The file's columns, for a message."""
        own = str(self.facts.names) if self.facts is not None else "[]"
        keys = path_keys(self.info.name)
        return f"{own}, and in its path {list(keys)}" if keys else own

    def has(self, name: str) -> bool:
        """Whether the file or its path has a column."""
        return self.facts is not None and (name in self.facts.schema.names or name in self.keys)


def list_files(spec: JobSpec, take: Callable[[ObjectInfo], bool] | None) -> tuple[list[PlannedFile], list[str]]:
    """The job's files, in the order of the listing, and notes about them.

    Raises:
        InputError: A file's name is not valid text, or a file is listed twice.
    """
    root = _root(spec.input.path)
    given = find_input(spec.input.path, may_be_none=take is not None)
    infos = [info for info in given.files if take is None or take(info)]
    unnamed = [info.name for info in infos if any("\ud800" <= char <= "\udfff" for char in info.name)]
    if unnamed:
        raise InputError(f"input.path {spec.input.path}: a file's name is not valid text: {unnamed[0]!r}; rename it")
    files = [PlannedFile(info, sha256(os.fsencode(_below(root, info.name))).hexdigest()[:12]) for info in infos]
    keys = {file.key for file in files}  # hashes of 48 bits: in practice, two files of an input never share one
    if len(keys) < len(files):
        raise InputError(f"input.path {spec.input.path}: a file is listed twice; give each file once")
    return files, list(given.notes)


def _root(path: str) -> str:
    """The directory of an input, up to a glob's first wildcard; row ids do not depend on it."""
    fixed = path
    for wildcard in "*?[":
        fixed = fixed.partition(wildcard)[0]
    if fixed == path and not path.endswith(".parquet"):
        return path.rstrip("/") + "/"
    return fixed.rpartition("/")[0] + "/"


def _below(root: str, name: str) -> str:
    return name[len(root) :] if name.startswith(root) else os.path.basename(name)


def read_footers(files: list[PlannedFile], names: list[str], group: list[str], prefix: PrefixColumn | None) -> None:
    """Read the footers of files, and mark files that lack a column as bad.

    Args:
        files: All files of an input; they are changed in place.
        names: Columns that the job reads.
        group: The column of `input.group`, if the spec names one; a file may lack it.
        prefix: Column that prompts start with; None if rows are not grouped.
    """
    with ThreadPoolExecutor(FOOTER_READERS) as pool:
        list(pool.map(lambda file: _read_footer(file, names, group, prefix), files))


def _read_footer(file: PlannedFile, names: list[str], group: list[str], prefix: PrefixColumn | None) -> None:
    info = file.info
    try:
        with open_input(info.name, info.size, info.tag) as source:
            file.facts = read_footer(source, [*names, *group], prefix)
            file.digest = source.digest
    except FileNotFoundError:
        file.refuse(ErrorCode.FILE_UNREADABLE, "it was listed but is gone")
    except RowError as error:
        file.foreign = error.foreign if isinstance(error, ForeignError) else None
        file.refuse(error.code, error.message.removeprefix(f"{info.name}: "))
    if file.facts is None:
        return
    there = file.facts.schema.names
    if not {*names, *group} <= {*there}:
        keys = path_keys(info.name)
        file.keys = {name: keys[name] for name in (*names, *group) if name in keys and name not in there}
    if not file.rows:  # some writers leave the columns out of a file without rows
        return
    missing = [name for name in names if not file.has(name)]
    twice = [name for name in names if there.count(name) > 1]
    if twice:
        file.refuse(ErrorCode.FILE_SCHEMA, f"has the column {', '.join(map(repr, twice))} twice")
    elif missing:
        lacks = f"lacks the column {', '.join(map(repr, missing))}"
        file.refuse(ErrorCode.FILE_SCHEMA, f"{lacks}; it has {file.listed}")


def bad_files_error(path: str, files: list[PlannedFile]) -> InputError:
    """Make the error for bad files, with advice.

    Args:
        path: Path of the input.
        files: All files of the input; at least one is bad.
    """
    bad = [file for file in files if file.problem is not None]
    advice = _conversion(path, files)
    if advice and len(files) == 1:
        return InputError(f"{bad[0].problem}; {advice}")
    listed = [f"  {file.problem}" for file in bad[:LISTED_FILES]]
    more = [f"  … and {len(bad) - LISTED_FILES} more"] if len(bad) > LISTED_FILES else []
    steps = [f"{advice[0].upper()}{advice[1:]}"] if advice else []
    if len(bad) < len(files):
        steps.append("Fix them, or set input.on_bad_file: dead_letter to run the rest.")
    return InputError("\n".join([f"{len(bad)} of {len(files)} input files cannot be used:", *listed, *more, *steps]))


def _conversion(path: str, files: list[PlannedFile]) -> str:
    """Advice on converting files of another format to Parquet; empty if no command can convert them.

    One command converts the whole input if all its files have the same format.
    """
    foreign = [(file.info.name, file.foreign) for file in files if file.foreign is not None]
    found = next(((name, one, one.kind) for name, one in foreign if one.kind is not None), None)
    if found is None:
        return ""
    name, first, kind = found
    whole = len(files) > 1 and len(foreign) == len(files) and all(one.kind is kind for _, one in foreign)
    source = path if whole else name
    what = "them" if whole else "it" if len(files) == 1 else "such a file"
    target = target_of(source)
    where = f", and set input.path to {target}" if whole or len(files) == 1 else ""
    return f"make Parquet of {what}{where}: {command(kind, [source], target, first.packing)}"
