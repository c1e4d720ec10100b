"""A secret in a new spec is refused with its place; a secret that an earlier version stored is hidden."""

import json
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from magbatch.engines.base import EngineArgs
from magbatch.errors import SpecError
from magbatch.report.report import settings
from magbatch.spec import differences, parse
from magbatch.spec.secrets import is_secret_name, secrets, shown, without_secrets, without_value
from magbatch.spec.vllm_names import installed

SECRET = "sesame"


def text(**sections: Any) -> str:
    spec: dict[str, Any] = {
        "name": "small",
        "model": {"source": "builtin:tiny", "engine": "fake"},
        "input": {"path": "/in", "columns": {"prompt": "question"}},
        "output": {"path": "/out"},
        "replicas": {"gpus": 0},
    }
    for name, section in sections.items():
        spec[name] = spec.get(name, {}) | section
    return yaml.safe_dump(spec)


SECRETS: list[tuple[str, dict[str, Any], str]] = [
    ("metrics.push_gateway", {"metrics": {"push_gateway": "http://me:sesame@host:9091"}}, "MAGBATCH_PUSH_GATEWAY_USER"),
    ("metrics.push_gateway", {"metrics": {"push_gateway": "https://sesame@host"}}, "MAGBATCH_PUSH_GATEWAY_PASSWORD"),
    ("metrics.push_gateway", {"metrics": {"push_gateway": "http://host?token=sesame"}}, "in the environment"),
    ("model.engine_args.hf_token", {"model": {"engine_args": {"hf_token": SECRET}}}, "set HF_TOKEN"),
    ("model.engine_args.api_key", {"model": {"engine_args": {"api_key": SECRET}}}, "the engine's environment"),
    ("model.engine_args.a.db-password", {"model": {"engine_args": {"a": {"db-password": SECRET}}}}, "environment"),
    ("model.engine_args.secrets.of", {"model": {"engine_args": {"secrets": {"of": [SECRET]}}}}, "environment"),
    ("model.engine_args.a", {"model": {"engine_args": {"a": json.dumps({"apiKey": SECRET})}}}, "environment"),
    ("model.engine_args.a", {"model": {"engine_args": {"a": ["x", "redis://:sesame@host/0"]}}}, "environment"),
    ("model.engine_args.a.redis_password", {"model": {"engine_args": {"a": {"redis_password": 12345678}}}}, "environ"),
    ("model.engine_args.a.api_keys", {"model": {"engine_args": {"a": {"api_keys": [SECRET]}}}}, "environment"),
    ("model.engine_args.cache_api_key", {"model": {"engine_args": {"cache_api_key": SECRET}}}, "environment"),
    (
        "model.engine_args.a.group_access_token",
        {"model": {"engine_args": {"a": {"group_access_token": SECRET}}}},
        "env",
    ),
    ("model.engine_args.a.pass", {"model": {"engine_args": {"a": {"pass": SECRET}}}}, "environment"),
    ("model.engine_args.a.auth", {"model": {"engine_args": {"a": {"auth": SECRET}}}}, "environment"),
    ("model.engine_args.a.bearer", {"model": {"engine_args": {"a": {"bearer": SECRET}}}}, "environment"),
    ("model.engine_args.a", {"model": {"engine_args": {"a": ["Authorization: Bearer sesame"]}}}, "environment"),
    ("model.engine_args.a", {"model": {"engine_args": {"a": "https://host/x?a=1&sig=sesame"}}}, "environment"),
    ("model.engine_args.a", {"model": {"engine_args": {"a": "--redis=redis://me:sesame@host/0 -v"}}}, "environment"),
    ("model.engine_args.a", {"model": {"engine_args": {"a": "me:sesame@host:6379"}}}, "environment"),
    ("input.path", {"input": {"path": "https://host/x?X-Amz-Signature=sesame"}}, "environment"),
    ("metrics.push_gateway", {"metrics": {"push_gateway": "me:sesame@host:9091"}}, "MAGBATCH_PUSH_GATEWAY_USER"),
    ("model.source", {"model": {"source": "s3://AKIAX:sesame@models/large"}}, "AWS_PROFILE"),
    ("input.path", {"input": {"path": "s3://AKIAX:ses/ame@bucket/in"}}, "AWS_ACCESS_KEY_ID"),
    ("input.fetch_from", {"input": {"fetch_from": ["s3://AKIAX:sesame@bucket/in"]}}, "or a role"),
    ("output.path", {"output": {"path": "s3://AKIAX:sesame@bucket/out"}}, "AWS_ACCESS_KEY_ID"),
]


