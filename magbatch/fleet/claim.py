"""A job's claim to devices of a shared cluster, and the ruling of the sharing actor on it."""

import os
from dataclasses import dataclass, fields
from typing import Any, Self

from magbatch.spec.sections_model import MAX_PRIORITY

# Bounds on one job's claim: a wrong claim must not reduce the shares of other jobs.
MAX_REPLICAS = 10_000  # largest number of replicas in a claim
MIN_SIZE, MAX_SIZE = 0.0001, 10_000.0  # devices of one replica; 0.0001 is the smallest fraction that Ray counts
MAX_NAME_CHARS = 4000
OWNERS_PRIORITY = "MAGBATCH_MAX_PRIORITY"


@dataclass(frozen=True, slots=True)
class Claim:
    """The devices that a job has and wants, as its driver sees it.

    Attributes:
        job: Name of the job; no two runs on a cluster have the same.
        kind: Device and allowed nodes, as a text; jobs of one kind share with each other.
        size: Devices of one replica.
        priority: Priority of the job; a higher one goes first.
        least: Replicas that the job keeps even if jobs of higher priority wait.
        holds: Replicas that have their devices.
        waiting: Replicas that Ray was asked for and that have no devices yet.
    """

    job: str
    kind: str
    size: float
    priority: int
    least: int
    holds: int
    waiting: int

    @classmethod
    def of(cls, values: dict[str, Any]) -> Self:
        """Check the values of a claim.

        Args:
            values: Fields by their names; a dict, because jobs of several versions may share a cluster.

        Raises:
            ValueError: A field is missing or has an impossible value.
        """
        names = {one.name for one in fields(cls)}
        if missing := sorted(names - values.keys()):
            raise ValueError(f"claim: {', '.join(missing)} missing")
        counts = {name: _whole(name, values[name], 0, MAX_REPLICAS) for name in ("least", "holds", "waiting")}
        size = values["size"]
        if not isinstance(size, int | float) or not MIN_SIZE <= size <= MAX_SIZE:
            raise ValueError(f"size of a claim: {size!r:.40} is not a number of devices up to {MAX_SIZE:,.0f}")
        for name in ("job", "kind"):
            if not isinstance(values[name], str) or not 0 < len(values[name]) <= MAX_NAME_CHARS:
                raise ValueError(f"{name} of a claim: text of 1 to {MAX_NAME_CHARS:,} characters is needed")
        priority = _whole("priority", values["priority"], -MAX_PRIORITY, MAX_PRIORITY)
        return cls(values["job"], values["kind"], float(size), priority, **counts)


def _whole(name: str, value: Any, least: int, most: int) -> int:
    """A whole number, clipped to its bounds."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{name} of a claim: {value!r:.40} is not a whole number")
    return max(least, min(most, value))


def owners_priority() -> int:
    """The highest priority that a job of this cluster can have.

    The cluster's owner sets it in the environment of `ray start --head`, whose processes run the sharing actor. A value
    that is not a whole number counts as 0. It ends no job, and each job with a priority names the variable in its log.
    """
    value = os.environ.get(OWNERS_PRIORITY, str(MAX_PRIORITY))
    try:
        return max(-MAX_PRIORITY, min(MAX_PRIORITY, int(value)))
    except ValueError:
        return 0


@dataclass(frozen=True, slots=True)
class Ruling:
    """An order to a job.

    Attributes:
        give_back: Replicas to give back, in addition to earlier orders.
        cap: Replicas that the job may have or ask for; None for no limit.
        priority: Highest priority that the cluster's owner allows, if the job asks for more; else None.
    """

    give_back: int = 0
    cap: int | None = None
    priority: int | None = None
