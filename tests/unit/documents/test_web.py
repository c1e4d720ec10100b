"""URLs of public hosts are fetched whole, within limits of size and time, and never from a private network."""

import gzip
import os
import ssl
import threading
import time
import zlib
from datetime import UTC, datetime, timedelta
from http.server import ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from support.web_site import Site

from magbatch.documents import web
from magbatch.documents.web import FETCH_TRIES
from magbatch.errors import LateError, OutOfReachError

LIMIT = 1000


def load(url: str, *, private: bool = False, timeout_s: float = 20) -> bytes:
    return web.get(url, LIMIT, time.monotonic() + timeout_s, private=private)


def refusal(url: str, *, private: bool = False, timeout_s: float = 20) -> Exception:
    with pytest.raises((OutOfReachError, LateError, httpx.HTTPError, ValueError)) as caught:
        load(url, private=private, timeout_s=timeout_s)
    return caught.value


@pytest.fixture
def only_first_is_public(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "is_public", lambda address: address == "127.0.0.1")


@pytest.mark.usefixtures("only_first_is_public")
def test_a_redirect_into_a_private_network_is_refused(sites: tuple[str, str]) -> None:
    public, private = sites
    assert load(f"{public}/x") == b"content"
    assert load(f"{public}/to?{public}/x") == b"content"
    before = Site.seen["/secret"]
    assert isinstance(refusal(f"{public}/to?{private}/secret"), OutOfReachError)
    assert isinstance(refusal(f"{public}/to?{public}/to?{private}/secret"), OutOfReachError)
    assert Site.seen["/secret"] == before


@pytest.mark.usefixtures("only_first_is_public")
def test_the_address_that_was_looked_at_is_the_one_that_is_asked(
    sites: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that resolves otherwise the second time (DNS rebinding) gains nothing; the server sees the name."""
    port = int(sites[0].rpartition(":")[2])
    answers = iter(["127.0.0.1", "127.0.0.2"])

    def resolve(host: str, *_: object, **__: object) -> list[tuple[object, ...]]:
        address = next(answers) if host == "docs.example" else host
        return [(2, 1, 6, "", (address, port))]

    monkeypatch.setattr("socket.getaddrinfo", resolve)
    assert load(f"http://docs.example:{port}/rebound") == b"content"
    assert Site.hosts[-1] == f"docs.example:{port}"
    assert next(answers) == "127.0.0.2", "it was resolved once"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of docs.example, and its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "docs.example")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(1)).not_valid_after(now + timedelta(1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("docs.example")]), critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    plain = serialization.NoEncryption()
    path.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    )
    return path


@pytest.mark.usefixtures("only_first_is_public")
def test_a_certificate_is_that_of_the_name_not_of_the_address(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection goes to an address, and is still held to the host that the URL names."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    port = server.server_port
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: [(2, 1, 6, "", ("127.0.0.1", port))])
    monkeypatch.setattr(web, "_tls", lambda: ssl.create_default_context(cafile=str(certificate)))
    try:
        assert load(f"https://docs.example:{port}/x") == b"content"
        assert load(f"https://docs.example:{port}/to?/x") == b"content", "a redirect is relative to the name"
        for url in ("https://other.example:{}/x", "https://docs.example:{}/to?https://other.example:{}/x"):
            error = refusal(url.format(port, port))
            assert isinstance(error, httpx.ConnectError)
            assert "Hostname mismatch" in str(error)
    finally:
        server.shutdown()
        server.server_close()


def test_what_passes_by_itself_is_tried_again(sites: tuple[str, str]) -> None:
    for page in ("/busy?1", "/drop?1"):
        assert load(sites[0] + page, private=True) == b"content"
        assert Site.seen[page] == FETCH_TRIES


@pytest.mark.parametrize(("page", "tries"), [("/always-busy", FETCH_TRIES), ("/gone", 1)])
def test_what_does_not_pass_is_unfetchable(sites: tuple[str, str], page: str, tries: int) -> None:
    before = Site.seen[page]
    assert isinstance(refusal(sites[0] + page, private=True), httpx.HTTPStatusError)
    assert Site.seen[page] - before == tries


def test_headers_that_drip_are_given_up(sites: tuple[str, str]) -> None:
    """Each read is in time; all of them together would take a minute."""
    began = time.monotonic()
    assert isinstance(refusal(f"{sites[0]}/slow-header", private=True, timeout_s=0.3), LateError)
    assert time.monotonic() - began < 20


def test_a_name_that_does_not_resolve_in_time_is_given_up(
    sites: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resolving takes its time off the rest, and the rest is late then."""
    port = int(sites[0].rpartition(":")[2])

    def resolve(*_: object, **__: object) -> list[tuple[object, ...]]:
        time.sleep(0.3)
        return [(2, 1, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr("socket.getaddrinfo", resolve)
    for timeout_s in (0.1, 0.6):
        began = time.monotonic()
        error = refusal(f"http://docs.example:{port}/slow-header", private=True, timeout_s=timeout_s)
        assert isinstance(error, LateError)
        assert time.monotonic() - began < 20
    assert load(f"http://docs.example:{port}/x", private=True) == b"content"


ZIPPED = gzip.compress(b"content")


STACKED = gzip.compress(gzip.compress(bytes(1 << 18)))


def encoded(sites: tuple[str, str], encoding: str, body: bytes) -> str:
    """The URL of a page with that Content-Encoding."""
    Site.encoded["now"] = encoding, body
    return f"{sites[0]}/encoded?now"


@pytest.mark.parametrize(
    "encoding", ["gzip", "GZIP", "x-gzip", " Gzip ", "identity, gzip", "gzip,", "gzip, aws-chunked"]
)
def test_what_a_server_compresses_is_inflated_whatever_it_calls_that(sites: tuple[str, str], encoding: str) -> None:
    assert load(encoded(sites, encoding, ZIPPED), private=True) == b"content"


@pytest.mark.parametrize(
    "encoding", ["", "identity", "Identity", "aws-chunked", "utf-8", "UTF-8", "none", "binary", ",", "utf-8, identity"]
)
def test_a_name_that_is_no_compression_changes_nothing(sites: tuple[str, str], encoding: str) -> None:
    assert load(encoded(sites, encoding, b"content"), private=True) == b"content"


@pytest.mark.parametrize("encoding", ["br", "ZSTD", "gzip, br", "compress"])
def test_a_compression_that_was_not_asked_for_is_said(sites: tuple[str, str], encoding: str) -> None:
    error = refusal(encoded(sites, encoding, ZIPPED), private=True)
    assert str(error).endswith(f"Content-Encoding {encoding.rpartition(' ')[2].lower()}, though none was requested")


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", gzip.compress(b"con") + gzip.compress(b"") + gzip.compress(b"tent")),
        ("gzip", ZIPPED + bytes(512)),
        ("gzip", ZIPPED + b"padding"),
        ("gzip, x-gzip", gzip.compress(ZIPPED)),
        ("gzip", b"".join(gzip.compress(bytes([char])) for char in b"content")),
        ("deflate", zlib.compress(b"content")),
    ],
    ids=["members", "padded", "followed", "twice", "many", "zlib"],
)
def test_compressed_content_is_had_whole(sites: tuple[str, str], encoding: str, body: bytes) -> None:
    assert load(encoded(sites, encoding, body), private=True) == b"content"


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", ZIPPED[:-1]),
        ("gzip", ZIPPED[:-8]),
        ("gzip", ZIPPED[:12]),
        ("gzip", b""),
        ("gzip", ZIPPED + ZIPPED[:-1]),
        ("gzip", ZIPPED + ZIPPED[:1]),
        ("deflate", zlib.compress(b"content")[:-1]),
        ("gzip", ZIPPED[:-8] + bytes(8)),
        ("gzip", b"content"),
    ],
    ids=["a byte", "no end", "half", "none", "2nd member", "2nd header", "zlib", "another sum", "not compressed"],
)
def test_compressed_content_that_is_cut_or_damaged_is_not_taken_for_whole(
    sites: tuple[str, str], encoding: str, body: bytes
) -> None:
    error = refusal(encoded(sites, encoding, body), private=True)
    assert isinstance(error, httpx.DecodingError)
    assert f"Content-Encoding {encoding}" in str(error)


