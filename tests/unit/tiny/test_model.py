"""The PyTorch model: the checkpoint's tensors, and one meaning however it is called."""

import random
from pathlib import Path

import pytest
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
from magbatch.tiny.checkpoint import ensure, params, weight_shapes
from magbatch.tiny.evaluate import Answered, generate, score
from magbatch.tiny.model import TinyModel
from magbatch.tiny.tasks import work
from magbatch.tiny.train import Trainee, export, initialise, load, losses, optimisers, rate
from magbatch.tiny.wording import GOODS


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MAGBATCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        return Encoder(ensure() / "tekken.json")


@pytest.fixture
def trainee() -> Trainee:
    made = Trainee()
    initialise(made)
    return made


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


def test_a_few_steps_of_training_lower_the_loss(encoder: Encoder, trainee: Trainee):
    (batches, *_) = pool(encoder, "train", 0, 0, Mixture(counts=(4, 4, 4), images_a_batch=4))
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


def test_weights_count_in_the_loss(encoder: Encoder, trainee: Trainee):
    row = next(row for row in rows(encoder, "receipt", 12) if "price=" in row.worked.reasoning)
    batch = collate([row], encoder)
    heavy = losses(trainee, [batch], write_images=True)
    batch.weights[:] = 1.0
    light = losses(trainee, [batch], write_images=True)
    assert heavy.writing.item() > light.writing.item()
    assert heavy.written == light.written


def test_cells_spell_the_receipt(encoder: Encoder):
    receipt = work("train", 0, 0, "receipt").receipt
    cells = cell_classes(receipt.characters, grid_of(receipt))
    assert (cells > 0).sum() == len(receipt.characters)
    names = name_classes(receipt.characters, grid_of(receipt))
    assert {GOODS[index - 1] for index in names if index} == {name for name, _ in receipt.items}


def test_weights_survive_the_file(tmp_path: Path, trainee: Trainee):
    path = tmp_path / "w" / "consolidated.safetensors"
    export(trainee, path)
    for name, value in load(path).state_dict().items():
        torch.testing.assert_close(value, trainee.model.state_dict()[name].bfloat16().float())
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_the_rate_rises_stays_and_falls():
    rates = [rate(step, 1000) for step in (0, 99, 399, 700, 999)]
    assert rates == pytest.approx([0.01, 1.0, 1.0, 0.5, 1 / 600])


def test_scores_count_what_they_say(encoder: Encoder):
    (row,) = rows(encoder, "arithmetic", 1)
    good = row.completion
    other_trace = [encoder.think, *encoder.text("guess"), *good[good.index(encoder.end_think) :]]
    unclosed = [token for token in good if token != encoder.end_think]
    assert score(encoder, [Answered(row, good)]) == {"answer": 1.0, "complete": 1.0, "exact": 1.0}
    assert score(encoder, [Answered(row, other_trace)]) == {"answer": 1.0, "complete": 1.0, "exact": 0.0}
    assert score(encoder, [Answered(row, unclosed)]) == {"answer": 0.0, "complete": 0.0, "exact": 0.0}
