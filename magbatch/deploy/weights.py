"""Size of a model's weights, from a local checkpoint or from the model's name. No estimate is too large."""

import json
import re
import struct
from dataclasses import dataclass
from pathlib import Path

from magbatch.spec import ModelSpec, needs_weights

# Parameters in billions, and bytes per parameter, of models whose names give neither.
_MODELS = {
    "magistral-small": (24, 2.0),
    "devstral-small": (24, 2.0),
    "deepseek-r1": (671, 1.0),
    "deepseek-v3": (671, 1.0),
}
_PARAMETERS = re.compile(r"(?<![A-Za-z0-9.])(?:([0-9]+)x)?([0-9]+(?:\.[0-9]+)?)[bB](?![A-Za-z0-9])")
_EXPERTS_SHARE = 0.8  # of 8 x 7 billion parameters: the experts share their attention layers
_FOUR_BITS = re.compile(r"[234]bit|int4|fp4|nf4|autoround|w4a|awq|gptq|gguf|bnb|q4|gpt-oss")
_EIGHT_BITS = re.compile(
    r"8bit|int8|fp8|w8a|q8"
    r"|stral-.*-(251[2-9]|2[6-9][01][0-9])$"  # Mistral stores most models in FP8 since December 2025
)
_WIDE = {"F64": 0.25, "F32": 0.5}  # share of the size that is left when vLLM loads a tensor as BF16
_QUANTIZED_FORMATS = {"bitsandbytes", "gguf"}


@dataclass(frozen=True, slots=True)
class Weights:
    """Size of a model's weights.

    Attributes:
        memory: Bytes in the memory of GPUs, summed over all GPUs of a replica.
        disk: Bytes that are fetched from a hub or a store; 0 for a local checkpoint.
    """

    memory: int
    disk: int


def weights(model: ModelSpec) -> Weights | None:
    """Return the size of a model's weights; None if it is not known."""
    if not needs_weights(model) or model.source.startswith("builtin:"):
        return Weights(0, 0)
    folder = Path(model.source)
    if "://" not in model.source and folder.is_dir():
        read = _checkpoint(folder)
        return None if read is None else Weights(int(read * _bytes_each(model, 2.0) / 2), 0)
    name = model.source.rstrip("/").rpartition("/")[2].lower()
    named = _named(name)
    if named is None:
        return None
    billions, each = named
    return Weights(int(billions * 1e9 * _bytes_each(model, each)), int(billions * 1e9 * each))


def _named(name: str) -> tuple[float, float] | None:
    """Return parameters in billions and bytes per parameter; None if the name does not give them.
    Example:
        >>> _named("qwen3-30b-a3b-fp8")
        (30.0, 1.0)
    """
    each = 0.5 if _FOUR_BITS.search(name) else 1.0 if _EIGHT_BITS.search(name) else 2.0
    if (found := _PARAMETERS.search(name)) is not None:
        return float(found[2]) * (float(found[1]) * _EXPERTS_SHARE if found[1] else 1), each
    for known, (billions, own) in _MODELS.items():
        if name.startswith(known):
            return float(billions), min(each, own)
    return None


def _bytes_each(model: ModelSpec, stored: float) -> float:
    """Return bytes per parameter in memory, which are fewer than stored if vLLM quantizes the weights."""
    how = model.engine_args.get("quantization")
    if how is None and model.engine_args.get("load_format") not in _QUANTIZED_FORMATS:
        return stored
    return min(stored, 1.0 if _EIGHT_BITS.search(str(how)) else 0.5)


def _checkpoint(folder: Path) -> int | None:
    """Return the bytes of a checkpoint's tensors in BF16 or narrower; None if the folder has no tensors.

    Mistral's folders hold the weights twice, as `consolidated*` and as Hugging Face's files. vLLM loads one of the two.
    """
    files = sorted(folder.glob("*.safetensors"))
    kinds = [[path for path in files if path.name.startswith("consolidated") is mistral] for mistral in (True, False)]
    sums = [sum(_tensors(path) for path in kind) for kind in kinds if kind]
    return min(sums, default=None)


def _tensors(path: Path) -> int:
    """Return the bytes of a file's tensors from its safetensors header: its length in eight bytes, then JSON."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, path.stat().st_size)))
        return sum(
            int((one["data_offsets"][1] - one["data_offsets"][0]) * _WIDE.get(one["dtype"], 1))
            for name, one in header.items()
            if name != "__metadata__"
        )
    except (struct.error, ValueError, KeyError):
        return 0  # not a safetensors file: vLLM says so; 0 keeps the estimate from being too large
