"""The project's words: every docstring, comment and README keeps the rules that a machine can hold."""

import re
from pathlib import Path

import pytest
import yaml
from support.prose import MAX_WORDS, Fault, banned_in, faults, sentences, words

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "magbatch"
ROOMS = sorted(path for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__")
GROUND = sorted(PACKAGE.glob("*.py"))
TESTS = ROOT / "tests"
SAMPLES = {TESTS / "unit/test_prose.py"}  # faults on purpose
TEST_ROOMS = sorted(path for path in (TESTS / "unit").iterdir() if path.is_dir() and path.name != "__pycache__")
TEST_FILES = sorted({TESTS / "conftest.py", *(TESTS / "unit").glob("*.py")} - SAMPLES)
FOLDERS = [
    *(ROOT / name for name in ("deploy", "jobs", "monitoring")),
    *(TESTS / name for name in ("benchmarks", "integration", "support")),
    *TEST_ROOMS,
    *TEST_FILES,
]
READMES = [*ROOT.glob("*.md"), *ROOT.glob("tests/*.md"), PACKAGE / "README.md"]
COMMENTED = sorted(
    path
    for pattern in ("jobs/*.yaml", "deploy/*.sh", "deploy/Dockerfile*", "monitoring/**/*.yml", "Makefile", ".ci/run")
    for path in ROOT.glob(pattern)
)
RULES = sorted(path for path in ROOT.glob("monitoring/rules/*.yml") if path.name != "tests.yml")
PROMPT = "the others are asked about on their own"  # text that the model reads: a change of it would change answers


def comment_faults(path: Path) -> list[Fault]:
    """Banned words in the comments of a YAML file, a script, a Makefile or a Dockerfile."""
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
    comments = [(number, found.group(1)) for number, line in lines if (found := re.search(r"(?:^|\s)#\s+(.*)", line))]
    return [Fault(path, number, rule, text) for number, text in comments for rule in banned_in(text)]


def alert_faults(path: Path) -> list[Fault]:
    """Banned words and long sentences in the texts of alerts, which people read at night."""
    groups = yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]
    texts = [str(text) for group in groups for rule in group["rules"] for text in rule.get("annotations", {}).values()]
    found = []
    for text in texts:
        plain = re.sub(r"\{\{.*?\}\}", "X", text)
        found += [Fault(path, 0, rule, text) for rule in banned_in(plain)]
        found += [Fault(path, 0, "long", one) for one in sentences(plain) if words(one) > MAX_WORDS]
    return found


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=path.relative_to(ROOT).as_posix()) for path in [*ROOMS, *GROUND, *FOLDERS, *READMES]],
)
def test_the_prose_is_plain(path: Path) -> None:
    assert [str(fault) for fault in faults(path) if PROMPT not in fault.text] == []


@pytest.mark.parametrize("path", [pytest.param(path, id=path.relative_to(ROOT).as_posix()) for path in COMMENTED])
def test_comments_of_other_files_are_plain(path: Path) -> None:
    assert [str(fault) for fault in comment_faults(path)] == []


@pytest.mark.parametrize("path", [pytest.param(path, id=path.name) for path in RULES])
def test_texts_of_alerts_are_plain(path: Path) -> None:
    assert [str(fault) for fault in alert_faults(path)] == []


def test_the_check_sees_a_fault(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("The row stands beside the others.\n", encoding="utf-8")
    assert len(faults(page)) == 2
    script = tmp_path / "module.py"
    script.write_text('"""It is kept."""\n', encoding="utf-8")
    assert len(faults(script)) == 1
    settings = tmp_path / "job.yaml"
    settings.write_text("name: a  # but for this\n", encoding="utf-8")
    assert len(comment_faults(settings)) == 1
    rules = tmp_path / "rules.yml"
    rules.write_text("groups: [{rules: [{annotations: {summary: The job ended meanwhile}}]}]\n", encoding="utf-8")
    assert len(alert_faults(rules)) == 1
