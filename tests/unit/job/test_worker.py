"""What a replica's process does about itself. Its rows are in test_replica.py, and whole jobs in tests/integration."""

import gc
from collections.abc import Iterator

import pytest

from magbatch.job.worker import uncollected


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    """Leaves this process as it was."""
    yield
    gc.unfreeze()
    gc.enable()


@pytest.mark.parametrize("fails", [False, True])
def test_what_an_engines_start_leaves_is_not_looked_at_again(fails: bool) -> None:
    made: list[object] = []
    before = gc.get_freeze_count()
    try:
        with uncollected():
            made = [[] for _ in range(10_000)]
            assert not gc.isenabled()
            if fails:
                raise RuntimeError("no engine")
    except RuntimeError:
        assert fails
    assert gc.isenabled(), "what rows leave behind is collected"
    assert gc.get_freeze_count() >= before + len(made)
    young = {id(one) for one in gc.get_objects()}
    assert not young & {id(one) for one in made}
