"""Input files are found alike on a disk and in object storage, each real one once."""

from pathlib import Path

import pytest

from magbatch.errors import InputError, SpecError
from magbatch.storage import open_store
from magbatch.storage.inputs import stat_input
from magbatch.storage.search import check_apart, find_input


def below(root: str, path: str) -> list[str]:
    """The files behind a path, relative to the root."""
    return [item.name.removeprefix(f"{root}/") for item in find_input(path).files]


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
            find_input(tree + path)


def test_what_is_found_has_its_size_and_the_tag_that_it_has_later(tree: str) -> None:
    for item in find_input(tree).files:
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
        find_input(root + path)
    assert str(caught.value).startswith(f"input.path {root}{path}: ")


def test_a_folder_may_have_a_files_name(root: str) -> None:
    open_store(root).write("rows.parquet/part-0.parquet", b"x")
    for path in ("", "/rows.parquet", "/*/*.parquet"):
        assert below(root, root + path) == ["rows.parquet/part-0.parquet"]


@pytest.mark.parametrize(
    ("given", "output", "apart"),
    [
        ("in", "out", True),
        ("in", "in-out", True),
        ("in/", "in", False),
        ("in", "in/", False),
        ("in", "in/deep/out", False),
        ("deep/in", "deep", False),
        ("in/a.parquet", "in", False),
        ("in/a.parquet", "in/out", True),
        ("in/*.parquet", "in/out", True),
        ("in/*.parquet", "in", False),
        ("in/*/*.parquet", "in/out", True),
        ("in/*/*/*.parquet", "in/out", False),
        ("in/*/results/*.parquet", "in/out", False),
        ("in/*/runs/*/results/*.parquet", "in/out", False),
        ("in/2026-*/**/*.parquet", "in/out", True),
        ("in/2026-*/**/*.parquet", "in/2026-11/out", False),
        ("in/**/*.parquet", "in/out", False),
        ("in/**/*.parquet", "in/_out", True),
        ("in/**/new-*.parquet", "in/out", True),
        ("**/*.parquet", "out", False),
    ],
)
def test_a_job_never_reads_what_it_writes(root: str, given: str, output: str, apart: bool) -> None:
    if apart:
        check_apart(f"{root}/{given}", f"{root}/{output}")
    else:
        with pytest.raises(SpecError, match="lie one inside the other"):
            check_apart(f"{root}/{given}", f"{root}/{output}")


def test_links_do_not_hide_that_a_job_reads_what_it_writes(tmp_path: Path) -> None:
    (tmp_path / "in/deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "in/deep")
    with pytest.raises(SpecError, match="lie one inside the other"):
        check_apart(f"{tmp_path}/in", f"{tmp_path}/link/out")
    with pytest.raises(SpecError, match="lie one inside the other"):
        check_apart(f"{tmp_path}/link/*.parquet", f"{tmp_path}/in")
