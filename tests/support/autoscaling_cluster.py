"""A Ray cluster of fake nodes on this machine, with Ray's real autoscaler: nodes come for who waits, and go when idle.

Ray's own `AutoscalingCluster` ends every Ray of the machine; this one ends the processes that it began, and no other.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray.util

from support.magbatch_cli import free_port

NODE_TYPE = "fake.gpu"
HEAD_ID = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"  # as Ray's provider has it
HEAD = """
import os, sys
os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
from ray._private.node import Node
from ray._private.parameter import RayParams
port, folder, config = int(sys.argv[1]), sys.argv[2], sys.argv[3]
Node(
    RayParams(
        gcs_server_port=port, num_cpus=0, num_gpus=0, object_store_memory=200_000_000, autoscaling_config=config,
        temp_dir=folder, include_dashboard=False, dashboard_agent_listen_port=0,
        include_log_monitor=False,
    ),
    head=True, shutdown_at_exit=True, spawn_reaper=False,
)
print("up", flush=True)
sys.stdin.read()  # until the test is over
"""


@dataclass
class AutoscalingCluster:
    """A cluster that runs.

    Attributes:
        address: Address for RAY_ADDRESS.
        mark: Stands in the command line of each raylet of it.
    """

    address: str
    mark: str

    def workers(self) -> list[psutil.Process]:
        """The raylets of the nodes that the autoscaler has added."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                words = process.cmdline()
                if not words or not words[0].endswith("/raylet") or process.status() == psutil.STATUS_ZOMBIE:
                    continue
                if self.mark in " ".join(words) and not any(word == "--head" for word in words):
                    found.append(process)
        return found


@contextmanager
def autoscaling_cluster(folder: Path, max_workers: int) -> Iterator[AutoscalingCluster]:
    """A head without CPUs and GPUs, as the manifests have it, and up to some nodes of one GPU and 4 CPUs.

    Args:
        folder: Folder of the cluster's files; a short path, because sockets lie below it.
        max_workers: Nodes that may be added.
    """
    port = free_port()
    address = f"{ray.util.get_node_ip_address()}:{port}"  # drivers look for a node of this address
    config: dict[str, Any] = {
        "cluster_name": "fake",
        "max_workers": max_workers,
        "idle_timeout_minutes": 0.05,
        "upscaling_speed": 10,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "launch_multiple": True,
            "head_node_id": HEAD_ID,
            "gcs_address": address,
        },
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            NODE_TYPE: {
                "resources": {"CPU": 4, "GPU": 1, "object_store_memory": 100_000_000},
                "node_config": {},
                "min_workers": 0,
                "max_workers": max_workers,
            },
        },
        "head_node_type": "ray.head.default",
        "auth": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "initialization_commands": [],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
    }
    path = folder / "autoscaling.json"
    path.write_text(json.dumps(config))
    environment = os.environ | {
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
        "RAY_raylet_start_wait_time_s": "90",
    }
    log = folder / "head.log"
    with (
        log.open("wb") as errors,
        subprocess.Popen(
            [sys.executable, "-c", HEAD, str(port), str(folder), str(path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=environment, text=True,
        ) as process,
    ):  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        head = psutil.Process(process.pid)
        started: set[psutil.Process] = set()
        try:
            if not any(line.strip() == "up" for line in process.stdout):
                raise RuntimeError(f"the head did not start: {log.read_text()[-2000:]}")
            yield AutoscalingCluster(address, str(folder))
        finally:
            # The nodes are children of the autoscaler, which ends first, so that it adds none.
            for _ in range(2):
                for child in [*head.children(recursive=True), *started]:
                    started.add(child)
                    with suppress(psutil.NoSuchProcess):
                        started.update(child.children(recursive=True))
                for child in sorted(started, key=lambda one: "monitor" not in _line(one)):
                    with suppress(psutil.NoSuchProcess):
                        child.kill()
                time.sleep(0.2)
            process.kill()
            psutil.wait_procs(started, timeout=10)


def _line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
