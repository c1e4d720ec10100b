"""The workloads of a benchmark: rows whose prompts and lengths depend only on the workload's name and the seed.

The length of each row is drawn before any arm runs, and forced with `ignore_eos`. No scheduler knows it: rows are in
the order in which they were drawn. So every arm generates the same tokens; an arm with another sum has failed.
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
from magbatch.model.checkpoint import locate
from magbatch.pipeline.context import JobContext
from magbatch.pipeline.prepare import Preparer, Steps
from magbatch.plan.make import make_plan
from magbatch.spec import JobSpec, parse
from magbatch.tiny.receipts import draw_receipt

SIGMA = 1.1  # spread of the lognormal lengths, as of reasoning lengths
LONG_SHARE, LONG_TIMES = 0.01, 100  # workload `tail`: share of long rows, and their length in means of all other rows
FILES = 8  # number of input files; one file would be a single block for Ray
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
        name: Name for people, which also goes into the seed.
        mean_tokens: Mean length of the rows in tokens, without the long rows of `tail`.
        most_tokens: Upper bound of a row's length in tokens.
        prompt_words: Number of words of the question.
        images: Whether each row has an image.
        tail: Whether 1% of the rows are 100 times as long as the mean of all other rows.
    """

    name: str
    mean_tokens: int
    most_tokens: int
    prompt_words: int
    images: bool = False
    tail: bool = False

    def lengths(self, rows: int, seed: int) -> list[int]:
        """Draw the length of each row in tokens: lognormal, and for `tail` 1% of long rows."""
        rng = random.Random(f"lengths/{self.name}/{seed}")
        mu = math.log(self.mean_tokens) - SIGMA**2 / 2
        most = self.most_tokens if not self.tail else self.mean_tokens * LONG_TIMES // 4
        found = [max(1, min(most, round(rng.lognormvariate(mu, SIGMA)))) for _ in range(rows)]
        if self.tail:
            for row in rng.sample(range(rows), max(1, round(rows * LONG_SHARE))):
                found[row] = self.mean_tokens * LONG_TIMES
        return found

    def records(self, rows: int, seed: int) -> Iterator[dict[str, Any]]:
        """Make the rows. No two prompts start alike, so no cache helps any arm."""
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
        rows: Input of magbatch: questions and images, as a user has them.
        prompts: Input of the other arms: the same rows in the same order, as token ids and pixels.
        lengths: Number of tokens of each row by row id.
        prompt_tokens: Number of tokens of all prompts.
    """

    rows: Path
    prompts: Path
    lengths: dict[str, int]
    prompt_tokens: int


def job(workload: Workload, rows: Path, output: Path, settings: dict[str, Any]) -> JobSpec:
    """The spec with which magbatch answers a workload: defaults, plus the settings that force lengths.

    Args:
        workload: Workload to answer.
        rows: Folder of its input.
        output: Folder for the answers.
        settings: Values of `model`, `engine_args` and `gpus` of the command.
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
    """Write the input of every arm. Templating and tokenizing happen here, before the run, for arms that cannot do it.

    Raises:
        SpecError: The model does not accept a row of the workload.
    """
    given, ready = folder / "rows", folder / "prompts"
    given.mkdir(parents=True)
    ready.mkdir()
    records = list(workload.records(rows, seed))
    size = math.ceil(len(records) / FILES)
    schema = pa.schema(dict[str, pa.DataType](id=pa.string(), question=pa.string(), tokens=pa.int32()))
    if workload.images:
        schema = schema.append(pa.field("image", pa.binary()))
    for number, begin in enumerate(range(0, len(records), size)):
        table = pa.Table.from_pylist(records[begin : begin + size], schema=schema)
        pq.write_table(table, given / f"{number:02d}.parquet")
    spec = job(workload, given, folder / "none", settings)
    plan = make_plan(spec)
    checkpoint = plan.checkpoint or locate(spec.model, weights=False)
    preparer = Preparer(JobContext(spec, plan.columns), Steps.of(spec, checkpoint))
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
