"""Sources that rows name are fetched within limits, and only from places that the job allows."""

import errno
import gzip
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from support.web_site import Site

from magbatch.documents.fetch import DOCUMENT, IMAGE, Fetcher
from magbatch.errors import ErrorCode, RowError, StorageError
from magbatch.spec import InputSpec
from magbatch.storage import open_store
from magbatch.storage import s3 as s3_storage
from magbatch.storage.s3 import quick_s3_client


def fetcher(path: str = "/in", *, private: bool = False, timeout_s: float = 20, more: tuple[str, ...] = ()) -> Fetcher:
    return Fetcher(InputSpec(path=path, fetch_from=list(more), fetch_timeout_s=timeout_s, fetch_private=private))


def load(source: object, folder: str = "/in", **options: object) -> bytes:
    return fetcher(**options).for_row()(source, folder, 1000, "column 'document'", DOCUMENT)  # type: ignore[arg-type]


def refusal(source: object, folder: str = "/in", **options: object) -> RowError:
    with pytest.raises(RowError) as caught:
        load(source, folder, **options)
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


def test_what_a_site_does_not_give_is_the_rows_error(sites: tuple[str, str]) -> None:
    """The fetching itself is tested in test_web.py."""
    assert refusal(f"{sites[0]}/gone", private=True).code is ErrorCode.DOCUMENT_UNFETCHABLE
    error = refusal(f"{sites[0]}/slow-header", private=True, timeout_s=0.3)
    assert error.code is ErrorCode.DOCUMENT_UNFETCHABLE
    assert "input.fetch_timeout_s = 0.3" in error.message
    Site.encoded["bomb"] = "gzip", gzip.compress(bytes(900_000))
    assert refusal(f"{sites[0]}/encoded?bomb", private=True).code is ErrorCode.DOCUMENT_TOO_LARGE


def test_errors_are_those_of_what_was_asked_for() -> None:
    for kind, code in ((IMAGE, ErrorCode.IMAGE_TOO_LARGE), (DOCUMENT, ErrorCode.DOCUMENT_TOO_LARGE)):
        with pytest.raises(RowError) as caught:
            fetcher().for_row()(b"12345", "/in", 4, "here", kind)
        assert caught.value.code is code
        assert f"{kind.limit_name} = 4" in caught.value.message
    assert refusal(7).code is ErrorCode.DOCUMENT_UNREADABLE
    assert refusal("data:;base64,?").code is ErrorCode.DOCUMENT_UNREADABLE
    assert refusal("/in/none/x.pdf").code is ErrorCode.DOCUMENT_UNFETCHABLE


