"""Forms of option values. A value that does not match its form is refused before anything is rendered."""

import ipaddress
import re
from dataclasses import dataclass
from typing import Any

from magbatch.errors import SpecError

# Link-local networks. There, a cloud's metadata service hands out the credentials of the node.
LINK_LOCAL = ("169.254.0.0/16",)
LINK_LOCAL_V6 = ("fd00:ec2::/32", "fe80::/10")
METADATA_ADDRESSES = ("169.254.169.254", "fd00:ec2::254")

_QUANTITY = re.compile(r"([1-9][0-9]{0,14})(Ki|Mi|Gi|Ti|k|M|G|T)")
_UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_DNS_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_DNS_NAME = rf"(?=.{{1,253}}$){_DNS_LABEL}(\.{_DNS_LABEL})*"
_VALUE = r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"  # value of a label
_LABEL = rf"({_DNS_NAME.replace('$', '/')}/)?{_VALUE}={_VALUE}"
_SIDE = "(central|north|south|east|west|(north|south)(east|west))"
_REGION = rf"(us|eu|ap|sa|ca|me|af|il|mx|cn|eusc)(-(gov|iso[a-z]?|de))?-{_SIDE}-[1-9]"
_PROFILE = r"arn:aws[a-z-]*:iam::[0-9]{12}:instance-profile/[\w+=,.@/-]+|[A-Za-z0-9+=,.@_-]{1,128}"
_IMAGE = (  # host of the registry, folders, tag, digest
    r"([a-z0-9.-]+(:[0-9]+)?/)?[a-z0-9]+([._/-]+[a-z0-9]+)*(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(@sha256:[0-9a-f]{64})?"
)


@dataclass(frozen=True, slots=True)
class Form:
    """Form of an option whose value is a text.

    Attributes:
        pattern: Regular expression that the whole text must match.
        write: Advice for a person whose value does not match.
    """

    pattern: str
    write: str


@dataclass(frozen=True, slots=True)
class Range:
    """Form of an option whose value is a number.

    Attributes:
        least: Smallest allowed number.
        most: Largest allowed number.
        unit: Unit of the number, for messages.
    """

    least: int
    most: int
    unit: str


@dataclass(frozen=True, slots=True)
class Floor:
    """Form of an option whose value is a size.

    Attributes:
        least: Smallest allowed size, a Kubernetes quantity.
        holds: Things that need this room, for messages.
    """

    least: str
    holds: str


_NAME = Form(_DNS_NAME, "a Kubernetes name: a-z, 0-9, - and .")
_NAMESPACE = Form(_DNS_LABEL, "a Kubernetes namespace: a-z, 0-9 and -, at most 63 characters")
_CPUS = Form("[1-9][0-9]{0,2}", "a whole number of CPUs, such as 8")
_INSTANCE_PROFILE = Form(
    _PROFILE,
    "the name of an instance profile or its ARN, arn:aws:iam::ACCOUNT:instance-profile/NAME (not the ARN of a role)",
)
INT32 = 2**31 - 1  # Kubernetes stores these seconds as int32
FORMS: dict[str, Form | Range | Floor] = {
    "image": Form(_IMAGE, "registry/name:tag or registry/name@sha256:…, the name in lower case"),
    "spot": Form(_LABEL, "a Kubernetes label=value such as karpenter.sh/capacity-type=spot, or none"),
    "gpu_memory_gb": Range(1, 1024, "GB"),
    "cache_size": Floor("4Gi", "the model's files and compiled kernels"),
    "scratch_size": Floor("4Gi", "Ray's logs and spilled objects"),
    "zone": Form(_VALUE, "a zone such as eu-west-1a"),
    "worker_cpu": _CPUS,
    "worker_memory": Floor("8Gi", "an engine's processes, and Ray's object store in /dev/shm"),
    "head_cpu": _CPUS,
    "head_memory": Floor("4Gi", "Ray's own processes, the driver, and an object store in /dev/shm"),
    "storage_class": _NAME,
    "role": Form(r"arn:aws[a-z-]*:iam::[0-9]{12}:role/[\w+=,.@/-]+", "the role's ARN, arn:aws:iam::ACCOUNT:role/NAME"),
    "secret": _NAME,
    "image_pull_secrets": _NAME,
    "priority_class": _NAME,
    "namespace": _NAMESPACE,
    "queue": Form(_DNS_LABEL, "a Kubernetes label value: a-z, 0-9 and -, at most 63 characters"),
    "deadline_s": Range(1, INT32, "seconds"),
    "keep_cluster_s": Range(0, INT32, "seconds"),
    "operator_namespace": _NAMESPACE,
    "monitoring_namespace": _NAMESPACE,
    "region": Form(_REGION, "an AWS region such as eu-west-1"),
    "instance_profile": _INSTANCE_PROFILE,
    "head_instance_profile": _INSTANCE_PROFILE,
    "security_group": Form("sg-[0-9a-f]{8}([0-9a-f]{9})?", "the id of a security group, such as sg-0a1b2c3d4e5f60718"),
}
_FLAGS = {
    "deadline_s": "--deadline-seconds",
    "keep_cluster_s": "--keep-cluster-seconds",
    "accelerators": "--accelerator",
    "image_pull_secrets": "--image-pull-secret",
}


