"""The arm `raw`: `vllm.LLM.generate` with all prompts at once, in a process of its own.

`python -m magbatch.bench.raw_arm CONFIG` starts the engine and says so; then each line on standard input names a file
to write, and is answered, with the engine's caches cold, by a line of JSON: when it began and when the file was there.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from magbatch.bench.probe import install
from magbatch.rows import Image
from magbatch.tokenizer import picture


def _request(row: dict[str, Any]) -> dict[str, Any]:
    request: dict[str, Any] = {"prompt_token_ids": row["token_ids"]}
    if "rgb" in row:
        image = picture(Image(row["width"], row["height"], row["rgb"]))
        image.load()
        request["multi_modal_data"] = {"image": image}
    return request


def main() -> None:
    """Serve until standard input ends."""
    config = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what vLLM and its libraries print is no answer
    from vllm import LLM, SamplingParams
    from vllm.sampling_params import RequestOutputKind

    install()
    llm = LLM(model=config["checkpoint"], **config["engine_args"])
    rows = pq.read_table(config["prompts"]).to_pylist()
    print(json.dumps({"ready": time.time()}), file=answers, flush=True)
    for line in sys.stdin:
        requests = [_request(row) for row in rows]
        params = [
            SamplingParams(
                temperature=0, max_tokens=row["tokens"], ignore_eos=True, detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            for row in rows
        ]  # fmt: skip
        llm.reset_mm_cache()
        if not llm.reset_prefix_cache():
            raise RuntimeError("the prefix cache cannot be emptied: requests are under way")
        began = time.time()
        outputs = llm.generate(requests, params, use_tqdm=False)
        generated = time.time()
        found = {
            "id": [row["id"] for row in rows],
            "tokens": pa.array([list(output.outputs[0].token_ids) for output in outputs], pa.list_(pa.int32())),
        }
        pq.write_table(pa.table(found), line.strip(), compression="zstd")
        print(json.dumps({"began": began, "generated": generated, "ended": time.time()}), file=answers, flush=True)


if __name__ == "__main__":  # the engine's process is spawned: it imports this module again
    main()
