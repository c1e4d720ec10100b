"""Ray's cluster launcher takes its file, and machines on AWS keep their credentials."""

import copy

import jsonschema
import pytest
from support.manifests import (
    platform,
    rendered,
    spec,
)

from magbatch.deploy import Target, next_commands
from magbatch.errors import SpecError
from magbatch.guard import UNATTENDED
from magbatch.remote import environment

PREFER = (
    "replicas={min: 0, max: 5, prefer: [{accelerator: H100, market: spot}, {accelerator: A100, labels: {zone: b}}]}",
)


def test_each_kind_of_node_that_a_spec_prefers_is_a_machine_on_aws() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    launcher = rendered("magistral-text", Target.AWS, None, *PREFER)["cluster.yaml"]
    validate_config(prepare_config(copy.deepcopy(launcher)))
    first, second = launcher["available_node_types"]["h100_spot"], launcher["available_node_types"]["a100_b"]
    assert (first["node_config"]["InstanceType"], first["max_workers"]) == ("p5.4xlarge", 5)
    assert (second["node_config"]["InstanceType"], second["max_workers"]) == ("p4de.24xlarge", 1)
    assert ("InstanceMarketOptions" in first["node_config"], "InstanceMarketOptions" in second["node_config"]) == (
        True,
        False,
    )
    assert second["labels"] == {"ray.io/accelerator-type": "A100", "zone": "b"}


def test_the_cluster_launcher_takes_its_file() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    launcher = rendered("magistral-text", Target.AWS)["cluster.yaml"]
    validate_config(prepare_config(copy.deepcopy(launcher)))
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config(copy.deepcopy(launcher) | {"max_worker": 1}))


def test_a_job_on_aws_is_submitted_and_so_told_the_same() -> None:
    """A person's own commands in the container are not: there the variable is not set."""
    *_, last = next_commands(spec(), Target.AWS, platform(), "deploy/aws", "jobs/magistral-text.yaml")
    assert "'magbatch submit " in last
    assert environment("x")["env_vars"][UNATTENDED] == "1"
    assert UNATTENDED not in str(rendered("magistral-text", Target.AWS))


SECURITY_GROUP = "sg-0a1b2c3d4e5f60718"


def test_a_cluster_on_aws_asks_for_a_token_that_is_in_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = rendered("magistral-text", Target.AWS)["cluster.yaml"]
    environment = dict(
        option.removeprefix("--env ").split("=", 1)
        for option in launcher["docker"]["run_options"]
        if option.startswith("--env ")
    )
    assert environment["RAY_AUTH_MODE"] == "token"
    assert launcher["file_mounts"][environment["RAY_AUTH_TOKEN_PATH"]] == "~/.ray/contracts-november.token"
    started = [line for line in launcher["head_start_ray_commands"] if "ray start" in line]
    assert all("--dashboard-host=127.0.0.1" in line and "--num-cpus=0" in line for line in started)


@pytest.mark.parametrize("profile", ["magbatch", "arn:aws:iam::123456789012:instance-profile/magbatch"])
def test_machines_on_aws_keep_their_credentials_to_themselves(profile: str) -> None:
    options = platform(instance_profile=profile, head_instance_profile="ray-head", security_group=SECURITY_GROUP)
    types = rendered("magistral-text", Target.AWS, options)["cluster.yaml"]["available_node_types"]
    for name, kind in types.items():
        config = kind["node_config"]
        assert config["MetadataOptions"] == {"HttpTokens": "required", "HttpPutResponseHopLimit": 1}
        assert config["SecurityGroupIds"] == [SECURITY_GROUP]
        key = "Arn" if profile.startswith("arn:") else "Name"
        assert config["IamInstanceProfile"] == ({"Name": "ray-head"} if name == "head" else {key: profile})
    assert types["head"]["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in types["head"]["node_config"]


@pytest.mark.parametrize(
    ("memory", "machine"), [(None, "p5.4xlarge"), (24, "g6.4xlarge"), (40, "g6e.4xlarge"), (80, "p5.4xlarge")]
)
def test_machines_have_the_memory_that_is_asked_for(memory: int | None, machine: str) -> None:
    small = "model.source=Qwen/Qwen3-8B"
    launcher = rendered("magistral-text", Target.AWS, platform(gpu_memory_gb=memory), small)["cluster.yaml"]
    assert launcher["available_node_types"]["spot"]["node_config"]["InstanceType"] == machine
    with pytest.raises(SpecError, match="no GPU known here has that much"):
        rendered("magistral-text", Target.AWS, platform(gpu_memory_gb=500))
