"""Sandbox processes that the small jobs of a test run share: a process takes half a second of CPU to start."""

import functools
import json
from collections.abc import Mapping
from typing import Any

from magbatch.sandbox import Reply, Sandboxes

POOLS = 8  # pools that are kept; the processes of a pool that is dropped end
USERS = (
    "magbatch.answers.checker.Sandboxes",
    "magbatch.documents.decoder.Sandboxes",
    "magbatch.documents.renderer.Sandboxes",
    "magbatch.spec.template.Sandboxes",
)


class SharedSandboxes:
    """The interface of `Sandboxes`, with one process for each handler, setup and memory limit.

    Args:
        count: Number of sandboxes that the job would have.
        handler: See `Sandbox`, as for all further arguments.
    """

    def __init__(
        self, count: int, handler: str, setup: Mapping[str, Any], *, timeout_s: float, memory_mb: int
    ) -> None:  # fmt: skip
        del count
        self._pool = functools.partial(_pool, handler, json.dumps(setup), memory_mb)
        self._timeout_s = timeout_s

    def __call__(self, head: Mapping[str, Any], body: bytes = b"", *, timeout_s: float | None = None) -> list[Reply]:
        """See `Sandbox.__call__`."""
        return self._pool()(head, body, timeout_s=self._timeout_s if timeout_s is None else timeout_s)

    def close(self) -> None:
        """Keep the process for the next job."""


@functools.lru_cache(POOLS)
def _pool(handler: str, setup: str, memory_mb: int) -> Sandboxes:
    return Sandboxes(1, handler, json.loads(setup), timeout_s=0.0, memory_mb=memory_mb)
