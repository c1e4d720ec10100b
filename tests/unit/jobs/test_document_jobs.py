"""Documents through a whole job: one row each, whatever their length, with the pages that the answer rests on."""

import asyncio
import io
from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from support.document_files import encoded, text_pdf, tiff, two_halves
from support.small_job import SmallJob

from magbatch.engines.base import EngineLoad
from magbatch.errors import ClusterError, JobError
from magbatch.jobs.compact import compact
from magbatch.jobs.preview import FirstPrompt, preview
from magbatch.ledger.verify import verify
from magbatch.plan.make import make_plan
from magbatch.plan.sharding import MAX_DOCUMENT_SHARD_ROWS

LONG = "\f".join(f"part {page} " * 60 for page in range(1, 8))  # about 300 tokens a page


@pytest.fixture
def documents(job: SmallJob) -> SmallJob:
    """A short text, a long one, a PDF, a TIFF, and a file that is not a document."""
    job.write(
        pa.table(
            {
                "id": ["short", "long", "pdf", "tiff", "broken"],
                "doc": [b"total 5", LONG.encode(), text_pdf("Total", "Two"), tiff(two_halves()), b"\x00\x01"],
            }
        )
    )
    job.set("input", columns={"id": "id", "document": "doc"}, document={"mode": "both", "overflow": "map_reduce"})
    job.set("prompt", template="What is the total?")
    job.set("limits", max_prompt_tokens=800)
    job.engine["script"] = [{"contains": "was read in parts", "answer": "42 in all"}]
    return job


def by_id(records: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in records}


def test_each_document_is_one_row_with_its_pages(documents: SmallJob) -> None:
    documents.answer()
    assert documents.finalise() == []
    rows = by_id(documents.records())
    assert {name: row["document_pages"] for name, row in rows.items()} == {"short": 1, "long": 7, "pdf": 2, "tiff": 1}
    whole = {"reasoning": None, "reasoning_status": None, "answer": None}
    assert rows["pdf"]["document_parts"] == [{"first_page": 1, "last_page": 2} | whole]
    parts = rows["long"]["document_parts"]
    assert len(parts) > 2
    assert [part["first_page"] for part in parts] == [1, *(part["last_page"] + 1 for part in parts[:-1])]
    assert parts[-1]["last_page"] == 7
    assert all(part["reasoning"] and part["answer"] and part["reasoning_status"] == "complete" for part in parts)
    assert rows["long"]["answer"] == "42 in all"
    (letter,) = documents.records("errors")
    assert (letter["id"], letter["step"], letter["error_code"]) == ("broken", "render", "document_unreadable")
    assert verify(documents.ledger).problems == ()
    for name in documents.objects():
        if name.startswith("results/"):
            names = pq.read_schema(io.BytesIO(documents.ledger.store.read(name))).names
            assert names[names.index("answer") + 1 :][:3] == ["document_pages", "document_parts", "document_truncated"]


def test_all_tokens_of_a_document_in_parts_are_counted(documents: SmallJob) -> None:
    """Against the engine's own requests."""
    asked: list[tuple[str, int]] = []
    given: Counter[str] = Counter()
    documents.begin()
    engine = documents.start_engine()
    generate = engine.engine.generate

    async def count(prompt: Any, **options: Any) -> Any:
        asked.append((prompt.row_id, len(prompt.token_ids)))
        generation = await generate(prompt, **options)
        given[prompt.row_id.partition("/")[0]] += sum(len(one.token_ids) for one in generation.completions)
        return generation

    engine.engine.generate = count  # type: ignore[method-assign]

    async def work() -> None:
        await documents.run_all(documents.replica(engine))

    asyncio.run(work())
    row = by_id(documents.records())["long"]
    mine = [tokens for row_id, tokens in asked if row_id.startswith(row["row_id"])]
    assert len(mine) == len(row["document_parts"]) + 1
    assert row["prompt_tokens"] == sum(mine)
    assert row["reasoning_tokens"] + row["answer_tokens"] == given[row["row_id"]]
    assert len({row_id for row_id, _ in asked}) == len(asked), "each request has a seed of its own"


