"""Answers are checked in processes with limits: no answer blocks another answer or the event loop."""

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from magbatch.answers import Checker, Reading
from magbatch.answers.checker import Lanes, handler
from magbatch.errors import AnswerError, ErrorCode, RowError
from magbatch.spec import AnswerSpec

FEW = Lanes(quick=1, slow=1, quick_s=0.2)  # processes start slowly on a busy machine
BACKTRACKS = r"(?P<answer>(x+x+)+y|7)"
# Each choice looks at the whole rest before it fails: twice the work for each level.
DOUBLING = {
    "type": "object",
    "properties": {"x": {"$ref": "#/$defs/t"}},
    "$defs": {
        "t": {
            "anyOf": [
                {
                    "type": "object",
                    "properties": {"a": {"$ref": "#/$defs/t"}, "b": {"const": number}},
                    "required": ["b"],
                }
                for number in (1, 2)
            ]
        }
    },
}


def check_all(checker: Checker, *answers: str | None) -> list[Reading | BaseException]:
    async def work() -> list[Reading | BaseException]:
        return await asyncio.gather(*map(checker, answers), return_exceptions=True)

    return asyncio.run(work())


def test_endless_answers_fail_and_other_answers_do_not() -> None:
    checker = Checker(AnswerSpec(extract=BACKTRACKS), 0.5, FEW)
    late, *others, later = check_all(checker, "x" * 50, *["The answer: 7."] * 20, "x" * 60)
    assert others == [Reading({"extracted": "7"})] * 20
    for error in (late, later):
        assert isinstance(error, RowError)
        assert error.code is ErrorCode.ANSWER_INVALID
        assert error.message == "answer.extract: not checked within limits.answer_timeout_s = 0.5"
    assert late.answer == "x" * 50


def test_good_answers_do_not_wait_for_slow_ones() -> None:
    """Twice as many slow answers as processes come first, with a long time limit."""

    async def work() -> list[Reading]:
        checker = Checker(AnswerSpec(extract=BACKTRACKS), 10.0, FEW)
        late = [asyncio.create_task(checker("x" * 50)) for _ in range(2 * FEW.quick)]
        found = await asyncio.gather(*(checker("7") for _ in range(12)))
        assert not any(task.done() for task in late)
        for task in late:
            task.cancel()
        return found

    assert asyncio.run(work()) == [Reading({"extracted": "7"})] * 12


def test_a_slow_answer_gets_its_full_time() -> None:
    in_a_moment = Lanes(quick=1, slow=1, quick_s=0.001)  # too short for any of these answers
    found, late = check_all(Checker(AnswerSpec(extract=BACKTRACKS), 2.0, in_a_moment), "x" * 17 + " 7", "x" * 50)
    assert found == Reading({"extracted": "7"})
    assert isinstance(late, RowError)


def defective(
    setup: dict[str, Any],
) -> Callable[[dict[str, Any], bytes], Iterator[tuple[dict[str, Any], bytes | None]]]:
    """A handler that raises an unexpected error for some answers."""
    check = handler(setup)

    def work(head: dict[str, Any], body: bytes) -> Iterator[tuple[dict[str, Any], bytes | None]]:
        if b"defect" in body:
            raise KeyError("x" * 2000)
        return check(head, body)

    return work


@pytest.mark.parametrize(
    ("spec", "kind", "field"),
    [
        ({"schema": {"type": "object", "properties": {"x": {"type": "string"}}}}, AnswerError, ""),  # asked for again
        ({"extract": BACKTRACKS}, RowError, "answer.extract: "),
    ],
)
def test_a_defect_in_the_check_makes_only_that_answer_invalid(
    spec: dict[str, Any], kind: type[Exception], field: str
) -> None:
    checker = Checker(AnswerSpec(**spec), 30, Lanes(quick=1, slow=1, quick_s=30), handler=f"{__name__}:defective")
    defect, fine = check_all(checker, '{"x": "defect"}', '{"x": "7"}')
    assert type(defect) is kind
    message = defect.message if isinstance(defect, RowError) else str(defect)
    assert message.startswith(f"{field}cannot be checked: KeyError: 'xxx")
    assert len(message) < 600
    assert not isinstance(defect, RowError) or defect.code is ErrorCode.ANSWER_INVALID
    assert isinstance(fine, Reading)


