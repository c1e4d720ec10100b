"""`report.html`: the report of a job as one page for people, which needs no other file."""

import io
import json
import logging
import math
from collections.abc import Callable
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from magbatch.counts import shown_time
from magbatch.ledger.layout import PAGE, REPORT
from magbatch.report.history import Point
from magbatch.report.report import Report
from magbatch.totals import INFINITE, LATENCY_BOUNDS_S, LENGTH_BOUNDS_TOKENS, cumulative

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# At its first start matplotlib would print that it builds its font cache.
logging.getLogger("matplotlib").setLevel(logging.ERROR)

BLUE, GREY, RED = "#2563a8", "#8a94a0", "#b3382c"
WIDTH_IN, HEIGHT_IN = 7.2, 2.6  # size of a picture; a wide screen shows two side by side
QUANTILES = (0.5, 0.9, 0.99)
MOST_REPLICAS = 64  # most bars that can be told apart in a picture of this width


def report_files(report: Report) -> dict[str, bytes]:
    """Return the stored files of a report by name: `report.json` and the page.

    If the page cannot be drawn, it is left out: a picture must not fail a job.
    """
    files = {REPORT: json.dumps(report.to_dict(), indent=1).encode()}
    try:
        files[PAGE] = render(report)
    except Exception:  # any error of a drawing library
        logging.getLogger("magbatch").warning(
            "%s/%s could not be drawn; report.json holds all numbers", report.output, PAGE, exc_info=True
        )
    return files


def render(report: Report) -> bytes:
    """Render the page of a complete job as HTML in UTF-8."""
    pictures = {
        "speed": _picture(_speed, report.history) if len(report.history) > 1 else None,
        "rows": _picture(_rows, report.history, report.planned) if len(report.history) > 1 else None,
        "reasoning": _picture(_lengths, report.totals.by_reasoning, LENGTH_BOUNDS_TOKENS, "reasoning tokens, up to"),
        "answer": _picture(_lengths, report.totals.by_answer, LENGTH_BOUNDS_TOKENS, "answer tokens, up to"),
        "latency": _picture(_lengths, report.totals.by_latency, LATENCY_BOUNDS_S, "seconds, up to"),
        "failures": _picture(_failures, report.totals.by_code) if report.totals.by_code else None,
        "replicas": _picture(_replicas, report) if report.replicas else None,
    }
    environment = Environment(loader=PackageLoader("magbatch.report", "."), autoescape=True, undefined=StrictUndefined)
    page = environment.get_template("report.html").render(
        report=report,
        totals=report.totals,
        pictures=pictures,
        settings=yaml.safe_dump(report.settings, sort_keys=False, allow_unicode=True),
        versions=report.versions,
        dates=_dates(report),
        quantiles=_quantiles(report),
        shown_time=shown_time,
        wall_time=_wall_time,
    )
    return page.encode(errors="replace")


def _dates(report: Report) -> list[tuple[str, str]]:
    """Return start, end and duration of the job, each with its name; empty if an older version wrote the report."""
    if report.began is None or report.ended is None:
        return []
    took = _wall_time(report.ended - report.began)
    return [("began", shown_time(report.began)), ("complete", shown_time(report.ended)), ("duration", took)]


def _wall_time(seconds: float) -> str:
    """Return a duration as `1 day, 2:03:04`."""
    return str(timedelta(seconds=max(0, round(seconds))))


def _quantiles(report: Report) -> list[tuple[str, list[str]]]:
    """Return p50, p90 and p99 of latency and lengths, estimated from the histograms as Prometheus does."""
    totals = report.totals
    slowest = max((row["latency_s"] for row in report.slowest), default=None)
    kinds: list[tuple[str, dict[str, int], tuple[float, ...], float | None]] = [
        ("latency of a row (s)", totals.by_latency, LATENCY_BOUNDS_S, slowest),
        ("reasoning tokens of a sample", totals.by_reasoning, LENGTH_BOUNDS_TOKENS, None),
        ("answer tokens of a sample", totals.by_answer, LENGTH_BOUNDS_TOKENS, None),
    ]
    return [
        (name, [_rounded(quantile(share, counts, bounds, most)) for share in QUANTILES])
        for name, counts, bounds, most in kinds
        if counts
    ]


def _rounded(value: float) -> str:
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.3g}"


