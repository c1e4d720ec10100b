"""A glob selects the same names on a disk and in a bucket."""

import pytest

from magbatch.storage.globs import is_below, is_data, listed_prefix, matches


@pytest.mark.parametrize(
    ("name", "pattern", "selected"),
    [
        ("a.parquet", "*.parquet", True),
        ("a/b.parquet", "*.parquet", False),
        ("a/b.parquet", "**/*.parquet", True),
        ("b.parquet", "**/*.parquet", True),
        ("a/b/c.parquet", "a/**/c.parquet", True),
        ("a/_b/c.parquet", "a/**/c.parquet", False),
        ("a/_b/c.parquet", "a/_*/c.parquet", True),
        (".a.parquet", "*.parquet", False),
        (".a.parquet", ".*.parquet", True),
        ("a/b", "a/**", True),
        ("a", "a/**", True),
        ("c1", "c[!2]", True),
        ("c2", "c[!2]", False),
        ("C1", "c1", False),
    ],
)
def test_a_glob_selects_names(name: str, pattern: str, selected: bool) -> None:
    assert matches(name.split("/"), pattern.split("/")) is selected


def test_hidden_names_are_not_data() -> None:
    names = ("a.parquet", "a/b.parquet", "_a.parquet", ".a.parquet", "_tmp/b.parquet", "a.PARQUET", "a.parquet.crc")
    assert [name for name in names if is_data(name)] == ["a.parquet", "a/b.parquet"]


def test_the_listed_prefix_is_what_all_selected_keys_share() -> None:
    assert [listed_prefix(key) for key in ("in/a", "in/*/a", "in/2026-?", "*", "in/a[1]")] == [
        "in/a",
        "in/",
        "in/2026-",
        "",
        "in/a",
    ]


def test_a_folder_does_not_hold_a_folder_whose_name_it_begins() -> None:
    assert is_below("/in/a", "/in")
    assert is_below("/in", "/in")
    assert is_below("/in/a", "/")
    assert not is_below("/in-more/a", "/in")