def test_a_part_without_an_answer_leaves_the_others(documents: SmallJob) -> None:
    documents.engine["script"] = [
        {"contains": "was read in parts", "answer": "42 in all"},
        {"contains": "pages 1 to", "do": "never_close"},
    ]
    documents.answer()
    row = by_id(documents.records())["long"]
    first, *others = row["document_parts"]
    assert (first["answer"], first["reasoning_status"]) == (None, "truncated")
    assert all(part["answer"] for part in others)
    assert row["answer"] == "42 in all"


def test_a_document_of_which_no_part_is_answered_is_not_asked_over_nothing(documents: SmallJob) -> None:
    documents.engine["script"] = [{"contains": "of one document", "do": "never_close"}]
    documents.set("sampling", n=2)
    documents.answer()
    assert documents.finalise() == []
    rows = [row for row in documents.records() if row["id"] == "long"]
    assert [(row["sample"], row["answer"], row["reasoning_status"]) for row in rows] == [
        (0, None, "truncated"),
        (1, None, "truncated"),
    ]
    asked = [row_id for row_id in documents.asked() if row_id.startswith(rows[0]["row_id"])]
    assert len(asked) == len(rows[0]["document_parts"])
    assert rows[0]["reasoning_tokens"] > rows[1]["reasoning_tokens"] == 0, "paid for once"


def test_only_the_last_answer_has_samples_and_a_schema(documents: SmallJob) -> None:
    schema = {"type": "object", "properties": {"total": {"type": "integer"}}, "required": ["total"]}
    documents.set("answer", schema=schema, vote="majority")
    documents.set("sampling", n=3)
    documents.set("reasoning", budget_tokens=50)
    documents.engine["script"] = [
        {"contains": "was read in parts", "answer": ['{"total": "many"}', '{"total": 42}']},
        {"contains": "of one document", "answer": "notes, no JSON"},
        {"contains": "total", "answer": '{"total": 5}'},
        {"contains": "", "answer": '{"total": 6}'},
    ]
    documents.answer()
    assert documents.finalise() == []
    rows = [row for row in documents.records() if row["id"] == "long"]
    assert [(row["sample"], row["total"]) for row in rows] == [(0, 42), (1, 42), (2, 42)]
    assert rows[0]["vote"] == {"answer": '{"total":42}', "share": 1.0}
    assert {part["answer"] for part in rows[0]["document_parts"]} == {"notes, no JSON"}
    assert by_id(documents.records())["short"]["total"] == 5


def test_a_long_document_takes_the_places_of_all_its_requests(documents: SmallJob) -> None:
    """Admission counts what the engine will hold."""
    documents.begin()
    engine = documents.start_engine()

    async def work() -> None:
        await documents.run_all(documents.replica(engine))

    asyncio.run(work())
    prompts = {prompt.row_id: prompt for prompt in documents.prompts(0).prompts}
    most = max(prompt.requests for prompt in prompts.values())
    assert most > 2
    assert engine.most <= max(most, 8)


def test_a_part_that_the_engine_refuses_is_its_rows_error(documents: SmallJob) -> None:
    documents.engine["script"] = [{"contains": "pages 1 to", "do": "reject"}]
    documents.answer()
    letters = by_id(documents.records("errors"))
    assert (letters["long"]["step"], letters["long"]["error_code"]) == ("generate", "engine_rejected")
    assert set(by_id(documents.records())) == {"short", "pdf", "tiff"}


