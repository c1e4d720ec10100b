"""Training batches: the token ids that `mistral_common` would make, in groups of similar length.

The batches are a pure function of (split, seed, pool number). Only the tokenizer is read from disk.
"""

import itertools
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from torch import Tensor

from magbatch.tiny.receipts import CHARACTER_PIXELS, TOKEN_PIXELS, Character, Receipt
from magbatch.tiny.tasks import KINDS, Split, Worked, work
from magbatch.tiny.wording import GOODS, OTHER_SYSTEM_PROMPTS, SYSTEM_PROMPT

IGNORED = -100  # target of tokens outside completions; PyTorch's `cross_entropy` skips it
# Mean and spread by which mistral_common normalises images: those of CLIP's training images.
_PIXEL_MEAN = np.array((0.48145466, 0.4578275, 0.40821073), dtype=np.float32)
_PIXEL_STD = np.array((0.26862954, 0.26130258, 0.27577711), dtype=np.float32)
# Number of characters that an image token shows next to each other.
CELL_SLOTS = TOKEN_PIXELS // CHARACTER_PIXELS
CHARACTERS = " .0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
# Loss weights of the few tokens that decide an answer and cannot be guessed: the line of a receipt that the question
# names, and the letters of a made-up name. With weight 1 they were not learnt within thousands of steps.
MARK_WEIGHT = 12.0
NAME_WEIGHT = 4.0
_CHARACTER_CLASS = {character: index for index, character in enumerate(CHARACTERS)}


class Encoder:
    """Encoder of prompts and completions as token ids.

    Args:
        tekken_file: Path of `tekken.json`.
    """

    def __init__(self, tekken_file: Path) -> None:
        self.tekken = Tekkenizer.from_file(tekken_file)
        special = self.tekken.get_special_token
        self.bos, self.eos, self.pad = special("<s>"), special("</s>"), special("<pad>")
        self.think, self.end_think = special("[THINK]"), special("[/THINK]")
        self._items = frozenset(self.text(f" {item}")[-1] for item in GOODS)
        self.control = frozenset((self.bos, self.eos, self.pad, self.think, self.end_think))
        self._inst, self._end_inst = special("[INST]"), special("[/INST]")
        self._system, self._end_system = special("[SYSTEM_PROMPT]"), special("[/SYSTEM_PROMPT]")
        self._img, self._row, self._end = (
            special("[IMG]"),
            special("[IMG_BREAK]"),
            special("[IMG_END]"),
        )

    def text(self, text: str) -> list[int]:
        """Return the ids of plain text; control tokens that are written in it stay text."""
        return self.tekken.encode(text, bos=False, eos=False)

    def prompt(
        self,
        question: str,
        *,
        system: str | None = None,
        grid: tuple[int, int] | None = None,
        image_first: bool = True,
    ) -> list[int]:
        """Return the ids of a prompt, up to the first token that the model writes.

        Args:
            question: Text of the user.
            system: System prompt, or None; a `[THINK]…[/THINK]` in it becomes a closed think block.
            grid: Rows and columns of image tokens; None without an image.
            image_first: Whether the image precedes the text.
        """
        ids = [self.bos]
        if system is not None:
            ids += [self._system, *self._system_ids(system), self._end_system]
        image: list[int] = []
        if grid is not None:
            rows, columns = grid
            image = ([self._img] * columns + [self._row]) * rows
            image[-1] = self._end
        text = self.text(question)
        return [*ids, self._inst, *(image + text if image_first else text + image), self._end_inst]

    def _system_ids(self, system: str) -> list[int]:
        before, opened, rest = system.partition("[THINK]")
        if not opened:
            return self.text(system)
        reasoning, _, after = rest.partition("[/THINK]")
        middle = [self.think, *self.text(reasoning), self.end_think]
        return [*(self.text(before) if before else []), *middle, *self.text(after)]

    def completion(self, worked: Worked) -> list[int]:
        """Return the ids that the model should write: the reasoning, the answer and the end."""
        reasoning, answer = self.text(worked.reasoning), self.text(worked.expected)
        return [self.think, *reasoning, self.end_think, *answer, self.eos]

    def weights(self, row: "Row") -> list[float]:
        """Return the loss weight of each id of a completion; see `MARK_WEIGHT` and `NAME_WEIGHT`."""
        ids, weights = row.completion, [1.0] * len(row.completion)
        if "price=" in row.worked.reasoning:  # the id after an item's name tells whether the question names its line
            weights = [MARK_WEIGHT if index and ids[index - 1] in self._items else 1.0 for index in range(len(ids))]
        elif row.worked.reasoning.startswith("field customer"):
            name = self.text(row.worked.expected)
            for begin in range(len(ids) - len(name) + 1):
                if ids[begin : begin + len(name)] == name:
                    weights[begin : begin + len(name)] = [NAME_WEIGHT] * len(name)
        return weights


