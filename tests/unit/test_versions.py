"""Nodes with other versions take no part; what they have is read from their environments."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from magbatch.errors import ClusterAccessError
from magbatch.fleet.board import MAX_REFUSED_READS, BoardState
from magbatch.versions import Agreed, differences, versions

MINE = {"python": "3.12.3", "torch": "2.13.0+cpu", "transformers": "5.19.0"}


@pytest.mark.parametrize(
    ("other", "found"),
    [
        (MINE, []),
        (MINE | {"python": "3.12.9", "torch": "2.13.0+cu128"}, []),
        (MINE | {"vllm": "0.32.0"}, []),
        ({"torch": "2.13.0"}, []),
        (MINE | {"python": "3.11.7"}, ["python 3.12.3 -> 3.11.7"]),
        (
            {"transformers": "5.19.1", "torch": "2.14.0+cpu"},
            ["torch 2.13.0+cpu -> 2.14.0+cpu", "transformers 5.19.0 -> 5.19.1"],
        ),
    ],
)
def test_what_is_another_version(other: dict[str, str], found: list[str]) -> None:
    assert differences(MINE, other) == found


def test_the_first_node_that_names_a_package_sets_the_jobs_version() -> None:
    job = Agreed()
    assert job.take("head", MINE) is None
    assert job.take("a", {"vllm": "0.32.0", "transformers": "5.19.0"}) is None
    why = job.take("b", {"vllm": "0.33.0", "tokenizers": "1"})
    assert why is not None
    assert "node b has vllm 0.33.0, node a has 0.32.0" in why
    assert job.versions == MINE | {"vllm": "0.32.0"}, "a node that is refused says nothing of the job's"
    assert job.take("b", MINE) is None, "it may come back mended"


def test_versions_are_those_of_the_environment(tmp_path: Path) -> None:
    assert versions().keys() >= {"magbatch", "python", "ray", "pyarrow"}
    package = tmp_path / "pyarrow-0.0.1.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: pyarrow\nVersion: 0.0.1\n")
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    code = "from magbatch.versions import versions; print(versions()['pyarrow'])"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "0.0.1\n"


def test_replicas_on_right_nodes_go_on_and_each_wrong_node_is_said_once() -> None:
    board = BoardState(10)
    assert board.differs("head", MINE) is None
    board.join("right", "actor-1")
    for _ in range(3):
        why = board.differs("b", MINE | {"transformers": "4.0"})
        assert why is not None
        board.refuse_replica("wrong", why)
    snapshot = board.snapshot()
    assert (snapshot.trouble, snapshot.engine_error, snapshot.failure) == ((1, why), None, None)
    assert snapshot.versions == MINE


def test_a_job_that_has_wrong_nodes_alone_ends_with_what_is_wrong() -> None:
    board = BoardState(10)
    board.differs("head", MINE)
    why = board.differs("b", MINE | {"transformers": "4.0"})
    assert why is not None
    board.refuse_replica("wrong", why)
    assert (board.snapshot().engine_error, board.snapshot().failed_starts) == (why, 1)

    for _ in range(MAX_REFUSED_READS - 1):
        board.refuse_reader(why)
    board.reads(0)  # on a right node
    for _ in range(MAX_REFUSED_READS):
        assert board.snapshot().failure is None
        board.refuse_reader(why)
    failure = board.snapshot().failure
    assert isinstance(failure, ClusterAccessError)
    assert str(failure) == why
