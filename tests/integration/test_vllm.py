"""The real engine: what it is asked, what it returns, and what happens when it dies."""

import asyncio
import gc
import inspect
import io
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image as Pillow
from PIL import ImageDraw
from support.document_files import tiff
from support.magbatch_cli import alive, committed, descendants, magbatch, named, read, start, wait_until

from magbatch.answers import Checker
from magbatch.engines import engine_args
from magbatch.engines.base import HUGE_PAGES, EngineConfig, EngineLoad
from magbatch.engines.vllm import VllmEngine, _as_vllm
from magbatch.errors import EngineStartError, RequestFailedError, RequestRejectedError
from magbatch.jobs.steps import steps_of
from magbatch.model.checkpoint import locate
from magbatch.model.facts import facts
from magbatch.model.tokenizer import Tokenizer
from magbatch.pipeline.answer import Progress, RowAnswerer
from magbatch.pipeline.context import JobContext
from magbatch.pipeline.generate import Generate, ThinkingPlan, row_seed
from magbatch.pipeline.parse import Parser
from magbatch.pipeline.prepare import Preparer
from magbatch.pipeline.prompt import Prompter
from magbatch.plan.make import make_plan
from magbatch.rows import Generation, Image, Prompt, ReasoningStatus, as_ids
from magbatch.spec import JobSpec, SamplingSpec, parse
from magbatch.spec.vllm_names import installed

# Importing vLLM and torch warns of their own deprecations.
pytestmark = pytest.mark.filterwarnings("default")

THREADS_BIND = "VLLM_CPU_OMP_THREADS_BIND"


def picture(text: str, color: str) -> bytes:
    image = Pillow.new("RGB", (120, 90), color)
    ImageDraw.Draw(image).text((10, 30), text, fill="black")
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def plain(shade: int) -> Image:
    """A picture of one grey, of the size of those in `prompts`."""
    return Image.of(140, 112, bytes([shade]) * (140 * 112 * 3))


def spec_for(path: Path, **sampling: Any) -> JobSpec:
    return parse(
        f"name: engine\nmodel: {{source: builtin:tiny, engine_args: {{max_num_seqs: 16}}}}\n"
        f"input: {{path: {path}, columns: {{prompt: question, images: [image]}}}}\n"
        f"sampling: {sampling}\nreplicas: {{gpus: 0}}\nlimits: {{max_prompt_tokens: 2000}}\n"
        f"output: {{path: {path.parent}/out}}\n"
    )


def test_the_arguments_that_a_spec_is_held_against_are_vllms() -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs

    source = installed()
    assert source is not None
    assert source.names() == {field.name for field in fields(AsyncEngineArgs) if not field.name.startswith("_")}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> list[Prompt]:
    """Prompts from a real file through the real steps: two texts, then two images."""
    path = tmp_path_factory.mktemp("engine") / "rows.parquet"
    columns = {
        "question": [
            "What is 12 + 7?",
            "What is 5 + 5? It says [THINK] and </s> here.",
            "What is the total?",
            "What is the total?",
        ],
        "image": [None, None, picture("TEA 1.20", "white"), picture("PIE 9.90", "lightblue")],
    }
    pq.write_table(pa.table(columns), path)
    spec = spec_for(path)
    plan = make_plan(spec)
    return Preparer(JobContext(spec, plan.columns), steps_of(spec, plan))(plan.shard(0)).prompts


