"""Different jobs have different names that Kubernetes takes."""

import re

import pytest
import yaml
from support.manifests import (
    check,
    platform,
    rendered,
    spec,
)

from magbatch.deploy import Target, render


@pytest.mark.parametrize("name", ["2026.Invoices_of-November", "x" * 63, "a-" * 30 + "b"])
def test_names_are_those_that_kubernetes_takes(name: str) -> None:
    job = rendered("magistral-text", Target.KUBERAY, None, f"name={name}")["rayjob.yaml"]
    assert re.fullmatch("[a-z]([-a-z0-9]{0,33}[a-z0-9])", job["metadata"]["name"])


@pytest.mark.parametrize(
    ("names", "clear"),
    [
        (
            [f"quarterly-report-extraction-for-the-eu-region-{of}" for of in ("invoices", "contracts")],
            "quarterly-report-",
        ),
        (["invoices-may", "invoices_may", "invoices.may", "Invoices-May"], "invoices-may"),
        (["7-days", "job-7-days"], "job-7-days"),
        (["a" * 35, "a" * 36], "aaaa"),
    ],
)
def test_different_jobs_have_different_names(names: list[str], clear: str) -> None:
    found = []
    for name in names:
        files = render(spec("magistral-text", f"name={name}"), Target.KUBERAY, platform())
        manifest = yaml.safe_load(files["rayjob.yaml"])
        check(manifest)
        found.append(manifest["metadata"]["name"])
    assert len(set(found)) == len(names)
    assert all(
        name.startswith(clear) and len(name) <= 35 and re.fullmatch("[a-z][a-z0-9-]*[a-z0-9]", name) for name in found
    )


def test_a_name_that_kubernetes_takes_is_kept() -> None:
    files = render(spec("magistral-text", "name=invoices-may"), Target.KUBERAY, platform())
    assert yaml.safe_load(files["rayjob.yaml"])["metadata"]["name"] == "invoices-may"
