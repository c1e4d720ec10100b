"""Problems that a run repairs are told from others."""

from magbatch.ledger.findings import Findings


def test_findings_are_mendable_only_while_every_problem_is() -> None:
    findings = Findings()
    assert findings.only_mendable()
    findings.mendable("report gone")
    assert (findings.only_mendable(), findings.problems) == (True, ["report gone"])
    findings.problems.append("object gone")
    assert not findings.only_mendable()
