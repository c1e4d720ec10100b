"""What rows of one document side by side gain: 2,000 questions about 20 long documents, in random order in the file.

    uv run python tests/benchmarks/shared_prefixes.py

Whole jobs, `input.group: none` against `auto`, in turn, each with two replicas of the built-in model, on one core
each. The KV cache of a replica holds 5 of the 20 documents and little else, as that of an H100 (166,000 tokens for
Magistral in BF16) holds 5 documents of 32,000 tokens. Prints generated tokens a second while replicas served, prompt
tokens that were found in the prefix cache, and the ratio of the speeds.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from magbatch.model import locate
from magbatch.spec import ModelSpec
from magbatch.tiny.tasks import example
from magbatch.tokenizer import Tokenizer

SPEC = """
name: bench
model:
  source: builtin:tiny
  engine_args: {{max_num_seqs: 64, kv_cache_memory_bytes: {kv_bytes}, max_num_batched_tokens: 4096}}
input: {{path: {folder}/in, columns: {{id: id}}, group: {group}}}
prompt: {{template: "{{{{ document }}}}\\n\\n{{{{ question }}}}"}}
sampling: {{temperature: 0, max_tokens: {answer_tokens}, ignore_eos: true}}
limits: {{max_prompt_tokens: {prompt_tokens}}}
replicas: {{min: 2, max: 2, gpus: 0, cpus: 1}}
metrics: {{enabled: false}}
output: {{path: {folder}/{name}}}
"""
ARMS = ("none", "auto")
CACHED_DOCUMENTS = 5
KV_BYTES_A_TOKEN = 2048  # 4 layers of 2 heads of 32 numbers of 4 bytes, keys and values
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}  # else both engines take both cores


def text(tokenizer: Tokenizer, tokens: int, seed: int) -> str:
    """A document of about so many tokens."""
    parts: list[str] = []
    size = 0
    while size < tokens:
        parts.append(example("train", seed, len(parts), ["arithmetic"]).question)
        size += len(tokenizer.encode_text(parts[-1] + "\n"))
    return "\n".join(parts)


def write_input(folder: Path, rows: int, documents: int, tokens: int) -> None:
    """Questions about documents, in random order."""
    tokenizer = Tokenizer(locate(ModelSpec(source="builtin:tiny"), weights=True))
    texts = [text(tokenizer, tokens, seed=9000 + number) for number in range(documents)]
    about = [row % documents for row in range(rows)]
    random.Random(1).shuffle(about)
    questions = [example("train", 8000, row, ["arithmetic"]).question for row in range(rows)]
    (folder / "in").mkdir()
    table = {"id": list(range(rows)), "document": [texts[number] for number in about], "question": questions}
    pq.write_table(pa.table(table), folder / "in" / "a.parquet")


def run(spec: Path) -> dict[str, Any]:
    """A whole job; its report."""
    command = [sys.executable, "-m", "magbatch", "run", str(spec), "--json"]
    done = subprocess.run(command, env=os.environ | ENVIRONMENT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def main() -> None:
    """Run the arms and print what they took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--documents", type=int, default=20)
    parser.add_argument("--document-tokens", type=int, default=2048)
    parser.add_argument("--answer-tokens", type=int, default=32)
    parser.add_argument("--repetitions", type=int, default=3)
    arguments = parser.parse_args()

    speeds: dict[str, list[float]] = {name: [] for name in ARMS}
    with tempfile.TemporaryDirectory(prefix="mb-") as place:
        folder = Path(place)
        write_input(folder, arguments.rows, arguments.documents, arguments.document_tokens)
        for repetition in range(arguments.repetitions):
            for group in ARMS if repetition % 2 else reversed(ARMS):
                spec = folder / f"{group}-{repetition}.yaml"
                spec.write_text(
                    SPEC.format(
                        folder=folder,
                        name=spec.stem,
                        group=group,
                        kv_bytes=CACHED_DOCUMENTS * arguments.document_tokens * KV_BYTES_A_TOKEN,
                        answer_tokens=arguments.answer_tokens,
                        prompt_tokens=arguments.document_tokens + 500,
                    ),
                    encoding="utf-8",
                )
                report = run(spec)
                ran, totals = report["run"], report["totals"]
                assert totals["answered"] == arguments.rows, totals
                speeds[group].append(ran["tokens"] / ran["serving_s"])
                replicas = ", ".join(str(replica["rows"]) for replica in report["replicas"])
                print(
                    f"group: {group:4}  {ran['serving_s']:6.1f} s, {speeds[group][-1]:7,.0f} tokens/s, "
                    f"{totals['cached_tokens']:,} of {totals['prompt_tokens']:,} prompt tokens cached; "
                    f"rows by replica: {replicas}",
                    flush=True,
                )
    ratios = [auto / none for auto, none in zip(speeds["auto"], speeds["none"], strict=True)]
    print(f"{arguments.rows} rows over {arguments.documents} documents of {arguments.document_tokens} tokens")
    for name, values in speeds.items():
        print(f"  group: {name:4} {statistics.median(values):7,.0f} tokens/s")
    runs = " ".join(f"{ratio:.2f}" for ratio in ratios)
    print(f"  auto / none: median of pairs {statistics.median(ratios):.2f}   ({runs})")


if __name__ == "__main__":
    main()
