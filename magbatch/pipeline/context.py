"""The facts about a job that every read task and every replica gets."""

from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from magbatch.spec import JobSpec
from magbatch.storage.columns import carried_fields


@dataclass(frozen=True, slots=True)
class JobContext:
    """A job as its read tasks and replicas see it.

    Attributes:
        spec: Spec of the job, checked.
        columns: Schema of the input columns that the job reads, with the plan's types.
        engine_hints: Engine arguments that suit the input, as the plan froze them.
        plan_id: Id of the plan; None for plans of versions that gave none.
    """

    spec: JobSpec
    columns: pa.Schema
    engine_hints: dict[str, Any] = field(default_factory=dict)
    plan_id: str | None = None

    @property
    def carry(self) -> pa.Schema:
        """Schema of the carried columns, by their names in the output."""
        return carried_fields(self.spec, self.columns)
