"""`retry` and `compact` say what changed in a job."""

import json
from datetime import UTC, datetime

import pyarrow as pa
import pytest
from support.commands import command, spec_file
from support.small_job import SmallJob

from magbatch.errors import ErrorCode, Step
from magbatch.jobs.choice import Choice
from magbatch.jobs.retry import Retry, prepare
from magbatch.pipeline.write import ObjectWriter
from magbatch.rows import Answer, DeadLetter, FinishedRow, ReasoningStatus


@pytest.mark.parametrize("args", [["--where", "row_timeout"], ["--only", "truncated"]])
def test_nothing_to_retry_ends_with_0(failed: SmallJob, args: list[str]) -> None:
    result = command("retry", failed.output, *args)
    assert result.exit_code == 0
    assert result.stdout.startswith("small: nothing to retry: there are no ")
    assert json.loads(command("retry", failed.output, *args, "--json").stdout)["rows"] == 0
    assert json.loads(command("retry", failed.output, "--drop", "--json").stdout) == {"dropped": False}
    assert "no retry is unfinished" in command("retry", failed.output, "--drop").stdout


def test_a_retry_says_what_came_of_it(failed: SmallJob) -> None:
    """Complete job whose rows are committed by hand, without a fleet."""
    found = prepare(failed.ledger, Choice(), [])
    assert isinstance(found, Retry)
    found.output().begin(found.spec, found.plan)
    one, other = (DeadLetter(row_id, Step.RENDER, ErrorCode.MISSING_VALUE, "") for row_id in found.plan.row_ids())
    carried = pa.table({"id": ["a1", "a3"]})
    writer = ObjectWriter(found.output().store, carried, {one.row_id: 0, other.row_id: 1}, "tiny", 0)
    writer.errors([one])
    answer = Answer("because", ReasoningStatus.COMPLETE, "so", "stop", 5, 2)
    writer.results([FinishedRow(other.row_id, 7, 3, 0.5, [answer], datetime.now(UTC))])
    result = command("retry", failed.output)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        "small: 2 rows retried: 1 answered, 1 as before",
        "  failed again: missing_value 1",
        "  the job now: 4 rows answered, 1 failed",
        f"  results: {failed.output}/results/*.parquet",
        f"  dead letters: {failed.output}/errors/*.parquet",
        f"Next: magbatch verify {failed.output}",
    ]
    assert command("verify", failed.output).exit_code == 0
    assert "4 of 5 rows answered, 1 failed" in command("run", spec_file(failed)).stdout


def test_compact_says_what_came_of_it(failed: SmallJob) -> None:
    objects = len(failed.objects()) + len(failed.objects("errors"))
    assert objects > 2
    assert f"small: {objects} objects -> 2, " in command("compact", failed.output).stdout
    assert "small: nothing to merge: 2 objects, " in command("compact", failed.output).stdout
    assert json.loads(command("compact", failed.output, "--json").stdout)["merged"] == 0
    assert command("verify", failed.output).exit_code == 0
