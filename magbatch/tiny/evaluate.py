"""Measures the tiny model on held-out examples, by generating: `python -m magbatch.tiny.evaluate`.

An answer counts when it is the expected one, character by character; a trace is complete when the
model itself closed it and then ended its answer.

`--against OUTPUT` takes the output of a greedy job over a file of `python -m magbatch.tiny.tasks`
instead, and counts the rows in which vLLM wrote what the code that trained the model writes.
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
ROWS_AT_ONCE = 50


@dataclass
class Answered:
    """What the model wrote to one row."""

    row: Row
    tokens: list[int]


def images_of(model: TinyModel, rows: list[Row]) -> Tensor | None:
    """The image features of all rows, (image tokens, dim), in the rows' order."""
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
    """What the model writes after each row's prompt, `</s>` included; greedy at temperature 0."""
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
        # Rows that have ended go on writing into caches that nobody reads.
        logits = model.step(chosen, lengths, caches)
        lengths = (lengths + 1).clamp(max=longest + max_new_tokens - 1)
    return written


def heldout_rows(encoder: Encoder, kind: str, count: int, seed: int) -> list[Row]:
    """Held-out examples of one kind, half of them with the model's own system prompt."""
    rng = random.Random(f"heldout/{kind}/{seed}")
    return [make_row(encoder, work("heldout", seed, i, kind), rng) for i in range(count)]


def score(encoder: Encoder, answered: list[Answered]) -> dict[str, float]:
    """Shares of right answers, complete traces, and completions equal to the reference."""
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
    """Scores of every kind; receipts also by what was asked."""
    scores: dict[str, dict[str, float]] = {}
    for kind in KINDS:
        rows = heldout_rows(encoder, kind, count, seed)
        answered: list[Answered] = []
        for begin in range(0, count, ROWS_AT_ONCE):
            part = rows[begin : begin + ROWS_AT_ONCE]
            outputs = generate(model, encoder, part, temperature=temperature, seed=seed + begin)
            answered += [Answered(*pair) for pair in zip(part, outputs, strict=True)]
        scores[kind] = score(encoder, answered)
        if kind == "receipt":
            for asked in ("total", "count", "price"):
                some = [a for a in answered if f"\n{asked}" in a.row.worked.reasoning]
                if some:
                    scores[f"receipt/{asked}"] = score(encoder, some)
    return scores


def agreement(model: TinyModel, encoder: Encoder, output: Path) -> dict[str, tuple[int, int]]:
    """Compares a greedy job's results with what this code writes to the same prompts.

    Args:
        model: With the weights that the job served.
        encoder: With the checkpoint's tokenizer.
        output: The job's output; its ids are those of `tasks.example`, carried as `id`.

    Returns:
        By kind: rows of which vLLM wrote the same tokens, and rows.
    """
    import pyarrow.dataset as ds

    columns = ["id", "reasoning", "answer", "reasoning_tokens", "answer_tokens"]
    served = ds.dataset(output / "results", format="parquet").to_table(columns=columns).to_pylist()
    counts: dict[str, tuple[int, int]] = {}
    for begin in range(0, len(served), ROWS_AT_ONCE):
        part = served[begin : begin + ROWS_AT_ONCE]
        rows = [_row_of(encoder, record["id"]) for record in part]
        for record, tokens in zip(part, generate(model, encoder, rows), strict=True):
            kind = record["id"].partition("-")[0]
            same, all_of_kind = counts.get(kind, (0, 0))
            counts[kind] = same + (_as_served(encoder, tokens) == tuple(record.values())[1:]), all_of_kind + 1
    return counts


def _row_of(encoder: Encoder, row_id: str) -> Row:
    """The example behind an id, with the prompt that a job gives it."""
    kind, seed, index = row_id.rsplit("-", 2)
    worked = work("heldout", int(seed), int(index), kind)
    grid = grid_of(worked.receipt) if worked.receipt is not None else None
    prompt = encoder.prompt(worked.question, system=SYSTEM_PROMPT, grid=grid)
    return Row(prompt, encoder.completion(worked), worked)


def _as_served(encoder: Encoder, tokens: list[int]) -> tuple[str | None, str | None, int, int]:
    """Reasoning, answer and their numbers of tokens, as a job's results hold them."""
    cut = tokens.index(encoder.end_think) + 1 if encoder.end_think in tokens else len(tokens)
    plain = [[token for token in part if token not in encoder.control] for part in (tokens[:cut], tokens[cut:])]
    reasoning, answer = (encoder.tekken.decode(part).strip() or None for part in plain)
    return reasoning, answer, cut, len(tokens) - cut


def main() -> None:
    """The command line of `python -m magbatch.tiny.evaluate`."""
    parser = argparse.ArgumentParser(description="Scores the tiny model on held-out examples.")
    parser.add_argument("--weights", type=Path, help="default: those of the package")
    parser.add_argument("--n", type=int, default=200, help="examples of each kind")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--against", type=Path, metavar="OUTPUT", help="a greedy job's output to compare with")
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
