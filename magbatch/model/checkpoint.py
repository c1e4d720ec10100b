"""Where a model's files come from, which version of them a job has, and what they say about the model.

The reading steps need only the tokenizer and the configuration; an engine needs the weights too.
Each node fetches either at most once. A job has one version of both: a plan resolves it, and every
node takes that one or none.
"""

import errno
import json
import os
import re
import shutil
import socket
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx

from magbatch.errors import ModelError, RowError, SpecError, StorageError, mistake_in
from magbatch.spec import JobSpec, ModelSpec
from magbatch.spec.vllm_names import CPU_BLOCK
from magbatch.storage import open_store
from magbatch.storage.contact import is_unattended
from magbatch.storage.input_file import DiskFile
from magbatch.storage.inputs import fetch_prefix
from magbatch.storage.s3 import NoBucketError

SMALL_FILES = ("params.json", "tekken.json", "SYSTEM_PROMPT.txt")
_SMALL = re.compile(r"(params\.json|tekken\.json|SYSTEM_PROMPT\.txt)")
# Mistral's own format; the same weights in Hugging Face's format are left where they are.
_ALL = re.compile(r"(params\.json|tekken\.json|SYSTEM_PROMPT\.txt|consolidated.*\.(safetensors|json))")
_OF_NETWORK = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN)
_SUMMED = "sha256:"  # what the revision of files that have none of their own begins with

# What is wrong with a first answer, and the second one, stand behind the first.
SECOND_ANSWER_TOKENS = 2048
OFFLINE_SEQS_GPU = 256  # KV capacity, not compute, is the limit; vLLM preempts beyond it
OFFLINE_SEQS_CPU = 64
OFFLINE_BATCHED_TOKENS_GPU = 16384  # long prompts are read in few steps; latency does not matter here
OFFLINE_BATCHED_TOKENS_CPU = 4096
CPU_KV_CACHE_BYTES = 1 << 30
DEVICES_A_NODE = 8  # as GPU machines have them; a replica of more is spread over several
# vLLM makes "uni" into "mp" on CPUs, where its worker pins threads in a process of its own: a third one that imports
# torch and vLLM (16 of the 52 s of CPU that a start takes). By its name it is left as it is.
CPU_EXECUTOR = "vllm.v1.executor.uniproc_executor.UniProcExecutor"


# Of a job with a seed on CPUs, where an engine that reads a prompt in more than one step dies: see `engines/whole.py`.
WHOLE_PROMPTS = "magbatch.engines.whole.WholePrompts"
_NEVER_WHOLE = ("enable_chunked_prefill", "long_prefill_token_threshold", "scheduler_cls", "speculative_config")


def cache_dir() -> Path:
    """Where fetched and built checkpoints are kept: `$MAGBATCH_CACHE`, else ~/.cache/magbatch."""
    return Path(os.environ.get("MAGBATCH_CACHE") or Path.home() / ".cache" / "magbatch")