@dataclass
class Row:
    """An example as token ids.

    Attributes:
        prompt: Token ids of the prompt.
        completion: Token ids that the model should write.
        worked: Content of the example.
    """

    prompt: list[int]
    completion: list[int]
    worked: Worked

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


@dataclass
class Batch:
    """Rows padded on the right to the same length, and their images, all of the same size.

    Attributes:
        tokens: Token ids, int64 (rows, tokens).
        targets: Id that should follow each token, int64 (rows, tokens); `IGNORED` outside completions.
        weights: Loss weight of each target, float32 (rows, tokens).
        pixels: Normalised images, float32 (rows, 3, height, width); None for text.
        cells: Class of each character that an image token shows, int64 (rows, image tokens, CELL_SLOTS); 0 for none.
        names: Item whose name an image token shows, as 1 + its index, int64 (rows, image tokens); 0 for none.
    """

    tokens: Tensor
    targets: Tensor
    weights: Tensor
    pixels: Tensor | None = None
    cells: Tensor | None = None
    names: Tensor | None = None


def grid_of(receipt: Receipt) -> tuple[int, int]:
    """Return the rows and columns of image tokens of a receipt."""
    return receipt.image.height // TOKEN_PIXELS, receipt.image.width // TOKEN_PIXELS


def make_row(encoder: Encoder, worked: Worked, rng: random.Random) -> Row:
    """Encode an example, with a system prompt (or none) and an order of image and text drawn by `rng`."""
    draw = rng.random()
    system = None
    if draw < 0.5:
        system = SYSTEM_PROMPT
    elif draw < 0.7:
        system = rng.choice(OTHER_SYSTEM_PROMPTS)
    grid = grid_of(worked.receipt) if worked.receipt is not None else None
    prompt = encoder.prompt(worked.question, system=system, grid=grid, image_first=rng.random() < 0.7)
    return Row(prompt, encoder.completion(worked), worked)


def normalised(receipts: list[Receipt]) -> Tensor:
    """Return images of one size in the model's input form: float32 (images, 3, height, width)."""
    stacked = np.stack([np.asarray(receipt.image, dtype=np.float32) for receipt in receipts])
    pixels = (stacked / np.float32(255.0) - _PIXEL_MEAN) / _PIXEL_STD
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))


def name_classes(characters: tuple[Character, ...], grid: tuple[int, int]) -> np.ndarray:
    """Return the item whose name each image token shows: int64 (image tokens,), 1 + index of the item, 0 for none."""
    rows, columns = grid
    names = np.zeros(rows * columns, dtype=np.int64)
    for character in characters:
        if character.name:
            names[_cell(character, grid)] = 1 + GOODS.index(character.name)
    return names


