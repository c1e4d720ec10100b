"""A claim holds what a job can mean, and the owner of a cluster bounds its priority."""

from dataclasses import asdict
from typing import Any

import pytest

from magbatch.fleet.claim import MAX_REPLICAS, OWNERS_PRIORITY, Claim, owners_priority
from magbatch.spec.sections_model import MAX_PRIORITY

CLAIM = Claim("a", "GPU", size=1.0, priority=0, least=0, holds=1, waiting=0)


def test_a_claim_is_read_as_it_was_sent_also_with_fields_of_later_versions() -> None:
    assert Claim.of(asdict(CLAIM) | {"of_tomorrow": 1}) == CLAIM


def test_numbers_beyond_measure_are_clipped() -> None:
    claim = Claim.of(asdict(CLAIM) | {"holds": 10**9, "waiting": -5, "priority": 10**9})
    assert (claim.holds, claim.waiting, claim.priority) == (MAX_REPLICAS, 0, MAX_PRIORITY)


@pytest.mark.parametrize("missing", ["job", "holds"])
def test_a_claim_without_a_field_names_it(missing: str) -> None:
    fields = {name: value for name, value in asdict(CLAIM).items() if name != missing}
    with pytest.raises(ValueError, match=f"^claim: {missing} missing$"):
        Claim.of(fields)


@pytest.mark.parametrize(
    ("value", "priority"), [(None, MAX_PRIORITY), ("5", 5), ("-3", -3), ("9999999", MAX_PRIORITY), ("lots", 0), ("", 0)]
)
def test_the_owner_of_a_cluster_sets_the_highest_priority(
    monkeypatch: pytest.MonkeyPatch, value: Any, priority: int
) -> None:
    monkeypatch.delenv(OWNERS_PRIORITY, raising=False)
    if value is not None:
        monkeypatch.setenv(OWNERS_PRIORITY, value)
    assert owners_priority() == priority
