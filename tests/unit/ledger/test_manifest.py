"""The manifest is read strictly: every changed field and byte is noticed and named."""

import copy
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.book import Book
from support.spoiled_output import edit, problems

from magbatch.errors import OutputError
from magbatch.ledger.layout import MANIFEST, REPORT, SPEC
from magbatch.ledger.ledger import Ledger
from magbatch.ledger.manifest import Manifest
from magbatch.ledger.verify import verify

FIELDS: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda m: m.update(planned_rows=11), "says planned_rows 11, the plan gives 10"),
    (lambda m: m.update(job="other"), "says job other, the spec gives small"),
    (lambda m: m.update(job="\x1b]52;c;evil\x07"), "says job"),
    (lambda m: m.update(job="\ud800"), "says job"),
    (lambda m: m.update(schema_version="0"), "says schema_version 0, the objects give 1"),
    (lambda m: m.update(version=1), "files is an unknown field"),
    (lambda m: m.update(version=3), "version is 3; this version of magbatch knows 1 and 2"),
    (lambda m: m.update(version=True), "version is true, not a whole number"),
    (lambda m: m.update(answered=8), "says answered 8, the objects give 9"),
    (lambda m: m.update(answered=9.0), "answered is 9.0, not a whole number"),
    (lambda m: m.update(answered=-1), "answered is -1, not a whole number"),
    (lambda m: m.update(answered=10**400), "says answered 1000"),
    (lambda m: m.update(by_code={}), "says by_code {}, the objects give {'missing_value': 1}"),
    (lambda m: m.update(by_code=None), "by_code is null, not an object"),
    (lambda m: m.update(by_status={"complete": "9"}), 'by_status.complete is "9", not a whole number'),
    (lambda m: m.update(squared_tokens=0), "says squared_tokens 0, the objects give"),
    (lambda m: m.pop("prompt_tokens"), "prompt_tokens is missing"),
    (lambda m: m.pop("by_latency"), "by_latency is missing"),
    (lambda m: m.pop("graded_by"), "graded_by is missing"),
    (lambda m: m.pop("answered"), "answered is missing"),
    (lambda m: m.pop("job"), "job is missing"),
    (lambda m: m.update(finished_at="1999-01-01T00:00:00+00:00"), "manifest_sha256 does not fit"),
    (lambda m: m.update(finished_at=7), "finished_at is 7, not text"),
    (lambda m: m.update(graded_by=2), "says graded_by 2, its version has 3"),
    (lambda m: m.update(compacted_to_bytes=1), "manifest_sha256 does not fit"),
    (lambda m: m.update(model_revision="abc"), "says model_revision abc, the plan gives"),
    (lambda m: m.update(retries=[]), "manifest_sha256 does not fit"),
    (lambda m: m.update(retries=[{}]), "retries[0].finished_at is missing"),
    (lambda m: m.update(retries=[{"finished_at": "", "dropped": 1}]), "retries[0].dropped is 1, not true"),
    (lambda m: m.update(extra=1), "extra is an unknown field"),
    (lambda m: m.update(plan_sha256="0" * 64), "says plan_sha256 0000"),
    (lambda m: m.update(plan_sha256="x"), 'plan_sha256 is "x", not a SHA-256 in hex'),
    (lambda m: m.update(manifest_sha256="0" * 64), "manifest_sha256 does not fit"),
    (lambda m: m.pop("manifest_sha256"), "manifest_sha256 is missing"),
    (lambda m: m.update(parts=None), "parts is null, not a list"),
    (lambda m: m.update(parts={}), "parts is an object, not a list"),
    (lambda m: m.update(parts=[]), "not in the manifest"),
    (lambda m: m["parts"].append(None), "parts[4] is null, not an object"),
    (lambda m: m["parts"].append(m["parts"][0]), "is named twice"),
    (lambda m: m["parts"].reverse(), "manifest_sha256 does not fit"),
    (lambda m: m["parts"].pop(), "not in the manifest"),
    (lambda m: m["parts"][0].pop("sha256"), "parts[0].sha256 is missing"),
    (lambda m: m["parts"][0].update(sha256=None), "parts[0].sha256 is null, not a SHA-256 in hex"),
    (lambda m: m["parts"][0].update(sha256="0" * 64), "its checksum differs from the manifest's"),
    (lambda m: m["parts"][0].update(rows=3), "has 3 rows, it has 4"),
    (lambda m: m["parts"][0].update(records=3), "has 3 records, it has 4"),
    (lambda m: m["parts"][0].update(bytes=3), "has 3 bytes, it has"),
    (lambda m: m["parts"][0].update(rows="4"), 'parts[0].rows is "4", not a whole number'),
    (lambda m: m["parts"][0].update(more=1), "parts[0].more is an unknown field"),
    (lambda m: m["parts"][0].update(name="../../etc/passwd"), "parts[0].name is"),
    (lambda m: m["parts"][0].update(name=m["parts"][0]["name"].replace(".n4.", ".n04.")), "parts[0].name is"),
    (lambda m: m["parts"][0].update(name=m["parts"][0]["name"].upper()), "parts[0].name is"),
    (lambda m: m["parts"][0].update(name=m["parts"][0]["name"].replace("results", "errors")), "in the manifest, but"),
    (lambda m: m.update(files=[]), f"files lacks {SPEC}"),
    (lambda m: m["files"][0].update(sha256="0" * 64), f"{SPEC}: its checksum differs from the manifest's"),
    (lambda m: m["files"][2].update(bytes=1), f"{REPORT}: its checksum differs from the manifest's"),
    (lambda m: m["files"].append(m["files"][0]), "files[4].name: _magbatch/spec.yaml is named twice"),
    (lambda m: m["files"][0].update(name="/etc/passwd"), 'files[0].name is "/etc/passwd", not one of'),
]  # fmt: skip


