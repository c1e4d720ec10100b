"""Windows are cut between groups, shards hold whole groups, and every row is in one shard, once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magbatch.plan import windows
from magbatch.plan.windows import Arrangement, ColumnValues, Cutter, Piece, pieces

ROW_BYTES = 10


def values(text: str) -> ColumnValues:
    """Values by letter: a value for each letter."""
    hashes = np.array([ord(letter) for letter in text], dtype=np.uint64)
    return ColumnValues(hashes, np.full(len(text), ROW_BYTES, dtype=np.int64))


def letters(piece: Piece) -> str | None:
    return None if piece.hashes is None else "".join(chr(code) for code in piece.hashes)


def shards(found: Arrangement) -> list[list[tuple[int, int]]]:
    """File and row of each row of each shard."""
    held: list[list[tuple[int, int]]] = [[] for _ in range(int(found.shard.max()) + 1)]
    runs = zip(found.shard, found.source, found.start, found.rows, found.positions.to_pylist(), strict=True)
    for shard, source, start, rows, positions in runs:
        held[shard] += [(int(source), int(start) + offset) for offset in positions or range(rows)]
    return held


def cut(files: list[str], target_rows: int, max_rows: int) -> Arrangement:
    cutter = Cutter(target_rows, max_rows)
    for piece in pieces([len(file) for file in files], [values(file) for file in files]):
        cutter.add(piece)
    return cutter.arrangement()


@pytest.fixture
def four_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "WINDOW_ROWS", 4)


@pytest.mark.usefixtures("four_rows")
def test_a_window_ends_between_two_groups() -> None:
    found = [(piece.start, letters(piece), piece.ends) for piece in pieces([6], [values("AAABBC")])]
    assert found == [(0, "AAA", True), (3, "BBC", False)]


@pytest.mark.usefixtures("four_rows")
def test_a_group_that_is_most_of_a_window_is_cut() -> None:
    assert [letters(piece) for piece in pieces([6], [values("ABBBBC")])] == ["ABBB", "BC"]


@pytest.mark.usefixtures("four_rows")
def test_small_files_share_a_window_until_a_file_keeps_its_order() -> None:
    found = list(pieces([2, 1, 3, 2], [values("AB"), values("C"), None, values("DE")]))
    assert [(piece.source, letters(piece), piece.ends) for piece in found] == [
        (0, "AB", False),
        (1, "C", False),
        (2, None, False),
        (3, "DE", False),
    ]


def test_a_window_holds_so_many_bytes_and_one_row_at_least(monkeypatch: pytest.MonkeyPatch) -> None:
    for window_bytes, expected in [(25, ["AB", "CD", "E"]), (5, ["A", "B", "C", "D", "E"])]:
        monkeypatch.setattr(windows, "WINDOW_BYTES", window_bytes)
        assert [letters(piece) for piece in pieces([5], [values("ABCDE")])] == expected


def test_runs_have_positions_only_if_their_rows_are_scattered() -> None:
    found = cut(["ABAAB", "C"], 3, 3)
    assert (found.start.tolist(), found.rows.tolist()) == ([0, 1, 0], [3, 2, 1])
    assert found.positions.to_pylist() == [[0, 2, 3], [0, 3], None]
    assert shards(found) == [[(0, 0), (0, 2), (0, 3)], [(0, 1), (0, 4), (1, 0)]]


def test_shards_grow_for_a_whole_group_and_a_giant_is_cut_evenly() -> None:
    assert [len(shard) for shard in shards(cut(["AAABBBCC" + "D" * 13], 4, 6))] == [6, 2, 4, 4, 5]


def test_the_note_says_whether_rows_moved() -> None:
    for file, how in [("AABB", "stand side by side already"), ("ABAB", "are placed side by side")]:
        cutter = Cutter(4, 4)
        for piece in pieces([4], [values(file)]):
            cutter.add(piece)
        cutter.arrangement()
        assert cutter.note("text") == f"rows with the same 'text' {how}: 2.0 at a time"


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    files=st.lists(st.text("ABCD", min_size=1, max_size=12), min_size=1, max_size=4),
    window=st.integers(1, 9),
    target_rows=st.integers(1, 5),
    more=st.integers(0, 4),
)
def test_every_row_is_in_one_shard_once(files: list[str], window: int, target_rows: int, more: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows, "WINDOW_ROWS", window)
        found = shards(cut(files, target_rows, target_rows + more))
    rows = [row for shard in found for row in shard]
    assert sorted(rows) == [(source, row) for source, file in enumerate(files) for row in range(len(file))]
    assert max(map(len, found)) <= target_rows + more
