"""Secrets in a spec: refused in a new spec, hidden wherever a spec is shown.

A spec is stored with the output, in Ray's job list and in reports, so a secret in it would be stored too. The message
says where the secret belongs. Specs that earlier versions stored with secrets still load.
"""

import json
import os
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl, urlsplit

HIDDEN = "(hidden)"
PUSH_USER, PUSH_PASSWORD = "MAGBATCH_PUSH_GATEWAY_USER", "MAGBATCH_PUSH_GATEWAY_PASSWORD"
_WORDS = re.compile(r"[A-Z]+s?(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
# A name holds a secret if it has a word of _SECRET_WORDS, or if its last word is in _SECRET_ENDS.
_SECRET_WORDS = frozenset(
    {"password", "passwords", "passwd", "passphrase", "pwd", "secret", "secrets", "credential", "credentials"}
)
_TOKENS = frozenset({"token", "tokens"})
_SECRET_ENDS = _TOKENS | {"key", "keys", "apikey", "apikeys", "pass", "auth", "authorization", "bearer"}
_SIGNATURES = frozenset({"sig", "signature"})  # names of parameters in the query of a URL
# Whole names from vLLM and from models' configurations that end in such a word and hold no secret.
_NO_SECRETS = frozenset(
    {f"{name}_token" for name in (
        "bos", "eos", "pad", "unk", "sep", "cls", "mask", "image", "img", "video", "audio", "stop", "start", "begin",
        "end", "think", "boi", "eoi", "boa", "eoa", "bov", "eov", "decoder_start", "forced_bos", "forced_eos", "per",
        "image_start", "image_end", "image_break", "vision_start", "vision_end", "audio_start", "audio_end",
        "video_start", "video_end", "think_start", "think_end", "start_of_image", "end_of_image", "placeholder",
        "patch", "pard", "num_experts_per",
    )}
    | {f"{name}_tokens" for name in (
        "max", "min", "num", "stop", "special", "additional_special", "extra_special", "added", "suppress", "spec",
        "begin_suppress", "max_new", "max_prompt", "budget", "max_num_batched", "max_num_scheduled", "max_num_queued",
        "num_speculative",
    )}
    | {f"{name}_key" for name in ("sort", "cache", "group", "partition", "prefix", "primary", "public", "base_config")}
    | {"tokens", "keys", "num_keys", "text_keys", "ignore_keys", "skip_keys"}
    | {f"{graph}_custom_{when}_pass" for graph in ("post_grad", "joint") for when in ("pre", "post")}
)  # fmt: skip
# A special token as text: <s>, <|user|>, [INST].
_SPECIAL = re.compile(r"<[^<>]{0,64}>|\[[^\[\]]{0,64}\]")
# Fields outside model.engine_args that hold an address.
_ENGINE_ARGS = "model.engine_args"
_ADDRESSES = frozenset({"model.source", "input.path", "input.fetch_from", "output.path", "metrics.push_gateway"})
_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<rest>\S+)")
_BEARER = re.compile(r"\b(?i:authorization[\"']?\s*[:=]\s*[\"']?(?:\w+\s+)?|bearer\s+)(?!\(hidden\))\S+")
# A user with a password before a host that names its port, without a scheme: me:pass@host:9091.
_LOGIN = re.compile(r"(?<![^\s='\",(\[{])[^\s/@:='\",(\[{]*:(?!//)[^\s/]+@(?=[\w.-]+:\d+(?!\d))")