@contextmanager
def _in_cache() -> Iterator[None]:
    """Raise what the cache's disk refuses as a mistake to mend.

    Raises:
        ModelError: The folder cannot be made or written, or is full.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:  # a RuntimeError: this user has no home
        set_by = os.environ.get("MAGBATCH_CACHE")
        where = f"MAGBATCH_CACHE={set_by}" if set_by else f"HOME={os.environ.get('HOME', '')}"
        reason = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
        raise ModelError(
            f"{where}: the model's files cannot be kept there ({reason}); set MAGBATCH_CACHE to a folder that can be "
            "written and has room"
        ) from error


@contextmanager
def _only_one(path: Path) -> Iterator[None]:
    """One process of this node at a time; the lock goes with the process that holds it."""
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def resolve(model: ModelSpec) -> str:
    """The version of a model's files as they are now, by which `locate` gives the same ones on every node.

    Args:
        model: The spec's model part.

    Returns:
        A hub model's commit; of other sources `sha256:` and checksums of the small files and of the weights: of names
        and ETags in object storage, of names and contents in a directory (of large files, of parts).

    Raises:
        ModelError: As `locate`; or the spec names a revision that its source does not have.
        StorageError: Object storage refuses.
    """
    path = locate(model, weights=False)
    if _is_hub(model.source):
        return path.name  # the hub's own cache has a folder for each commit
    with mistake_in("model.source", ModelError):
        found = _s3_version(model.source) if model.source.startswith("s3://") else _local_version(model.source, path)
    if found is None:
        raise ModelError(f"model.source {model.source}: its files are gone")
    if model.revision not in (None, found):
        raise ModelError(
            f"model.revision {model.revision}: {model.source} is {found}; only models of the hub have others: leave "
            "model.revision out, or name the directory of that version in model.source"
        )
    return found


def locate(model: ModelSpec, *, weights: bool) -> Path:
    """A local directory with the model's files, fetched at most once per node.

    Args:
        model: The spec's model part; its revision may be one that `resolve` gave.
        weights: Whether the weights are needed, or the tokenizer and configuration alone.

    Raises:
        ModelError: The source is not there, has another version, or is no checkpoint in Mistral's format.
        StorageError: Object storage refuses.
    """
    source = model.source
    frozen = model.revision if model.revision and model.revision.startswith(_SUMMED) else None
    if source == "builtin:tiny":
        from magbatch.tiny.checkpoint import ensure

        with _in_cache():
            path = ensure()
    elif source.startswith("builtin:"):
        raise ModelError(f"model.source {source}: the built-in model is builtin:tiny")
    elif source.startswith("s3://"):
        with mistake_in("model.source", ModelError), _in_cache():
            path = _from_s3(source, frozen, weights)
    elif os.path.isabs(source):
        path = Path(source)
        if not path.is_dir():
            raise ModelError(f"model.source {source}: there is no such directory")
    else:
        path = _from_hub(source, model.revision, weights)
    _check(source, path)
    if frozen is not None and not source.startswith("s3://"):
        _must_be(source, frozen, _local_version(source, path), weights=weights)
    return path


def _is_hub(source: str) -> bool:
    return not source.startswith(("builtin:", "s3://")) and not os.path.isabs(source)


def _must_be(source: str, frozen: str, found: str | None, *, weights: bool) -> None:
    """Where the weights are not needed, they need not be there."""
    if found == frozen or (found is not None and not weights and found.partition("-")[0] == frozen.partition("-")[0]):
        return
    raise ModelError(
        f"model.source {source}: its files are not those that the job was planned with ({frozen} then, {found} now); "
        "bring those back, or run the spec into a new output"
    )


def _version(marks: dict[str, str]) -> str:
    """The version of a checkpoint.

    Args:
        marks: For each file by its name what changes when its content does.
    """

    def summed(of_weights: bool) -> str:
        chosen = sorted(item for item in marks.items() if (_SMALL.fullmatch(item[0]) is None) == of_weights)
        return sha256(json.dumps(chosen).encode()).hexdigest()[:16]

    return f"{_SUMMED}{summed(False)}-{summed(True)}"


def _local_version(source: str, path: Path) -> str:
    marks = {}
    try:
        for file in path.iterdir():
            if _SMALL.fullmatch(file.name):
                marks[file.name] = sha256(file.read_bytes()).hexdigest()
            elif _ALL.fullmatch(file.name):
                found = file.stat()
                with DiskFile(str(file), found.st_size, str(found.st_mtime_ns)) as weights:
                    marks[file.name] = f"{found.st_size} {weights.digest}"
    except (OSError, RowError) as error:
        raise ModelError(f"model.source {source}: {error}") from error
    return _version(marks)


def _s3_version(source: str) -> str | None:
    """None where there are no files."""
    try:
        found = list(open_store(source).list(""))
    except NoBucketError as error:
        raise ModelError(f"model.source {source}: there is no such bucket") from error
    marks = {item.name: f"{item.size} {item.tag}" for item in found if _ALL.fullmatch(item.name)}
    return _version(marks) if marks else None


def _check(source: str, path: Path) -> None:
    for name in ("params.json", "tekken.json"):
        if not (path / name).is_file():
            raise ModelError(f"model.source {source}: {name} is missing; magbatch runs checkpoints in Mistral's format")


def _from_s3(source: str, frozen: str | None, weights: bool) -> Path:
    kind = "all" if weights else "small"
    models, name = cache_dir() / "models", sha256(source.encode()).hexdigest()[:16]
    version = frozen or _s3_version(source)
    if version is None:
        kept = sorted(models.glob(f"{name}-*-{kind}"), key=lambda path: path.stat().st_mtime)
        if kept:  # what was fetched before stays, also when its source is gone
            return kept[-1]
    target = models / f"{name}-{(version or '').removeprefix(_SUMMED)}-{kind}"
    with _only_one(target.with_suffix(".lock")):
        if not target.is_dir():
            draft = Path(tempfile.mkdtemp(prefix="draft-", dir=target.parent))
            try:
                before = _s3_version(source)
                if version is not None:
                    _must_be(source, version, before, weights=weights)
                fetch_prefix(source, draft, _ALL if weights else _SMALL)
                _check(source, draft)  # what is not there yet must not be remembered as fetched
                if _s3_version(source) != before:
                    raise ModelError(f"model.source {source}: its files changed while they were fetched")
                draft.rename(target)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
    return target


def _from_hub(source: str, revision: str | None, weights: bool) -> Path:
    from huggingface_hub import snapshot_download

    patterns = [*SMALL_FILES, *(["consolidated*"] if weights else [])]
    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=patterns))
    except (OSError, ValueError, httpx.HTTPError) as error:  # a ValueError: a name that the hub does not allow
        if _is_overloaded(error):
            raise StorageError(f"model.source {source}: the hub does not answer now: {error}", passing=True) from error
        text = f"model.source {source}: no such local directory, and the hub does not give it: {_hub_mistake(error)}"
        if is_unattended() and any(map(_is_of_network, _hub_causes(error))):
            raise StorageError(text, passing=True) from error
        raise ModelError(text) from error


def _hub_causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what it came from: `huggingface_hub` wraps why it could not ask in one that says too little."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _is_overloaded(error: BaseException) -> bool:
    answers = [getattr(one, "response", None) for one in _hub_causes(error)]
    codes = [answer.status_code for answer in answers if answer is not None]
    return any(code == HTTPStatus.TOO_MANY_REQUESTS or code >= HTTPStatus.INTERNAL_SERVER_ERROR for code in codes)


def _is_of_network(error: BaseException) -> bool:
    """Whether it is the network that refuses; a name that does not resolve is an OSError with a number, too."""
    kinds = httpx.TransportError | ConnectionError | TimeoutError | socket.gaierror | socket.herror | ssl.SSLError
    return isinstance(error, kinds) or (isinstance(error, OSError) and error.errno in _OF_NETWORK)


def _hub_mistake(error: BaseException) -> str:
    """What is wrong with a model of the hub, and what to do."""
    from huggingface_hub import errors

    token = "a private or gated one needs HF_TOKEN, of a user who has access"
    for one in _hub_causes(error):
        if isinstance(one, errors.OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set, and HF_HOME holds no copy; unset it, or set model.source to a directory"
        if isinstance(one, errors.GatedRepoError):
            return "access to it is granted on its page alone; ask there, and set HF_TOKEN"
        if isinstance(one, errors.RevisionNotFoundError):
            return "it has no such revision; write a branch, tag or commit of it in model.revision"
        if isinstance(one, errors.RepositoryNotFoundError):
            return f"it has no such model; write owner/name as on its page; {token}"
        if isinstance(one, errors.HFValidationError):
            return f"this is no model's name there; write owner/name ({one})"
        if isinstance(one, errors.HfHubHTTPError) and one.response is not None:
            return f"it answered {one.response.status_code}; {token}"
        if _is_of_network(one):
            where = os.environ.get("HF_ENDPOINT")
            address = f"HF_ENDPOINT={where}" if where else "huggingface.co"
            return (
                f"{address} cannot be reached from this machine ({one}); check the network, or set model.source to a "
                "directory or s3://"
            )
        if isinstance(one, OSError) and one.errno is not None:
            return f"{one.filename or 'the copy here'}: {one.strerror}; set HF_HOME to a folder that can be written"
    return str(error)


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the checkpoint's configuration says, as far as the steps need it.

    Attributes:
        context: Tokens that the model can hold.
        image_size: Longest side of an image in pixels; None for a model without vision.
        image_cell: Pixels of the side of one image token (patch size x spatial merge).
        latent: Whether its attention keeps latent vectors in place of keys and values (MLA).
    """

    context: int
    image_size: int | None
    image_cell: int
    latent: bool = False


