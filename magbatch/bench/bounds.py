"""Measurements of the cost that magbatch adds to an engine, each against the same work done by hand.

They measure the occupancy of the engine's slots and peak memory as rows grow. Jobs without an engine run against bare
loops over the same libraries, and the start runs against vLLM started by hand.
"""

import ctypes
import json
import os
import random
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pypdfium2 as pdfium
import pypdfium2.raw as pdfium_c
import yaml

from magbatch.bench import probe
from magbatch.bench.arms import (
    EVENTS,
    RUN_TIMEOUT_S,
    START_TIMEOUT_S,
    Arm,
    Magbatch,
    Raw,
    RayDataLlm,
    RayDriver,
    resolved_args,
)  # fmt: skip
from magbatch.bench.measure import MAGBATCH, RAY, SEED, Say
from magbatch.bench.process import Machine, Process
from magbatch.bench.report import Target
from magbatch.bench.workloads import FILES, WORDS, WORKLOADS, prepare
from magbatch.errors import BenchError
from magbatch.fleet.ray_settings import REPLICA_PROCESS
from magbatch.model.checkpoint import locate
from magbatch.model.tokenizer import Tokenizer
from magbatch.spec import ModelSpec

PROMPT_TOKENS = 500
DOCUMENT_PAGES, PAGE_LINES = 8, 40
MEMORY_TIMES = 16
START_ROWS = 64
RAMP = 0.1  # share of a job's rows that is left out: processes are still starting


def occupancy_of(steps: Sequence[tuple[float, int, int]], slots: int, rows: int) -> float:
    """Share of usable slots that were in use, over time, until every row is in the engine.

    Args:
        steps: Steps that the probe recorded: time (Unix time, s), running sequences, finished requests.
        slots: Number of sequences that the engine works on at once.
        rows: Number of rows of the input.

    Raises:
        BenchError: The engine took no step.
    """
    used = possible = 0.0
    for (began, running, finished), (ended, _, _) in pairwise(steps):
        could = min(slots, rows - finished)
        used += (ended - began) * min(running, could)
        possible += (ended - began) * could
        if finished + running >= rows:  # every row is in the engine
            break
    if not possible:
        raise BenchError("the engine took no step, so its occupancy is unknown; run the suite with more --rows")
    return used / possible


def occupancy(machine: Machine, rows: int, rounds: int, folder: Path, say: Say) -> list[Target]:
    """Measure the occupancy in the workload `tail`, in which 1% of the rows are 100 times as long."""
    workload = WORKLOADS["tail"]
    prepared = prepare(workload, rows, SEED, folder / "input", machine.settings)
    slots = resolved_args(machine, workload)[1].max_num_seqs
    arms: list[Arm] = [
        Magbatch(machine, workload),
        Raw(machine, workload),
        RayDataLlm(RayDriver(machine, workload, steps=True), None, None, None, RAY),
    ]
    found: dict[str, list[float]] = {arm.name: [] for arm in arms}
    for number in range(rounds):
        for arm in arms:
            where = folder / f"{number}-{arm.name}"
            where.mkdir()
            try:
                arm.run(prepared, where, steps=True)
            except BenchError as error:
                if arm.name != RAY:
                    raise
                say(f"occupancy: {arm.name} left out: {error}")  # the other arms can still be compared
                continue
            finally:
                arm.close()
            found[arm.name].append(occupancy_of(probe.steps(where / EVENTS), slots, rows))
            say(f"occupancy: {arm.name} {found[arm.name][-1]:.4f} of min({slots}, rows remaining)")
    return [
        Target(f"slots in use until the input is exhausted, {name}", statistics.median(shares),
               0.98 if name == MAGBATCH else None, runs=tuple(shares))
        for name, shares in found.items() if shares
    ]  # fmt: skip


# Without an engine.