# Secrets in messages.
_IN_TEXT = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]{0,20}://)(?!\[)(?:[^\s/?#@:]*:(?!\d*(?:[/?#]|$))\S*@|[^\s/?#]*@)"
)
_PAIR = re.compile(r"(?P<name>[\w.-]+)(?P<is>=)(?!\(hidden\))(?P<value>[^=?&;,#\s'\"]*[^=?&;,#\s'\":.)])")
_FIELD = re.compile(
    r"(?P<before>[{,]\s*|[\"'])(?P<name>[\w.-]+)(?P<is>[\"']?\s*:\s+|[\"']\s*:)(?P<value>\[[^\]]*\]?|[^\s,}\]]+)"
)
_SAID_BEARER = re.compile(r"(?i:(\bbearer\s+))(?=\S*\d)[^\s,;\"']+")
# Keys with a known prefix: Hugging Face, AWS, GitHub, GitLab, Slack, OpenAI.
_MARKED = re.compile(
    r"\b(?:hf_(?=[a-z0-9]*[A-Z0-9])[A-Za-z0-9]{4,}|(?:AKIA|ASIA)[A-Z0-9]{12,}|gh[pousr]_\w{8,}|github_pat_\w{8,}|"
    r"glpat-[\w-]{8,}|xox[a-z]-[\w-]{8,}|sk-[\w-]{16,})"
)


def secrets(data: dict[str, Any]) -> list[tuple[str, str]]:
    """Find the fields of a spec that hold a secret.

    Args:
        data: The spec as YAML gives it.

    Returns:
        Pairs (path, message). The message says where the secret belongs. Neither contains the secret.
    """
    return [(path, _instead(path, value)) for path, value, secret in _leaves(data, "", "") if secret]


def shown(data: dict[str, Any]) -> dict[str, Any]:
    """Copy of a spec, or of a part of one, with its secrets hidden.

    Args:
        data: Plain values, as YAML gives them.
    """

    def clean(node: Any, path: str, named: str) -> Any:
        if isinstance(node, dict):
            return {name: clean(value, _join(path, name), _named(path, name, named)) for name, value in node.items()}
        if isinstance(node, list | tuple):
            return [clean(value, path, named) for value in node]
        if not _is_secret(node, path, named):
            return node
        if named:
            return HIDDEN
        if (inner := _json(node)) is not None:
            return json.dumps(clean(inner, path, ""), ensure_ascii=False)
        said = without_secrets(node)
        return HIDDEN if _is_secret(said, path, named) else said

    return {name: clean(value, str(name), _named("", name, "")) for name, value in data.items()}


def without_secrets(text: str) -> str:
    """Copy of a text with its secrets hidden: in URLs, after names of secrets, and keys with a known prefix.

    >>> without_secrets("http://user:pass@host:9091 refuses")
    'http://(hidden)@host:9091 refuses'
    """
    text = _IN_TEXT.sub(rf"\g<scheme>{HIDDEN}@", text)
    text = _LOGIN.sub(f"{HIDDEN}@", text)
    text = _PAIR.sub(_without_value, text)
    text = _FIELD.sub(_without_value, text)
    return _MARKED.sub(HIDDEN, _SAID_BEARER.sub(rf"\1{HIDDEN}", text))


def without_value(item: str) -> str:
    """An item `key.path=value` for messages: the value is hidden if a name in the item is that of a secret."""
    key, separator, value = item.partition("=")
    names = [*key.split("."), *re.findall(r"[\w-]+(?=[\"']?\s*:)", value)]
    if separator and any(map(is_secret_name, names)):
        return f"{key}{separator}{HIDDEN}"
    return without_secrets(item)


def is_stored_in_its_output(path: str, data: dict[str, Any]) -> bool:
    """Whether a spec file is the stored spec of its own output, so that a job started with it can resume."""
    output = data.get("output")
    folder = output.get("path") if isinstance(output, dict) else None
    if not isinstance(folder, str) or "://" in folder:
        return False
    return os.path.realpath(path) == os.path.realpath(os.path.join(folder, "_magbatch", "spec.yaml"))


def is_secret_name(name: str) -> bool:
    """Whether a name is that of a secret: `hf_token`, `apiKeys`, `db-password`; not `max_tokens` or `eos_token`."""
    return bool(_kind(name))


def _kind(name: str) -> str:
    """Word that makes a name that of a secret; empty if there is none."""
    words = [word.lower() for word in _WORDS.findall(name)]
    if not words or "_".join(words) in _NO_SECRETS:
        return ""
    certain = next((word for word in words if word in _SECRET_WORDS), "")
    return certain or (words[-1] if words[-1] in _SECRET_ENDS else "")


