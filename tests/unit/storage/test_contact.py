"""A refusal is a wrong setting only until the store has answered, and only to a person's command."""

from collections.abc import Iterator

import botocore.session
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError, SSLError

from magbatch import guard
from magbatch.storage import contact
from magbatch.storage.contact import mend_refusal, mend_silence

URL = "http://store.example:9000"


@pytest.fixture
def client() -> object:
    return botocore.session.get_session().create_client("s3", region_name="us-east-1", endpoint_url=URL)


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("AWS_ENDPOINT_URL", URL)
    monkeypatch.delenv(guard.UNATTENDED, raising=False)
    contact.forget()
    yield
    contact.forget()


def refusal(code: str, status: int = 403) -> ClientError:
    return ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "GetObject")  # type: ignore[typeddict-item]


SILENT = EndpointConnectionError(endpoint_url=URL)


def test_a_command_is_told_what_to_mend(client: object) -> None:
    with contact.command():
        assert "s3:GetObject" in (mend_refusal(refusal("AccessDenied"), client, "b", writing=False) or "")  # type: ignore[arg-type]
        assert "does not speak S3" in (mend_refusal(refusal("", 404), client, "b", writing=False) or "")  # type: ignore[arg-type]
        assert "AWS_ACCESS_KEY_ID" in (mend_silence(NoCredentialsError(), client, "b") or "")  # type: ignore[arg-type]
        assert f"AWS_ENDPOINT_URL={URL}" in (mend_silence(SILENT, client, "b") or "")  # type: ignore[arg-type]
        assert "write http://" in (mend_silence(SSLError(endpoint_url=URL, error="x"), client, "b") or "")  # type: ignore[arg-type]


def test_a_worker_has_no_wrong_settings(client: object) -> None:
    assert mend_refusal(refusal("AccessDenied"), client, "b", writing=False) is None  # type: ignore[arg-type]
    assert mend_silence(SILENT, client, "b") is None  # type: ignore[arg-type]


def test_a_bucket_that_granted_reads_may_still_refuse_writes_by_a_wrong_setting(client: object) -> None:
    contact.has_answered("b", writing=False)
    with contact.command():
        assert mend_refusal(refusal("AccessDenied"), client, "b", writing=False) is None  # type: ignore[arg-type]
        assert mend_refusal(refusal("AccessDenied"), client, "b", writing=True)  # type: ignore[arg-type]
        assert mend_refusal(refusal("AccessDenied"), client, "other", writing=False)  # type: ignore[arg-type]
        assert mend_silence(SILENT, client, "b") is None  # type: ignore[arg-type]


def test_an_overloaded_store_is_never_a_wrong_setting(client: object) -> None:
    with contact.command():
        assert mend_refusal(refusal("SlowDown", 503), client, "b", writing=False) is None  # type: ignore[arg-type]
        assert mend_refusal(refusal("", 502), client, "b", writing=False) is None  # type: ignore[arg-type]


def test_a_command_that_a_program_started_has_no_mistyped_address(
    client: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(guard.UNATTENDED, "1")
    with contact.command():
        assert mend_silence(SILENT, client, "b") is None  # type: ignore[arg-type]
        assert mend_silence(NoCredentialsError(), client, "b")  # type: ignore[arg-type]


def test_wrong_settings_are_named() -> None:
    assert contact.settings_mend(ValueError(f"Invalid endpoint: {URL}")) == f"fix AWS_ENDPOINT_URL={URL}"
    assert "~/.aws" in contact.settings_mend(ValueError("something else"))
