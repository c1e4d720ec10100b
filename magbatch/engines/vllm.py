"""vLLM's AsyncLLM behind the engine seam. Besides `whole`, no other file of the engines imports vllm.

The settings are for offline work. Tokens arrive in large chunks: a message of the engine for each token would cost more
than the token. Detokenizing in vLLM is off: its incremental detokenizer is slow with Mistral's tokenizer. The
engine's process resizes no image: images arrive at the size that the model takes.
"""

import asyncio
import os
import re
import time
from collections.abc import Iterator
from contextlib import aclosing, contextmanager, nullcontext, suppress
from dataclasses import replace
from typing import Any
from uuid import uuid4

from magbatch.capture import STDERR, captured
from magbatch.engines.base import HUGE_PAGES, UNCONSTRAINED, EngineConfig, EngineLoad, OnTokens, RequestShape
from magbatch.errors import EngineDeadError, EngineStartError, RequestFailedError, RequestRejectedError
from magbatch.guard import how_it_ended
from magbatch.model.tokenizer import picture
from magbatch.rows import Completion, Generation, Prompt

# vLLM configures its logging when it is imported. Its lines below WARNING are useless offline.
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # a failed start is explained from stderr
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

CHUNK_TOKENS = 64  # tokens between two messages about a sample
# vLLM has one thread for images: one row is in it, and the next is at hand. With more rows, their tasks would keep the
# event loop from the first row that is ready, and the engine would wait for requests (bench/NOTES.md).
IMAGE_ROWS_RENDERED_AT_ONCE = 2

NEVER_LOGIT = -100.0  # logit bias that bans a token, in vLLM as in OpenAI's API
LOG_BYTES = 64_000  # bytes read from the end of a log: enough for a traceback of each process of the engine
_ERROR_LINE = re.compile(r"(?:^|\s)((?:\w+\.)*\w*(?:Error|Exception|Interrupt)\b: .+)$")


class VllmEngine:
    """A vLLM engine, with its processes as children of this process.

    Args:
        config: Checkpoint, resolved arguments, sampling.

    Raises:
        EngineStartError: The engine did not start; the message has vLLM's own error.
    """

    def __init__(self, config: EngineConfig) -> None:
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
        # The engine's process logs the root cause, and tells this process only that it failed.
        with captured(STDERR, replay=True) as said:
            try:
                from vllm import SamplingParams
                from vllm.engine.arg_utils import AsyncEngineArgs
                from vllm.platforms import current_platform
                from vllm.sampling_params import RequestOutputKind
                from vllm.v1.engine.async_llm import AsyncLLM

                if current_platform.is_cpu():
                    # As many threads as the replica has CPUs, not pinned: other replicas would pin the same cores.
                    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
                    # Each step reads all weights, and the KV cache of all rows: huge pages save 5% of the time with
                    # the built-in model (bench/NOTES.md). The kernel's usual setting, `madvise`, gives them on request.
                    os.environ.setdefault(HUGE_PAGES, "1")
                args = AsyncEngineArgs(model=str(config.checkpoint), **config.args)
                sampling = config.sampling.model_dump(exclude={"max_tokens", "seed"})
                self._params = SamplingParams(
                    **sampling, output_kind=RequestOutputKind.DELTA, stream_interval=CHUNK_TOKENS,
                    detokenize=False, skip_special_tokens=False,
                )  # fmt: skip
                self._stats = _Stats()
                self._rendering = asyncio.Semaphore(IMAGE_ROWS_RENDERED_AT_ONCE)
                loggers = [_logger_for(self._stats)] if config.counts else None
                self._engine = AsyncLLM.from_engine_args(args, stat_loggers=loggers)
                # Private names of vLLM. If vLLM renames them, no engine starts, so no death stays unexplained.
                self._ended = self._engine.engine_core.resources.engine_manager.finished_procs
                self._cause: str | None = None
            except Exception as error:  # vLLM has no common class for the errors of a start
                raise EngineStartError(_first_cause(error, said.text())) from error

    async def generate(
        self,
        prompt: Prompt,
        *,
        max_tokens: int,
        seed: int | None,
        on_tokens: OnTokens | None = None,
        form: RequestShape = UNCONSTRAINED,
    ) -> Generation:
        """Generate with vLLM; see `Engine.generate`."""
        from vllm.sampling_params import StructuredOutputsParams

        params = self._params.clone()
        params.max_tokens, params.seed = max_tokens, seed
        params.n = form.samples or params.n
        if form.stop is not None:
            params.stop_token_ids = [form.stop]
        if form.banned_token is not None:
            params.logit_bias = {form.banned_token: NEVER_LOGIT}
        if form.schema is not None:
            params.structured_outputs = StructuredOutputsParams(json=form.schema)
        began = time.monotonic()
        completions, cached = await self._ask(prompt, params, on_tokens)
        return Generation(completions, cached, time.monotonic() - began)

    async def _ask(self, prompt: Prompt, params: Any, on_tokens: OnTokens | None) -> tuple[list[Completion], int]:
        """The samples of one request, and the number of prompt tokens that were cached."""
        tokens: list[list[int]] = [[] for _ in range(params.n)]
        reasons: list[str | None] = [None] * params.n
        cached = 0
        with self._errors_of_a_request():
            async with self._rendering if prompt.images else nullcontext():
                asked = await asyncio.to_thread(_as_vllm, prompt) if prompt.images else _as_vllm(prompt)
                (rendered,) = await self._engine.renderer.render_cmpl_async([asked])
            # Each request gets a new id: a retried row must not collide with its own older request in the engine.
            request = self._engine.generate(rendered, params, f"{prompt.row_id}-{uuid4().hex[:8]}")
            async with aclosing(request) as outputs:  # an early close aborts the rest of the request
                async for output in outputs:
                    cached = output.num_cached_tokens or cached
                    for item in output.outputs:
                        if reasons[item.index] is not None:
                            continue
                        # For example, only one of vLLM's two processes still has an image after a cancelled row.
                        if item.finish_reason == "error":
                            raise RequestFailedError(
                                "the engine ended the request with an internal error: its log has the cause"
                            )
                        tokens[item.index] += item.token_ids
                        reasons[item.index] = item.finish_reason
                        if on_tokens is not None and not on_tokens(item.index, item.token_ids):
                            reasons[item.index] = item.finish_reason or "repetition"
                    if None not in reasons:
                        break
        if None in reasons:
            raise RequestFailedError("the engine returned no whole output")
        return [Completion(*sample) for sample in zip(tokens, map(str, reasons), strict=True)], cached

    @contextmanager
    def _errors_of_a_request(self) -> Iterator[None]:
        """Raise vLLM's errors as those of `Engine.generate`."""
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError as VllmDeadError
        from vllm.v1.engine.exceptions import EngineGenerateError

        try:
            yield
        except VllmDeadError as error:
            raise EngineDeadError(self._cause_of_death(error)) from error
        except (VLLMClientError, ValueError, TypeError, EngineGenerateError) as error:
            if self._engine.errored:
                raise EngineDeadError(self._cause_of_death(error)) from error
            kind = RequestFailedError if isinstance(error, EngineGenerateError) else RequestRejectedError
            raise kind(f"{type(error).__name__}: {error}") from error

    def _cause_of_death(self, error: Exception) -> str:
        """The signal that ended the engine's process, in words; without a signal, the last error in its log."""
        if self._cause is None:  # the search runs once, not for each row in the engine
            self._cause = self._found_cause(error)
        return self._cause

    def _found_cause(self, error: Exception) -> str:
        signals = [-code for code in self._ended().values() if code < 0]
        if signals:
            return f"its process {how_it_ended(signals[0])}"
        said = [match.group(1).strip() for line in _logged_last().splitlines() if (match := _ERROR_LINE.search(line))]
        causes = [line for line in said if "EngineDeadError" not in line and "root cause" not in line]
        return causes[-1] if causes else str(error)

    def load(self) -> EngineLoad:
        """The load after vLLM's last step; see `Engine.load`."""
        return self._stats.load()

    def shutdown(self) -> None:
        """End vLLM and its processes; see `Engine.shutdown`."""
        self._engine.shutdown()


