"""The engine arguments of the installed vLLM, read from its source: importing vLLM takes 7 s, reading it 50 ms.

All private names of vLLM stand at the top of this file. Values that the source does not describe are allowed.
"""

import ast
import functools
import importlib.metadata
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Private names of vLLM. tests/unit/spec/test_vllm_names.py fails if a version changes them.
PACKAGE = "vllm"
ARGUMENTS = ("vllm.engine.arg_utils", "AsyncEngineArgs")
VERSION = ("vllm._version", "__version__")
CONFIG_DECORATOR = "config"  # decorator of classes that accept only their own fields
FIELD_OF = "get_field"  # get_field(CacheConfig, "name") is that field of the other class
BOUNDS = ("gt", "ge", "lt", "le")  # arguments of pydantic's Field
CONFIGS = {"speculative_config": ("vllm.config.speculative", "SpeculativeConfig")}  # annotated as dict only
# Arguments, and fields of arguments, that take a listed name -> lists of vLLM's own names. Plugins may add names.
_BACKENDS = (("vllm.v1.attention.backends.registry", "AttentionBackendEnum"),)
LISTS = {
    "quantization": (("vllm.model_executor.layers.quantization", "QuantizationMethods"),),
    "load_format": (
        ("vllm.model_executor.model_loader", "LoadFormats"),
        ("vllm.model_executor.model_loader", "_LOAD_FORMAT_TO_MODEL_LOADER"),
    ),
    "tokenizer_mode": (
        ("vllm.config.model", "TokenizerMode"),
        ("vllm.tokenizers.registry", "_VLLM_TOKENIZERS"),
    ),
    "config_format": (
        ("vllm.transformers_utils.config", "ConfigFormat"),
        ("vllm.transformers_utils.config", "_CONFIG_FORMAT_TO_CONFIG_PARSER"),
    ),
    "attention_backend": _BACKENDS,
    "attention_config.backend": _BACKENDS,
    "speculative_config.attention_backend": _BACKENDS,
}
AUTO = "auto"  # accepted as a backend, although the enumeration does not have it
CPU_BLOCK = 32  # tokens; `block_size` must be a multiple on CPUs, for CPUAttentionBackend's kernel
PLUGINS = "vllm."  # prefix of the entry point groups with which packages extend vLLM

MAX_HOPS = 12  # steps from a name to its definition, through imports and aliases
_TYPES = {"bool": "bool", "int": "int", "float": "float", "str": "str", "None": "null"}
_LISTS = frozenset({"list", "List", "set", "Set", "frozenset", "tuple", "Sequence", "Collection", "Iterable"})
_MAPPINGS = frozenset({"dict", "Dict", "Mapping"})


@dataclass(frozen=True, slots=True)
class Kind:
    """The set of values that an argument may have.

    Attributes:
        types: Names among bool, int, float, str, list, dict, null.
        choices: Single values that are allowed in addition to `types`.
        fields: Keys that a mapping may have; None if any key is allowed.
        owner: Module and class of the configuration that defines `fields`; None unless exactly one class does.
        anything: Whether any value is allowed, because the source does not say more.
    """

    types: frozenset[str] = frozenset()
    choices: tuple[str | int | bool, ...] = ()
    fields: frozenset[str] | None = None
    owner: tuple[str, str] | None = None
    anything: bool = False

    def __or__(self, other: "Kind") -> "Kind":
        fields = [kind.fields for kind in (self, other) if "dict" in kind.types]
        known = [some for some in fields if some is not None]
        return Kind(
            self.types | other.types,
            (*self.choices, *other.choices),
            frozenset[str]().union(*known) if fields and len(known) == len(fields) else None,
            (self.owner or other.owner) if len(fields) == 1 else None,
            self.anything or other.anything,
        )


ANYTHING = Kind(anything=True)


