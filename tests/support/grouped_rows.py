"""Input rows that share long texts, and their places in a plan."""

import random
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa

from magbatch.plan.plan import Plan
from support.small_job import SmallJob

FIRST = "{{ text }}\n\n{{ question }}"
LONG = 1200  # characters of a text: enough for grouping


def text(number: int) -> str:
    """The text with a number."""
    return (f"{number:03d} " + "lorem ipsum " * LONG)[:LONG]


def shuffled(rows: int, texts: int, seed: int = 1) -> list[int]:
    """The number of the text of each row, in no order."""
    numbers = [row % texts for row in range(rows)]
    random.Random(seed).shuffle(numbers)
    return numbers


def ask_about(job: SmallJob, numbers: list[int], name: str = "a.parquet", **options: Any) -> None:
    """A question about a text in each row."""
    letter = Path(name).stem
    table = {
        "id": [f"{letter}{row}" for row in range(len(numbers))],
        "question": [f"What is {letter}{row}?" for row in range(len(numbers))],
        "text": [text(number) for number in numbers],
        "file": [f"docs/{number}.txt" for number in numbers],
        "number": numbers,
        "chat": [[{"role": "user", "content": f"What is {letter}{row}?"}] for row in range(len(numbers))],
    }
    job.write(pa.table(table), name, **options)


def positions(plan: Plan) -> list[list[int]]:
    """The rows of each shard, by their positions in the file."""
    return [[int(row_id.rpartition("-")[2]) for row_id in shard.row_ids()] for shard in plan.shards()]


def in_order(plan: Plan) -> list[int]:
    """The rows of all shards, by their positions in the file."""
    return [row for shard in positions(plan) for row in shard]


def runs(numbers: list[int], plan: Plan) -> list[list[int]]:
    """The runs of equal values in each shard."""
    return [[number for number, _ in groupby(numbers[row] for row in shard)] for shard in positions(plan)]
