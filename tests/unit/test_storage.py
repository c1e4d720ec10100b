"""Whole objects, alike on a disk and in object storage."""

import os
import pickle
import re
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from magbatch import storage
from magbatch.errors import InputError, InterruptedJobError, StorageError
from magbatch.storage import (
    DRAFTS,
    LocalStore,
    ObjectInfo,
    PatientStore,
    fetch_prefix,
    find_parquet,
    input_filesystem,
    open_store,
    read_at_most,
    s3_client,
    stat_input,
)


def names(root: str, prefix: str) -> list[str]:
    return [item.name for item in open_store(root).list(prefix)]


# A store of whole objects.


def test_what_was_written_is_read_whole(root: str) -> None:
    store = open_store(root)
    for data in (b"", b"\x00\xff", os.urandom(3 << 20)):
        store.write("results/a.parquet", data)
        assert store.read("results/a.parquet") == data


def test_nothing_is_there_before_something_is_written(root: str) -> None:
    store = open_store(f"{root}/deeper/still")
    assert list(store.list("")) == []
    assert list(store.list("results/")) == []
    with pytest.raises(FileNotFoundError):
        store.read("spec.yaml")


def test_a_listing_has_names_sizes_and_tags_in_the_order_of_the_names(root: str) -> None:
    store = open_store(root)
    for name in ("results/b", "results/a", "results-more/x", "results/ü", "results/Z", "other"):
        store.write(name, name.encode())
    found = list(store.list("results/"))
    assert [item.name for item in found] == ["results/Z", "results/a", "results/b", "results/ü"]
    assert [item.size for item in found] == [len(item.name.encode()) for item in found]
    assert all(item.tag for item in found)


def test_a_prefix_may_end_within_a_name_and_reaches_below_folders(root: str) -> None:
    store = open_store(root)
    for name in ("results/00000001-a", "results/00000001-b", "results/00000011-a", "results/old/00000001-a", "top"):
        store.write(name, b"x")
    assert names(root, "results/00000001-") == ["results/00000001-a", "results/00000001-b"]
    assert names(root, "results/") == [
        "results/00000001-a",
        "results/00000001-b",
        "results/00000011-a",
        "results/old/00000001-a",
    ]
    assert names(root, "") == [*names(root, "results/"), "top"]
    assert names(root, "none/") == []


def test_a_listing_goes_on_past_one_page_of_the_server(s3: str) -> None:
    store = open_store(s3)
    wanted = [f"results/{number:05d}" for number in range(1003)]  # a page has 1,000
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: store.write(name, b""), wanted))
    assert [item.name for item in store.list("results/")] == wanted


def test_a_tag_changes_with_the_content_and_only_then(root: str) -> None:
    store = open_store(root)
    store.write("a", b"one")
    (first,) = store.list("a")
    assert list(store.list("a")) == [first]
    store.write("a", b"two")
    (second,) = store.list("a")
    assert (second.name, second.size) == (first.name, first.size)
    assert second.tag != first.tag


def test_a_moved_object_is_in_its_new_place_alone(root: str) -> None:
    store = open_store(root)
    store.write("results/a", b"data")
    store.move("results/a", "_magbatch/superseded/results/a")
    assert names(root, "") == ["_magbatch/superseded/results/a"]
    assert store.read("_magbatch/superseded/results/a") == b"data"
    store.move("results/a", "elsewhere")  # gone already
    assert names(root, "") == ["_magbatch/superseded/results/a"]


def test_a_deleted_object_is_gone_and_stays_so(root: str) -> None:
    store = open_store(root)
    store.write("a", b"")
    store.delete("a")
    store.delete("a")
    store.delete("never/was")
    assert names(root, "") == []


def test_roots_with_and_without_a_slash_are_the_same_place(root: str) -> None:
    open_store(f"{root}/").write("a", b"x")
    assert open_store(root).read("a") == b"x"
    assert names(f"{root}/", "") == ["a"]


