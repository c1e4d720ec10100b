"""Imports go down only: read from the source, for every module on the disk, and from a fresh process."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.parsed import parsed
from support.small_job import SmallJob

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "magbatch"

# Floors of the package, the lowest first; `magbatch/README.md` shows the same list. A module imports only from its own
# room and from earlier lines. Rooms of one line never import each other. The docstring of a room has the order within.
FLOORS = [
    {"magbatch", "arrow_types", "errors", "counts", "environment", "process", "terminal"},
    {"schema", "guard", "sandbox", "temporary", "versions"},
    {"rows", "capture", "tiny"},
    {"spec"},
    {"answers", "storage"},
    {"documents", "model", "totals"},
    {"engines", "plan"},
    {"ledger", "pipeline"},
    {"replica"},
    {"fleet", "report"},
    {"jobs"},
    {"schedule", "remote", "deploy", "bench"},
    {"cli"},
    {"__main__"},
]
USE_CASES = {f"jobs.{name}" for name in ("run", "retry", "compact", "preview", "status")}
WITHIN = "Imports within:"
ONLY_HERE = {
    "ray": {
        "fleet.cluster",
        "fleet.dataset",
        "fleet.nodes",
        "fleet.placement",
        "fleet.pool",
        "fleet.ray_auth",
        "fleet.ray_private",
        "fleet.read_task",
        "fleet.sharing_client",
        "fleet.supervise",
        "fleet.worker",
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
    for node in ast.walk(parsed(path)):
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


def room(module: str) -> str:
    return module.partition(".")[0]


def floor(module: str) -> int:
    (found,) = (number for number, names in enumerate(FLOORS) if room(module) in names)
    return found


def order_within(name: str) -> list[set[str]]:
    """The modules of a room from the ground up, as its docstring has them: `Imports within: a, b < c.`"""
    docstring = ast.get_docstring(parsed(MODULES[name])) or ""
    _, found, order = docstring.partition(WITHIN)
    assert found, f"the docstring of {name}/__init__.py says no order: {WITHIN} a, b < c."
    return [set(step.replace(",", " ").split()) for step in order.strip().removesuffix(".").split("<")]


ROOMS = sorted({room(module) for module in MODULES if "." in module})


def test_the_source_is_read() -> None:
    assert len(MODULES) > 20
    assert {"errors", "rows", "schema", "storage"} <= own(PACKAGE / "pipeline" / "write.py")
    assert "engines.fake" in own(PACKAGE / "engines" / "__init__.py")  # within a function
    assert "mypy_boto3_s3" in imports(PACKAGE / "storage" / "s3.py")  # under TYPE_CHECKING


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_its_place(module: str) -> None:
    assert any(room(module) in names for names in FLOORS), f"give {module} its place in FLOORS and magbatch/README.md"


def test_the_readme_shows_the_floors() -> None:
    (shown,) = re.findall(r"^```text\n(.*?)^```", (PACKAGE / "README.md").read_text(encoding="utf-8"), re.S | re.M)
    assert [set(line.replace(",", " ").split()) for line in shown.split("<")] == FLOORS


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_only(module: str) -> None:
    wrong = {name for name in own(MODULES[module]) if room(name) != room(module) and floor(name) >= floor(module)}
    assert not wrong, f"{module} may not import {sorted(wrong)}"


@pytest.mark.parametrize("name", ROOMS)
def test_imports_within_a_room_go_one_way(name: str) -> None:
    steps = order_within(name)
    number = {f"{name}.{module}": step for step, modules in enumerate(steps) for module in modules}
    assert set(number) == {module for module in MODULES if module.startswith(f"{name}.")}
    for module, step in number.items():
        wrong = {other for other in own(MODULES[module]) if other in number and number[other] >= step}
        assert not wrong, f"{module} may not import {sorted(wrong)}"


@pytest.mark.parametrize("module", sorted(USE_CASES))
def test_no_use_case_imports_another(module: str) -> None:
    assert not own(MODULES[module]) & (USE_CASES - {module})


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("pipeline.")])
def test_the_pipeline_knows_no_plan_and_no_ledger(module: str) -> None:
    assert not {name for name in own(MODULES[module]) if room(name) in {"plan", "ledger"}}


@pytest.mark.parametrize("module", MODULES)
def test_ray_and_vllm_are_imported_in_one_place_each(module: str) -> None:
    outside = {name.partition(".")[0] for name in imports(MODULES[module])}
    assert not {name for name, places in ONLY_HERE.items() if name in outside and module not in places}
    assert "torch" not in outside or module.startswith("tiny.")


def private_names(path: Path) -> set[str]:
    """Private modules of Ray that a file imports, and private attributes of other objects than its own."""
    found = {name for name in imports(path) if name.startswith("ray.") and "._" in name}
    for node in ast.walk(parsed(path)):
        if not isinstance(node, ast.Attribute) or not node.attr.startswith("_") or node.attr.endswith("__"):
            continue
        if not (isinstance(node.value, ast.Name) and node.value.id in {"self", "cls", "os"}):
            found.add(node.attr)
    return found


@pytest.mark.parametrize("module", sorted(ONLY_HERE["ray"]))
def test_private_names_of_ray_stand_in_one_file(module: str) -> None:
    found = private_names(MODULES[module])
    if module == "fleet.ray_private":
        assert {"ray._private.state", "_topology"} <= found
    else:
        assert not found, "give it a function in fleet/ray_private.py, and a name in its lists"


@pytest.mark.parametrize(("name", "places"), ONLY_HERE.items())
def test_the_one_place_is_there(name: str, places: set[str]) -> None:
    for place in places:
        assert name in {found.partition(".")[0] for found in imports(MODULES[place])}


# What a fresh process loads.

HEAVY = {"torch", "ray", "vllm", "pyarrow", "mistral_common", "boto3", "cv2", "numpy", "transformers"}


def loaded(code: str) -> set[str]:
    """The top-level modules that are there after some code, in a process of its own."""
    names = "sorted(set(name.partition('.')[0] for name in sys.modules))"
    # As the command does, the process skips the interpreter's teardown, where native thread pools can abort.
    script = f"import os, sys\n{code}\nprint('loaded:', *{names}, flush=True)\nos._exit(0)"
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


PICTURES_AND_NETWORK = {"cv2", "PIL", "httpx"}
ENGINES = {"torch", "ray", "vllm", "transformers"}


@pytest.mark.parametrize("words", [("status",), ("status", "--json")])
def test_status_loads_no_engine_and_no_picture_library(job: SmallJob, words: tuple[str, ...]) -> None:
    job.ask(2)
    job.answer()
    job.finalise()
    Path(job.root, "job.yaml").write_text(job.spec().to_yaml(), encoding="utf-8")
    for named in (job.output, f"{job.root}/job.yaml"):
        found = loaded(command(*words, named))
        assert "pyarrow" in found, "the output was read"
        assert not found & (PICTURES_AND_NETWORK | ENGINES)


def test_a_list_of_schedules_loads_no_engine_and_no_picture_library(tmp_path: Path) -> None:
    assert not loaded(command("schedule", "list", str(tmp_path))) & (PICTURES_AND_NETWORK | ENGINES)


def test_every_commands_help_loads_nothing_heavy() -> None:
    """All in one process: what any of them loads is there at the end."""
    names = ("verify", "retry", "compact", "submit", "jobs", "logs", "cancel", "resume", "bench", "status")
    groups = (("schedule", "run"), ("schedule", "tick"), ("schedule", "list"), ("deploy", "render"))
    code = "".join(command(*words, "--help") for words in (*((name,) for name in names), *groups))
    assert not loaded(code) & (HEAVY | PICTURES_AND_NETWORK)
