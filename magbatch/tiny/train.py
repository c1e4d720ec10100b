"""Train the tiny model from scratch: `python -m magbatch.tiny.train` writes its weights.

Every example comes from `tasks`, split `train`. A run is a function of its arguments: if it is stopped and resumed from
its last state, it continues as if it had not stopped.
"""

import argparse
import json
import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from magbatch.tiny.batches import (
    CELL_SLOTS,
    CHARACTERS,
    IGNORED,
    Batch,
    Encoder,
    Mixture,
    collate,
    make_row,
    pool,
)
from magbatch.tiny.checkpoint import params, texts, weight_shapes
from magbatch.tiny.model import TinyModel
from magbatch.tiny.tasks import KINDS, work
from magbatch.tiny.wording import GOODS

_INIT_SEED = 7
WEIGHTS = Path(__file__).parent / "weights" / "consolidated.safetensors"
# First steps, in which images are only read, character by character.
READING_STEPS = 300
WARMUP_STEPS = 100
DECAY_SHARE = 0.6  # share of the steps at the end in which the learning rate falls to zero
# The largest learning rates at which the loss of the first thousand steps fell without jumps.
MATRIX_LR = 3e-3
VECTOR_LR = 3e-3
PRINT_INTERVAL_STEPS = 50
CHECK_INTERVAL_STEPS = 500
READING_MIX = Mixture(counts=(640, 1280, 400), images_a_batch=24)
FULL_MIX = Mixture(counts=(700, 700, 400), images_a_batch=24)


class Trainee(nn.Module):
    """The model with two extra heads, which are trained with it and then dropped.

    The heads name the characters that each image token shows, and the item in whose name they stand. Without them
    the model would have to learn reading from answers alone, which takes far longer.
    """

    def __init__(self) -> None:
        super().__init__()
        shape = params()
        self.model = TinyModel(shape)
        self.reader = nn.Linear(shape["dim"], CELL_SLOTS * len(CHARACTERS))
        self.namer = nn.Linear(shape["dim"], 1 + len(GOODS))


def initialise(trainee: Trainee) -> None:
    """Draw seeded initial weights; each layer's contribution to the residual stream starts near zero."""
    generator = torch.Generator().manual_seed(_INIT_SEED)
    with torch.no_grad():
        for name, weight in sorted(trainee.named_parameters()):
            if weight.ndim < 2:
                weight.fill_(0.0 if name.endswith("bias") else 1.0)
                continue
            spread = weight[0].numel() ** -0.5
            if "tok_embeddings" in name:
                spread = 0.1
            elif name.endswith((".wo.weight", ".w2.weight")):
                spread *= 0.2
            elif name.endswith(("output.weight", "reader.weight", "namer.weight")):
                spread *= 0.1
            weight.normal_(0.0, spread, generator=generator)


