"""Object names and the two schemas: the contract that outlives a run and that users read."""

import random

import pyarrow as pa
import pytest

from magbatch.schema import (
    DOCUMENT_FIELDS,
    ERROR_FIELDS,
    RESERVED_COLUMNS,
    RESULT_FIELDS,
    ObjectName,
    errors_schema,
    new_attempt,
    results_schema,
)


def test_the_names_of_objects_read_back() -> None:
    rng = random.Random(1)
    for _ in range(200):
        shard, seq, rows = rng.randrange(10**8), rng.randrange(20_000), rng.randrange(10**6)
        name = ObjectName(rng.choice(["results", "errors"]), shard, f"{rng.randrange(16**17):017x}", seq, rows)
        assert ObjectName.parse(str(name)) == name
        assert str(name).startswith(ObjectName.prefix(name.kind, name.shard))


def test_the_form_of_an_objects_name_is_fixed() -> None:
    name = ObjectName("results", 12, "1a209b81aa79c738a", 3, 256)
    assert str(name) == "results/00000012-1a209b81aa79c738a-0003.n256.parquet"


def test_the_name_of_a_merged_object_says_its_first_and_last_shard() -> None:
    name = ObjectName("errors", 12, "1a209b81aa79c738a", 0, 256, span=34)
    assert str(name) == "errors/r00000012-00000045-1a209b81aa79c738a-0000.n256.parquet"
    assert ObjectName.parse(str(name)) == ObjectName.of(str(name)) == name
    assert name.shards == range(12, 46)
    assert str(name).startswith(ObjectName.prefix("errors"))  # by which one listing finds these alone
    single = ObjectName("errors", 12, "1a209b81aa79c738a", 0, 256)
    assert not str(single).startswith(ObjectName.prefix("errors"))
    assert single.shards == range(12, 13)


@pytest.mark.parametrize(
    "name",
    [
        "results/r00000012-00000012-1a2-0003.n4.parquet",
        "results/r00000012-00000011-1a2-0003.n4.parquet",
        "results/r00000012-1a2-0003.n4.parquet",
        "results/00000012-00000045-1a2-0003.n4.parquet",
        "results/00000012-1a2-0003.n4.parquet.tmp",
        "results/00000012-1a2-0003.parquet",
        "results/00000012-1A2-0003.n4.parquet",
        "results/12-1a2-0003.n4.parquet",
        "results/00000012-1a2-0003.n04.parquet",  # another spelling of the same number
        "results/00000012-1a2-00003.n4.parquet",
        "results/0000001\u0662-1a2-0003.n4.parquet",
        "other/00000012-1a2-0003.n4.parquet",
        "_magbatch/superseded/results/00000012-1a2-0003.n4.parquet",
        "results/00000012-1a2-0003.n4.parquet\n",
        "results/_SUCCESS",
    ],
)
def test_another_name_is_refused(name: str) -> None:
    assert ObjectName.parse(name) is None
    with pytest.raises(ValueError, match="is not the name of a committed object"):
        ObjectName.of(name)


def test_attempts_are_unique_and_fit_into_a_name() -> None:
    attempts = [new_attempt() for _ in range(2000)]
    assert len(set(attempts)) == len(attempts)
    for attempt in attempts[:20]:
        name = ObjectName("errors", 1, attempt, 0, 1)
        assert ObjectName.parse(str(name)) == name


def test_later_attempts_sort_after_earlier_ones() -> None:
    first = new_attempt()
    later = new_attempt()
    while later[:-12] == first[:-12]:  # within one millisecond their order is free
        later = new_attempt()
    assert first < later


CARRY = pa.schema([("doc", pa.large_string()), ("tags", pa.list_(pa.string()))])


def test_the_results_schema_is_the_contract() -> None:
    schema = results_schema(CARRY)
    assert schema.equals(
        pa.schema(
            [
                pa.field("row_id", pa.string(), nullable=False),
                pa.field("sample", pa.int32(), nullable=False),
                pa.field("doc", pa.large_string()),
                pa.field("tags", pa.list_(pa.string())),
                pa.field("reasoning", pa.large_string()),
                pa.field("reasoning_status", pa.string(), nullable=False),
                pa.field("answer", pa.large_string()),
                pa.field("finish_reason", pa.string(), nullable=False),
                pa.field("prompt_tokens", pa.int32(), nullable=False),
                pa.field("reasoning_tokens", pa.int32(), nullable=False),
                pa.field("answer_tokens", pa.int32(), nullable=False),
                pa.field("cached_tokens", pa.int32(), nullable=False),
                pa.field("latency_s", pa.float64(), nullable=False),
                pa.field("model", pa.string(), nullable=False),
                pa.field("attempt", pa.string(), nullable=False),
                pa.field("finished_at", pa.timestamp("us", tz="UTC"), nullable=False),
            ],
            metadata={"magbatch.schema_version": "1"},
        ),
        check_metadata=True,
    )


def test_the_errors_schema_is_the_contract() -> None:
    assert errors_schema(CARRY).equals(
        pa.schema(
            [
                pa.field("row_id", pa.string(), nullable=False),
                pa.field("doc", pa.large_string()),
                pa.field("tags", pa.list_(pa.string())),
                pa.field("step", pa.string(), nullable=False),
                pa.field("error_code", pa.string(), nullable=False),
                pa.field("message", pa.string(), nullable=False),
                pa.field("attempt", pa.string(), nullable=False),
                pa.field("finished_at", pa.timestamp("us", tz="UTC"), nullable=False),
                # Null in what an older version wrote.
                pa.field("prompt_tokens", pa.int32()),
                pa.field("reasoning_tokens", pa.int32()),
                pa.field("answer_tokens", pa.int32()),
                pa.field("cached_tokens", pa.int32()),
            ],
            metadata={"magbatch.schema_version": "1"},
        ),
        check_metadata=True,
    )


def test_carried_columns_keep_their_types_and_may_hold_null() -> None:
    strict = pa.schema([pa.field("n", pa.int8(), nullable=False)])
    for schema in (results_schema(strict), errors_schema(strict)):
        assert schema.field("n").type == pa.int8()
        assert schema.field("n").nullable  # an unreadable row carries null


def test_every_column_of_the_outputs_own_is_reserved() -> None:
    assert {"row_id", "sample", *RESULT_FIELDS, *ERROR_FIELDS, *DOCUMENT_FIELDS} == RESERVED_COLUMNS
