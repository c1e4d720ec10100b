"""A value that does not match its form is refused with the option and an example; a value that matches passes."""

import pytest

from magbatch.deploy.forms import check_accelerator, check_egress, check_form, flag, opens_metadata, size
from magbatch.errors import SpecError


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("image", "registry.example:5000/team/magbatch:0.2.0"),
        ("spot", "karpenter.sh/capacity-type=spot"),
        ("spot", None),
        ("image_pull_secrets", ("one", "two.three")),
        ("image_pull_secrets", ()),
        ("cache_size", "4Gi"),
        ("gpu_memory_gb", 80),
        ("keep_cluster_s", 0),
        ("role", "arn:aws-us-gov:iam::123456789012:role/path/name"),
        ("region", "eusc-de-east-1"),
    ],
)
def test_a_value_of_the_right_form_passes(option: str, value: object) -> None:
    check_form(option, value)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("image", "Magbatch", "--image Magbatch: write registry/name:tag"),
        ("spot", "", "--spot '': write a Kubernetes label=value"),
        ("image_pull_secrets", ("one", "Two"), "--image-pull-secret Two: write a Kubernetes name"),
        ("cache_size", "4", "--cache-size 4: write a size such as 100Gi"),
        ("cache_size", "4G", "--cache-size 4G: holds the model's files and compiled kernels; write 4Gi or more"),
        ("deadline_s", 0, "--deadline-seconds 0: write 1 to 2147483647 seconds"),
        ("namespace", "a" * 64, "write a Kubernetes namespace"),
    ],
)
def test_a_value_of_another_form_is_refused(option: str, value: object, message: str) -> None:
    with pytest.raises(SpecError) as refused:
        check_form(option, value)
    assert message in str(refused.value)


def test_an_accelerator_has_a_name_and_perhaps_a_label() -> None:
    check_accelerator("H100", "")
    check_accelerator("A100-80G", "cloud.google.com/gke-accelerator=nvidia-a100-80gb")
    for name, label in (("", ""), ("H 100", ""), ("H100", "label"), ("H100", "a=b=c")):
        with pytest.raises(SpecError, match="--accelerator"):
            check_accelerator(name, label)


def test_only_link_local_networks_are_opened() -> None:
    for network in ("169.254.170.23/32", "fd00:ec2::23/128", "fe80::/64"):
        check_egress(network)
    for network in ("10.0.0.0/8", "0.0.0.0/0", "169.254.0.1", "x"):
        with pytest.raises(SpecError, match="--allow-egress"):
            check_egress(network)


def test_a_network_with_a_metadata_service_is_known() -> None:
    assert opens_metadata("169.254.0.0/16")
    assert opens_metadata("fd00:ec2::/32")
    assert not opens_metadata("169.254.170.23/32")


def test_sizes_are_bytes() -> None:
    assert size("100Gi") == 100 * 2**30
    assert size("2T") == 2 * 10**12
    with pytest.raises(ValueError, match="0Gi"):
        size("0Gi")


def test_options_have_the_names_of_the_command() -> None:
    assert [flag(option) for option in ("worker_cpu", "deadline_s", "accelerators")] == [
        "--worker-cpu", "--deadline-seconds", "--accelerator",
    ]  # fmt: skip