class Serving:
    """An engine in its own event loop, for all tests of this file."""

    def __init__(self) -> None:
        # Hot and without an end, so that samples differ and a long request is long.
        spec = spec_for(
            Path("/nowhere/x.parquet"), temperature=2.0, top_p=1.0, n=3, max_tokens=64, ignore_eos=True, seed=5
        )
        checkpoint = locate(spec.model, weights=True).path
        self.tokenizer = Tokenizer(checkpoint)
        self.args = engine_args(spec, facts(checkpoint)).to_dict()  # with vLLM's cache of images, which can go wrong
        self.loop = asyncio.new_event_loop()
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv(HUGE_PAGES, raising=False)  # the engine is to ask for them by itself
            patch.delenv(THREADS_BIND, raising=False)
            self.engine = VllmEngine(EngineConfig(checkpoint, self.args, spec.sampling, 0))
            self.bound = os.environ.get(THREADS_BIND)  # as its process was given it

    def generate(self, *prompts: Prompt, max_tokens: int = 48, seed: int | None = None) -> list[Generation]:
        async def ask() -> list[Generation]:
            seeds = [row_seed(seed, prompt.row_id) for prompt in prompts]
            asked = zip(prompts, seeds, strict=True)
            return await asyncio.gather(
                *(self.engine.generate(prompt, max_tokens=max_tokens, seed=one) for prompt, one in asked)
            )

        return self.loop.run_until_complete(ask())


@pytest.fixture(scope="module")
def serving() -> Iterator[Serving]:
    serving = Serving()
    yield serving
    serving.engine.shutdown()
    serving.loop.run_until_complete(asyncio.sleep(0))
    serving.loop.close()
    del serving
    gc.collect()  # vLLM leaves its ZeroMQ context to the collector: its warning belongs to this file


def ids(generation: Generation) -> list[list[int]]:
    return [completion.token_ids for completion in generation.completions]


def test_every_sample_comes_back(serving: Serving, prompts: list[Prompt]) -> None:
    (generation,) = serving.generate(prompts[0], max_tokens=8)
    assert len(generation.completions) == 3
    assert all(0 < len(completion.token_ids) <= 8 for completion in generation.completions)
    assert generation.latency_s > 0


def test_threads_are_left_unbound_on_cpus_and_nothing_of_cpus_is_set_before_the_engine_is_known_to_run_on_them(
    serving: Serving,
) -> None:
    assert serving.bound == "nobind"
    environment = {name: value for name, value in os.environ.items() if name not in (THREADS_BIND, HUGE_PAGES)}
    code = f"import os, magbatch.engines.vllm; print({THREADS_BIND!r} in os.environ, {HUGE_PAGES!r} in os.environ)"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="a kernel without huge pages")
def test_the_engine_asks_for_huge_pages(serving: Serving) -> None:
    """Huge pages are requested for the KV cache, layer by layer; "hg" records the request, with or without pages."""
    (engine,) = [child for child in psutil.Process().children(recursive=True) if "EngineCore" in child.name()]
    asked, size = 0, 0
    for line in Path(f"/proc/{engine.pid}/smaps").read_text().splitlines():
        name, *values = line.split()
        if name == "Size:":
            size = int(values[0]) * 1024
        elif name == "VmFlags:" and "hg" in values:
            asked += size
    assert asked >= 0.9 * serving.args["kv_cache_memory_bytes"]


