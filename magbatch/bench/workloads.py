"""What every arm answers: rows whose prompts and lengths depend on the name of the workload and the seed alone.

The length of each row is forced (`ignore_eos`), drawn before any arm runs, and known to no scheduler: rows stand in
the order in which they were drawn. So every arm generates the same tokens, and a sum that is off is an arm that failed.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from magbatch.errors import SpecError
from magbatch.pipeline.context import JobContext
from magbatch.pipeline.prepare import Preparer
from magbatch.plan.make import make_plan
from magbatch.spec import JobSpec, parse
from magbatch.tiny.receipts import draw_receipt

SIGMA = 1.1  # of the lognormal lengths: as reasoning lengths are
LONG_SHARE, LONG_TIMES = 0.01, 100  # of `tail`: rows that are a hundred times as long as the others' mean
FILES = 8  # of the input: one would be one block for Ray
WORDS = [
    "invoice",
    "contract",
    "ledger",
    "payment",
    "balance",
    "supplier",
    "customer",
    "delivery",
    "warehouse",
    "quarter",
    "amount",
    "total",
    "discount",
    "penalty",
    "clause",
    "section",
    "annex",
    "article",
    "deadline",
    "currency",
    "interest",
    "account",
    "transfer",
    "receipt",
    "order",
    "shipment",
    "customs",
]


@dataclass(frozen=True, slots=True)
class Workload:
    """A kind of rows.

    Attributes:
        name: For people and for the seed.
        mean_tokens: Of the rows' lengths, before the long ones.
        most_tokens: That a row has.
        prompt_words: Of the question.
        images: Whether each row has one.
        tail: Whether 1% of the rows are 100 times as long as the others' mean.
    """

    name: str
    mean_tokens: int
    most_tokens: int
    prompt_words: int
    images: bool = False
    tail: bool = False

    def lengths(self, rows: int, seed: int) -> list[int]:
        """Tokens of each row: lognormal, and of `tail` every hundredth as long as a hundred."""
        rng = random.Random(f"lengths/{self.name}/{seed}")
        mu = math.log(self.mean_tokens) - SIGMA**2 / 2
        most = self.most_tokens if not self.tail else self.mean_tokens * LONG_TIMES // 4
        found = [max(1, min(most, round(rng.lognormvariate(mu, SIGMA)))) for _ in range(rows)]
        if self.tail:
            for row in rng.sample(range(rows), max(1, round(rows * LONG_SHARE))):
                found[row] = self.mean_tokens * LONG_TIMES
        return found

    def records(self, rows: int, seed: int) -> Iterator[dict[str, Any]]:
        """The rows: no two share the beginning of a prompt, so that no cache helps any arm."""
        rng = random.Random(f"prompts/{self.name}/{seed}")
        for row, tokens in enumerate(self.lengths(rows, seed)):
            words = " ".join(rng.choice(WORDS) for _ in range(self.prompt_words))
            record: dict[str, Any] = {"id": f"{self.name}-{row:06d}", "question": f"{row} {words}", "tokens": tokens}
            if self.images:
                record["image"] = draw_receipt(random.Random(f"image/{seed}/{row}")).png()
            yield record


WORKLOADS = {
    one.name: one
    for one in (
        Workload("text", mean_tokens=24, most_tokens=1500, prompt_words=6),
        Workload("tail", mean_tokens=16, most_tokens=1600, prompt_words=6, tail=True),
        Workload("image", mean_tokens=16, most_tokens=400, prompt_words=4, images=True),
    )
}


@dataclass(frozen=True, slots=True)
class Prepared:
    """A workload as files.

    Attributes:
        rows: The input of magbatch: questions and images, as a user has them.
        prompts: The input of the others: the same rows in the same order, as token ids and pixels.
        lengths: Tokens of each row by its id.
        prompt_tokens: Of all prompts.
    """

    rows: Path
    prompts: Path
    lengths: dict[str, int]
    prompt_tokens: int


def job(workload: Workload, rows: Path, output: Path, settings: dict[str, Any]) -> JobSpec:
    """The spec with which magbatch answers a workload: its defaults, but for what forces lengths.

    Args:
        workload: What.
        rows: The folder of its input.
        output: Where the answers go.
        settings: `model`, `engine_args` and `gpus` of the command.
    """
    columns: dict[str, Any] = {"id": "id", "prompt": "question", "max_tokens": "tokens"}
    return parse(
        yaml.safe_dump(
            {
                "name": f"bench-{workload.name}",
                "model": {"source": settings["model"], "engine_args": settings["engine_args"]},
                "input": {"path": str(rows), "columns": columns | ({"images": ["image"]} if workload.images else {})},
                "prompt": {"system": "none"},
                "sampling": {"temperature": 0, "max_tokens": workload.most_tokens, "ignore_eos": True},
                "limits": {"max_prompt_tokens": 600, "max_images": 1, "repetition_tokens": None},
                "replicas": {"gpus": settings["gpus"]},
                "metrics": {"port": 0},
                "output": {"path": str(output)},
            }
        )
    )


def prepare(workload: Workload, rows: int, seed: int, folder: Path, settings: dict[str, Any]) -> Prepared:
    """Write the input of every arm; templating and tokenizing are done here, outside, for those that cannot.

    Raises:
        SpecError: A row of the workload does not fit the model.
    """
    given, ready = folder / "rows", folder / "prompts"
    given.mkdir(parents=True)
    ready.mkdir()
    records = list(workload.records(rows, seed))
    size = math.ceil(len(records) / FILES)
    schema = pa.schema([("id", pa.string()), ("question", pa.string()), ("tokens", pa.int32())])
    if workload.images:
        schema = schema.append(pa.field("image", pa.binary()))
    for number, begin in enumerate(range(0, len(records), size)):
        table = pa.Table.from_pylist(records[begin : begin + size], schema=schema)
        pq.write_table(table, given / f"{number:02d}.parquet")
    spec = job(workload, given, folder / "none", settings)
    plan = make_plan(spec)
    preparer = Preparer(JobContext(spec, plan.columns))
    prompts: list[dict[str, Any]] = []
    for shard in plan.shards():
        work = preparer(shard)
        if work.failed:
            raise SpecError(f"the workload {workload.name} does not suit this model: {work.failed[0].message}")
        ids = work.carried.column("id").to_pylist()
        for prompt in work.prompts:
            record = {"id": ids[work.positions[prompt.row_id]], "token_ids": prompt.token_ids.tolist()}
            record["tokens"] = prompt.max_tokens
            if prompt.images:
                (image,) = prompt.images
                record |= {"width": image.width, "height": image.height, "rgb": image.rgb}
            prompts.append(record)
    kinds = [("id", pa.string()), ("token_ids", pa.list_(pa.int32())), ("tokens", pa.int32())]
    if workload.images:
        kinds += [("width", pa.int32()), ("height", pa.int32()), ("rgb", pa.binary())]
    for number, begin in enumerate(range(0, len(prompts), size)):
        table = pa.Table.from_pylist(prompts[begin : begin + size], schema=pa.schema(kinds))
        pq.write_table(table, ready / f"{number:02d}.parquet")
    lengths = {record["id"]: record["tokens"] for record in records}
    return Prepared(given, ready, lengths, sum(len(prompt["token_ids"]) for prompt in prompts))
