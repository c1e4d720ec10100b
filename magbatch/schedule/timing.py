"""Durations of a scheduler."""

from dataclasses import dataclass

from magbatch.schedule.specs import READ_S


@dataclass(frozen=True, slots=True)
class Timing:
    """Durations in seconds.

    Attributes:
        pass_s: Time between two passes over the clock, the folder and the running ticks.
        answer_s: Time that a pass waits for looks it has just started. Nearly every store answers sooner.
        late_s: Time without an answer after which a store is reported as late.
        read_s: Time limit for reading one spec.
        end_s: Time that running ticks get to end before they are killed. Replicas commit within 25 s of a SIGTERM.
    """

    pass_s: float = 1.0
    answer_s: float = 2.0
    late_s: float = 30.0
    read_s: int = READ_S
    end_s: float = 60.0


DEFAULT = Timing()
