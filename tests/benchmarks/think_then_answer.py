"""Cost of a thinking budget or a schema: two requests a row against one, on the same engine, in turn.

    uv run --no-sync python tests/benchmarks/think_then_answer.py

Three arms answer the same kind of rows, always rows that are new to the engine. `one` makes one request a row. `two`
has a budget that cuts nothing. `schema` adds a grammar for the answer. Prints medians of seconds, and ratios to `one`.
"""

import argparse
import asyncio
import statistics
import time

from magbatch.engines import engine_args
from magbatch.engines.base import EngineConfig
from magbatch.engines.vllm import VllmEngine
from magbatch.model.checkpoint import locate
from magbatch.model.facts import facts
from magbatch.model.tokenizer import Tokenizer
from magbatch.pipeline.generate import Generate, ThinkingPlan
from magbatch.pipeline.prompt import Prompter
from magbatch.rows import Prompt, RenderedRow
from magbatch.spec import parse
from magbatch.tiny.tasks import example

SPEC = """
name: bench
model: {source: builtin:tiny, engine_args: {max_num_seqs: 64}}
input: {path: /nowhere, columns: {prompt: question}}
answer: {schema: {type: object, properties: {result: {type: string, maxLength: 40}}, required: [result]}}
sampling: {temperature: 0, max_tokens: 512}
limits: {max_prompt_tokens: 2000}
replicas: {gpus: 0}
output: {path: /nowhere/out}
"""


def main() -> None:
    """Run the arms and print what they took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()

    spec = parse(SPEC)
    checkpoint = locate(spec.model, weights=True).path
    tokenizer = Tokenizer(checkpoint)
    args = engine_args(spec, facts(checkpoint))
    prompter = Prompter(spec, checkpoint, tokenizer, args.max_model_len)
    engine = VllmEngine(EngineConfig(checkpoint, args.to_dict(), spec.sampling, 0))
    arms = {
        "one": None,
        "two": ThinkingPlan(tokenizer, 500, thinks=True, schema=None),
        "schema": ThinkingPlan(tokenizer, None, thinks=True, schema=spec.answer.schema),
    }
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    tokens: dict[str, list[int]] = {name: [] for name in arms}

    def prompts(seed: int) -> list[Prompt]:
        examples = (example("train", seed, index, ["arithmetic"]) for index in range(arguments.rows))
        return [
            prompter(RenderedRow(one.id, [{"role": "user", "content": [{"text": one.question}]}])) for one in examples
        ]

    async def run() -> None:
        for repetition in range(-1, arguments.repetitions):  # the first round warms the engine up
            for number, (name, steering) in enumerate(arms.items()):
                generate = Generate(engine, spec.sampling, args.max_model_len, plan=steering)
                asked = prompts(1000 + 10 * repetition + number)
                began = time.monotonic()
                found = await asyncio.gather(*(generate(prompt) for prompt in asked))
                if repetition >= 0:
                    seconds[name].append(time.monotonic() - began)
                    tokens[name].append(sum(len(one.completions[0].token_ids) for one in found))

    asyncio.run(run())
    engine.shutdown()
    base = statistics.median(s / t for s, t in zip(seconds["one"], tokens["one"], strict=True))
    print(f"{arguments.rows} rows, {arguments.repetitions} times, in turn")
    for name in arms:
        each = [s / t for s, t in zip(seconds[name], tokens[name], strict=True)]
        took, length = statistics.median(seconds[name]), statistics.median(tokens[name]) / arguments.rows
        runs = " ".join(f"{value:.2f}" for value in seconds[name])
        ratio = statistics.median(each) / base
        print(f"  {name:7} {took:6.2f} s, {length:6.1f} tokens a row, {ratio:5.2f} of `one` a token   ({runs})")


if __name__ == "__main__":
    main()
