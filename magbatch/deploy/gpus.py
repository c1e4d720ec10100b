"""Memory of GPUs by their kind, held against what is asked for and what the model needs."""

import math
from collections.abc import Sequence

from magbatch.deploy.platform import Platform
from magbatch.deploy.weights import weights
from magbatch.errors import SpecError
from magbatch.spec import JobSpec

# GB of each GPU as vendors count them, by Ray's name of the kind. Some kinds are sold in several sizes.
MEMORY_GB: dict[str, tuple[int, ...]] = {
    "K80": (12,),
    "P4": (8,),
    "P100": (12, 16),
    "V100": (16, 32),
    "T4": (16,),
    "A10G": (24,),
    "L4": (24,),
    "L40S": (48,),
    "A100": (40, 80),
    "A100-40G": (40,),
    "A100-80G": (80,),
    "RTX-PRO-6000": (96,),
    "H20": (96, 141),
    "H100": (80, 94),
    "H200": (141,),
    "B200": (192,),
    "B300": (288,),
    "GB200": (192,),
    "GB300": (288,),
}
ON_KARPENTER = ("T4", "V100", "A10G", "L4", "L40S", "A100", "H100", "H200", "B200", "B300")  # its labels, for AWS
ROOM = 0.9  # of a GPU's memory is for weights and KV cache, about vLLM's own default


def check_memory(spec: JobSpec, platform: Platform, kind: str | None, sizes: Sequence[int]) -> list[str]:
    """Hold GPUs against `--gpu-memory-gb` and the weights of the model.

    Args:
        spec: The job, of which the model and `replicas.gpus` are read.
        platform: The options, of which `gpu_memory_gb` is read.
        kind: Name of the kind; None is any that has the memory asked for.
        sizes: GB that one GPU may have; empty if not known here.

    Returns:
        What could not be checked, or leaves little room; a line each.

    Raises:
        SpecError: A GPU has less memory than is asked for, or than the weights take.
    """
    wanted = platform.gpu_memory_gb
    if wanted is not None:
        sizes = _as_asked(wanted, kind, sizes)
    found, source, of = weights(spec.model), spec.model.source, kind or "GPU"
    if found is None:
        has = f" ({_counts(sizes)} GB)" if sizes else ""
        note = f"{of}{has}: memory is not checked, because the size of {source} is not known here"
        return [note] if wanted is None else []
    needed = math.ceil(found.memory / 1e9)
    if not sizes:
        return [f"{of}: memory is not known here; the weights of {source} take {needed} GB"] if needed else []
    subject = kind or f"--gpu-memory-gb {wanted}"
    return _with_weights(spec, subject, of, found.memory, min(sizes))


def _as_asked(wanted: int, kind: str | None, sizes: Sequence[int]) -> list[int]:
    """Sizes that have the memory asked for."""
    most = max(max(one) for one in MEMORY_GB.values())
    if wanted > most:
        raise SpecError(f"--gpu-memory-gb {wanted}: no GPU known here has that much ({most} at most)")
    if sizes and max(sizes) < wanted:
        raise SpecError(
            f"--gpu-memory-gb {wanted}: {kind} has {_counts(sizes)} GB; "
            f"write --gpu-memory-gb {max(sizes)} or less, or name a larger kind"
        )
    return [one for one in sizes if one >= wanted] or [wanted]


def _with_weights(spec: JobSpec, subject: str, of: str, memory: int, least: int) -> list[str]:
    """Hold `least` GB of each GPU against `memory` bytes of weights."""
    gpus, needed, has = spec.replicas.gpus, math.ceil(memory / 1e9), least + _offloaded_gb(spec)
    taken = f"the weights of {spec.model.source} take {needed}"
    if memory > gpus * has * 1e9:
        raise SpecError(
            f"{subject}: {taken} GB, and a replica's {gpus} x {of} of {least} GB have {gpus * least} GB; "
            f"write --gpu-memory-gb {math.ceil(needed / gpus / ROOM)} or more, name a larger kind, "
            "raise replicas.gpus, or, if its files are quantized, say how: model.engine_args.quantization"
        )
    if memory > gpus * has * ROOM * 1e9:
        return [f"{subject}: {taken} of {gpus * least} GB, which leaves little or nothing for the KV cache"]
    return []


def unused(platform: Platform) -> list[str]:
    """Options that say nothing where a replica has no GPU; a line each."""
    given = {"--accelerator": bool(platform.accelerators), "--gpu-memory-gb": platform.gpu_memory_gb is not None}
    return [f"{option}: is not used, because replicas.gpus is 0" for option, is_given in given.items() if is_given]


def _offloaded_gb(spec: JobSpec) -> float:
    """GB of each GPU's weights that vLLM keeps in the node's memory."""
    found = spec.model.engine_args.get("cpu_offload_gb", 0)
    return float(found) if isinstance(found, int | float) else 0.0


def _counts(sizes: Sequence[int]) -> str:
    return " or ".join(map(str, sizes))
