"""Problems and notes of one proof of an output."""


class Findings:
    """Problems and notes, collected while an output is checked.

    Attributes:
        problems: Everything that is wrong, one line each.
        notes: Facts that a person should know although nothing is wrong, one line each.
    """

    def __init__(self) -> None:
        self.problems, self.notes = list[str](), list[str]()
        self._mendable = set[str]()

    def mendable(self, problem: str) -> None:
        """Add a problem that `magbatch run` repairs without touching a row."""
        self.problems.append(problem)
        self._mendable.add(problem)

    def only_mendable(self) -> bool:
        """Whether `magbatch run` repairs every problem found so far."""
        return self._mendable.issuperset(self.problems)