def facts(path: Path) -> ModelFacts:
    """Read params.json.

    Raises:
        ModelError: The file is not what Mistral's checkpoints have.
    """
    try:
        params: dict[str, Any] = json.loads((path / "params.json").read_text(encoding="utf-8"))
        context = int(params.get("max_position_embeddings") or params.get("max_seq_len") or 131_072)
        vision, latent = params.get("vision_encoder"), bool(params.get("kv_lora_rank"))
        if not vision:
            return ModelFacts(context, None, 0, latent)
        cell = int(vision["patch_size"]) * int(vision.get("spatial_merge_size", 1))
        return ModelFacts(context, int(vision["image_size"]), cell, latent)
    except KeyError as error:
        raise ModelError(f"{path / 'params.json'}: vision_encoder has no {error}") from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ModelError(f"{path / 'params.json'}: not a model's configuration: {error}") from error


def engine_args(spec: JobSpec, model: ModelFacts, *, distinct: bool = False) -> dict[str, Any]:
    """The engine's arguments: magbatch's offline defaults below what the spec sets.

    vLLM's own defaults suit serving: without these, `AsyncLLM` takes 128 sequences and 2,048
    batched tokens (measured, vLLM 0.32).

    Args:
        spec: The job.
        model: Its model.
        distinct: Hardly two rows begin with the same; see `Plan.distinct`.

    Raises:
        SpecError: The spec's own arguments would have an engine on CPUs die of the job's seed.
    """
    gpus = spec.replicas.gpus
    # The smallest context in which no allowed prompt loses any of its max_tokens.
    wanted = spec.limits.max_prompt_tokens + spec.sampling.max_tokens
    if spec.answer.schema is not None:
        wanted += SECOND_ANSWER_TOKENS
    defaults: dict[str, Any] = {
        "max_model_len": min(model.context, wanted),
        "max_num_seqs": OFFLINE_SEQS_GPU if gpus else OFFLINE_SEQS_CPU,
    }
    if spec.model.engine == "fake":
        return defaults | spec.model.engine_args
    defaults |= {
        "max_num_batched_tokens": OFFLINE_BATCHED_TOKENS_GPU if gpus else OFFLINE_BATCHED_TOKENS_CPU,
        "tokenizer_mode": "mistral",
        "config_format": "mistral",
        "load_format": "mistral",
        "enable_prefix_caching": True,
        "disable_log_stats": True,
        "tensor_parallel_size": max(1, gpus) // int(spec.model.engine_args.get("pipeline_parallel_size") or 1),
        # One device needs no worker process beside the engine; those of one node are its children; more are Ray's.
        "distributed_executor_backend": "uni" if gpus <= 1 else "mp" if gpus <= DEVICES_A_NODE else "ray",
    }
    if spec.answer.schema is not None:
        # The one backend that knows Mistral's control tokens (measured, vLLM 0.32); blanks between values say nothing.
        defaults["structured_outputs_config"] = {"backend": "guidance", "disable_any_whitespace": True}
    if model.image_size:
        defaults["limit_mm_per_prompt"] = {"image": spec.limits.max_images}
        chosen = "mm_processor_cache_type" in spec.model.engine_args
        if distinct and not chosen and _images_come_once(spec):
            # vLLM would fill 4 GB with images for nobody, each in fresh memory: taking that from the kernel cost the
            # engine up to 5% (two CPU cores; bench/NOTES.md).
            defaults["mm_processor_cache_gb"] = 0
    if not gpus:
        defaults |= {
            "dtype": "float32",
            "enforce_eager": True,
            "kv_cache_memory_bytes": CPU_KV_CACHE_BYTES,
            "distributed_executor_backend": CPU_EXECUTOR,
        }
    args = defaults | spec.model.engine_args
    _check_lengths(spec, args, model)
    return args if gpus or spec.sampling.seed is None or not spec.sampling.temperature else _whole(spec, args)


