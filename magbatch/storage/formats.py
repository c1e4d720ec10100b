"""Files that are not Parquet: recognise their format, and give a shell command that converts them."""

import os
import re
import shlex
import zlib
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

HEAD_BYTES = 4096  # start of a file: enough for its signature, or for a line of text
_PYTHON = "python -c {program}"  # the program needs DuckDB's package, or pyarrow
_PACKING_MARKS: tuple[tuple[bytes, Literal["gzip", "zstd"]], ...] = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
)
_PACKED = re.compile(r"\.(gz|zst|bz2|xz|zip|lz4|br)$", re.IGNORECASE)
_UNPACK = {"gzip": "gunzip -c", "zstd": "zstd -dc"}


@dataclass(frozen=True, slots=True)
class Format:
    """A common file format for rows.

    Attributes:
        name: Name for messages.
        suffixes: Suffixes of file names.
        read: DuckDB function that reads the format, or name of a pyarrow dataset format.
        by_arrow: Whether `read` is a pyarrow format.
    """

    name: str
    suffixes: tuple[str, ...]
    read: str
    by_arrow: bool = False


CSV = Format("CSV", (".csv", ".tsv", ".txt"), "read_csv")
JSON = Format("JSON", (".json", ".jsonl", ".ndjson"), "read_json")
AVRO = Format("Avro", (".avro",), "read_avro")
EXCEL = Format("Excel", (".xlsx",), "read_xlsx")
ARROW = Format("Arrow IPC", (".arrow", ".feather", ".ipc"), "ipc", by_arrow=True)
ORC = Format("ORC", (".orc",), "orc", by_arrow=True)
_FORMATS = (CSV, JSON, AVRO, EXCEL, ARROW, ORC)
_MARKS = {b"Obj\x01": AVRO, b"PK\x03\x04": EXCEL, b"ARROW1": ARROW, b"ORC": ORC}
_PARQUET = (".parq", ".pq", ".parquet")  # suffixes of Parquet files


@dataclass(frozen=True, slots=True)
class Foreign:
    """A file that is not Parquet.

    Attributes:
        what: Words for a message: the format, or the fault of the file.
        kind: Format of the rows; None if no command converts the file.
        packing: Compression of the whole file: `gzip`, `zstd` or None.
    """

    what: str
    kind: Format | None = None
    packing: str | None = None


def by_name(path: str) -> Format | None:
    """Return the format that a file's suffix names, or None."""
    bare = _PACKED.sub("", path).lower()
    return next((one for one in _FORMATS if bare.endswith(one.suffixes)), None)


def by_bytes(path: str, head: bytes) -> Foreign | None:
    """Recognise a file by its first bytes. Its name decides if several formats fit.

    Args:
        path: Path of the file.
        head: First bytes, up to `HEAD_BYTES`.

    Returns:
        The file's kind; None if the bytes match nothing.
    """
    for mark, packing in _PACKING_MARKS:
        if head.startswith(mark):
            return _packed(path, _unpacked(head, packing), packing)
    if head.startswith(b"PAR1"):
        return Foreign("a Parquet file that is cut off: its end is missing")
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        return Foreign("a pointer of Git LFS; fetch the file itself: git lfs pull")
    for mark, kind in _MARKS.items():
        if head.startswith(mark) and (kind is not EXCEL or by_name(path) is EXCEL):
            return Foreign(kind.name, kind)
    text = _of_text(path, head)
    return None if text is None else Foreign(text.name, text)


def _packed(path: str, inner: bytes, packing: str) -> Foreign:
    if inner.startswith(b"PAR1"):
        unpack = f"{_UNPACK[packing]} < {shlex.quote(path)} > {shlex.quote(target_of(path))}"
        return Foreign(f"a Parquet file within {packing}; unpack it and remove this file: {unpack}")
    kind = _of_text(path, inner)
    return Foreign(f"{kind.name} within {packing}" if kind else f"a {packing} file", kind, packing if kind else None)


def _unpacked(head: bytes, packing: Literal["gzip", "zstd"]) -> bytes:
    """Return the start of the uncompressed content; empty if it cannot be had from so few bytes."""
    if packing == "gzip":
        with suppress(zlib.error):
            return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(head, HEAD_BYTES)
        return b""
    found = bytearray()
    with suppress(OSError, pa.ArrowException), pa.CompressedInputStream(pa.BufferReader(head), packing) as stream:
        while len(found) < HEAD_BYTES and (more := stream.read(256)):
            found += more
    return bytes(found)


def _of_text(path: str, head: bytes) -> Format | None:
    text = head.removeprefix(b"\xef\xbb\xbf").strip()
    if not text or any(byte < 32 and byte not in b"\t\n\r\f\x1b" for byte in text):
        return None
    if text[:1] in b"{[":
        return JSON
    named, line = by_name(path), text.splitlines()[0]
    return CSV if named is CSV or any(mark in line for mark in b",;\t|") else None