def test_the_first_images_do_not_wait_for_the_others_to_be_taken_in(
    serving: Serving, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    renderer = serving.engine._engine.renderer
    render = renderer.render_cmpl_async
    begun = there = most = 0

    async def watched(*args: Any) -> Any:
        nonlocal begun, there, most
        begun, there = begun + 1, there + 1
        most = max(most, there)
        try:
            return await render(*args)
        finally:
            there -= 1

    monkeypatch.setattr(renderer, "render_cmpl_async", watched)
    rows = [replace(prompts[2], row_id=f"row-{shade}", images=[plain(shade)]) for shade in range(20)]
    assert len(serving.generate(*rows, max_tokens=1)) == begun == 20
    assert most == 2, "one in vLLM's thread for images, and the next at hand"


def test_rows_pass_images_that_are_stuck_and_those_that_were_given_up(
    serving: Serving, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    renderer = serving.engine._engine.renderer
    render = renderer.render_cmpl_async

    async def ask() -> tuple[Generation, list[Any]]:
        opened = asyncio.Event()

        async def stuck(requests: list[Any]) -> Any:
            if "multi_modal_data" in requests[0]:
                await opened.wait()
            return await render(requests)

        monkeypatch.setattr(renderer, "render_cmpl_async", stuck)

        async def one(prompt: Prompt) -> Generation:
            return await serving.engine.generate(prompt, max_tokens=1, seed=None)

        rows = [replace(prompts[2], row_id=f"row-{shade}", images=[plain(shade)]) for shade in range(30, 35)]
        with_images = [asyncio.create_task(one(row)) for row in rows]
        text = await one(prompts[0])
        assert not any(task.done() for task in with_images)
        with_images[0].cancel()  # one that is there
        with_images[3].cancel()  # one that waits
        await asyncio.sleep(0)
        opened.set()
        return text, await asyncio.gather(*with_images, return_exceptions=True)

    text, found = serving.loop.run_until_complete(ask())
    assert len(text.completions) == 3
    assert [isinstance(one, asyncio.CancelledError) for one in found] == [True, False, False, True, False]
    assert all(len(found[index].completions) == 3 for index in (1, 2, 4))


def test_an_image_that_was_given_up_on_its_way_to_the_engine_is_sent_again(
    serving: Serving, prompts: list[Prompt]
) -> None:
    """vLLM notes it as sent when it is ready: the engine then ends the next request with the same picture."""
    renderer = serving.engine._engine.renderer
    given_up = [replace(prompts[2], row_id="the-next", images=[plain(shade)]) for shade in (77, 78)]
    for row in given_up:
        serving.loop.run_until_complete(renderer.render_cmpl_async([_as_vllm(row)]))
    with pytest.raises(RequestFailedError):
        serving.generate(given_up[0], max_tokens=4)
    generate = Generate(serving.engine, SamplingSpec(n=3, max_tokens=4), int(serving.args["max_model_len"]))
    generation = serving.loop.run_until_complete(generate(given_up[1]))
    assert {len(one.token_ids) for one in generation.completions} == {4}
    assert {one.finish_reason for one in generation.completions} == {"length"}


@pytest.mark.parametrize(
    ("ends", "token_ids"), [(("error", "error", "error"), []), ((None, "error", None), [5]), (("stop", "error"), [5])]
)
def test_what_the_engine_ends_with_an_error_is_no_answer(
    serving: Serving,
    prompts: list[Prompt],
    monkeypatch: pytest.MonkeyPatch,
    ends: tuple[str | None, ...],
    token_ids: list[int],
) -> None:
    async def generate(*_: Any) -> AsyncIterator[Any]:
        samples = [
            SimpleNamespace(index=index, token_ids=token_ids, finish_reason=end) for index, end in enumerate(ends)
        ]
        yield SimpleNamespace(num_cached_tokens=0, outputs=samples)
        pytest.fail("the other samples are not waited for")

    monkeypatch.setattr(serving.engine._engine, "generate", generate)
    with pytest.raises(RequestFailedError, match="its log has the cause"):
        serving.generate(prompts[0])


def test_it_tells_what_it_works_on(serving: Serving, prompts: list[Prompt]) -> None:
    loads: list[EngineLoad] = []

    def look(_: int, __: list[int]) -> bool:
        loads.append(serving.engine.load())
        return True

    async def ask() -> None:
        await asyncio.gather(
            *(
                serving.engine.generate(replace(prompt, row_id=str(index)), max_tokens=200, seed=None, on_tokens=look)
                for index, prompt in enumerate(prompts * 2)
            )
        )

    serving.loop.run_until_complete(ask())
    assert max(load.running for load in loads) == 16, "of 24 samples as many as there are slots"
    assert max(load.queued for load in loads) > 0
    assert 0 < max(load.kv_cache_ratio for load in loads) <= 1


def test_a_seeded_row_does_not_depend_on_order(serving: Serving, prompts: list[Prompt]) -> None:
    alone = [serving.generate(prompt, seed=5)[0] for prompt in prompts[:2]]
    together = serving.generate(*reversed(prompts[:2]), seed=5)
    assert [ids(one) for one in reversed(together)] == [ids(one) for one in alone]
    assert ids(serving.generate(prompts[0], seed=6)[0]) != ids(alone[0])


def test_seeded_prompts_that_do_not_fit_one_step_are_read_one_after_the_other(
    serving: Serving, prompts: list[Prompt]
) -> None:
    """Cut in two, any of them would end an engine on CPUs: a step takes 4,096 tokens."""
    rows = [
        replace(
            prompts[0], row_id=f"long {row}", token_ids=as_ids(serving.tokenizer.encode_text(f"{row} " + text))[:1800]
        )
        for row in range(16)
        for text in ["and so on, " * (300 + 20 * row)]
    ]
    rows += [replace(prompts[2], row_id=f"image {row}", images=[plain(row)]) for row in range(16)]
    rows += [replace(prompts[1], row_id=f"short {row}") for row in range(64)]
    asked = sum(len(row.token_ids) for row in rows)
    assert asked > 4 * serving.args["max_num_batched_tokens"]
    assert max(len(row.token_ids) for row in rows) > 1500
    together = serving.generate(*rows, max_tokens=4, seed=5)
    assert [len(one.completions) for one in together] == [3] * len(rows)
    assert ids(serving.generate(rows[15], max_tokens=4, seed=5)[0]) == ids(together[15])


def test_the_scheduler_lets_a_prompt_wait_rather_than_cut_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's own name is overridden: its arguments, and what it returns, are those that are known."""
    from vllm.v1.core.sched.scheduler import Scheduler

    from magbatch.engines.whole import WholePrompts

    names = [*inspect.signature(Scheduler._try_schedule_encoder_inputs).parameters]
    assert names == [
        "self", "request", "num_computed_tokens", "num_new_tokens", "encoder_compute_budget", "shift_computed_tokens"
    ]  # fmt: skip
    given = {90: ([0], 40, 10, [], []), 40: ([0], 40, 10, [], [])}
    monkeypatch.setattr(
        Scheduler, "_try_schedule_encoder_inputs", lambda self, request, computed, new, budget, **_: given[new]
    )
    scheduler = WholePrompts.__new__(WholePrompts)
    assert scheduler._try_schedule_encoder_inputs(None, 0, 90, 100) == ([], 0, 100, [], [])
    assert scheduler._try_schedule_encoder_inputs(None, 0, 40, 100, shift_computed_tokens=0) == given[40]


def test_an_image_is_seen(serving: Serving, prompts: list[Prompt]) -> None:
    first, second = prompts[2], prompts[3]
    assert first.token_ids == second.token_ids
    assert first.images[0].rgb != second.images[0].rgb
    as_asked = serving.generate(first, second, seed=9)
    assert ids(as_asked[0]) != ids(as_asked[1])


def test_thinking_is_cut_at_its_budget_and_the_answer_follows(serving: Serving, prompts: list[Prompt]) -> None:
    """Hot as it is, the model hardly closes its thinking in time by itself: then the budget does, to the token."""
    tokenizer, budget = serving.tokenizer, 20
    spec = spec_for(Path("/nowhere/x.parquet"), n=3, max_tokens=40)
    plan = ThinkingPlan(tokenizer, budget, thinks=True, schema=None)
    generate = Generate(serving.engine, spec.sampling, 2400, plan=plan)
    generation = serving.loop.run_until_complete(generate(prompts[0]))
    answers = [Parser(tokenizer)(completion) for completion in generation.completions]
    assert len(answers) == 3
    cut = [answer for answer in answers if answer.status == ReasoningStatus.BUDGET]
    assert cut
    assert {answer.reasoning_tokens for answer in cut} == {budget}
    assert all(answer.answer_tokens > 0 for answer in answers)
    for completion in generation.completions:
        assert tokenizer.think_close in completion.token_ids
        assert tokenizer.think_open not in completion.token_ids, "it thinks again, beyond the budget"


def test_a_document_in_parts_is_one_row_of_the_real_engine(serving: Serving, tmp_path: Path) -> None:
    """Twelve pages, four pictures a prompt: three parts, then one prompt over their answers, with three samples."""
    frames = [Pillow.open(io.BytesIO(picture(str(page), "white"))) for page in range(12)]
    pq.write_table(pa.table({"scan": [tiff(*frames)]}), tmp_path / "rows.parquet")
    text = spec_for(tmp_path / "rows.parquet", n=3, max_tokens=12, seed=3).to_yaml()
    source = {
        "path": f"{tmp_path}/rows.parquet",
        "columns": {"document": "scan"},
        "document": {"overflow": "map_reduce"},
    }
    limits = {"max_images": 4, "max_prompt_tokens": 2000}
    changes = {
        "input": source,
        "prompt": {"template": "What is it?"},
        "limits": limits,
        "reasoning": {"budget_tokens": 5},
    }
    spec = parse(yaml.safe_dump(yaml.safe_load(text) | changes))
    plan = make_plan(spec)
    (prompt,) = Preparer(JobContext(spec, plan.columns), steps_of(spec, plan))(plan.shard(0)).prompts
    assert [len(part.images) for part in prompt.page_groups] == [4, 4, 4]
    tokenizer = serving.tokenizer
    prompter = Prompter(spec, locate(spec.model, weights=False).path, tokenizer, 2400)
    generate = Generate(serving.engine, spec.sampling, 2400, plan=ThinkingPlan.of(spec, tokenizer))
    ask = RowAnswerer(generate, Parser(tokenizer), Checker(spec.answer, 5.0), 3, prompter)
    row = serving.loop.run_until_complete(ask(prompt, Progress()))
    assert (row.total_pages, len(row.answers)) == (12, 3)
    assert [(part.first_page, part.last_page) for part in row.page_group_answers] == [(1, 4), (5, 8), (9, 12)]
    assert row.prompt_tokens > sum(len(part.token_ids) for part in prompt.page_groups)
    assert all(part.reasoning and part.status == ReasoningStatus.BUDGET for part in row.page_group_answers)
    assert 3 * 5 < sum(answer.reasoning_tokens for answer in row.answers) <= 6 * 5


def test_a_prompt_the_engine_cannot_hold_is_rejected_and_it_serves_on(serving: Serving, prompts: list[Prompt]) -> None:
    too_long = Prompt("long", prompts[0].token_ids * 400)
    with pytest.raises(RequestRejectedError):
        serving.generate(too_long)
    assert serving.generate(prompts[0], max_tokens=4)


def test_a_cancelled_row_is_aborted(serving: Serving, prompts: list[Prompt]) -> None:
    async def cancel() -> None:
        task = asyncio.ensure_future(serving.engine.generate(prompts[0], max_tokens=6000, seed=None))
        await asyncio.sleep(0.5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    serving.loop.run_until_complete(cancel())
    assert serving.generate(prompts[1], max_tokens=4)


def test_an_engine_that_cannot_start_says_why(tmp_path: Path) -> None:
    checkpoint = locate(spec_for(tmp_path / "x.parquet").model, weights=True).path
    with pytest.raises(EngineStartError, match="no_such_argument"):
        VllmEngine(EngineConfig(checkpoint, {"no_such_argument": 1}, SamplingSpec(), 0))


QUICKSTART = [
    "run", "jobs/quickstart.yaml", "--set", "output.commit_interval_s=0.3", "--set", "sampling.max_tokens=400",
    "--set", "sampling.ignore_eos=true", "--set", "model.engine_args.max_num_seqs=4",
]  # fmt: skip


@pytest.mark.fire
def test_an_interrupt_leaves_no_process_and_the_same_command_goes_on(tmp_path: Path) -> None:
    """Ctrl-C under the real engine, and its children."""
    output = tmp_path / "out"
    process = start(*QUICKSTART, "--set", f"output.path={output}", log=tmp_path / "log")
    wait_until(lambda: committed(output) > 0 or process.poll() is not None, "a first commit")
    family = descendants(process)
    assert named(family, "VLLM")
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 3, (tmp_path / "log").read_text()
    assert alive(family) == []
    rest = magbatch(*QUICKSTART, "--set", f"output.path={output}")
    assert rest.returncode == 0, rest.stderr
    rows = read(output)
    assert len({row["row_id"] for row in rows}) == len(rows) == 60
    assert magbatch("verify", str(output)).returncode == 0
