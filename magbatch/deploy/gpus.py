"""Memory of GPUs by kind, compared with the requested memory and with the weights of the model."""

import math
from collections.abc import Sequence

from magbatch.deploy.platform import Platform
from magbatch.deploy.weights import weights
from magbatch.errors import SpecError
from magbatch.spec import JobSpec

# Memory of each GPU in GB as vendors count them, by Ray's name of the kind. Some kinds are sold in several sizes.
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
# Kinds that Karpenter labels on AWS.
ON_KARPENTER = ("T4", "V100", "A10G", "L4", "L40S", "A100", "H100", "H200", "B200", "B300")
ROOM = 0.9  # share of a GPU's memory for weights and KV cache; vLLM's default is about the same


def check_memory(spec: JobSpec, platform: Platform, kind: str | None, sizes: Sequence[int]) -> list[str]:
    """Compare the memory of GPUs with `--gpu-memory-gb` and with the weights of the model.

    Args:
        spec: Spec of the job; the model and `replicas.gpus` are used.
        platform: Options; `gpu_memory_gb` is used.
        kind: Name of the GPU kind; None stands for any kind with the requested memory.
        sizes: Possible memory of one GPU in GB; empty if it is not known.

    Returns:
        Notes for a person, one line each: memory that could not be checked, or that leaves little room.

    Raises:
        SpecError: A GPU has less memory than is requested, or than the weights need.
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
    """Return the sizes that have the requested memory."""
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
    """Compare the GPUs of a replica with the weights.

    Args:
        spec: Spec of the job.
        subject: Start of a message: the GPU kind, or the option that gives its memory.
        of: Name of one GPU.
        memory: Weights in bytes, on all GPUs of a replica together.
        least: Smallest memory of one GPU in GB.
    """
    gpus, needed, has = spec.replicas.gpus, math.ceil(memory / 1e9), least + _offloaded_gb(spec)
    taken = f"the weights of {spec.model.source} take {needed}"
    if memory > gpus * has * 1e9:
        raise SpecError(
            f"{subject}: {taken} GB, and a replica's {gpus} x {of} of {least} GB have {gpus * least} GB; "
            f"write --gpu-memory-gb {math.ceil(needed / gpus / ROOM)} or more, name a larger kind, "
            "raise replicas.gpus, or, if its files are quantized, name the method in model.engine_args.quantization"
        )
    if memory > gpus * has * ROOM * 1e9:
        return [f"{subject}: {taken} of {gpus * least} GB, which leaves little or nothing for the KV cache"]
    return []


def unused(platform: Platform) -> list[str]:
    """Return a note for each option that has no effect because replicas have no GPU."""
    given = {"--accelerator": bool(platform.accelerators), "--gpu-memory-gb": platform.gpu_memory_gb is not None}
    return [f"{option} is not used, because replicas.gpus is 0" for option, is_given in given.items() if is_given]


def _offloaded_gb(spec: JobSpec) -> float:
    """Return the GB of each GPU's weights that vLLM keeps in the node's memory."""
    found = spec.model.engine_args.get("cpu_offload_gb", 0)
    return float(found) if isinstance(found, int | float) else 0.0


def _counts(sizes: Sequence[int]) -> str:
    return " or ".join(map(str, sizes))
