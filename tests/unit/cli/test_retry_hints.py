"""Failed rows are asked again with a higher limit if a limit made them fail."""


def test_rows_that_a_limit_fails_are_asked_again_with_the_limit_named() -> None:
    from magbatch.cli.retry_hints import retry_command, retry_lines

    counts = {"missing_value": 1, "prompt_too_long": 2}
    raised = "magbatch retry /o --where prompt_too_long --set limits.max_prompt_tokens=N"
    assert retry_command("/o", counts) == raised
    assert retry_lines("/o", counts) == [
        "ask failed rows again: magbatch retry /o", f"raise limits.max_prompt_tokens: {raised}"
    ]  # fmt: skip
    assert retry_command("/o", {"missing_value": 3}) == "magbatch retry /o"
