"""Facts about a model, read from its configuration."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from magbatch.errors import ModelError


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Facts from a checkpoint's configuration that the steps need.

    Attributes:
        context: Tokens of the model's context.
        image_size: Longest side of an image (pixels); None for a model without vision.
        image_cell: Side of the square behind one image token (pixels): patch size x spatial merge.
        latent: Whether attention keeps latent vectors in place of keys and values (MLA).
    """

    context: int
    image_size: int | None
    image_cell: int
    latent: bool = False


def facts(path: Path) -> ModelFacts:
    """Read facts from params.json.

    Args:
        path: Directory of the checkpoint.

    Raises:
        ModelError: The file is missing, or is not a configuration of Mistral's format.
    """
    try:
        params: dict[str, Any] = json.loads((path / "params.json").read_text(encoding="utf-8"))
        context = int(params.get("max_position_embeddings") or params.get("max_seq_len") or 131_072)
        vision, latent = params.get("vision_encoder"), bool(params.get("kv_lora_rank"))
        if not vision:
            return ModelFacts(context, None, 0, latent)
        cell = int(vision["patch_size"]) * int(vision.get("spatial_merge_size", 1))
        return ModelFacts(context, int(vision["image_size"]), cell, latent)
    except KeyError as error:
        raise ModelError(f"{path / 'params.json'}: vision_encoder has no {error}") from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ModelError(f"{path / 'params.json'}: not a model's configuration: {error}") from error
