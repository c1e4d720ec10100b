"""The arm `ray.data.llm`: Ray's own batch inference, Parquet to Parquet, in a process of its own.

Templating and tokenizing are done before the run, because Ray's own stages cannot use Mistral's tokenizer. Detokenizing
is left out too, in Ray's favour.
"""

import json
import os
import sys
from typing import Any

from magbatch.fleet.ray_settings import NO_UV, unset

os.environ.update(unset(NO_UV))

import ray
import ray.data

from magbatch.fleet.ray_auth import own_token


def main() -> None:
    """Start Ray, report that it is ready, and do a run for each line on standard input."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # keeps output of Ray and vLLM out of the replies
    own_token()
    ray.init(address="local", num_cpus=max(os.cpu_count() or 1, 3), include_dashboard=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        _run(json.loads(line))
        print("{}", file=answers, flush=True)
    ray.shutdown()


def _run(config: dict[str, Any]) -> None:
    """Do one run."""
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    chosen = {name: config[name] for name in ("batch_size", "max_concurrent_batches") if config[name] is not None}
    processor = build_processor(
        vLLMEngineProcessorConfig(
            model_source=config["checkpoint"],
            engine_kwargs=config["engine_args"],
            concurrency=1,
            log_engine_metrics=False,  # it needs ray[serve], and is work that the other arms do not do
            chat_template_stage=False,
            tokenize_stage=False,
            detokenize_stage=False,
            placement_group_config=None if config["gpus"] else {"bundles": [{"CPU": 1}]},
            **chosen,
        ),
        preprocess=_ask,
        postprocess=_answer,
    )
    blocks = config["blocks"]
    processor(ray.data.read_parquet(config["prompts"], override_num_blocks=blocks)).write_parquet(config["output"])


def _ask(row: dict[str, Any]) -> dict[str, Any]:
    asked = {
        "id": row["id"],
        "tokenized_prompt": row["token_ids"],
        "sampling_params": {
            "temperature": 0, "max_tokens": int(row["tokens"]), "ignore_eos": True, "detokenize": False,
        },
    }  # fmt: skip
    if "rgb" in row:
        from magbatch.model.tokenizer import picture

        asked["multimodal_data"] = {"image": [picture(row["width"], row["height"], row["rgb"])]}
    return asked


def _answer(row: dict[str, Any]) -> dict[str, Any]:
    return {"id": row["id"], "tokens": row["generated_tokens"]}


if __name__ == "__main__":
    main()
