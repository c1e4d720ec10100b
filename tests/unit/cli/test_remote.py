"""Commands about a cluster that does not answer end with one clear message."""

import pytest
from support.commands import command, refused


@pytest.mark.parametrize("words", [["jobs"], ["logs", "ID"], ["cancel", "ID"], ["resume", "ID"]])
def test_a_cluster_that_does_not_answer_is_named(words: list[str]) -> None:
    assert "http://127.0.0.1:1" in refused(command(*words, "--address", "http://127.0.0.1:1"))
