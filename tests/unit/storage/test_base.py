"""Promises of the store protocol, kept alike on a disk and in a bucket.

The tests that take only `root` also run against other servers of S3, see tests/integration/test_rgw.py.
"""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from magbatch.errors import StorageError
from magbatch.storage import open_store


def names(root: str, prefix: str) -> list[str]:
    return [item.name for item in open_store(root).list(prefix)]


def test_what_was_written_is_read_whole(root: str) -> None:
    store = open_store(root)
    for data in (b"", b"\x00\xff", os.urandom(3 << 20)):
        store.write("results/a.parquet", data)
        assert store.read("results/a.parquet") == data


def test_the_end_of_an_object_is_read_alone(root: str) -> None:
    store, data = open_store(root), bytes(range(200))
    store.write("results/a.parquet", data)
    assert store.read_end("results/a.parquet", 7) == data[-7:]
    assert store.read_end("results/a.parquet", 200) == data
    assert store.read_end("results/a.parquet", 5000) == data
    with pytest.raises(FileNotFoundError):
        store.read_end("results/b.parquet", 7)


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


def test_a_listing_begins_after_a_name(root: str) -> None:
    store = open_store(root)
    for name in ("results/a", "results/b/c", "results/ü", "results/Z", "results-more/x"):
        store.write(name, b"x")
    for after, found in (
        ("", ["Z", "a", "b/c", "ü"]),
        ("results/a", ["b/c", "ü"]),
        ("results/aa", ["b/c", "ü"]),
        ("results/b/c", ["ü"]),
        ("results/ü", []),
        ("zzz", []),
    ):
        assert [item.name.removeprefix("results/") for item in store.list("results/", after)] == found, after


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
    """During a write, readers see the old object or the new one, and no name but the object's own."""
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
        with pytest.raises(StorageError, match=r"^s3://no-such-bucket: there is no such bucket") as refused:
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


def test_an_object_is_replaced_only_by_who_has_seen_it(root: str) -> None:
    store = open_store(root)
    assert not store.replace("a/b", b"new", b"old"), "there is none to replace"
    store.write("a/b", b"old")
    assert store.replace("a/b", b"new", b"old")
    assert store.read("a/b") == b"new"
    assert store.replace("a/b", b"new", b"old"), "the first one's own retry"
    assert not store.replace("a/b", b"newer", b"old")
    assert store.read("a/b") == b"new"


def test_one_of_many_replaces_an_object(root: str) -> None:
    open_store(root).write("manifest", b"old")
    start = threading.Barrier(16)

    def replace(number: int) -> bool:
        start.wait()
        return open_store(root).replace("manifest", f"{number}".encode(), b"old")

    with ThreadPoolExecutor(16) as pool:
        replaced = list(pool.map(replace, range(16)))
    assert replaced.count(True) == 1
    assert open_store(root).read("manifest") == f"{replaced.index(True)}".encode()


def test_one_of_many_takes_a_name(root: str) -> None:
    start = threading.Barrier(16)

    def take(number: int) -> bool:
        start.wait()
        return open_store(root).create("lease", f"{number}".encode())

    with ThreadPoolExecutor(16) as pool:
        taken = list(pool.map(take, range(16)))
    assert taken.count(True) == 1
    assert open_store(root).read("lease") == f"{taken.index(True)}".encode()
