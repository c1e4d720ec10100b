"""A job without Ray: real Parquet in, the scripted engine, real objects out, all in one process."""

import asyncio
import functools
import io
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from magbatch.engines import engine_args, start
from magbatch.engines.base import UNCONSTRAINED, Engine, EngineConfig, EngineLoad, OnTokens, RequestShape
from magbatch.fleet.board import BoardState
from magbatch.ledger.finalise import finalise
from magbatch.ledger.holder import LeaseToken
from magbatch.ledger.layout import PAGE, REPORT
from magbatch.ledger.ledger import Ledger
from magbatch.model.checkpoint import locate
from magbatch.model.facts import facts
from magbatch.model.tokenizer import Tokenizer
from magbatch.pipeline.answer import RowAnswerer
from magbatch.pipeline.block import ShardPrompts, from_block, to_block
from magbatch.pipeline.context import JobContext
from magbatch.pipeline.prepare import Preparer, Steps
from magbatch.pipeline.prompt import Prompter
from magbatch.plan.make import make_plan
from magbatch.plan.plan import Plan
from magbatch.replica.board import Load, Order, Usage
from magbatch.replica.losses import LossReason
from magbatch.replica.replica import Replica
from magbatch.replica.surroundings import Surroundings
from magbatch.replica.timing import Timing
from magbatch.report.report import Report, Run
from magbatch.rows import Generation, Prompt
from magbatch.spec import JobSpec, parse
from magbatch.storage import open_store
from magbatch.totals import Totals

PATIENCE_S = 30.0  # how long a test waits for what must happen before it fails


class LocalBoard:
    """The board, in this process, and what the replicas told it."""

    def __init__(self) -> None:
        self.state = BoardState()
        self.struck: list[dict[int, list[str]]] = []
        self.gone: list[str] = []

    async def begin(self, shard: int) -> tuple[bool, dict[str, int]]:
        return self.state.begin(shard)

    async def announce(self, replica: str, rows: dict[int, list[str]]) -> None:
        self.state.announce(replica, rows)

    async def strike(self, replica: str, rows: dict[int, list[str]], reason: LossReason, detail: str) -> None:
        self.struck.append(rows)
        self.state.strike(replica, rows, reason, detail)

    async def report(self, replica: str, done: Totals, use: Usage, load: Load, rows: dict[int, list[str]]) -> Order:
        return self.state.report(replica, done, use, load, rows)

    async def trouble(self, message: str) -> None:
        self.state.trouble(message)

    async def broke(self, replica: str, cause: str) -> None:
        self.gone.append(replica)
        self.state.broke(replica, cause)

    async def left(self, replica: str, reason: LossReason | None = None) -> None:
        self.gone.append(replica)
        self.state.left(replica, reason)


class WatchedEngine:
    """An engine, what is inside it, and a gate that holds chosen rows back: a straggler without a clock.

    Args:
        engine: Answers what is let through.
        hold: Row ids that wait at the gate until they are released.
    """

    def __init__(self, engine: Engine, hold: Iterable[str] = ()) -> None:
        self.engine = engine
        self.hold = {row_id: asyncio.Event() for row_id in hold}
        self.inside: set[str] = set()
        self.most = 0
        self.order: list[str] = []

    def release(self, *row_ids: str) -> None:
        """Let these rows through the gate, or all."""
        for row_id in row_ids or self.hold:
            self.hold[row_id].set()

    async def generate(
        self,
        prompt: Prompt,
        *,
        max_tokens: int,
        seed: int | None,
        on_tokens: OnTokens | None = None,
        form: RequestShape = UNCONSTRAINED,
    ) -> Generation:
        self.order.append(prompt.row_id)
        self.inside.add(prompt.row_id)
        self.most = max(self.most, len(self.inside))
        try:
            if prompt.row_id in self.hold:
                await self.hold[prompt.row_id].wait()
            return await self.engine.generate(prompt, max_tokens=max_tokens, seed=seed, on_tokens=on_tokens, form=form)
        finally:
            self.inside.discard(prompt.row_id)

    def load(self) -> EngineLoad:
        return self.engine.load()

    def shutdown(self) -> None:
        self.engine.shutdown()