def _scripted(name: str, given: Path, output: Path, machine: Machine, **sections: Any) -> dict[str, Any]:
    """Spec of a job whose engine answers immediately."""
    engine = {"max_num_seqs": 256, "max_model_len": 131072, "tokens": 1}
    whole: dict[str, Any] = {
        "name": name,
        "model": {"source": machine.model, "engine": "fake", "engine_args": engine},
        "input": {"path": str(given), "columns": {"id": "id", "prompt": "question"}},
        "prompt": {"system": "none"},
        "sampling": {"max_tokens": 512},
        "limits": {"max_prompt_tokens": 8192, "max_images": 100},
        "replicas": {"gpus": 0},
        "metrics": {"port": 0},
        "output": {"path": str(output)},
    }
    return whole | sections


def run_job(
    spec: dict[str, Any],
    folder: Path,
    look: Callable[[psutil.Process], None] | None = None,
    env: Mapping[str, str] = os.environ,
) -> Path:
    """Run a job to its end; returns its output folder."""
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump(spec), encoding="utf-8")
    process = Process([sys.executable, "-m", "magbatch", "run", str(file), "--json"], dict(env), folder / "log", ())
    try:
        process.wait(RUN_TIMEOUT_S, "magbatch run", look)
    finally:
        process.end()
    return Path(spec["output"]["path"])


def steady_rate(output: Path) -> float:
    """Rows per second of a job at full speed: from the commit of its first 10% of rows to its last commit.

    Raises:
        BenchError: The job has too few commits.
    """
    # Objects without rows are skipped: they only show the columns, and come after the last row.
    objects = sorted(
        (one.stat().st_ctime, count)
        for kind in ("results", "errors")
        for one in (output / kind).glob("*.parquet")
        if (count := pq.read_metadata(one).num_rows)
    )
    rows, done = sum(count for _, count in objects), 0
    for index, (at, count) in enumerate(objects):
        done += count
        if done >= RAMP * rows and index + 1 < len(objects):
            return float((rows - done) / (objects[-1][0] - at))
    raise BenchError("the job has too few rows to measure its speed; give more --rows")


def _bare_rate(kind: str, machine: Machine, files: list[Path], folder: Path) -> float:
    """Rows or pages per second of plain loops, one on each core."""
    checkpoint = locate(ModelSpec(source=machine.model), weights=False).path
    cores = sorted(os.sched_getaffinity(0))
    loops = []
    for number, core in enumerate(cores):
        output = folder / f"bare-{number}"
        output.mkdir()
        command = [sys.executable, "-m", "magbatch.bench.bare_arm", kind, str(checkpoint), str(output)]
        mine = [str(file) for file in files[number :: len(cores)]]
        log = folder / f"bare-{number}.log"
        loops.append((Process([*command, *mine], dict(os.environ), log, (core,)), log))
    said: list[dict[str, Any]] = []
    try:
        for loop, log in loops:
            loop.wait(RUN_TIMEOUT_S, "a bare loop")
            said.append({key: value for line in log.read_text().splitlines() if line.startswith("{")
                         for key, value in json.loads(line).items()})  # fmt: skip
    finally:
        for loop, _ in loops:
            loop.end()
    seconds = max(one["ended"] for one in said) - min(one["began"] for one in said)
    return float(sum(one["done"] for one in said) / seconds)


def null(machine: Machine, rows: int, rounds: int, folder: Path, say: Say) -> list[Target]:
    """Measure rows per second with 500-token prompts and an engine that answers immediately."""
    files = _long_prompts(machine, rows, folder / "input")
    found = _interleaved("text", "null engine", files, {}, 1, machine, rounds, folder, say)
    return [_rate_target("null engine, 500-token prompts: magbatch / bare loop, rows/s", found, 0.7, "rows/s")]


