"""Cost of metrics: the same kind of rows through an engine with metrics and an engine without, in turn.

    uv run --no-sync python tests/benchmarks/metrics_cost.py

Both engines stay up; one works at a time. With metrics, vLLM keeps count of its load at every step, the exporter is
scraped every second (Prometheus asks every 15), and the heartbeat writes. Prints medians of tokens a second, and
their ratio.
"""

import argparse
import asyncio
import statistics
import tempfile
import threading
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from magbatch.engines import engine_args
from magbatch.engines.base import EngineConfig
from magbatch.engines.vllm import VllmEngine
from magbatch.fleet.board import BoardState
from magbatch.jobs.steps import steps_of
from magbatch.ledger.ledger import Ledger
from magbatch.model.checkpoint import locate
from magbatch.model.facts import facts
from magbatch.model.tokenizer import Tokenizer
from magbatch.pipeline.answer import RowAnswerer
from magbatch.pipeline.block import from_block, to_block
from magbatch.pipeline.context import JobContext
from magbatch.pipeline.prepare import Preparer
from magbatch.pipeline.prompt import Prompter
from magbatch.plan.make import make_plan
from magbatch.replica.board import Load, Order, Usage
from magbatch.replica.replica import Replica
from magbatch.replica.surroundings import Surroundings
from magbatch.report.exporter import Exporter
from magbatch.report.heartbeat import Heartbeat
from magbatch.report.progress import JobProgress
from magbatch.spec import JobSpec, parse
from magbatch.storage import open_store
from magbatch.tiny.tasks import example
from magbatch.totals import Totals

SPEC = """
name: bench
model: {{source: builtin:tiny, engine_args: {{max_num_seqs: 64}}}}
input: {{path: {folder}/in, columns: {{prompt: question}}}}
sampling: {{temperature: 0, max_tokens: 512}}
limits: {{max_prompt_tokens: 2000}}
replicas: {{gpus: 0}}
output: {{path: {folder}/out, commit_interval_s: 1}}
metrics: {{port: 0, enabled: {enabled}}}
"""
SCRAPE_S = 1.0
ARMS = {"off": False, "on": True}


class LocalBoard:
    """The board, in this process."""

    def __init__(self, rows: int) -> None:
        self.state = BoardState(rows)

    async def begin(self, shard: int) -> tuple[bool, dict[str, int]]:
        return self.state.begin(shard)

    async def strike(self, rows: dict[int, list[str]]) -> None:
        raise AssertionError("the engine died")

    async def report(self, replica: str, done: Totals, use: Usage, load: Load) -> Order:
        return self.state.report(replica, done, use, load)

    async def trouble(self, message: str) -> None:
        raise AssertionError(message)

    async def left(self, replica: str) -> None:
        raise AssertionError("the replica left")


def write_input(folder: Path, rows: int, seed: int) -> None:
    """Rows that no engine has seen."""
    (folder / "in").mkdir(parents=True)
    questions = [example("train", seed, index, ["arithmetic"]).question for index in range(rows)]
    pq.write_table(pa.table({"question": questions}), folder / "in" / "a.parquet")


async def answer(spec: JobSpec, engine: VllmEngine, *, counted: bool) -> tuple[float, int]:
    """Seconds that a whole job takes, from its first row to its last commit, and the tokens of it."""
    checkpoint = locate(spec.model, weights=True).path
    tokenizer, args = Tokenizer(checkpoint), engine_args(spec, facts(checkpoint))
    plan = make_plan(spec)
    job, ledger = JobContext(spec, plan.columns), Ledger(spec.output.path)
    ledger.begin(spec, plan)
    preparer = Preparer(job, steps_of(spec, plan))
    blocks = [to_block(preparer(shard)) for shard in plan.shards()]
    board = LocalBoard(plan.rows)
    prompter = Prompter(spec, checkpoint, tokenizer, args.max_model_len)
    answerer = RowAnswerer.of(spec, engine, tokenizer, prompter, args.max_model_len)
    replica = Replica(job, engine, answerer, args.max_num_seqs, Surroundings("replica", board, die=lambda: None))
    progress, over = JobProgress(spec, plan.rows, 0), threading.Event()
    said: list[str] = []

    def scrape() -> None:
        url = said[0].removeprefix("metrics: ")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        while not over.wait(SCRAPE_S):
            progress.observe(board.state.snapshot())
            opener.open(url, timeout=10).read()

    with ExitStack() as stack:
        if counted:
            stack.enter_context(Exporter(spec, progress, said.append).serving())
            stack.enter_context(Heartbeat(open_store(spec.output.path), progress, lambda: None).beating())
            threading.Thread(target=scrape, daemon=True).start()
            stack.callback(over.set)
        began = time.monotonic()
        await asyncio.gather(
            *(
                replica.run(index, lambda block=block: next(from_block(block)), may_have_rows=False)
                for index, block in enumerate(blocks)
            )
        )
        seconds = time.monotonic() - began
    replica.stop()
    done = board.state.snapshot().done
    assert done.answered == plan.rows, done
    return seconds, done.generated_tokens


def main() -> None:
    """Run the arms and print what they took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--repetitions", type=int, default=7)
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as place:

        def spec_of(name: str, repetition: int) -> JobSpec:
            folder = Path(place) / f"{name}-{repetition}"
            return parse(SPEC.format(folder=folder, enabled=str(ARMS[name]).lower()))

        first = spec_of("on", 0)
        checkpoint = locate(first.model, weights=True).path
        args = engine_args(first, facts(checkpoint)).to_dict()
        engines = {
            name: VllmEngine(EngineConfig(checkpoint, args, first.sampling, 0, counts)) for name, counts in ARMS.items()
        }
        speeds: dict[str, list[float]] = {name: [] for name in ARMS}

        async def run() -> None:
            for repetition in range(-1, arguments.repetitions):  # the first round warms the engines up
                order = list(ARMS) if repetition % 2 else list(reversed(ARMS))
                for name in order:
                    seed = 5000 + 10 * repetition + list(ARMS).index(name)
                    write_input(Path(place) / f"{name}-{repetition}", arguments.rows, seed)
                    seconds, tokens = await answer(spec_of(name, repetition), engines[name], counted=ARMS[name])
                    if repetition >= 0:
                        speeds[name].append(tokens / seconds)

        asyncio.run(run())
        for engine in engines.values():
            engine.shutdown()
    print(f"{arguments.rows} rows, {arguments.repetitions} times, in turn")
    for name, values in speeds.items():
        runs = " ".join(f"{value:,.0f}" for value in values)
        print(f"  metrics {name:3} {statistics.median(values):8,.0f} tokens/s   ({runs})")
    ratios = [on / off for on, off in zip(speeds["on"], speeds["off"], strict=True)]
    runs = " ".join(f"{ratio:.2f}" for ratio in ratios)
    print(f"  on / off: median of pairs {statistics.median(ratios):.3f}   ({runs})")


if __name__ == "__main__":
    main()