@pytest.mark.parametrize(("change", "named"), FIELDS, ids=[named for _, named in FIELDS])
def test_every_field_of_the_manifest_is_held_against_what_is_there(
    out: Path, change: Callable[[dict[str, Any]], Any], named: str
) -> None:
    edit(out, change)
    found = problems(out)
    assert any(named in problem for problem in found), found
    assert all(problem.isprintable() for problem in found)
    with pytest.raises(OutputError, match=r"_magbatch/manifest\.json is damaged"):  # and nobody else believes it
        Ledger(str(out)).manifest()


RAW = {
    "nothing": b"", "no JSON": b"{", "a list": b"[]", "null": b"null", "a number": b"7", "text": b'"parts"',
    "no UTF-8": b"\xff\xfe{}", "a BOM": b"\xef\xbb\xbf{}", "UTF-16": '{"parts": []}'.encode("utf-16"),
    "deep": b"[" * 200_000, "deep and whole": b"[" * 90_000 + b"]" * 90_000,
    "deep in a field": b'{"version": 2, "parts": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_001,
    "a huge number": b'{"version": ' + b"9" * 100_000 + b"}", "not a number": b'{"version": NaN}',
    "an endless number": b'{"version": 1e999}', "a field twice": b'{"version": 2, "version": 2}',
    "a null byte": b'{"version": 2}\0',
}  # fmt: skip


@pytest.mark.parametrize("data", RAW.values(), ids=RAW.keys())
def test_a_manifest_that_is_none_is_named(out: Path, data: bytes) -> None:
    (out / MANIFEST).write_bytes(data)
    found = problems(out)
    assert [problem for problem in found if problem.startswith(f"{MANIFEST} is damaged: ")] == list(found)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"parts": []}', b"null", b"\xff\xfe"])
def test_a_damaged_manifest_is_an_error_of_the_output(book: Book, content: bytes) -> None:
    book.complete()
    book.job.put("output/_magbatch/manifest.json", content)
    with pytest.raises(OutputError, match=r"_magbatch/manifest\.json is damaged"):
        book.ledger.manifest()
    (problem,) = verify(book.ledger).problems
    assert problem.startswith("_magbatch/manifest.json is damaged")


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data + b"\n", lambda data: b" " + data, lambda data: data.replace(b"\n ", b"\n  "),
        lambda data: data.replace(b'"job": "small"', b'"job": "other", "job": "small"'),
        lambda data: data.replace(b'"small"', b'"sm\\u0061ll"'), lambda data: json.dumps(json.loads(data)).encode(),
    ],
)  # fmt: skip
def test_every_byte_of_the_manifest_counts(out: Path, change: Callable[[bytes], bytes]) -> None:
    old = (out / MANIFEST).read_bytes()
    (out / MANIFEST).write_bytes(change(old))
    assert (out / MANIFEST).read_bytes() != old
    (problem,) = problems(out)
    assert problem.startswith(MANIFEST)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a JSON document."""
    yield path
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*path, key))


VALUES: list[Any] = [None, True, False, 0, 1, -1, 7, 10**30, 1.5, 0.0, "", "x", "0" * 64, [], {}, [None], {"x": 1}]


def mutations(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Each value replaced, left out, doubled, or with another value next to it: one change at a time."""
    for *above, last in (path for path in places(manifest) if path):

        def changed(change: Callable[[Any], Any], above: list[Any] = above) -> dict[str, Any]:
            found = copy.deepcopy(manifest)
            holder: Any = found
            for key in above:
                holder = holder[key]
            change(holder)
            return found

        for value in VALUES:
            yield changed(lambda holder, value=value, last=last: holder.__setitem__(last, value))
        yield changed(lambda holder, last=last: holder.pop(last))
        yield changed(
            lambda holder, last=last: (
                holder.append(holder[last]) if isinstance(holder, list) else holder.__setitem__("more", holder[last])
            )
        )


def test_no_mutation_of_the_manifest_goes_unseen(out: Path) -> None:
    data = (out / MANIFEST).read_bytes()
    manifest = json.loads(data)
    found = [mutation for mutation in mutations(manifest) if json.dumps(mutation) != json.dumps(manifest)]
    assert len(found) > 1000
    for mutation in found:
        with pytest.raises(OutputError, match="is damaged"):
            Manifest.from_json(json.dumps(mutation, indent=1).encode())
    for mutation in random.Random(7).sample(found, 40):
        (out / MANIFEST).write_text(json.dumps(mutation, indent=1))
        assert problems(out), mutation
