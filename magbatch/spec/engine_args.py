"""The engine arguments of a spec, held against those that the engine has: no engine is started, and vLLM not imported.

vLLM's are read from the source of the vLLM that is installed. A value is refused only where vLLM's own annotation, or
magbatch itself, has no use for it.
"""

import operator
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from magbatch.spec.fake_args import FakeArgs
from magbatch.spec.mistakes import Written, did_you_mean, field_mistakes, shown
from magbatch.spec.sections import ModelSpec, SamplingSpec
from magbatch.spec.vllm_names import Argument, Kind, VllmSource, installed, plugins

PATH = "model.engine_args"
# What magbatch sets itself, and where a spec says it.
OWN = {
    "model": "model.source names the model",
    "model_weights": "model.source names the model",
    "revision": "model.revision says which version",
    "tokenizer": "prompts are made with the tokenizer of model.source",
    "tokenizer_revision": "prompts are made with the tokenizer of model.source",
}
DATA_PARALLEL = "data_parallel_"
# magbatch reckons with these itself, whatever the engine.
COUNTS = ("max_model_len", "max_num_seqs", "max_num_batched_tokens")
_ELSEWHERE = ("tensor_parallel_size", "pipeline_parallel_size")  # `JobSpec` holds them against replicas.gpus
# Arguments that name a class: by its path, or by one of these words.
_CLASSES: dict[str, tuple[str, ...]] = {
    "distributed_executor_backend": ("ray", "mp", "uni", "external_launcher"),
    "worker_cls": ("auto",),
    "scheduler_cls": (),
    "worker_extension_cls": ("",),
}
_WORDS = {
    "bool": "true or false", "int": "a whole number", "float": "a number", "str": "text", "list": "a list",
    "dict": "a group of fields",
}  # fmt: skip


def engine_mistakes(engine: object, args: object, written: Written) -> list[str]:
    """One line for each wrong engine argument.

    Args:
        engine: `vllm` or `fake`; what is wrong with another is for others to say.
        args: `model.engine_args`, as YAML gives them.
        written: See `Written`, by places below `model.engine_args`.
    """
    if not isinstance(args, dict) or not isinstance(engine, str):
        return []
    if engine == "fake":
        return [f"{PATH}.{line}" for line in _fake_mistakes(args, written)]
    counts = {name: _count_mistake(args[name]) for name in COUNTS if name in args}
    found = {name: said for name, said in counts.items() if said is not None}
    source = installed()
    if engine == "vllm" and source is not None and (known := source.names()):
        for name, value in args.items():
            said = None if name in found else _vllm_mistake(source, known, name, value)
            if said is not None:
                found[name] = said
    return [f"{PATH}.{name}: {said}" for name, said in found.items()]


def unchecked(model: ModelSpec) -> str | None:
    """What a person is told of engine arguments that could not be checked, a line each; None where all were."""
    if model.engine != "vllm" or not model.engine_args:
        return None
    if (source := installed()) is not None:
        return "\n".join(_of_plugins(source, model.engine_args)) or None
    return f"{PATH}: names and values are not checked, because vLLM is not installed here"


def _fake_mistakes(args: dict[str, Any], written: Written) -> list[str]:
    try:
        FakeArgs.model_validate({"max_model_len": 1, "max_num_seqs": 1} | args)
    except ValidationError as error:
        return field_mistakes(error, FakeArgs, written)
    return []


def _count_mistake(value: Any) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return None
    return f"write a whole number of 1 or more (it is {shown(value)})"


def _vllm_mistake(source: VllmSource, known: frozenset[str], name: str, value: Any) -> str | None:
    """What is wrong with one of vLLM's arguments; None if nothing."""
    if name in OWN:
        return f"cannot be set here: {OWN[name]}"
    if name.startswith(DATA_PARALLEL) and name in known:
        return "cannot be set here: replicas.min and replicas.max say how many engines answer"
    if name not in known:
        sampling = f"did you mean `sampling.{name}`?" if name in SamplingSpec.model_fields else None
        hint = sampling or did_you_mean(name, known - OWN.keys(), instead="`vllm serve --help=all` lists them")
        return f"vLLM {source.version} has no such argument; {hint}"
    if name in _ELSEWHERE:
        return None
    found = value_mistake(source.argument(name), value) or _name_mistake(source, name, value)
    return found or _field_mistake(source, source.argument(name), name, value)


