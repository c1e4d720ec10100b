"""The check of vLLM's engine arguments, without starting an engine or importing vLLM.

vLLM's arguments are read from the source of the installed vLLM. A value is refused only if vLLM's own annotation or
magbatch itself excludes it.
"""

import operator
from collections.abc import Iterator
from typing import Any

from magbatch.spec.mistakes import Written, did_you_mean, shown
from magbatch.spec.sections_model import SamplingSpec
from magbatch.spec.vllm_names import Argument, Kind, VllmSource, installed, plugins

PATH = "model.engine_args"
# Arguments that magbatch sets itself -> the spec field that decides them.
OWN = {
    "model": "model.source names the model",
    "model_weights": "model.source names the model",
    "revision": "model.revision names the version",
    "tokenizer": "prompts are made with the tokenizer of model.source",
    "tokenizer_revision": "prompts are made with the tokenizer of model.source",
}
DATA_PARALLEL = "data_parallel_"
# Arguments that magbatch itself computes with, for every engine.
COUNTS = ("max_model_len", "max_num_seqs", "max_num_batched_tokens")
_ELSEWHERE = ("tensor_parallel_size", "pipeline_parallel_size")  # `JobSpec` checks them against replicas.gpus
# Arguments that name a class, by its path or by one of these words.
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


def count_mistakes(args: dict[str, Any]) -> dict[str, str]:
    """Mistakes in the arguments that magbatch itself computes with: name to mistake."""
    counts = {name: _count_mistake(args[name]) for name in COUNTS if name in args}
    return {name: said for name, said in counts.items() if said is not None}


def vllm_mistakes(args: dict[str, Any], written: Written) -> list[str]:
    """Describe each wrong argument of vLLM in one line, `name: mistake`.

    Args:
        args: Value of `model.engine_args`, as YAML gives it.
        written: Not needed: the values are compared as they are.
    """
    found = count_mistakes(args)
    source = installed()
    if source is not None and (known := source.names()):
        for name, value in args.items():
            said = None if name in found else _vllm_mistake(source, known, name, value)
            if said is not None:
                found[name] = said
    return [f"{name}: {said}" for name, said in found.items()]


def vllm_notes(args: dict[str, Any]) -> list[str]:
    """Notes on arguments of vLLM that could not be checked, one line each."""
    if not args:
        return []
    if (source := installed()) is not None:
        return _of_plugins(source, args)
    return [f"{PATH}: names and values are not checked, because vLLM is not installed here"]


def _count_mistake(value: Any) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return None
    return f"write a whole number of 1 or more (it is {shown(value)})"


def _vllm_mistake(source: VllmSource, known: frozenset[str], name: str, value: Any) -> str | None:
    """Mistake in one of vLLM's arguments; None if it is right."""
    if name in OWN:
        return f"cannot be set here: {OWN[name]}"
    if name.startswith(DATA_PARALLEL) and name in known:
        return "cannot be set here: replicas.min and replicas.max set the number of engines"
    if name not in known:
        sampling = f"did you mean `sampling.{name}`?" if name in SamplingSpec.model_fields else None
        hint = sampling or did_you_mean(name, known - OWN.keys(), instead="`vllm serve --help=all` lists them")
        return f"vLLM {source.version} has no such argument; {hint}"
    if name in _ELSEWHERE:
        return None
    found = value_mistake(source.argument(name), value) or _name_mistake(source, name, value)
    return found or _field_mistake(source, source.argument(name), name, value)


def _field_mistake(source: VllmSource, argument: Argument, path: str, value: Any) -> str | None:
    """Mistake in a field of an argument; None if all fields are right."""
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
    return str(name).replace("-", "_")  # vLLM accepts both spellings


def _is_listed(source: VllmSource, path: str, value: Any) -> bool:
    """Whether a value is one of vLLM's own names, or the argument takes no listed names."""
    known = source.listed(path)
    return not known or not isinstance(value, str) or value.lower() in {name.lower() for name in known}


def _name_mistake(source: VllmSource, path: str, value: Any) -> str | None:
    """Mistake in a listed name; None if it is right, or if a plugin of vLLM may have added the name."""
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
    """Notes on names that are accepted only because a plugin may have added them."""
    flat = {
        **args,
        **{f"{name}.{_key(key)}": item for name, group in args.items() if isinstance(group, dict)
           for key, item in group.items()},
    }  # fmt: skip
    unknown = [path for path, value in flat.items() if not _is_listed(source, path, value)]
    return [
        f"{PATH}.{path}: {flat[path]!r} is not one of vLLM's own names; an installed plugin "
        f"({', '.join(plugins())}) must add it"
        for path in unknown
    ]


def value_mistake(argument: Argument, value: Any) -> str | None:
    """Mistake in the value of an argument; None if it is right, or if vLLM's source does not say."""
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
    def plain(item: Any) -> Any:  # vLLM accepts some choices in other spellings
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
