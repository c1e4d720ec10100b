"""Resources that the runs of a job have used: devices, tokens, losses, refusals of storage."""

from dataclasses import dataclass, field
from typing import Any, Self

from magbatch.replica.board import Snapshot, Usage
from magbatch.replica.losses import MOST_LOSSES, Loss
from magbatch.totals import known_fields, summed


@dataclass(slots=True)
class JobUsage:
    """Resources that runs of a job have used.

    Attributes:
        device_s: Seconds for which devices were held: GPUs, or replicas if the job runs on CPUs.
        starved_s: Seconds in which an engine had free slots while rows were waiting.
        engine_deaths: Engines that died or hung with rows in flight.
        restarts: Replicas that replaced an ended one.
        input_errors: Requests that the input's storage refused.
        output_errors: Requests of the driver that the output's storage refused. Replicas count theirs in `use`.
        use: Sums of the usage that replicas report.
        prompt_tokens: Prompt tokens of all answered rows, including answers that a retry has replaced.
        generated_tokens: Reasoning and answer tokens of the same rows.
        lost: Replicas that ended while rows were still to be answered.
        losses: Newest of these replicas, with the reason of each loss; `MOST_LOSSES` at most.
    """

    device_s: float = 0.0
    starved_s: float = 0.0
    engine_deaths: int = 0
    restarts: int = 0
    input_errors: int = 0
    output_errors: int = 0
    use: Usage = field(default_factory=Usage)
    prompt_tokens: int = 0
    generated_tokens: int = 0
    lost: int = 0
    losses: list[Loss] = field(default_factory=list)

    @classmethod
    def of(cls, fleet: Snapshot, devices: int) -> Self:
        """Return the usage of one fleet so far.

        Args:
            fleet: Snapshot of the fleet.
            devices: Devices that each replica holds.
        """
        use = Usage()
        for slot in fleet.slots:
            use = use.plus(slot.usage)
        held = devices * sum(slot.seconds for slot in fleet.slots)
        return cls(
            held, fleet.starved_s, fleet.engine_deaths, fleet.restarts, fleet.input_errors, 0, use,
            fleet.done.prompt_tokens, fleet.done.generated_tokens, fleet.lost, fleet.losses,
        )  # fmt: skip

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Read a record that any version wrote with `asdict`."""
        losses = [Loss.from_dict(one) for one in data.get("losses", [])]
        return cls(**known_fields(cls, data) | {"use": Usage(**known_fields(Usage, data["use"])), "losses": losses})

    def plus(self, other: Self) -> Self:
        """Return the sums of both; of the losses, only the newest are kept."""
        both = summed(self, other)
        both.losses = both.losses[-MOST_LOSSES:]
        return both
