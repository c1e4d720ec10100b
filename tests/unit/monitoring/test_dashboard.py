"""The dashboard is what its source makes, asks for what there is, and is what Grafana's own type says."""

import json
import re
import subprocess
from collections import Counter
from pathlib import Path
from shutil import which
from typing import Any

import dashboard
import pytest
import yaml

from magbatch.report.metrics import METRICS

MONITORING = Path(__file__).parents[3] / "monitoring"
PACKAGES = ("@grafana/schema@13.2.3", "typescript@5.9.3")
# Enums stand in JSON as their values.
CHECK = """
import type { Dashboard } from '@grafana/schema';
type Plain<T> = unknown extends T ? T : T extends string ? `${T}`
  : T extends number ? (number extends T ? T : `${T}` extends `${infer N extends number}` ? N : T)
  : T extends object ? { [K in keyof T]: Plain<T[K]> } : T;
const dashboard: Plain<Dashboard> = JSON_HERE;
export default dashboard;
"""


TEXT = (MONITORING / "grafana/dashboards/magbatch.json").read_text()
DASHBOARD: dict[str, Any] = json.loads(TEXT)
PANELS = DASHBOARD["panels"]


def test_what_is_shipped_is_what_its_source_makes() -> None:
    assert dashboard.dashboard() == DASHBOARD, "run: uv run --no-sync python monitoring/dashboard.py"


def test_every_metric_that_it_names_is_declared() -> None:
    exposed = {name for metric in METRICS.values() for name in metric.exposed}
    recorded = {
        rule["record"]
        for group in yaml.safe_load((MONITORING / "rules/recording.yml").read_text())["groups"]
        for rule in group["rules"]
    }
    assert set(re.findall(r"(?<![:\w])magbatch_[a-z0-9_]+", TEXT)) <= exposed
    assert set(re.findall(r"\b[a-z_]+:magbatch_\w+:\w+", TEXT)) <= recorded


def test_every_metric_that_is_declared_is_shown() -> None:
    named = set(re.findall(r"magbatch_[a-z0-9_]+", TEXT))
    assert [metric.name for metric in METRICS.values() if not named & set(metric.exposed)] == []


def test_panels_have_a_name_a_meaning_and_a_place_of_their_own() -> None:
    assert max(Counter(panel["id"] for panel in PANELS).values()) == 1
    taken: set[tuple[int, int]] = set()
    for panel in PANELS:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not taken & cells, panel["title"]
        taken |= cells
        assert panel["title"]
        if panel["type"] != "row":
            assert panel["description"]
            assert panel["fieldConfig"]["defaults"]["unit"]
            assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) > 0


def test_every_query_is_about_the_jobs_that_are_chosen() -> None:
    for panel in PANELS:
        for target in panel.get("targets", []):
            assert 'job_name=~"$job_name"' in target["expr"], panel["title"]
    for query in dashboard.queries():
        assert "$" not in query


@pytest.fixture(scope="module")
def grafana(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with Grafana's published types and the compiler."""
    if which("npm") is None:
        pytest.skip("npm is not installed")
    folder = tmp_path_factory.mktemp("grafana")
    (folder / "package.json").write_text("{}")
    command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--omit=peer", *PACKAGES]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=180, check=False)
    if re.search(r"ENOTFOUND|ETIMEDOUT|ECONNREFUSED|EAI_AGAIN|ECONNRESET", done.stderr):
        pytest.skip("the npm registry is not reached")
    assert done.returncode == 0, done.stderr
    return folder


def compiled(folder: Path, text: str) -> str:
    """Errors of TypeScript's compiler."""
    (folder / "check.ts").write_text(CHECK.replace("JSON_HERE", text))
    options = ["--strict", "--noEmit", "--skipLibCheck", "--moduleResolution", "node", "--target", "es2022"]
    done = subprocess.run(
        [str(folder / "node_modules/.bin/tsc"), *options, "check.ts"],
        cwd=folder, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode == 0) == (done.stdout == "")
    return done.stdout


def test_it_is_a_dashboard_by_grafanas_own_type(grafana: Path) -> None:
    assert compiled(grafana, TEXT) == ""


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ('"schemaVersion": 39', '"schemaVersion": "39"'),
        ('"uid": "magbatch"', '"uuid": "magbatch"'),
        ('"gridPos"', '"gridPosition"'),
        ('"mode": "absolute"', '"mode": "absurd"'),
        ('"refresh": 2', '"refresh": 9'),
    ],
)
def test_the_type_tells_a_dashboard_from_what_is_none(grafana: Path, right: str, wrong: str) -> None:
    assert right in TEXT
    assert "error TS" in compiled(grafana, TEXT.replace(right, wrong))
