"""The options of `deploy render` and the fields of `deploy.Platform` are the same."""

from dataclasses import fields

from magbatch.cli.deploy_options import Aws, Kubernetes, Nodes, PlatformOptions, Pods
from magbatch.deploy import Platform


def test_every_field_of_a_platform_has_an_option() -> None:
    options = [one.name for group in (Nodes, Pods, Kubernetes, Aws) for one in fields(group)]
    assert sorted([*options, "image"]) == sorted(one.name for one in fields(Platform))


def test_options_become_fields() -> None:
    options = PlatformOptions({"accelerators": ["H100", "A100=gpu=a100"], "spot": "none", "allow_egress": ["1.2.3.4"]})
    assert options.accelerators() == ["H100", "A100"]
    assert options.fields() == {
        "accelerators": {"H100": "", "A100": "gpu=a100"}, "spot": None, "allow_egress": ("1.2.3.4",),
    }  # fmt: skip


def test_without_options_the_platform_decides() -> None:
    assert Platform(image="i", **PlatformOptions({}).fields()) == Platform(image="i")
