"""What the store decides without a server."""

from __future__ import annotations

import botocore.exceptions
import pytest

from berth import s3, store
from berth.errors import BerthError


def client_error(code: str) -> botocore.exceptions.ClientError:
    return botocore.exceptions.ClientError({"Error": {"Code": code, "Message": "m"}}, "GetObject")


def test_the_manifest_lies_beside_the_files() -> None:
    """The manifest's key is no key below the prefix, so a plain copy of the prefix is the model and nothing else."""
    assert store.manifest_key("ORG/NAME/") == "ORG/NAME.manifest.json"


@pytest.mark.parametrize("prefix", ["", "/", "a//b", "a/../b"])
def test_a_prefix_that_names_no_place_is_refused(prefix: str) -> None:
    """An empty prefix and one with empty or dotted parts are errors."""
    with pytest.raises(BerthError, match="prefix"):
        store.manifest_key(prefix)


@pytest.mark.parametrize("bucket", ["ab", "Models", "-abc", "a" * 64, "a_b_c"])
def test_impossible_bucket_names_are_refused_before_any_request(bucket: str) -> None:
    """A bucket name that no S3 takes is named with what is allowed."""
    with pytest.raises(BerthError, match="3 to 63"):
        s3.Store(bucket).check()


@pytest.mark.parametrize("url", ["example.org", "ftp://example.org", "http://", "http://h:port"])
def test_impossible_endpoints_are_refused(url: str) -> None:
    """An endpoint that is no http or https address is an error that shows the form."""
    with pytest.raises(BerthError, match="http://HOST:PORT"):
        s3.Store("models", url).check()


def test_a_missing_ca_file_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """AWS_CA_BUNDLE that names no file is an error of its own."""
    monkeypatch.setenv("AWS_CA_BUNDLE", "/nowhere/ca.pem")
    with pytest.raises(BerthError, match=r"AWS_CA_BUNDLE=/nowhere/ca\.pem"):
        s3.Store("models").check()


def test_credentials_show_up_in_no_text() -> None:
    """Neither str nor repr of a store shows its keys."""
    keys = {"AWS_ACCESS_KEY_ID": "visible-id", "AWS_SECRET_ACCESS_KEY": "visible-secret"}
    place = s3.Store("models", "http://h:1", credentials=keys)
    assert "visible" not in f"{place} {place!r}"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (client_error("RequestTimeTooSkewed"), "set the clock"),
        (client_error("SignatureDoesNotMatch"), "AWS_SECRET_ACCESS_KEY"),
        (client_error("AccessDenied"), "ask for read, write and list"),
        (client_error("403"), "ask for read, write and list"),
        (client_error("QuotaExceeded"), "quota"),
        (client_error("SomethingNew"), "SomethingNew"),
        (botocore.exceptions.NoCredentialsError(), "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        (botocore.exceptions.EndpointConnectionError(endpoint_url="http://models.h"), "addressing_style: path"),
        (botocore.exceptions.SSLError(endpoint_url="https://h", error="self-signed"), "AWS_CA_BUNDLE"),
        (botocore.exceptions.ProxyConnectionError(proxy_url="http://p"), "NO_PROXY"),
    ],
)
def test_errors_come_with_a_remedy(error: Exception, said: str) -> None:
    """Each kind of error says what to change, and unknown ones say what the store said."""
    assert said in s3.explain(error)


def test_the_environment_decides_the_checksum_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK's two variables are obeyed, the lenient one wins, and another value is refused."""
    for name in ("AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION"):
        monkeypatch.delenv(name, raising=False)
    assert s3.environment_mode() is None
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "WHEN_SUPPORTED")
    assert s3.environment_mode() == "when_supported"
    monkeypatch.setenv("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")
    assert s3.environment_mode() == "when_required"
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "never")
    with pytest.raises(BerthError, match="AWS_REQUEST_CHECKSUM_CALCULATION=never"):
        s3.environment_mode()
