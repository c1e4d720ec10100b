"""Score the tiny model on held-out examples: `python -m magbatch.tiny.evaluate`.

An answer is right if it equals the expected one, character by character. A trace is complete if the model closed it
and then ended its answer.

`--against OUTPUT` compares with vLLM instead. It takes the output of a greedy job over a file of
`python -m magbatch.tiny.tasks`, and counts the rows in which vLLM wrote the same tokens as the training code.
"""

import argparse
import json
import random
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from magbatch.tiny.batches import Encoder, Row, grid_of, make_row, normalised
from magbatch.tiny.checkpoint import ensure
from magbatch.tiny.model import TinyModel
from magbatch.tiny.tasks import KINDS, work
from magbatch.tiny.train import load
from magbatch.tiny.wording import SYSTEM_PROMPT

MAX_NEW_TOKENS = 320
ROWS_AT_ONCE = 50  # rows generated together: bounds the memory of the key-value caches


@dataclass
class Answered:
    """A row with the tokens that the model wrote.

    Attributes:
        row: Row with its reference completion.
        tokens: Token ids that the model wrote.
    """

    row: Row
    tokens: list[int]


def images_of(model: TinyModel, rows: list[Row]) -> Tensor | None:
    """Return the image features of all rows in order, float32 (image tokens, dim); None without images."""
    seen = [model.see(normalised([row.worked.receipt])).flatten(0, 1) for row in rows if row.worked.receipt is not None]
    return torch.cat(seen) if seen else None


