"""How a store is reached: credentials that are missing or wrong, and endpoints that would be spoken to in the clear."""

import base64
from pathlib import Path
from typing import Any

import pytest

from pipelines.connections import connect, require_safe, s3_client
from pipelines.errors import AccessError, InputError, NoBucketError
from pipelines.storage import open_store
from tests.servers import AzureServer, S3Server

USES = {"get": lambda s: s.get("k"), "put": lambda s: s.put("k", b""), "list": lambda s: list(s.list())}


def test_wrong_keys_are_refused(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = s3.bucket()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not the secret")
    for use in (lambda s: s.get("k"), lambda s: s.put("k", b""), lambda s: list(s.list())):
        with pytest.raises(AccessError, match="credentials"):
            use(open_store(bucket))


def test_missing_keys_are_named(s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bucket = s3.bucket()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(AccessError, match="AWS_ACCESS_KEY_ID"):
        open_store(bucket).get("k")


@pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
def test_a_wrong_key_of_azure_is_refused(azure: AzureServer, monkeypatch: pytest.MonkeyPatch, use: Any) -> None:
    container = azure.bucket()
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", base64.b64encode(bytes(64)).decode())
    with pytest.raises(AccessError, match="access denied"):
        use(open_store(container))


@pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
@pytest.mark.usefixtures("azure")
def test_a_container_that_is_not_there_is_named(use: Any) -> None:
    with pytest.raises(NoBucketError, match=r"az://nowhere.*no such container"):
        use(open_store("az://nowhere"))


@pytest.mark.parametrize("key", [None, "not base64!"])
def test_an_account_that_is_not_named_or_has_no_usable_key_is_told(
    monkeypatch: pytest.MonkeyPatch, key: str | None
) -> None:
    if key is not None:
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "somebody")
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", key)
    with pytest.raises(AccessError, match=r"az://films.*AZURE_STORAGE_ACCOUNT_KEY") as told:
        open_store("az://films").get("k")
    assert "\n" not in str(told.value)
    assert key is None or key not in str(told.value)


def test_a_machine_without_a_managed_identity_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "somebody")
    monkeypatch.setenv("AZURE_IDENTITY_ENDPOINT", "http://127.0.0.1:9")  # where a machine of Azure's asks for its own
    with pytest.raises(AccessError, match=r"no credentials found.*AZURE_STORAGE_ACCOUNT_KEY"):
        open_store("az://films").impatient().get("k")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.3.2.1", "[::1]"])
def test_this_machine_may_be_spoken_to_in_the_clear(host: str) -> None:
    assert require_safe(f"http://{host}:9000")
    assert not require_safe(f"https://{host}:9000")


CLEAR = "http://name:word@ceph.example:7480"
VARIABLES = [
    ("s3", {"AWS_ENDPOINT_URL": CLEAR}),
    ("s3", {"AWS_ENDPOINT_URL_S3": CLEAR, "AWS_ENDPOINT_URL": "https://ceph.example"}),
    ("s3", {"AWS_ENDPOINT": CLEAR, "AWS_ALLOW_HTTP": "true"}),  # obstore reads them, boto3 does not
    ("az", {"AZURE_STORAGE_ENDPOINT": CLEAR}),
    ("az", {"AZURE_ENDPOINT": CLEAR}),
    ("az", {"AZURE_STORAGE_USE_EMULATOR": "true", "AZURITE_BLOB_STORAGE_URL": CLEAR}),
]


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials of nobody, so that an endpoint is all that can be wrong."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AZURE_STORAGE_ACCOUNT_NAME"):
        monkeypatch.setenv(name, "somebody")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", base64.b64encode(bytes(64)).decode())


@pytest.mark.parametrize(("scheme", "variables"), VARIABLES, ids=str)
@pytest.mark.usefixtures("credentials")
def test_another_machine_is_not_spoken_to_in_the_clear_unless_somebody_says_so(
    scheme: str, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=r"^http://ceph\.example: .*RAYSCAN_ALLOW_HTTP=1") as told:
        open_store(f"{scheme}://films").get("k")
    assert "word" not in str(told.value), "an endpoint may hold a password"
    assert "\n" not in str(told.value)
    for said in ("", "0", "no"):
        monkeypatch.setenv("RAYSCAN_ALLOW_HTTP", said)
        with pytest.raises(InputError):
            open_store(f"{scheme}://films").get("k")
    monkeypatch.setenv("RAYSCAN_ALLOW_HTTP", "1")
    assert connect(f"{scheme}://films", impatient=True)


@pytest.mark.usefixtures("credentials")
def test_nor_does_a_configuration_file_of_boto3_lead_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "config").write_text("[default]\nregion = us-east-1\nendpoint_url = http://ceph.example\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    with pytest.raises(InputError, match="RAYSCAN_ALLOW_HTTP"):
        s3_client()
