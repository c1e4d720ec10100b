"""The PyTorch model: the checkpoint's tensors, and one meaning however it is called."""

import random

import torch

from magbatch.tiny.batches import (
    Encoder,
    collate,
    grid_of,
    make_row,
)
from magbatch.tiny.checkpoint import params, weight_shapes
from magbatch.tiny.model import TinyModel
from magbatch.tiny.tasks import work
from magbatch.tiny.train import Trainee


def rows(encoder: Encoder, kind: str, count: int):
    rng = random.Random(0)
    return [make_row(encoder, work("train", 0, index, kind), rng) for index in range(count)]


def test_tensors_have_the_checkpoints_names_and_shapes():
    model = TinyModel(params())
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == weight_shapes()


def test_an_image_gives_as_many_features_as_its_prompt_has_places(encoder: Encoder, trainee: Trainee):
    for row in rows(encoder, "receipt", 5):
        batch = collate([row], encoder)
        assert batch.pixels is not None
        features = trainee.model.see(batch.pixels)
        grid_rows, columns = grid_of(row.worked.receipt)
        assert features.shape == (1, grid_rows * columns, params()["dim"])
        assert row.prompt.count(trainee.model.image_token) == grid_rows * columns


def test_patches_are_joined_as_unfold_joins_them(trainee: Trainee):
    grid = torch.randn(2, 6, 8, 128)
    merger = trainee.model.patch_merger
    columns = torch.nn.functional.unfold(grid.permute(0, 3, 1, 2), kernel_size=2, stride=2).transpose(1, 2)
    torch.testing.assert_close(merger(grid), merger.merging_layer(columns))


def test_patches_are_cut_as_the_convolution_cuts_them(trainee: Trainee):
    vision = trainee.model.vision_encoder
    pixels = torch.randn(1, 3, 56, 84)
    vision.transformer.layers = torch.nn.ModuleList()
    expected = vision.ln_pre(vision.patch_conv(pixels).flatten(2).transpose(1, 2)).view(1, 4, 6, -1)
    torch.testing.assert_close(vision(pixels), expected, rtol=1e-4, atol=1e-5)


def test_padding_changes_nothing(encoder: Encoder, trainee: Trainee):
    short, long = sorted(rows(encoder, "arithmetic", 2), key=len)
    together = collate([short, long], encoder)
    alone = collate([short], encoder)
    with torch.no_grad():
        a = trainee.model(trainee.model.embed(together.tokens))[0, : len(short)]
        b = trainee.model(trainee.model.embed(alone.tokens))[0]
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
