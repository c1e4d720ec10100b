"""Fetch http:// and https:// URLs of public hosts, within limits of size and time.

A host in a private network is refused unless the spec allows it. Every address that the name resolves to is checked,
and the connection goes to a checked address. So spelling, DNS and redirects cannot lead inside. Proxies of the
environment are used only if private hosts are allowed, since a proxy resolves names by itself.

The deadline covers name resolution, connecting, TLS, headers and content. TLS certificates are verified.
"""

import functools
import socket
import ssl
import threading
import time
import urllib.request
import zlib
from http import HTTPStatus
from typing import Any

import httpcore
import httpx
from tenacity import Retrying, retry_if_exception, stop_after_attempt, stop_before_delay, wait_random_exponential

from magbatch.documents.addresses import is_public
from magbatch.errors import LateError, OutOfReachError

MAX_REDIRECTS = 5
FETCH_TRIES = 3  # tries of a URL whose server is overloaded, restarts, or drops the connection
# Bytes inflated at once: a file of many tiny members must not copy all of its rest for each of them.
WINDOW_BYTES = 4096
_GZIP = b"\x1f\x8b"  # first bytes of each member of a gzip file
_INFLATED = frozenset({"gzip", "x-gzip", "deflate"})
# Other compressions. Any other name, such as aws-chunked or utf-8, says nothing about the bytes and is ignored.
_COMPRESSIONS = frozenset(
    {"br", "zstd", "dcb", "dcz", "compress", "x-compress", "exi", "pack200-gzip"}
    | {"bzip2", "x-bzip2", "xz", "lzma", "lz4", "snappy"}
)
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})


@functools.cache
def _tls() -> ssl.SSLContext:
    return httpx.create_ssl_context()  # takes 30 ms of CPU: made once per process, not once per image


def get(url: str, limit: int, deadline: float, *, private: bool) -> bytes:
    """Return a URL's content; at most limit + 1 bytes of it, so that the caller sees if it is larger.

    Errors that may pass are retried while there is time.

    Args:
        url: URL with http:// or https://.
        limit: Bytes that the caller accepts, after decompression.
        deadline: Time of the monotonic clock (seconds) at which the fetch ends, all tries and redirects
            included.
        private: Whether hosts in private networks may be contacted.

    Raises:
        OutOfReachError: A host is in a private network.
        LateError: The deadline has passed.
        httpx.HTTPError, httpx.InvalidURL, ValueError: The server refuses, or the URL is wrong.
    """
    timeout_s = max(0.0, deadline - time.monotonic())
    return Retrying(
        retry=retry_if_exception(_may_pass),
        wait=wait_random_exponential(multiplier=0.5, max=5.0),
        stop=stop_after_attempt(FETCH_TRIES) | stop_before_delay(timeout_s),
        reraise=True,
    )(_get_once, url, limit, deadline, private)


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code in _PASSING
    return isinstance(error, httpx.NetworkError | httpx.RemoteProtocolError)


def _get_once(url: str, limit: int, deadline: float, private: bool) -> bytes:
    transport = _Transport(_Network(deadline, private=private), proxies=private)
    # Servers may compress anyway. `_decoded` inflates within the limit; httpx would inflate without one.
    headers = {"Accept-Encoding": "identity"}
    try:
        with (
            httpx.Client(
                follow_redirects=True, max_redirects=MAX_REDIRECTS, timeout=None, transport=transport, headers=headers
            ) as client,
            client.stream("GET", url) as response,
        ):  # fmt: skip
            response.raise_for_status()
            if response.status_code == HTTPStatus.PARTIAL_CONTENT:
                raise httpx.DecodingError("the server sends partial content, though all of it was requested")
            data = bytearray()
            for chunk in response.iter_raw():  # raises if the body ends before its Content-Length
                data += chunk
                if len(data) > limit:
                    return bytes(data)
            return _decoded(bytes(data), response.headers.get("Content-Encoding", ""), limit, deadline)
    except httpx.TimeoutException as error:
        raise LateError from error


def _decoded(data: bytes, encodings: str, limit: int, deadline: float) -> bytes:
    """Undo the content encodings of a body, the last one first (RFC 9110, 8.4).

    Args:
        data: Body of the response.
        encodings: Value of the `Content-Encoding` header.
        limit: Bytes that the caller accepts.
        deadline: Time of the monotonic clock (seconds).

    Raises:
        httpx.DecodingError: The body is damaged, or its encoding is not supported.
    """
    for encoding in reversed([name.strip().lower() for name in encodings.split(",")]):
        if encoding in _COMPRESSIONS:
            raise httpx.DecodingError(f"the server sends Content-Encoding {encoding}, though none was requested")
        if encoding in _INFLATED and len(data) <= limit:
            try:
                data = _inflated(data, limit, deadline)
            except (zlib.error, EOFError) as error:
                raise httpx.DecodingError(f"Content-Encoding {encoding}: {error}") from error
    return data


