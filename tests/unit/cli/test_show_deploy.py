"""Rendered files are printed whole, or named with the commands that use them."""

import pytest

from magbatch.cli.show_deploy import print_files, print_written


def test_files_are_printed_as_one_document_each(capsys: pytest.CaptureFixture[str]) -> None:
    print_files({"a.yaml": "a: 1\n", "b.yaml": "b: 2\n"})
    assert capsys.readouterr().out == "# a.yaml\na: 1\n---\n# b.yaml\nb: 2\n"


def test_written_files_are_named_with_what_follows(capsys: pytest.CaptureFixture[str]) -> None:
    print_written("job.yaml", "aws", "out", ["a.yaml"], ["ray up out/a.yaml"])
    assert capsys.readouterr().out == "job.yaml: 1 file for aws in out\n  a.yaml\nNext: ray up out/a.yaml\n"
