"""The READMEs: specs that run, commands that exist, links that lead somewhere, and tables that are complete."""

import ast
import re
from collections.abc import Iterator
from datetime import datetime
from functools import cache
from pathlib import Path

import click
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
import yaml
from support.files import PAGE
from typer.testing import CliRunner

from magbatch.cli.app import CRASHED, app
from magbatch.cli.show_remote import print_cancelled, print_jobs, print_submitted
from magbatch.cli.show_status import print_status
from magbatch.cli.target import Target
from magbatch.errors import ErrorCode, JobError, Step
from magbatch.fleet.placement import unplaced
from magbatch.guard import WHY_FD
from magbatch.jobs.status import JobState, JobStatus, LastRun
from magbatch.ledger.layout import NAMED_FILES
from magbatch.ledger.manifest import Manifest
from magbatch.remote import ClusterJob
from magbatch.report.progress import Eta
from magbatch.rows import ReasoningStatus
from magbatch.schema import DOCUMENT_FIELDS, ERROR_FIELDS, RESULT_FIELDS, TOKEN_FIELDS
from magbatch.spec import FREE_FIELDS, ReplicasSpec, parse

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "magbatch"
README = (ROOT / "README.md").read_text(encoding="utf-8")
INSIDE = (PACKAGE / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
OUTPUT = (ROOT / "jobs" / "OUTPUT.md").read_text(encoding="utf-8")
PAGES = sorted(
    path
    for pattern in ("*.md", "jobs/*.md", "deploy/*.md", "monitoring/*.md", "tests/*.md", "magbatch/**/*.md")
    for path in ROOT.glob(pattern)
)
MOST_LINES = 180
MINIMAL = {
    "name": "a",
    "model": {"source": "builtin:tiny"},
    "input": {"path": "a.parquet", "columns": {"prompt": "question"}},
    "output": {"path": "out/a"},
}
UNDER_ROOTS = ("magbatch/", "jobs/", "deploy/", "monitoring/", "tests/")


def each_page() -> list[object]:
    return [pytest.param(path, id=path.relative_to(ROOT).as_posix()) for path in PAGES]


def blocks(text: str, language: str) -> list[str]:
    """Code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def section(text: str, heading: str) -> str:
    """The text below a heading, up to the next heading of its level or above."""
    level = heading.partition(" ")[0]
    found = re.search(rf"^{re.escape(heading)}\n(.*?)(?=^#{{1,{len(level)}}} |\Z)", text, re.DOTALL | re.MULTILINE)
    assert found is not None, f"no section {heading!r}"
    return found.group(1)


def first_cells(text: str) -> set[str]:
    """Code spans in the first cells of a section's tables."""
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    return {span for row in rows for span in re.findall(r"`([^`]+)`", row.split("|")[1])}


@cache
def anchors(path: Path) -> set[str]:
    """Names of a page's headings, as GitHub makes them."""
    headings = re.findall(
        r"^#+ (.+)$", re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.S | re.M), re.M
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_front_page_is_short() -> None:
    assert len(README.splitlines()) <= MOST_LINES


@pytest.mark.parametrize("path", each_page())
def test_links_lead_to_files_and_headings(path: Path) -> None:
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+://", target):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("path", each_page())
def test_files_that_are_named_are_there(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    spans = re.findall(r"`([\w./-]+\.(?:py|yaml|yml|md|sh|txt|json|toml))`", text)
    tests = {file.name for file in (ROOT / "tests").rglob("*.py")}
    missing = [name for name in spans if name.startswith(UNDER_ROOTS) and not (ROOT / name).exists()]
    missing += [name for name in spans if re.fullmatch(r"test_\w+\.py", name) and name not in tests]
    folder = path.parent
    missing += [
        name for name in spans if re.match(r"(unit|integration|support)/", name) and not (folder / name).exists()
    ]
    assert path.name == "CHANGELOG.md" or missing == []


def subclasses(kind: type) -> set[type]:
    """A class and all classes below it."""
    return {kind, *(found for child in kind.__subclasses__() for found in subclasses(child))}


@cache
def commands() -> dict[str, set[str]]:
    """Every command by its full name, with its options."""

    def walk(command: click.Command, name: str) -> dict[str, set[str]]:
        options = {option for one in command.params for option in [*one.opts, *one.secondary_opts] if option[0] == "-"}
        found = {name: options | {"--help", "--version"}}
        for below, child in getattr(command, "commands", {}).items():
            found |= walk(child, f"{name} {below}")
        return found

    return walk(typer.main.get_command(app), "magbatch")  # type: ignore[arg-type]


def invoked(text: str) -> list[str]:
    """Commands of the package in console blocks, and in code spans that begin with one."""
    lines = [line for block in blocks(text, "console") for line in block.replace("\\\n", " ").splitlines()]
    found = [line[2:].partition(" #")[0] for line in lines if line.startswith("$ ")]
    found += re.findall(r"`([^`\n]*\bmagbatch [^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M))
    parts = [part.strip() for line in found for part in line.split("&&")]
    runs = [re.match(r"(?:\w+=\S+ )?(?:uv run (?:--no-sync )?)?(magbatch (?!…).*)", part) for part in parts]
    return [run.group(1) for run in runs if run is not None]


@pytest.mark.parametrize("path", each_page())
def test_commands_and_their_options_exist(path: Path) -> None:
    wrong = []
    for line in invoked(path.read_text(encoding="utf-8")):
        words = line.split()
        name = "magbatch"
        for word in words[1:]:
            if f"{name} {word}" not in commands():
                break
            name = f"{name} {word}"
        options = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        if (name == "magbatch" and not options) or options - commands()[name]:
            wrong.append(line)
    assert path.name == "CHANGELOG.md" or wrong == []


def test_every_command_has_its_line_on_the_front_page() -> None:
    table = section(README, "## Commands")
    leaves = {name for name in commands() if not any(other.startswith(f"{name} ") for other in commands())}
    said = " ".join(re.findall(r"`([^`]+)`", table))
    assert sorted(name for name in leaves if name.split()[-1] not in said) == []


def test_the_short_spec_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (spec,) = blocks(section(README, "## Your own job"), "yaml")
    (tmp_path / "job.yaml").write_text(spec, encoding="utf-8")
    pq.write_table(pa.table({"id": [1, 2], "question": ["What is 1 + 2?", "2 + 3 = ?"]}), tmp_path / "my-rows.parquet")
    monkeypatch.chdir(tmp_path)
    for engine in ("vllm", "fake"):
        done = CliRunner().invoke(app, ["plan", "job.yaml", "--set", f"model.engine={engine}"])
        assert done.exit_code == 0, done.output
    assert "my-answers: 2 rows in 1 file " in done.output


@pytest.mark.parametrize("path", each_page())
def test_parts_of_specs_fit_a_spec(path: Path) -> None:
    for block in blocks(path.read_text(encoding="utf-8"), "yaml"):
        part = yaml.safe_load(block)
        for key, value in MINIMAL.items():
            part[key] = value | part.get(key, {}) if isinstance(value, dict) else part.get(key, value)
        parse(yaml.safe_dump(part))


def test_every_option_of_deploy_render_is_explained() -> None:
    page = (ROOT / "deploy" / "README.md").read_text(encoding="utf-8")
    common = {"--set", "--help", "--version"}
    assert first_cells(section(page, "## Options")) == commands()["magbatch deploy render"] - common


def test_the_line_about_missing_devices_is_the_printed_one() -> None:
    page = (ROOT / "deploy" / "README.md").read_text(encoding="utf-8")
    assert unplaced(ReplicasSpec(gpus=1), {"CPU": 2.0}, {"CPU": 1.0}) in page.splitlines()


def test_a_running_job_is_shown_as_it_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    page, *_ = blocks((ROOT / "monitoring" / "README.md").read_text(encoding="utf-8"), "console")
    run = LastRun(True, 1.0, "vm", 32677, 21.5, 2042.0, 0, 1, 0, Eta(9.0, 8.0, 9.0), 65.0, 0.04, "USD", {})
    output = "out/receipts"
    state = JobStatus(
        "receipts", output, JobState.RUNNING, False, 500, 330, 330, 0, 34, 22, None, None, None, None, run
    )
    print_status(state, Target(output, output))
    printed = capsys.readouterr().out.splitlines()
    assert printed[:-1] == [line for line in page.splitlines() if not line.startswith(("$ ", "Next: "))]


def test_the_jobs_of_a_cluster_are_shown_as_they_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    address, output = "http://127.0.0.1:8265", "/srv/team/out/receipts"
    local = ["/srv/team/jobs/data/receipts.parquet", output]
    (page,) = [
        block
        for block in blocks((ROOT / "deploy" / "README.md").read_text(encoding="utf-8"), "console")
        if "magbatch cancel" in block
    ]
    first, second = re.findall(r"as (receipts-\w+)", page)
    times = [datetime.fromisoformat(f"{time}+00:00") for time in re.findall(r"\d{4}-\d\d-\d\d [\d:]+", page)]
    pending = ClusterJob(second, "receipts", "pending", output, "", times[0], None, "", None)
    stopped = ClusterJob(first, "receipts", "stopped", output, "", times[1], times[2], "", None)
    print_submitted(first, "receipts", output, address, local, as_json=False)
    print_cancelled(stopped, address, was_over=False)
    print_submitted(second, "receipts", output, address, [], as_json=False)
    print_jobs([pending, stopped], address)
    printed = capsys.readouterr().out
    assert printed == "".join(line for line in page.splitlines(keepends=True) if not line.startswith("$ "))


def test_every_environment_variable_is_explained() -> None:
    told = first_cells(section((ROOT / "deploy" / "README.md").read_text(encoding="utf-8"), "## Environment variables"))
    source = "".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py") if path.parent.name != "bench")
    read = set(re.findall(r"\bMAGBATCH_[A-Z_]+\b", source))
    assert read - {WHY_FD} == {name for name in told if name.startswith("MAGBATCH_")}


def test_every_field_that_may_change_is_listed() -> None:
    text = section((ROOT / "jobs" / "README.md").read_text(encoding="utf-8"), "## Running the same job again")
    names = {path.rpartition(".")[2] for path in FREE_FIELDS if not path.startswith("model.")}
    assert sorted(name for name in names if not re.search(rf"`(?:\w+\.)?{name}`", text)) == []


def test_every_exit_code_is_explained() -> None:
    kinds = {kind.exit_code for kind in subclasses(JobError)} | {CRASHED}
    rows = re.findall(r"^\| (\d) \|", section(README, "## What comes out"), re.MULTILINE)
    assert {int(row) for row in rows} == kinds | {0}


def test_every_error_code_is_explained() -> None:
    assert first_cells(section(OUTPUT, "## Error codes")) == {code.value for code in ErrorCode}


def test_every_column_is_explained() -> None:
    results = first_cells(section(OUTPUT, "## Columns of `results/`"))
    statuses = {status.value for status in ReasoningStatus}
    assert results == {"row_id", "sample", *RESULT_FIELDS, *DOCUMENT_FIELDS} | statuses | {"reasoning_status"}
    errors = section(OUTPUT, "## Columns of `errors/`")
    assert first_cells(errors) == {"row_id", "answer", *ERROR_FIELDS, *TOKEN_FIELDS}
    assert all(f"`{step.value}`" in errors for step in Step)


def test_every_file_of_an_output_is_explained() -> None:
    named = re.findall(r"_magbatch/[\w.*-]+/?", OUTPUT)
    assert set(NAMED_FILES) <= set(named)
    source = "".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    written = set(re.findall(r"[\"`/](_magbatch/[a-z]+)", source)) - {
        "_magbatch/tmp",
        "_magbatch/staged",
        "_magbatch/watch",
    }
    assert sorted(name for name in written if not any(one.startswith(name) for one in named)) == []


def test_every_field_of_the_manifest_is_explained() -> None:
    text = section(OUTPUT, "## The manifest")
    source = ast.parse((PACKAGE / "ledger" / "manifest.py").read_text(encoding="utf-8"))
    (manifest,) = [node for node in source.body if isinstance(node, ast.ClassDef) and node.name == Manifest.__name__]
    (written,) = [node for node in manifest.body if isinstance(node, ast.FunctionDef) and node.name == "to_json"]
    keys = {
        key.value
        for node in ast.walk(written)
        if isinstance(node, ast.Dict)
        for key in node.keys
        if isinstance(key, ast.Constant)
    }
    assert len(keys) > 8
    assert sorted(key for key in keys if f"`{key}`" not in text) == []


def test_every_file_has_its_line() -> None:
    named = set(re.findall(r"^\| \[[^]]+\]\(([\w./]+)\)", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    files = {path.relative_to(PACKAGE) for path in PACKAGE.rglob("*") if path.is_file() and path.name != "__init__.py"}
    there = {path.as_posix() for path in files if path.parent.name != "__pycache__"}
    assert (there - named, named - there) == (set(), set()), "run make docs; other files than modules: files.OTHER"


def test_every_room_and_every_module_outside_has_its_line() -> None:
    told = first_cells(section(INSIDE, "## The rooms"))
    rooms = {f"{path.name}/" for path in PACKAGE.iterdir() if path.is_dir() and (path / "__init__.py").exists()}
    ground = {path.name for path in PACKAGE.glob("*.py") if path.name != "__init__.py"}
    assert told == rooms | ground


@cache
def defined(path: Path) -> set[str]:
    """Names that a file defines: functions, classes, `Class.member`, constants, and arguments of functions."""

    def names(body: list[ast.stmt], prefix: str = "") -> Iterator[str]:
        for node in body:
            if isinstance(node, ast.ClassDef):
                yield node.name
                yield from names(node.body, f"{node.name}.")
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield prefix + node.name
                yield from (argument.arg for argument in [*node.args.args, *node.args.kwonlyargs])
            elif isinstance(node, ast.Assign):
                yield from (prefix + target.id for target in node.targets if isinstance(target, ast.Name))
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                yield prefix + node.target.id

    return set(names(ast.parse(path.read_text(encoding="utf-8")).body))


@pytest.mark.parametrize("heading", ["## Where is …?", "## The way of a row"])
def test_each_name_is_in_a_file_that_its_row_links(heading: str) -> None:
    rows = [row for row in section(INSIDE, heading).splitlines() if row.startswith("| ")][1:]
    wrong = []
    for row in rows:
        files = [PACKAGE / name for name in re.findall(r"\]\(([\w/]+\.py)\)", row)]
        known = {name for file in files for name in defined(file)}
        # A field of the spec, such as `output.patience_s`, is an argument of the code that keeps it.
        spans = [span.rpartition(".")[2] if span[0].islower() else span for span in re.findall(r"`([^`]+)`", row)]
        wrong += [(row, span) for span in spans if span not in known]
        wrong += [(row, "no file")] if not files else []
    assert len(rows) > 8
    assert wrong == []


def test_each_name_in_a_recipe_is_in_a_file_of_its_step() -> None:
    steps = re.findall(r"^\d\. (.+)", section(CONTRIBUTING, "## Common changes"), re.MULTILINE)
    wrong = []
    for step in steps:
        spans = re.findall(r"`([^`]+)`", step)
        paths = [span for span in spans if re.fullmatch(r"[\w/]+\.py", span)]
        files = [(ROOT if path.startswith(UNDER_ROOTS) else PACKAGE) / path for path in paths]
        known = {name for file in files if file.exists() for name in defined(file)}
        wrong += [(step, span) for span in spans if known and re.fullmatch(r"[A-Z][\w.]*", span) and span not in known]
    assert len(steps) > 15
    assert wrong == []


SHOWN = [
    *PAGES, *(ROOT / "jobs").glob("*.yaml"), *(ROOT / "deploy").glob("*"), *(ROOT / "monitoring").rglob("*.*"),
    *(ROOT / "tests").rglob("*.py"), *(ROOT / "magbatch").rglob("*.py"),
]  # fmt: skip
# The two commands of the front page. The first of them also stands in the spec that it runs.
FIRST = ["uv run magbatch run jobs/quickstart.yaml", "uv run pytest"]


def test_only_the_first_commands_may_touch_the_environment() -> None:
    found = [
        (path.relative_to(ROOT).as_posix(), said[0].strip())
        for path in SHOWN
        if path.is_file() and path != Path(__file__)
        for said in re.finditer(r"uv\s+run\s+(magbatch|python|pytest)\b[^`#\n\"]*", path.read_text(encoding="utf-8"))
    ]
    assert [(where, said) for where, said in found if said not in FIRST] == []
    assert ("README.md", FIRST[0]) in found
    assert ("README.md", FIRST[1]) in found
