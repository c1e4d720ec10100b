"""`bench` refuses a suite that does not exist before anything is measured."""

from support.commands import command, refused


def test_an_unknown_suite_is_one_clear_message() -> None:
    assert "suite 'nope' does not exist" in refused(command("bench", "nope"))
