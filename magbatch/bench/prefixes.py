"""The gain of answering rows of one document together: questions about a few long documents, in random order.

Whole jobs with two replicas run in turn with `input.group: none` and `auto`. A replica's KV cache holds 5 of the 20
documents. That is the ratio on an H100: 166,000 tokens for Magistral in BF16 hold 5 documents of 32,000 tokens.
"""

import json
import os
import random
import statistics
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from magbatch.bench.bounds import run_job
from magbatch.bench.measure import SEED, Say
from magbatch.bench.process import Machine
from magbatch.bench.report import Target
from magbatch.ledger.layout import REPORT
from magbatch.model.checkpoint import locate
from magbatch.model.tokenizer import Tokenizer
from magbatch.spec import ModelSpec
from magbatch.tiny.tasks import example

DOCUMENTS, DOCUMENT_TOKENS, CACHED_DOCUMENTS = 20, 2048, 5
ANSWER_TOKENS = 32
REPLICAS = 2
TINY_KV_BYTES_A_TOKEN = 2048  # 4 layers x 2 heads x 32 numbers x 4 bytes, for keys and for values
TINY = "builtin:tiny"
GROUPS = ("none", "auto")


def prefix(machine: Machine, rows: int, rounds: int, folder: Path, say: Say) -> list[Target]:
    """Measure tokens per second while replicas serve: rows grouped by document against rows in the file's order."""
    _write_input(machine, rows, folder / "input")
    ratios, speeds = [], []
    for number in range(rounds):
        speed: dict[str, float] = {}
        for group in GROUPS if number % 2 else reversed(GROUPS):
            where = folder / f"{number}-{group}"
            where.mkdir()
            # Each engine gets one core; without these settings each engine would use both.
            env = os.environ | {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
            output = run_job(grouped_job(machine, folder / "input", where / "out", group), where, env=env)
            report = json.loads((output / REPORT).read_text())
            speed[group] = report["run"]["tokens"] / report["run"]["serving_s"]
            totals = report["totals"]
            cached = totals["cached_tokens"] / totals["prompt_tokens"]
            say(f"prefix: group: {group} {speed[group]:,.0f} tokens/s, {cached:.0%} of the prompts' tokens were cached")
        ratios.append(speed["auto"] / speed["none"])
        speeds += [speed["auto"], speed["none"]]
    what = f"{rows:,} rows over {DOCUMENTS} documents, {REPLICAS} replicas: by document / in the file's order, tokens/s"
    return [Target(what, statistics.median(ratios), 1.5, runs=tuple(speeds), unit="tokens/s")]


def grouped_job(machine: Machine, given: Path, output: Path, group: str) -> dict[str, Any]:
    """Spec of a job with this `input.group`, as JSON values."""
    engine: dict[str, Any] = {"max_num_seqs": 64}
    if machine.model == TINY:  # any other model is bounded by its own memory
        engine["kv_cache_memory_bytes"] = CACHED_DOCUMENTS * DOCUMENT_TOKENS * TINY_KV_BYTES_A_TOKEN
    return {
        "name": "bench-prefix",
        "model": {"source": machine.model, "engine_args": engine | machine.engine_args},
        "input": {"path": str(given), "columns": {"id": "id"}, "group": group},
        "prompt": {"system": "none", "template": "{{ document }}\n\n{{ question }}"},
        "sampling": {"temperature": 0, "max_tokens": ANSWER_TOKENS, "ignore_eos": True},
        "limits": {"max_prompt_tokens": DOCUMENT_TOKENS + 500, "repetition_tokens": None},
        "replicas": {"min": REPLICAS, "max": REPLICAS, "gpus": machine.gpus, "cpus": 1},
        "metrics": {"port": 0},
        "output": {"path": str(output)},
    }


def _write_input(machine: Machine, rows: int, folder: Path) -> None:
    """Write questions about documents in random order."""
    tokenizer = Tokenizer(locate(ModelSpec(source=machine.model), weights=False).path)
    texts = [_document(tokenizer, number) for number in range(DOCUMENTS)]
    about = [row % DOCUMENTS for row in range(rows)]
    random.Random(SEED).shuffle(about)
    questions = [example("train", SEED, row, ["arithmetic"]).question for row in range(rows)]
    folder.mkdir(parents=True)
    table = {"id": list(range(rows)), "document": [texts[number] for number in about], "question": questions}
    pq.write_table(pa.table(table), folder / "a.parquet")


def _document(tokenizer: Tokenizer, number: int) -> str:
    parts: list[str] = []
    size = 0
    while size < DOCUMENT_TOKENS:
        parts.append(example("train", 9000 + number, len(parts), ["arithmetic"]).question)
        size += len(tokenizer.encode_text(f"{parts[-1]}\n"))
    return "\n".join(parts)