def _field_mistake(source: VllmSource, argument: Argument, path: str, value: Any) -> str | None:
    """What is wrong with a field of an argument; None if nothing."""
    if not isinstance(value, dict) or argument.kind.owner is None:
        return None
    for key, item in value.items():
        inner = f"{path}.{_key(key)}"
        field = source.field(argument.kind.owner, _key(key))
        found = value_mistake(field, item) or _name_mistake(source, inner, item)
        found = found or _field_mistake(source, field, inner, item)
        if found is not None:
            return f"{key}: {found}"
    return None


def _key(name: object) -> str:
    return str(name).replace("-", "_")  # as vLLM takes both


def _is_listed(source: VllmSource, path: str, value: Any) -> bool:
    """Whether a value is a name that vLLM itself has, or none that is to be found in a list."""
    known = source.listed(path)
    return not known or not isinstance(value, str) or value.lower() in {name.lower() for name in known}


def _name_mistake(source: VllmSource, path: str, value: Any) -> str | None:
    """What is wrong with a name of a list; None if nothing, or if a plugin of vLLM may have added the name."""
    if path in _CLASSES and isinstance(value, str) and "." not in value:
        choices = [str(choice) for choice in _CLASSES[path]]
        if value in choices:
            return None
        return f"write {_listed([*filter(None, choices), 'package.module.Class'])} (it is {value!r})"
    if _is_listed(source, path, value) or plugins():
        return None
    known = sorted(source.listed(path))
    hint = did_you_mean(value, known, instead=f"it has {_listed(known)}")
    return f"vLLM {source.version} has no {value!r}, and no plugin of vLLM is installed here; {hint}"


def _of_plugins(source: VllmSource, args: dict[str, Any]) -> list[str]:
    """What is allowed because a plugin may have added it."""
    flat = {
        **args,
        **{f"{name}.{_key(key)}": item for name, group in args.items() if isinstance(group, dict)
           for key, item in group.items()},
    }  # fmt: skip
    unknown = [path for path, value in flat.items() if not _is_listed(source, path, value)]
    return [
        f"{PATH}.{path}: {flat[path]!r} is none of vLLM's own names; an installed plugin "
        f"({', '.join(plugins())}) has to add it"
        for path in unknown
    ]


def value_mistake(argument: Argument, value: Any) -> str | None:
    """What is wrong with the value of an argument; None if nothing, or if the source does not tell."""
    kind = argument.kind
    if kind.anything or _is_choice(kind, value):
        return None
    if not _has_type(kind, value):
        if value is None:
            return "is empty; leave it out for vLLM's own default"
        if isinstance(value, str) and kind.choices:
            choices = [str(choice) for choice in kind.choices]
            hint = did_you_mean(value, choices, instead=f"write one of {_listed(choices)}")
            return f"no such choice; {hint} (it is {value!r})"
        return f"write {' or '.join(_allowed(kind))} (it is {shown(value)})"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _out_of_bounds(argument.bounds, value)
    if isinstance(value, dict) and kind.fields is not None:
        for name in [name for name in value if _key(name) not in kind.fields]:
            hint = did_you_mean(name, kind.fields, instead=f"it has {_listed(sorted(kind.fields))}")
            return f"no such field {name!r}; {hint}"
    return None


def _is_choice(kind: Kind, value: Any) -> bool:
    def plain(item: Any) -> Any:  # vLLM takes some choices in other spellings
        return item.lower().replace("-", "_") if isinstance(item, str) else (type(item), item)

    return plain(value) in map(plain, kind.choices) if not isinstance(value, dict | list) else False


def _has_type(kind: Kind, value: Any) -> bool:
    names = {bool: ("bool",), int: ("int", "float"), float: ("float",), str: ("str",), list: ("list",), dict: ("dict",)}
    return not kind.types.isdisjoint(names.get(type(value), ("null",) if value is None else ()))


def _allowed(kind: Kind) -> Iterator[str]:
    yield from (_WORDS[name] for name in _WORDS if name in kind.types)
    if kind.choices:
        yield f"one of {_listed([str(choice) for choice in kind.choices])}"


def _listed(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 12 else f"{', '.join(names[:12])} and {len(names) - 12} more"


def _out_of_bounds(bounds: dict[str, float], value: float) -> str | None:
    words = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
    if all(getattr(operator, name)(value, limit) for name, limit in bounds.items()):
        return None
    return (
        f"write a number {' and '.join(f'{words[name]} {limit:g}' for name, limit in bounds.items())} (it is {value})"
    )
