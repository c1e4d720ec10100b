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
        spec: Its model and `replicas.gpus`.
        platform: Its `gpu_memory_gb`.
        kind: Name of the kind; None is any that has the memory asked for.
        sizes: GB that one GPU may have; empty if not known here.

    Returns:
        What could not be checked, or leaves little room; a line each.

    Raises:
        SpecError: A GPU has less memory than is asked for, or than the weights take.
    """
    wanted, gpus, of = platform.gpu_memory_gb, spec.replicas.gpus, kind or "GPU"
    if wanted is not None:
        if sizes and max(sizes) < wanted:
            raise SpecError(
                f"--gpu-memory-gb {wanted}: {of} has {_counts(sizes)} GB; "
                f"write --gpu-memory-gb {max(sizes)} or less, or name a larger kind"
            )
        sizes = [one for one in sizes if one >= wanted] or [wanted]
    found = weights(spec.model)
    if found is None:
        if wanted is not None:
            return []
        has = f" ({_counts(sizes)} GB)" if sizes else ""
        return [f"{of}{has}: memory is not checked, because the size of {spec.model.source} is not known here"]
    needed = math.ceil(found.memory / 1e9)
    if not sizes:
        return [f"{of}: memory is not known here; the weights of {spec.model.source} take {needed} GB"] * (needed > 0)
    least, offloaded = min(sizes), _offloaded_gb(spec)
    if found.memory > gpus * (least + offloaded) * 1e9:
        raise SpecError(
            f"{'--gpu-memory-gb ' if kind is None else ''}{wanted if kind is None else kind}: the weights of "
            f"{spec.model.source} take {needed} GB, and a replica's {gpus} x {of} of {least} GB have "
            f"{gpus * least} GB; write --gpu-memory-gb {math.ceil(needed / gpus / ROOM)} or more, "
            "name a larger kind, or raise replicas.gpus"
        )
    if found.memory > gpus * (least + offloaded) * ROOM * 1e9:
        return [
            f"{of}: the weights of {spec.model.source} take {needed} of {gpus * least} GB, "
            "which leaves little or nothing for the KV cache"
        ]
    return []


def _offloaded_gb(spec: JobSpec) -> float:
    """GB of each GPU's weights that vLLM keeps in the node's memory."""
    found = spec.model.engine_args.get("cpu_offload_gb", 0)
    return float(found) if isinstance(found, int | float) else 0.0


def _counts(sizes: Sequence[int]) -> str:
    return " or ".join(map(str, sizes))
