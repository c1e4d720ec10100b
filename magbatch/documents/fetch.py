"""Fetch the bytes that a row holds or names, within limits of size and time.

A row is untrusted data. It may name files of the input's folder, objects of the input's bucket, files and objects below
`input.fetch_from`, and public hosts of the internet; `input.fetch_private` adds private hosts. A source that is
forbidden or cannot be fetched is an error of that row alone.

Requests go out with this machine's identity: a public server sees its address, and the job's credentials read the
input's bucket.
"""

import base64
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os import fsdecode
from typing import Any
from urllib.parse import unquote_to_bytes

import httpx

from magbatch.documents import web
from magbatch.errors import ErrorCode, LateError, OutOfReachError, RowError, UnfetchableError
from magbatch.spec import InputSpec
from magbatch.storage.references import References

MAX_PATH_BYTES = 4095  # longest path on Linux: PATH_MAX without the null byte at its end
MAX_SHOWN = 200  # characters of a source, or of a reason, in a message
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(//)?")
# Base64 text of a PNG, JPEG, PDF, GIF, WebP or TIFF.
_BASE64 = re.compile(r"(iVBORw0KGgo|/9j/|JVBERi|R0lGOD|UklGR|SUkqA|TU0AK)[A-Za-z0-9+/\s]{16,}={0,2}\s*")


@dataclass(frozen=True, slots=True)
class Kind:
    """Names and error codes for fetching images, or documents.

    Attributes:
        noun: Noun for messages.
        limit_name: Name of the spec's field that limits the size.
        unreadable: Error code of a value that is neither bytes nor a reference.
        too_large: Error code of content above the limit.
        unfetchable: Error code of content that does not arrive.
    """

    noun: str
    limit_name: str
    unreadable: ErrorCode
    too_large: ErrorCode
    unfetchable: ErrorCode


IMAGE = Kind(
    "an image",
    "limits.max_image_bytes",
    ErrorCode.IMAGE_UNREADABLE,
    ErrorCode.IMAGE_TOO_LARGE,
    ErrorCode.IMAGE_UNFETCHABLE,
)
DOCUMENT = Kind(
    "a document",
    "limits.max_document_bytes",
    ErrorCode.DOCUMENT_UNREADABLE,
    ErrorCode.DOCUMENT_TOO_LARGE,
    ErrorCode.DOCUMENT_UNFETCHABLE,
)


class Fetcher:
    """Maker of a fetcher for each row.

    Args:
        spec: Input section of the spec, which lists the folders, buckets and hosts that rows may name.
    """

    def __init__(self, spec: InputSpec) -> None:
        self._references = References(spec.path, spec.fetch_from)
        self._timeout_s = spec.fetch_timeout_s
        self._private = spec.fetch_private

    def for_row(self) -> "RowFetcher":
        """Return a fetcher for all sources of one row; they share `input.fetch_timeout_s`."""
        return RowFetcher(self._references, self._timeout_s, private=self._private)


class RowFetcher:
    """Fetcher of the images and documents that one row holds or names. Not thread-safe.

    Args:
        references: Reader of files and objects that rows name.
        timeout_s: Seconds that all fetches of the row may take together.
        private: Whether the row may name hosts in private networks.
    """

    def __init__(self, references: References, timeout_s: float, *, private: bool) -> None:
        self._references = references
        self._timeout_s = self._left_s = timeout_s
        self._private = private

    def __call__(self, source: Any, folder: str, limit: int, origin: str, kind: Kind) -> bytes:
        """Return the bytes of one image or document.

        Args:
            source: Bytes, a path, or an s3://, http(s)://, file:// or data: URL.
            folder: Folder of the row's own file, where relative paths start.
            limit: Largest number of bytes.
            origin: Column and position of the source in its row, for messages.
            kind: `IMAGE` or `DOCUMENT`.

        Raises:
            RowError: The source cannot be fetched, is forbidden, or is too large.
            StorageError: The store of the input is away.
        """
        data = self._load(source, folder, limit, origin, kind)
        if len(data) > limit:
            raise RowError(kind.too_large, f"{origin}: more than {kind.limit_name} = {limit}")
        return data

    def _load(self, source: Any, folder: str, limit: int, origin: str, kind: Kind) -> bytes:
        if isinstance(source, bytes):
            return source
        if not isinstance(source, str):
            raise RowError(
                kind.unreadable, f"{origin}: {kind.noun} is bytes, a path or a URL, not {type(source).__name__}"
            )
        if source[:5].lower() == "data:":
            try:
                return base64.b64decode(source.partition(",")[2], validate=True)
            except ValueError as error:
                raise RowError(kind.unreadable, f"{origin}: the data URL is not base64: {error}") from error
        where = f"{origin}: {_short(source)}"
        try:
            with self._running() as deadline:
                return self._fetch(source, folder, limit, deadline)
        except FileNotFoundError as error:
            is_relative = _SCHEME.match(source) is None and not source.startswith("/")
            base = f" in {folder}, the folder of the row's own file" if is_relative else ""
            raise RowError(kind.unfetchable, f"{where}: no such file or object{base}") from error
        except LateError as error:
            late = f"not fetched within input.fetch_timeout_s = {self._timeout_s:g}, which all sources of a row share"
            raise RowError(kind.unfetchable, f"{where}: {late}") from error
        except OutOfReachError as error:
            raise RowError(ErrorCode.URL_REFUSED, f"{where}: {error}") from error
        except (UnfetchableError, httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            # ValueError: for example a host name that IDNA forbids, or a path with a null byte.
            reason = str(error) or type(error).__name__
            raise RowError(kind.unfetchable, f"{where}: {_short(reason)}") from error

    @contextmanager
    def _running(self) -> Iterator[float]:
        """Subtract the time of a block from the row's time.

        Yields:
            Deadline of the row: time of the monotonic clock (seconds).
        """
        began = time.monotonic()
        try:
            yield began + self._left_s
        finally:
            self._left_s -= time.monotonic() - began

    def _fetch(self, source: str, folder: str, limit: int, deadline: float) -> bytes:
        found = _SCHEME.match(source)
        scheme, rest = (found[1].lower(), source[found.end() :]) if found else ("", source)
        if scheme in ("http", "https"):
            return web.get(source, limit, deadline, private=self._private)
        if scheme == "s3" and found and found[2]:
            return self._references.read(f"s3://{rest}", folder, limit, deadline)
        if scheme == "file" and found:
            return self._references.read(_path_of(source[found.end(1) + 1 :]), folder, limit, deadline)
        if found and found[2]:
            raise UnfetchableError(
                f"the scheme {found[1]}:// is not known; write a path, or an s3, https, http, file or data URL"
            )
        if len(source.encode()) > MAX_PATH_BYTES or _BASE64.fullmatch(source):
            raise UnfetchableError(
                f"{len(source):,} characters that are neither a path nor a URL; base64 is written as "
                "data:image/png;base64,… or kept as bytes"
            )
        return self._references.read(source, folder, limit, deadline)


def _path_of(rest: str) -> str:
    """Return the path of a file: URL (RFC 8089).

    Args:
        rest: URL without `file:`.

    Raises:
        UnfetchableError: The URL names a file of another machine.

    >>> _path_of("//localhost/in/a%20b.png"), _path_of("/in/c.png")
    ('/in/a b.png', '/in/c.png')
    """
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        if host.lower() not in ("", "localhost"):
            raise UnfetchableError(f"file://{host}/… names another machine; write file:///path")
        rest = slash + path
    return fsdecode(unquote_to_bytes(rest))


def _short(text: str) -> str:
    """Return a text for a message: cut if it is long, and valid Unicode."""
    shown = text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN // 2]}… ({len(text):,} characters)"
    return shown.encode(errors="replace").decode()
