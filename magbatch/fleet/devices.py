"""The GPUs of this machine, counted as a local Ray will count them. Ray is neither started nor imported."""

import ctypes
import importlib.util
import os
import sys

from magbatch.errors import SpecError
from magbatch.spec import JobSpec

NVML = "libnvidia-ml.so.1"  # library of NVIDIA's driver; Ray asks the same one
VISIBLE = "CUDA_VISIBLE_DEVICES"
# GPUs of other makers, which Ray counts by their own libraries: AMD's driver; packages for Intel and MetaX.
OTHER_DRIVERS = ("/dev/kfd",)
OTHER_PACKAGES = ("dpctl", "pymxsml")


def check_gpus(spec: JobSpec) -> None:
    """Compare the GPUs of a replica with this machine's, unless the job goes to a cluster.

    Raises:
        SpecError: A local Ray would have too few GPUs for one replica.
    """
    if os.environ.get("RAY_ADDRESS"):
        return
    there = gpus_here()
    if there is not None and there < spec.replicas.gpus:
        raise too_few(spec, there)


def too_few(spec: JobSpec, there: int) -> SpecError:
    """Make the error of a machine that has fewer GPUs than a replica asks for.

    Args:
        spec: Spec of the job, for `replicas.gpus`.
        there: GPUs of the machine.
    """
    return SpecError(
        f"replicas.gpus: a replica asks for {spec.replicas.gpus}, this machine has {there}; set it to 0 for CPUs, or "
        "run the job on a cluster: RAY_ADDRESS=host:6379, magbatch submit, or magbatch deploy render"
    )


def gpus_here() -> int | None:
    """GPUs that this process may use; None if only Ray can tell."""
    count = _nvidia()
    if count:
        visible = os.environ.get(VISIBLE)
        return count if visible is None else min(count, visible_count(visible))
    others = any(map(os.path.exists, OTHER_DRIVERS)) or any(map(importlib.util.find_spec, OTHER_PACKAGES))
    return None if others or sys.platform == "darwin" else 0


def visible_count(visible: str) -> int:
    """Largest number of GPUs that a value of CUDA_VISIBLE_DEVICES allows.

    >>> visible_count("0,1"), visible_count(""), visible_count("NoDevFiles")
    (2, 0, 0)
    """
    return 0 if visible in ("", "NoDevFiles") else len(visible.split(","))


def _nvidia() -> int:
    """NVIDIA GPUs of this machine; 0 without NVIDIA's driver."""
    try:
        library = ctypes.CDLL(NVML)
        if library.nvmlInit_v2() != 0:
            return 0
        count = ctypes.c_uint()
        found = library.nvmlDeviceGetCount_v2(ctypes.byref(count))
        library.nvmlShutdown()
    except (OSError, AttributeError):  # no driver, or a driver from before 2012
        return 0
    return count.value if found == 0 else 0
