"""Layers of a PDF: find the optional content that a reader hides at first, and mark it.

PDFium draws the right layers, but its text comes from all layers, and it does not mark hidden text. So hidden
content is marked in the file, or removed from it.

Source: ISO 32000-1, 8.11.
"""

from collections.abc import Iterator
from typing import Any

from pypdf.generic import ArrayObject, DictionaryObject, NameObject, NumberObject

SWITCHED_OFF = b"MagbatchSwitchedOff"  # entry that marks the properties of hidden content
_MARK = NameObject("/" + SWITCHED_OFF.decode())
_HIDDEN_FLAG = 2  # flag of an annotation (table 165)
_DEEPEST = 32  # nesting of visibility expressions and forms that is followed; files in use have a few levels


class Layers:
    """States of a document's optional content groups in its default configuration.

    Args:
        catalog: Catalogue (root dictionary) of the document.
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
                self._on[id(group)] = True  # the group serves another purpose than visibility

    def __bool__(self) -> bool:
        return bool(self._groups)

    def shows(self, content: Any) -> bool:
        """Whether content is visible.

        Args:
            content: Optional content group, or membership dictionary, of the content.
        """
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
        """Whether PDFium would draw other layers: it also follows further configurations, and unreferenced usages."""
        return "/Configs" in self._properties or any(
            self._on[key] and str(_dict(_dict(group.get("/Usage")).get("/View")).get("/ViewState")) == "/OFF"
            for key, group in self._groups.items()
        )

    def settle(self) -> None:
        """Write the states into the configuration, and remove all other entries by which a reader might decide."""
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
        """Set the states of groups by their purpose, as a usage dictionary demands (8.11.4.4)."""
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
        """Evaluate a visibility expression, such as `[/And group [/Not group]]`; True below the deepest level."""
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
    """Mark or remove the hidden content of some pages, and settle the states of all layers.

    Args:
        catalog: Catalogue (root dictionary) of the document; changed in place.
        pages: Dictionaries of the pages, with inherited resources; changed in place.

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
    """Yield the resources of a page and of the form objects in it, each once."""
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
    """Return the dictionaries in an array, or a single dictionary, as a list."""
    found = _resolved(item)
    several = found if isinstance(found, ArrayObject) else [found]
    return [one for one in map(_resolved, several) if isinstance(one, DictionaryObject)]


def _names(item: Any) -> set[str]:
    found = _resolved(item)
    return {str(_resolved(one)) for one in (found if isinstance(found, ArrayObject) else [found]) if one is not None}
