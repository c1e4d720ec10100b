"""What rows name is fetched within bounds, and only from where the job's owner would have it."""

import gzip
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from magbatch.documents import fetch
from magbatch.documents.fetch import DOCUMENT, FETCH_TRIES, IMAGE, Fetcher, is_public
from magbatch.errors import ErrorCode, RowError


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700:4700::1111", True),
        ("64:ff9b::808:808", True),
        ("127.0.0.1", False),
        ("0.0.0.0", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("198.18.0.1", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fc00::1", False),
        ("fec0::1", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:8.8.8.8", True),
        ("2002:7f00:1::", False),
        ("64:ff9b::7f00:1", False),
        ("fd00:ec2::254", False),
        ("64:ff9b:1::7f00:1", False),
        ("::127.0.0.1", False),
        ("::ffff:0:127.0.0.1", False),
        ("168.63.129.16", False),
    ],
)
def test_public_addresses_are_those_of_the_internet(address: str, public: bool) -> None:
    assert is_public(address) is public


class Site(BaseHTTPRequestHandler):
    seen: ClassVar[Counter[str]] = Counter()
    hosts: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        Site.seen[self.path] += 1
        Site.hosts.append(self.headers["Host"])
        path, _, target = self.path.partition("?")
        status, headers, body = 200, {}, b"content"
        if path == "/to":
            status, headers, body = 302, {"Location": target}, b""
        elif (path == "/busy" and Site.seen[self.path] < FETCH_TRIES) or path == "/always-busy":
            status, body = 503, b""
        elif path == "/gzip":
            headers, body = {"Content-Encoding": "gzip"}, gzip.compress(body)
        elif path == "/bomb":
            headers, body = {"Content-Encoding": "gzip"}, gzip.compress(bytes(900_000))
        elif path == "/stacked":
            headers, body = {"Content-Encoding": "gzip, gzip"}, gzip.compress(gzip.compress(bytes(1 << 18)))
        elif path == "/gone":
            status, body = 404, b""
        elif path == "/drop" and Site.seen[self.path] < FETCH_TRIES:
            self.connection.close()
            return
        elif path == "/slow-header":
            try:
                for _ in range(1000):
                    self.wfile.write(b"x")
                    time.sleep(0.05)
            except OSError:
                return
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture(scope="module")
def sites() -> Iterator[tuple[str, str]]:
    """Two hosts with the same pages; what is public is up to the test."""
    servers = [ThreadingHTTPServer((host, 0), Site) for host in ("127.0.0.1", "127.0.0.2")]
    for server in servers:
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
        threading.Thread(target=server.serve_forever, daemon=True).start()
    yield (f"http://127.0.0.1:{servers[0].server_port}", f"http://127.0.0.2:{servers[1].server_port}")
    for server in servers:
        server.shutdown()
        server.server_close()


def load(source: object, *, private: bool = False, timeout_s: float = 20, input_path: str = "/in") -> bytes:
    return Fetcher(input_path, timeout_s, private=private)(source, "/in", 1000, "column 'document'", DOCUMENT)


def refusal(source: object, **options: object) -> RowError:
    with pytest.raises(RowError) as caught:
        load(source, **options)  # type: ignore[arg-type]
    assert caught.value.message.startswith("column 'document': ")
    return caught.value


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "[::1]", "2130706433", "0x7f.1", "127.1", "0.0.0.0", "[::ffff:127.0.0.1]"]
)
def test_a_private_network_is_refused_however_it_is_spelled(sites: tuple[str, str], host: str) -> None:
    port = sites[0].rpartition(":")[2]
    before = Site.seen.total()
    error = refusal(f"http://{host}:{port}/x")
    assert error.code is ErrorCode.URL_REFUSED
    assert "private network" in error.message
    assert "input.fetch_private: true" in error.message
    assert Site.seen.total() == before, "it was asked all the same"


def test_a_private_network_may_be_allowed(sites: tuple[str, str]) -> None:
    assert load(f"{sites[0]}/x", private=True) == b"content"
    assert load(f"{sites[0]}/to?{sites[1]}/x", private=True) == b"content"


@pytest.fixture
def only_first_is_public(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "is_public", lambda address: address == "127.0.0.1")


