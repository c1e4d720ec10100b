"""Prometheus' own tools find nothing to object to in what is shipped; every alert fires, and stays silent."""

import re
import subprocess
from pathlib import Path
from shutil import which
from typing import Any

import pytest
import yaml

from magbatch.report.metrics import METRICS

MONITORING = Path(__file__).parents[3] / "monitoring"
RULES = sorted(path for path in (MONITORING / "rules").glob("*.yml") if path.name != "tests.yml")
NAME = re.compile(r"(?<![:\w])magbatch_[a-z0-9_]+")

promtool = pytest.mark.skipif(which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
amtool = pytest.mark.skipif(which("amtool") is None, reason="amtool is not installed (Debian: prometheus-alertmanager)")


def said(*command: str, folder: Path = MONITORING) -> str:
    """Output of a tool, which must have succeeded."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def rules() -> list[dict[str, Any]]:
    """Every rule that is shipped."""
    return [rule for path in RULES for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}


@promtool
def test_the_configuration_is_one_of_prometheus() -> None:
    assert "SUCCESS: 2 rule files found" in said("promtool", "check", "config", "prometheus.yml")


@promtool
def test_so_is_the_one_for_kubernetes_but_for_what_debians_build_does_not_know(tmp_path: Path) -> None:
    """Debian builds Prometheus without Kubernetes: the rest of each job is checked with another kind of discovery."""
    config = yaml.safe_load((MONITORING / "prometheus-kubernetes.yml").read_text())
    found = [one for job in config["scrape_configs"] for one in job.pop("kubernetes_sd_configs", [])]
    assert found == [{"role": "pod", "selectors": [{"role": "pod", "label": "ray.io/node-type=head"}]}]
    labels = {label for job in config["scrape_configs"] for rule in job.get("relabel_configs", [])
              for label in rule["source_labels"]}  # fmt: skip
    # https://prometheus.io/docs/prometheus/latest/configuration/configuration/#pod
    assert labels == {
        "__meta_kubernetes_pod_phase", "__meta_kubernetes_pod_ip", "__meta_kubernetes_namespace",
        "__meta_kubernetes_pod_label_ray_io_cluster", "__meta_kubernetes_pod_name",
    }  # fmt: skip
    config["rule_files"] = [str(MONITORING / path) for path in config["rule_files"]]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    assert "SUCCESS: 2 rule files found" in said("promtool", "check", "config", "prometheus.yml", folder=tmp_path)


@promtool
def test_the_rules_are_rules() -> None:
    for path in RULES:
        assert "SUCCESS" in said("promtool", "check", "rules", str(path))


@promtool
def test_every_alert_fires_and_stays_silent_as_it_should() -> None:
    assert "SUCCESS" in said("promtool", "test", "rules", "rules/tests.yml")


@pytest.mark.parametrize("alert", ALERTS)
def test_there_is_a_case_in_which_it_fires_and_one_in_which_it_does_not(alert: str) -> None:
    cases = [
        case
        for test in yaml.safe_load((MONITORING / "rules/tests.yml").read_text())["tests"]
        for case in test.get("alert_rule_test", [])
        if case["alertname"] == alert
    ]
    fires = {bool(case["exp_alerts"]) for case in cases}
    assert fires == {True, False}


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_says_how_bad_it_is_what_it_means_and_what_to_do(alert: str) -> None:
    rule = ALERTS[alert]
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert set(rule["annotations"]) == {"summary", "description", "output", "action"}
    for command in re.findall(r"`magbatch (\w+)", rule["annotations"]["action"]):
        assert command in {"status", "run", "retry", "verify"}


def test_what_the_issue_of_alerting_asks_for_is_there() -> None:
    assert set(ALERTS) == {
        "MagbatchNoProgress", "MagbatchStarvation", "MagbatchDeadLetterRate", "MagbatchTruncationRate",
        "MagbatchReplicaCrashLoop", "MagbatchStorageErrors", "MagbatchEtaPastDeadline", "MagbatchExporterDown",
    }  # fmt: skip


def test_rules_name_metrics_that_are_declared_and_rules_that_are_recorded() -> None:
    exposed = {name for metric in METRICS.values() for name in metric.exposed}
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    for rule in rules():
        texts = [rule["expr"], *rule.get("annotations", {}).values()]
        for text in texts:
            assert set(NAME.findall(text)) <= exposed, rule
            assert set(re.findall(r"\b[a-z_]+:magbatch_\w+:\w+", text)) <= recorded, rule


def test_every_rule_that_is_recorded_is_used() -> None:
    used = " ".join(
        [*(rule["expr"] for rule in rules()), (MONITORING / "grafana/dashboards/magbatch.json").read_text()]
    )
    names = [rule["record"] for rule in rules() if "record" in rule]
    assert [name for name in names if name not in used] == []


@amtool
def test_the_example_of_alertmanager_is_one() -> None:
    assert "SUCCESS" in said("amtool", "check-config", "alertmanager.yml")