def check_form(option: str, value: Any) -> None:
    """Refuse a value that does not have the form of its option.

    Args:
        option: Name of a `Platform` attribute.
        value: Text, number, or tuple of texts; None if the option is not given.

    Raises:
        SpecError: The value has another form or is out of range.
    """
    form = FORMS[option]
    for one in value if isinstance(value, tuple) else () if value is None else (value,):
        if isinstance(form, Form):
            if re.fullmatch(form.pattern, one) is None:
                raise SpecError(f"{flag(option)} {_shown(one)}: write {form.write}")
        elif isinstance(form, Range):
            if not form.least <= one <= form.most:
                raise SpecError(f"{flag(option)} {one}: write {form.least} to {form.most} {form.unit}")
        elif _QUANTITY.fullmatch(one) is None:
            raise SpecError(f"{flag(option)} {_shown(one)}: write a size such as 100Gi")
        elif size(one) < size(form.least):
            raise SpecError(f"{flag(option)} {one}: holds {form.holds}; write {form.least} or more")


def check_accelerator(name: str, label: str) -> None:
    """Check `NAME=LABEL=VALUE` of `--accelerator`.

    Args:
        name: Name of the accelerator.
        label: `label=value` of its nodes; "" if it is not given.

    Raises:
        SpecError: The name or the label is malformed.
    """
    if re.fullmatch(_VALUE, name) is None or (label and re.fullmatch(_LABEL, label) is None):
        raise SpecError(
            f"--accelerator {name}={label}: write NAME=label=value, "
            "such as H100=cloud.google.com/gke-accelerator=nvidia-h100-80gb, or NAME alone for Karpenter on AWS"
        )


def check_egress(network: str) -> None:
    """Refuse a network that is not link-local, because pods reach all other networks anyway.

    Raises:
        SpecError: The text is malformed, or the network is not within the link-local ones.
    """
    try:
        found = ipaddress.ip_network(network)
    except ValueError as error:
        raise SpecError(f"--allow-egress {network}: write a CIDR, such as 169.254.170.23/32") from error
    if "/" not in network:
        raise SpecError(f"--allow-egress {network}: write a CIDR: {found}")
    allowed = (*LINK_LOCAL, *LINK_LOCAL_V6)
    if not any(_within(found, one) for one in allowed):
        raise SpecError(
            f"--allow-egress {network}: write a network within {', '.join(allowed)}: pods reach all other addresses "
            "already, and a wider one would let them take the credentials of their node"
        )


def opens_metadata(network: str) -> bool:
    """Whether a CIDR contains the address of a metadata service, which hands out the credentials of the node."""
    return any(ipaddress.ip_address(one) in ipaddress.ip_network(network) for one in METADATA_ADDRESSES)


def flag(option: str) -> str:
    """Return the command-line option of a `Platform` attribute."""
    return _FLAGS.get(option, f"--{option.replace('_', '-')}")


def size(quantity: str) -> int:
    """Return the bytes of a Kubernetes quantity such as 100Gi."""
    found = _QUANTITY.fullmatch(quantity)
    if found is None:
        raise ValueError(quantity)
    return int(found[1]) * _UNITS[found[2]]


def _within(network: ipaddress.IPv4Network | ipaddress.IPv6Network, wider: str) -> bool:
    other = ipaddress.ip_network(wider)
    return network.version == other.version and network.network_address in other and network.broadcast_address in other


def _shown(value: str) -> str:
    return repr(value) if not value or re.search(r"\s", value) else value
