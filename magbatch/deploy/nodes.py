"""Kinds of nodes for replicas, as selectors, tolerations and affinities of Kubernetes."""

import re
from typing import Any, Literal

from magbatch.deploy.gpus import MEMORY_GB, ON_KARPENTER, check_memory, unused
from magbatch.deploy.platform import Platform
from magbatch.errors import SpecError
from magbatch.spec import JobSpec, ShapeSpec

KARPENTER_ACCELERATOR = "karpenter.k8s.aws/instance-gpu-name"  # with values such as h100, a100, l40s
# Labels with the MiB of each GPU: set by Karpenter on AWS, and by NVIDIA's GPU feature discovery anywhere.
GPU_MEMORY_LABELS = ["karpenter.k8s.aws/instance-gpu-memory", "nvidia.com/gpu.memory"]
# GPUs report fewer or more MiB than their GB: H100 of 80 GB 81,559, A100 of 80 GB 81,920, L40S of 48 GB 46,068, L4 of
# 24 GB 23,034, T4 of 16 GB 15,360. 920 MiB per GB is below each of them, and above the next smaller kind.
MIB_A_GB = 920
ZONE_LABEL = "topology.kubernetes.io/zone"

Expression = dict[str, Any]


def shapes(spec: JobSpec, platform: Platform, *, memory_known: bool) -> list[ShapeSpec]:
    """Return the kinds of nodes, best first: those that the spec prefers, else spot before on-demand.

    Args:
        spec: Spec of the job; `replicas` is used.
        platform: Options. If the spec names no accelerator, a single one in the options is used.
        memory_known: Whether a group without a named accelerator still gets GPUs of a known size.

    Raises:
        SpecError: A kind is not available, or nothing says which GPUs a group of nodes has.
    """
    found = list(spec.replicas.prefer)
    if not found:
        markets: list[Literal["spot", "on-demand"]] = ["on-demand"] if platform.spot is None else ["spot", "on-demand"]
        found = [ShapeSpec(market=market) for market in markets]
    if platform.spot is None and any(shape.market == "spot" for shape in found):
        raise SpecError("--spot none: replicas.prefer asks for spot nodes; write --spot LABEL=VALUE of these nodes")
    if spec.replicas.gpus:
        found = _of_known_kind(found, platform, memory_known=memory_known)
    names = [group_name(shape) for shape in found]
    if len(set(names)) < len(names) or not all(names):
        raise SpecError(
            f"replicas.prefer: {', '.join(names)}: two entries give the same group of nodes; make each entry different"
        )
    return found


def memory_notes(spec: JobSpec, platform: Platform) -> list[str]:
    """Return notes about the memory of the GPUs on a cluster's nodes, one line each.

    Raises:
        SpecError: A kind has less memory than is requested, or than the weights need.
    """
    if not spec.replicas.gpus:
        return unused(platform)
    found: list[str] = []
    for shape in shapes(spec, platform, memory_known=platform.gpu_memory_gb is not None):
        sizes = MEMORY_GB.get(shape.accelerator or "", ())
        if platform.accelerators.get(shape.accelerator or ""):
            sizes = sizes[-1:]  # the user's own label may select the larger of two sizes
        found += check_memory(spec, platform, shape.accelerator, sizes)
    return list(dict.fromkeys(found))


def _of_known_kind(found: list[ShapeSpec], platform: Platform, *, memory_known: bool) -> list[ShapeSpec]:
    named = [shape.accelerator for shape in found if shape.accelerator]
    idle = [name for name, label in platform.accelerators.items() if not label and name not in named]
    if named and idle:
        raise SpecError(
            f"--accelerator {idle[0]}: replicas.prefer names {', '.join(named)} instead; leave one of them out"
        )
    if not named and platform.accelerators:
        if len(platform.accelerators) > 1:
            raise SpecError(
                f"--accelerator: {', '.join(platform.accelerators)}: replicas.prefer names none of them; write one "
                "--accelerator, or say which is best: replicas.prefer: [{accelerator: H100}, {accelerator: A100}]"
            )
        (accelerator,) = platform.accelerators
        return [shape.model_copy(update={"accelerator": accelerator}) for shape in found]
    if not memory_known and not all(shape.accelerator for shape in found):
        raise SpecError(
            "--gpu-memory-gb is missing, and nothing else names the GPU: a model of 24 billion parameters "
            "could land on one of 16 GB; write --gpu-memory-gb 80 (each GPU has at least that much), "
            "--accelerator H100, or replicas.prefer: [{accelerator: H100}] in the spec"
        )
    return found


def group_name(shape: ShapeSpec) -> str:
    """Return the name of a group of nodes, built from its selector: `h100-spot`."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(shape.selector.values()).lower()).strip("-")


def place_worker(pod: dict[str, Any], shape: ShapeSpec, platform: Platform, gpus: int) -> None:
    """Bind the spec of a worker pod to nodes of a kind."""
    nodes = dict(shape.labels)  # Ray is told that the nodes have these labels, so Kubernetes must require them
    tolerations = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}] if gpus else []
    expressions = _not_spot(platform) if shape.market == "on-demand" else []
    if shape.market == "spot" and platform.spot is not None:
        label, _, value = platform.spot.partition("=")
        nodes[label] = value
        tolerations.append({"key": label, "operator": "Equal", "value": value, "effect": "NoSchedule"})
    memory: list[Expression] = []
    if gpus and platform.gpu_memory_gb is not None:
        least = str(platform.gpu_memory_gb * MIB_A_GB - 1)
        memory = [{"key": label, "operator": "Gt", "values": [least]} for label in GPU_MEMORY_LABELS]
    if shape.accelerator is not None:
        label, _, value = _accelerator_label(shape.accelerator, platform).partition("=")
        nodes[label] = value
    if platform.zone is not None:
        nodes[ZONE_LABEL] = platform.zone
    if nodes:
        pod["nodeSelector"] = nodes
    if tolerations:
        pod["tolerations"] = tolerations
    _require(pod, [[*expressions, one] for one in memory] or [expressions])


def place_lasting(pod: dict[str, Any], platform: Platform) -> None:
    """Keep the spec of a pod that must stay (head or submitter) off spot nodes, and in the zone."""
    if platform.zone is not None:
        pod["nodeSelector"] = {ZONE_LABEL: platform.zone}
    _require(pod, [_not_spot(platform)])


def _accelerator_label(accelerator: str, platform: Platform) -> str:
    label = platform.accelerators.get(accelerator, "")
    if not label and accelerator not in ON_KARPENTER:
        where = "--accelerator" if accelerator in platform.accelerators else "replicas.prefer:"
        raise SpecError(
            f"{where} {accelerator}: label of its nodes is not known; write --accelerator {accelerator}=LABEL=VALUE, "
            f"or one of Karpenter's kinds on AWS: {', '.join(ON_KARPENTER)}"
        )
    return label or f"{KARPENTER_ACCELERATOR}={accelerator.lower()}"


def _not_spot(platform: Platform) -> list[Expression]:
    if platform.spot is None:
        return []
    label, _, value = platform.spot.partition("=")
    return [{"key": label, "operator": "NotIn", "values": [value]}]


def _require(pod: dict[str, Any], terms: list[list[Expression]]) -> None:
    """Require nodes for which all expressions of at least one term hold."""
    if all(terms):
        required = {"nodeSelectorTerms": [{"matchExpressions": term} for term in terms]}
        pod["affinity"] = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}
