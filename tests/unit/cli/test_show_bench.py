"""A benchmark ends with the targets met, where its details are, and the command that follows."""

import pytest

from magbatch.bench.run import Outcome
from magbatch.cli.show_bench import print_bench


def test_a_benchmark_ends_with_its_targets(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = Outcome("| arm | rows/s |", {"targets": [{"bound": 1}, {"bound": 2}, {"bound": None}]}, missed=1)
    print_bench("text", outcome, 125.0, "bench.json", "kept")
    assert capsys.readouterr().out.splitlines() == [
        "| arm | rows/s |",
        "",
        "bench text: 1 of 2 targets met, in 2 minutes",
        "  every run: bench.json",
        "  files of the arms: kept",
        "Next: magbatch bench all --json bench.json",
    ]
