"""Imports go down only: read from the source, for every module on the disk, and from a fresh process."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "magbatch"

# A module imports what stands in a line above its own, and what shares its line. `x` stands for all of x/.
LEVELS = [
    {"magbatch", "errors", "temporary", "capture", "guard", "environment", "counts", "terminal", "versions", "process"},
    {"sandbox"},
    {"rows"},
    {"spec"},
    {"storage", "model", "tiny", "answers", "documents", "totals"},
    {"plan", "engines"},
    {"ledger", "pipeline"},
    {"replica"},
    {"fleet", "report"},
    {"jobs"},
    {"schedule", "remote", "deploy", "bench"},
    {"cli"},
    {"__main__"},
]
ONLY_HERE = {
    "ray": {
        "fleet.cluster",
        "fleet.ray_auth",
        "fleet.supervise",
        "fleet.worker",
        "fleet.placement",
        "fleet.pool",
        "remote",
        "bench.ray_arm",
        "bench.hand_arm",
    },
    "vllm": {"engines.vllm", "engines.whole", "bench.raw_arm", "bench.hand_arm", "bench.probe"},
}  # and torch: nowhere but in the tiny model's making


def modules() -> dict[str, Path]:
    """Name below `magbatch` to file, for every module on the disk."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "magbatch"] = path
    return found


MODULES = modules()


def imports(path: Path) -> set[str]:
    """Everything that a file imports, wherever in it and under whatever condition, as dotted names."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where they lead"
            assert node.module is not None
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def own(path: Path) -> set[str]:
    """The modules of magbatch that a file imports, by their names below it."""
    below = {
        name.removeprefix("magbatch.") for name in imports(path) if name == "magbatch" or name.startswith("magbatch.")
    }
    return below & MODULES.keys()


def level(module: str) -> int:
    (found,) = (number for number, names in enumerate(LEVELS) if module.partition(".")[0] in names)
    return found


def test_the_source_is_read() -> None:
    assert len(MODULES) > 20
    assert {"errors", "rows", "storage"} <= own(PACKAGE / "pipeline" / "write.py")
    assert "engines.fake" in own(PACKAGE / "engines" / "__init__.py")  # within a function
    assert "mypy_boto3_s3" in imports(PACKAGE / "storage" / "s3.py")  # under TYPE_CHECKING


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_its_place(module: str) -> None:
    assert any(module.partition(".")[0] in names for names in LEVELS), (
        f"give {module} its place in design.md and LEVELS"
    )


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_only(module: str) -> None:
    up = {name for name in own(MODULES[module]) if level(name) > level(module)}
    assert not up, f"{module} is below {sorted(up)}"


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("pipeline")])
def test_no_step_imports_another(module: str) -> None:
    assert not {name for name in own(MODULES[module]) if name.startswith("pipeline")}


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("engines")])
def test_engines_know_nothing_of_the_steps(module: str) -> None:
    assert not {name for name in own(MODULES[module]) if name.startswith(("pipeline", "ledger", "replica"))}


@pytest.mark.parametrize("module", MODULES)
def test_ray_and_vllm_are_imported_in_one_place_each(module: str) -> None:
    outside = {name.partition(".")[0] for name in imports(MODULES[module])}
    assert not {name for name, places in ONLY_HERE.items() if name in outside and module not in places}
    assert "torch" not in outside or module.startswith("tiny.")


@pytest.mark.parametrize(("name", "places"), ONLY_HERE.items())
def test_the_one_place_is_there(name: str, places: set[str]) -> None:
    for place in places:
        assert name in {found.partition(".")[0] for found in imports(MODULES[place])}


# What a fresh process loads.

HEAVY = {"torch", "ray", "vllm", "pyarrow", "mistral_common", "boto3", "cv2", "numpy", "transformers"}


def loaded(code: str) -> set[str]:
    """The top-level modules that are there after some code, in a process of its own."""
    script = f"import sys\n{code}\nprint('loaded:', *sorted(set(name.partition('.')[0] for name in sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("loaded:"))
    return set(line.split()[1:])


def command(*arguments: str) -> str:
    return f"""
sys.argv = ["magbatch", *{arguments!r}]
from magbatch.cli.app import app
try:
    app()
except SystemExit as end:
    assert end.code in (0, None), end.code
"""


@pytest.mark.parametrize(
    "code",
    [
        "import magbatch",
        "import magbatch.cli.app",
        command("--help"),
        command("--version"),
        command("run", "--help"),
        command("plan", "--help"),
    ],
)
def test_help_answers_before_anything_heavy_is_loaded(code: str) -> None:
    found = loaded(code)
    assert "magbatch" in found
    assert not found & HEAVY


@pytest.mark.parametrize(
    "module",
    ["spec", "storage", "model", "pipeline.prompt", "pipeline.read", "pipeline.generate", "engines.fake", "plan.plan"],
)
def test_what_needs_no_cluster_and_no_engine_loads_none(module: str) -> None:
    found = loaded(f"import magbatch.{module}")
    assert "magbatch" in found
    assert not found & {"torch", "ray", "vllm", "transformers"}


def test_the_probe_sees_what_is_loaded() -> None:
    assert {"pyarrow", "numpy"} <= loaded("import pyarrow")
