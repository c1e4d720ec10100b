"""Cost of resuming a very large job: `uv run --no-sync python tests/benchmarks/resume.py`.

Two jobs with the same open rows, on the scripted engine: one resumes the last twentieth of many rows,
one is fresh and has only those. What differs between them is the price of what is done already: the
time from the command to the first request in an engine, and the driver's memory. Then `verify` of the
completed large job, against a bare loop that reads the same columns of the same objects.
"""

import argparse
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from magbatch.ledger.ledger import READERS, Ledger
from magbatch.pipeline.write import ObjectWriter
from magbatch.plan.make import make_plan
from magbatch.rows import Answer, FinishedRow, ReasoningStatus, Shard
from magbatch.spec import load

COMMAND = [sys.executable, "-m", "magbatch"]
OPEN_SHARE = 20  # one row in so many is open
FILES = 20
WORDS = ("so", "the", "sum", "of", "both", "is", "carry", "one", "and", "add", "next", "digit", "check", "again")


@dataclass
class Measured:
    """A command, measured from its start.

    Attributes:
        first_s: Time to the first request in an engine, in seconds.
        settled: The driver's unshared memory then (bytes).
        peak: Largest memory of the driver until the end, in bytes.
    """

    first_s: float
    settled: int
    peak: int


def make_job(folder: Path, rows: int) -> Path:
    """Input files and a spec; nothing is answered yet."""
    (folder / "in").mkdir(parents=True)
    for number in range(FILES):
        mine = range(number * rows // FILES, (number + 1) * rows // FILES)
        questions = [f"What is {index} + {number}?" for index in mine]
        table = pa.table({"id": [f"id-{index}" for index in mine], "question": questions})
        pq.write_table(table, folder / "in" / f"{number:02d}.parquet")
    spec = folder / "job.yaml"
    args = {"max_num_seqs": 256, "journal": str(folder / "journal")}
    settings = {
        "name": "resume",
        "model": {"source": "builtin:tiny", "engine": "fake", "engine_args": args},
        "input": {"path": str(folder / "in"), "columns": {"id": "id", "prompt": "question"}, "shard_rows": 128},
        "sampling": {"max_tokens": 400},
        "limits": {"max_prompt_tokens": 2000},
        "replicas": {"gpus": 0},
        "output": {"path": str(folder / "out")},
    }
    spec.write_text(yaml.safe_dump(settings))
    return spec


def answer_most(spec_path: Path) -> int:
    """Commit all but every twentieth row as replicas do; half of what is open lies in shards that were begun."""
    os.fsync = lambda fd: None  # only the making is hurried, nothing that is measured
    spec = load(str(spec_path), [])
    plan, ledger = make_plan(spec), Ledger(spec.output.path)
    ledger.begin(spec, plan)
    chance, now, committed = random.Random(1), datetime.now(UTC), 0

    def commit(shard: Shard, row_ids: list[str]) -> None:
        carried = pa.table({"id": [f"user-{row_id}" for row_id in row_ids]})
        positions = {row_id: position for position, row_id in enumerate(row_ids)}
        writer = ObjectWriter(ledger.store, carried, positions, "builtin:tiny", shard.index)
        rows = []
        for row_id in row_ids:
            reasoning = " ".join(chance.choices(WORDS, k=60))
            answer = Answer(reasoning, ReasoningStatus.COMPLETE, str(chance.randrange(9999)), "stop", 80, 4)
            rows.append(FinishedRow(row_id, 20, 0, 1.0, [answer], now))
        writer.results(rows)

    for shard in plan.shards():
        row_ids = shard.row_ids()
        match shard.index % (2 * OPEN_SHARE):
            case 7:
                continue
            case 17 | 27:
                row_ids = row_ids[::2]
        commit(shard, row_ids)
        committed += len(row_ids)
    return committed


def measure(spec: Path) -> Measured:
    """Run the job to its end."""
    journal = spec.parent / "journal"
    began = time.monotonic()
    with (spec.parent / "log").open("wb") as log:
        process = subprocess.Popen([*COMMAND, "run", str(spec)], stdout=log, stderr=log)
    driver, first, settled, peak = psutil.Process(process.pid), 0.0, 0, 0
    while process.poll() is None:
        try:
            used = driver.memory_full_info().uss
        except psutil.NoSuchProcess:
            break
        peak = max(peak, used)
        if not first and journal.exists():
            first, settled = time.monotonic() - began, used
        time.sleep(0.02)
    if process.wait() != 0:
        sys.exit((spec.parent / "log").read_text())
    return Measured(first, settled, peak)


def bare_read(out: Path) -> float:
    """Seconds that a loop takes which reads row ids and token counts of every object, and does nothing with them."""
    began = time.monotonic()
    columns = ["row_id", "sample", "prompt_tokens", "reasoning_tokens", "answer_tokens", "reasoning_status"]
    with ThreadPoolExecutor(READERS) as pool:
        for table in pool.map(lambda path: pq.read_table(path, columns=columns), (out / "results").glob("*.parquet")):
            assert table.num_rows
    return time.monotonic() - began


def verify(out: Path) -> tuple[float, int]:
    """Seconds and peak memory (bytes) of the command."""
    began = time.monotonic()
    subprocess.run([*COMMAND, "verify", str(out)], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024


def main() -> None:
    """Make both jobs, run them, and print what differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory(prefix="magbatch-resume-") as place:
        large = make_job(Path(place) / "large", rows)
        committed = answer_most(large)
        small = make_job(Path(place) / "small", rows - committed)
        print(f"large: {rows:,} rows planned, {committed:,} committed; small: {rows - committed:,} planned")
        fresh, resumed = measure(small), measure(large)
        for path in (small.parent / "out", small.parent / "journal"):
            subprocess.run(["rm", "-r", str(path)], check=True)
        again = measure(small)
        first = (fresh.first_s + again.first_s) / 2
        print(
            f"command to first request: large {resumed.first_s:.1f} s, "
            f"small {fresh.first_s:.1f} s and {again.first_s:.1f} s"
        )
        print(f"  what is committed costs {resumed.first_s - first:.1f} s before the first request")
        mb = 1e6
        print(f"driver at the first request: large {resumed.settled / mb:.0f} MB, small {again.settled / mb:.0f} MB")
        print(
            f"driver's peak: large {resumed.peak / mb:.0f} MB, small {again.peak / mb:.0f} MB, "
            f"ratio {resumed.peak / again.peak:.2f}"
        )
        bare = bare_read(large.parent / "out")
        seconds, memory = verify(large.parent / "out")
        print(
            f"verify of {rows:,} rows: {seconds:.1f} s, {memory / mb:.0f} MB at most; "
            f"bare read of the columns {bare:.1f} s"
        )
        print(f"  ratio {seconds / bare:.2f}")


if __name__ == "__main__":
    main()