class SmallJob:
    """A small job with its own input and output.

    Args:
        folder: Local folder of files that are always local.
        root: Parent of input and output: the folder (None), or an s3:// URL.
    """

    def __init__(self, folder: Path, root: str | None = None) -> None:
        self.root = root or str(folder)
        self.store = open_store(self.root)
        self.input = f"{self.root}/input"
        self.output = f"{self.root}/output"
        self.journal = folder / "journal"
        self.engine: dict[str, Any] = {"max_num_seqs": 4, "journal": str(self.journal)}
        self.board = LocalBoard()
        self.deaths = self.replicas = 0
        self.sections: dict[str, Any] = {
            "name": "small",
            "input": {"path": self.input, "columns": {"id": "id", "prompt": "question"}},
            "prompt": {"system": "none"},
            "sampling": {"max_tokens": 400},
            "limits": {"max_prompt_tokens": 2000},
            "replicas": {"gpus": 0},
            "output": {"path": self.output, "commit_interval_s": 0.05},
        }

    # Its input

    def ask(self, rows: int, name: str = "a.parquet", **columns: Any) -> None:
        """A file of questions: row 3 of a.parquet is "What is a3?", its id "a3"."""
        letter = Path(name).stem
        ids = [f"{letter}{row}" for row in range(rows)]
        self.write(pa.table({"id": ids, "question": [f"What is {one}?" for one in ids]} | columns), name)

    def write(self, table: pa.Table, name: str = "a.parquet", **options: Any) -> None:
        """Any table as an input file."""
        sink = io.BytesIO()
        pq.write_table(table, sink, **options)
        self.put(f"input/{name}", sink.getvalue())

    def put(self, name: str, data: bytes) -> None:
        """Any bytes at a path below the job's root."""
        self.store.write(name, data)

    # Its parts

    def spec(self, **sections: Any) -> JobSpec:
        """The spec, with fields of these sections replaced."""
        data = {"model": {"source": "builtin:tiny", "engine": "fake", "engine_args": self.engine}} | self.sections
        for name, section in sections.items():
            data[name] = data.get(name, {}) | section if isinstance(section, dict) else section
        return parse(yaml.safe_dump(data, sort_keys=False))

    def set(self, section: str, **fields: Any) -> None:
        """Change fields of the spec for good."""
        self.sections[section] = self.sections.get(section, {}) | fields

    @functools.cached_property
    def plan(self) -> Plan:
        return make_plan(self.spec())

    @property
    def job(self) -> JobContext:
        return JobContext(self.spec(), self.plan.columns, plan_id=self.plan.id)

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.output)

    @functools.cached_property
    def checkpoint(self) -> Path:
        return locate(self.spec().model, weights=False).path

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer(self.checkpoint)

    @functools.cached_property
    def preparer(self) -> Preparer:
        return Preparer(self.job, self.steps)

    @functools.cached_property
    def steps(self) -> Steps:
        return Steps.of(self.spec(), locate(self.spec().model, weights=False))

    def start_engine(self, hold: Iterable[str] = ()) -> WatchedEngine:
        spec = self.spec()
        args = engine_args(spec, facts(self.checkpoint)).to_dict()
        return WatchedEngine(start("fake", EngineConfig(self.checkpoint, args, spec.sampling, 0), self.tokenizer), hold)

    def replica(
        self,
        engine: Engine | None = None,
        name: str | None = None,
        notice: threading.Event | None = None,
        token: LeaseToken | None = None,
        timing: Timing = Timing(),  # noqa: B008 - frozen
    ) -> Replica:
        """A replica of the job; where its engine dies, `deaths` counts instead of a process ending."""
        self.replicas += 1
        name = name or ("replica" if self.replicas == 1 else f"replica {self.replicas}")

        def die() -> None:
            self.deaths += 1

        engine = engine or self.start_engine()
        prompter = Prompter(self.spec(), self.checkpoint, self.tokenizer, 2400)
        answerer = RowAnswerer.of(self.spec(), engine, self.tokenizer, prompter, 2400)
        around = Surroundings(name, self.board, die, notice, token, timing)
        return Replica(self.job, engine, answerer, self.engine["max_num_seqs"], around)

    # Its way

    def prompts(self, shard: int) -> ShardPrompts:
        """A shard as it reaches a replica: through its block."""
        return next(from_block(to_block(self.preparer(self.plan.shard(shard)))))

    async def run_shard(self, replica: Replica, shard: int = 0, *, may_have_rows: bool = False) -> int:
        """Give a shard to a replica as Ray does; returns the number of rows that it left."""
        return await replica.run(shard, lambda: self.prompts(shard), may_have_rows=may_have_rows)

    async def run_all(self, replica: Replica, *, may_have_rows: bool = False) -> list[int]:
        """Every shard at once."""
        shards = range(self.plan.num_shards)
        return await asyncio.gather(*(self.run_shard(replica, shard, may_have_rows=may_have_rows) for shard in shards))

    def answer(self) -> None:
        """Freeze the job and answer every row of it."""
        self.begin()

        async def work() -> None:
            assert set(await self.run_all(self.replica(), may_have_rows=True)) <= {0}

        asyncio.run(work())

    def begin(self) -> None:
        if self.ledger.plan() is None:
            self.plan = self.ledger.begin(self.spec(), self.plan)

    def finalise(self) -> list[str]:
        """Returns the rows that are missing."""
        return end(self.ledger, self.spec(), self.plan)

    # What came out

    def row_ids(self) -> list[str]:
        """The planned rows, in the order of the plan."""
        return [row_id for shard in self.plan.shards() for row_id in shard.row_ids()]

    def objects(self, kind: str = "results") -> list[str]:
        """Records that a plain glob over a folder of the output finds."""
        return [item.name for item in self.ledger.store.list(f"{kind}/") if item.name.endswith(".parquet")]

    def records(self, kind: str = "results", columns: list[str] | None = None) -> list[dict[str, Any]]:
        """All records that a plain glob finds; some columns of them, where others hold what Python cannot."""
        files = (io.BytesIO(self.ledger.store.read(name)) for name in self.objects(kind))
        return [row for file in files for row in pq.read_table(file, columns=columns).to_pylist()]

    def done(self, kind: str = "results") -> list[str]:
        """Row ids of the records, as often as they are there."""
        return sorted(row["row_id"] for row in self.records(kind))

    def asked(self) -> Counter[str]:
        """Number of engine requests by row."""
        lines = self.journal.read_text().splitlines() if self.journal.exists() else []
        return Counter(line.split()[0] for line in lines)


def end(ledger: Ledger, spec: JobSpec, plan: Plan) -> list[str]:
    """Finalise with nobody listening; returns the rows that are missing."""

    def report(totals: Totals) -> dict[str, bytes]:
        found = Report(spec.name, ledger.path, plan.rows, totals, None, Run())
        return {REPORT: json.dumps(found.to_dict()).encode(), PAGE: b"<html>"}

    return finalise(ledger, spec, plan, lambda kind, table: None, report, lambda: None)[1]


async def until(condition: Callable[[], bool], what: str) -> None:
    """Let the loop run until a condition holds; a test that never gets there fails with its name."""

    async def poll() -> None:
        while not condition():
            await asyncio.sleep(0.002)

    try:
        await asyncio.wait_for(poll(), PATIENCE_S)
    except TimeoutError:
        raise AssertionError(f"waited {PATIENCE_S:.0f} s in vain: {what}") from None