def _inflated(data: bytes, limit: int, deadline: float) -> bytes:
    """Inflate all members of a gzip or zlib file, at most limit + 1 bytes. Other bytes after a member are padding.

    Raises:
        zlib.error: The data is damaged.
        EOFError: The data is cut off.
        LateError: The deadline has passed.
    """
    found, at = bytearray(), 0
    while True:
        member = zlib.decompressobj(zlib.MAX_WBITS | 32)  # 32: accept the header of gzip or zlib
        while not member.eof:
            if time.monotonic() > deadline:
                raise LateError
            window = data[at : at + WINDOW_BYTES]
            if not window:
                raise EOFError("the compressed content is cut off")
            found += member.decompress(window, limit + 1 - len(found))
            at += len(window) - len(member.unconsumed_tail) - len(member.unused_data)
            if len(found) > limit:
                return bytes(found)
        rest = data[at : at + len(_GZIP)]
        if not rest or not _GZIP.startswith(rest):
            return bytes(found)


class _Transport(httpx.BaseTransport):
    """httpx's transport over our own network backend. httpx has no public way to set it, so `_over` sets `_pool`.

    Args:
        network: Backend that makes every connection.
        proxies: Whether to use the proxies of the environment, which resolve names by themselves.
    """

    def __init__(self, network: httpcore.NetworkBackend, *, proxies: bool) -> None:
        self._network, self._proxies = network, proxies
        self._direct = self._over(httpcore.ConnectionPool(ssl_context=_tls(), network_backend=network))
        self._proxied: dict[str, httpx.HTTPTransport] = {}

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; see `httpx.BaseTransport.handle_request`."""
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
        """Close all connections; see `httpx.BaseTransport.close`."""
        for transport in (self._direct, *self._proxied.values()):
            transport.close()

    @staticmethod
    def _over(pool: httpcore.ConnectionPool) -> httpx.HTTPTransport:
        transport = httpx.HTTPTransport(verify=_tls())
        transport._pool = pool
        return transport


class _Network(httpcore.NetworkBackend):
    """Network that checks the addresses of a host and connects to one of them.

    The checked address is the one used, so a second DNS lookup cannot change it.

    Args:
        deadline: Time of the monotonic clock (seconds) before which every operation ends.
        private: Whether connections into private networks are allowed.
    """

    def __init__(self, deadline: float, *, private: bool) -> None:
        self._deadline, self._private = deadline, private
        self._backend = httpcore.SyncBackend()

    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, local_address: str | None = None,
        socket_options: Any = None,
    ) -> httpcore.NetworkStream:  # fmt: skip
        """Connect to a checked address; see `httpcore.NetworkBackend.connect_tcp`."""
        addresses = _resolved(host, port, _left(self._deadline))
        for address in addresses:
            if not self._private and not is_public(address):
                raise OutOfReachError(
                    f"{host} is {address}, in a private network; to allow it: input.fetch_private: true"
                )
        refused: Exception | None = None
        for tried, address in enumerate(addresses):
            # An address that does not answer leaves time for the next.
            share = _left(self._deadline) / (len(addresses) - tried)
            try:
                stream = self._backend.connect_tcp(address, port, share, local_address, socket_options)
                return _Stream(stream, self._deadline)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                refused = error
        raise refused or httpcore.ConnectError(f"{host} has no address")


class _Stream(httpcore.NetworkStream):
    """A connection whose every operation ends before a deadline, however slowly the server sends."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: float) -> None:
        self._stream, self._deadline = stream, deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Read bytes before the deadline; see `httpcore.NetworkStream.read`."""
        return self._stream.read(max_bytes, _left(self._deadline))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Write bytes before the deadline; see `httpcore.NetworkStream.write`."""
        self._stream.write(buffer, _left(self._deadline))

    def close(self) -> None:
        """Close the connection; see `httpcore.NetworkStream.close`."""
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        """Start TLS before the deadline; see `httpcore.NetworkStream.start_tls`."""
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, _left(self._deadline)), self._deadline)

    def get_extra_info(self, info: str) -> Any:
        """Facts about the connection; see `httpcore.NetworkStream.get_extra_info`."""
        return self._stream.get_extra_info(info)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout("the deadline has passed")
    return left


def _resolved(host: str, port: int, timeout_s: float) -> list[str]:
    """Return the IP addresses of a host. A thread resolves it, since the system's resolver takes no timeout.

    Raises:
        httpcore.ConnectTimeout: The name is not resolved in time.
        httpcore.ConnectError: The name does not exist.
        UnicodeError: IDNA forbids the name.
    """
    answer: list[list[str] | Exception] = []

    def resolve() -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            answer.append(list(dict.fromkeys(str(entry[4][0]) for entry in found)))
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