def _without_value(found: re.Match[str]) -> str:
    """Replacement for a name and its value: the value is hidden if the name is that of a secret."""
    name, value = found["name"].rpartition(".")[2], found["value"]
    named = _kind(name) or _signature(name)
    if not named or value == HIDDEN or (named in _TOKENS and value.isdigit()):
        return found[0]
    before = found.groupdict().get("before", "")
    return f"{before}{found['name']}{found['is']}{HIDDEN}"


def _signature(name: str) -> str:
    words = [word.lower() for word in _WORDS.findall(name)]
    return words[-1] if words and words[-1] in _SIGNATURES else ""


def _leaves(node: Any, path: str, named: str) -> Iterator[tuple[str, Any, bool]]:
    """Path and value of each leaf below a node, and whether it is a secret."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _leaves(value, _join(path, name), _named(path, name, named))
    elif isinstance(node, list | tuple):
        for value in node:
            yield from _leaves(value, path, named)
    else:
        yield path, node, _is_secret(node, path, named)


def _join(path: str, name: Any) -> str:
    return f"{path}.{name}" if path else str(name)


def _named(path: str, name: Any, named: str) -> str:
    """Word that makes a field's name, or that of an enclosing field, the name of a secret; empty if there is none.

    Only engine arguments have free names. None of the other fields of a spec is for a secret.
    """
    return (_kind(str(name)) or named) if _is_argument(path) else ""


def _is_argument(path: str) -> bool:
    return path == _ENGINE_ARGS or path.startswith(f"{_ENGINE_ARGS}.")


def _is_secret(value: Any, path: str, named: str) -> bool:
    if value is None or isinstance(value, bool) or value == "":
        return False
    if named:
        return named not in _TOKENS or (isinstance(value, str) and not _SPECIAL.fullmatch(value.strip()))
    if not isinstance(value, str):
        return False
    if not _is_argument(path):
        return path in _ADDRESSES and _holds_one(value, bare=path == "metrics.push_gateway")
    if (inner := _json(value)) is not None:
        return any(secret for _, _, secret in _leaves(inner, path, ""))
    return _holds_one(value, bare=False) or bool(_BEARER.search(value)) or bool(_LOGIN.search(value))


def _json(value: str) -> Any:
    """Value of an engine argument written as JSON text; None for any other text."""
    if value.lstrip().startswith(("{", "[")):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):  # not JSON, or nested too deeply for any engine
            return None
    return None


def _holds_one(value: str, *, bare: bool) -> bool:
    """Whether a URL in a text has a user, or a secret in its query.

    Args:
        value: The text.
        bare: Whether the scheme may be missing: `me:pass@host:9091`.
    """
    if bare and "://" not in value:
        value = f"http://{value.strip()}"
    return any(map(_is_secret_url, _URL.finditer(value)))


def _is_secret_url(found: re.Match[str]) -> bool:
    rest = found["rest"].removeprefix(f"{HIDDEN}@")
    host = re.split(r"[/?#]", rest, maxsplit=1)[0]
    # An AWS secret may contain a slash, so its `@` may stand after the first slash.
    if "@" in host or (":" in host and not host.rpartition(":")[2].isdigit() and "@" in rest):
        return True
    try:
        query = urlsplit(f"{found['scheme']}://{rest}").query
    except ValueError:
        return False
    return any(value != HIDDEN and (is_secret_name(name) or _signature(name)) for name, value in parse_qsl(query))


def _instead(path: str, value: Any) -> str:
    if path == "model.engine_args.hf_token":
        where = "set HF_TOKEN in the environment"
    elif path == "metrics.push_gateway":
        where = f"set {PUSH_USER} and {PUSH_PASSWORD} in the environment"
    elif str(value).startswith("s3:"):
        where = "use the AWS chain: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or a role"
    else:
        where = "set it in the engine's environment"
    return f"holds a secret, which would be stored with the results: remove it, and {where}"