def test_more_slow_answers_than_processes_delay_other_answers_only_briefly() -> None:
    checker = Checker(AnswerSpec(extract=BACKTRACKS), 0.5, FEW)
    found = check_all(checker, *["x" * 50] * (FEW.quick + 1), "7")
    assert found.pop() == Reading({"extracted": "7"})
    assert {type(error) for error in found} == {RowError}


def test_the_event_loop_goes_on_while_an_answer_is_checked() -> None:
    async def work() -> tuple[bool, int]:
        checker = Checker(AnswerSpec(extract=BACKTRACKS), 0.5, FEW)
        await checker("7")  # its process is there
        task, turns = asyncio.create_task(checker("x" * 60)), 0
        while not task.done():
            await asyncio.sleep(0.01)
            turns += 1
        return isinstance(task.exception(), RowError), turns

    late, turns = asyncio.run(work())
    assert late
    assert turns > 5, "the loop was not held up"


def test_a_schema_that_doubles_its_work_with_each_level_is_bounded() -> None:
    deep = '{"a": ' * 40 + "1" + ', "b": 3}' * 40
    late, fine = check_all(Checker(AnswerSpec(schema=DOUBLING), 0.5, FEW), f'{{"x": {deep}}}', '{"x": {"b": 2}}')
    assert isinstance(late, RowError)
    assert late.message == "answer.schema: not checked within limits.answer_timeout_s = 0.5"
    assert isinstance(fine, Reading)


def test_an_answer_that_does_not_fit_is_an_answer_error() -> None:
    schema = {"type": "object", "properties": {"x": {"type": "string", "format": "date"}}, "required": ["x"]}
    checker = Checker(AnswerSpec(schema=schema, vote="majority"), 30, Lanes(quick=1, slow=1, quick_s=30))
    wrong, fits, nothing = check_all(checker, '{"x": "today"}', '{"x": "2026-03-01"}', None)
    assert isinstance(wrong, AnswerError)
    assert str(wrong) == "$.x: 'today' is not a 'date'"
    assert isinstance(fits, Reading)
    assert (str(fits.values["x"]), fits.ballot) == ("2026-03-01", '{"x":"2026-03-01"}')
    assert nothing == Reading()


@pytest.mark.parametrize(
    ("spec", "answer", "reading"),
    [
        ({}, "text", Reading()),
        ({"extract": "whole"}, "\ud800", Reading({"extracted": "\ud800"})),
        ({"extract": "boxed", "vote": "majority"}, r"\boxed{7}", Reading({"extracted": "7"}, "7")),
        ({"vote": "majority"}, " 7 ", Reading(ballot="7")),
    ],
)
def test_no_process_is_needed_if_nothing_can_take_long(
    spec: dict[str, Any], answer: str, reading: Reading, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", "/nowhere")  # a process would not start
    assert check_all(Checker(AnswerSpec(**spec), 5), answer) == [reading]


def test_a_process_killed_from_outside_is_not_the_answers_fault() -> None:
    async def work() -> Reading:
        checker = Checker(AnswerSpec(extract=BACKTRACKS), 30, Lanes(quick=1, slow=1, quick_s=30))
        before = children()
        await checker("7")
        for pid in children() - before:
            os.kill(pid, signal.SIGKILL)
        return await checker("7")

    assert asyncio.run(work()) == Reading({"extracted": "7"})


def children() -> set[int]:
    found = Path(f"/proc/self/task/{os.getpid()}/children")
    threads = Path("/proc/self/task").glob("*/children") if found.exists() else []
    return {int(pid) for thread in threads for pid in thread.read_text().split()}
