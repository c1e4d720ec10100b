"""Tables and outputs of jobs are recognised by their markers, and refused as input by name."""

from pathlib import Path

import pytest

from magbatch.errors import InputError
from magbatch.storage import open_store
from magbatch.storage.search import find_input
from magbatch.storage.tables import folder_kind, marks


def below(root: str, path: str) -> list[str]:
    """The files behind a path, relative to the root."""
    return [item.name.removeprefix(f"{root}/") for item in find_input(path).files]


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


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
def test_a_table_on_a_disk_is_refused_by_name(tmp_path: Path, table: str) -> None:
    refused_by_name(str(tmp_path), table)


@pytest.mark.parametrize("table", ["Delta, parted", "Iceberg by uuid", "Hive with rows of before"])
def test_a_table_in_a_bucket_is_refused_by_name(s3: str, table: str) -> None:
    """The markers are those of a disk; a few kinds show that they are found, here and in the folders above."""
    refused_by_name(s3, table)


def refused_by_name(root: str, table: str) -> None:
    """Also if only a part of the table is given: its files hold deleted rows too."""
    *others, last = TABLES[table]
    for name in (*others, last):
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
    """The message names the partition's folder if the table is partitioned: its root has no marker."""
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


def test_a_marker_names_its_folder_and_kind() -> None:
    assert list(marks("lake/t/_delta_log/0.json")) == [("lake/t", "Delta")]
    assert list(marks("t/day=1/base_0000003/000000_0")) == [("t/day=1", "Hive")]
    assert list(marks("out/_magbatch/spec.yaml")) == [("out", "_magbatch")]
    assert list(marks("out/_magbatch/tmp/draft")) == []


def test_a_folder_that_may_not_be_listed_is_judged_by_its_known_names(tmp_path: Path) -> None:
    (tmp_path / "base_0000003").mkdir()
    assert folder_kind(str(tmp_path), [], listed=True) == "Hive"
    assert folder_kind(str(tmp_path), [], listed=False) is None
    assert folder_kind(str(tmp_path), ["base_0000003"], listed=False) == "Hive"
