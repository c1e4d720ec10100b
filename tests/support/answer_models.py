"""Pydantic models that a spec names as the schema of answers."""

from typing import Literal

from pydantic import BaseModel, Field


class Row(BaseModel):
    """A model with choices and a reference to itself."""

    paid: Literal["yes", "no"]
    known: Literal[True, "maybe"] = Field(default=True)
    of: "Row | None" = None


class NotJson(BaseModel):
    """A model without a JSON Schema."""

    call: type