def test_an_object_is_never_visible_in_part(root: str) -> None:
    """Readers meanwhile see the old object or the new one, and no name but the object's own."""
    store = open_store(root)
    versions = {bytes([number]) * (1 << 20) for number in range(12)}
    store.write("results/a", b"\0" * (1 << 20))
    seen: list[bytes] = []
    listed: set[str] = set()
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            seen.append(store.read("results/a"))
            listed.update(item.name for item in store.list(""))

    reader = threading.Thread(target=look)
    reader.start()
    try:
        for data in sorted(versions):
            store.write("results/a", data)
    finally:
        done.set()
        reader.join()
    assert seen
    assert set(seen) <= versions
    assert listed <= {"results/a"}


def test_drafts_of_a_disk_lie_apart_and_are_listed_only_where_they_are_asked_for(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.write("results/a", b"")
    draft = tmp_path / DRAFTS / "left-by-a-crash"
    draft.write_bytes(b"half")
    assert names(str(tmp_path), "") == ["results/a"]
    assert names(str(tmp_path), "_magbatch/") == []
    assert names(str(tmp_path), DRAFTS) == [f"{DRAFTS}left-by-a-crash"]


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    (tmp_path / "results/a").mkdir(parents=True)  # a folder stands where the object should be
    with pytest.raises(StorageError, match=r"results/a: Is a directory"):
        store.write("results/a", b"data")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_disk_that_refuses_is_a_storage_error_with_the_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = open_store(str(tmp_path / "file"))
    with pytest.raises(StorageError, match=f"{tmp_path}/file/a"):
        store.write("a", b"")
    with pytest.raises(StorageError, match=f"{tmp_path}/file/a"):
        store.read("a")
    with pytest.raises(StorageError, match=f"{tmp_path}/file"):
        list(store.list(""))


def test_a_bucket_that_is_not_there_is_no_empty_one(s3_endpoint: str) -> None:
    """While a bucket is away for a minute, finished rows must not look as if they were open."""
    store = open_store("s3://no-such-bucket/root")
    for touch in (
        lambda: list(store.list("")),
        lambda: store.read("a"),
        lambda: store.write("a", b""),
        lambda: store.create("a", b""),
        lambda: store.move("a", "b"),
        lambda: store.delete("a"),
    ):
        with pytest.raises(StorageError, match=r"s3://no-such-bucket/root/a?: there is no such bucket") as refused:
            touch()
        assert refused.value.passing


# Objects that only one may make.


def test_a_name_is_taken_once(root: str) -> None:
    store = open_store(root)
    assert store.create("a/b", b"first")
    assert not store.create("a/b", b"second")
    assert store.create("a/b", b"first"), "the first one's own retry"
    assert store.read("a/b") == b"first"
    assert [item.name for item in store.list("")] == ["a/b"]


def test_one_of_many_takes_a_name(root: str) -> None:
    start = threading.Barrier(16)

    def take(number: int) -> bool:
        start.wait()
        return open_store(root).create("lease", f"{number}".encode())

    with ThreadPoolExecutor(16) as pool:
        taken = list(pool.map(take, range(16)))
    assert taken.count(True) == 1
    assert open_store(root).read("lease") == f"{taken.index(True)}".encode()


# Patience.


class Moody(LocalStore):
    """A real store that refuses the first calls, and breaks off each of its listings once."""

    def __init__(self, root: str, refusals: int, *, passing: bool = True) -> None:
        super().__init__(root)
        self.left, self.passing = refusals, passing

    def _refuse(self) -> None:
        if self.left:
            self.left -= 1
            raise StorageError("not now", passing=self.passing)

    def read(self, name: str) -> bytes:
        self._refuse()
        return super().read(name)

    def write(self, name: str, data: bytes) -> None:
        self._refuse()
        super().write(name, data)

    def create(self, name: str, data: bytes) -> bool:
        self._refuse()
        return super().create(name, data)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        for number, item in enumerate(super().list(prefix)):
            if number == 3:
                self._refuse()
            yield item

    def move(self, name: str, target: str) -> None:
        self._refuse()
        super().move(name, target)

    def delete(self, name: str) -> None:
        self._refuse()
        super().delete(name)


def test_what_passes_is_waited_out_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "PATIENT_WAIT_S", 0.05)
    said: list[str] = []
    moody = Moody(str(tmp_path), 0)
    store = PatientStore(moody, 30, lambda error: said.append(str(error)))
    names = [f"results/{number}" for number in range(8)]
    operations: list[Callable[[], object]] = [
        *(lambda name=name: store.write(name, b"x") for name in names),  # type: ignore[misc]
        lambda: store.create("lease", b"me"),
        lambda: store.read("lease") == b"me",
        lambda: [item.name for item in store.list("results/")] == names,
        lambda: store.move("lease", "old"),
        lambda: store.delete("old"),
    ]
    for operation in operations:
        moody.left = 2
        assert operation() is not False
        assert moody.left == 0
    assert len(said) == 2 * len(operations)
    assert set(said) == {"not now"}