def _logged_last() -> str:
    """The end of the log of this process and its engine; empty if stderr is not a file."""
    with suppress(OSError), open("/proc/self/fd/2", "rb") as log:
        size = os.fstat(log.fileno()).st_size
        return os.pread(log.fileno(), LOG_BYTES, max(0, size - LOG_BYTES)).decode(errors="replace")
    return ""


class _Stats:
    """The load that vLLM reports after each step; vLLM calls these records unstable between versions."""

    def __init__(self) -> None:
        self._load = EngineLoad()

    def record(self, scheduler: Any, iteration: Any) -> None:
        # This runs in vLLM's own loop, where an exception would count as the engine's death.
        with suppress(Exception):
            preemptions = self._load.preemptions + (iteration.num_preempted_reqs if iteration is not None else 0)
            self._load = replace(self._load, preemptions=preemptions)
            if scheduler is not None:
                queued = scheduler.num_waiting_reqs + scheduler.num_skipped_waiting_reqs
                self._load = EngineLoad(scheduler.num_running_reqs, queued, scheduler.kv_cache_usage, preemptions)

    def load(self) -> EngineLoad:
        return self._load


def _logger_for(stats: _Stats) -> type:
    """A class of stat logger for vLLM that only passes records on.

    It is a subclass of vLLM's Prometheus logger, so vLLM adds no logger of its own. Such a logger would count every
    token of every step in a registry that is never read.

    Args:
        stats: Receiver of the records.
    """
    from vllm.v1.metrics.loggers import PrometheusStatLogger

    class Logger(PrometheusStatLogger):
        def __init__(self, vllm_config: Any, engine_indexes: Any = None) -> None:
            self.engine_indexes = engine_indexes or [0]

        def record(
            self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
        ) -> None:
            stats.record(scheduler_stats, iteration_stats)

        def record_sleep_state(self, *_: Any, **__: Any) -> None:
            return

        def record_admission_rejection(self, *_: Any, **__: Any) -> None:
            return

        def log_engine_initialized(self) -> None:
            return

        def log(self) -> None:
            return

    return Logger


def _as_vllm(prompt: Prompt) -> Any:
    """A prompt as vLLM's `TokensPrompt`. Equal images share one entry in vLLM's caches, by their digest."""
    request: dict[str, Any] = {"prompt_token_ids": prompt.token_ids.tolist()}
    if prompt.images:
        request["multi_modal_data"] = {
            "image": [picture(image.width, image.height, image.rgb) for image in prompt.images]
        }
        request["multi_modal_uuids"] = {"image": [image.digest for image in prompt.images]}
    return request


def _first_cause(error: Exception, log: str) -> str:
    """The root cause from the log if vLLM's error only refers to it, else vLLM's error."""
    said = [match.group(1).strip() for line in log.splitlines() if (match := _ERROR_LINE.search(line))]
    outer = f"{type(error).__name__}: {error}"
    causes = [line for line in said if line not in outer and "root cause" not in line]
    return causes[0] if causes and "root cause above" in outer else outer
