"""Whether a Ray cluster is at an address and lets this machine in, told before Ray itself tries for half a minute."""

import logging
import os
import socket
import ssl
from typing import TYPE_CHECKING, Any, Final

from pipelines.errors import InputError, RayscanError

if TYPE_CHECKING:
    import grpc

KNOCK_SECONDS: Final = 5
TOKEN: Final = "copy the token of its head node to ~/.ray/auth_token, or name the file in RAY_AUTH_TOKEN_PATH"  # noqa: S105
TLS_VARIABLES: Final = "RAY_USE_TLS, RAY_TLS_CA_CERT, RAY_TLS_SERVER_CERT and RAY_TLS_SERVER_KEY"
NO_CLUSTER: Final = "start one with `ray start --head`, or leave --address out to work on this machine"


def check_address(address: str, cpus: int | None = None) -> None:
    """Raise `InputError` unless this is "local", "auto", or host:port where something listens."""
    if address.startswith(("http://", "https://")):
        raise InputError(
            f"{address} is a cluster's Jobs API: run it there with `rayscan submit --address {address} -- VERB …`, "
            "or unset RAY_ADDRESS to work on this machine"
        )
    if "://" in address:
        raise InputError(
            f"{address}: Ray Client is not supported; use `rayscan submit` with the dashboard's http:// URL"
        )
    if cpus is not None and address != "local":
        raise InputError(f"--cpus sizes a Ray on this machine; the cluster at {address} has its own")
    if address not in ("local", "auto"):
        _knock(address)


def use_token() -> bool:
    """Turn token authentication on in this process if a token is at hand and RAY_AUTH_MODE leaves it open.

    Ray looks for the token itself (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token); rayscan never reads it.
    Returns whether authentication is on. Raises `InputError` when RAY_AUTH_TOKEN_PATH names no file, or an empty one.
    """
    from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
    from ray.exceptions import AuthenticationError

    hush_token_notice()
    try:
        return maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    except AuthenticationError as error:
        raise InputError(f"RAY_AUTH_TOKEN_PATH names no file with a token: {TOKEN}") from error


def ask(address: str) -> None:
    """Call the control store at host:port once, with the token if `use_token` found one.

    Raises `InputError` when it refuses the token or wants one, and when what listens there is no Ray; `RayscanError`
    when it is silent, as a head that has too much to do is.
    """
    import grpc
    from ray._private.grpc_utils import init_grpc_channel
    from ray._private.ray_constants import GLOBAL_GRPC_OPTIONS
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

    try:
        with init_grpc_channel(address, options=GLOBAL_GRPC_OPTIONS) as channel:  # past the web's proxy, as Ray does
            store: Any = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)  # type: ignore[no-untyped-call]
            store.CheckAlive(gcs_service_pb2.CheckAliveRequest(), timeout=KNOCK_SECONDS)  # type: ignore[attr-defined]
    except grpc.RpcError as error:
        raise _refusal(address, error) from error


def hush_token_notice() -> None:
    """Keep Ray from logging at every start that token authentication is on."""
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)


def _refusal(address: str, error: "grpc.RpcError") -> RayscanError:
    import grpc

    if error.code() == grpc.StatusCode.UNAUTHENTICATED:
        return InputError(f"the Ray cluster at {address} wants its token, and not another or none: {TOKEN}")
    if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
        return RayscanError(f"what listens at {address} says nothing for {KNOCK_SECONDS} s: look at its head node")
    return InputError(
        f"what listens at {address} is no Ray that this machine can speak to ({error.code().name}): give the port of"
        " the head's control store, 6379 by default; where the nodes use TLS, its certificates must be theirs"
    )


def _knock(address: str) -> None:
    """Raise `InputError` at once if nothing listens at host:port, or it speaks TLS and we do not, or the other way.

    Ray itself tries for minutes, whichever it is.
    """
    host, _, port = address.rpartition(":")
    if not (host and port.isdigit()):
        raise InputError(f"{address} is no address of a Ray cluster: give host:port, auto or local")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_SECONDS).close()
    except OSError as error:
        raise InputError(f"no Ray cluster answers at {address}: {NO_CLUSTER}") from error
    speaks, have = _speaks_tls(host.strip("[]"), int(port)), os.environ.get("RAY_USE_TLS", "0").lower() in {"1", "true"}
    if speaks and not have:
        raise InputError(f"the Ray cluster at {address} speaks TLS: set {TLS_VARIABLES} as on its nodes")
    if have and speaks is False:
        raise InputError(f"the Ray cluster at {address} speaks no TLS: unset RAY_USE_TLS, or start its nodes with it")


def _speaks_tls(host: str, port: int) -> bool | None:
    """Whether a server answers as one does in TLS, None if it is silent; whose certificate it shows Ray judges."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with socket.create_connection((host, port), timeout=KNOCK_SECONDS) as plain, context.wrap_socket(plain):
            return True
    except TimeoutError:
        return None
    except OSError:  # ssl's own errors are among them
        return False
