"""Output of `plan`: what a run would do. The most important lines come last."""

import json
from typing import TYPE_CHECKING, Any

from magbatch.cli.command_line import again, command, shown_path
from magbatch.cli.show import say, say_indented
from magbatch.counts import counted

if TYPE_CHECKING:
    from magbatch.jobs.preview import Preview

SAMPLE_ROWS = 20  # rows of the trial that is suggested if the first row would fail


def print_plan(shown: "Preview", *, all_settings: bool) -> None:
    """Print a plan for a person.

    Args:
        shown: The plan.
        all_settings: Whether to print settings that have their default value.
    """
    from magbatch.jobs.preview import FirstFailure, OutputContent, not_default

    low, high = shown.rows_in_a_shard
    size = counted(high, "row") if low == high else f"{low} to {counted(high, 'row')}"
    rows, files = counted(shown.rows, "row"), counted(shown.files, "file")
    say(f"{shown.job}: {rows} in {files} -> {counted(shown.shards, 'shard')} of {size}")
    for shard in shown.shard_list or []:
        say(f"shard {shard.shard}: {counted(shard.rows, 'row')} of {', '.join(shard.files)}")
    say(f"output: {shown.output} ({_output_state(shown)})")
    if all_settings:
        say("settings:")
        _print_settings(shown.settings, "  ")
    elif shown.settings:
        say("settings that differ from their default (--settings shows all):")
        _print_settings(not_default(shown.settings), "  ")
    if shown.output_state.state != OutputContent.COMPLETE:
        _print_first_prompt(shown)
    for problem in shown.bad_files:
        say(f"bad file, becomes a dead letter: {problem}")
    for text in shown.notes:
        say(f"note: {text}")
    if isinstance(shown.first, FirstFailure):
        say(f"WARNING: the first row would become a dead letter: {shown.first.code}, row {shown.first.row_id}:")
        say_indented([
            shown.first.error,
            "if other rows are like it, correct the spec or the input first; a dead letter does not stop other rows",
        ])  # fmt: skip
        say("Look at that row first.")


def after_plan(shown: "Preview", spec: str, overrides: list[str] | None, limit: int | None, *, scheduled: bool) -> str:
    """The command that follows a plan.

    Args:
        shown: The plan.
        spec: File of the spec.
        overrides: Values of `--set`.
        limit: Value of `--limit`.
        scheduled: Whether the job runs by its schedule only.
    """
    from magbatch.jobs.preview import FirstFailure, OutputContent

    if shown.output_state.state == OutputContent.COMPLETE:
        return command("verify", shown_path(shown.output))
    if scheduled:
        return again("schedule tick", spec, overrides)
    if isinstance(shown.first, FirstFailure) and limit is None:
        return again("run", spec, overrides, SAMPLE_ROWS)
    return again("run", spec, overrides, limit)


def _output_state(shown: "Preview") -> str:
    """State of the output, in words."""
    from magbatch.jobs.preview import OutputContent

    state = shown.output_state
    match state.state:
        case OutputContent.COMPLETE:
            return f"complete already: {counted(state.answered, 'row')} answered, {state.failed:,} failed"
        case OutputContent.BEGUN:
            return f"{state.done:,} of {counted(shown.rows, 'row')} are done; a run continues with the rest"
        case OutputContent.REPLACED:
            return "holds a job of another spec without any answer; this job replaces it"
    return "new"


def _print_first_prompt(shown: "Preview") -> None:
    from magbatch.jobs.preview import FirstPrompt

    first = shown.first
    if first is None:
        say("first prompt: none, the input has no rows")
    elif isinstance(first, FirstPrompt):
        groups = f", page group 1 of {first.parts}" if first.parts > 1 else ""
        size = f"{counted(first.tokens, 'token')}, {counted(first.images, 'image')}"
        say(f"first prompt ({size}{groups}, row {first.row_id}):")
        say_indented(f"| {line}" for line in first.text.splitlines())


def _print_settings(node: dict[str, Any], indent: str) -> None:
    for name, value in node.items():
        if isinstance(value, dict) and value:
            say(f"{indent}{name}:")
            _print_settings(value, indent + "  ")
        else:
            say(f"{indent}{name}: {json.dumps(value, ensure_ascii=False)}")
