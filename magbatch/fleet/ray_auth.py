"""Ray's tokens: a fresh token for a local Ray, and the user's token for a cluster that asks for one.

Ray's own client sends a token only under RAY_AUTH_MODE=token, and then to every host. Here a host gets the token only
after it has asked.
"""

import os
import secrets
from dataclasses import dataclass

import grpc  # type: ignore[import-untyped]
import ray

from magbatch.errors import ClusterAccessError
from magbatch.fleet.ray_private import latest_address, raw_token, read_settings_again

MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
PROBE_TIMEOUT_S = 10.0
# A harmless request to the service that every client of Ray asks first; no field of it must be set.
_PROBE = "/ray.rpc.NodeInfoGcsService/CheckAlive"


@dataclass(frozen=True, slots=True)
class Token:
    """A token, found as Ray itself would find it.

    Attributes:
        text: Secret text of the token, never shown.
        origin: Environment variable or file that it comes from.
    """

    text: str
    origin: str


def token_at_hand() -> Token | None:
    """The token of RAY_AUTH_TOKEN, else of the file RAY_AUTH_TOKEN_PATH, else of ~/.ray/auth_token; else None.

    Raises:
        ClusterAccessError: The file that RAY_AUTH_TOKEN_PATH names cannot be read.
    """
    try:
        text = raw_token()
    except ray.exceptions.AuthenticationError as error:
        raise ClusterAccessError(
            f"{TOKEN_PATH} {os.environ.get(TOKEN_PATH)}: cannot be read or is empty; write the cluster's token there"
        ) from error
    if not text:
        return None
    if os.environ.get(TOKEN):
        return Token(text, TOKEN)
    path = os.environ.get(TOKEN_PATH)
    return Token(text, f"{TOKEN_PATH} ({path})" if path else "~/.ray/auth_token")


def wanted(where: str) -> ClusterAccessError:
    """Make the error of a cluster that asks for a token when none is set.

    Args:
        where: Name of the cluster in the message: its address, and the variable or option that holds it.
    """
    return ClusterAccessError(
        f"{where}: the cluster asks for a token, and none is set: set {TOKEN}, or {TOKEN_PATH} to a file with it "
        "(`ray get-auth-token` shows it on the head node)"
    )


def refused(where: str, token: Token) -> ClusterAccessError:
    """Make the error of a cluster that refuses a token.

    Args:
        where: Name of the cluster in the message.
        token: The refused token; the message shows only its origin.
    """
    return ClusterAccessError(
        f"{where}: the cluster refuses the token of {token.origin}: set {TOKEN} to the cluster's own"
    )


def authenticate(address: str) -> None:
    """Make this process send its token to a cluster if the cluster asks for one, and to no other host.

    Args:
        address: `host:port` of the head node, or `auto`.

    Raises:
        ClusterAccessError: The cluster asks for a token, and none is set, or a wrong one.
    """
    if os.environ.get(MODE, "").lower() == "token" and token_at_hand() is None:
        raise ClusterAccessError(f"{MODE}=token, but no token is set: set {TOKEN} or {TOKEN_PATH}, or unset {MODE}")
    where = f"RAY_ADDRESS={address}"
    if address == "auto":  # the cluster that was started last on this machine
        address = latest_address() or address
    if ":" not in address or os.environ.get("RAY_USE_TLS", "0") not in {"", "0"}:
        return  # either no cluster, which Ray reports itself, or TLS, for which only Ray has the certificates
    answer = _answer(address, None)
    if answer is grpc.StatusCode.OK:
        _set_mode("disabled")  # RAY_AUTH_MODE=token would send a token that the cluster has not asked for
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
    read_settings_again()


def _answer(address: str, token: Token | None) -> grpc.StatusCode:
    """The status of a cluster's reply to a request with this token, or without one."""
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
    """Make a token for the local Ray that this process starts, in the environment only.

    Ray would write a token to ~/.ray/auth_token, where every account of the machine may read it. Each later
    `ray start --head` of this account would then ask for that token.
    """
    if os.environ.get(MODE, "token").lower() == "token" and not (os.environ.get(TOKEN) or os.environ.get(TOKEN_PATH)):
        os.environ[TOKEN] = secrets.token_hex(32)