def test_patience_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "PATIENT_WAIT_S", 0.05)
    moody = Moody(str(tmp_path), 10**9)
    with pytest.raises(StorageError, match="not now"):
        PatientStore(moody, 0.3).write("a", b"")
    assert moody.left < 10**9 - 2


def test_what_will_not_pass_is_not_waited_for(tmp_path: Path) -> None:
    moody = Moody(str(tmp_path), 10, passing=False)
    with pytest.raises(StorageError, match="not now"):
        PatientStore(moody, 3600).write("a", b"")
    assert moody.left == 9
    with pytest.raises(FileNotFoundError):
        PatientStore(LocalStore(str(tmp_path)), 3600).read("no such object")


def test_an_error_keeps_its_nature_between_processes() -> None:
    for passing in (True, False):
        error = pickle.loads(pickle.dumps(StorageError("s3://b/a: SlowDown", passing=passing)))
        assert (str(error), error.passing, error.exit_code) == ("s3://b/a: SlowDown", passing, 3)


def test_what_ends_the_waiting_may_be_raised_where_it_is_said(tmp_path: Path) -> None:
    def stop(error: StorageError) -> None:
        raise InterruptedJobError(str(error))

    with pytest.raises(InterruptedJobError, match="not now"):
        PatientStore(Moody(str(tmp_path), 10**9), 3600, stop).write("a", b"")


