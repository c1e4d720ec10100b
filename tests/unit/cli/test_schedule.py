"""`schedule list` ends with 2 if a spec is wrong, and says how to add a schedule."""

from pathlib import Path

from typer.testing import CliRunner

from magbatch.cli.app import app


def test_schedules_that_cannot_be_listed_end_with_2_and_none_are_said(tmp_path: Path) -> None:
    nothing = CliRunner().invoke(app, ["schedule", "list", str(tmp_path)])
    assert (nothing.exit_code, "Next:" in nothing.output) == (0, False)
    assert 'no spec here has a schedule; add schedule: {cron: "0 6 * * *"} to one' in nothing.output
    (tmp_path / "wrong.yaml").write_text("name: [", encoding="utf-8")
    for extra in ([], ["--json"]):
        assert CliRunner().invoke(app, ["schedule", "list", str(tmp_path), *extra]).exit_code == 2
