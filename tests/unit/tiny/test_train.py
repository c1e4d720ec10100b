"""Training lowers the loss, and its weights survive the file."""

import random
from pathlib import Path

import pytest
import torch

from magbatch.tiny.batches import (
    Encoder,
    Mixture,
    collate,
    make_row,
    pool,
)
from magbatch.tiny.tasks import work
from magbatch.tiny.train import Trainee, export, load, losses, optimisers, rate


def rows(encoder: Encoder, kind: str, count: int):
    rng = random.Random(0)
    return [make_row(encoder, work("train", 0, index, kind), rng) for index in range(count)]


def test_a_few_steps_of_training_lower_the_loss(encoder: Encoder, trainee: Trainee):
    batches = next(pool(encoder, "train", 0, 0, Mixture(counts=(4, 4, 4), images_a_batch=4)))
    optims = optimisers(trainee)
    seen = []
    for _ in range(6):
        part = losses(trainee, batches, write_images=True)
        loss = part.mean()
        seen.append(float(loss.detach()))
        loss.backward()
        for optimiser in optims:
            optimiser.step()
            optimiser.zero_grad()
    assert seen[-1] < 0.7 * seen[0]


def test_weights_count_in_the_loss(encoder: Encoder, trainee: Trainee):
    row = next(row for row in rows(encoder, "receipt", 12) if "price=" in row.worked.reasoning)
    batch = collate([row], encoder)
    heavy = losses(trainee, [batch], write_images=True)
    batch.weights[:] = 1.0
    light = losses(trainee, [batch], write_images=True)
    assert heavy.writing.item() > light.writing.item()
    assert heavy.written == light.written


def test_weights_survive_the_file(tmp_path: Path, trainee: Trainee):
    path = tmp_path / "w" / "consolidated.safetensors"
    export(trainee, path)
    for name, value in load(path).state_dict().items():
        torch.testing.assert_close(value, trainee.model.state_dict()[name].bfloat16().float())
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_the_rate_rises_stays_and_falls():
    rates = [rate(step, 1000) for step in (0, 99, 399, 700, 999)]
    assert rates == pytest.approx([0.01, 1.0, 1.0, 0.5, 1 / 600])
