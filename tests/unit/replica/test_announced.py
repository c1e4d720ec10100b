"""The board is told of a replica's rows before they begin and after they end."""

import asyncio

from support.small_job import LocalBoard

from magbatch.replica.announced import Announced


def test_the_end_of_one_piece_of_a_shard_leaves_the_rows_of_another() -> None:
    board = LocalBoard()
    board.state.join("one", "actor")
    announced = Announced("one", board)

    async def work() -> None:
        await announced.send(4, ["a", "b"])
        await announced.send(4, ["c"])
        announced.leave(4, "a")
        announced.end(4, ["a", "b"])
        assert announced.by_shard() == {4: ["c"]}
        await announced.send(5, ["d"])

    asyncio.run(work())
    board.state.froze("one")
    assert (board.state.begin(4)[1], board.state.begin(5)[1]) == ({"c": 1}, {"d": 1})
    announced.end(4, ["c"])
    announced.end(5, ["d"])
    assert announced.by_shard() == {}