def generate(
    model: TinyModel,
    encoder: Encoder,
    rows: list[Row],
    *,
    temperature: float = 0.0,
    seed: int = 0,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> list[list[int]]:
    """Generate the tokens after each row's prompt.

    Args:
        model: Model that writes.
        encoder: Encoder with the checkpoint's tokenizer.
        rows: Rows with their prompts.
        temperature: Sampling temperature; 0 is greedy.
        seed: Seed of the sampling.
        max_new_tokens: Largest number of tokens per row.

    Returns:
        Token ids of each row, with `</s>` at the end unless the limit came first.
    """
    with torch.no_grad():
        return _generate(model, encoder, rows, temperature, seed, max_new_tokens)


def _generate(
    model: TinyModel, encoder: Encoder, rows: list[Row], temperature: float, seed: int, max_new_tokens: int
) -> list[list[int]]:
    chance = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([len(row.prompt) for row in rows])
    longest = int(lengths.max())
    tokens = torch.full((len(rows), longest), encoder.pad)
    for index, row in enumerate(rows):
        tokens[index, : len(row.prompt)] = torch.tensor(row.prompt)
    caches = model.new_caches(len(rows), longest + max_new_tokens)
    hidden = model(model.embed(tokens, images_of(model, rows)), caches)
    logits = model.output(hidden[torch.arange(len(rows)), lengths - 1])
    written: list[list[int]] = [[] for _ in rows]
    running = torch.ones(len(rows), dtype=torch.bool)
    for _ in range(max_new_tokens):
        if temperature > 0:
            chances = torch.softmax(logits / temperature, dim=-1)
            chosen = torch.multinomial(chances, 1, generator=chance)[:, 0]
        else:
            chosen = logits.argmax(-1)
        for index in running.nonzero()[:, 0].tolist():
            written[index].append(int(chosen[index]))
        running &= chosen != encoder.eos
        if not running.any():
            break
        # Rows that have ended still write into their caches, which are no longer read.
        logits = model.step(chosen, lengths, caches)
        lengths = (lengths + 1).clamp(max=longest + max_new_tokens - 1)
    return written


def heldout_rows(encoder: Encoder, kind: str, count: int, seed: int) -> list[Row]:
    """Return held-out examples of one kind, half of them with the model's own system prompt."""
    rng = random.Random(f"heldout/{kind}/{seed}")
    return [make_row(encoder, work("heldout", seed, i, kind), rng) for i in range(count)]


def score(encoder: Encoder, answered: list[Answered]) -> dict[str, float]:
    """Return the shares of right answers, complete traces, and completions equal to the reference."""
    counts: dict[str, int] = defaultdict(int)
    for item in answered:
        tokens = item.tokens
        complete = tokens[:1] == [encoder.think] and tokens.count(encoder.end_think) == 1 and tokens[-1] == encoder.eos
        counts["complete"] += complete
        if complete:
            answer = encoder.tekken.decode(tokens[tokens.index(encoder.end_think) + 1 : -1])
            counts["answer"] += answer == item.row.worked.expected
        counts["exact"] += tokens == item.row.completion
    return {name: counts[name] / len(answered) for name in ("answer", "complete", "exact")}


def evaluate(
    model: TinyModel, encoder: Encoder, *, count: int, seed: int, temperature: float
) -> dict[str, dict[str, float]]:
    """Score every kind of example; receipts also by question.

    Returns:
        Shares by kind: see `score`.
    """
    scores: dict[str, dict[str, float]] = {}
    for kind in KINDS:
        rows = heldout_rows(encoder, kind, count, seed)
        answered: list[Answered] = []
        for begin in range(0, count, ROWS_AT_ONCE):
            chunk = rows[begin : begin + ROWS_AT_ONCE]
            outputs = generate(model, encoder, chunk, temperature=temperature, seed=seed + begin)
            answered += [Answered(*pair) for pair in zip(chunk, outputs, strict=True)]
        scores[kind] = score(encoder, answered)
        if kind == "receipt":
            for asked in ("total", "count", "price"):
                some = [a for a in answered if f"\n{asked}" in a.row.worked.reasoning]
                if some:
                    scores[f"receipt/{asked}"] = score(encoder, some)
    return scores


def agreement(model: TinyModel, encoder: Encoder, output: Path) -> dict[str, tuple[int, int]]:
    """Compare a greedy job's results with the tokens that this code writes to the same prompts.

    Args:
        model: Model with the weights that the job served.
        encoder: Encoder with the checkpoint's tokenizer.
        output: Output folder of the job; its column `id` holds the ids of `tasks.example`.

    Returns:
        Number of rows in which vLLM wrote the same tokens, and of all rows, by kind.
    """
    import pyarrow.dataset as ds

    columns = ["id", "reasoning", "answer", "reasoning_tokens", "answer_tokens"]
    served = ds.dataset(output / "results", format="parquet").to_table(columns=columns).to_pylist()
    counts: dict[str, tuple[int, int]] = {}
    for begin in range(0, len(served), ROWS_AT_ONCE):
        chunk = served[begin : begin + ROWS_AT_ONCE]
        rows = [_row_of(encoder, record["id"]) for record in chunk]
        for record, tokens in zip(chunk, generate(model, encoder, rows), strict=True):
            kind = record["id"].partition("-")[0]
            same, all_of_kind = counts.get(kind, (0, 0))
            counts[kind] = same + (_as_served(encoder, tokens) == tuple(record.values())[1:]), all_of_kind + 1
    return counts


def _row_of(encoder: Encoder, row_id: str) -> Row:
    """Return the example of an id, with the prompt that a job makes of it."""
    kind, seed, index = row_id.rsplit("-", 2)
    worked = work("heldout", int(seed), int(index), kind)
    grid = grid_of(worked.receipt) if worked.receipt is not None else None
    prompt = encoder.prompt(worked.question, system=SYSTEM_PROMPT, grid=grid)
    return Row(prompt, encoder.completion(worked), worked)


def _as_served(encoder: Encoder, tokens: list[int]) -> tuple[str | None, str | None, int, int]:
    """Return reasoning, answer and their numbers of tokens, as a job's results hold them."""
    cut = tokens.index(encoder.end_think) + 1 if encoder.end_think in tokens else len(tokens)
    plain = [[token for token in part if token not in encoder.control] for part in (tokens[:cut], tokens[cut:])]
    reasoning, answer = (encoder.tekken.decode(part).strip() or None for part in plain)
    return reasoning, answer, cut, len(tokens) - cut


def main() -> None:
    """Run the command line of `python -m magbatch.tiny.evaluate`."""
    parser = argparse.ArgumentParser(description="Score the tiny model on held-out examples.")
    parser.add_argument("--weights", type=Path, help="weights file; default: the package's own")
    parser.add_argument("--n", type=int, default=200, help="number of examples of each kind")
    parser.add_argument("--seed", type=int, default=1, help="seed of the examples and of the sampling")
    parser.add_argument("--temperature", type=float, default=0.0, help="sampling temperature; 0 is greedy")
    parser.add_argument("--against", type=Path, metavar="OUTPUT", help="output of a greedy job to compare with")
    arguments = parser.parse_args()
    directory = ensure()
    model, encoder = (
        load(arguments.weights or directory / "consolidated.safetensors"),
        Encoder(directory / "tekken.json"),
    )
    if arguments.against is not None:
        for kind, (same, rows) in sorted(agreement(model, encoder, arguments.against).items()):
            print(f"{kind}: vLLM wrote the same tokens in {same} of {rows} rows")
        return
    scores = evaluate(
        model,
        encoder,
        count=arguments.n,
        seed=arguments.seed,
        temperature=arguments.temperature,
    )
    print(json.dumps(scores, indent=1))


if __name__ == "__main__":
    main()
