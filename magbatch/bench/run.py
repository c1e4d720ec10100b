"""`magbatch bench`: run suites in a folder, and make one report."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from magbatch.bench.bounds import BOUNDS
from magbatch.bench.measure import ARMS, BARE_ARMS, Say, Suite, run_suite, same_settings, this_machine
from magbatch.bench.prefixes import prefix
from magbatch.bench.report import Target, document, markdown, targets
from magbatch.bench.workloads import WORKLOADS
from magbatch.errors import SpecError
from magbatch.spec.secrets import secrets
from magbatch.temporary import temporary_files

ALL = "all"
MEASURES = BOUNDS | {"prefix": prefix}
SUITES = (*WORKLOADS, *MEASURES)
ROUNDS = {"occupancy": 1, "null": 3, "documents": 3, "start": 3, "prefix": 3}  # other suites: DEFAULT_ROUNDS
DEFAULT_ROUNDS = 5
ROWS = {
    "text": 3000,
    "null": 64_000,
    "documents": 4_000,
    "memory": 64_000,
}  # other suites: DEFAULT_ROWS; for documents, pages
DEFAULT_ROWS = 2000


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a benchmark.

    Attributes:
        markdown: Tables for people.
        document: JSON document for programs.
        missed: Number of targets that were not reached.
    """

    markdown: str
    document: dict[str, Any]
    missed: int


def bench(
    suite: str,
    *,
    rows: int | None,
    rounds: int | None,
    model: str,
    gpus: int,
    engine_args: Sequence[str],
    pin: bool,
    arms: str | None,
    keep: str | None,
    report: str | None,
    say: Say,
) -> Outcome:
    """Run one suite, or all suites.

    Args:
        suite: Name from `SUITES`, or `all`.
        rows: Number of rows of each suite; None takes the suite's own.
        rounds: Number of rounds of each suite; None takes the suite's own.
        model: Source of the model, as in a spec.
        gpus: Number of GPUs of the engine; 0 runs it on CPUs.
        engine_args: Items `name=value` for the engine of every arm.
        pin: Whether an engine on CPUs gets its own cores.
        arms: Names from `ARMS` separated by commas; None takes all except `vllm run-batch`.
        keep: Folder for the arms' inputs and outputs; None takes a temporary folder.
        report: File for the whole report as JSON, written after each suite; None writes no file.
        say: Function that shows a line of progress.

    Raises:
        SpecError: An argument is wrong.
        BenchError: An arm failed.
    """
    names, chosen = _suites(suite), _arms(arms)
    if os.environ.get("VLLM_PLUGINS"):
        raise SpecError("VLLM_PLUGINS is set, so vLLM would not load the probe that measures; unset it")
    given = _given(engine_args, model)
    if report is not None:
        _check_writable("--json", report)
    machine = this_machine(model, given, gpus, pin=pin)
    suites: list[Suite] = []
    reached: list[Target] = []
    with _folder(keep) as folder:
        for name in names:
            count, times = rows or ROWS.get(name, DEFAULT_ROWS), rounds or ROUNDS.get(name, DEFAULT_ROUNDS)
            where = folder / name
            where.mkdir(parents=True)
            if name in WORKLOADS:
                suites.append(run_suite(WORKLOADS[name], machine, chosen, count, times, where, say))
                same_settings(suites[-1].runs)
                reached += targets(suites[-1])
            else:
                reached += MEASURES[name](machine, count, times, where, say)
            found = document(suites, reached, machine)
            if report is not None:
                Path(report).write_text(json.dumps(found, indent=1, default=str), encoding="utf-8")
    return Outcome(markdown(suites, reached, machine), found, sum(not one.met for one in reached))


def _check_writable(option: str, path: str) -> None:
    """Raise SpecError if a file cannot be written, before hours of measuring."""
    try:
        Path(path).open("a", encoding="utf-8").close()
    except OSError as error:
        raise SpecError(f"{option} {path}: cannot be written: {error.strerror or error}; name another file") from error


def _suites(suite: str) -> tuple[str, ...]:
    """Names of the suites to run."""
    names = SUITES if suite == ALL else (suite,)
    if unknown := [name for name in names if name not in SUITES]:
        raise SpecError(f"suite {unknown[0]!r} does not exist; write one of {', '.join(SUITES)} or {ALL}")
    return names


def _arms(arms: str | None) -> tuple[str, ...]:
    """Names of the arms to run."""
    chosen = BARE_ARMS if arms is None else tuple(name.strip() for name in arms.split(","))
    if wrong := [name for name in chosen if name not in ARMS]:
        raise SpecError(f"--arms: arm {wrong[0]!r} does not exist; write some of {', '.join(ARMS)}")
    return chosen


def _given(items: Sequence[str], model: str) -> dict[str, Any]:
    """Values of `--engine-arg`; neither they nor the model's source may hold a secret."""
    given = {}
    for item in items:
        name, separator, value = item.partition("=")
        if not separator or not name:
            raise SpecError(f"--engine-arg {item}: write name=value, such as --engine-arg max_num_seqs=128")
        try:
            given[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise SpecError(f"--engine-arg {item}: the value is not YAML: {error}") from error
    for path, message in secrets({"model": {"source": model, "engine_args": given}}):
        raise SpecError(f"{path.removeprefix('model.')}: {message}")
    return given


@contextmanager
def _folder(keep: str | None) -> Iterator[Path]:
    """Folder for the arms' inputs and outputs; a temporary folder is removed at the end."""
    if keep is not None:
        folder = Path(keep).absolute()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if any(folder.iterdir()):
                raise SpecError(f"--keep {keep}: the folder is not empty; name a new one")
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise SpecError(
                f"--keep {keep}: cannot be written: {error.strerror or error}; name another folder"
            ) from error
        yield folder
        return
    with temporary_files():
        folder = Path(tempfile.mkdtemp(prefix="magbatch-bench-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
