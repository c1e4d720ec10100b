"""The files of a target, made from a job spec and the options of its platform; and the commands that use them."""

import math
import shlex
from pathlib import Path
from typing import Any

from magbatch.deploy import kuberay, launcher, network, nodes
from magbatch.deploy.forms import opens_metadata, size
from magbatch.deploy.names import job_name, metadata
from magbatch.deploy.platform import DASHBOARD_PORT, Platform, Target, check
from magbatch.deploy.text import to_yaml
from magbatch.deploy.weights import weights
from magbatch.errors import OutputError, SpecError
from magbatch.spec import JobSpec
from magbatch.spec.sections_output import METRICS_PORT

CACHE_ROOM = 1.2  # times the size of the weights: the cache also holds tokenizer, configuration and compiled kernels


def render(spec: JobSpec, target: Target, platform: Platform) -> dict[str, str]:
    """Render the files of a target.

    Returns:
        YAML text by file name.

    Raises:
        SpecError: The target cannot run the spec, for example because of local paths; or it does not have an option.
    """
    check(platform, target)
    _check_spec(spec, target)
    notes(spec, target, platform)
    served = spec.metrics.model_copy(update={"bind": "0.0.0.0", "port": METRICS_PORT})
    spec = spec.model_copy(update={"metrics": served})
    if target == Target.AWS:
        return {"job.yaml": spec.to_yaml(), "cluster.yaml": to_yaml(launcher.launcher(spec, platform))}
    objects = _kubernetes_objects(spec, target, platform)
    layout = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": list(objects),
    }
    return {name: to_yaml(manifest) for name, manifest in {"kustomization.yaml": layout, **objects}.items()}


def _check_spec(spec: JobSpec, target: Target) -> None:
    """Refuse a spec that needs a shared disk, or that runs only by its schedule."""
    for name, path in (("input.path", spec.input.path), ("output.path", spec.output.path)):
        if not path.startswith("s3://"):
            raise SpecError(f"{name} {path}: a cluster's machines share no disk; write s3://bucket/prefix")
    if spec.input.incremental and target != Target.CRON:
        raise SpecError("input.incremental: an incremental job runs by its schedule; write --target cron")


def _kubernetes_objects(spec: JobSpec, target: Target, platform: Platform) -> dict[str, dict[str, Any]]:
    """Return the objects of a target on Kubernetes by file name."""
    kinds = {Target.CRON: kuberay.cron_job, Target.CLUSTER: kuberay.ray_cluster, Target.KUBERAY: kuberay.ray_job}
    job = kinds[target](spec, platform)
    config_map: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(spec, platform),
        "data": {"job.yaml": spec.to_yaml()},
    }
    policies = network.policies(spec, platform)
    if target == Target.CLUSTER:  # jobs come from outside, so there is no submitter
        del policies["networkpolicy-submitter.yaml"]
    else:
        config_map["data"][Path(kuberay.SCRIPT_PATH).name] = kuberay.SCRIPT
    return {
        "serviceaccount.yaml": network.service_account(spec, platform),
        "configmap.yaml": config_map,
        **policies,
        "poddisruptionbudget.yaml": network.disruption_budget(spec, platform),
        "podmonitor.yaml": network.pod_monitor(spec, platform),
        f"{job['kind'].lower()}.yaml": job,
    }


def notes(spec: JobSpec, target: Target, platform: Platform) -> list[str]:
    """Return notes about a rendering that may be wrong, one line each.

    Raises:
        SpecError: The GPUs, or the volume for the model's files, are too small for the model.
    """
    found = weights(spec.model)
    if found is not None and found.disk > size(platform.cache_size):
        roomy = math.ceil(found.disk * CACHE_ROOM / 2**30)
        raise SpecError(
            f"--cache-size {platform.cache_size}: the files of {spec.model.source} take "
            f"{math.ceil(found.disk / 1e9)} GB; write --cache-size {roomy}Gi or more"
        )
    of_gpus = launcher.memory_notes if target == Target.AWS else nodes.memory_notes
    opened = [network for network in platform.allow_egress if opens_metadata(network)]
    return [
        *of_gpus(spec, platform),
        *(
            f"--allow-egress {one}: pods can take the credentials of their node (its metadata service)"
            for one in opened
        ),
    ]


def next_commands(spec: JobSpec, target: Target, platform: Platform, folder: str, path: str) -> list[str]:
    """Return the shell commands that a user runs next.

    Args:
        spec: Rendered spec.
        target: Rendered target.
        platform: Options of the command.
        folder: Folder of the rendered files.
        path: File of the spec.
    """
    folder = shlex.quote(folder)
    if target == Target.AWS:
        return launcher.commands(spec, folder)
    name, kubectl = job_name(spec), "kubectl"
    if platform.namespace is not None:
        kubectl += f" -n {platform.namespace}"
    apply = f"kubectl apply -k {folder}"
    if target == Target.KUBERAY:
        return [apply, f"{kubectl} logs -f job/{name}"]
    if target == Target.CRON:
        return [apply, f"{kubectl} get rayjobs"]
    token = f"{kubectl} get secret {name} -o jsonpath='{{.data.auth_token}}' | base64 -d"
    address = f"http://127.0.0.1:{DASHBOARD_PORT}"
    return [
        apply,
        f"{kubectl} port-forward svc/{name}-head-svc {DASHBOARD_PORT}",
        f'RAY_AUTH_TOKEN="$({token})" magbatch submit {shlex.quote(path)} --address {address}',
    ]


def write(files: dict[str, str], folder: str) -> None:
    """Write rendered files into a folder, which is created if it does not exist.

    Raises:
        OutputError: The folder cannot be written.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (Path(folder) / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error}") from error
