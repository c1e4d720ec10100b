"""List of the package's files, each with the first sentence of its docstring.

From a shell, to write `magbatch/FILES.md` again: `python tests/support/files.py`.
"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "magbatch"
PAGE = PACKAGE / "FILES.md"
HEAD = """# Files

Every file of the package: modules with the first sentence of their docstring, then the other files of a room.
`make docs` writes this page again.
"""
# Files that are not modules, and their purpose.
OTHER = {
    "FILES.md": "This page.",
    "README.md": "The way of a row, the rooms, the invariants, the promises, the glossary.",
    "bench/NOTES.md": "Log of measurements.",
    "bench/README.md": "Measured numbers, and how they are measured.",
    "py.typed": "Marker: type checkers of other projects use the package's types.",
    "report/report.html": "Template of a job's report, for `page.py`.",
    "schedule/README.md": "Schedules: what a tick does, promises, missed ticks.",
    "tiny/weights/MODEL_CARD.md": "The tiny model: what it can do, how it was trained.",
    "tiny/weights/consolidated.safetensors": "The tiny model's weights.",
}


def purpose(path: Path) -> str:
    """The first sentence of a module's docstring, as one line."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(docstring.partition("\n\n")[0].split())
    sentence = re.split(r"(?<=[.!?])\s+(?=[A-Z`])", paragraph)[0]
    return sentence.replace("|", "\\|")


def room(path: Path) -> Path:
    """The room of a path below the package; the package itself for a file outside rooms."""
    return PACKAGE / path.parts[0] if len(path.parts) > 1 else PACKAGE


def table(folder: Path) -> str:
    """A table of the files of a folder, without `__init__.py`: modules first, then the other files."""
    modules = [path for path in sorted(folder.glob("*.py")) if path.name != "__init__.py"]
    told = [(path.relative_to(PACKAGE), purpose(path)) for path in modules]
    told += [(Path(name), said) for name, said in OTHER.items() if room(Path(name)) == folder]
    lines = [f"| [{path.relative_to(folder.relative_to(PACKAGE))}]({path}) | {said} |" for path, said in told]
    return "\n".join(["| file | purpose |", "|---|---|", *lines])


def page() -> str:
    """The whole page as Markdown."""
    rooms = sorted(path.parent for path in PACKAGE.rglob("__init__.py") if path.parent != PACKAGE)
    parts = [HEAD, "## The ground\n", table(PACKAGE)]
    for room in rooms:
        parts += [f"\n## {room.relative_to(PACKAGE).as_posix()}/\n", f"{purpose(room / '__init__.py')}\n", table(room)]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)}: the list of files is up to date")
