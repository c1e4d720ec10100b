"""What a row gives or names -> its bytes, bounded in size and time.

A row is data: what it names is fetched only where the job's owner would have it fetched. An address in a private
network is refused, however it is spelled, resolved or redirected to, unless the spec allows it; so is a file of the
node's own disk in a job whose input lies elsewhere.
"""

import base64
import functools
import ipaddress
import os
import socket
import ssl
import threading
import time
import urllib.request
import zlib
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import httpcore
import httpx
from tenacity import Retrying, retry_if_exception, stop_after_attempt, stop_after_delay, wait_random_exponential

from magbatch.errors import ErrorCode, RowError, StorageError
from magbatch.spec import is_remote
from magbatch.storage.inputs import read_at_most
from magbatch.storage.s3 import NoBucketError, RefusedError

MAX_REDIRECTS = 5
FETCH_TRIES = 3  # of an URL whose server is overloaded, restarts, or drops the connection
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")  # RFC 4291: all that is assigned for the internet
_PLATFORMS = ipaddress.ip_network("168.63.129.16/32")  # Azure's own service, reachable from each of its machines
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address


@dataclass(frozen=True, slots=True)
class Kind:
    """What is fetched, for limits and errors.

    Attributes:
        noun: For messages.
        limit_name: Of the spec's field that bounds its bytes.
        unreadable: The code of what is neither bytes nor a reference.
        too_large: The code of what is above the limit.
        unfetchable: The code of what does not come.
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


class _PrivateAddressError(Exception):
    """A host in a private network."""


class Fetcher:
    """Loads what rows hold or name.

    Args:
        input_path: Where the job's rows lie.
        timeout_s: Seconds that one URL may take, all tries and redirects included.
        private: Whether rows may name addresses in private networks, and local files where the input is remote.
    """

    def __init__(self, input_path: str, timeout_s: float, *, private: bool) -> None:
        self._input_path = input_path
        self._timeout_s = timeout_s
        self._private = private

    def __call__(self, source: Any, folder: str, limit: int, origin: str, kind: Kind) -> bytes:
        """The bytes of one image or document.

        Args:
            source: Bytes, a path, or an s3://, http(s)://, file:// or data: URL.
            folder: Where relative paths begin.
            limit: Bytes that it may have.
            origin: Where in the row it stands, for messages.
            kind: What it is.

        Raises:
            RowError: It cannot be had, may not be had, or is too large.
            StorageError: The storage that it lies in is away.
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
        if source.startswith("data:"):
            try:
                return base64.b64decode(source.partition(",")[2], validate=True)
            except ValueError as error:
                raise RowError(kind.unreadable, f"{origin}: the data URL is not base64: {error}") from error
        try:
            return self._reference(source, folder, limit, origin)
        except FileNotFoundError as error:
            raise RowError(kind.unfetchable, f"{origin}: {source}: no such file or object") from error
        except StorageError as error:
            if error.passing and not self._is_of_the_row(error, source):
                raise
            raise RowError(kind.unfetchable, f"{origin}: {source}: {error}") from error
        except _PrivateAddressError as error:
            raise RowError(ErrorCode.URL_REFUSED, f"{origin}: {source}: {error}") from error
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            # A ValueError: a host that IDNA refuses, a path with a null byte.
            reason = str(error) or type(error).__name__
            raise RowError(kind.unfetchable, f"{origin}: {source}: {reason}") from error

    def _is_of_the_row(self, error: StorageError, source: str) -> bool:
        """Whether a place was refused that only this row names: a store that is away is no fault of its rows."""
        if isinstance(error, NoBucketError):
            return source.split("/")[:3] != self._input_path.split("/")[:3]  # the input's own bucket is there, mostly
        return isinstance(error, RefusedError)

    def _reference(self, source: str, folder: str, limit: int, origin: str) -> bytes:
        if source.startswith(("http://", "https://")):
            return _get(source, limit, self._timeout_s, private=self._private)
        path = unquote(source.removeprefix("file://")) if source.startswith("file://") else source
        if not is_remote(path) and not os.path.isabs(path):
            path = f"{folder}/{path}"
        if is_remote(self._input_path) and not is_remote(path) and not self._private:
            raise RowError(
                ErrorCode.URL_REFUSED,
                f"{origin}: {source}: a file of the node, though the input lies on S3; input.fetch_private allows it",
            )
        return read_at_most(path, limit)


@functools.cache
def _tls() -> ssl.SSLContext:
    return httpx.create_ssl_context()  # 30 ms of CPU: once a process, not once an image


def _get(url: str, limit: int, timeout_s: float, *, private: bool) -> bytes:
    """A URL's content; what may pass by itself is tried again, while there is time."""
    deadline = time.monotonic() + timeout_s
    return Retrying(
        retry=retry_if_exception(_may_pass),
        wait=wait_random_exponential(multiplier=0.5, max=5.0),
        stop=stop_after_attempt(FETCH_TRIES) | stop_after_delay(timeout_s),
        reraise=True,
    )(_get_once, url, limit, timeout_s, deadline, private)


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code in _PASSING
    return isinstance(error, httpx.NetworkError | httpx.RemoteProtocolError)