@dataclass(frozen=True, slots=True)
class Argument:
    """An engine argument.

    Attributes:
        kind: Values that are allowed.
        bounds: Limits of a number in pydantic's words, such as {"gt": 0, "le": 1}.
    """

    kind: Kind
    bounds: dict[str, float]


@dataclass(frozen=True, slots=True)
class VllmSource:
    """The source of an installed vLLM.

    Attributes:
        root: Folder of the package.
    """

    root: Path

    @property
    def version(self) -> str:
        """Version of the package; empty if the source has none."""
        found = _find(self.root, *VERSION)
        return str(found.node.value) if found is not None and isinstance(found.node, ast.Constant) else ""

    def names(self) -> frozenset[str]:
        """Names of the engine arguments; empty if a version has moved them."""
        return frozenset(_arguments(self.root))

    def argument(self, name: str) -> Argument:
        """An engine argument by its name."""
        module, annotation, default = _arguments(self.root)[name]
        kind = _kind(self.root, module, annotation)
        found = _find(self.root, *CONFIGS[name]) if name in CONFIGS else None
        if found is not None and isinstance(found.node, ast.ClassDef):
            kind = _of_class(self.root, found) | Kind(frozenset({"null"}))
        return Argument(kind, _bounds(self.root, module, default))

    def field(self, owner: tuple[str, str], name: str) -> Argument:
        """A field of a configuration class.

        Args:
            owner: Module and class.
            name: Name of the field.
        """
        found = _find(self.root, *owner)
        assert found is not None
        assert isinstance(found.node, ast.ClassDef)
        module, annotation, default = _fields(self.root, found)[name]
        free = name in _converted(found.node)
        kind = ANYTHING if free else _kind(self.root, module, annotation) | Kind(frozenset({"null"}))
        return Argument(kind, _bounds(self.root, module, default))

    def listed(self, path: str) -> frozenset[str]:
        """Names that vLLM itself has for an argument or a field of one; empty if the source lists none.

        Args:
            path: Path of the argument or field: `argument` or `argument.field`.
        """
        names = [_names_in(self.root, listing) for listing in LISTS.get(path, ())]
        return frozenset[str]().union(*names) if all(names) else frozenset()


def installed() -> VllmSource | None:
    """The vLLM of this environment, found without importing it; None if vLLM is not installed."""
    found = importlib.util.find_spec(PACKAGE)
    return None if found is None or found.origin is None else VllmSource(Path(found.origin).parent)


def plugins() -> list[str]:
    """Names of the installed packages that extend vLLM, sorted."""
    points = importlib.metadata.entry_points()
    groups = [group for group in points.groups if group.startswith(PLUGINS)]
    found = [point for group in groups for point in points.select(group=group)]
    return sorted({point.dist.name for point in found if point.dist and point.module.partition(".")[0] != PACKAGE})


@dataclass(frozen=True, slots=True)
class _Found:
    """The definition of a name: a class or an expression, and the module that contains it."""

    module: str
    node: ast.ClassDef | ast.expr


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for statement in body:
        yield statement
        for inner in ("body", "orelse", "finalbody"):
            if isinstance(statement, ast.If | ast.Try):
                yield from _statements(getattr(statement, inner, []))


@functools.lru_cache(maxsize=256)
def _module(root: Path, name: str) -> dict[str, ast.ClassDef | ast.expr | tuple[str, str]]:
    """Names of a module -> their definitions: a class, an expression, or (module, name) of an import."""
    below = root.joinpath(*name.split(".")[1:])
    path = next((path for path in (below.with_suffix(".py"), below / "__init__.py") if path.is_file()), None)
    bound: dict[str, ast.ClassDef | ast.expr | tuple[str, str]] = {}
    for statement in _statements(ast.parse(path.read_text(encoding="utf-8")).body) if path is not None else ():
        if isinstance(statement, ast.ClassDef):
            bound[statement.name] = statement
        elif isinstance(statement, ast.ImportFrom) and statement.module and not statement.level:
            bound |= {alias.asname or alias.name: (statement.module, alias.name) for alias in statement.names}
        elif isinstance(statement, ast.Assign):
            bound |= {target.id: statement.value for target in statement.targets if isinstance(target, ast.Name)}
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value:
            bound[statement.target.id] = statement.value
    return bound