# What rows may name.


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """An input folder with links out of it, and the folders next to it."""
    for name in ("in/own.txt", "in/sub/deep.txt", "in-secret/a.txt", "elsewhere/a.txt", "elsewhere/sub/b.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"content")
    (tmp_path / "in/link.txt").symlink_to(tmp_path / "elsewhere/a.txt")
    (tmp_path / "in/folder").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in/within.txt").symlink_to("sub/deep.txt")
    return tmp_path


OUTSIDE = (
    "{tree}/elsewhere/a.txt", "../elsewhere/a.txt", "sub/../../elsewhere/a.txt", "{tree}/in/../in-secret/a.txt",
    "{tree}/in-secret/a.txt", "link.txt", "folder/a.txt", "file://{tree}/elsewhere/a.txt",
    "FILE://LOCALHOST{tree}/elsewhere/a.txt", "file:{tree}/elsewhere/a.txt", "file://{tree}/in/%2e%2e/elsewhere/a.txt",
    "/proc/self/environ", "/proc/self/mem", "/proc/self/cwd", "/etc/passwd", "/nowhere/at/all.png", "/",
)  # fmt: skip


@pytest.mark.parametrize("path", ["{tree}/in", "{tree}/in/", "{tree}/in/*.parquet", "{tree}/in/**/*.parquet"])
@pytest.mark.parametrize("source", OUTSIDE)
def test_files_outside_the_inputs_own_folder_are_refused(tree: Path, path: str, source: str) -> None:
    error = refusal(source.format(tree=tree), f"{tree}/in", path=path.format(tree=tree))
    assert error.code is ErrorCode.URL_REFUSED
    assert "input.fetch_from" in error.message


@pytest.mark.parametrize(
    "source",
    ["own.txt", "sub/deep.txt", "sub/../own.txt", "within.txt", "{tree}/in/own.txt", "file://{tree}/in/own.txt",
     "File://localhost{tree}/in/%6fwn.txt", "file:{tree}/in/own.txt"],
)  # fmt: skip
def test_files_of_the_inputs_own_folder_are_read(tree: Path, source: str) -> None:
    assert load(source.format(tree=tree), f"{tree}/in", path=f"{tree}/in") == b"content"
    (tree / "in/a.parquet").write_bytes(b"")
    assert load(source.format(tree=tree), f"{tree}/in", path=f"{tree}/in/a.parquet") == b"content"


def test_a_folder_that_the_owner_has_linked_into_the_input_gives_its_own_files(tree: Path) -> None:
    """Rows of that folder may name its files; rows of other folders may not."""
    assert load("a.txt", f"{tree}/in/folder", path=f"{tree}/in") == b"content"
    assert load("sub/b.txt", f"{tree}/in/folder", path=f"{tree}/in") == b"content"
    assert refusal("../in-secret/a.txt", f"{tree}/in/folder", path=f"{tree}/in").code is ErrorCode.URL_REFUSED


def test_the_spec_may_allow_more_folders(tree: Path, s3: str) -> None:
    more = (f"{tree}/elsewhere/sub",)
    for path in (f"{tree}/in", f"{s3}/in"):
        assert load(f"{tree}/elsewhere/sub/b.txt", path=path, more=more) == b"content"
        assert refusal(f"{tree}/elsewhere/a.txt", path=path, more=more).code is ErrorCode.URL_REFUSED
        assert refusal(f"{tree}/elsewhere/sub/../a.txt", path=path, more=more).code is ErrorCode.URL_REFUSED
    assert load(f"{tree}/in/link.txt", path="/in", more=(f"{tree}/in", f"{tree}/elsewhere")) == b"content"


def test_a_nodes_files_are_not_read_for_rows_that_lie_elsewhere(tree: Path) -> None:
    for source in (f"{tree}/in/own.txt", f"file://{tree}/in/own.txt"):
        for private in (False, True):
            error = refusal(source, "s3://bucket/in", path="s3://bucket/in", private=private)
            assert error.code is ErrorCode.URL_REFUSED


def test_objects_outside_the_inputs_own_bucket_are_refused_without_a_request(s3: str, tree: Path) -> None:
    secret = s3.replace("s3://", "s3://hr-")
    for path in (f"{s3}/in", f"{tree}/in"):
        for source in (
            f"{secret}/a.txt", f"S3://{secret[5:]}/a.txt", "s3://x--nope-az1--x-s3/a.png", f"{s3}x/a.txt", "s3://",
            "s3://arn:aws:s3:nowhere-1:123456789012:accesspoint/point/a.png", "s3:///a.txt", "s3://../a.txt",
        ):  # fmt: skip
            error = refusal(source, path, path=path)
            assert (error.code, "input.fetch_from" in error.message) == (ErrorCode.URL_REFUSED, True), source


def test_objects_of_the_inputs_own_bucket_are_read(s3: str) -> None:
    open_store(s3).write("in/sub/a.txt", b"content")
    open_store(s3).write("other/b.txt", b"content")
    for source in (
        "sub/a.txt",
        "sub/../sub/./a.txt",
        "../other/b.txt",
        f"{s3}/other/b.txt",
        f"S3://{s3[5:]}/other/b.txt",
    ):
        assert load(source, f"{s3}/in", path=f"{s3}/in/*.parquet") == b"content", source
    for source in ("none.txt", "", f"{s3}", f"{s3}/", "x" * 3000):
        assert refusal(source, f"{s3}/in", path=f"{s3}/in").code is ErrorCode.DOCUMENT_UNFETCHABLE, source


def test_no_key_leads_out_of_a_prefix_or_a_bucket(s3: str, s3_endpoint: str) -> None:
    """HTTP clients resolve `..` in the path of a request, also after it was signed."""
    from magbatch.storage.s3 import s3_client

    s3_client().create_bucket(Bucket=f"{s3[5:]}-hr")
    open_store(f"{s3}-hr").write("secret.txt", b"secret")
    open_store(s3).write("open/a.txt", b"content")
    open_store(s3).write("shut/a.txt", b"secret")
    assert load(f"{s3}/open/a.txt", path="/in", more=(f"{s3}/open",)) == b"content"
    for source in (f"{s3}/open/../shut/a.txt", f"{s3}/open/../../{s3[5:]}/shut/a.txt", f"{s3}/opener/a.txt"):
        assert refusal(source, path="/in", more=(f"{s3}/open/",)).code is ErrorCode.URL_REFUSED
    for source in (
        f"{s3}/../{s3[5:]}-hr/secret.txt",
        f"{s3}/a/../../{s3[5:]}-hr/secret.txt",
        f"../../{s3[5:]}-hr/secret.txt",
    ):
        assert refusal(source, f"{s3}/in", path=f"{s3}/in").code is ErrorCode.DOCUMENT_UNFETCHABLE


# What cannot be had because of the row's own words.


@pytest.mark.parametrize("kind", ["pipe", "socket", "folder", "device"])
def test_only_files_are_opened(tmp_path: Path, kind: str) -> None:
    """A named pipe, above all, would be waited for without an end."""
    path = tmp_path / kind
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    elif kind == "folder":
        path.mkdir()
    name = "/dev/zero" if kind == "device" else kind
    error = refusal(name, str(tmp_path), path=str(tmp_path), more=("/dev",))
    assert error.code is ErrorCode.DOCUMENT_UNFETCHABLE
    assert kind in error.message
    assert error.message.endswith("not a file")


def test_a_place_that_only_rows_name_never_fails_the_job(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without credentials, without such a host, without such a bucket, without a disk that gives it."""
    more = (
        "/proc",
        "s3://no-such-bucket",
        "s3://x--nope-az1--x-s3",
        "s3://arn:aws:s3:nowhere-1:123456789012:accesspoint",
    )
    for source in ("/proc/self/mem", "s3://no-such-bucket/a.png", f"{more[3]}/point/a.png"):
        assert refusal(source, more=more).code is ErrorCode.DOCUMENT_UNFETCHABLE, source
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    quick_s3_client.cache_clear()
    try:
        assert "credentials" in refusal("s3://no-such-bucket/a.png", more=more).message
        monkeypatch.delenv("AWS_ENDPOINT_URL")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        quick_s3_client.cache_clear()
        assert refusal("s3://x--nope-az1--x-s3/a.png", more=more).code is ErrorCode.DOCUMENT_UNFETCHABLE
    finally:
        quick_s3_client.cache_clear()


@pytest.mark.parametrize(
    ("code", "status"), [("AccessDenied", 403), ("SignatureDoesNotMatch", 403), ("InternalError", 500)]
)
def test_an_object_that_the_inputs_own_bucket_never_gives_is_its_rows_matter(
    s3: str, monkeypatch: pytest.MonkeyPatch, code: str, status: int
) -> None:
    """The bucket gives the rest: its role may list the input's own prefix, and nothing else."""
    open_store(s3).write("in/a.txt", b"content")
    open_store(s3).write("shut/a.txt", b"content")
    prefixes: list[str] = []

    def refuse(params: dict[str, Any], model: Any, **_: Any) -> None:
        prefixes.extend([params["query_string"].get("prefix", "")] if model.name == "ListObjectsV2" else [])
        if "/shut/" in params["url_path"] or (prefixes and prefixes[-1] not in ("in/", "in/2026-")):
            answer: Any = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
            raise ClientError(answer, model.name)

    def made(*arguments: Any) -> Any:
        client = new_client(*arguments)
        client.meta.events.register("before-call.s3", refuse)
        return client

    new_client = s3_storage._new_client
    monkeypatch.setattr(s3_storage, "_new_client", made)
    s3_storage.s3_client.cache_clear()
    try:
        for path in (f"{s3}/in/", f"{s3}/in/2026-*.parquet"):
            assert refusal(f"{s3}/shut/a.txt", f"{s3}/in", path=path).code is ErrorCode.DOCUMENT_UNFETCHABLE
            assert load(f"{s3}/in/a.txt", f"{s3}/in", path=path) == b"content"
    finally:
        s3_storage.s3_client.cache_clear()
    assert set(prefixes) == {"in/", "in/2026-"}


def test_the_inputs_own_store_that_is_away_is_no_matter_of_a_row(s3_endpoint: str) -> None:
    with pytest.raises(StorageError, match="no such bucket") as caught:
        load("a.txt", "s3://gone-for-a-while/in", path="s3://gone-for-a-while/in")
    assert caught.value.passing


def test_the_inputs_own_disk_that_is_away_is_no_matter_of_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stale network disk: the file cannot be read, and neither can the folder."""
    (tmp_path / "a.txt").write_bytes(b"content")

    def stale(*arguments: Any, **options: Any) -> int:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(os, "open", stale)
    assert refusal("a.txt", str(tmp_path), path=str(tmp_path)).code is ErrorCode.DOCUMENT_UNFETCHABLE
    monkeypatch.setattr(os, "scandir", stale)
    with pytest.raises(StorageError) as caught:
        load("a.txt", str(tmp_path), path=str(tmp_path))
    assert caught.value.passing
    monkeypatch.undo()
    assert load("a.txt", str(tmp_path), path=str(tmp_path)) == b"content"


@pytest.mark.parametrize(
    ("source", "part"),
    [
        ("ftp://host/a.pdf", "the scheme ftp:// is not known"),
        ("GS://bucket/a.pdf", "the scheme GS:// is not known"),
        ("file://server/share/a.pdf", "names another machine"),
        ("a\0b", "null"),
        ("iVBORw0KGgo" + "Ab/+" * 30, "base64"),
        ("/9j/" + "Ab/+" * 100_000, "base64"),
        ("x" * 300_000, "neither a path nor a URL"),
        ("http://" + "x" * 300_000, "characters)"),
        ("y" * 300, "File name too long"),
    ],
    ids=lambda value: value[:20],
)
def test_a_reference_that_is_none_says_so_in_a_short_line(tmp_path: Path, source: str, part: str) -> None:
    error = refusal(source, str(tmp_path), path=str(tmp_path))
    assert error.code is ErrorCode.DOCUMENT_UNFETCHABLE
    assert part in error.message
    assert len(error.message) < 600
    error.message.encode()


def test_a_name_with_a_colon_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "scan:1.txt").write_bytes(b"content")
    assert load("scan:1.txt", str(tmp_path), path=str(tmp_path)) == b"content"


def test_a_name_that_is_no_text_can_be_reached_by_a_file_url(tmp_path: Path) -> None:
    Path(os.fsdecode(bytes(tmp_path) + b"/a\xff.txt")).write_bytes(b"content")
    assert load(f"file://{tmp_path}/a%FF.txt", path=str(tmp_path)) == b"content"
    refusal(f"file://{tmp_path}/b%FF.txt", path=str(tmp_path)).message.encode()


@pytest.mark.parametrize("scheme", ["http", "HTTP", "Http"])
def test_schemes_are_read_in_either_case(sites: tuple[str, str], scheme: str) -> None:
    assert load(f"{scheme}{sites[0][4:]}/x", private=True) == b"content"
    assert load("DATA:text/plain;BASE64,Y29udGVudA==") == b"content"


def test_a_row_has_one_time_for_all_that_it_names(sites: tuple[str, str]) -> None:
    """A list of slow pages ends with the row's time, not with each page's."""
    fetch = fetcher(private=True, timeout_s=1.2).for_row()
    pages = (fetch(f"{sites[0]}/half-a-second", "/in", 1000, "here", DOCUMENT) for _ in range(100))
    with pytest.raises(RowError, match=r"input\.fetch_timeout_s = 1\.2, which all sources of a row share"):
        list(pages)
    assert fetcher(private=True, timeout_s=1.2).for_row()(f"{sites[0]}/x", "/in", 1000, "here", DOCUMENT) == b"content"
