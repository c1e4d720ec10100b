"""The source of the Grafana dashboard: is the job healthy, how fast is it, when is it done, what does it cost?

    uv run --no-sync python monitoring/dashboard.py        writes grafana/dashboards/magbatch.json

Metric names come from the declarations, so no name can be mistyped. A driver serves the numbers of its whole fleet.
`max by` counts a job once, even if it is scraped in two ways.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from magbatch.report import metrics
from magbatch.report.metrics import Declared, Kind

TARGET = Path(__file__).parent / "grafana" / "dashboards" / "magbatch.json"
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH = 24  # columns of Grafana's grid
JOBS = 'job_name=~"$job_name"'
GREEN, AMBER, RED, BLUE = "green", "orange", "red", "blue"
Panel = dict[str, Any]


def of(metric: Declared, *matchers: str) -> str:
    """A metric of the jobs that the dashboard shows."""
    assert metric.kind is not Kind.HISTOGRAM
    return f"{metric.exposed[0]}{{{', '.join([JOBS, *matchers])}}}"


def value(metric: Declared, *labels: str, matchers: tuple[str, ...] = ()) -> str:
    """Value of a gauge or counter, for each job and each combination of labels."""
    return f"max by ({', '.join(['job_name', *labels])}) ({of(metric, *matchers)})"


def rate(metric: Declared, *labels: str, matchers: tuple[str, ...] = ()) -> str:
    """Growth of a counter in a second."""
    return f"max by ({', '.join(['job_name', *labels])}) (rate({of(metric, *matchers)}[$__rate_interval]))"


def quantile(share: float, metric: Declared) -> str:
    """A quantile of the newest values of a histogram."""
    bucket = metric.exposed[0]
    return f"histogram_quantile({share}, max by (job_name, le) (rate({bucket}{{{JOBS}}}[$__rate_interval])))"


def target(expr: str, legend: str = "{{job_name}}", **more: Any) -> dict[str, Any]:
    """A query of a panel."""
    return {"datasource": DATASOURCE, "expr": expr, "legendFormat": legend, **more}


def panel(kind: str, title: str, about: str, unit: str, *targets: dict[str, Any], width: int, height: int) -> Panel:
    """A panel without a position; `laid_out` sets the position."""
    assert targets
    letters = "ABCDEFGHIJ"
    return {
        "type": kind,
        "title": title,
        "description": about,
        "datasource": DATASOURCE,
        "targets": [{"refId": letters[number], **one} for number, one in enumerate(targets)],
        "fieldConfig": {"defaults": {"unit": unit, "custom": {}}, "overrides": []},
        "options": {},
        "gridPos": {"x": 0, "y": 0, "w": width, "h": height},
    }


def thresholds(first: str, *steps: tuple[float, str]) -> dict[str, Any]:
    """Colours by value, for a panel of one number."""
    known = [{"value": None, "color": first}, *({"value": value, "color": color} for value, color in steps)]
    return {"mode": "absolute", "steps": known}


def stat(
    title: str,
    about: str,
    unit: str,
    *targets: dict[str, Any],
    colors: dict[str, Any] | None = None,
    width: int = 4,
    **defaults: Any,
) -> Panel:
    """A panel of one large number."""
    made = panel("stat", title, about, unit, *targets, width=width, height=4)
    made["fieldConfig"]["defaults"] |= {"thresholds": colors or thresholds(BLUE)} | defaults
    made["options"] = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "value",
        "graphMode": "none",
        "textMode": "value_and_name" if len(targets) > 1 else "auto",
    }
    return made


def graph(
    title: str, about: str, unit: str, *targets: dict[str, Any], stacked: bool = False, width: int = 8, **defaults: Any
) -> Panel:
    """A panel of numbers over time."""
    made = panel("timeseries", title, about, unit, *targets, width=width, height=8)
    made["fieldConfig"]["defaults"] |= defaults
    made["fieldConfig"]["defaults"]["custom"] = {
        "lineWidth": 1,
        "fillOpacity": 20 if stacked else 8,
        "showPoints": "never",
        "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
    }
    made["options"] = {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return made


def heatmap(title: str, about: str, unit: str, metric: Declared, width: int = 8) -> Panel:
    """A panel of a histogram over time."""
    expr = f"sum by (le) (max by (job_name, le) (increase({metric.exposed[0]}{{{JOBS}}}[$__rate_interval])))"
    made = panel("heatmap", title, about, unit, target(expr, "{{le}}", format="heatmap"), width=width, height=8)
    made["options"] = {
        "calculate": False,
        "yAxis": {"unit": unit},
        "color": {"mode": "scheme", "scheme": "Blues", "steps": 32},
        "cellGap": 1,
        "legend": {"show": False},
        "tooltip": {"mode": "single", "yHistogram": False},
    }
    return made


def ratio(part: str, whole: str) -> str:
    """A share of a whole, absent if the whole is 0."""
    return f"({part}) / (({whole}) > 0)"


DONE = f"sum by (job_name) ({value(metrics.ROWS_COMMITTED, 'outcome')})"
GENERATED = 'kind=~"reasoning|answer"'
SECONDS_LEFT = f"{value(metrics.JOB_ETA, 'bound', matchers=('bound=%s',))} - time()"

SECTIONS: dict[str, list[Panel]] = {
    "At a glance": [
        stat(
            "State", "Complete when the manifest is written.", "none", target(value(metrics.JOB_COMPLETE)),
            colors=thresholds(AMBER, (1, GREEN)), width=3,
            mappings=[{"type": "value", "options": {
                "0": {"text": "running", "index": 0}, "1": {"text": "complete", "index": 1}}}],
        ),
        stat("Rows done", "Share of planned rows that are answered or dead letters.", "percentunit",
             target(ratio(DONE, value(metrics.ROWS_PLANNED))), width=3, decimals=1),
        stat("Done in", "Expected seconds until the end.", "s",
             target(SECONDS_LEFT % '"expected"'), width=3),
        stat("Rows/s", "Rows committed per second, measured over the last minutes.", "short",
             target(f"sum by (job_name) ({rate(metrics.ROWS_COMMITTED, 'outcome')})"), width=3, decimals=1),
        stat("Tokens/s", "Reasoning and answer tokens of committed rows.", "short",
             target(f"sum by (job_name) ({rate(metrics.TOKENS, 'kind', matchers=(GENERATED,))})"), width=3),
        stat("Replicas serving", "Replicas that can answer rows.", "none",
             target(value(metrics.REPLICAS, matchers=('state="serving"',))), colors=thresholds(RED, (1, GREEN)),
             width=3),
        stat("Failed", "Rows that became dead letters.", "short",
             target(value(metrics.ROWS_COMMITTED, matchers=('outcome="failed"',))),
             colors=thresholds(GREEN, (1, AMBER)), width=3),
        stat("Cost so far", "Cost of all devices held. Engine starts and earlier runs count.", "none",
             target(value(metrics.COST, "currency"), "{{currency}}"), width=3, decimals=2),
    ],
    "Speed and end": [
        graph("Rows/s", "Rows committed in a second, by outcome.", "short",
              target(rate(metrics.ROWS_COMMITTED, "outcome"), "{{job_name}} {{outcome}}"), stacked=True),
        graph("Tokens/s", "Tokens of committed rows. Cached: prompt tokens that were not computed again.", "short",
              target(rate(metrics.TOKENS, "kind"), "{{job_name}} {{kind}}")),
        graph("Rows", "Rows done, and rows planned.", "short", target(DONE, "{{job_name}} done"),
              target(value(metrics.ROWS_PLANNED), "{{job_name}} planned")),
        graph("Time left", "Expected time, with a 90% interval from the row lengths seen so far.", "s",
              target(f"{value(metrics.JOB_ETA, 'bound')} - time()", "{{job_name}} {{bound}}"), width=12),
        graph("Time to the deadline, and running for", "Time until the spec's deadline, and duration of this run.", "s",
              target(f"{value(metrics.JOB_DEADLINE)} - time()", "{{job_name}} to the deadline"),
              target(f"time() - {value(metrics.JOB_STARTED)}", "{{job_name}} running"),
              target(f"time() - {value(metrics.JOB_PROGRESS)}", "{{job_name}} since a commit"), width=12),
    ],
    "Rows": [
        heatmap("Reasoning length", "Reasoning tokens of each sample.", "short", metrics.REASONING_TOKENS),
        heatmap("Answer length", "Tokens of each answer.", "short", metrics.ANSWER_TOKENS),
        heatmap("Row latency", "From a row's submission to its last token.", "s", metrics.ROW_LATENCY),
        graph("Truncated", "Share of samples with truncated reasoning.", "percentunit",
              target(value(metrics.TRUNCATED)), min=0, max=1),
        graph("Samples by reasoning status", "Samples in a second.", "short",
              target(rate(metrics.RECORDS, "reasoning_status"), "{{job_name}} {{reasoning_status}}"), stacked=True),
        graph("Documents truncated", "Documents so far of which some pages or text were left out.", "short",
              target(value(metrics.DOCUMENTS_TRUNCATED))),
        graph("Dead letters", "Dead letters so far, by error code.", "short",
              target(value(metrics.ROWS_FAILED, "code"), "{{job_name}} {{code}}"), stacked=True),
    ],
    "Fleet": [
        graph("Replicas", "Replicas that start, serve, or are lost (silent and not replaced).", "none",
              target(value(metrics.REPLICAS, "state"), "{{job_name}} {{state}}"), stacked=True),
        graph("Restarts and engine deaths", "Total so far, earlier runs included.", "none",
              target(value(metrics.REPLICA_RESTARTS), "{{job_name}} restarts"),
              target(value(metrics.ENGINE_DEATHS), "{{job_name}} engine deaths")),
        graph("Starvation", "Share of serving replicas' time with free engine slots while rows remained. Should be 0.",
              "percentunit",
              target(ratio(rate(metrics.STARVED_SECONDS), value(metrics.REPLICAS, matchers=('state="serving"',))))),
        graph("Tokens/s by replica", "Generated tokens in a second. A slow replica shows here.", "short",
              target(rate(metrics.REPLICA_TOKENS, "replica"), "{{job_name}} {{replica}}"), width=12),
        graph("Rows/s by replica", "Rows finished in a second.", "short",
              target(rate(metrics.REPLICA_ROWS, "replica"), "{{job_name}} {{replica}}"), width=12),
    ],
    "Engines": [
        graph("Sequences running", "Sequences in each engine, max_num_seqs at most.", "none",
              target(value(metrics.ENGINE_RUNNING, "replica"), "{{job_name}} {{replica}}")),
        graph("Requests queued", "Requests in each engine that wait for a free slot.", "none",
              target(value(metrics.ENGINE_QUEUED, "replica"), "{{job_name}} {{replica}}")),
        graph("KV cache", "Share in use. At 1 the engine preempts: fewer max_num_seqs would be as fast.", "percentunit",
              target(value(metrics.ENGINE_KV, "replica"), "{{job_name}} {{replica}}"), min=0, max=1),
        graph("Preemptions", "Sequences stopped in a second because the KV cache was full.", "short",
              target(rate(metrics.ENGINE_PREEMPTIONS, "replica"), "{{job_name}} {{replica}}")),
        graph("Rows in flight", "Rows inside each replica's engine.", "none",
              target(value(metrics.ROWS_IN_FLIGHT, "replica"), "{{job_name}} {{replica}}")),
        graph("Rows waiting", "Rows in each replica that wait for an engine slot.", "none",
              target(value(metrics.ROWS_WAITING, "replica"), "{{job_name}} {{replica}}")),
    ],
    "Storage": [
        graph("Commit latency", "Seconds to write an object, refused attempts included.", "s",
              *(target(quantile(share, metrics.COMMIT_SECONDS), f"{{{{job_name}}}} p{round(100 * share)}")
                for share in (0.5, 0.9, 0.99))),
        graph("Written", "Bytes committed in a second.", "Bps", target(rate(metrics.COMMIT_BYTES))),
        graph("Refused", "Requests in a second that storage refused, and that were repeated.", "short",
              target(rate(metrics.STORAGE_ERRORS, "side"), "{{job_name}} {{side}}"),
              target(rate(metrics.COMMIT_RETRIES), "{{job_name}} commits")),
    ],
    "Cost": [
        stat("Device hours", "Hours of devices held. Engine starts and earlier runs count.", "h",
             target(f"{value(metrics.DEVICE_SECONDS)} / 3600"), width=6, decimals=1),
        stat("Cost at the end", "Cost at the end, if the remaining rows cost as much as the rows so far.", "none",
             target(f"{value(metrics.COST, 'currency')} / on (job_name) group_left () "
                    f"({ratio(DONE, value(metrics.ROWS_PLANNED))} > 0)", "{{currency}}"), width=6, decimals=2),
        stat("Cost of a million tokens", "Cost of a million reasoning and answer tokens.", "none",
             target("job_name_currency:magbatch_cost_per_million_tokens:ratio{" + JOBS + "}", "{{currency}}"),
             width=6, decimals=2),
        stat("Version", "Version of magbatch, and the engine.", "none",
             target(f"max by (job_name, version, engine) ({of(metrics.JOB_INFO)})", "{{version}} {{engine}}"), width=6),
    ],
}  # fmt: skip
SECTIONS["Cost"][-1]["options"]["textMode"] = "name"


def laid_out() -> list[Panel]:
    """The panels of all sections with their positions: each row of the grid holds as many as fit."""
    panels, y = list[Panel](), 0
    for title, section in SECTIONS.items():
        panels.append(
            {
                "type": "row",
                "title": title,
                "collapsed": False,
                "panels": [],
                "gridPos": {"x": 0, "y": y, "w": 24, "h": 1},
            }
        )
        x, y, height = 0, y + 1, 0
        for one in section:
            place = one["gridPos"]
            if x + place["w"] > WIDTH:
                x, y, height = 0, y + height, 0
            place |= {"x": x, "y": y}
            x, height = x + place["w"], max(height, place["h"])
            panels.append(one)
        y += height
    return [{"id": number, **one} for number, one in enumerate(panels, start=1)]


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana reads it."""
    return {
        "uid": "magbatch",
        "title": "magbatch",
        "description": "Offline jobs of reasoning models: health, speed, time left and cost.",
        "tags": ["magbatch"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "15s",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "browser",
        "templating": {
            "list": [
                {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
                {
                    "name": "job_name",
                    "label": "Job",
                    "type": "query",
                    "datasource": DATASOURCE,
                    "query": f"label_values({metrics.JOB_INFO.exposed[0]}, job_name)",
                    "refresh": 2,
                    "sort": 1,
                    "multi": True,
                    "includeAll": True,
                    "allValue": ".*",
                    "current": {"text": "All", "value": "$__all"},
                },
            ]
        },
        "panels": laid_out(),
    }


def expressions() -> Iterator[str]:
    """Every query of the dashboard."""
    for one in laid_out():
        yield from (query["expr"] for query in one.get("targets", []))


def queries() -> list[str]:
    """Every query with its variables filled in, so that a server can answer it."""
    filled = {"$job_name": ".*", "$__rate_interval": "1m"}
    found = []
    for expr in expressions():
        for name, text in filled.items():
            expr = expr.replace(name, text)
        found.append(expr)
    return found


if __name__ == "__main__":
    TARGET.write_text(json.dumps(dashboard(), indent=1) + "\n")
