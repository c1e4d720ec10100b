"""The engine arguments of `engine: fake`, the scripted engine."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class Rule(BaseModel):
    """What to do for prompts that contain a text."""

    model_config = ConfigDict(extra="forbid")

    contains: Annotated[str, Field(description="Text that the decoded prompt must hold.")]
    do: Annotated[
        Literal["answer", "die", "hang", "stall", "freeze", "block", "reject", "never_close", "no_think"],
        Field(
            description="`die` ends the engine; `hang` stops one row after its first token, `stall` before it, "
            "`freeze` all rows, `block` the whole process: its event loop and every thread."
        ),
    ] = "answer"
    tokens: Annotated[int | None, Field(ge=1, description="Length of the thinking in tokens.")] = None
    answer: Annotated[
        str | list[str] | None, Field(description="Its answer; a list: the second is given to who asks again.")
    ] = None


class FakeArgs(BaseModel):
    """The engine arguments of the fake."""

    model_config = ConfigDict(extra="forbid")

    max_model_len: Annotated[int, Field(description="As vLLM's.")]
    max_num_seqs: Annotated[int, Field(ge=1, description="Rows that it works on at once.")]
    token_s: Annotated[float, Field(ge=0, description="Seconds for each token of a sample.")] = 0.0
    start_s: Annotated[float, Field(ge=0, description="Seconds that the start takes.")] = 0.0
    start_says: Annotated[str | None, Field(description="Is printed to stderr when the start begins.")] = None
    start_error: Annotated[str | None, Field(description="Fails the start with these words.")] = None
    tokens: Annotated[int, Field(ge=1, description="Length of the thinking in tokens.")] = 16
    script: Annotated[list[Rule], Field(description="The first rule that fits a prompt decides.")] = []
    journal: Annotated[
        str | None, Field(description="A local file that gets one line for each request: its row id.")
    ] = None
