"""A model of the hub is one commit; if the hub gives none, the message says what to do."""

import errno
import shutil
import socket
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub
import pytest
from huggingface_hub import errors

from magbatch.errors import ModelError, StorageError
from magbatch.model import hub
from magbatch.model.checkpoint import locate, resolve
from magbatch.spec import ModelSpec


def test_a_hub_model_is_the_commit_that_its_branch_had(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files lie as the hub's own client keeps them; no hub is asked."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    kept, model = tmp_path / "models--acme--tiny", ModelSpec(source="acme/tiny")
    first, second = "a" * 40, "b" * 40
    for commit in (first, second):
        shutil.copytree(checkpoint, kept / "snapshots" / commit)
    main = kept / "refs" / "main"
    main.parent.mkdir()
    main.write_text(first)
    planned = ModelSpec(source="acme/tiny", revision=resolve(model).revision)
    main.write_text(second)
    assert (planned.revision, resolve(model).revision) == (first, second)
    assert locate(planned, weights=True).path.name == first


def answered(status: int) -> httpx.Response:
    return httpx.Response(status, request=httpx.Request("GET", "https://huggingface.co/acme/tiny"))


def from_cause(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make the hub's client raise an error."""

    def begin(error: Exception) -> None:
        def refused(*_: Any, **__: Any) -> str:
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", refused)

    return begin


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (errors.OfflineModeIsEnabled(), "HF_HUB_OFFLINE is set"),
        (errors.GatedRepoError("x", response=answered(403)), "access is granted on the model's page only"),
        (errors.RevisionNotFoundError("x", response=answered(404)), "the hub has no such revision of it"),
        (errors.RepositoryNotFoundError("x", response=answered(404)), "the hub has no such model; write owner/name"),
        (errors.HFValidationError("a b"), "the hub allows no such name"),
        (errors.HfHubHTTPError("x", response=answered(418)), "the hub answered 418"),
        (from_cause(OSError("no file"), socket.gaierror(-2, "unknown")), "huggingface.co cannot be reached"),
        (OSError(errno.EACCES, "Permission denied", "/cache/x"), "/cache/x: Permission denied; set HF_HOME"),
    ],
)
def test_a_hub_that_gives_no_model_says_what_to_do(refuse: Any, error: Exception, advice: str) -> None:
    refuse(error)
    with pytest.raises(ModelError) as caught:
        hub.fetch("acme/tiny", None, ["params.json"])
    assert str(caught.value).startswith(
        "model.source acme/tiny: no such local directory, and fetching it from the hub failed: "
    )
    assert advice in str(caught.value)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_an_overloaded_hub_may_answer_later(refuse: Any, status: int) -> None:
    refuse(errors.HfHubHTTPError("x", response=answered(status)))
    with pytest.raises(StorageError) as caught:
        hub.fetch("acme/tiny", None, ["params.json"])
    assert caught.value.passing


def test_a_network_that_is_away_ends_an_unattended_job_so_that_it_is_run_again(
    refuse: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAGBATCH_UNATTENDED", "1")
    refuse(httpx.ConnectError("no route"))
    with pytest.raises(StorageError, match="cannot be reached from this machine"):
        hub.fetch("acme/tiny", None, ["params.json"])
    refuse(errors.RepositoryNotFoundError("x", response=answered(404)))
    with pytest.raises(ModelError):
        hub.fetch("acme/tiny", None, ["params.json"])
