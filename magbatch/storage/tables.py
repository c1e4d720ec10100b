"""Folders that no one should read as plain Parquet files, told by what lies in them.

The files of a table hold rows that were deleted or replaced as well: what is in force stands in its log alone.
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
MOST_NAMES = 1000  # of an object store's folder that is looked at for each kind of mark: a table's own sort first
_UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
# What lies directly in a folder of each kind. Delta, Hudi, Iceberg (names of its Hadoop and other catalogues, GZIP at
# either end), Paimon ("File Layouts"), Lance ("Dataset Directory"), transactional tables of Hive (AcidUtils: folders of
# write ids, which are seven digits long and so are no dates).
_KINDS = {
    "Delta": r"_delta_log(?=/)",
    "Hudi": r"\.hoodie(?=/)",
    "Iceberg": rf"metadata/(?:version-hint\.text|(?:v\d+|\d+-{_UUID})(?:\.gz)?\.metadata\.json(?:\.gz)?)$",
    "Paimon": r"(?:snapshot/snapshot|schema/schema)-\d+$",
    "Lance": r"_versions/[^/]+\.manifest$",
    "Hive": r"(?:(?:delete_)?delta_\d{7}_\d{7}(?:_\d{4})?|base_\d{7})(?:_v\d+)?(?=/)",
    OUTPUT: rf"{OUTPUT}/(?!{DRAFTS.removeprefix(OUTPUT + '/')})",  # any written object leaves a place for drafts
}
_MARK = re.compile("(?:^|/)(?:" + "|".join(f"(?P<{kind}>{name})" for kind, name in _KINDS.items()) + ")")
_MARKED = ("_delta_log/", ".hoodie/", "metadata/", "snapshot/", "schema/", "_versions/")  # where the marks lie
_EXPORTS = {
    "Delta": by_duckdb("COPY (FROM delta_scan('{table}')) TO 'rows.parquet'"),
    "Iceberg": by_duckdb("COPY (FROM iceberg_scan('{table}')) TO 'rows.parquet'"),
    "Hudi": "Spark: spark.read.format('hudi').load('{table}').write.parquet(…)",
    "Paimon": "Spark: spark.read.format('paimon').load('{table}').write.parquet(…)",
    "Lance": "Python: pyarrow.parquet.write_table(lance.dataset('{table}').to_table(), 'rows.parquet')",
    "Hive": "Hive: INSERT OVERWRITE DIRECTORY … STORED AS PARQUET SELECT * FROM the table that lies at {table}",
}


def marks(key: str) -> Iterator[tuple[str, str]]:
    """The folders that a key marks as tables or outputs, and as what.

    >>> list(marks("lake/t/_delta_log/0.json")), list(marks("t/day=1/base_0000003/000000_0"))
    ([('lake/t', 'Delta')], [('t/day=1', 'Hive')])
    """
    for found in _MARK.finditer(key):
        yield key[: found.start()], str(found.lastgroup)


def marks_of_folder(store: S3Store, folder: str) -> Iterator[str]:
    """The kinds of a folder in object storage that was not listed."""
    base = f"{folder}/" if folder else ""
    with suppress(RefusedError):  # who may not list it cannot know
        for place in (*_MARKED, "base_", "delta_", "delete_delta_"):
            for item in islice(store.list(f"{base}{place}"), MOST_NAMES):
                yield from (kind for marked, kind in marks(item.name) if marked == folder)


def folder_kind(folder: str, folders: Iterable[str], *, listed: bool) -> str | None:
    """The kind of table that a folder on a disk is.

    Args:
        folder: Its path.
        folders: Names of folders in it that are known.
        listed: Whether to look for more; one that may not be listed is taken as it is known.
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
    """What is to be done about a table in the input."""
    return InputError(
        f"input.path {path}: {folder} is {'an' if kind == 'Iceberg' else 'a'} {kind} table, and its files hold rows "
        f"that were deleted or replaced as well; give Parquet files of its current rows, for example by "
        f"{_EXPORTS[kind].format(table=folder)}"
    )
