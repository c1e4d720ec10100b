"""Input files are found alike on a disk and in object storage, each real one once."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from magbatch.errors import InputError, JobError, SpecError, StorageError
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


def test_a_bucket_that_is_not_there_is_an_input_error(s3_endpoint: str) -> None:
    for path in ("", "/a", "/a.parquet", "/*.parquet"):
        with pytest.raises(
            InputError, match=f"input.path s3://no-such-bucket{path}: there is no such bucket".replace("*", r"\*")
        ):
            find_input(f"s3://no-such-bucket{path}")


# Links, and what is no file.


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


@pytest.mark.parametrize("path", ["", "/**/*.parquet", "/**"])
def test_every_real_file_is_found_once_whatever_links_lead_to_it(tmp_path: Path, path: str) -> None:
    """By the name that no link leads to; a folder that links to itself, or up, has an end."""
    root = tmp_path / "in"
    put(root, "a.parquet", "2026-11-24/b.parquet", "2026-11-24/c.parquet")
    put(tmp_path, "elsewhere/d.parquet")
    (root / "self").symlink_to(".")
    (root / "again").symlink_to(root)
    (root / "0-latest").symlink_to("2026-11-24")
    (root / "0-one.parquet").symlink_to("2026-11-24/b.parquet")
    (root / "0-hard.parquet").hardlink_to(root / "2026-11-24/c.parquet")
    (root / "2026-11-24/up").symlink_to("..")
    (root / "out").symlink_to(tmp_path / "elsewhere")
    (root / "out-again").symlink_to(tmp_path / "elsewhere")
    assert below(str(root), f"{root}{path}") == ["0-hard.parquet", "2026-11-24/b.parquet", "a.parquet", "out/d.parquet"]


def test_links_in_circles_have_an_end(tmp_path: Path) -> None:
    """Some 40 links deep, a path is too long; two links in each folder would make that 2 to the 40th paths."""
    put(tmp_path, "a.parquet", "sub/b.parquet")
    for folder in (tmp_path, tmp_path / "sub"):
        for number in range(3):
            (folder / f"circle{number}").symlink_to(tmp_path)
    for path in ("", "/**", "/**/*.parquet", "/**/**/*.parquet"):
        assert below(str(tmp_path), f"{tmp_path}{path}") == ["a.parquet", "sub/b.parquet"]


def test_a_glob_may_name_a_link(tmp_path: Path) -> None:
    put(tmp_path, "2026-11-24/b.parquet")
    (tmp_path / "latest").symlink_to("2026-11-24")
    for path in ("latest", "latest/*.parquet", "lat*/*.parquet", "*/*.parquet", "latest/b.parquet"):
        first = "2026-11-24" if path.startswith("*") else "latest"
        assert below(str(tmp_path), f"{tmp_path}/{path}") == [f"{first}/b.parquet"]


def test_a_link_to_nothing_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").symlink_to("gone.parquet")
    with pytest.raises(InputError, match=r"a\.parquet is a link to a file that is not there"):
        find_input(str(tmp_path))


@pytest.mark.parametrize("path", ["", "/**/*.parquet", "/**", "/*", "/*/*.parquet", "/deep/*/*.parquet"])
def test_links_that_lead_nowhere_do_not_hide_what_lies_beside_them(tmp_path: Path, path: str) -> None:
    """To themselves, one to another, past a file: none of them is a folder."""
    put(tmp_path, "a.parquet", "deep/b.parquet", "deep/er/c.parquet")
    for folder in (tmp_path, tmp_path / "deep"):
        (folder / "loop").symlink_to("loop")
        (folder / "ping").symlink_to("pong")
        (folder / "pong").symlink_to("ping")
        (folder / "_hidden").symlink_to("gone")
        (folder / ".hidden.parquet").symlink_to(".hidden.parquet")
    if not path.endswith("*") or path.endswith("parquet"):
        (tmp_path / "gone").symlink_to("nowhere")
        (tmp_path / "long").symlink_to("x" * 300)
        (tmp_path / "past").symlink_to("a.parquet/b")
    found = {
        "/*": ["a.parquet"],
        "/*/*.parquet": ["deep/b.parquet"],
        "/deep/*/*.parquet": ["deep/er/c.parquet"],
    }
    assert below(str(tmp_path), f"{tmp_path}{path}") == found.get(
        path, ["a.parquet", "deep/b.parquet", "deep/er/c.parquet"]
    )


@pytest.mark.parametrize("path", ["", "/*.parquet", "/**"])
def test_a_link_to_itself_by_the_name_of_a_file_is_said(tmp_path: Path, path: str) -> None:
    put(tmp_path, "a.parquet")
    (tmp_path / "b.parquet").symlink_to("b.parquet")
    with pytest.raises(InputError, match=r"b\.parquet is a link that leads to itself; mend it, or take it away"):
        find_input(f"{tmp_path}{path}")


def test_a_link_past_a_file_is_said(tmp_path: Path) -> None:
    put(tmp_path, "a.parquet")
    (tmp_path / "b.parquet").symlink_to("a.parquet/b.parquet")
    with pytest.raises(InputError, match=r"b\.parquet is a link to a file that is not there"):
        find_input(str(tmp_path))


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.EACCES, InputError), (errno.EPERM, InputError), (errno.EIO, StorageError), (errno.ESTALE, StorageError)],
)
def test_a_folder_that_cannot_be_read_is_a_mistake_unless_that_may_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[JobError]
) -> None:
    """By its name: rows that are left out without a word would be missed by nobody."""
    put(tmp_path, "a.parquet", "shut/b.parquet")
    scan = os.scandir

    def refuse(folder: str) -> object:
        if folder.endswith("/shut"):
            raise OSError(number, os.strerror(number), folder)
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(kind, match=rf"{tmp_path}/shut.*{os.strerror(number)}") as caught:
        find_input(str(tmp_path))
    assert caught.value.exit_code == (2 if kind is InputError else 3)


@pytest.mark.parametrize("path", ["", "/**/*.parquet", "/*/in/*.parquet", "/*/*.parquet"])
def test_a_link_that_may_not_be_followed_is_said_unless_its_name_is_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    put(tmp_path, "a/b.parquet", "a/in/c.parquet")
    state = os.stat

    def refuse(name: str, **options: Any) -> os.stat_result:
        if "shut" in os.fsdecode(name):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), name)
        return state(name, **options)

    monkeypatch.setattr(os, "stat", refuse)
    (tmp_path / "_shut").symlink_to("/root")
    assert below(str(tmp_path), f"{tmp_path}{path}")
    (tmp_path / "shut").symlink_to("/root")
    with pytest.raises(InputError, match=rf"{tmp_path}/shut.* cannot be read: Permission denied; give this user"):
        find_input(f"{tmp_path}{path}")


def test_a_bucket_whose_name_no_bucket_has_is_a_mistake(s3_endpoint: str) -> None:
    with pytest.raises(InputError, match=r"^input\.path s3://No Bucket/in cannot be listed: .*not a bucket name.*$"):
        find_input("s3://No Bucket/in")


@pytest.mark.parametrize("path", ["", "/*.parquet", "/pipe.parquet"])
def test_only_files_are_input(tmp_path: Path, path: str) -> None:
    """A named pipe would be waited for without an end."""
    os.mkfifo(tmp_path / "pipe.parquet")
    with pytest.raises(InputError, match=r"pipe\.parquet is neither a file nor a folder"):
        find_input(f"{tmp_path}{path}")


def test_a_folder_may_have_a_files_name(root: str) -> None:
    open_store(root).write("rows.parquet/part-0.parquet", b"x")
    for path in ("", "/rows.parquet", "/*/*.parquet"):
        assert below(root, root + path) == ["rows.parquet/part-0.parquet"]


# Tables and outputs.

TABLES = {
    "Delta": ("t/_delta_log/00000000000000000000.json", "t/part-0.parquet"),
    "Delta, parted": ("t/_delta_log/00000000000000000000.json", "t/day=1/part-0.parquet", "t/day=2/part-0.parquet"),
    "Hudi": ("t/.hoodie/hoodie.properties", "t/day=1/0-0.parquet"),
    "Iceberg": ("t/metadata/v1.metadata.json", "t/data/00000-0.parquet"),
    "Iceberg with a hint": ("t/metadata/version-hint.text", "t/data/00000-0.parquet"),
    "Iceberg, packed": ("t/metadata/v1.gz.metadata.json", "t/data/00000-0.parquet"),
    "Iceberg, packed as of old": ("t/metadata/v1.metadata.json.gz", "t/data/00000-0.parquet"),
    "Iceberg by uuid, packed": (
        "t/metadata/00002-9c12d441-03fe-4693-9a96-a0705ddf69c1.metadata.json.gz", "t/data/00000-0.parquet",
    ),
    "Paimon": ("t/snapshot/snapshot-1", "t/snapshot/LATEST", "t/schema/schema-0", "t/day=1/bucket-0/data-0.parquet"),
    "Paimon without a snapshot": ("t/schema/schema-0", "t/bucket-0/data-0.parquet"),
    "Lance": ("t/_versions/18446744073709551614.manifest", "t/data/0.parquet"),
    "Hive": ("t/delete_delta_0000002_0000002_0000/bucket_00000", "t/delta_0000001_0000001_0000/0.parquet"),
    "Hive, compacted": ("t/base_0000003_v0000017/bucket_00000", "t/base_0000003_v0000017/0.parquet"),
    "Hive of old": ("t/base_0000003/bucket_00000", "t/delta_0000004_0000005/0.parquet"),
    "Hive with rows of before": ("t/delta_0000001_0000001_0000/bucket_00000", "t/000000_0.parquet"),
    "Iceberg by uuid": (
        "t/metadata/00000-9c12d441-03fe-4693-9a96-a0705ddf69c1.metadata.json", "t/data/day=1/00000-0.parquet",
    ),
}  # fmt: skip


@pytest.mark.parametrize("table", TABLES)
def test_a_table_is_refused_by_name(root: str, table: str) -> None:
    """Also where a part of it is given: its files hold deleted rows too."""
    *marks, last = TABLES[table]
    for name in (*marks, last):
        open_store(root).write(f"lake/{name}", b"x")
    kind, folder = table.partition(",")[0].partition(" ")[0], last.rpartition("/")[0]
    paths = {
        "",
        "/lake",
        "/lake/t/",
        "/lake/**/*.parquet",
        f"/lake/{folder}",
        f"/lake/{folder}/*.parquet",
        f"/lake/{last}",
    }
    for path in sorted(paths):
        with pytest.raises(InputError, match=rf"{root}/lake/t is an? {kind} table.* its current rows") as refused:
            find_input(root + path)
        assert "lake/t" in str(refused.value).partition("for example by")[2]


def test_a_file_that_links_lead_to_in_a_table_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "t/_delta_log/0.json", "t/a.parquet", "in/b.parquet")
    (tmp_path / "in/a.parquet").symlink_to("../t/a.parquet")
    with pytest.raises(InputError, match="Delta table"):
        find_input(f"{tmp_path}/in")


def test_a_part_of_a_hive_table_is_refused_by_the_tables_name(root: str) -> None:
    """In a table that is parted, that is the part's folder: nothing tells where the table begins."""
    open_store(root).write("t/day=1/base_0000003/0.parquet", b"x")
    for path in ("", "/t", "/t/day=1/base_0000003", "/t/day=1/base_0000003/0.parquet"):
        with pytest.raises(InputError, match=rf"{root}/t/day=1 is a Hive table"):
            find_input(root + path)