def _check_lengths(spec: JobSpec, args: dict[str, Any], model: ModelFacts) -> None:
    """Raise SpecError for numbers of tokens and sequences with which vLLM does not start (its `SchedulerConfig`)."""
    counts = {name: value for name, value in args.items() if isinstance(value, int)}
    longest, at_once = counts.get("max_model_len", 1), counts.get("max_num_seqs", 1)
    tokens = counts.get("max_num_batched_tokens", max(longest, at_once))
    long_allowed = os.environ.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "0") != "0" or "hf_overrides" in args
    wrong = ""
    if longest > model.context and not long_allowed:
        wrong = f"max_model_len: {longest} is more than the model's context of {model.context} tokens"
    elif tokens < at_once:
        wrong = f"max_num_batched_tokens: {tokens} is less than max_num_seqs, {at_once}; a step has a token of each"
    elif tokens < longest and args.get("enable_chunked_prefill") is False and spec.replicas.gpus:
        wrong = (
            f"max_num_batched_tokens: {tokens} is less than max_model_len, {longest}; without enable_chunked_prefill "
            "a prompt is read in one step"
        )
    elif counts.get("long_prefill_token_threshold", 0) > longest:
        wrong = f"long_prefill_token_threshold: it is more than max_model_len, {longest}"
    elif counts.get("max_num_active_seqs", 0) > at_once:
        wrong = f"max_num_active_seqs: it is more than max_num_seqs, {at_once}"
    elif not spec.replicas.gpus and not model.latent and counts.get("block_size", 0) % CPU_BLOCK:
        wrong = f"block_size: {counts['block_size']} is no multiple of {CPU_BLOCK}, as vLLM's attention on CPUs needs"
    if wrong:
        raise SpecError(f"model.engine_args.{wrong}")


