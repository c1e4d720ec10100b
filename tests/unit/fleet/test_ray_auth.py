"""A local Ray has a token of its own, and a cluster is sent the user's token once it has asked for it."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]

from magbatch.errors import ClusterAccessError
from magbatch.fleet.ray_auth import Token, authenticate, own_token, token_at_hand
from magbatch.fleet.ray_private import read_settings_again


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home directory of the test's own, and no token."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")  # what is set within the test is taken back after it
        monkeypatch.delenv(name)
    AuthenticationTokenLoader.instance().reset_cache()
    yield tmp_path
    monkeypatch.undo()
    read_settings_again()
    AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def head(token: str | None = None) -> Iterator[tuple[str, list[str]]]:
    """A head node that asks for its token, if it has one; gives its address, and what it is sent."""
    sent: list[str] = []

    class AnyMethod(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, details: Any) -> Any:
            def answer(_: bytes, context: Any) -> bytes:
                found = dict(context.invocation_metadata()).get("authorization", "")
                sent.append(found)
                if token is not None and found != f"Bearer {token}":
                    context.abort(grpc.StatusCode.UNAUTHENTICATED, "no")
                return b""

            return grpc.unary_unary_rpc_method_handler(answer)

    server = grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers((AnyMethod(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}", sent
    finally:
        server.stop(None).wait()


@pytest.mark.usefixtures("home")
def test_a_cluster_that_asks_is_sent_the_token_and_any_other_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "sesame")
    with head("sesame") as (address, sent):
        authenticate(address)
    assert (sent, os.environ["RAY_AUTH_MODE"]) == (["", "Bearer sesame"], "token")
    with head() as (address, sent):
        authenticate(address)
    assert (sent, os.environ["RAY_AUTH_MODE"]) == ([""], "disabled")


@pytest.mark.usefixtures("home")
def test_a_cluster_that_asks_for_another_token_is_told_apart_from_one_that_asks_for_any(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with head("sesame") as (address, _):
        with pytest.raises(ClusterAccessError, match=f"RAY_ADDRESS={address}: the cluster asks for a token, and none"):
            authenticate(address)
        monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong")
        with pytest.raises(ClusterAccessError, match="the cluster refuses the token of RAY_AUTH_TOKEN"):
            authenticate(address)


@pytest.mark.usefixtures("home")
def test_token_mode_without_a_token_names_the_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with pytest.raises(ClusterAccessError, match=r"RAY_AUTH_MODE=token.*set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"):
        authenticate("127.0.0.1:1")


@pytest.mark.usefixtures("home")
def test_a_local_ray_has_a_token_of_its_own_and_leaves_none_in_the_home_directory(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")
    own_token()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
    assert token_at_hand() == Token(os.environ["RAY_AUTH_TOKEN"], "RAY_AUTH_TOKEN")
    assert list(home.iterdir()) == []
    for name, value in (("RAY_AUTH_MODE", "disabled"), ("RAY_AUTH_TOKEN_PATH", "/x"), ("RAY_AUTH_TOKEN", "mine")):
        with monkeypatch.context() as settings:
            settings.setenv("RAY_AUTH_TOKEN", "")
            settings.setenv(name, value)
            own_token()
            assert os.environ["RAY_AUTH_TOKEN"] == ("mine" if value == "mine" else ""), "the user's choice stays"