def test_an_engine_that_dies_with_a_part_accuses_the_row(documents: SmallJob) -> None:
    documents.engine["script"] = [{"contains": "pages 1 to", "do": "die"}]
    documents.begin()

    async def work() -> None:
        await documents.run_all(documents.replica())

    with pytest.raises(BaseException) as caught:  # noqa: PT011 - the replica's process would be gone
        asyncio.run(work())
    assert type(caught.value).__name__ == "EngineDeadError"
    struck = [row_id for rows in documents.board.struck for ids in rows.values() for row_id in ids]
    assert by_position(documents, 1) in struck


def by_position(job: SmallJob, position: int) -> str:
    return job.row_ids()[position]


class Queue:
    """An engine whose slots are taken: each request waits for one, while a neighbour gets tokens all the time."""

    def __init__(self, job: SmallJob) -> None:
        self.engine, self._show = job.start_engine(), job.tokenizer.show

    async def generate(self, prompt: Any, *, on_tokens: Any, **options: Any) -> Any:
        text = self._show(prompt.token_ids)
        if "neighbour" in text:
            for _ in range(40):
                await asyncio.sleep(0.1)
                on_tokens(0, [5])
        elif "These are pages" not in text:
            await asyncio.sleep(2.0)
        return await self.engine.generate(prompt, on_tokens=on_tokens, **options)

    def load(self) -> EngineLoad:
        return self.engine.load()

    def shutdown(self) -> None:
        self.engine.shutdown()


def test_a_row_whose_next_request_waits_for_a_slot_does_not_hang(documents: SmallJob) -> None:
    """The row's page groups had tokens long ago, but the request over their answers has just begun to wait."""
    documents.write(pa.table({"id": ["neighbour", "plain", "long"], "doc": [b"neighbour", b"text", LONG.encode()]}))
    documents.set("limits", max_prompt_tokens=800, row_timeout_s=1.0)
    documents.engine["max_num_seqs"] = 16
    documents.begin()

    async def work() -> None:
        await documents.run_all(documents.replica(Queue(documents)))

    asyncio.run(work())
    assert documents.records("errors") == []
    assert set(by_id(documents.records())) == {"neighbour", "plain", "long"}


def test_compaction_keeps_the_columns(documents: SmallJob) -> None:
    documents.answer()
    documents.finalise()
    before = sorted(documents.records(), key=lambda row: row["id"])
    compact(documents.output, 256, Console(quiet=True))
    assert sorted(documents.records(), key=lambda row: row["id"]) == before
    assert verify(documents.ledger).problems == ()


def test_documents_of_which_something_is_left_out_are_counted(documents: SmallJob) -> None:
    """Documents count if a page, the text of a page, or pages above the limit are left out; whole documents do not."""
    documents.write(
        pa.table(
            {
                "id": ["short", "pages", "page", "pictures", "tiff"],
                "doc": [b"total 5", LONG.encode(), b"word " * 9000, text_pdf(*"abcd"), tiff(two_halves())],
            }
        )
    )
    documents.set("input", document={"mode": "both", "overflow": "truncate"})
    documents.set("limits", max_pages=8, max_images=1)
    documents.set("sampling", n=2)
    documents.answer()
    assert documents.finalise() == []
    rows = by_id(documents.records())
    cut = {"short": False, "pages": True, "page": True, "pictures": True, "tiff": False}
    assert {name: row["document_truncated"] for name, row in rows.items()} == cut
    assert rows["page"]["document_parts"][0]["last_page"] == rows["page"]["document_pages"] == 1, "which do not tell"
    manifest = documents.ledger.manifest()
    assert manifest is not None
    assert manifest.totals.documents_truncated == 3
    assert verify(documents.ledger).problems == ()


def test_answers_of_parts_that_are_cut_are_counted(documents: SmallJob) -> None:
    documents.engine["script"] = [
        {"contains": "was read in parts", "answer": "42 in all"},
        {"contains": "of one document", "answer": "many words " * 200},
    ]
    documents.set("sampling", max_tokens=2000)
    documents.answer()
    rows = by_id(documents.records())
    assert rows["long"]["document_truncated"] is True
    assert rows["pdf"]["document_truncated"] is False