def test_a_body_that_ends_before_its_length_or_is_a_part_is_not_taken_for_whole(sites: tuple[str, str]) -> None:
    for page, reason in (("/short", "complete message body"), ("/part", "partial content")):
        error = refusal(sites[0] + page, private=True)
        assert reason in str(error)


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", gzip.compress(bytes(900_000))),
        ("gzip, gzip", STACKED),
        ("gzip", b"".join(gzip.compress(bytes(100)) for _ in range(11))),
        ("gzip", os.urandom(1001)),
    ],
    ids=["bomb", "stacked", "members", "compressed"],
)
def test_compressed_content_is_inflated_within_the_limit(sites: tuple[str, str], encoding: str, body: bytes) -> None:
    """A byte more than the limit is returned, so that the caller sees it."""
    assert len(load(encoded(sites, encoding, body), private=True)) == LIMIT + 1


def test_inflating_ends_at_the_deadline(sites: tuple[str, str]) -> None:
    """Millions of members without content cost more than their bytes."""
    url = encoded(sites, "gzip", gzip.compress(b"") * 1_000_000)
    with pytest.raises(LateError):
        web.get(url, 50_000_000, time.monotonic() + 0.5, private=True)


def test_every_address_of_a_host_is_tried(sites: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    port = int(sites[0].rpartition(":")[2])
    found = [(2, 1, 6, "", (address, port)) for address in ("127.0.0.3", "127.0.0.4", "127.0.0.1")]
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: found)
    assert load(f"http://docs.example:{port}/x", private=True) == b"content"
    del found[-1]
    assert isinstance(refusal(f"http://docs.example:{port}/x", private=True), httpx.ConnectError)
