"""The order of a benchmark: arms in turn, round after round, so that a machine that drifts drifts for all of them.

The first arm of a round is another one each time. Arms whose engines resolved to other settings are not compared.
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
BARE_ARMS = ARMS[:-1]  # of a run that is to end within 20 minutes on two cores
SWEEP = ((16, 16), (64, 8))  # rows of a batch x batches at once; its defaults are 32 x 8
SWEEP_BLOCKS = 64  # the batches at once are no more than the blocks of the input
SWEEP_SHARE = 4  # of the rows, one part, is enough to tell settings apart
NOT_ASKED = f"{RUN_BATCH}: not among the arms of a bare run; --arms '{','.join(ARMS)}' has it too"
NO_IMAGES = f"{RUN_BATCH}: left out: its requests carry images as base64 in JSON, another workload"
SEED = 8

Say = Callable[[str], None]


@dataclass(slots=True)
class Suite:
    """What a workload's arms did.

    Attributes:
        workload: Which.
        rows: Of it.
        tokens: That each arm generated.
        prompt_tokens: Of all prompts.
        longest: Tokens of its longest row.
        runs: Every one of them.
        notes: What a reader of the numbers has to know.
        seconds: That the whole took.
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
        """The runs of an arm, in the order of the rounds; of a sweep none."""
        return [run for run in self.runs if run.arm == arm and run.round]

    def median(self, arm: str) -> float:
        """Tokens a second."""
        return statistics.median(run.tokens_per_s for run in self.of(arm))

    def ratio(self, arm: str, to: str) -> float | None:
        """Median, over the rounds, of an arm's tokens a second to another's in the same round."""
        theirs = {run.round: run.tokens_per_s for run in self.of(to)}
        pairs = [run.tokens_per_s / theirs[run.round] for run in self.of(arm) if run.round in theirs]
        return statistics.median(pairs) if pairs else None


def this_machine(model: str, engine_args: dict[str, Any], gpus: int, *, pin: bool) -> Machine:
    """This machine; where CPUs run it, with the engine on one half of its cores and everything else on the other."""
    cores = sorted(os.sched_getaffinity(0))
    if gpus or not pin or len(cores) < 2:
        return Machine(model, engine_args, gpus)
    half = len(cores) // 2
    return Machine(model, engine_args, gpus, tuple(cores[:half]), tuple(cores[half:]))


def same_settings(runs: Sequence[Run]) -> dict[str, Any]:
    """What all runs' engines resolved to.

    Raises:
        BenchError: They differ; the message shows how.
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
            raise BenchError("\n  ".join(["the engines of the arms differ, so they are not compared:", *lines]))
    return first.settings


def run_suite(
    workload: Workload, machine: Machine, arms: Sequence[str], rows: int, rounds: int, folder: Path, say: Say
) -> Suite:
    """Run the arms of one workload.

    Args:
        workload: Which.
        machine: Where.
        arms: Names out of `ARMS`.
        rows: Of the workload.
        rounds: How often each arm runs.
        folder: A new one, for inputs and outputs.
        say: Takes a line of progress.

    Raises:
        BenchError: An arm failed, or engines differ.
    """
    began = time.monotonic()
    prepared = prepare(workload, rows, SEED, folder / "input", machine.settings)
    lengths = prepared.lengths.values()
    suite = Suite(workload.name, len(lengths), sum(lengths), prepared.prompt_tokens, max(lengths))
    say(f"{workload.name}: {suite.rows:,} rows, {suite.tokens:,} tokens to generate, the longest row {suite.longest:,}")
    chosen = list(arms)
    if tuple(arms) == BARE_ARMS and not workload.images:
        suite.notes.append(NOT_ASKED)
    if RUN_BATCH in chosen and workload.images:
        chosen.remove(RUN_BATCH)
        suite.notes.append(NO_IMAGES)
    made: dict[str, Arm] = {}
    driver = RayDriver(machine, workload)
    try:
        if RAY_BEST in chosen and (best := _best(workload, machine, driver, rows, folder / "sweep", suite, say)):
            made[RAY_BEST] = best
        makers: dict[str, Callable[[], Arm]] = {
            RAW: lambda: Raw(machine, workload),
            MAGBATCH: lambda: Magbatch(machine, workload),
            RAY: lambda: RayDataLlm(driver, None, None, None, RAY),
            RUN_BATCH: lambda: RunBatch(machine, workload),
        }
        made |= {name: makers[name]() for name in chosen if name in makers}
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
                    made.pop(name).close()  # without it the others can still be compared
                    suite.notes.append(f"{name}: left out, it failed in round {round_}: {error}")
                    say(suite.notes[-1])
                    continue
                run.round = round_
                suite.runs.append(run)
                same_settings(suite.runs)
                say(f"round {round_} of {rounds}: {_said(run)}")
    finally:
        for arm in made.values():
            arm.close()
        driver.close()
    suite.seconds = time.monotonic() - began
    return suite


def _said(run: Run) -> str:
    return f"{run.arm} {run.tokens_per_s:,.0f} tokens/s ({run.seconds:,.1f} s)"


def _best(
    workload: Workload, machine: Machine, driver: RayDriver, rows: int, folder: Path, suite: Suite, say: Say
) -> RayDataLlm | None:
    """Ray's arm with the fastest of a few settings, on fewer rows of the same kind; None where all of them fail."""
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
