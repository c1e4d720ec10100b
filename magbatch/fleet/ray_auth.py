"""Ray's tokens: one of its own for a local Ray, and for a cluster that asks for one the one at hand.

A Ray client sends a token only under RAY_AUTH_MODE=token, whatever else is set, and then to every host. Here a host is
sent one when it has asked. All that is private of Ray about it is in this file (Ray 2.60, which is pinned).
"""

import os
import secrets
from dataclasses import dataclass

import grpc  # type: ignore[import-untyped]
import ray
from ray._private.services import find_bootstrap_address
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

from magbatch.errors import ClusterAccessError

MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
PROBE_TIMEOUT_S = 10.0
# A question of no weight, of the service that each client asks first; its request has no field that must be set.
_PROBE = "/ray.rpc.NodeInfoGcsService/CheckAlive"


@dataclass(frozen=True, slots=True)
class Token:
    """A token, as Ray's own rule finds it.

    Attributes:
        text: The token.
        origin: The environment variable, or the file, that it comes from.
    """

    text: str
    origin: str


def token_at_hand() -> Token | None:
    """The token of RAY_AUTH_TOKEN, else of the file RAY_AUTH_TOKEN_PATH, else of ~/.ray/auth_token; None without any.

    Raises:
        ClusterAccessError: The file that RAY_AUTH_TOKEN_PATH names cannot be read.
    """
    loader = AuthenticationTokenLoader.instance()
    try:
        text = loader.get_raw_token(ignore_auth_mode=True)
    except ray.exceptions.AuthenticationError as error:
        raise ClusterAccessError(
            f"{TOKEN_PATH} {os.environ.get(TOKEN_PATH)}: cannot be read, or is empty: write the cluster's token there"
        ) from error
    if not text:
        return None
    if os.environ.get(TOKEN):
        return Token(text, TOKEN)
    path = os.environ.get(TOKEN_PATH)
    return Token(text, f"{TOKEN_PATH} ({path})" if path else "~/.ray/auth_token")


def wanted(where: str) -> ClusterAccessError:
    """The error of a cluster that asks for a token where there is none."""
    return ClusterAccessError(
        f"{where}: the cluster asks for a token, and none is at hand: set {TOKEN}, or {TOKEN_PATH} to a file with it "
        "(`ray get-auth-token` shows it on the head node)"
    )


def refused(where: str, token: Token) -> ClusterAccessError:
    """The error of a cluster that does not take a token."""
    return ClusterAccessError(
        f"{where}: the cluster refuses the token of {token.origin}: set {TOKEN} to the cluster's own"
    )


def authenticate(address: str) -> None:
    """Have this process send its token to the cluster at `host:port`, or `auto`, if that asks for one; else to none.

    Raises:
        ClusterAccessError: It asks, and no token is at hand, or not the right one.
    """
    if os.environ.get(MODE, "").lower() == "token" and token_at_hand() is None:
        raise ClusterAccessError(
            f"{MODE}=token, and no token is at hand: set {TOKEN}, or {TOKEN_PATH}; or unset {MODE}"
        )
    where = f"RAY_ADDRESS={address}"
    if address == "auto":  # the cluster that was started last on this machine
        address = find_bootstrap_address(None) or address
    if ":" not in address or os.environ.get("RAY_USE_TLS", "0") not in {"", "0"}:
        return  # none, as Ray will say; or a port that speaks TLS, whose certificates are Ray's matter
    answer = _answer(address, None)
    if answer is grpc.StatusCode.OK:
        _set_mode("disabled")  # under RAY_AUTH_MODE=token the cluster would be sent a token that it has not asked for
    if answer is not grpc.StatusCode.UNAUTHENTICATED:
        return
    token = token_at_hand()
    if token is None:
        raise wanted(where)
    if _answer(address, token) is grpc.StatusCode.UNAUTHENTICATED:
        raise refused(where, token)
    _set_mode("token")


def _set_mode(mode: str) -> None:
    os.environ[MODE] = mode
    Config.initialize("")  # Ray has read the mode already, when it was imported


def _answer(address: str, token: Token | None) -> grpc.StatusCode:
    """How a cluster's head answers who sends this token."""
    metadata = [("authorization", f"Bearer {token.text}")] if token else []
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        ask = channel.unary_unary(_PROBE)
        try:
            ask(b"", timeout=PROBE_TIMEOUT_S, metadata=metadata)
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            return code
        return grpc.StatusCode.OK


def own_token() -> None:
    """Give the local Ray that this process starts a token of its own, in the environment alone.

    Ray itself would write one to ~/.ray/auth_token, for all accounts of the machine to read; and each later
    `ray start --head` of this account would ask for it.
    """
    if os.environ.get(MODE, "token").lower() == "token" and not (os.environ.get(TOKEN) or os.environ.get(TOKEN_PATH)):
        os.environ[TOKEN] = secrets.token_hex(32)
