"""Each module of the package has its own test file, in the same folder: `fleet/pool.py` has `fleet/test_pool.py`."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
# Modules without a test file, each with the reason.
WITHOUT = {
    **dict.fromkeys(
        ["bench/bare_arm.py", "bench/hand_arm.py", "bench/raw_arm.py", "bench/ray_arm.py"],
        "a script that needs a real engine or the whole machine: integration/test_bench.py runs it",
    ),
    "engines/base.py": "records and the protocol of an engine, without behaviour",
    "fleet/nodes.py": "one call of Ray, whose result integration/test_cluster.py shows",
    "fleet/observer.py": "a protocol, without behaviour",
    "jobs/report_of_run.py": "jobs/test_complete.py reads the report that it makes",
    "replica/surroundings.py": "a record, without behaviour",
    "replica/timing.py": "durations, without behaviour",
}


def expected_files() -> dict[str, Path]:
    """Test file of each module that should have one, by the module's path below the package."""
    package = ROOT / "magbatch"
    modules = [path.relative_to(package) for path in package.rglob("*.py") if path.name != "__init__.py"]
    return {str(path): ROOT / "tests/unit" / path.parent / f"test_{path.name}" for path in modules}


def test_each_module_has_its_test_file() -> None:
    missing = {name for name, test in expected_files().items() if not test.exists()}
    assert sorted(missing - WITHOUT.keys()) == [], "add the file, or name the module with a reason in WITHOUT"


def test_no_exception_is_stale() -> None:
    files = expected_files()
    stale = [name for name in WITHOUT if name not in files or files[name].exists()]
    assert stale == [], "the module is gone, or has a test file now"
