"""A replica is silent in time in which the board was awake, and a report that comes twice counts once."""

from magbatch.fleet.silence import MOST_BETWEEN_LOOKS_S, Silence


def look_for(silence: Silence, begin: float, seconds: int) -> list[tuple[str, str]]:
    """Look four times a second; what is silent in the end."""
    found: list[tuple[str, str]] = []
    for step in range(4 * seconds):
        found = silence.silent(begin + (step + 1) / 4)
    return found


def test_a_replica_that_starts_is_not_silent_and_one_that_serves_is() -> None:
    silence = Silence(10.0, 0.0)
    silence.join("one", "actor 1")
    assert look_for(silence, 0.0, 20) == []
    assert not silence.heard("one", {}, 1)
    assert look_for(silence, 20.0, 10) == []
    assert look_for(silence, 30.0, 1) == [("one", "actor 1")]
    silence.left("one")
    assert look_for(silence, 31.0, 20) == []


def test_time_in_which_the_board_stood_still_is_no_silence() -> None:
    silence = Silence(10.0, 0.0)
    silence.join("one", "actor 1")
    silence.heard("one", {}, 1)
    assert silence.silent(500.0) == []
    assert look_for(silence, 500.0, int(10 - MOST_BETWEEN_LOOKS_S)) == []


def test_a_report_is_known_by_its_number() -> None:
    silence = Silence(10.0, 0.0)
    silence.join("one", "actor 1")
    heard = [silence.heard("one", {}, number) for number in (1, 1, 2, None)]
    assert heard == [False, True, False, False]
    assert not silence.heard("unknown", {}, 1)


def test_the_rows_of_the_last_report_or_announcement_count() -> None:
    silence = Silence(10.0, 0.0)
    silence.join("one", "actor 1")
    silence.heard("one", {4: ["a"]}, 1)
    silence.announce("one", {4: ["b"]})
    assert (silence.rows("one"), silence.rows("two")) == ({4: ["b"]}, None)
    silence.join("two", "actor 1")  # Ray has started the same actor again
    assert (silence.rows("one"), silence.rows("two")) == (None, {})
