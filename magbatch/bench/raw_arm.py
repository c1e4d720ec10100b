"""The arm `raw`: `vllm.LLM.generate` with all prompts at once, in a process of its own.

`python -m magbatch.bench.raw_arm CONFIG` reads the prompts, starts the engine, waits for its release, writes a file.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from magbatch.bench.probe import EVENTS_ENV, hold, install
from magbatch.model.tokenizer import picture


def _request(row: dict[str, Any]) -> dict[str, Any]:
    request: dict[str, Any] = {"prompt_token_ids": row["token_ids"]}
    if "rgb" in row:
        image = picture(row["width"], row["height"], row["rgb"])
        image.load()
        request["multi_modal_data"] = {"image": image}
    return request


def main() -> None:
    """Do one run."""
    config = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    from vllm import LLM, SamplingParams
    from vllm.sampling_params import RequestOutputKind

    install()
    llm = LLM(model=config["checkpoint"], **config["engine_args"])
    rows = pq.read_table(config["prompts"]).to_pylist()
    requests = [_request(row) for row in rows]
    params = [
        SamplingParams(
            temperature=0, max_tokens=row["tokens"], ignore_eos=True, detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        for row in rows
    ]  # fmt: skip
    hold(Path(os.environ[EVENTS_ENV]))
    outputs = llm.generate(requests, params, use_tqdm=False)
    found = {
        "id": [row["id"] for row in rows],
        "tokens": pa.array([list(output.outputs[0].token_ids) for output in outputs], pa.list_(pa.int32())),
    }
    pq.write_table(pa.table(found), config["output"], compression="zstd")


if __name__ == "__main__":  # the engine's process is spawned and imports this module again
    main()
