"""Generation with a cache writes what full passes write, and scores count rightly."""

import random

import pytest
import torch

from magbatch.tiny.batches import (
    Encoder,
    collate,
    make_row,
)
from magbatch.tiny.evaluate import Answered, generate, score
from magbatch.tiny.tasks import work
from magbatch.tiny.train import Trainee


def rows(encoder: Encoder, kind: str, count: int):
    rng = random.Random(0)
    return [make_row(encoder, work("train", 0, index, kind), rng) for index in range(count)]


@pytest.mark.parametrize("kind", ["arithmetic", "receipt"])
def test_generation_with_a_cache_equals_full_passes(encoder: Encoder, trainee: Trainee, kind: str):
    batch = rows(encoder, kind, 3)
    written = generate(trainee.model, encoder, batch, max_new_tokens=6)
    for row, tokens in zip(batch, written, strict=True):
        ids = list(row.prompt)
        one = collate([row], encoder)
        with torch.no_grad():
            images = trainee.model.see(one.pixels).flatten(0, 1) if one.pixels is not None else None
            for token in tokens:
                hidden = trainee.model(trainee.model.embed(torch.tensor([ids]), images))
                assert int(trainee.model.output(hidden[0, -1]).argmax()) == token
                ids.append(token)


def test_sampling_repeats_with_its_seed(encoder: Encoder, trainee: Trainee):
    batch = rows(encoder, "fields", 2)
    first = generate(trainee.model, encoder, batch, temperature=0.7, seed=1, max_new_tokens=8)
    assert generate(trainee.model, encoder, batch, temperature=0.7, seed=1, max_new_tokens=8) == first
    assert generate(trainee.model, encoder, batch, temperature=0.7, seed=2, max_new_tokens=8) != first


def test_scores_count_what_they_say(encoder: Encoder):
    (row,) = rows(encoder, "arithmetic", 1)
    good = row.completion
    other_trace = [encoder.think, *encoder.text("guess"), *good[good.index(encoder.end_think) :]]
    unclosed = [token for token in good if token != encoder.end_think]
    assert score(encoder, [Answered(row, good)]) == {"answer": 1.0, "complete": 1.0, "exact": 1.0}
    assert score(encoder, [Answered(row, other_trace)]) == {"answer": 1.0, "complete": 1.0, "exact": 0.0}
    assert score(encoder, [Answered(row, unclosed)]) == {"answer": 0.0, "complete": 0.0, "exact": 0.0}
