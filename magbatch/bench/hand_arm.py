"""vLLM started by hand in magbatch's layout of processes: a driver, a Ray actor with AsyncLLM, and its engine.

`python -m magbatch.bench.hand_arm CONFIG` asks one prompt and ends. The probe records when it reached the engine.
"""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from magbatch.fleet.ray_settings import NO_UV, unset

os.environ.update(unset(NO_UV))

import ray

from magbatch.fleet.ray_auth import own_token


class _Engine:
    def __init__(self, checkpoint: str, args: dict[str, Any]) -> None:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        self._engine = AsyncLLM.from_engine_args(AsyncEngineArgs(model=checkpoint, **args))

    def ask(self, token_ids: list[int]) -> int:
        async def one() -> int:
            from vllm import SamplingParams

            prompt: Any = {"prompt_token_ids": token_ids}
            tokens = 0
            async for output in self._engine.generate(prompt, SamplingParams(max_tokens=1), "one"):
                tokens = len(output.outputs[0].token_ids)
            return tokens

        return asyncio.run(one())


def main() -> None:
    """Start the engine, ask one prompt, and end."""
    config = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    own_token()
    ray.init(address="local", num_cpus=max(os.cpu_count() or 1, 2), include_dashboard=False, log_to_driver=False)
    actor: Any = ray.remote(num_cpus=1, num_gpus=config["gpus"])(_Engine)
    engine = actor.remote(config["checkpoint"], config["engine_args"])
    ray.get(engine.ask.remote(config["token_ids"]))
    ray.shutdown()


if __name__ == "__main__":
    main()
