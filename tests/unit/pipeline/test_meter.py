"""Tokens are counted as they arrive: reasoning up to the closing token, then answer."""

from magbatch.engines.base import RequestShape
from magbatch.pipeline.meter import Meter

OPEN, CLOSE = 34, 35


def test_a_free_request_thinks_if_it_opens_thinking() -> None:
    meter = Meter(OPEN, CLOSE)
    count = meter.request(RequestShape())
    count(0, [OPEN, 1])
    count(0, [2, CLOSE, 3])
    count(0, [4])
    assert (meter.reasoning_tokens, meter.answer_tokens) == (4, 2)


def test_an_answer_that_quotes_the_opening_token_does_not_think() -> None:
    meter = Meter(OPEN, CLOSE)
    meter.request(RequestShape())(0, [1, OPEN, 2])
    assert (meter.reasoning_tokens, meter.answer_tokens) == (0, 3)


def test_samples_are_counted_apart_and_requests_add_up() -> None:
    meter = Meter(OPEN, CLOSE)
    count = meter.request(RequestShape(stop=CLOSE))
    count(0, [1, 2])
    count(1, [])
    count(1, [CLOSE])
    count(0, [CLOSE])
    meter.request(RequestShape(banned_token=OPEN))(0, [7])
    meter.request(RequestShape(schema={}))(0, [OPEN])
    assert (meter.reasoning_tokens, meter.answer_tokens) == (4, 2)


def test_a_model_without_thinking_only_answers() -> None:
    meter = Meter()
    meter.request(RequestShape())(0, [1, 2, 3])
    assert (meter.reasoning_tokens, meter.answer_tokens) == (0, 3)
