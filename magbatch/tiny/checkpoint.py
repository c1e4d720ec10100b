"""The tiny model's checkpoint: a complete, loadable directory, made in the cache when it is first needed.

The directory's name is a hash of its content, and it appears whole or not at all. So any number of processes may call
`ensure` at the same time, and all get the same files.
"""

import hashlib
import json
import os
import shutil
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

from magbatch.errors import ModelError
from magbatch.tiny.tokenizer import NUM_SPECIAL_TOKENS, tekken_json
from magbatch.tiny.wording import SYSTEM_PROMPT, pieces

VOCAB_SIZE = NUM_SPECIAL_TOKENS + 256 + len(pieces())
CONTEXT_TOKENS = 8192
MAX_IMAGE_SIZE = 448
_WEIGHTS_FILE = "consolidated.safetensors"


def params() -> dict[str, Any]:
    """Return the content of `params.json`: the model's shape in Mistral's terms."""
    return {
        "dim": 192,
        "n_layers": 4,
        "head_dim": 32,
        "hidden_dim": 512,
        "n_heads": 6,
        "n_kv_heads": 2,
        "rope_theta": 10000.0,
        "norm_eps": 1e-05,
        "vocab_size": VOCAB_SIZE,
        "tied_embeddings": False,
        "max_position_embeddings": CONTEXT_TOKENS,
        "vision_encoder": {
            "hidden_size": 128,
            "num_channels": 3,
            "image_size": MAX_IMAGE_SIZE,
            "patch_size": 14,
            "intermediate_size": 256,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "rope_theta": 10000.0,
            "image_token_id": 10,
            "image_break_token_id": 12,
            "image_end_token_id": 13,
            "adapter_bias": False,
            "spatial_merge_size": 2,
            "add_pre_mm_projector_layer_norm": True,
            "mm_projector_id": "patch_merge",
        },
    }


def weight_shapes() -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every tensor in `consolidated.safetensors`."""
    p = params()
    v = p["vision_encoder"]
    dim, head_dim, vision_dim = p["dim"], p["head_dim"], v["hidden_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "tok_embeddings.weight": (p["vocab_size"], dim),
        "norm.weight": (dim,),
        "output.weight": (p["vocab_size"], dim),
        "vision_encoder.patch_conv.weight": (
            vision_dim,
            v["num_channels"],
            v["patch_size"],
            v["patch_size"],
        ),
        "vision_encoder.ln_pre.weight": (vision_dim,),
        "pre_mm_projector_norm.weight": (vision_dim,),
        "patch_merger.merging_layer.weight": (
            vision_dim,
            vision_dim * v["spatial_merge_size"] ** 2,
        ),
        "vision_language_adapter.w_in.weight": (dim, vision_dim),
        "vision_language_adapter.w_out.weight": (dim, dim),
    }
    for layer in range(p["n_layers"]):
        shapes |= _block(
            f"layers.{layer}",
            dim,
            p["n_heads"] * head_dim,
            p["n_kv_heads"] * head_dim,
            p["hidden_dim"],
        )
    for layer in range(v["num_hidden_layers"]):
        shapes |= _block(
            f"vision_encoder.transformer.layers.{layer}",
            vision_dim,
            vision_dim,
            vision_dim,
            v["intermediate_size"],
        )
    return shapes


def _block(prefix: str, dim: int, query: int, key: int, hidden: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{prefix}.attention.wq.weight": (query, dim),
        f"{prefix}.attention.wk.weight": (key, dim),
        f"{prefix}.attention.wv.weight": (key, dim),
        f"{prefix}.attention.wo.weight": (dim, query),
        f"{prefix}.feed_forward.w1.weight": (hidden, dim),
        f"{prefix}.feed_forward.w2.weight": (dim, hidden),
        f"{prefix}.feed_forward.w3.weight": (hidden, dim),
        f"{prefix}.attention_norm.weight": (dim,),
        f"{prefix}.ffn_norm.weight": (dim,),
    }


def texts() -> dict[str, str]:
    """Return the checkpoint's text files, by name; the weights are the only other file."""
    vision = params()["vision_encoder"]
    return {
        "params.json": json.dumps(params(), indent=2),
        "tekken.json": tekken_json(
            patch_size=vision["patch_size"],
            max_image_size=vision["image_size"],
            spatial_merge_size=vision["spatial_merge_size"],
        ),
        "SYSTEM_PROMPT.txt": SYSTEM_PROMPT,
    }


def ensure() -> Path:
    """Make the checkpoint if it is missing.

    Returns:
        Path of a directory with `params.json`, `consolidated.safetensors`, `tekken.json` and `SYSTEM_PROMPT.txt`, below
        `$MAGBATCH_CACHE` or `~/.cache/magbatch`.

    Raises:
        ModelError: This installation lacks the weights.
        OSError: The cache directory cannot be written.
    """
    small, weights = texts(), _weights()
    digest = hashlib.sha256()
    for name, text in sorted(small.items()):
        digest.update(f"{name}\0{text}\0".encode())
    digest.update(weights)
    target = _cache_directory() / f"tiny-{digest.hexdigest()[:16]}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    # Built next to its final path: a rename within one file system is atomic.
    building = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        for name, text in small.items():
            (building / name).write_text(text, encoding="utf-8")
        (building / _WEIGHTS_FILE).write_bytes(weights)
        building.chmod(0o755)
        try:
            building.rename(target)
        except OSError:
            # Another process was faster; its directory has the same content.
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return target


def _weights() -> bytes:
    packaged = resources.files("magbatch.tiny") / "weights" / _WEIGHTS_FILE
    if not packaged.is_file():
        raise ModelError(
            f"model.source builtin:tiny: this installation of magbatch lacks {packaged}; install it again, or make the "
            "file with: python -m magbatch.tiny.train"
        )
    return packaged.read_bytes()


def _cache_directory() -> Path:
    configured = os.environ.get("MAGBATCH_CACHE")
    return Path(configured) if configured else Path.home() / ".cache" / "magbatch"