def test_a_process_that_has_too_many_files_open_may_wait_for_one(tmp_path: Path) -> None:
    script = f"""
import resource
from magbatch.errors import StorageError
from magbatch.storage import open_store
store = open_store({str(tmp_path)!r})
store.write("a", b"")
resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
for act in (lambda: store.read("a"), lambda: store.write("b", b""), lambda: store.create("c", b"")):
    try:
        act()
    except StorageError as error:
        print(error.passing, error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert [line.partition(f" {tmp_path}/")[0] for line in done.stdout.splitlines()] == ["True"] * 3


# What object storage says.


@dataclass
class Answer:
    """What a server says to a request; with `cut`, the connection ends before the body does; None: nothing at all."""

    status: int
    body: bytes = b""
    cut: bool = False


def refusal(status: int, code: str) -> Answer:
    return Answer(status, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode())


class ScriptedServer:
    """Speaks HTTP, and answers each request as a function of its method and headers says."""

    def __init__(self) -> None:
        self.script: Callable[[str, Message], Answer | None] = lambda method, headers: Answer(200)
        self.released = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                answer = server.script(self.command, self.headers)
                if answer is None:
                    server.released.wait(60)
                    self.close_connection = True
                    return
                self.send_response(answer.status)
                self.send_header("ETag", '"tag"')
                self.send_header("Content-Length", str(len(answer.body) + answer.cut))
                self.end_headers()
                self.wfile.write(b"" if self.command == "HEAD" else answer.body)
                self.close_connection = answer.cut

            do_GET = do_PUT = do_HEAD = do_DELETE = do

            def log_message(self, *_: object) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedServer]:
    """Clients made during the test go to it."""
    server = ScriptedServer()
    thread = threading.Thread(target=server.server.serve_forever, args=(0.02,))
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    s3_client.cache_clear()
    yield server
    s3_client.cache_clear()
    server.released.set()
    server.server.shutdown()
    server.server.server_close()
    thread.join()


@pytest.mark.parametrize(
    ("answer", "passing"),
    [
        (refusal(400, "ExpiredToken"), True),
        (refusal(403, "AccessDenied"), True),
        (refusal(404, "NoSuchBucket"), True),
        (refusal(400, "BadDigest"), True),
        (refusal(409, "OperationAborted"), True),
        (refusal(507, "StorageFull"), True),
        (Answer(403, b"<html>a proxy's own page</html>"), True),
        (refusal(400, "InvalidArgument"), False),
        (refusal(400, "KeyTooLongError"), False),
        (refusal(405, "MethodNotAllowed"), False),
        (refusal(501, "NotImplemented"), False),
    ],
    ids=lambda value: str(value.body[:40]) if isinstance(value, Answer) else "",
)
def test_a_refusal_is_judged(server: ScriptedServer, answer: Answer, passing: bool) -> None:
    server.script = lambda method, headers: answer
    store = open_store("s3://bucket/root")
    for touch in (
        lambda: store.read("a"),
        lambda: store.write("a", b""),
        lambda: store.create("a", b""),
        lambda: store.delete("a"),
        lambda: store.move("a", "b"),
        lambda: list(store.list("")),
    ):
        with pytest.raises(StorageError, match="s3://bucket/root") as refused:
            touch()
        assert refused.value.passing is passing


def test_no_such_name_for_a_bucket_will_never_pass() -> None:
    with pytest.raises(StorageError, match="Not a bucket") as refused:
        open_store("s3://Not a bucket").read("a")
    assert not refused.value.passing


def test_an_object_whose_connection_breaks_is_read_again(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "PATIENT_WAIT_S", 0.05)
    answers = iter([Answer(200, b"half", cut=True), Answer(200, b"", cut=True), Answer(200, b"whole")])
    server.script = lambda method, headers: next(answers)
    said: list[StorageError] = []
    assert PatientStore(open_store("s3://bucket"), 30, said.append).read("a") == b"whole"
    assert len(said) == 2


def test_a_server_that_is_silent_holds_nobody_for_ever(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "S3_ATTEMPTS", 1)
    monkeypatch.setattr(storage, "S3_READ_TIMEOUT_S", 1)
    server.script = lambda method, headers: None
    for touch in (lambda: open_store("s3://bucket").read("a"), lambda: list(open_store("s3://bucket").list(""))):
        with pytest.raises(StorageError, match="timeout") as refused:
            touch()
        assert refused.value.passing
    server.script = lambda method, headers: None if "aws-sdk-cpp" in headers["User-Agent"] else Answer(200)
    filesystem, inner = input_filesystem(f"s3://{uuid.uuid4().hex}/a")
    with pytest.raises(OSError, match="Timeout"):
        filesystem.open_input_file(inner)


def test_credentials_that_are_replaced_in_their_file_are_taken_up(
    server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "PATIENT_WAIT_S", 0.05)
    keys = tmp_path / "credentials"

    def put(key: str) -> None:
        keys.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = secret\n")

    put("OLD")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(keys))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)

    def script(method: str, headers: Message) -> Answer:
        return Answer(200, b"data") if "Credential=NEW/" in headers["Authorization"] else refusal(400, "ExpiredToken")

    server.script = script
    said: list[StorageError] = []

    def renew(error: StorageError) -> None:
        said.append(error)
        put("NEW")

    assert PatientStore(open_store("s3://bucket"), 30, renew).read("a") == b"data"
    assert len(said) == 1
    assert "ExpiredToken" in str(said[0])


@pytest.fixture
def forbidding() -> Iterator[str]:
    """An endpoint that speaks S3 and refuses everything."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
            self.send_response(403)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_refusal_says_where_credentials_come_from_and_shows_none(forbidding: str) -> None:
    # In a process of its own: a process has one client.
    script = """
from magbatch.errors import StorageError
from magbatch.storage import open_store, find_parquet
for act in (lambda: open_store("s3://bucket").read("a"), lambda: find_parquet("s3://bucket/in/")):
    try:
        act()
    except StorageError as error:
        print("StorageError", error)
"""
    environment = os.environ | {"AWS_ENDPOINT_URL": forbidding, "AWS_SECRET_ACCESS_KEY": "very-secret"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert line.startswith("StorageError s3://bucket/")
        assert line.endswith("the credentials come from the standard AWS chain")
    assert "very-secret" not in done.stdout + done.stderr


# The input: finding files.


def below(root: str, path: str) -> list[str]:
    """The files behind a path, relative to the root."""
    return [item.name.removeprefix(f"{root}/") for item in find_parquet(path)]


TREE = (
    "a.parquet",
    "b.PARQUET",
    "notes.txt",
    "_SUCCESS",
    "_draft.parquet",
    ".hidden.parquet",
    "2026/01/x.parquet",
    "2026/02/x.parquet",
    "2026/02/y.parquet",
    "2026/_temporary/0/z.parquet",
    "2026/.git/z.parquet",
    "2027/c1.parquet",
    "2027/c2.parquet",
    "2027/c33.parquet",
    "2027/ü.parquet",
)


@pytest.fixture
def tree(root: str) -> str:
    store = open_store(root)
    for name in TREE:
        store.write(name, name.encode())
    return root


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("", "a 2026/01/x 2026/02/x 2026/02/y 2027/c1 2027/c2 2027/c33 2027/ü"),
        ("/", "a 2026/01/x 2026/02/x 2026/02/y 2027/c1 2027/c2 2027/c33 2027/ü"),
        ("/2026", "2026/01/x 2026/02/x 2026/02/y"),
        ("/2026/02/", "2026/02/x 2026/02/y"),
        ("/2026/02/x.parquet", "2026/02/x"),
        ("/2026/_temporary", "2026/_temporary/0/z"),
        ("/2026/_temporary/0/z.parquet", "2026/_temporary/0/z"),
        ("/*.parquet", "a"),
        ("/_*.parquet", "_draft"),
        ("/.*.parquet", ".hidden"),
        ("/2026/*/x.parquet", "2026/01/x 2026/02/x"),
        ("/*/*.parquet", "2027/c1 2027/c2 2027/c33 2027/ü"),
        ("/**/*.parquet", "a 2026/01/x 2026/02/x 2026/02/y 2027/c1 2027/c2 2027/c33 2027/ü"),
        ("/**/x.parquet", "2026/01/x 2026/02/x"),
        ("/2026/**", "2026/01/x 2026/02/x 2026/02/y"),
        ("/2026/_temporary/**/*.parquet", "2026/_temporary/0/z"),
        ("/2027/c?.parquet", "2027/c1 2027/c2"),
        ("/2027/c[23]*.parquet", "2027/c2 2027/c33"),
        ("/2027/c[!2].parquet", "2027/c1"),
        ("/202[67]/*1.parquet", "2027/c1"),
        ("/2027/*c*3*.parquet", "2027/c33"),
        ("/2026?02/x.parquet", ""),
        ("/2026[!x]02/x.parquet", ""),
    ],
)
def test_files_are_found_by_file_folder_and_glob(tree: str, path: str, found: str) -> None:
    wanted = sorted(f"{name}.parquet" for name in found.split())
    if wanted:
        assert below(tree, tree + path) == wanted
    else:
        with pytest.raises(InputError, match="no file matches the glob"):
            find_parquet(tree + path)