def _get_once(url: str, limit: int, timeout_s: float, deadline: float, private: bool) -> bytes:
    transport = _Transport(_Network(deadline, private=private), proxies=private)
    # What a server compresses all the same is inflated here, within the limit: httpx would do it without one.
    headers = {"Accept-Encoding": "identity"}
    try:
        with (
            httpx.Client(
                follow_redirects=True, max_redirects=MAX_REDIRECTS, timeout=None, transport=transport, headers=headers
            ) as client,
            client.stream("GET", url) as response,
        ):  # fmt: skip
            response.raise_for_status()
            data = bytearray()
            for chunk in response.iter_raw():
                data += chunk
                if len(data) > limit:
                    break
            return _inflated(bytes(data), response.headers.get("Content-Encoding", "identity"), limit)
    except httpx.TimeoutException as error:
        raise httpx.ReadTimeout(f"not fetched within input.fetch_timeout_s = {timeout_s:g}") from error


def _inflated(data: bytes, encoding: str, limit: int) -> bytes:
    if encoding == "identity":
        return data
    if encoding not in ("gzip", "deflate"):
        raise httpx.DecodingError(f"the server sends Content-Encoding {encoding}, which was not asked for")
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(data, limit + 1)  # 32: either header
    except zlib.error as error:
        raise httpx.DecodingError(f"Content-Encoding {encoding}: {error}") from error


class _Transport(httpx.BaseTransport):
    """httpx's own, over a network of ours, for which httpx has no public place.

    Args:
        network: Makes every connection.
        proxies: Whether to heed the proxies of the environment, which resolve names by themselves.
    """

    def __init__(self, network: httpcore.NetworkBackend, *, proxies: bool) -> None:
        self._network, self._proxies = network, proxies
        self._direct = self._over(httpcore.ConnectionPool(ssl_context=_tls(), network_backend=network))
        self._proxied: dict[str, httpx.HTTPTransport] = {}

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """See `httpx.BaseTransport.handle_request`."""
        url = request.url
        proxy = urllib.request.getproxies().get(url.scheme) if self._proxies else None
        if not proxy or urllib.request.proxy_bypass(url.host):
            return self._direct.handle_request(request)
        if proxy not in self._proxied:
            parsed = httpx.Proxy(proxy)
            pool = httpcore.HTTPProxy(
                str(parsed.url), parsed.raw_auth, ssl_context=_tls(), network_backend=self._network
            )
            self._proxied[proxy] = self._over(pool)
        return self._proxied[proxy].handle_request(request)

    def close(self) -> None:
        """See `httpx.BaseTransport.close`."""
        for transport in (self._direct, *self._proxied.values()):
            transport.close()

    @staticmethod
    def _over(pool: httpcore.ConnectionPool) -> httpx.HTTPTransport:
        transport = httpx.HTTPTransport(verify=_tls())
        transport._pool = pool
        return transport


class _Network(httpcore.NetworkBackend):
    """Connects to the very address that was looked at, so that no second answer counts, and all before a deadline.

    Args:
        deadline: By the monotonic clock (seconds).
        private: Whether private networks may be connected to.
    """

    def __init__(self, deadline: float, *, private: bool) -> None:
        self._deadline, self._private = deadline, private
        self._backend = httpcore.SyncBackend()

    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, local_address: str | None = None,
        socket_options: Any = None,
    ) -> httpcore.NetworkStream:  # fmt: skip
        """See `httpcore.NetworkBackend.connect_tcp`."""
        addresses = _resolved(host, port, _left(self._deadline))
        for address in addresses:
            if not self._private and not is_public(address):
                raise _PrivateAddressError(
                    f"{host} is {address}, in a private network; input.fetch_private: true allows it"
                )
        left = _left(self._deadline)
        stream = self._backend.connect_tcp(addresses[0], port, left, local_address, socket_options)
        return _Stream(stream, self._deadline)


class _Stream(httpcore.NetworkStream):
    """A connection whose every operation ends before a deadline: headers that drip, too."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: float) -> None:
        self._stream, self._deadline = stream, deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """See `httpcore.NetworkStream.read`."""
        return self._stream.read(max_bytes, _left(self._deadline))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """See `httpcore.NetworkStream.write`."""
        self._stream.write(buffer, _left(self._deadline))

    def close(self) -> None:
        """See `httpcore.NetworkStream.close`."""
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        """See `httpcore.NetworkStream.start_tls`."""
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, _left(self._deadline)), self._deadline)

    def get_extra_info(self, info: str) -> Any:
        """See `httpcore.NetworkStream.get_extra_info`."""
        return self._stream.get_extra_info(info)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout("late")
    return left


def _resolved(host: str, port: int, timeout_s: float) -> list[str]:
    """Addresses of a host; the resolver itself takes no timeout."""
    answer: list[list[str] | Exception] = []

    def resolve() -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            answer.append([str(entry[4][0]) for entry in found])
        except (OSError, UnicodeError) as error:
            answer.append(error)

    thread = threading.Thread(target=resolve, daemon=True)
    thread.start()
    thread.join(timeout_s)
    if not answer:
        raise httpcore.ConnectTimeout(f"{host} is not resolved")
    if isinstance(answer[0], UnicodeError):
        raise answer[0]
    if isinstance(answer[0], Exception):
        raise httpcore.ConnectError(f"{host}: {answer[0]}") from answer[0]
    return answer[0]


def is_public(address: str) -> bool:
    """Whether an IP address is one of the internet, by IANA's registries; so must be an IPv4 one that it holds."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        return ip in _GLOBAL_UNICAST and ip.is_global
    return ip.is_global and not ip.is_multicast and ip not in _PLATFORMS