def quantile(share: float, counts: dict[str, int], bounds: tuple[float, ...], most: float | None = None) -> float:
    """Estimate the value that a share of all values does not exceed.

    Values are assumed to lie evenly between two bounds, as in Prometheus' `histogram_quantile`.

    >>> quantile(0.5, {"10": 2, "20": 2}, (10, 20))
    10.0

    Args:
        share: Share of the values, from 0 to 1.
        counts: Number of values by their upper bound.
        bounds: Upper bounds in ascending order, without `+Inf`.
        most: Largest value; None if it is not known.
    """
    found = cumulative(counts, bounds)
    wanted, below, low = share * found[-1][1], 0, 0.0
    for name, sum_ in found:
        high = float(name)
        if sum_ >= wanted and sum_ > below:
            top, low = (high, low) if most is None else (min(high, most), min(low, most))
            if not math.isfinite(top):
                return low
            return low + (top - low) * (wanted - below) / (sum_ - below)
        below, low = sum_, high
    return low


def _picture(draw: Callable[..., None], *values: Any) -> Markup:
    """Draw a picture and return it as SVG that can be put into a page."""
    from matplotlib.figure import (
        Figure,
    )  # imported here: the import takes most of a second, and a job should start faster

    figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    draw(axes, *values)
    svg = io.StringIO()
    figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    text = svg.getvalue()
    return Markup(text[text.index("<svg") :])  # safe: numbers, and names that matplotlib escapes


def _hours(history: list[Point]) -> tuple[list[float], str]:
    seconds = [point.at - history[0].at for point in history]
    for unit, size in (("hours", 3600.0), ("minutes", 60.0)):
        if seconds[-1] > 2 * size:
            return [value / size for value in seconds], unit
    return seconds, "seconds"


def _plain(axis: Any) -> None:
    axis.set_major_formatter(lambda value, _: f"{value:,.10g}")


def _speed(axes: "Axes", history: list[Point]) -> None:
    times, unit = _hours(history)
    rates = [max(0, new.tokens - old.tokens) / max(new.at - old.at, 1e-9) for old, new in pairwise(history)]
    axes.stairs(rates, times, color=BLUE, fill=True, alpha=0.25)
    axes.stairs(rates, times, color=BLUE)
    axes.set(xlabel=f"{unit} since the job began", ylabel="tokens/s")
    axes.set_ylim(bottom=0)
    _plain(axes.yaxis)
    serving = axes.twinx()
    serving.spines[["top"]].set_visible(False)
    serving.step(times, [point.replicas for point in history], where="post", color=GREY, linestyle=":")
    serving.set_ylabel("replicas (dotted)", color=GREY)
    serving.set_ylim(bottom=0)
    serving.locator_params(axis="y", integer=True)


def _rows(axes: "Axes", history: list[Point], planned: int) -> None:
    times, unit = _hours(history)
    axes.plot(times, [point.rows for point in history], color=BLUE)
    axes.axhline(planned, color=GREY, linestyle=":")
    axes.set(xlabel=f"{unit} since the job began", ylabel="rows done")
    axes.set_ylim(bottom=0)
    _plain(axes.yaxis)


def _lengths(axes: "Axes", counts: dict[str, int], bounds: tuple[float, ...], label: str) -> None:
    names = [*(str(bound) for bound in bounds), INFINITE]
    filled = [index for index, name in enumerate(names) if counts.get(name)]
    shown = names[: max(filled, default=0) + 1]
    bars = axes.bar(
        [f"{float(name):,g}" if name != INFINITE else "more" for name in shown],
        [counts.get(name, 0) for name in shown],
        color=BLUE,
    )
    axes.bar_label(bars, labels=[f"{counts.get(name, 0):,}" for name in shown], fontsize="small")
    axes.set(xlabel=label, ylabel="count")
    _plain(axes.yaxis)


def _failures(axes: "Axes", by_code: dict[str, int]) -> None:
    ordered = sorted(by_code.items(), key=lambda item: item[1])
    bars = axes.barh([code for code, _ in ordered], [count for _, count in ordered], color=RED)
    axes.bar_label(bars, labels=[f"{count:,}" for _, count in ordered], fontsize="small")
    axes.set_xlabel("dead letters")
    _plain(axes.xaxis)


def _replicas(axes: "Axes", report: Report) -> None:
    shown = report.replicas[:MOST_REPLICAS]
    axes.bar([str(replica.number) for replica in shown], [replica.tokens for replica in shown], color=BLUE)
    axes.set(xlabel="replica", ylabel="tokens")
    _plain(axes.yaxis)
