"""The engine arguments of `engine: fake`, the scripted engine, and their check."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from magbatch.spec.mistakes import Written, field_mistakes


class Rule(BaseModel):
    """A scripted answer for prompts that contain a text."""

    model_config = ConfigDict(extra="forbid")

    contains: Annotated[str, Field(description="Text that the decoded prompt must contain.")]
    do: Annotated[
        Literal["answer", "die", "hang", "stall", "freeze", "block", "reject", "never_close", "no_think"],
        Field(
            description="Behaviour. `die` ends the engine. `hang` stops one row after its first token, `stall` before "
            "it. `freeze` stops all rows. `block` stops the whole process: its event loop and every thread."
        ),
    ] = "answer"
    tokens: Annotated[
        int | None, Field(ge=1, description="Length of the reasoning, in tokens. null: `tokens` of the engine.")
    ] = None
    answer: Annotated[
        str | list[str] | None,
        Field(description="The answer. A list: the second item answers a second request for the same row."),
    ] = None


class FakeArgs(BaseModel):
    """Engine arguments of `engine: fake`."""

    model_config = ConfigDict(extra="forbid")

    max_model_len: Annotated[int, Field(description="Context length in tokens, as in vLLM.")]
    max_num_seqs: Annotated[int, Field(ge=1, description="Rows answered at the same time.")]
    token_s: Annotated[float, Field(ge=0, description="Time for each token of a sample, in seconds.")] = 0.0
    start_s: Annotated[float, Field(ge=0, description="Duration of the start, in seconds.")] = 0.0
    start_says: Annotated[str | None, Field(description="Text printed to stderr at the start.")] = None
    start_error: Annotated[
        str | None, Field(description="Message with which the start fails. null: the start succeeds.")
    ] = None
    tokens: Annotated[int, Field(ge=1, description="Length of the reasoning, in tokens.")] = 16
    script: Annotated[
        list[Rule], Field(description="Scripted answers. The first rule that matches a prompt applies.")
    ] = []
    journal: Annotated[
        str | None, Field(description="Local file that gets a line with the row id for each request. null: no file.")
    ] = None


def fake_mistakes(args: dict[str, Any], written: Written) -> list[str]:
    """Describe each wrong argument in one line, `name: mistake`.

    Args:
        args: Value of `model.engine_args`.
        written: See `Written`; takes paths below `model.engine_args`.
    """
    try:
        FakeArgs.model_validate({"max_model_len": 1, "max_num_seqs": 1} | args)
    except ValidationError as error:
        return field_mistakes(error, FakeArgs, written)
    return []