def _whole(spec: JobSpec, args: dict[str, Any]) -> dict[str, Any]:
    """The arguments with which each prompt is read in one step."""
    own = spec.model.engine_args
    longest = int(args["max_model_len"])
    wrong = [f"{name}: {own[name]}" for name in _NEVER_WHOLE if own.get(name)]
    least = ("max_num_batched_tokens", "max_num_scheduled_tokens")
    wrong += [f"{name}: {own[name]}" for name in least if (own.get(name) or longest) < longest]
    if wrong:
        raise SpecError(
            f"sampling.seed cannot go with model.engine_args {', '.join(wrong)}: vLLM on CPUs dies of a seeded prompt "
            f"that it reads in several steps. Leave these out (tokens in a step: {longest} or more), leave the seed "
            "out, or set sampling.temperature to 0"
        )
    args["max_num_batched_tokens"] = max(longest, int(args["max_num_batched_tokens"]))
    return args | {"enable_chunked_prefill": False, "scheduler_cls": WHOLE_PROMPTS}


def _images_come_once(spec: JobSpec) -> bool:
    """Whether each image comes to the engine once, if hardly two rows begin with the same."""
    columns = spec.input.columns
    asked_again = spec.answer.schema is not None or spec.reasoning.budget_tokens is not None  # for the answer's tokens
    pictures = [*filter(None, [columns.document]), *columns.images]  # the first of which is what a plan looks at
    return len(pictures) == 1 and not asked_again