def command(kind: Format, sources: list[str], target: str, packing: str | None = None) -> str:
    """Return a shell command that makes one Parquet file.

    Args:
        kind: Format of the sources.
        sources: Paths, URLs or globs.
        target: Path or URL of the Parquet file.
        packing: Compression of the sources, `gzip` or `zstd`; used if their names do not show it.
    """
    if kind.by_arrow:
        listed = [f"*g.glob({source!r}, recursive=True)" for source in sources]
        given = repr(sources[0]) if sources[0].startswith("s3://") else f"[{', '.join(listed)}]"
        return _PYTHON.format(
            program=_quoted(
                "import glob as g, pyarrow.dataset as d, pyarrow.parquet as p; "
                f"p.write_table(d.dataset({given}, format={kind.read!r}).to_table(), {target!r})"
            )
        )
    texts = [_sql(source) for source in sources]
    options = f", compression={_sql(packing)}" if packing and not all(map(_PACKED.search, sources)) else ""
    given = texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"
    many = len(texts) > 1 or "*" in sources[0]
    union = ", union_by_name=true" if many and kind in (CSV, JSON) else ""
    return by_duckdb(f"COPY (FROM {kind.read}({given}{union}{options})) TO {_sql(target)}")


def by_duckdb(sql: str) -> str:
    """Return a shell command that runs a statement with DuckDB's Python package, which is more common than its CLI."""
    literal = repr(sql) if "'''" in sql or "\\" in sql else f"'''{sql} '''"
    return _PYTHON.format(program=_quoted(f"import duckdb; duckdb.sql({literal})"))


def _sql(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _quoted(text: str) -> str:
    """Return text as one shell word, in double quotes if they are enough."""
    return shlex.quote(text) if re.search(r'["$`\\!]', text) else f'"{text}"'


def target_of(path: str) -> str:
    """Name the Parquet file that is made of a file, a folder or a glob.

    >>> target_of("/in/x.csv.gz"), target_of("/in/"), target_of("s3://b/in/*/y-*.csv"), target_of("/in/x.parquet")
    ('/in/x.parquet', '/in.parquet', 's3://b/in.parquet', '/in/x.made.parquet')
    """
    fixed = re.split(r"[*?\[]", path, maxsplit=1)[0]
    if fixed != path:
        fixed = fixed.rpartition("/")[0]
    bare = _PACKED.sub("", fixed.rstrip("/"))
    stem, suffix = os.path.splitext(bare)
    if suffix.lower() in _PARQUET:
        return f"{stem}.made.parquet"
    if any(suffix.lower() in one.suffixes for one in _FORMATS):
        bare = stem
    return f"{bare or 'rows'}.parquet"


def suffix_of(name: str) -> str:
    """Return a file name's suffix, with that of its compression; empty if there is none.

    >>> suffix_of("a/b.c/x.csv.gz"), suffix_of("a/x.v2.json"), suffix_of("a/x")
    ('.csv.gz', '.json', '')
    """
    base = name.rpartition("/")[2]
    packed = _PACKED.search(base)
    return os.path.splitext(_PACKED.sub("", base))[1] + (packed.group() if packed else "")


def ranked(suffixes: "Counter[str]") -> list[str]:
    """Sort suffixes, the most frequent first."""
    return sorted(suffixes, key=lambda one: (-suffixes[one], one))


def counted(suffixes: "Counter[str]") -> str:
    """Format the counts of suffixes for a message: `2 .csv, 1 without suffix`."""
    listed = [f"{suffixes[suffix]:,} {suffix or 'without suffix'}" for suffix in ranked(suffixes)[:10]]
    more = len(suffixes) - 10
    return ", ".join(listed) + (f" and of {more} more kinds" if more > 0 else "")


def advice(folder: str, suffixes: "Counter[str]") -> str:
    """Make advice for a folder without `*.parquet` files.

    Args:
        folder: Path or URL of the folder.
        suffixes: Number of files of each suffix.
    """
    names, folder = ranked(suffixes), folder.rstrip("/")
    parquet = next((one for one in names if one.lower() in _PARQUET), None)
    if parquet is not None:
        return f"if they are Parquet, name them with a glob: input.path: {folder}/**/*{parquet}"
    kind = next((found for found in map(by_name, names) if found is not None), None)
    if kind is None:
        return "magbatch reads Parquet"
    sources = [f"{folder}/**/*{one}" for one in names if by_name(one) is kind]
    target = target_of(folder)
    return f"make Parquet of them, and set input.path to {target}: {command(kind, sources, target)}"