def optimisers(trainee: Trainee) -> list[torch.optim.Optimizer]:
    """Return the optimisers: Muon for the matrices inside the layers, AdamW for all other weights."""
    matrices: list[Tensor] = []
    others: list[Tensor] = []
    for name, weight in trainee.named_parameters():
        inside = weight.ndim == 2 and not any(part in name for part in ("tok_embeddings", "output.", "reader", "namer"))
        (matrices if inside else others).append(weight)
    return [
        torch.optim.Muon(matrices, lr=MATRIX_LR, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=VECTOR_LR, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def rate(step: int, steps: int) -> float:
    """Return the share of the full learning rate at a step: it rises, stays level, then falls to zero.

    Args:
        step: Number of the step, from 0.
        steps: Number of all steps.
    """
    decay_steps = int(steps * DECAY_SHARE)
    return min(1.0, (step + 1) / WARMUP_STEPS, max(0.0, (steps - step) / decay_steps))


@dataclass
class Losses:
    """Summed losses and their numbers of terms.

    Attributes:
        writing: Weighted loss of completion tokens.
        written: Number of completion tokens.
        reading: Loss of characters in images.
        read: Number of character slots.
        naming: Loss of item names in images.
        named: Number of image tokens.
    """

    writing: Tensor
    written: int
    reading: Tensor
    read: int
    naming: Tensor
    named: int

    def mean(self) -> Tensor:
        """Return the loss to minimise: the sum of the three mean losses."""
        return self.writing / max(1, self.written) + self.reading / max(1, self.read) + self.naming / max(1, self.named)


def losses(trainee: Trainee, batches: list[Batch], *, write_images: bool) -> Losses:
    """Compute the losses of a step.

    Args:
        trainee: Model and heads.
        batches: Batches of the step.
        write_images: Whether completions of rows with images count; otherwise their images are only read.
    """
    writing, reading, naming = torch.zeros(()), torch.zeros(()), torch.zeros(())
    written = read = named = 0
    for batch in batches:
        images = None
        if batch.pixels is not None and batch.cells is not None and batch.names is not None:
            seen = trainee.model.see(batch.pixels)
            logits = trainee.reader(seen).float().view(-1, len(CHARACTERS))
            reading = reading + F.cross_entropy(logits, batch.cells.flatten(), reduction="sum")
            read += batch.cells.numel()
            logits = trainee.namer(seen).float().flatten(0, 1)
            naming = naming + F.cross_entropy(logits, batch.names.flatten(), reduction="sum")
            named += batch.names.numel()
            if not write_images:
                continue
            images = seen.flatten(0, 1)
        hidden = trainee.model(trainee.model.embed(batch.tokens, images))
        wanted = batch.targets != IGNORED
        logits = trainee.model.output(hidden[wanted]).float()
        each = F.cross_entropy(logits, batch.targets[wanted], reduction="none")
        writing = writing + (each * batch.weights[wanted]).sum()
        written += int(wanted.sum())
    return Losses(writing, written, reading, read, naming, named)


def check(trainee: Trainee, encoder: Encoder, count: int) -> dict[str, float]:
    """Return the share of held-out examples whose tokens are all the model's first choice, and the share of tokens.

    Args:
        trainee: Model to check.
        encoder: Encoder of the examples.
        count: Number of examples of each kind.
    """
    trainee.eval()
    right: dict[str, float] = {}
    for kind in KINDS:
        rng = random.Random(f"check/{kind}")
        exact = tokens_right = tokens = 0
        for index in range(count):
            row = make_row(encoder, work("heldout", 0, index, kind), rng)
            same = first_choices(trainee.model, collate([row], encoder))
            exact += int(same.all())
            tokens_right += int(same.sum())
            tokens += same.numel()
        right[kind] = exact / count
        right[f"{kind}/token"] = tokens_right / tokens
    trainee.train()
    return right


def first_choices(model: TinyModel, batch: Batch) -> Tensor:
    """Tell for each completion token of a batch whether it is the model's first choice: bool (completion tokens,)."""
    with torch.no_grad():
        images = model.see(batch.pixels).flatten(0, 1) if batch.pixels is not None else None
        hidden = model(model.embed(batch.tokens, images))
        wanted = batch.targets != IGNORED
        right: Tensor = model.output(hidden[wanted]).argmax(-1) == batch.targets[wanted]
        return right


def export(trainee: Trainee, path: Path) -> None:
    """Write the model's weights in bfloat16, whole or not at all."""
    weights = {
        name: value.detach().to(torch.bfloat16).contiguous() for name, value in trainee.model.state_dict().items()
    }
    if {name: tuple(value.shape) for name, value in weights.items()} != weight_shapes():
        raise RuntimeError("the model's tensors are not those of params.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    building = path.with_suffix(".building")
    save_file(weights, building)
    building.rename(path)


def train(*, steps: int, seed: int, state_file: Path, out: Path) -> None:
    """Run the steps that are left after `state_file`, then write the weights.

    Args:
        steps: Number of all steps.
        seed: Seed of examples and training.
        state_file: File from which the training resumes, and to which it saves its state after each pool.
        out: Weights file to write.

    Raises:
        ValueError: The state is of a training with other arguments.
    """
    torch.manual_seed(seed)
    encoder = _encoder()
    trainee = Trainee()
    initialise(trainee)
    optims = optimisers(trainee)
    step, pool_number = _resume(state_file, trainee, optims, steps=steps, seed=seed)
    # Unusual shapes (a batch of one row, very few tokens) each cause another compilation.
    torch._dynamo.config.recompile_limit = 64
    for block in (*trainee.model.layers, *trainee.model.vision_encoder.transformer.layers):
        block.compile(dynamic=True)
    totals = _Sums()
    began = time.monotonic()
    while step < steps:
        reading_only = step < READING_STEPS
        mix = READING_MIX if reading_only else FULL_MIX
        for batches in pool(encoder, "train", seed, pool_number, mix):
            part = _update(trainee, optims, batches, rate(step, steps), write_images=not reading_only)
            step += 1
            if step == steps:
                break
            totals.add(part)
            if step % PRINT_INTERVAL_STEPS == 0:
                seconds = time.monotonic() - began
                print(f"step {step}/{steps} pool {pool_number} {seconds:.0f} s {totals}", flush=True)
                totals = _Sums()
            if step % CHECK_INTERVAL_STEPS == 0:
                _print_check(trainee, encoder, 60)
        # The state is saved between two pools, since a resumed training starts with a whole pool.
        pool_number += 1
        _save(state_file, trainee, optims, step=step, pool=pool_number, steps=steps, seed=seed)
    export(trainee, out)
    _print_check(trainee, encoder, 200)


def _encoder() -> Encoder:
    with tempfile.TemporaryDirectory() as folder:
        tekken = Path(folder, "tekken.json")
        tekken.write_text(texts()["tekken.json"], encoding="utf-8")
        return Encoder(tekken)


def _resume(
    state_file: Path, trainee: Trainee, optims: list[torch.optim.Optimizer], *, steps: int, seed: int
) -> tuple[int, int]:
    """Load the saved state into model and optimisers, if there is one; return the next step and pool.

    Raises:
        ValueError: The state is of a training with other arguments.
    """
    if not state_file.exists():
        return 0, 0
    state = torch.load(state_file, weights_only=True)
    if (state["steps"], state["seed"]) != (steps, seed):
        raise ValueError(
            f"{state_file}: this is the state of a training of {state['steps']} steps with seed {state['seed']}; "
            "remove it, or give the same --steps and --seed"
        )
    trainee.load_state_dict(state["weights"])
    for optimiser, saved in zip(optims, state["optimisers"], strict=True):
        optimiser.load_state_dict(saved)
    return state["step"], state["pool"]


def _save(state_file: Path, trainee: Trainee, optims: list[torch.optim.Optimizer], **numbers: int) -> None:
    """Write the state from which `_resume` continues, whole or not at all."""
    weights = {"weights": trainee.state_dict(), "optimisers": [optimiser.state_dict() for optimiser in optims]}
    building = state_file.with_suffix(".building")
    torch.save(weights | numbers, building)
    building.rename(state_file)


def _update(
    trainee: Trainee, optims: list[torch.optim.Optimizer], batches: list[Batch], share: float, *, write_images: bool
) -> Losses:
    """Train on the batches of one step; `share` is the share of the full learning rates."""
    for optimiser, full in zip(optims, (MATRIX_LR, VECTOR_LR), strict=True):
        optimiser.param_groups[0]["lr"] = full * share
    with torch.autocast("cpu", dtype=torch.bfloat16):
        part = losses(trainee, batches, write_images=write_images)
    part.mean().backward()
    nn.utils.clip_grad_norm_(trainee.parameters(), 1.0)
    for optimiser in optims:
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    return part


def _print_check(trainee: Trainee, encoder: Encoder, count: int) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.compiler.set_stance("force_eager"):
        print(json.dumps(check(trainee, encoder, count)), flush=True)


class _Sums:
    """Losses summed over the steps between two lines of output."""

    def __init__(self) -> None:
        self._writing = self._reading = self._naming = 0.0
        self._written = self._read = self._named = 0

    def add(self, part: Losses) -> None:
        """Add the losses of one step."""
        self._writing += float(part.writing)
        self._written += part.written
        self._reading += float(part.reading)
        self._read += part.read
        self._naming += float(part.naming)
        self._named += part.named

    def __str__(self) -> str:
        return (
            f"writing {self._writing / max(1, self._written):.4f} reading {self._reading / max(1, self._read):.4f} "
            f"naming {self._naming / max(1, self._named):.4f} tokens {self._written}"
        )


def load(weights: Path) -> TinyModel:
    """Load a model with the weights of a `consolidated.safetensors`, in float32."""
    model = TinyModel(params())
    tensors = {name: value.float() for name, value in load_file(weights).items()}
    model.load_state_dict(tensors)
    model.eval()
    return model


def main() -> None:
    """Run the command line of `python -m magbatch.tiny.train`."""
    parser = argparse.ArgumentParser(description="Train the tiny model.")
    parser.add_argument("--steps", type=int, default=4000, help="number of training steps")
    parser.add_argument("--seed", type=int, default=1, help="seed of examples and training")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads for PyTorch")
    parser.add_argument("--state", type=Path, default=Path("tiny-training.pt"), help="file to resume from and save to")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="weights file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    train(
        steps=arguments.steps,
        seed=arguments.seed,
        state_file=arguments.state,
        out=arguments.out,
    )


if __name__ == "__main__":
    main()
