"""Numbers of a benchmark: medians, ratios, settings that differ, targets."""

import json
from typing import Any

import pytest

from magbatch.bench.arms import Run
from magbatch.bench.measure import MAGBATCH, RAW, RAY, RAY_BEST, Suite, same_settings
from magbatch.bench.process import Machine
from magbatch.bench.report import Target, document, markdown, targets
from magbatch.errors import BenchError

MACHINE = Machine("builtin:tiny", {"max_num_seqs": 64}, 0, (0,), (1,))
SETTINGS = {"scheduler_config.max_num_seqs": 64, "cache_config.block_size": 128}


def run(arm: str, round_: int, seconds: float, **settings: Any) -> Run:
    return Run(arm, round_, seconds, 100, 6000, 40.0 + round_, settings=SETTINGS | settings)


def suite(name: str = "text") -> Suite:
    found = Suite(name, 100, 6000, 9000, 400, notes=["ray.data.llm best: batches of 16 rows"])
    seconds = {RAW: [1.0, 2.0, 4.0], MAGBATCH: [1.25, 2.0, 4.4], RAY: [2.0, 4.0, 5.0]}
    for arm, all_of_them in seconds.items():
        found.runs += [run(arm, number, each) for number, each in enumerate(all_of_them, start=1)]
    found.runs.append(run(f"{RAY} 16 x 8", 0, 0.001))
    return found


def test_medians_and_ratios_are_of_rounds_alone() -> None:
    found = suite()
    assert found.median(RAW) == 3000
    assert found.ratio(MAGBATCH, RAW) == pytest.approx(4.0 / 4.4)  # pairs: 0.8, 1.0, 0.909
    assert found.ratio(MAGBATCH, RAY) == pytest.approx(1.6)  # pairs: 1.6, 2.0, 1.136
    assert found.ratio(MAGBATCH, RAY_BEST) is None


def test_the_table_shows_every_run_and_whether_targets_are_met() -> None:
    found = suite()
    text = markdown([found], targets(found), MACHINE)
    assert "| magbatch | 3,000 | 4,800 3,000 1,364 | 50.0 | 0.91 | 1.60 |" in text
    assert "| raw | 3,000 | 6,000 3,000 1,500 | 50.0 | 1.00 | 2.00 |" in text
    assert "| text: magbatch / raw, tokens/s | 0.909 | ≥ 0.97 | missed |" in text
    assert "| text: magbatch / ray.data.llm, tokens/s | 1.600 | ≥ 1.3 | met |" in text
    assert "16 x 8 |" not in text
    assert "ray.data.llm best: batches of 16 rows" in text


@pytest.mark.parametrize(("device", "named"), [("NVIDIA H100 80GB HBM3", " on NVIDIA H100 80GB HBM3"), ("cpu", "")])
def test_the_table_names_the_gpu_that_the_engines_had(device: str, named: str) -> None:
    found = suite()
    for each in found.runs:
        each.settings["device"] = device
    assert f"**text**{named}: 100 rows, " in markdown([found], [], MACHINE)


def test_images_are_to_be_as_fast_as_raw() -> None:
    bounds = {one.what: one.bound for one in targets(suite("image"))}
    assert bounds["image: magbatch / raw, tokens/s"] == 1.0


@pytest.mark.parametrize(
    ("value", "least", "met"), [(0.98, True, True), (0.9799, True, False), (0.98, False, True), (0.981, False, False)]
)
def test_a_target_is_a_bound(value: float, least: bool, met: bool) -> None:
    assert Target("x", value, 0.98, least=least).met is met


@pytest.mark.parametrize(
    ("ray", "verdict"),
    [(1.2, "missed; raw itself 1.200"), (1.4, "missed"), (2.0, "met")],  # seconds of a round; raw takes 1.0
)
def test_a_missed_target_names_raw_where_it_misses_it_as_well(ray: float, verdict: str) -> None:
    found = Suite("text", 100, 6000, 9000, 400)
    found.runs = [run(RAW, 1, 1.0), run(MAGBATCH, 1, 1.1), run(RAY, 1, ray)]
    assert f"| text: magbatch / ray.data.llm, tokens/s | {ray / 1.1:.3f} | ≥ 1.3 | {verdict} |" in markdown(
        [found], targets(found), MACHINE
    )


def test_a_number_without_a_bound_is_shown_and_not_judged() -> None:
    one = Target("slots, raw", 0.996, None)
    assert one.met
    assert "| slots, raw | 0.996 | - | - |  |" in markdown([], [one], MACHINE)


def test_the_document_has_every_run_with_settings_machine_and_versions() -> None:
    found = suite()
    data = json.loads(json.dumps(document([found], targets(found), MACHINE)))
    (one,) = data["suites"]
    assert len(one["runs"]) == 10
    assert [each["kind"] for each in one["runs"]] == ["round"] * 9 + ["sweep"]
    assert one["engine_settings"] == SETTINGS
    assert one["ratios"]["magbatch / raw"] == pytest.approx(4.0 / 4.4)
    assert one["medians_tokens_per_s"][RAY] == 1500
    assert data["machine"]["engine_cores"] == [0]
    assert data["versions"].keys() >= {"magbatch", "ray", "pyarrow"}
    assert [target["met"] for target in data["targets"]] == [False, True]


def test_engines_that_differ_are_not_compared() -> None:
    runs = [run(RAW, 1, 1.0), run(RAY, 1, 1.0, **{"scheduler_config.max_num_seqs": 256, "extra.one": True})]
    with pytest.raises(BenchError) as refused:
        same_settings(runs)
    assert str(refused.value).splitlines()[1:] == [
        "  extra.one: None in raw, True in ray.data.llm",
        "  scheduler_config.max_num_seqs: 64 in raw, 256 in ray.data.llm",
    ]
    assert same_settings(runs[:1]) == SETTINGS