def test_what_is_found_has_its_size_and_the_tag_that_it_has_later(tree: str) -> None:
    for item in find_parquet(tree):
        assert item.size == len(item.name.removeprefix(f"{tree}/").encode())
        assert stat_input(item.name) == item


def test_a_name_with_the_signs_of_a_glob_is_that_file(root: str) -> None:
    store = open_store(root)
    for name in ("a[1].parquet", "a1.parquet"):
        store.write(name, b"x")
    assert below(root, f"{root}/a[1].parquet") == ["a[1].parquet"]


def test_a_folder_whose_name_begins_another_does_not_find_it(root: str) -> None:
    store = open_store(root)
    for name in ("november/a.parquet", "november-old/b.parquet", "november.parquet"):
        store.write(name, b"x")
    assert below(root, f"{root}/november") == ["november/a.parquet"]


@pytest.mark.parametrize("path", ["/none", "/none.parquet", "/none/", "/*.csv.parquet", "/empty"])
def test_an_input_with_no_file_is_an_input_error_that_names_the_path(root: str, path: str) -> None:
    open_store(root).write("empty/notes.txt", b"x")
    with pytest.raises(InputError) as caught:
        find_parquet(root + path)
    assert str(caught.value).startswith(f"input.path {root}{path}: ")


def test_a_bucket_that_is_not_there_is_an_input_error(s3_endpoint: str) -> None:
    for path in ("", "/a", "/a.parquet", "/*.parquet"):
        with pytest.raises(
            InputError, match=f"input.path s3://no-such-bucket{path}: there is no such bucket".replace("*", r"\*")
        ):
            find_parquet(f"s3://no-such-bucket{path}")


