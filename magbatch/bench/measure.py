"""The order of a benchmark: all arms in turn, round after round, so a drifting machine drifts for every arm.

Each round starts with a different arm. Arms whose engines resolved to different settings are not compared.
"""

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from magbatch.bench.arms import Arm, Magbatch, Raw, RayDataLlm, RayDriver, Run, RunBatch
from magbatch.bench.process import Machine
from magbatch.bench.workloads import Workload, prepare
from magbatch.errors import BenchError

RAW, MAGBATCH, RAY, RAY_BEST, RUN_BATCH = "raw", "magbatch", "ray.data.llm", "ray.data.llm best", "vllm run-batch"
ARMS = (RAW, MAGBATCH, RAY, RAY_BEST, RUN_BATCH)
BARE_ARMS = ARMS[:-1]  # arms of a run without --arms, which ends within 20 minutes on two cores
SWEEP = ((16, 16), (64, 8))  # rows in a batch, batches at once; Ray's defaults are 32 and 8
SWEEP_BLOCKS = 64  # Ray keeps at most as many batches at once as the input has blocks
SWEEP_SHARE = 4  # a quarter of the rows is enough to tell settings apart
NOT_ASKED = f"{RUN_BATCH}: not measured; add it with --arms '{','.join(ARMS)}'"
NO_IMAGES = f"{RUN_BATCH}: left out, because its requests carry images as base64 in JSON, a different workload"
SEED = 8

Say = Callable[[str], None]


@dataclass(slots=True)
class Suite:
    """All runs of a workload's arms.

    Attributes:
        workload: Name of the workload.
        rows: Number of rows.
        tokens: Number of tokens that each arm generates.
        prompt_tokens: Number of tokens of all prompts.
        longest: Number of tokens of the longest row.
        runs: Runs of all arms, sweeps included.
        notes: Lines that a reader of the numbers must know.
        seconds: Duration of the whole suite in seconds.
    """

    workload: str
    rows: int
    tokens: int
    prompt_tokens: int
    longest: int
    runs: list[Run] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def of(self, arm: str) -> list[Run]:
        """Runs of an arm in the order of the rounds, without sweeps."""
        return [run for run in self.runs if run.arm == arm and run.round]

    def median(self, arm: str) -> float:
        """Median of an arm's tokens per second over the rounds."""
        return statistics.median(run.tokens_per_s for run in self.of(arm))

    def ratio(self, arm: str, to: str) -> float | None:
        """Median over the rounds of the ratio of two arms' tokens per second; None if no round has both.

        Args:
            arm: Name of the arm in the numerator.
            to: Name of the arm in the denominator.
        """
        theirs = {run.round: run.tokens_per_s for run in self.of(to)}
        pairs = [run.tokens_per_s / theirs[run.round] for run in self.of(arm) if run.round in theirs]
        return statistics.median(pairs) if pairs else None


def this_machine(model: str, engine_args: dict[str, Any], gpus: int, *, pin: bool) -> Machine:
    """This machine; an engine on CPUs gets one half of the cores, everything else the other half.

    Args:
        model: Source of the model, as in a spec.
        engine_args: Engine arguments of every arm.
        gpus: Number of GPUs of the engine; 0 runs it on CPUs.
        pin: Whether the two halves are kept apart.
    """
    cores = sorted(os.sched_getaffinity(0))
    if gpus or not pin or len(cores) < 2:
        return Machine(model, engine_args, gpus)
    half = len(cores) // 2
    return Machine(model, engine_args, gpus, tuple(cores[:half]), tuple(cores[half:]))


def same_settings(runs: Sequence[Run]) -> dict[str, Any]:
    """Settings that the engines of all runs resolved to.

    Raises:
        BenchError: Two engines differ; the message lists the settings.
    """
    first = runs[0]
    for run in runs[1:]:
        names = sorted(first.settings.keys() | run.settings.keys())
        lines = [
            f"{name}: {first.settings.get(name)} in {first.arm}, {run.settings.get(name)} in {run.arm}"
            for name in names
            if first.settings.get(name) != run.settings.get(name)
        ]
        if lines:
            raise BenchError(
                "\n  ".join(["engines of the arms have different settings, so the arms cannot be compared:", *lines])
            )
    return first.settings


