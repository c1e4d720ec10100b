"""The Hugging Face hub as a source of checkpoints, with advice if a model cannot be fetched."""

import errno
import os
import socket
import ssl
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import httpx

from magbatch.errors import ModelError, StorageError
from magbatch.storage.contact import is_unattended

_NETWORK_ERRNOS = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN)


def fetch(source: str, revision: str | None, patterns: list[str]) -> Path:
    """Fetch files of a model, unless this node has them already.

    Args:
        source: Name of the model on the hub: `owner/name`.
        revision: Branch, tag or commit; None for the hub's own default.
        patterns: Patterns of file names.

    Returns:
        The folder of the files, which is named for the commit.

    Raises:
        ModelError: The hub does not give the model; the message says what to do.
        StorageError: The hub is overloaded, or the run is unattended and has no network. A later try may succeed.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=patterns))
    except (OSError, ValueError, httpx.HTTPError) as error:  # a ValueError: a name that the hub does not allow
        if _is_overloaded(error):
            raise StorageError(f"model.source {source}: the hub does not answer now: {error}", passing=True) from error
        text = f"model.source {source}: no such local directory, and fetching it from the hub failed: {_advice(error)}"
        if is_unattended() and any(map(_is_network, _causes(error))):
            raise StorageError(text, passing=True) from error
        raise ModelError(text) from error


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and its causes. `huggingface_hub` wraps the useful cause in an error that says too little."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _is_overloaded(error: BaseException) -> bool:
    answers = [getattr(one, "response", None) for one in _causes(error)]
    codes = [answer.status_code for answer in answers if answer is not None]
    return any(code == HTTPStatus.TOO_MANY_REQUESTS or code >= HTTPStatus.INTERNAL_SERVER_ERROR for code in codes)


def _is_network(error: BaseException) -> bool:
    """Whether the network refuses. A name that does not resolve is an OSError with a number as well."""
    kinds = httpx.TransportError | ConnectionError | TimeoutError | socket.gaierror | socket.herror | ssl.SSLError
    return isinstance(error, kinds) or (isinstance(error, OSError) and error.errno in _NETWORK_ERRNOS)


def _advice(error: BaseException) -> str:
    """The mistake behind an error of `huggingface_hub`, and what to do about it."""
    from huggingface_hub import errors

    token = "a private or gated model needs HF_TOKEN of a user who has access"
    for one in _causes(error):
        if isinstance(one, errors.OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set, and HF_HOME holds no copy; unset it, or set model.source to a directory"
        if isinstance(one, errors.GatedRepoError):
            return "access is granted on the model's page only; ask there, and set HF_TOKEN"
        if isinstance(one, errors.RevisionNotFoundError):
            return "the hub has no such revision of it; write a branch, tag or commit in model.revision"
        if isinstance(one, errors.RepositoryNotFoundError):
            return f"the hub has no such model; write owner/name as on its page; {token}"
        if isinstance(one, errors.HFValidationError):
            return f"the hub allows no such name; write owner/name ({one})"
        if isinstance(one, errors.HfHubHTTPError) and one.response is not None:
            return f"the hub answered {one.response.status_code}; {token}"
        if _is_network(one):
            where = os.environ.get("HF_ENDPOINT")
            address = f"HF_ENDPOINT={where}" if where else "huggingface.co"
            return (
                f"{address} cannot be reached from this machine ({one}); check the network, or set model.source to a "
                "directory or s3://"
            )
        if isinstance(one, OSError) and one.errno is not None:
            return f"{one.filename or 'the local copy'}: {one.strerror}; set HF_HOME to a folder that can be written"
    return str(error)
