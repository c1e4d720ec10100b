"""The result of a benchmark: Markdown tables for people, and one document for programs."""

import os
import platform
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from magbatch.bench.measure import MAGBATCH, RAW, RAY, RAY_BEST, Suite, same_settings
from magbatch.bench.process import Machine
from magbatch.versions import versions


@dataclass(frozen=True, slots=True)
class Target:
    """A number that magbatch should reach.

    Attributes:
        what: Description of the number.
        value: Measured value.
        bound: Lower or upper bound of the value; None for a number that is shown only for comparison.
        least: Whether `bound` is a lower bound.
        runs: Measured values of the single runs, in their order.
        unit: Unit of the runs.
        raw: Ratio of the arm `raw` for the same target; None if it has none.
    """

    what: str
    value: float
    bound: float | None
    least: bool = True
    runs: tuple[float, ...] = ()
    unit: str = ""
    raw: float | None = None

    @property
    def met(self) -> bool:
        """Whether the bound is reached; always true without a bound."""
        if self.bound is None:
            return True
        return self.value >= self.bound if self.least else self.value <= self.bound

    @property
    def verdict(self) -> str:
        """Result in words, with the ratio of `raw` if `raw` misses the target too."""
        if self.bound is None:
            return "-"
        if self.met:
            return "met"
        also = self.raw is not None and self.raw < self.bound
        return f"missed; raw itself {self.raw:.3f}" if also else "missed"


def targets(suite: Suite) -> list[Target]:
    """Targets of a workload's arms."""
    raw = 1.0 if suite.workload == "image" else 0.97
    wanted = [(RAW, raw), (RAY, 1.3), (RAY_BEST, 1.05)]
    found = []
    for arm, bound in wanted:
        ratio = suite.ratio(MAGBATCH, arm)
        if ratio is not None:
            of_raw = None if arm == RAW else suite.ratio(RAW, arm)
            found.append(Target(f"{suite.workload}: magbatch / {arm}, tokens/s", ratio, bound, raw=of_raw))
    return found


def markdown(suites: list[Suite], reached: list[Target], machine: Machine) -> str:
    """Tables of all suites and targets."""
    about = machine_facts(machine)
    lines = [f"{about['cpu']}, {about['cores']} cores, {about['memory_gb']} GB; model {machine.model}"]
    for suite in suites:
        lines += [
            "",
            f"**{suite.workload}**{_device(suite)}: {suite.rows:,} rows, {suite.prompt_tokens:,} prompt tokens, "
            f"{suite.tokens:,} generated, the longest row {suite.longest:,}",
            "",
            "| arm | tokens/s, median | all runs | rows/s | to raw | to ray.data.llm |",
            "|---|---:|---|---:|---:|---:|",
        ]
        for arm in dict.fromkeys(run.arm for run in suite.runs if run.round):
            runs = suite.of(arm)
            every = " ".join(f"{run.tokens_per_s:,.0f}" for run in runs)
            speed = suite.median(arm)
            lines.append(
                f"| {arm} | {speed:,.0f} | {every} | {speed * suite.rows / suite.tokens:,.1f} "
                f"| {_ratio(suite.ratio(arm, RAW))} | {_ratio(suite.ratio(arm, RAY))} |"
            )
        lines += [f"\n{note}" for note in suite.notes]
    if reached:
        lines += ["", "| target | measured | wanted | | all runs |", "|---|---:|---:|---|---|"]
        for one in reached:
            every = " ".join(f"{run:,.4g}" for run in one.runs)
            wanted = "-" if one.bound is None else f"{'≥' if one.least else '≤'} {one.bound:g}"
            unit = f" {one.unit}" if every and one.unit else ""
            lines.append(f"| {one.what} | {one.value:.3f} | {wanted} | {one.verdict} | {every}{unit} |")
    return "\n".join(lines)


def _device(suite: Suite) -> str:
    """Name of the engines' device; empty for the processor, which the first line names."""
    name = suite.runs[0].settings.get("device", "cpu")
    return "" if name == "cpu" else f" on {name}"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def document(suites: list[Suite], reached: list[Target], machine: Machine) -> dict[str, Any]:
    """JSON document of every run, the machine, the versions and the engines' settings."""
    return {
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine_facts(machine),
        "versions": versions(),
        "suites": [
            {
                "workload": suite.workload, "rows": suite.rows, "tokens": suite.tokens,
                "prompt_tokens": suite.prompt_tokens, "longest_row_tokens": suite.longest, "seconds": suite.seconds,
                "notes": suite.notes, "engine_settings": same_settings(suite.runs),
                "medians_tokens_per_s": {arm: suite.median(arm) for arm in _arms(suite)},
                "ratios": {
                    f"{arm} / {other}": suite.ratio(arm, other)
                    for arm in _arms(suite) for other in _arms(suite) if arm != other
                },
                "runs": [_record(run) for run in suite.runs],
            }
            for suite in suites
        ],
        "targets": [asdict(one) | {"met": one.met} for one in reached],
    }  # fmt: skip


def _arms(suite: Suite) -> list[str]:
    return list(dict.fromkeys(run.arm for run in suite.runs if run.round))


def _record(run: Any) -> dict[str, Any]:
    """Record of a run, without the settings that all runs share."""
    found = asdict(run)
    del found["settings"], found["folder"]
    return found | {"tokens_per_s": run.tokens_per_s, "kind": "round" if run.round else "sweep"}


def machine_facts(machine: Machine) -> dict[str, Any]:
    """Description of the measured machine."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "platform": platform.platform(),
        "gpus": machine.gpus,
        "model": machine.model,
        "engine_args": machine.engine_args,
        "engine_cores": list(machine.engine_cores),
        "other_cores": list(machine.other_cores),
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
