"""A look at a store ends with its result or its error, and is late if the store does not answer."""

import threading

import pytest

from magbatch.schedule.look import Look, wait_for


def test_a_look_gives_its_result_and_raises_its_error() -> None:
    def refuse() -> None:
        raise ConnectionError("refused")

    found, refused = Look(lambda: 3, "a", 60), Look(refuse, "b", 60)
    wait_for([found, refused], 30)
    assert (found.is_over, found.is_late, found.result()) == (True, False, 3)
    with pytest.raises(ConnectionError, match="refused"):
        refused.result()


def test_a_store_that_does_not_answer_is_late() -> None:
    answer = threading.Event()
    look = Look(answer.wait, "a", late_s=0.0)
    wait_for([look, look], 0.01)
    assert (look.is_over, look.is_late) == (False, True)
    answer.set()
    wait_for([look], 30)
    assert (look.is_over, look.is_late) == (True, False)