def _find(root: Path, module: str, name: str) -> _Found | None:
    """Definition of a name in a module, imports followed; None if it is outside the package."""
    for _ in range(MAX_HOPS):
        if module.partition(".")[0] != PACKAGE:
            return None
        found = _module(root, module).get(name)
        if not isinstance(found, tuple):
            return None if found is None else _Found(module, found)
        module, name = found
    return None


_Field = tuple[str, ast.expr, ast.expr | None]  # module, annotation, default


@functools.lru_cache(maxsize=1)
def _arguments(root: Path) -> dict[str, _Field]:
    found = _find(root, *ARGUMENTS)
    return _fields(root, found) if found is not None and isinstance(found.node, ast.ClassDef) else {}


def _fields(root: Path, found: _Found) -> dict[str, _Field]:
    """Public fields of a class and its base classes, by name."""
    assert isinstance(found.node, ast.ClassDef)
    fields: dict[str, _Field] = {}
    for base in found.node.bases:
        above = _find(root, found.module, base.id) if isinstance(base, ast.Name) else None
        if above is not None and isinstance(above.node, ast.ClassDef):
            fields |= _fields(root, above)
    for statement in found.node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            name = statement.target.id
            if not name.startswith("_") and "ClassVar" not in ast.dump(statement.annotation):
                fields[name] = (found.module, statement.annotation, statement.value)
    return fields


def _kind(root: Path, module: str, node: ast.expr, hops: int = 0) -> Kind:
    """Values that an annotation allows.

    Args:
        root: Folder of the package.
        module: Module that contains the annotation.
        node: The annotation.
        hops: Steps already taken from the first name.

    Example:
        `Literal["auto", "fp8"] | None` -> types {"null"}, choices ("auto", "fp8")
    """
    if hops > MAX_HOPS:
        return ANYTHING
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _kind(root, module, node.left, hops + 1) | _kind(root, module, node.right, hops + 1)
    if isinstance(node, ast.Constant) and node.value is None:
        return Kind(frozenset({"null"}))
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return _kind(root, module, ast.parse(node.value, mode="eval").body, hops + 1)
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
        return _subscripted(root, module, node.value.id, node.slice, hops)
    if not isinstance(node, ast.Name):
        return ANYTHING
    if node.id in _TYPES:
        return Kind(frozenset({_TYPES[node.id]}))
    if node.id in _LISTS or node.id in _MAPPINGS:
        return Kind(frozenset({"list" if node.id in _LISTS else "dict"}))
    found = _find(root, module, node.id)
    if found is None:
        return ANYTHING
    if isinstance(found.node, ast.ClassDef):
        return _of_class(root, found)
    return _kind(root, found.module, found.node, hops + 1)


def _subscripted(root: Path, module: str, name: str, inner: ast.expr, hops: int) -> Kind:
    """Values that `name[inner]` allows."""
    parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
    if name == "Literal":
        return functools.reduce(Kind.__or__, (_choice(root, module, part, hops) for part in parts))
    if name in ("Optional", "Union"):
        kinds = [_kind(root, module, part, hops + 1) for part in parts]
        return functools.reduce(Kind.__or__, kinds, Kind(frozenset({"null"} if name == "Optional" else ())))
    if name == "Annotated":
        return _kind(root, module, parts[0], hops + 1)
    if name in _LISTS or name in _MAPPINGS:
        return Kind(frozenset({"list" if name in _LISTS else "dict"}))
    return Kind() if name == "type" else ANYTHING  # YAML has no classes, so type[…] allows nothing


