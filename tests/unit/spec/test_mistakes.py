"""Messages say how YAML has read an unquoted text, and no library's own wording reaches a user."""

import re

import pytest

from magbatch.errors import SpecError
from magbatch.spec import parse

RIGHT = """
name: invoices
model: {source: "builtin:tiny"}
input: {path: in.parquet, columns: {prompt: question}}
output: {path: out}
"""
RAW = re.compile(r"Input should|Errno|Value error|pydantic|Extra inputs|<class|Traceback|unable to parse|pattern '")


def complaint(text: str, *overrides: str) -> str:
    """The message for a spec of which some lines are replaced, by the field that they begin with."""
    fields = dict(line.split(":", 1) for line in RIGHT.strip().splitlines())
    for line in text.strip().splitlines():
        name, _, rest = line.partition(":")
        fields[name] = rest
    with pytest.raises(SpecError) as caught:
        parse("\n".join(f"{name}:{rest}" for name, rest in fields.items()), list(overrides), new=True)
    assert not RAW.search(str(caught.value)), str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: no", 'name: YAML reads an unquoted no as false; write "no"'),
        ("name: On", 'name: YAML reads an unquoted On as true; write "On"'),
        ("name: 2024", 'name: YAML reads an unquoted 2024 as a number; write "2024"'),
        ("name: 1_000", 'name: YAML reads an unquoted 1_000 as a number; write "1_000"'),
        ("name: 2026-11-30", 'name: YAML reads an unquoted 2026-11-30 as a date; write "2026-11-30"'),
        ("name: ~", 'name: YAML reads an unquoted ~ as nothing; write "~"'),
        ("name:", "name: is empty; write text"),
        ("name: 012", '012 is not text in YAML; write "012" for the text'),
        ("name: [a]", "name: write text"),
        ('model: {source: "builtin:tiny", revision: 1.5e+5}', 'model.revision: YAML reads an unquoted 1.5e+5'),
        ("input: {path: in, columns: {prompt: yes, id: off}}", 'input.columns.prompt: YAML reads an unquoted yes as t'),
        ("input: {path: in, columns: {prompt: yes, id: off}}", 'input.columns.id: YAML reads an unquoted off as false'),
        ("input: {path: in, columns: {prompt: q}, carry: [a, no, 7]}", "input.carry[1]: YAML reads an unquoted no"),
        ("input: {path: in, columns: {prompt: q}, carry: [a, no, 7]}", "input.carry[2]: YAML reads an unquoted 7"),
        ("replicas: {prefer: [{labels: {zone: 1}}]}", 'replicas.prefer[0].labels.zone: YAML reads an unquoted 1 as a'),
        ("reasoning: {effort: off}", "reasoning.effort: write none or high (it is false)"),
        ("sampling: {temperature: no}", "sampling.temperature: write a number (it is false)"),
        ("sampling: {n: yes, seed: on}", "sampling.n: write a whole number (it is true)"),
        ("sampling: {n: 1.5}", "sampling.n: write a whole number (it is 1.5)"),
        ("sampling: {ignore_eos: maybe}", "sampling.ignore_eos: write true or false (it is 'maybe')"),
        ("cost: {currency: euro}", "cost.currency: write three capital letters, such as USD or EUR (it is 'euro')"),
        ("deadline: tomorrow", "deadline: write a date and time with its zone, such as 2026-11-30T08:00:00+01:00"),
        ("deadline: 2026-11-30T08:00:00", "deadline: write a date and time with its zone"),
        ("temperature: 1", "temperature: no such field; did you mean `sampling.temperature`?"),
        ("sampling: {paths: x}", "sampling.paths: no such field; the fields here are temperature, "),
        ("sampling: {path: x}", "sampling.path: no such field; did you mean `input.path`?"),
        ("answer: {schema: 7}", "answer.schema: write a group of fields (it is 7)"),
        ("answer: {vote: most}", "answer.vote: write majority (it is 'most')"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_in_plain_words(text: str, said: str) -> None:
    assert said in complaint(text)


def test_an_unquoted_value_of_an_override_is_named() -> None:
    assert 'name: YAML reads an unquoted no as false; write "no"' in complaint("", "name=no")
    assert "input.carry[1]: YAML reads an unquoted 1.5 as a number" in complaint("", "input.carry=[a, 1.5]")


def test_all_wrong_fields_and_engine_arguments_are_named_at_once() -> None:
    said = complaint(
        "name: no\nsampling: {n: 0, top: 1}", "model.engine=fake", "model.engine_args={tokens: 0, seqs: 1}"
    )
    assert said.splitlines()[0] == "spec: 5 wrong fields"
    assert [line.split(":")[0].strip() for line in said.splitlines()[1:]] == [
        "name", "sampling.n", "sampling.top", "model.engine_args.tokens", "model.engine_args.seqs",
    ]  # fmt: skip


def test_a_missing_blank_after_a_colon_is_named() -> None:
    said = complaint("schedule: {cron:6}")
    assert "schedule.cron:6: no such field; YAML wants a blank after the colon: write `cron: 6`" in said
