"""Paths below an output are written in one module."""

import ast
from pathlib import Path

import pytest
from support.parsed import parsed

from magbatch.ledger import layout
from magbatch.storage import disk

PACKAGE = Path(layout.__file__).parents[1]
# Modules of lower rooms, which cannot import the layout.
EXCEPTIONS = {
    "plan/plan.py": {"_magbatch"},  # message about a damaged plan
    "spec/secrets.py": {"_magbatch"},  # recognises a stored spec
    "storage/disk.py": {"_magbatch"},  # DRAFTS, which the layout imports
    "storage/tables.py": {"_magbatch", "results/*.parquet"},  # OUTPUT, which the layout imports; message of a refusal
}
BY_HAND = ("_magbatch", "results/*.parquet", "errors/*.parquet")


def texts(path: Path) -> set[str]:
    """Every string of a module but docstrings, with the fixed parts of formatted strings."""
    tree = parsed(path)
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    found = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in docs)
    return {node.value for node in found if isinstance(node.value, str)}


def by_hand(path: Path) -> set[str]:
    return {path_part for path_part in BY_HAND for text in texts(path) if path_part in text}


def test_no_other_module_writes_a_path_of_an_output_by_hand() -> None:
    found = {
        str(path.relative_to(PACKAGE)): names for path in sorted(PACKAGE.rglob("*.py")) if (names := by_hand(path))
    }
    assert found == EXCEPTIONS, "take the path from ledger/layout.py"


def test_texts_are_found_within_formatted_strings(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text('"""Writes _magbatch/x."""\nprint(f"{x}/results/*.parquet")\n', encoding="utf-8")
    assert by_hand(module) == {"results/*.parquet"}


@pytest.mark.parametrize(
    ("made", "path"),
    [
        (layout.SPEC, "_magbatch/spec.yaml"),
        (layout.PLAN, "_magbatch/plan.parquet"),
        (layout.MANIFEST, "_magbatch/manifest.json"),
        (layout.RECORD, "_magbatch/progress.json"),
        (layout.LEASES, "_magbatch/lease-"),
        (layout.TAKEN, "_magbatch/schedule/taken.parquet"),
        (layout.DRAFTS, disk.DRAFTS),
        (layout.results_glob("s3://b/out"), "s3://b/out/results/*.parquet"),
        (layout.errors_glob("/out"), "/out/errors/*.parquet"),
        (layout.page_of("/out"), "/out/_magbatch/report.html"),
        (layout.spec_of("/out"), "/out/_magbatch/spec.yaml"),
        (layout.retry_output("/out", 1), "/out/_magbatch/retries/0001"),
    ],
)
def test_paths_are_those_of_stored_outputs(made: str, path: str) -> None:
    assert made == path
