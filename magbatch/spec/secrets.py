"""Secrets have no place in a spec: it is stored beside the output, in Ray's job list, and in reports.

A new spec that holds one is refused, with the place where it belongs instead. A spec that an earlier version has stored
still loads; wherever one is shown, its secrets are not.
"""

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl, urlsplit

HIDDEN = "(hidden)"
PUSH_USER, PUSH_PASSWORD = "MAGBATCH_PUSH_GATEWAY_USER", "MAGBATCH_PUSH_GATEWAY_PASSWORD"
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_SECRET_WORDS = frozenset({"password", "passwd", "passphrase", "pwd", "secret", "secrets", "credential", "credentials"})
_SECRET_ENDS = frozenset({"key", "token", "apikey", "authorization"})
# Names that end alike, and are marks of a text, or say how something is sorted.
_NO_SECRETS = frozenset(
    {
        "bos",
        "eos",
        "pad",
        "unk",
        "sep",
        "cls",
        "mask",
        "image",
        "img",
        "video",
        "audio",
        "stop",
        "start",
        "begin",
        "end",
    }
    | {"think", "thinking", "reasoning", "tool", "special", "placeholder", "patch", "prefix", "suffix", "public"}
    | {"sort", "cache", "group", "partition", "per"}
)
# Text of a prompt, and what names columns or describes answers, is no place that anything connects to.
_PROSE = frozenset({"prompt", "answer", "name"})
_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<rest>\S+)")
_QUERY = re.compile(r"(?<=[?&;])([^=&;#\s]+)=([^&;#\s]*)")
_IN_TEXT = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]{0,20}://)(?!\[)[^\s/@:]*(?::(?!\d*[/?#])[^\s@]*)?@")


def secrets(data: dict[str, Any]) -> list[tuple[str, str]]:
    """Path of each field of a spec that holds a secret, and where it belongs; the secret itself is in neither.

    Args:
        data: The spec as YAML gives it.
    """
    return [(path, _instead(path, value)) for path, value, secret in _leaves(data, "", named=False) if secret]


def shown(data: dict[str, Any]) -> dict[str, Any]:
    """A spec, or a part of one, as people and reports see it: without its secrets.

    Args:
        data: Of plain values; it is left as it is.
    """

    def clean(node: Any, path: str, *, named: bool) -> Any:
        if isinstance(node, dict):
            return {
                name: clean(value, _join(path, name), named=_named(path, name, named=named))
                for name, value in node.items()
            }
        if isinstance(node, list | tuple):
            return [clean(value, path, named=named) for value in node]
        if not _is_secret(node, path, named=named):
            return node
        return HIDDEN if named else without_secrets(node)

    return {name: clean(value, name, named=_named("", name, named=False)) for name, value in data.items()}


def without_secrets(text: str) -> str:
    """A text with what stands before the @ of each URL in it, and each secret of its query, left out.

    >>> without_secrets("http://user:pass@host:9091 refuses")
    'http://(hidden)@host:9091 refuses'
    """
    text = _IN_TEXT.sub(rf"\g<scheme>{HIDDEN}@", text)
    return _QUERY.sub(lambda found: f"{found[1]}={HIDDEN}" if is_secret_name(found[1]) else found[0], text)


def is_secret_name(name: str) -> bool:
    """Whether what has this name is a secret: `hf_token`, `apiKey`, `db-password`; not `max_tokens` or `eos_token`."""
    words = [word.lower() for word in _WORDS.findall(name)]
    if not words:
        return False
    if not _SECRET_WORDS.isdisjoint(words):
        return True
    return words[-1] in _SECRET_ENDS and _NO_SECRETS.isdisjoint(words[:-1])


def _leaves(node: Any, path: str, *, named: bool) -> Iterator[tuple[str, Any, bool]]:
    """Path and value of everything below a node, and whether it is a secret."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _leaves(value, _join(path, name), named=_named(path, name, named=named))
    elif isinstance(node, list | tuple):
        for value in node:
            yield from _leaves(value, path, named=named)
    else:
        yield path, node, _is_secret(node, path, named=named)


def _join(path: str, name: Any) -> str:
    return f"{path}.{name}" if path else str(name)


def _named(path: str, name: Any, *, named: bool) -> bool:
    """Whether a field holds a secret by its name, or by the name of what it stands in; in engine arguments alone.

    All other fields of a spec are known by their names, and none of them is for a secret.
    """
    return named or (path.startswith("model.engine_args") and is_secret_name(str(name)))


def _is_secret(value: Any, path: str, *, named: bool) -> bool:
    if not isinstance(value, str) or not value or path.partition(".")[0] in _PROSE:
        return False
    if named:
        return True
    if path.startswith("model.engine_args") and value.lstrip().startswith(("{", "[")):
        try:
            return any(secret for _, _, secret in _leaves(json.loads(value), path, named=False))
        except (ValueError, RecursionError):  # no JSON, or nested beyond anything that an engine reads
            return False
    return _holds_one(value)


def _holds_one(value: str) -> bool:
    """Whether a URL names its user, or has a secret in its query."""
    found = _URL.fullmatch(value.strip())
    if found is None:
        return False
    host = re.split(r"[/?#]", found["rest"], maxsplit=1)[0]
    # An AWS secret may hold a slash: its end is then not in what comes before the first one.
    if "@" in host or (":" in host and not host.rpartition(":")[2].isdigit() and "@" in found["rest"]):
        return True
    try:
        query = urlsplit(value).query
    except ValueError:
        return False
    return any(is_secret_name(name) for name, _ in parse_qsl(query))


def _instead(path: str, value: str) -> str:
    if path == "model.engine_args.hf_token":
        where = "set HF_TOKEN in the environment"
    elif path == "metrics.push_gateway":
        where = f"set {PUSH_USER} and {PUSH_PASSWORD} in the environment"
    elif value.startswith("s3:"):
        where = "leave access to the AWS chain: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or a role"
    else:
        where = "give it to the engine's environment"
    return f"holds a secret, which would be stored with the results: take it out, and {where}"