def _choice(root: Path, module: str, node: ast.expr, hops: int) -> Kind:
    """Values of one item of a Literal: a constant, or the name of another Literal."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str | int):
        return Kind(choices=(node.value,))
    return _kind(root, module, node, hops + 1)


def _of_class(root: Path, found: _Found) -> Kind:
    """Values that a configuration class allows: a mapping of its fields, if it accepts no other fields."""
    assert isinstance(found.node, ast.ClassDef)
    marks = [mark.func if isinstance(mark, ast.Call) else mark for mark in found.node.decorator_list]
    if not any(isinstance(mark, ast.Name) and mark.id == CONFIG_DECORATOR for mark in marks):
        return ANYTHING
    if "'allow'" in ast.dump(found.node) or _validators(found.node, "model_validator"):  # may accept further fields
        return ANYTHING
    owner = (found.module, found.node.name)
    return Kind(frozenset({"dict"}), fields=frozenset(_fields(root, found)), owner=owner)


def _validators(node: ast.ClassDef, name: str) -> list[ast.Call]:
    """Pydantic validators of a class that see a value before its type is checked.

    Args:
        node: The class.
        name: Name of the decorator: `model_validator` or `field_validator`.
    """
    marks = [mark for method in node.body if isinstance(method, ast.FunctionDef) for mark in method.decorator_list]
    calls = [mark for mark in marks if isinstance(mark, ast.Call) and getattr(mark.func, "id", "") == name]
    return [call for call in calls if any(ast.dump(word.value) != "Constant(value='after')" for word in call.keywords)]


def _converted(node: ast.ClassDef) -> set[str]:
    """Fields of a class that accept more than their annotations say."""
    arguments = [argument for call in _validators(node, "field_validator") for argument in call.args]
    return {str(argument.value) for argument in arguments if isinstance(argument, ast.Constant)}


def _names_in(root: Path, listing: tuple[str, str]) -> set[str]:
    """Names in one of vLLM's lists: items of a Literal, keys of a registry, or members of an enumeration."""
    found = _find(root, *listing)
    if found is None:
        return set()
    if isinstance(found.node, ast.Dict):
        return {key.value for key in found.node.keys if isinstance(key, ast.Constant) and isinstance(key.value, str)}
    if isinstance(found.node, ast.ClassDef):
        assigned = [target for one in found.node.body if isinstance(one, ast.Assign) for target in one.targets]
        return {AUTO, *(target.id for target in assigned if isinstance(target, ast.Name))}
    return {str(choice) for choice in _kind(root, found.module, found.node).choices}


def _bounds(root: Path, module: str, default: ast.expr | None, hops: int = 0) -> dict[str, float]:
    """Limits of a number, from the configuration field that the argument sets."""
    if hops > MAX_HOPS or default is None:
        return {}
    if isinstance(default, ast.Attribute) and isinstance(default.value, ast.Name):
        return _bounds_of_field(root, module, default.value.id, default.attr, hops)
    if not (isinstance(default, ast.Call) and isinstance(default.func, ast.Name)):
        return {}
    if default.func.id == FIELD_OF and len(default.args) == 2:
        owner, name = default.args
        if isinstance(owner, ast.Name) and isinstance(name, ast.Constant):
            return _bounds_of_field(root, module, owner.id, str(name.value), hops)
    return {
        word.arg: float(word.value.value)
        for word in default.keywords
        if word.arg in BOUNDS and isinstance(word.value, ast.Constant) and isinstance(word.value.value, int | float)
    }


def _bounds_of_field(root: Path, module: str, owner: str, name: str, hops: int) -> dict[str, float]:
    found = _find(root, module, owner)
    if found is None or not isinstance(found.node, ast.ClassDef):
        return {}
    module, _, default = _fields(root, found).get(name, (found.module, ast.Constant(None), None))
    return _bounds(root, module, default, hops + 1)
