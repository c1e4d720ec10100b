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

Every file of the package, with the first sentence of its docstring. `make docs` writes this page again.
"""


def purpose(path: Path) -> str:
    """The first sentence of a module's docstring, as one line."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(docstring.partition("\n\n")[0].split())
    sentence = re.split(r"(?<=[.!?])\s+(?=[A-Z`])", paragraph)[0]
    return sentence.replace("|", "\\|")


def table(folder: Path) -> str:
    """A table of the modules of a folder, without `__init__.py`."""
    modules = [path for path in sorted(folder.glob("*.py")) if path.name != "__init__.py"]
    lines = [f"| [{path.name}]({path.relative_to(PACKAGE).as_posix()}) | {purpose(path)} |" for path in modules]
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
