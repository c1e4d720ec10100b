"""Rows enter the engine in order and within the bounds, whatever they do."""

import asyncio
import random

import pytest

from magbatch.replica.admission import Admission


class Door:
    """Rows that ask to be let in, and the order in which they were."""

    def __init__(self, rows: int, bytes_: int) -> None:
        self.admission = Admission(rows, bytes_)
        self.entered: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def ask(self, name: str, size: int) -> None:
        async def enter() -> None:
            await self.admission.enter(size)
            self.entered.append(name)

        self.tasks[name] = asyncio.create_task(enter())
        await self.settle()

    async def settle(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    async def leave(self, size: int) -> None:
        self.admission.leave(size)
        await self.settle()

    async def cancel(self, name: str) -> None:
        self.tasks[name].cancel()
        await self.settle()

    @property
    def state(self) -> tuple[int, int, int]:
        return self.admission.rows, self.admission.bytes, self.admission.waiting


def test_rows_enter_up_to_the_bound_of_rows_and_then_one_for_one() -> None:
    async def play() -> None:
        door = Door(2, 1000)
        for name in "abcd":
            await door.ask(name, 1)
        assert (door.entered, door.state) == (["a", "b"], (2, 2, 2))
        await door.leave(1)
        assert (door.entered, door.state) == (["a", "b", "c"], (2, 2, 1))
        await door.leave(1)
        await door.leave(1)
        await door.leave(1)
        assert (door.entered, door.state) == (["a", "b", "c", "d"], (0, 0, 0))

    asyncio.run(play())


def test_rows_enter_up_to_the_bound_of_bytes_in_the_order_in_which_they_ask() -> None:
    async def play() -> None:
        door = Door(10, 10)
        await door.ask("a", 6)
        await door.ask("b", 5)
        await door.ask("c", 1)  # fits next to a, but b was first
        assert door.entered == ["a"]
        await door.leave(6)
        assert (door.entered, door.state) == (["a", "b", "c"], (2, 6, 0))

    asyncio.run(play())


def test_a_row_above_every_bound_enters_alone() -> None:
    async def play() -> None:
        door = Door(10, 10)
        await door.ask("large", 11)
        await door.ask("small", 1)
        assert door.entered == ["large"]
        await door.leave(11)
        await door.ask("larger", 12)
        assert door.entered == ["large", "small"]
        await door.leave(1)
        assert door.entered == ["large", "small", "larger"]

    asyncio.run(play())


def test_a_row_that_gives_up_waiting_lets_those_behind_it_in() -> None:
    async def play() -> None:
        door = Door(10, 10)
        await door.ask("a", 6)
        await door.ask("b", 5)
        await door.ask("c", 1)
        await door.cancel("b")
        assert (door.entered, door.state) == (["a", "c"], (2, 7, 0))

    asyncio.run(play())


def test_a_row_that_is_let_in_and_gives_up_at_once_hands_its_place_on() -> None:
    async def play() -> None:
        door = Door(1, 10)
        for name in "abc":
            await door.ask(name, 1)
        door.admission.leave(1)  # lets b in ...
        door.tasks["b"].cancel()  # ... which never hears of it
        await door.settle()
        assert (door.entered, door.state) == (["a", "c"], (1, 1, 0))

    asyncio.run(play())


def test_a_row_that_gives_up_as_another_leaves_is_passed_over() -> None:
    async def play() -> None:
        door = Door(1, 10)
        for name in "abc":
            await door.ask(name, 1)
        door.tasks["b"].cancel()
        door.admission.leave(1)
        await door.settle()
        assert (door.entered, door.state) == (["a", "c"], (1, 1, 0))
        assert door.tasks["b"].cancelled()

    asyncio.run(play())


class Model:
    """Admission lets in the longest possible beginning of the queue."""

    def __init__(self, rows: int, bytes_: int) -> None:
        self.bounds = (rows, bytes_)
        self.waiting: dict[str, int] = {}
        self.inside: dict[str, int] = {}

    def let_in(self) -> None:
        while self.waiting:
            name, size = next(iter(self.waiting.items()))
            rows, bytes_ = len(self.inside) + 1, sum(self.inside.values()) + size
            if rows > 1 and (rows > self.bounds[0] or bytes_ > self.bounds[1]):
                return
            self.inside[name] = self.waiting.pop(name)

    @property
    def state(self) -> tuple[int, int, int]:
        return len(self.inside), sum(self.inside.values()), len(self.waiting)


@pytest.mark.parametrize("seed", range(40))
def test_whatever_rows_do_the_bounds_and_the_order_hold_and_none_is_forgotten(seed: int) -> None:
    rng = random.Random(seed)
    bounds = rng.randrange(1, 6), rng.randrange(1, 40)

    async def play() -> None:
        door, model = Door(*bounds), Model(*bounds)
        left: set[str] = set()

        async def check() -> None:
            await door.settle()
            assert set(door.entered) - left == model.inside.keys()
            assert door.state == model.state
            assert model.state[0] == 1 or (model.state[0] <= bounds[0] and model.state[1] <= bounds[1])

        for number in range(300):
            on_their_way = [name for name, task in door.tasks.items() if not task.done()]
            inside = [name for name in model.inside if door.tasks[name].done()]
            move = rng.choice(["ask", "ask", "leave", "cancel"])
            if move == "ask":
                name, size = str(number), rng.randrange(1, 50)
                await door.ask(name, size)
                model.waiting[name] = size
            elif move == "leave" and inside:
                name = rng.choice(inside)
                left.add(name)
                door.admission.leave(model.inside.pop(name))
            elif move == "cancel" and on_their_way:
                name = rng.choice(on_their_way)
                door.tasks[name].cancel()
                model.waiting.pop(name, None)
                model.inside.pop(name, None)
            model.let_in()
            if rng.random() < 0.6:  # else the next move comes before anybody has noticed this one
                await check()
        await check()
        assert len(left) > 20
        while model.inside:
            name, size = model.inside.popitem()
            left.add(name)
            door.admission.leave(size)
            model.let_in()
            await check()
        assert door.state == (0, 0, 0)
        assert {name for name, task in door.tasks.items() if not task.cancelled()} == set(door.entered)

    asyncio.run(play())
