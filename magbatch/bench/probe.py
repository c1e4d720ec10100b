"""A probe inside vLLM's own processes, the same for every arm of a benchmark.

vLLM loads the probe as a plugin, only in the processes of a benchmark: `plugin_folder` makes the folder for their
PYTHONPATH. The probe records the time of a ready front end, its engine's settings, and the time of the first request.
It does not change the behaviour of vLLM.
"""

import functools
import json
import multiprocessing
import os
import struct
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

EVENTS_ENV = "MAGBATCH_BENCH_EVENTS"  # folder of the events; without it the probe does nothing
HELD_ENV = "MAGBATCH_BENCH_HELD"  # if set, a ready engine waits for `release`
STEPS_ENV = "MAGBATCH_BENCH_STEPS"  # if set, every step of the scheduler is recorded
EVENTS, STEPS, GO = "events.jsonl", "steps.bin", "go"
GO_INTERVAL_S = 0.01
HELD_AT_MOST_S = 900.0  # bounds the wait: the benchmark may have been killed
STEP = struct.Struct("<dII")  # Unix time (s), sequences in the step, requests finished before the step

# Settings in which the engines of two arms must agree, by the section of vLLM's configuration.
SETTINGS = {
    "model_config": ("model", "dtype", "max_model_len", "enforce_eager", "quantization", "seed"),
    "scheduler_config": (
        "max_num_seqs", "max_num_batched_tokens", "enable_chunked_prefill", "async_scheduling", "policy",
        "max_num_partial_prefills", "long_prefill_token_threshold", "scheduler_cls",
    ),
    "cache_config": (
        "enable_prefix_caching", "prefix_caching_hash_algo", "block_size", "cache_dtype", "num_gpu_blocks",
        "kv_cache_memory_bytes",
    ),
    "parallel_config": (
        "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "distributed_executor_backend",
        "worker_cls",
    ),
    "compilation_config": ("mode", "cudagraph_mode", "backend"),
    "load_config": ("load_format",),
    "model_config.multimodal_config": ("mm_processor_cache_gb", "mm_processor_cache_type"),
}  # fmt: skip


def plugin_folder(folder: Path) -> Path:
    """Make a folder that registers this module as a plugin of vLLM."""
    about = folder / "magbatch_bench_probe-0.dist-info"
    about.mkdir(parents=True, exist_ok=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: magbatch-bench-probe\nVersion: 0\n")
    (about / "entry_points.txt").write_text(f"[vllm.general_plugins]\nmagbatch_bench_probe = {__name__}:install\n")
    return folder


def install() -> None:
    """Install the probe; vLLM calls this in each of its processes before it makes an engine."""
    folder = os.environ.get(EVENTS_ENV)
    if not folder:
        return
    if multiprocessing.current_process().name.startswith("EngineCore"):
        _watch_engine(Path(folder))
    elif multiprocessing.parent_process() is None:  # a worker of the engine has a parent process
        _watch_front_end(Path(folder))


def note(folder: Path, kind: str, **facts: Any) -> None:
    """Append an event with its Unix time (seconds), in one write so that lines stay whole."""
    line = json.dumps({"event": kind, "at": time.time(), "pid": os.getpid()} | facts)
    with open(folder / EVENTS, "ab", buffering=0) as file:
        file.write(f"{line}\n".encode())


def hold(folder: Path) -> None:
    """Record that a front end is ready, and wait until it is released."""
    note(folder, "ready")
    deadline = time.monotonic() + HELD_AT_MOST_S
    while os.environ.get(HELD_ENV) and not (folder / GO).exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"the benchmark did not release this engine within {HELD_AT_MOST_S:,.0f} s")
        time.sleep(GO_INTERVAL_S)
    note(folder, "go")


def release(folder: Path) -> None:
    """Release an engine that is held."""
    (folder / GO).touch()


def events(folder: Path) -> list[dict[str, Any]]:
    """Events recorded so far."""
    path = folder / EVENTS
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def steps(folder: Path) -> list[tuple[float, int, int]]:
    """Steps of the engine: Unix time of the start (s), number of sequences, requests finished before it."""
    data = (folder / STEPS).read_bytes()
    return list(STEP.iter_unpack(data[: len(data) // STEP.size * STEP.size]))


def resolved(config: Any) -> dict[str, Any]:
    """Settings that an engine runs with: text, numbers and truth values by `section.name`."""
    found: dict[str, Any] = {}
    for part, names in SETTINGS.items():
        for name in names:
            value = functools.reduce(lambda held, one: getattr(held, one, None), [*part.split("."), name], config)
            found[f"{part}.{name}"] = value if value is None or isinstance(value, bool | int | float) else str(value)
    return found


def _watch_front_end(folder: Path) -> None:
    from vllm.v1.engine.async_llm import AsyncLLM

    made: Callable[..., None] = AsyncLLM.__init__

    @functools.wraps(made)
    def make(self: Any, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **kwargs)
        hold(folder)

    AsyncLLM.__init__ = make


def _watch_engine(folder: Path) -> None:
    from vllm.platforms import current_platform
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.engine.core import EngineCore

    sized, added, scheduled = EngineCore._initialize_kv_caches, Scheduler.add_request, Scheduler.schedule
    count = 0

    @functools.wraps(sized)
    def size(self: Any, config: Any, *args: Any, **kwargs: Any) -> Any:
        found = sized(self, config, *args, **kwargs)
        settings = resolved(config) | {"device": current_platform.get_device_name()}
        note(folder, "engine", settings=settings, log_stats=self.log_stats, env=_environment(os.environ))
        return found

    @functools.wraps(added)
    def add(self: Any, request: Any) -> Any:
        nonlocal count
        if not count:
            note(folder, "first request")
        count += 1
        return added(self, request)

    EngineCore._initialize_kv_caches, Scheduler.add_request = size, add
    if not os.environ.get(STEPS_ENV):
        return
    file = open(folder / STEPS, "ab", buffering=0)  # noqa: SIM115 - for as long as the process lives

    @functools.wraps(scheduled)
    def schedule(self: Any, *args: Any, **kwargs: Any) -> Any:
        finished = count - len(self.requests)
        output = scheduled(self, *args, **kwargs)
        file.write(STEP.pack(time.time(), len(output.num_scheduled_tokens), finished))
        return output

    Scheduler.schedule = schedule


def _environment(env: Mapping[str, str]) -> dict[str, str]:
    """Environment variables that change an engine's speed."""
    names = (
        "OMP_NUM_THREADS", "THP_MEM_ALLOC_ENABLE", "VLLM_ATTENTION_BACKEND", "VLLM_CPU_KVCACHE_SPACE",
        "VLLM_CPU_OMP_THREADS_BIND",
    )  # fmt: skip
    return {name: env[name] for name in names if name in env}
