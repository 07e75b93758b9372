"""How a root is reached: the client of its store, with credentials, endpoint and patience.

S3 by boto3's chain of credentials; an S3-compatible server (Ceph, MinIO, `rclone serve s3`) is set by
AWS_ENDPOINT_URL. Azure by the variables AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, else by the machine's
managed identity; another endpoint than Azure's own is set by AZURE_STORAGE_ENDPOINT. Google's store is not offered: no
server that can be run beside the tests takes the writes obstore sends it, so nothing shows that they work.

Over plain http everyone on the way reads the films, and may change the scores. So an http:// endpoint is refused unless
it is this machine, or RAYSCAN_ALLOW_HTTP says that the network is trusted.
"""

import ipaddress
import os
from datetime import timedelta
from functools import lru_cache
from typing import Any, Final
from urllib.parse import urlsplit

from obstore import exceptions
from obstore.store import AzureStore, LocalStore, ObjectStore, S3Store

from models.messages import first_line
from pipelines.errors import AccessError, InputError

SCHEMES: Final = ("s3", "az", "file")
RETRIES: Final = 6
RETRY_SECONDS: Final = 60
IMPATIENT_SECONDS: Final = 10
"""Seconds after which an impatient store gives up."""
ALLOW_HTTP: Final = "RAYSCAN_ALLOW_HTTP"
_BACKOFF: Any = {"init_backoff": timedelta(milliseconds=200), "max_backoff": timedelta(seconds=10), "base": 2}
_RETRY: Any = {"max_retries": RETRIES, "retry_timeout": timedelta(seconds=RETRY_SECONDS), "backoff": _BACKOFF}
_RETRY_ONCE: Any = {"max_retries": 1, "retry_timeout": timedelta(seconds=IMPATIENT_SECONDS / 2), "backoff": _BACKOFF}
_AZURITE: Final = "http://127.0.0.1:10000"
"""Where obstore looks for Azure's emulator if AZURE_STORAGE_USE_EMULATOR is set, and nothing else."""
AZURE_CREDENTIALS: Final = (
    "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, "
    "or the name alone on a machine with a managed identity"
)


def connect(root: str, *, impatient: bool) -> ObjectStore:
    """The client of the store at a canonical URI; no request is made yet.

    Raises `AccessError` if there are no credentials, `InputError` if the endpoint is not to be used (`require_safe`).
    """
    scheme, _, rest = root.partition("://")
    if scheme == "file":
        return LocalStore(rest or "/")
    bucket, _, prefix = rest.partition("/")
    patience: dict[str, Any] = {"retry_config": _RETRY_ONCE if impatient else _RETRY, "client_options": {}}
    if impatient:
        patience["client_options"] = {"timeout": timedelta(seconds=IMPATIENT_SECONDS / 2)}
    return (_connect_s3 if scheme == "s3" else _connect_azure)(bucket, prefix, patience)


def require_safe(endpoint: str) -> bool:
    """Whether an endpoint is plain http; raises `InputError` if it is, and nobody said that this is meant.

    It is meant if the host is this machine (localhost, 127.0.0.0/8, ::1) or RAYSCAN_ALLOW_HTTP is 1.
    """
    parts = urlsplit(endpoint)
    if parts.scheme != "http":
        return False
    host = parts.hostname or ""
    if os.environ.get(ALLOW_HTTP) == "1" or host == "localhost" or _is_loopback(host):
        return True
    raise InputError(
        f"http://{host}: over plain http everyone on the way can read the films and change the scores; give this "
        f"endpoint as https://, or set {ALLOW_HTTP}=1 if you trust the network"
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _connect_s3(bucket: str, prefix: str, patience: dict[str, Any]) -> S3Store:
    from obstore.auth.boto3 import Boto3CredentialProvider  # noqa: PLC0415 (boto3 takes 0.2 s; local disk needs none)

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    # Said in any case, since obstore would take AWS_ENDPOINT and AWS_ALLOW_HTTP from the environment.
    patience["client_options"]["allow_http"] = require_safe(endpoint or os.environ.get("AWS_ENDPOINT", ""))
    try:
        credentials = Boto3CredentialProvider(ttl=timedelta(minutes=5))
    except ValueError as error:
        raise AccessError(
            f"s3://{bucket}: no credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "or AWS_PROFILE, or run on a machine with an instance role"
        ) from error
    options: dict[str, Any] = {"region": os.environ.get("AWS_REGION") or credentials.config.get("region", "us-east-1")}
    if endpoint:
        options["endpoint"] = endpoint
    return S3Store(bucket, prefix=prefix or None, credential_provider=credentials, **patience, **options)


def _connect_azure(container: str, prefix: str, patience: dict[str, Any]) -> AzureStore:
    endpoint = os.environ.get("AZURE_STORAGE_ENDPOINT") or os.environ.get("AZURE_ENDPOINT")
    if os.environ.get("AZURE_STORAGE_USE_EMULATOR"):
        endpoint = os.environ.get("AZURITE_BLOB_STORAGE_URL", _AZURITE)
    patience["client_options"]["allow_http"] = require_safe(endpoint or "")
    try:
        return AzureStore(container, prefix=prefix or None, **patience)
    except exceptions.BaseError as error:  # no account named, or a key that is none
        reason = first_line(error).removeprefix("Generic MicrosoftAzure error: ")
        raise AccessError(f"az://{container}: {reason}; {AZURE_CREDENTIALS}") from error


@lru_cache(maxsize=1)
def s3_client() -> Any:
    """boto3's client, with the endpoint and the credentials of the environment: for what obstore cannot ask.

    Raises `InputError` if the endpoint, which may stand in boto3's configuration file, is not to be used.
    """
    import boto3  # noqa: PLC0415 (0.2 s)
    from botocore.config import Config  # noqa: PLC0415

    retries = {"max_attempts": RETRIES, "mode": "standard"}
    client = boto3.Session().client("s3", config=Config(retries=retries, connect_timeout=IMPATIENT_SECONDS))
    require_safe(client.meta.endpoint_url)
    return client