@pytest.mark.usefixtures("only_first_is_public")
def test_a_redirect_into_a_private_network_is_refused(sites: tuple[str, str]) -> None:
    public, private = sites
    assert load(f"{public}/x") == b"content"
    assert load(f"{public}/to?{public}/x") == b"content"
    before = Site.seen["/secret"]
    assert refusal(f"{public}/to?{private}/secret").code is ErrorCode.URL_REFUSED
    assert refusal(f"{public}/to?{public}/to?{private}/secret").code is ErrorCode.URL_REFUSED
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
    monkeypatch.setattr(fetch, "_tls", lambda: ssl.create_default_context(cafile=str(certificate)))
    try:
        assert load(f"https://docs.example:{port}/x") == b"content"
        assert load(f"https://docs.example:{port}/to?/x") == b"content", "a redirect is relative to the name"
        for url in ("https://other.example:{}/x", "https://docs.example:{}/to?https://other.example:{}/x"):
            error = refusal(url.format(port, port))
            assert error.code is ErrorCode.DOCUMENT_UNFETCHABLE
            assert "Hostname mismatch" in error.message
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
    assert refusal(sites[0] + page, private=True).code is ErrorCode.DOCUMENT_UNFETCHABLE
    assert Site.seen[page] - before == tries


def test_headers_that_drip_are_given_up(sites: tuple[str, str]) -> None:
    """Each read of them is in time; the whole would take a minute."""
    began = time.monotonic()
    error = refusal(f"{sites[0]}/slow-header", private=True, timeout_s=0.5)
    assert error.code is ErrorCode.DOCUMENT_UNFETCHABLE
    assert "input.fetch_timeout_s = 0.5" in error.message
    assert time.monotonic() - began < 20


def test_a_name_that_does_not_resolve_in_time_is_given_up(
    sites: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left of the time is for all that comes after."""
    port = int(sites[0].rpartition(":")[2])

    def resolve(*_: object, **__: object) -> list[tuple[object, ...]]:
        time.sleep(1.0)
        return [(2, 1, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr("socket.getaddrinfo", resolve)
    for timeout_s in (0.3, 1.5):
        began = time.monotonic()
        error = refusal(f"http://docs.example:{port}/slow-header", private=True, timeout_s=timeout_s)
        assert error.code is ErrorCode.DOCUMENT_UNFETCHABLE
        assert time.monotonic() - began < 20
    assert load(f"http://docs.example:{port}/x", private=True) == b"content"


def test_what_a_server_compresses_is_inflated_within_the_limit(sites: tuple[str, str]) -> None:
    assert load(f"{sites[0]}/gzip", private=True) == b"content"
    assert refusal(f"{sites[0]}/bomb", private=True).code is ErrorCode.DOCUMENT_TOO_LARGE
    error = refusal(f"{sites[0]}/stacked", private=True)
    assert (error.code, "gzip, gzip" in error.message) == (ErrorCode.DOCUMENT_UNFETCHABLE, True)


def test_a_nodes_files_are_not_read_for_rows_that_lie_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"content")
    assert load(str(path)) == b"content"
    for source in (str(path), f"file://{path}"):
        assert refusal(source, input_path="s3://bucket/in").code is ErrorCode.URL_REFUSED
        assert load(source, input_path="s3://bucket/in", private=True) == b"content"


def test_errors_are_those_of_what_was_asked_for() -> None:
    fetcher = Fetcher("/in", 5, private=False)
    for kind, code in ((IMAGE, ErrorCode.IMAGE_TOO_LARGE), (DOCUMENT, ErrorCode.DOCUMENT_TOO_LARGE)):
        with pytest.raises(RowError) as caught:
            fetcher(b"12345", "/in", 4, "here", kind)
        assert caught.value.code is code
        assert f"{kind.limit_name} = 4" in caught.value.message
    assert refusal(7).code is ErrorCode.DOCUMENT_UNREADABLE
    assert refusal("data:;base64,?").code is ErrorCode.DOCUMENT_UNREADABLE
    assert refusal("/none/x.pdf").code is ErrorCode.DOCUMENT_UNFETCHABLE
