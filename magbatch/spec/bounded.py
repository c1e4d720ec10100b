"""A new answer's JSON Schema, checked in a process that may die: no schema holds up the command or the scheduler.

The grammar's library has no bound of its own on time: a list of a thousand million items takes it minutes.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

from magbatch.errors import SandboxError
from magbatch.sandbox import Sandbox
from magbatch.spec.grammar import check_answerable, check_json
from magbatch.spec.schema import checked_schema

TIMEOUT_S = 20.0  # of one schema; usual ones take milliseconds
MEMORY_MB = 1024  # of one schema; the largest that the library takes need about 100


def check_new(schema: dict[str, Any], *, written: bool) -> None:
    """Hold a schema against what an answer can be, as `checked_schema` and `check_answerable` do.

    Args:
        schema: What may be a JSON Schema.
        written: A person wrote it as YAML or JSON; no program made it.

    Raises:
        ValueError: Where it is wrong, or that it takes too much time or memory.
        ClusterError: No process can be started here.
    """
    check_json(schema)
    with closing(Sandbox(f"{__name__}:handler", {}, timeout_s=TIMEOUT_S, memory_mb=MEMORY_MB)) as sandbox:
        try:
            replies = sandbox({"written": written}, json.dumps(schema).encode())
        except SandboxError as error:
            raise ValueError(f"the schema is too large for the engine's grammar: {error}; make it smaller") from error
    if replies:
        raise ValueError(replies[0].head["wrong"])


def handler(setup: dict[str, Any]) -> Callable[[dict[str, Any], bytes], Iterator[tuple[dict[str, Any], None]]]:
    """What the process does: one reply, with what is wrong; none if nothing is."""
    import jsonschema  # noqa: F401 - before memory is bounded
    import llguidance  # noqa: F401

    def check(head: dict[str, Any], body: bytes) -> Iterator[tuple[dict[str, Any], None]]:
        try:
            check_answerable(checked_schema(json.loads(body)), written=head["written"])
        except ValueError as error:
            yield {"wrong": str(error)}, None

    return check