def run_suite(
    workload: Workload, machine: Machine, arms: Sequence[str], rows: int, rounds: int, folder: Path, say: Say
) -> Suite:
    """Run the arms of one workload.

    Args:
        workload: Workload to answer.
        machine: Machine and engine settings.
        arms: Names of arms, from `ARMS`.
        rows: Number of rows of the workload.
        rounds: Number of runs of each arm.
        folder: New folder for inputs and outputs.
        say: Function that shows a line of progress.

    Raises:
        BenchError: An arm failed, or engines differ.
    """
    began = time.monotonic()
    prepared = prepare(workload, rows, SEED, folder / "input", machine.settings)
    lengths = prepared.lengths.values()
    suite = Suite(workload.name, len(lengths), sum(lengths), prepared.prompt_tokens, max(lengths))
    say(f"{workload.name}: {suite.rows:,} rows, {suite.tokens:,} tokens to generate, the longest row {suite.longest:,}")
    chosen = _possible(arms, workload, suite)
    made: dict[str, Arm] = {}
    driver = RayDriver(machine, workload)
    try:
        if RAY_BEST in chosen and (best := _best(workload, machine, driver, rows, folder / "sweep", suite, say)):
            made[RAY_BEST] = best
        made |= _other_arms(chosen, workload, machine, driver)
        for round_ in range(1, rounds + 1):
            shift = (round_ - 1) % len(chosen)
            for name in chosen[shift:] + chosen[:shift]:
                if name not in made:
                    continue
                where = folder / f"{round_:02d}-{name.replace(' ', '-')}"
                where.mkdir(parents=True)
                try:
                    run = made[name].run(prepared, where)
                except BenchError as error:
                    if name in (RAW, MAGBATCH):
                        raise
                    made.pop(name).close()  # the other arms can still be compared
                    suite.notes.append(f"{name}: left out, it failed in round {round_}: {error}")
                    say(suite.notes[-1])
                else:
                    _keep(run, round_, suite)
                    say(f"round {round_} of {rounds}: {_said(run)}")
    finally:
        for arm in made.values():
            arm.close()
        driver.close()
    suite.seconds = time.monotonic() - began
    return suite


def _possible(arms: Sequence[str], workload: Workload, suite: Suite) -> list[str]:
    """Names of the arms that can run a workload; notes of the suite tell which arms are missing, and why."""
    chosen = list(arms)
    if tuple(arms) == BARE_ARMS and not workload.images:
        suite.notes.append(NOT_ASKED)
    if RUN_BATCH in chosen and workload.images:
        chosen.remove(RUN_BATCH)
        suite.notes.append(NO_IMAGES)
    return chosen


def _other_arms(chosen: Sequence[str], workload: Workload, machine: Machine, driver: RayDriver) -> dict[str, Arm]:
    """Name to arm, for the chosen arms that need no sweep."""
    makers: dict[str, Callable[[], Arm]] = {
        RAW: lambda: Raw(machine, workload),
        MAGBATCH: lambda: Magbatch(machine, workload),
        RAY: lambda: RayDataLlm(driver, None, None, None, RAY),
        RUN_BATCH: lambda: RunBatch(machine, workload),
    }
    return {name: makers[name]() for name in chosen if name in makers}


def _keep(run: Run, round_: int, suite: Suite) -> None:
    run.round = round_
    suite.runs.append(run)
    same_settings(suite.runs)


def _said(run: Run) -> str:
    return f"{run.arm} {run.tokens_per_s:,.0f} tokens/s ({run.seconds:,.1f} s)"


def _best(
    workload: Workload, machine: Machine, driver: RayDriver, rows: int, folder: Path, suite: Suite, say: Say
) -> RayDataLlm | None:
    """Ray's arm with the fastest of a few settings, found on fewer rows; None if all settings fail."""
    few = prepare(workload, max(1, rows // SWEEP_SHARE), SEED + 1, folder / "input", machine.settings)
    speeds: dict[tuple[int, int], float] = {}
    for size, batches in SWEEP:
        name = f"{RAY} {size} x {batches}"
        where = folder / f"{size}-{batches}"
        where.mkdir(parents=True)
        try:
            run = RayDataLlm(driver, size, batches, SWEEP_BLOCKS, name).run(few, where)
        except BenchError as error:
            suite.notes.append(f"{name}: failed: {error}")
            say(suite.notes[-1])
            continue
        suite.runs.append(run)
        speeds[size, batches] = run.tokens_per_s
        say(f"sweep: {_said(run)}")
    if not speeds:
        return None
    size, batches = max(speeds, key=lambda one: speeds[one])
    suite.notes.append(
        f"{RAY_BEST}: batches of {size} rows, {batches} at once, the fastest of {len(SWEEP)} settings on "
        f"{len(few.lengths):,} rows"
    )
    return RayDataLlm(driver, size, batches, SWEEP_BLOCKS, RAY_BEST)