def documents(machine: Machine, rows: int, rounds: int, folder: Path, say: Say) -> list[Target]:
    """Measure pages of PDFs per second with an engine that answers immediately."""
    given = folder / "input"
    given.mkdir(parents=True)
    files = []
    each = max(1, rows // DOCUMENT_PAGES // FILES)
    for number in range(FILES):
        table = pa.table({
            "id": [f"{number}-{index}" for index in range(each)],
            "document": [draw_document(f"{number}/{index}") for index in range(each)],
        })  # fmt: skip
        files.append(given / f"{number:02d}.parquet")
        pq.write_table(table, files[-1])
    how = {
        "input": {"path": str(given), "columns": {"id": "id", "document": "document"}, "document": {"mode": "images"}},
        "prompt": {"system": "none", "template": "What does it say?"},
        "limits": {"max_prompt_tokens": 130000, "max_images": 100},
    }
    found = _interleaved("documents", "documents", files, how, DOCUMENT_PAGES, machine, rounds, folder, say)
    return [_rate_target("documents: magbatch / bare pypdfium2 + Pillow, pages/s", found, 0.8, "pages/s")]


def _interleaved(
    kind: str, name: str, files: list[Path], how: dict[str, Any], each: int, machine: Machine, rounds: int,
    folder: Path, say: Say,
) -> list[tuple[float, float]]:  # fmt: skip
    """Rates of magbatch and of the bare loop in each round."""
    found = []
    for number in range(rounds):
        where = folder / str(number)
        where.mkdir()
        bare = _bare_rate(kind, machine, files, where)
        spec = _scripted("bench", files[0].parent, where / "out", machine, **how)
        mine = each * steady_rate(run_job(spec, where))
        found.append((mine, bare))
        say(f"{name}: magbatch {mine:,.0f} a second, bare loop {bare:,.0f}")
    return found


def _rate_target(what: str, found: list[tuple[float, float]], bound: float, unit: str) -> Target:
    value = statistics.median(mine / bare for mine, bare in found)
    return Target(what, value, bound, runs=tuple(rate for pair in found for rate in pair), unit=unit)


def _long_prompts(machine: Machine, rows: int, folder: Path) -> list[Path]:
    """Write questions of about 500 tokens each; returns the files."""
    folder.mkdir(parents=True)
    tokenizer = Tokenizer(locate(ModelSpec(source=machine.model), weights=False).path)
    rng = random.Random(SEED)
    sample = [rng.choice(WORDS) for _ in range(200)]
    words = round(PROMPT_TOKENS * len(sample) / len(tokenizer.encode_text(" ".join(sample))))
    files = []
    size = -(-rows // FILES)
    for number, begin in enumerate(range(0, rows, size)):
        ids = range(begin, min(begin + size, rows))
        questions = [" ".join(rng.choice(WORDS) for _ in range(words)) for _ in ids]
        files.append(folder / f"{number:02d}.parquet")
        pq.write_table(pa.table({"id": [f"row-{one}" for one in ids], "question": questions}), files[-1])
    return files


def draw_document(name: str) -> bytes:
    """Draw a PDF of a few pages; every page differs."""
    rng = random.Random(f"document/{name}")
    document = pdfium.PdfDocument.new()
    for _ in range(DOCUMENT_PAGES):
        page = document.new_page(595, 842)
        for line in range(PAGE_LINES):
            text = " ".join(rng.choice(WORDS) for _ in range(9))
            item = pdfium_c.FPDFPageObj_NewTextObj(document, b"Helvetica", 11.0)
            wide = (ctypes.c_ushort * (len(text) + 1))(*text.encode("ascii"))
            pdfium_c.FPDFText_SetText(item, wide)
            pdfium_c.FPDFPageObj_Transform(item, 1, 0, 0, 1, 50, 790 - 19 * line)
            pdfium_c.FPDFPage_InsertObject(page, item)
        page.gen_content()
        page.close()
    sink = BytesIO()
    document.save(sink)
    document.close()
    return sink.getvalue()


# Memory and start.


class Peaks:
    """Peak memory of the two processes that could grow with a job.

    Attributes:
        driver: Peak of the driver's own memory, in bytes.
        replica: Peak of a replica's own memory, in bytes.
    """

    def __init__(self) -> None:
        self.driver = self.replica = 0

    def look(self, root: psutil.Process) -> None:
        """Update the peaks with the current memory."""
        self.driver = max(self.driver, own_bytes(root.pid))
        for child in root.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if f"ray::{REPLICA_PROCESS}" in " ".join(child.cmdline()):
                    self.replica = max(self.replica, own_bytes(child.pid))


def own_bytes(pid: int) -> int:
    """Resident memory of a process in bytes, without shared memory; 0 if the process has ended.

    Shared memory is Ray's object store, which has its own bound.
    """
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon", "RssFile")))


def memory(machine: Machine, rows: int, rounds: int, folder: Path, say: Say) -> list[Target]:
    """Compare peak memory at 16 times the rows with peak memory at the rows."""
    del rounds  # one run of each size: memory is sampled ten times per second
    found: dict[int, Peaks] = {}
    for times in (1, MEMORY_TIMES):
        where = folder / f"x{times}"
        where.mkdir(parents=True)
        files = _long_prompts(machine, rows * times, where / "input")
        peaks = found[times] = Peaks()
        run_job(_scripted("bench", files[0].parent, where / "out", machine), where, peaks.look)
        said = f"driver {peaks.driver / 1e6:,.0f} MB, replica {peaks.replica / 1e6:,.0f} MB"
        say(f"memory: {rows * times:,} rows: {said}")
    few, many = found[1], found[MEMORY_TIMES]
    return [
        Target(f"peak memory of the driver at {MEMORY_TIMES} x {rows:,} rows", many.driver / few.driver, 1.05,
               least=False, runs=(few.driver / 1e6, many.driver / 1e6), unit="MB"),
        Target(f"peak memory of the replica at {MEMORY_TIMES} x {rows:,} rows", many.replica / few.replica, 1.05,
               least=False, runs=(few.replica / 1e6, many.replica / 1e6), unit="MB"),
    ]  # fmt: skip


def start(machine: Machine, rows: int, rounds: int, folder: Path, say: Say) -> list[Target]:
    """Measure the time from the command to the first request, against vLLM by hand in the same layout of processes."""
    del rows
    workload = WORKLOADS["text"]
    free = replace(machine, engine_cores=(), other_cores=())  # unpinned, as a user starts it
    prepared = prepare(workload, START_ROWS, SEED, folder / "input", machine.settings)
    token_ids = pq.read_table(prepared.prompts)["token_ids"][0].as_py()
    pairs = []
    for number in range(rounds):
        where = folder / f"{number}-hand"
        where.mkdir()
        by_hand = _by_hand(free, token_ids, where)
        where = folder / f"{number}-magbatch"
        where.mkdir()
        mine = Magbatch(free, workload, held=False).run(prepared, where).first_request_s
        assert mine is not None
        pairs.append((mine, by_hand))
        say(f"start: magbatch {mine:.1f} s to the first request, by hand {by_hand:.1f} s")
    value = statistics.median(mine / by_hand for mine, by_hand in pairs)
    runs = tuple(seconds for pair in pairs for seconds in pair)
    return [Target("command to first request: magbatch / by hand", value, 1.15, least=False, runs=runs, unit="s")]


def _by_hand(machine: Machine, token_ids: list[int], folder: Path) -> float:
    checkpoint, args = resolved_args(machine, WORKLOADS["text"])
    events, config = folder / EVENTS, folder / "config.json"
    asked = {"checkpoint": str(checkpoint), "engine_args": args.to_dict(), "gpus": machine.gpus, "token_ids": token_ids}
    config.write_text(json.dumps(asked))
    command = [sys.executable, "-m", "magbatch.bench.hand_arm", str(config)]
    process = Process(command, machine.environment(events), folder / "log", ())
    try:
        process.wait(START_TIMEOUT_S, "vLLM by hand")
    finally:
        process.end()
    at = next((event["at"] for event in probe.events(events) if event["event"] == "first request"), None)
    if at is None:
        raise process.failed("vLLM by hand got no request")
    return float(at) - process.began


BOUNDS: dict[str, Callable[[Machine, int, int, Path, Say], list[Target]]] = {
    "occupancy": occupancy,
    "null": null,
    "documents": documents,
    "memory": memory,
    "start": start,
}
