"""Input files are found and read alike on a disk and in object storage."""

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from magbatch.errors import InputError, StorageError
from magbatch.storage import open_store
from magbatch.storage.inputs import fetch_prefix, find_parquet, input_filesystem, stat_input


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
    for touch in (stat_input, input_filesystem):
        with pytest.raises(StorageError, match=r"s3://no-such-bucket.*: there is no such bucket") as refused:
            touch("s3://no-such-bucket/a.parquet")
        assert refused.value.passing


def test_a_prefix_is_fetched_with_the_wanted_names_directly_below_it(s3: str, tmp_path: Path) -> None:
    store = open_store(f"{s3}/models/one")
    for name in ("params.json", "consolidated.safetensors", "extra.bin", "deeper/params.json"):
        store.write(name, name.encode())
    fetch_prefix(f"{s3}/models/one/", tmp_path, re.compile(r"params\.json|consolidated.*"))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "params.json": b"params.json",
        "consolidated.safetensors": b"consolidated.safetensors",
    }