def test_what_only_looks_like_a_table_is_read(root: str) -> None:
    store = open_store(root)
    for name in (
        "metadata/notes.json",
        "metadata/x.metadata.json.parquet",
        "delta_log/a.parquet",
        "metadata/b.parquet",
        "base_20261124/c.parquet",
        "delta_20261101_20261124/d.parquet",
        "my_base_0000003/e.parquet",
        "base_0000003.parquet",  # a file
        "snapshot/snapshot-1.parquet",
        "schema/schema-0.json",
        "snapshot-1/f.parquet",
        "_versions/notes.txt",
        "version-hint.text",
    ):
        store.write(name, b"x")
    assert len(find_input(root).files) == 9


def test_the_output_of_a_job_is_read_where_it_is_meant(root: str) -> None:
    store = open_store(root)
    for name in ("in/a.parquet", "in/out/_magbatch/spec.yaml", "in/out/results/0.parquet", "in/out/errors/0.parquet"):
        store.write(name, b"x")
    for path in ("/in", "", "/in/**/*.parquet", "/in/out", "/in/*/*/*.parquet"):
        with pytest.raises(
            InputError, match=f"{root}/in/out is the output of a job; its answers are {root}/in/out/results"
        ):
            find_input(root + path)
    assert below(root, f"{root}/in/*.parquet") == ["in/a.parquet"]
    for path in ("/in/out/results", "/in/out/results/*.parquet", "/in/*/results/*.parquet", "/in/**/results/*.parquet"):
        assert below(root, root + path) == ["in/out/results/0.parquet"]


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
