"""A job's side of the sharing of a cluster: it claims devices, and obeys the sharing actor's rulings."""

import math
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import ray

from magbatch.engines.defaults import DEVICES_A_NODE
from magbatch.fleet.claim import OWNERS_PRIORITY, Claim
from magbatch.fleet.pool import Pool
from magbatch.fleet.ray_private import head_resource
from magbatch.fleet.sharing import Shares
from magbatch.replica.board import Snapshot, State
from magbatch.spec import JobSpec

CLAIM_S = 1.0  # time between two claims; the actor counts a job as silent after 5 s


def sharing_actor() -> Any:
    """The actor that divides the cluster among its jobs, started if the cluster has none.

    The actor belongs to no job, since the first job may be the first to end. It runs on the head, and Ray starts it
    again if it dies: the jobs repeat their claims within a second.
    """
    actor = ray.remote(num_cpus=0, resources={head_resource(): 0.001}, max_restarts=-1)(Shares)
    return actor.options(name="shares", namespace="magbatch", lifetime="detached", get_if_exists=True).remote()


class Share:
    """This job's side of the sharing of a cluster.

    Args:
        spec: Spec of the job, for `replicas`.
        root: The job's output, which names the job to the sharing actor.
        pool: Actor pool of the job.
        board: Ray's handle of the board, which chooses the replicas to give back.
        say: Function that shows one line to a person.
        actor: Ray's handle of the sharing actor; None takes the cluster's own.
        claim_s: Seconds from one claim to the next.
    """

    def __init__(
        self,
        spec: JobSpec,
        root: str,
        pool: Pool,
        board: Any,
        say: Callable[[str], None],
        *,
        actor: Any = None,
        claim_s: float = CLAIM_S,
    ) -> None:
        self._spec, self._pool, self._board, self._say, self._claim_s = spec, pool, board, say, claim_s
        self._job = f"{root}/{uuid.uuid4().hex[:8]}"
        self._claimed = -math.inf
        self._cap: int | None = None
        self._ruling: Any = None  # Ray's reference to the answer that is awaited
        self._said = False
        self._shares = sharing_actor() if actor is None else actor

    def claim(self, snapshot: Snapshot) -> int | None:
        """Claim the job's devices every `claim_s`, and obey the last ruling without waiting for a new one.

        Args:
            snapshot: State of the fleet at this moment.

        Returns:
            Replicas that the job may have; None if no other job waits for any.
        """
        now = time.monotonic()
        if now - self._claimed < self._claim_s:
            return self._cap
        if self._ruling is not None:
            if not ray.wait([self._ruling], timeout=0)[0]:
                return self._cap
            self._obey(self._ruling)
        self._claimed = now
        self._ruling = self._shares.claim.remote(asdict(self._claim(snapshot)))
        return self._cap

    def end(self) -> None:
        """Withdraw the job's claim."""
        self._shares.end.remote(self._job)

    def _claim(self, snapshot: Snapshot) -> Claim:
        replicas = self._spec.replicas
        return Claim(
            job=self._job,
            kind=f"{'GPU' if replicas.gpus else 'CPU'} of {'; '.join(map(str, replicas.prefer)) or 'any node'}",
            size=float(replicas.gpus or replicas.cpus),
            priority=replicas.priority,
            # Devices on several nodes are one placement group, which Ray keeps until the job ends.
            least=replicas.min if replicas.gpus <= DEVICES_A_NODE else replicas.max,
            holds=snapshot.replicas + snapshot.count(State.STARTING),
            waiting=self._pool.waiting(snapshot),
        )

    def _obey(self, answer: Any) -> None:
        # A failure of sharing never ends a job. The actor's node may be gone, and Ray restarts it; or versions differ.
        try:
            ruling = ray.get(answer)
        except ray.exceptions.RayError:
            return
        self._cap = ruling["cap"]
        self._say_priority(ruling.get("priority"))  # an actor of an earlier version has no such field
        if ruling["give_back"]:
            self._give_back(ruling["give_back"])

    def _give_back(self, count: int) -> None:
        with suppress(ray.exceptions.RayError):  # the next ruling asks again
            self._pool.retire(ray.get(self._board.give_back.remote(count)))

    def _say_priority(self, priority: int | None) -> None:
        """Say once that the cluster's owner limits the job to a lower priority."""
        if priority is not None and not self._said:
            self._said = True
            self._say(
                f"replicas.priority {self._spec.replicas.priority}: the cluster's owner allows {priority} at most "
                f"({OWNERS_PRIORITY}); the job has priority {priority}"
            )
