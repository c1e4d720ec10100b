"""Recognise folders whose Parquet files must not be read directly: tables, and outputs of jobs.

The files of a Delta, Iceberg or similar table also hold deleted and replaced rows. Only the table's log tells which
rows are current.
"""

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice

from magbatch.errors import InputError, RefusedError
from magbatch.storage.disk import DRAFTS
from magbatch.storage.formats import by_duckdb
from magbatch.storage.s3 import S3Store

OUTPUT = "_magbatch"
RUNS = "runs"  # folder of a schedule's output that holds the output of each run
ANSWERS = ("results", "errors")  # folders of an output that hold its answers and dead letters
MOST_NAMES = 1000  # names read below each marker prefix: one page of a listing, in which a table's own names sort first
_UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
# Marker names directly within a folder of each kind. Sources: Iceberg's Hadoop and other catalogues (metadata may be
# gzipped, with the suffix in two places); Paimon, "File Layouts"; Lance, "Dataset Directory"; Hive's AcidUtils, whose
# write ids have seven digits and so differ from dates.
_KINDS = {
    "Delta": r"_delta_log(?=/)",
    "Hudi": r"\.hoodie(?=/)",
    "Iceberg": rf"metadata/(?:version-hint\.text|(?:v\d+|\d+-{_UUID})(?:\.gz)?\.metadata\.json(?:\.gz)?)$",
    "Paimon": r"(?:snapshot/snapshot|schema/schema)-\d+$",
    "Lance": r"_versions/[^/]+\.manifest$",
    "Hive": r"(?:(?:delete_)?delta_\d{7}_\d{7}(?:_\d{4})?|base_\d{7})(?:_v\d+)?(?=/)",
    OUTPUT: rf"{OUTPUT}/(?!{DRAFTS.removeprefix(OUTPUT + '/')})",  # the folder for drafts exists after any write
}
_MARK = re.compile("(?:^|/)(?:" + "|".join(f"(?P<{kind}>{name})" for kind, name in _KINDS.items()) + ")")
_MARKED = ("_delta_log/", ".hoodie/", "metadata/", "snapshot/", "schema/", "_versions/")  # folders of the markers
_EXPORTS = {
    "Delta": by_duckdb("COPY (FROM delta_scan('{table}')) TO 'rows.parquet'"),
    "Iceberg": by_duckdb("COPY (FROM iceberg_scan('{table}')) TO 'rows.parquet'"),
    "Hudi": "Spark: spark.read.format('hudi').load('{table}').write.parquet(…)",
    "Paimon": "Spark: spark.read.format('paimon').load('{table}').write.parquet(…)",
    "Lance": "Python: pyarrow.parquet.write_table(lance.dataset('{table}').to_table(), 'rows.parquet')",
    "Hive": "Hive: INSERT OVERWRITE DIRECTORY … STORED AS PARQUET SELECT * FROM the table that lies at {table}",
}


def marks(key: str) -> Iterator[tuple[str, str]]:
    """Yield the folders that a key marks as a table or an output, and their kinds.

    >>> list(marks("lake/t/_delta_log/0.json")), list(marks("t/day=1/base_0000003/000000_0"))
    ([('lake/t', 'Delta')], [('t/day=1', 'Hive')])
    """
    for found in _MARK.finditer(key):
        yield key[: found.start()], str(found.lastgroup)


def marks_of_folder(store: S3Store, folder: str) -> Iterator[str]:
    """Yield the kinds of a folder in a bucket, by listing its marker prefixes.

    Args:
        store: Store of the whole bucket.
        folder: Key of the folder, without a slash at its end; empty for the bucket.
    """
    base = f"{folder}/" if folder else ""
    with suppress(RefusedError):  # without access to the folder, its kind stays unknown
        for place in (*_MARKED, "base_", "delta_", "delete_delta_"):
            for item in islice(store.list(f"{base}{place}"), MOST_NAMES):
                yield from (kind for marked, kind in marks(item.name) if marked == folder)


def folder_kind(folder: str, folders: Iterable[str], *, listed: bool) -> str | None:
    """Return the kind of table that a folder on a disk is, or None.

    Args:
        folder: Path of the folder.
        folders: Known names of folders within it.
        listed: Whether to list the folder for more names; if it may not be listed, the known names decide.
    """
    inside = [f"{name}/" for name in folders]
    if listed:
        with suppress(OSError):
            inside.extend(f"{name}/" for name in os.listdir(folder))
    for place in _MARKED:
        with suppress(OSError):
            inside.extend(f"{place}{name}" for name in os.listdir(os.path.join(folder, place)))
    return next((kind for name in inside for marked, kind in marks(name) if not marked and kind != OUTPUT), None)


def table_error(path: str, folder: str, kind: str) -> InputError:
    """Return the error about a table in the input, with a command that exports its current rows.

    Args:
        path: `input.path`, for messages.
        folder: Path or URL of the table.
        kind: Kind of the table, as `marks` names it.
    """
    return InputError(
        f"input.path {path}: {folder} is {'an' if kind == 'Iceberg' else 'a'} {kind} table, and its files also hold "
        f"deleted and replaced rows; give Parquet files of its current rows, for example by "
        f"{_EXPORTS[kind].format(table=folder)}"
    )


def refuse_output(path: str, folder: str) -> None:
    """Refuse the output of a job as input, unless the path names its folder of answers.

    Args:
        path: `input.path`, for messages.
        folder: Path or URL of the output.

    Raises:
        InputError: No component of the path is `results` or `errors`.
    """
    if not set(ANSWERS) & set(path.split("/")):
        raise InputError(
            f"input.path {path}: {folder} is the output of a job; its answers are {folder}/results/*.parquet, and "
            "other input needs a folder without it"
        )