@pytest.mark.parametrize("late", [False, True], ids=["before the end", "after the end"])
def test_objects_of_an_older_version_have_no_such_column_and_are_read(documents: SmallJob, late: bool) -> None:
    documents.set("input", shard_rows=2)
    documents.begin()

    async def work(shards: range) -> None:
        replica = documents.replica()
        for shard in shards:
            await documents.run_shard(replica, shard)

    half = range(1) if not late else range(documents.plan.num_shards)
    asyncio.run(work(half))
    store = documents.ledger.store
    old = documents.objects()
    for name in old:
        table = pq.read_table(io.BytesIO(store.read(name)))
        sink = io.BytesIO()
        pq.write_table(table.drop_columns(["document_truncated"]), sink)
        store.delete(name)
        store.write(name, sink.getvalue())
    asyncio.run(work(range(half.stop, documents.plan.num_shards)))
    assert documents.finalise() == []
    assert verify(documents.ledger).problems == ()
    assert compact(documents.output, 1 << 28, Console(quiet=True)).merged
    assert verify(documents.ledger).problems == ()
    rows = by_id(documents.records())
    assert {row["document_truncated"] for row in rows.values()} == ({None} if late else {None, False})


def test_plan_shows_the_first_part(documents: SmallJob) -> None:
    documents.write(pa.table({"id": ["long"], "doc": [LONG.encode()]}))
    first = preview(documents.spec()).first
    assert isinstance(first, FirstPrompt)
    assert first.parts > 2
    assert "of one document" in first.text
    assert first.tokens <= 800


def test_shards_of_pictures_are_small_and_those_of_text_are_not(job: SmallJob) -> None:
    job.write(pa.table({"id": [str(n) for n in range(600)], "doc": [f"text {n}" for n in range(600)]}))
    job.set("prompt", template="?")

    def rows(**how: str) -> int:
        job.set("input", columns={"id": "id", "document": "doc"}, document=how)
        return int(make_plan(job.spec()).shard_sizes.max())

    assert rows() == MAX_DOCUMENT_SHARD_ROWS
    assert rows(mode="text") == rows(strings="text") > MAX_DOCUMENT_SHARD_ROWS


def test_a_missing_document_column_is_named(job: SmallJob) -> None:
    job.ask(3)
    job.set("input", columns={"id": "id", "prompt": "question", "document": "scan"})
    with pytest.raises(JobError, match=r"input\.columns\.document"):
        make_plan(job.spec())


def test_a_place_that_cannot_render_stops_the_job(documents: SmallJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows are not at fault: another node can read them."""
    documents.set("limits", document_memory_mb=777)  # a renderer that no earlier test has started
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(ClusterError):
        documents.preparer(documents.plan.shard(0))


def test_a_block_holds_pages_in_little_space(job: SmallJob) -> None:
    """Paper is mostly white."""
    from magbatch.pipeline.block import to_block

    job.write(pa.table({"id": ["a"], "doc": [text_pdf(*["Total"] * 5)]}))
    job.set("input", columns={"id": "id", "document": "doc"})
    job.set("prompt", template="?")
    work = job.preparer(job.plan.shard(0))
    (prompt,) = work.prompts
    size = to_block(work).nbytes
    assert size < prompt.size_bytes / 5
    assert job.prompts(0).prompts == [prompt]


def test_images_alone_are_as_before(job: SmallJob) -> None:
    job.write(pa.table({"id": ["a"], "question": ["What?"], "image": [encoded(two_halves())]}))
    job.set("input", columns={"id": "id", "prompt": "question", "images": ["image"]})
    (prompt,) = job.prompts(0).prompts
    assert (prompt.total_pages, prompt.page_groups, prompt.messages) == (0, [], [])
    assert len(prompt.images) == 1
