"""The check of a new answer schema, in a process with limits: no schema can block the command or the scheduler.

The grammar's library has no time limit: an array of a thousand million items takes minutes.
"""

import json
from contextlib import closing
from typing import Any

from magbatch.errors import SandboxError
from magbatch.sandbox import Handler, Replies, Sandbox
from magbatch.spec.grammar import check_answerable, check_json
from magbatch.spec.schema import checked_schema

TIMEOUT_S = 20.0  # time limit of one schema; usual schemas take milliseconds
MEMORY_MB = 1024  # memory limit of one schema; the largest accepted schemas need about 100 MB


def check_new(schema: dict[str, Any], *, written: bool, timeout_s: float = TIMEOUT_S) -> None:
    """Check a schema by `checked_schema` and `check_answerable`.

    Args:
        schema: The candidate for a JSON Schema.
        written: Whether a person wrote the schema. False: a program made it.
        timeout_s: Time limit of the check, in seconds.

    Raises:
        ValueError: The schema is wrong, or its check takes too much time or memory.
        ClusterError: No process can be started on this machine.
    """
    check_json(schema)
    with closing(Sandbox(f"{__name__}:handler", {}, timeout_s=timeout_s, memory_mb=MEMORY_MB)) as sandbox:
        try:
            replies = sandbox({"written": written}, json.dumps(schema).encode())
        except SandboxError as error:
            raise ValueError(f"the schema is too large for the engine's grammar: {error}; make it smaller") from error
    if replies:
        raise ValueError(replies[0].head["wrong"])


def handler(setup: dict[str, Any]) -> Handler:
    """Request handler of the process: replies once with the mistake, or not at all if the schema is right."""
    import jsonschema  # noqa: F401 - loaded before the memory limit is set
    import llguidance  # noqa: F401

    def check(head: dict[str, Any], body: bytes) -> Replies:
        try:
            check_answerable(checked_schema(json.loads(body)), written=head["written"])
        except ValueError as error:
            yield {"wrong": str(error)}, None

    return check
