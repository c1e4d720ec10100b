"""Files for Ray's cluster launcher on AWS: a head that stays, and workers that come and go."""

import math
from typing import Any

from magbatch.deploy.forms import size
from magbatch.deploy.gpus import check_memory, unused
from magbatch.deploy.names import job_name
from magbatch.deploy.nodes import group_name, shapes
from magbatch.deploy.platform import DASHBOARD_PORT, REGION, Platform
from magbatch.errors import SpecError
from magbatch.spec import JobSpec, ShapeSpec

ACCELERATOR = "H100"  # GPU kind if neither spec nor options name one
INSTANCES = {  # instance type by Ray's name of the accelerator, and by number of GPUs
    "H200": {8: "p5en.48xlarge"},
    "H100": {1: "p5.4xlarge", 8: "p5.48xlarge"},
    "A100": {8: "p4de.24xlarge"},
    "L40S": {1: "g6e.4xlarge", 4: "g6e.12xlarge", 8: "g6e.48xlarge"},
    "L4": {1: "g6.4xlarge", 4: "g6.12xlarge", 8: "g6.48xlarge"},
}
MEMORY_GB = {"L4": 24, "L40S": 48, "H100": 80, "A100": 80, "H200": 141}  # memory of a GPU; kinds by preference
IMAGE_DISK_GB = 80  # disk for the system and the container image
JOB_PATH = "/tmp/magbatch/job.yaml"
TOKEN_PATH = "/tmp/magbatch/auth_token"
# Only the machine itself may read its metadata, with a session token. The container shares its network.
METADATA = {"HttpTokens": "required", "HttpPutResponseHopLimit": 1}


def launcher(spec: JobSpec, platform: Platform) -> dict[str, Any]:
    """Return the file for `ray up`.

    Raises:
        SpecError: No AWS machine in the table has the requested GPUs.
    """
    gpus, workers = spec.replicas.gpus, _workers(spec, platform)
    nodes = max(worker["max_workers"] for worker in workers.values())
    zone = {} if platform.zone is None else {"availability_zone": platform.zone}
    head = _machine(platform, platform.head_instance_profile or platform.instance_profile, "m7i.2xlarge")
    stop, start = "ray stop", "ulimit -n 65536; ray start"
    return {
        "cluster_name": job_name(spec),
        "max_workers": nodes,
        "idle_timeout_minutes": 2,
        "provider": {"type": "aws", "region": platform.region or REGION, **zone, "cache_stopped_nodes": False},
        "auth": {"ssh_user": "ubuntu"},
        "docker": {
            "image": platform.image,
            "container_name": "magbatch",
            # Everything in the container authenticates: Ray, the jobs, and the commands of `ray exec`.
            "run_options": [
                "--ulimit nofile=65536:65536",
                "--shm-size=8g",
                "--env RAY_AUTH_MODE=token",
                f"--env RAY_AUTH_TOKEN_PATH={TOKEN_PATH}",
            ],
            "worker_run_options": ["--gpus all"] if gpus else [],
        },
        "available_node_types": {
            # With 0 CPUs the head gets no task: rows are read, rendered and answered on workers.
            "head": {"resources": {"CPU": 0}, "node_config": head},
            **workers,
        },
        "head_node_type": "head",
        "file_mounts": {JOB_PATH: "job.yaml", TOKEN_PATH: token_file(spec)},
        "head_start_ray_commands": [
            stop,
            f"{start} --head --port=6379 --num-cpus=0 --dashboard-host=127.0.0.1 "
            "--autoscaling-config=~/ray_bootstrap_config.yaml",
        ],
        "worker_start_ray_commands": [stop, f"{start} --address=$RAY_HEAD_IP:6379"],
    }


def memory_notes(spec: JobSpec, platform: Platform) -> list[str]:
    """Return notes about the memory of the machines' GPUs, one line each.

    Raises:
        SpecError: The GPUs have less memory than is requested, or than the weights need.
    """
    if not spec.replicas.gpus:
        return unused(platform)
    found: list[str] = []
    for shape in shapes(spec, platform, memory_known=True):
        name = _kind(shape, platform.gpu_memory_gb)
        found += check_memory(spec, platform, name, (MEMORY_GB[name],))
    return list(dict.fromkeys(found))


