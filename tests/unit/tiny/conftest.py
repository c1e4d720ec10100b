"""An encoder with the checkpoint's tokenizer, and an untrained model."""

import pytest
import torch

from magbatch.tiny.batches import Encoder
from magbatch.tiny.checkpoint import ensure
from magbatch.tiny.train import Trainee, initialise

# Threads of so small a model mostly wait for each other: on a busy machine with two cores, six steps of training took
# 70 s with two threads, and 2 s with one.
torch.set_num_threads(1)


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