# The input: reading files.


def test_pyarrow_reads_what_was_found(root: str) -> None:
    table = pa.table({"q": ["ä", None]})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    open_store(root).write("deep/a b.parquet", sink.getvalue().to_pybytes())
    (item,) = find_parquet(root)
    filesystem, inner = input_filesystem(item.name)
    with filesystem.open_input_file(inner) as file:
        assert pq.read_table(file).equals(table)


def test_the_state_of_a_file_follows_the_file(root: str) -> None:
    store = open_store(root)
    store.write("a", b"one")
    first = stat_input(f"{root}/a")
    assert (first.name, first.size) == (f"{root}/a", 3)
    store.write("a", b"three")
    second = stat_input(f"{root}/a")
    assert second.size == 5
    assert second.tag != first.tag
    store.delete("a")
    with pytest.raises(FileNotFoundError):
        stat_input(f"{root}/a")


def test_an_input_whose_bucket_is_away_is_not_gone(s3_endpoint: str) -> None:
    """Its rows would become dead letters."""
    for touch in (stat_input, input_filesystem, lambda path: read_at_most(path, 9)):
        with pytest.raises(StorageError, match=r"s3://no-such-bucket.*: there is no such bucket") as refused:
            touch("s3://no-such-bucket/a.parquet")
        assert refused.value.passing


def test_a_referenced_file_is_read_up_to_the_limit_and_one_byte(root: str) -> None:
    open_store(root).write("a", b"0123456789")
    assert read_at_most(f"{root}/a", 100) == b"0123456789"
    assert read_at_most(f"{root}/a", 10) == b"0123456789"
    assert read_at_most(f"{root}/a", 4) == b"01234"
    with pytest.raises(FileNotFoundError):
        read_at_most(f"{root}/b", 4)


def test_a_prefix_is_fetched_with_the_wanted_names_directly_below_it(s3: str, tmp_path: Path) -> None:
    store = open_store(f"{s3}/models/one")
    for name in ("params.json", "consolidated.safetensors", "extra.bin", "deeper/params.json"):
        store.write(name, name.encode())
    fetch_prefix(f"{s3}/models/one/", tmp_path, re.compile(r"params\.json|consolidated.*"))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "params.json": b"params.json",
        "consolidated.safetensors": b"consolidated.safetensors",
    }
