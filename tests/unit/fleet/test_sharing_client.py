"""A job claims what it has and wants, and gives back what it is told to."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest
import ray
import yaml

from magbatch.fleet.board import BoardState
from magbatch.fleet.sharing_client import Share
from magbatch.replica.board import Load, Slot, Snapshot, State, Usage
from magbatch.spec import JobSpec, parse
from magbatch.totals import Totals


def spec_of(**replicas: Any) -> JobSpec:
    data = {"name": "t", "model": {"source": "a/b"}, "input": {"path": "/in", "columns": {"prompt": "q"}}}
    return parse(yaml.safe_dump(data | {"output": {"path": "/o"}, "replicas": {"min": 1, "max": 40} | replicas}))


class FakePool:
    """A pool with replicas that wait."""

    def __init__(self) -> None:
        self.retired: list[str] = []

    def waiting(self, snapshot: Snapshot) -> int:
        return 3

    def retire(self, actors: list[str]) -> None:
        self.retired += actors


class Actor:
    """The sharing actor, with rulings that a test sets."""

    def __init__(self) -> None:
        self.ruling: dict[str, Any] = {"give_back": 0, "cap": None, "priority": None}
        self.claims: list[dict[str, Any]] = []
        self.ended: list[str] = []

    def claim(self, fields: dict[str, Any]) -> dict[str, Any]:
        self.claims.append(fields)
        return self.ruling

    def end(self, job: str) -> None:
        self.ended.append(job)


UP = Snapshot(slots=[Slot(0, State.SERVING), Slot(1, State.STARTING), Slot(2, State.LOST)])


@pytest.fixture
def made(local_ray: Any) -> Callable[..., Any]:
    def make(claim_s: float = 0.0, **replicas: Any) -> Any:
        actor, pool, board, said = Actor(), FakePool(), BoardState(), list[str]()
        share = Share(
            spec_of(**replicas), "/o", pool, local_ray(board), said.append, actor=local_ray(actor), claim_s=claim_s
        )  # type: ignore[arg-type]
        return share, actor, pool, board, said

    return make


@pytest.mark.parametrize(
    ("replicas", "kind", "size", "least"),
    [
        ({"gpus": 2}, "GPU of any node", 2.0, 1),
        ({"gpus": 0, "cpus": 1.5}, "CPU of any node", 1.5, 1),
        ({"gpus": 1, "prefer": [{"accelerator": "H100"}]}, "GPU of H100", 1.0, 1),
        ({"gpus": 16}, "GPU of any node", 16.0, 40),  # a placement group stays until the job ends
    ],
)
def test_a_claim_says_what_the_job_has_and_wants(
    made: Callable[..., Any], replicas: dict[str, Any], kind: str, size: float, least: int
) -> None:
    share, actor, *_ = made(priority=7, **replicas)
    assert share.claim(UP) is None
    (claim,) = actor.claims
    assert claim.pop("job").startswith("/o/")
    assert claim == {"kind": kind, "size": size, "priority": 7, "least": least, "holds": 2, "waiting": 3}


def test_a_ruling_counts_from_the_next_look_on_and_replicas_are_given_back(made: Callable[..., Any]) -> None:
    share, actor, pool, board, _ = made()
    for name in ("one", "two"):
        board.join(name, f"actor {name}")
        board.report(name, Totals(), Usage(), Load())
    actor.ruling = {"give_back": 1, "cap": 4, "priority": None}
    assert share.claim(UP) is None, "it never waits for an answer"
    assert share.claim(UP) == 4
    assert len(pool.retired) == 1


def test_a_board_that_is_out_of_reach_for_a_moment_ends_no_job(
    made: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    share, actor, pool, _, _ = made()
    actor.ruling = {"give_back": 1, "cap": 4, "priority": None}
    share.claim(UP)

    def out_of_reach(found: Any) -> Any:
        if isinstance(found, list):
            raise ray.exceptions.ActorUnavailableError("away", None)
        return found

    monkeypatch.setattr(ray, "get", out_of_reach)
    assert share.claim(UP) == 4
    assert pool.retired == []


def test_claims_are_a_while_apart(made: Callable[..., Any]) -> None:
    share, actor, *_ = made(claim_s=3600.0)
    for _ in range(3):
        share.claim(UP)
    assert len(actor.claims) == 1


def test_an_answer_that_is_late_or_lost_ends_no_job(made: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    share, actor, *_ = made()
    share.claim(UP)
    with monkeypatch.context() as late:
        late.setattr(ray, "wait", lambda found, timeout: ([], found))
        assert share.claim(UP) is None
    assert len(actor.claims) == 1, "no second claim while one is under way"

    def lost(_: Any) -> None:
        raise ray.exceptions.ActorDiedError()

    monkeypatch.setattr(ray, "get", lost)
    assert share.claim(UP) is None
    assert len(actor.claims) == 2


def test_a_lowered_priority_is_said_once_and_an_actor_of_an_earlier_version_says_none(
    made: Callable[..., Any],
) -> None:
    share, actor, _, _, said = made(priority=9)
    actor.ruling = {"give_back": 0, "cap": 2}
    share.claim(UP)
    assert (share.claim(UP), said) == (2, [])
    actor.ruling = {"give_back": 0, "cap": 2, "priority": 5}
    for _ in range(4):
        share.claim(UP)
    assert said == [
        "replicas.priority 9: the cluster's owner allows 5 at most (MAGBATCH_MAX_PRIORITY); the job has priority 5"
    ]


def test_a_job_that_ends_claims_nothing_more(made: Callable[..., Any]) -> None:
    share, actor, *_ = made()
    share.claim(UP)
    share.end()
    assert actor.ended == [actor.claims[0]["job"]]
    assert asdict(UP)["slots"], "the state was only read"