@pytest.mark.parametrize(("path", "sections", "instead"), SECRETS, ids=[str(sections) for _, sections, _ in SECRETS])
def test_a_secret_is_refused_with_its_place_and_not_repeated(path: str, sections: dict[str, Any], instead: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse(text(**sections), origin="job.yaml", new=True)
    said = str(caught.value)
    assert said.startswith(f"job.yaml: 1 wrong field\n  {path}: holds a secret")
    assert instead in said
    assert "same" not in said


def test_a_secret_that_is_set_for_a_stored_spec_is_refused_too() -> None:
    with pytest.raises(SpecError, match=r"hf_token: holds a secret"):
        parse(text(), ["model.engine_args.hf_token=sesame"])
    stored = text(model={"engine_args": {"hf_token": SECRET}})
    assert parse(stored, ["sampling.n=1"]).model.engine_args["hf_token"] == SECRET


@pytest.mark.parametrize(
    "sections",
    [
        {"model": {"engine_args": {"max_num_batched_tokens": 9, "tokenizer_mode": "auto", "stop_token_ids": [3]}}},
        {"model": {"engine_args": {"skip_special_tokens": True, "hf_token": True, "hf_overrides": {"eos_token": "s"}}}},
        {"sampling": {"max_tokens": 100}, "reasoning": {"budget_tokens": 10}},
        {"prompt": {"template": "{{question}}: who is at http://me:sesame@host?"}},
        {"prompt": {"system": "https://me:sesame@host"}},
        {"input": {"columns": {"prompt": "api_key"}, "carry": ["password"]}},
        {"answer": {"schema": {"type": "object", "properties": {"password": {"const": "http://a:b@c"}}}}},
        {"sampling": {"stop": ["https://me@x.org", "http://me:sesame@host"]}, "input": {"carry": ["http://me@x"]}},
        {
            "model": {
                "engine_args": {"hf_overrides": {"fim_token": "<f>", "user_token": "<|user|>", "inst_token": "[I]"}}
            }
        },
        {"model": {"engine_args": {"a": {"api_key": "", "x_token": 7, "keys": ["a"], "text": "basic words"}}}},
        {"input": {"path": "s3://bucket/of@me/x:y@z"}, "output": {"path": "/out/a:b@c"}},
        {"metrics": {"push_gateway": "http://[::1]:9091/a@b"}},
        {"model": {"engine_args": {"script": ["[" * 100_000, "[" * 900 + "]" * 900, "{not JSON"]}}},
    ],
    ids=str,
)
def test_values_that_look_like_secrets_are_accepted(sections: dict[str, Any]) -> None:
    assert secrets(yaml.safe_load(text(**sections))) == []


@pytest.mark.parametrize(("name", "secret"), [
    ("hf_token", True), ("apiKey", True), ("AWS_SECRET_ACCESS_KEY", True), ("db-password", True), ("passwd", True),
    ("X-Amz-Security-Token", True), ("client_secret", True), ("token", True), ("HFToken", True), ("credentials", True),
    ("max_tokens", False), ("tokenizer", False), ("eos_token", False), ("monkey", False), ("keys", False),
    ("api_keys", True), ("hf_tokens", True), ("group_password", True), ("per_user_api_key", True), ("auth", True),
    ("stop_token_ids", False), ("sort_key", False), ("passwordless", False), ("", False), ("42", False),
])  # fmt: skip
def test_names_of_secrets(name: str, secret: bool) -> None:
    assert is_secret_name(name) is secret


def test_a_stored_secret_is_hidden_and_makes_no_difference() -> None:
    stored = parse(text(
        model={"engine_args": {"hf_token": SECRET, "a": {"b": ["redis://:sesame@host/0", 1]}}},
        metrics={"push_gateway": "http://me:sesame@host:9091"},
    ))  # fmt: skip
    report = settings(stored, EngineArgs(5, 9, stored.model.engine_args))
    assert SECRET not in json.dumps(report)
    assert report["metrics"]["push_gateway"] == "http://(hidden)@host:9091"
    assert report["model"]["engine_args"] == {
        "max_model_len": 5,
        "max_num_seqs": 9,
        "hf_token": "(hidden)",
        "a": {"b": ["redis://(hidden)@host/0", 1]},
    }
    without = parse(text(model={"engine_args": {"a": {"b": ["redis://host/0", 1]}}}))
    (difference,) = differences(stored, without)
    assert "model.engine_args.a.b" in difference
    assert SECRET not in difference


@given(st.recursive(
    st.text() | st.integers() | st.none() | st.booleans(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
))  # fmt: skip
def test_arguments_of_any_depth_are_searched_for_secrets(inner: Any) -> None:
    data = {"model": {"engine_args": {"x": inner, "y": {"hf_token": SECRET}}}}
    assert "model.engine_args.y.hf_token" in dict(secrets(data))
    assert SECRET not in json.dumps(shown(data))


def test_only_hf_token_among_vllms_arguments_has_the_name_of_a_secret() -> None:
    vllm = installed()
    if vllm is None:
        pytest.skip("vLLM is not installed")
    assert {name for name in vllm.names() if is_secret_name(name)} == {"hf_token"}


def test_a_secret_inside_json_text_is_hidden() -> None:
    stored = {"model": {"engine_args": {"a": json.dumps({"x": {"hf_token": SECRET, "n": 1}})}}}
    assert json.loads(shown(stored)["model"]["engine_args"]["a"]) == {"x": {"hf_token": "(hidden)", "n": 1}}


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("http://u:p@ss@h is", "http://(hidden)@h is"),
        ("RAY_ADDRESS=u:sesame@h:6379: no", "RAY_ADDRESS=(hidden)@h:6379: no"),
        ("--address http://h:1/?token=sesame: write", "--address http://h:1/?token=(hidden): write"),
        ("--set metrics.push_gateway=http://h?token=sesame", "--set metrics.push_gateway=http://h?token=(hidden)"),
        ("https://h/x?sig=sesame&a=1", "https://h/x?sig=(hidden)&a=1"),
        ("it is 'hf_S3CRabc'", "it is '(hidden)'"),
        ("{'api_keys': ['sesame'], 'n': 1}", "{'api_keys': (hidden), 'n': 1}"),
        ("Authorization: Bearer abc123", "Authorization: Bearer (hidden)"),
        ("model.engine_args.hf_token: holds a secret", "model.engine_args.hf_token: holds a secret"),
        ("magbatch run a.yaml --set sampling.max_tokens=9", "magbatch run a.yaml --set sampling.max_tokens=9"),
        ("hf_overrides: no such field; http://[::1]:9091/a@b", "hf_overrides: no such field; http://[::1]:9091/a@b"),
    ],
)
def test_messages_lose_only_their_secrets(said: str, shown: str) -> None:
    assert without_secrets(said) == shown
    assert without_secrets(shown) == shown


@pytest.mark.parametrize(
    "item",
    ["model.engine_args={hf_token: [sesame}", "metrics.port=hf_Sesame1", "model.engine_args.api_key=[sesame"],
)
def test_a_wrong_override_does_not_repeat_a_secret(item: str) -> None:
    assert "esame" not in without_value(item)
    with pytest.raises(SpecError) as caught:
        parse(text(), [item], new=True)
    assert "esame" not in without_secrets(str(caught.value))


def test_overrides_without_secrets_are_set_unchanged() -> None:
    for item in ("sampling.max_tokens=9", "--where", "prompt.template={{a}}: b", "model.engine_args={max_num_seqs: 4}"):
        assert without_value(item) == item


def test_messages_of_libraries_lose_only_the_secret() -> None:
    said = without_secrets("PUT http://me:p/w@host:9091/a?b=1&token=x refused; see https://docs.io/a@b")
    assert said == "PUT http://(hidden)@host:9091/a?b=1&token=(hidden) refused; see https://docs.io/a@b"
