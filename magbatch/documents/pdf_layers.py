"""Layers of a PDF: which of its optional content is switched on when a reader opens it.

PDFium draws that, but its text holds all layers, and it does not tell which is which. So what is switched off is marked
in the file, or taken out of it.

Source: ISO 32000-1, 8.11.
"""

from collections.abc import Iterator
from typing import Any

from pypdf.generic import ArrayObject, DictionaryObject, NameObject, NumberObject

SWITCHED_OFF = b"MagbatchSwitchedOff"  # entry of a marked content's properties
_MARK = NameObject("/" + SWITCHED_OFF.decode())
_HIDDEN_FLAG = 2  # of an annotation (table 165)
_DEEPEST = 32  # nested visibility expressions and forms


class Layers:
    """States of a document's optional content groups in its default configuration.

    Args:
        catalog: The document's catalogue.
    """

    def __init__(self, catalog: DictionaryObject) -> None:
        properties = _dict(catalog.get("/OCProperties"))
        self._properties, self._config = properties, _dict(properties.get("/D"))
        self._groups = {id(group): group for group in _dicts(properties.get("/OCGs"))}
        base = str(self._config.get("/BaseState", "/ON")) != "/OFF"
        self._on = dict.fromkeys(self._groups, base)
        for key, state in (("/ON", True), ("/OFF", False)):
            self._on |= {id(group): state for group in _dicts(self._config.get(key)) if id(group) in self._on}
        for usage in _dicts(self._config.get("/AS")):
            if str(usage.get("/Event")) == "/View":
                self._apply(usage)
        intents = _names(self._config.get("/Intent")) or {"/View"}
        for group in self._groups.values():
            if not {"/All", *intents} & (_names(group.get("/Intent")) or {"/View"}) and "/All" not in intents:
                self._on[id(group)] = True  # made for another purpose than to be seen or not

    def __bool__(self) -> bool:
        return bool(self._groups)

    def shows(self, content: Any) -> bool:
        """Whether content of a group, or of a membership dictionary, is seen."""
        content = _dict(content)
        if str(content.get("/Type")) != "/OCMD":
            return self._on.get(id(content), True)
        expression = _resolved(content.get("/VE"))
        if isinstance(expression, ArrayObject):
            return self._holds(expression, 0)
        states = [self._on.get(id(group), True) for group in _dicts(content.get("/OCGs"))]
        if not states:
            return True
        policy = str(content.get("/P", "/AnyOn"))
        wanted = policy not in ("/AllOff", "/AnyOff")
        several = all if policy in ("/AllOn", "/AllOff") else any
        return several(state is wanted for state in states)

    @property
    def are_odd(self) -> bool:
        """Whether PDFium draws otherwise: by another configuration, or by a usage that the configuration leaves out."""
        return "/Configs" in self._properties or any(
            self._on[key] and str(_dict(_dict(group.get("/Usage")).get("/View")).get("/ViewState")) == "/OFF"
            for key, group in self._groups.items()
        )

    def settle(self) -> None:
        """Write the states into the configuration, and nothing else that a reader may go by."""
        states: dict[bool, list[Any]] = {True: [], False: []}
        for key, group in self._groups.items():
            states[self._on[key]].append(group.indirect_reference or group)
            group.pop("/Usage", None)
        self._config[NameObject("/BaseState")] = NameObject("/ON")
        self._config[NameObject("/ON")] = ArrayObject(states[True])
        self._config[NameObject("/OFF")] = ArrayObject(states[False])
        self._config.pop("/AS", None)
        self._properties.pop("/Configs", None)

    def _apply(self, usage: DictionaryObject) -> None:
        """States that follow from what groups are for: those that are meant to be viewed or not."""
        wanted = _names(usage.get("/Category"))
        for group in _dicts(usage.get("/OCGs")):
            purposes = _dict(group.get("/Usage"))
            states = [
                str(_dict(purposes.get(f"/{purpose}")).get(f"/{purpose}State"))
                for purpose in ("View", "Print", "Export")
                if f"/{purpose}" in wanted and f"/{purpose}" in purposes
            ]
            if states and id(group) in self._on:
                self._on[id(group)] = "/OFF" not in states

    def _holds(self, expression: ArrayObject, depth: int) -> bool:
        operator, *operands = [_resolved(item) for item in expression] or [None]
        if depth > _DEEPEST:
            return True
        values = [
            self._holds(item, depth + 1) if isinstance(item, ArrayObject) else self._on.get(id(item), True)
            for item in operands
        ]
        if str(operator) == "/Not":
            return not (values and values[0])
        return any(values) if str(operator) == "/Or" else all(values)


def mark(catalog: DictionaryObject, pages: list[Any]) -> bool:
    """Mark, or take out of the file, what is switched off on some pages; write down the states themselves.

    Args:
        catalog: The document's catalogue.
        pages: The pages' dictionaries, inherited resources included.

    Returns:
        Whether anything was changed.
    """
    layers = Layers(catalog)
    if not layers:
        return False
    found, seen = layers.are_odd, set[int]()
    for page in pages:
        for resources in _resources(page, seen, 0):
            for properties in _dict(resources.get("/Properties")).values():
                if not layers.shows(properties):
                    _dict(properties)[_MARK] = NumberObject(1)
                    found = True
            drawn = _dict(resources.get("/XObject"))
            for name in [name for name, item in drawn.items() if not layers.shows(_dict(item).get("/OC"))]:
                del drawn[name]
                found = True
        for annotation in _dicts(page.get("/Annots")):
            if not layers.shows(annotation.get("/OC")):
                annotation[NameObject("/F")] = NumberObject(int(annotation.get("/F", 0)) | _HIDDEN_FLAG)
                found = True
    if found:
        layers.settle()
    return found


def _resources(holder: Any, seen: set[int], depth: int) -> Iterator[DictionaryObject]:
    """The resources of a page, and those of the forms in it."""
    resources = _dict(_dict(holder).get("/Resources"))
    if id(resources) in seen or depth > _DEEPEST:
        return
    seen.add(id(resources))
    yield resources
    for item in list(_dict(resources.get("/XObject")).values()):
        if str(_dict(item).get("/Subtype")) == "/Form":
            yield from _resources(item, seen, depth + 1)


def _resolved(item: Any) -> Any:
    return item.get_object() if item is not None else None


def _dict(item: Any) -> DictionaryObject:
    found = _resolved(item)
    return found if isinstance(found, DictionaryObject) else DictionaryObject()


def _dicts(item: Any) -> list[DictionaryObject]:
    """The dictionaries in an array, or a lone one."""
    found = _resolved(item)
    several = found if isinstance(found, ArrayObject) else [found]
    return [one for one in map(_resolved, several) if isinstance(one, DictionaryObject)]


def _names(item: Any) -> set[str]:
    found = _resolved(item)
    return {str(_resolved(one)) for one in (found if isinstance(found, ArrayObject) else [found]) if one is not None}