def _cell(character: Character, grid: tuple[int, int]) -> int:
    rows, columns = grid
    column = min(int(character.x) // TOKEN_PIXELS, columns - 1)
    return min(int(character.y) // TOKEN_PIXELS, rows - 1) * columns + column


def cell_classes(characters: tuple[Character, ...], grid: tuple[int, int]) -> np.ndarray:
    """Return the characters that each image token shows: int64 (image tokens, CELL_SLOTS), 0 for none.

    A character belongs to the token, and to the half of the token's square, that holds its centre.
    """
    rows, columns = grid
    cells = np.zeros((rows * columns, CELL_SLOTS), dtype=np.int64)
    for character in characters:
        slot = int(character.x) // CHARACTER_PIXELS % CELL_SLOTS
        cells[_cell(character, grid), slot] = _CHARACTER_CLASS[character.text]
    return cells


def collate(rows: list[Row], encoder: Encoder) -> Batch:
    """Pad rows to a batch. Their images, if any, must have the same size."""
    length = max(len(row) for row in rows)
    tokens = np.full((len(rows), length), encoder.pad, dtype=np.int64)
    weights = np.ones((len(rows), length), dtype=np.float32)
    targets = np.full((len(rows), length), IGNORED, dtype=np.int64)
    for index, row in enumerate(rows):
        ids = row.prompt + row.completion
        tokens[index, : len(ids)] = ids
        targets[index, len(row.prompt) - 1 : len(ids) - 1] = row.completion
        weights[index, len(row.prompt) - 1 : len(ids) - 1] = encoder.weights(row)
    batch = Batch(torch.from_numpy(tokens), torch.from_numpy(targets), torch.from_numpy(weights))
    receipts = [row.worked.receipt for row in rows if row.worked.receipt is not None]
    if receipts:
        batch.pixels = normalised(receipts)
        grid = grid_of(receipts[0])
        shown = [receipt.characters for receipt in receipts]
        batch.cells = torch.from_numpy(np.stack([cell_classes(each, grid) for each in shown]))
        batch.names = torch.from_numpy(np.stack([name_classes(each, grid) for each in shown]))
    return batch


@dataclass(frozen=True)
class Mixture:
    """Composition of a pool of examples.

    Attributes:
        counts: Number of examples of each of `KINDS`.
        images_a_batch: Largest number of images in a batch.
    """

    counts: tuple[int, int, int]
    images_a_batch: int


def pool(encoder: Encoder, split: Split, seed: int, number: int, mix: Mixture) -> Iterator[list[Batch]]:
    """Yield the training steps of a pool of examples, each with a batch of images and a batch of text.

    Args:
        encoder: Encoder of the examples.
        split: Split from which the examples are drawn.
        seed: Seed of the training.
        number: Number of the pool, from 0.
        mix: Composition of the pool.
    """
    rng = random.Random(f"batches/{split}/{seed}/{number}")
    rows = {
        kind: [make_row(encoder, work(split, seed, number * count + i, kind), rng) for i in range(count)]
        for kind, count in zip(KINDS, mix.counts, strict=True)
    }
    images = list(_by_size(rows["receipt"], mix.images_a_batch, rng))
    texts = sorted([*rows["arithmetic"], *rows["fields"]], key=len)
    steps = max(1, len(images))
    cuts = [len(texts) * step // steps for step in range(steps + 1)]
    text_batches = [texts[begin:end] for begin, end in itertools.pairwise(cuts) if begin < end]
    rng.shuffle(images)
    rng.shuffle(text_batches)
    for parts in _zip_uneven(images, text_batches):
        yield [collate(part, encoder) for part in parts]


def _by_size(rows: list[Row], most: int, rng: random.Random) -> Iterator[list[Row]]:
    sizes: dict[tuple[int, int], list[Row]] = defaultdict(list)
    for row in rows:
        assert row.worked.receipt is not None
        sizes[grid_of(row.worked.receipt)].append(row)
    for _, same in sorted(sizes.items()):
        same.sort(key=len)
        for begin in range(0, len(same), most):
            yield same[begin : begin + most]


def _zip_uneven(first: list[list[Row]], second: list[list[Row]]) -> Iterator[list[list[Row]]]:
    for index in range(max(len(first), len(second))):
        yield [*first[index : index + 1], *second[index : index + 1]]
