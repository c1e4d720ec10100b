"""Batches repeat with their seed, and weigh what decides an answer."""

import random

import torch

from magbatch.tiny.batches import (
    IGNORED,
    MARK_WEIGHT,
    NAME_WEIGHT,
    Encoder,
    Mixture,
    cell_classes,
    collate,
    grid_of,
    make_row,
    name_classes,
    pool,
)
from magbatch.tiny.tasks import work
from magbatch.tiny.wording import GOODS


def rows(encoder: Encoder, kind: str, count: int):
    rng = random.Random(0)
    return [make_row(encoder, work("train", 0, index, kind), rng) for index in range(count)]


def test_pools_repeat(encoder: Encoder):
    mix = Mixture(counts=(6, 5, 3), images_a_batch=2)
    first, again = (list(pool(encoder, "train", 1, 2, mix)) for _ in range(2))
    assert sum(len(batch.tokens) for batches in first for batch in batches) == 14
    for left, right in zip(first, again, strict=True):
        assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(left, right, strict=True))


def test_only_completions_are_learnt(encoder: Encoder):
    (row,) = rows(encoder, "fields", 1)
    batch = collate([row], encoder)
    wanted = batch.targets[0] != IGNORED
    assert batch.targets[0][wanted].tolist() == row.completion
    assert int(wanted.nonzero()[0]) == len(row.prompt) - 1


def test_what_tells_the_asked_line_from_the_others_weighs_most(encoder: Encoder):
    marked = 0
    for row in rows(encoder, "receipt", 12):
        batch = collate([row], encoder)
        told = [encoder.tekken.decode([token]) for token in batch.targets[0][batch.weights[0] == MARK_WEIGHT].tolist()]
        if "price=" not in row.worked.reasoning:
            assert told == []
            continue
        marked += 1
        assert told == ["=" if "=" in line else " " for line in row.worked.reasoning.split("\n")[:-1]]
    assert marked


def test_the_letters_of_a_made_up_name_weigh_more(encoder: Encoder):
    named = 0
    for row in rows(encoder, "fields", 30):
        batch = collate([row], encoder)
        heavy = encoder.tekken.decode(batch.targets[0][batch.weights[0] == NAME_WEIGHT].tolist())
        name = row.worked.expected if row.worked.reasoning.startswith("field customer") else ""
        named += bool(name)
        assert heavy == 2 * name  # where it is found, and where it is answered
    assert named


def test_cells_spell_the_receipt(encoder: Encoder):
    receipt = work("train", 0, 0, "receipt").receipt
    cells = cell_classes(receipt.characters, grid_of(receipt))
    assert (cells > 0).sum() == len(receipt.characters)
    names = name_classes(receipt.characters, grid_of(receipt))
    assert {GOODS[index - 1] for index in names if index} == {name for name, _ in receipt.items}