def _workers(spec: JobSpec, platform: Platform) -> dict[str, dict[str, Any]]:
    """Return the worker machines by name of their kind, best first."""
    workers: dict[str, dict[str, Any]] = {}
    spot = {"InstanceMarketOptions": {"MarketType": "spot"}}
    for shape in shapes(spec, platform, memory_known=True):
        kind, per_node = _instance(shape, spec.replicas.gpus, platform.gpu_memory_gb)
        config = _machine(platform, platform.instance_profile, kind)
        workers[group_name(shape).replace("-", "_")] = {
            "min_workers": 0,
            "max_workers": math.ceil(spec.replicas.max / per_node),
            "resources": {},
            "labels": shape.selector,
            "node_config": config | (spot if shape.market == "spot" else {}),
        }
    return workers


def _machine(platform: Platform, profile: str | None, kind: str) -> dict[str, Any]:
    disk = size(platform.cache_size) + size(platform.scratch_size)
    config: dict[str, Any] = {"MetadataOptions": METADATA, "BlockDeviceMappings": [_disk(disk)]}
    if platform.security_group is not None:
        config["SecurityGroupIds"] = [platform.security_group]
    return config | _profile(profile) | {"InstanceType": kind}


def commands(spec: JobSpec, folder: str) -> list[str]:
    """Return the shell commands that lead from the rendered files to a running job.

    Args:
        spec: Spec of the job.
        folder: Folder of the rendered files, quoted for a shell.
    """
    token = token_file(spec)
    make = "import secrets; print(secrets.token_hex(32), end='')"
    submit = f"magbatch submit {JOB_PATH} --address http://127.0.0.1:{DASHBOARD_PORT}"
    return [
        f'mkdir -p ~/.ray && (umask 077 && python3 -c "{make}" > {token})',
        f"cd {folder} && ray up cluster.yaml && ray exec cluster.yaml '{submit}'",
    ]


def token_file(spec: JobSpec) -> str:
    """Return the path of the cluster's token on the user's machine. No rendered file holds the token."""
    return f"~/.ray/{job_name(spec)}.token"


def _profile(named: str | None) -> dict[str, Any]:
    if named is None:
        return {}
    return {"IamInstanceProfile": {"Arn" if named.startswith("arn:") else "Name": named}}


def _disk(content: int) -> dict[str, Any]:
    return {
        "DeviceName": "/dev/sda1",
        "Ebs": {"VolumeSize": IMAGE_DISK_GB + math.ceil(content / 2**30), "VolumeType": "gp3", "Encrypted": True},
    }


def _instance(shape: ShapeSpec, gpus: int, memory_gb: int | None) -> tuple[str, int]:
    """Return the instance type for a replica, and the number of replicas that fit it."""
    if not gpus:
        return "m7i.2xlarge", 1
    name = _kind(shape, memory_gb)
    sizes = INSTANCES[name]
    if gpus > max(sizes):
        raise SpecError(f"replicas.gpus: {gpus} GPUs are more than one known machine has ({max(sizes)} {name})")
    smallest = min(count for count in sizes if count >= gpus)
    return sizes[smallest], smallest // gpus


def _kind(shape: ShapeSpec, memory_gb: int | None) -> str:
    """Return the GPU kind: the one that the shape names, else the first one with the requested memory."""
    name = shape.accelerator or _with_memory(memory_gb)
    if name not in INSTANCES:
        raise SpecError(f"replicas.prefer: no known AWS machine has {name}; choose among {', '.join(INSTANCES)}")
    return name


def _with_memory(memory_gb: int | None) -> str:
    if memory_gb is None:
        return ACCELERATOR
    for name, memory in MEMORY_GB.items():
        if memory >= memory_gb:
            return name
    raise SpecError(f"--gpu-memory-gb {memory_gb}: no GPU known here has that much ({max(MEMORY_GB.values())} at most)")
