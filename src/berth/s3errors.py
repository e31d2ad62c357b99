"""What an error of S3 means, what to do about it, and whether asking again may help."""

from __future__ import annotations

import boto3
import botocore.exceptions
import s3transfer.exceptions

from berth.errors import BerthError

_PASSING_STATUS = frozenset({408, 429, 500, 502, 503, 504})
# The last two: what arrived at the store was not what was sent, which is how a damaged part shows.
_PASSING_CODES = frozenset(
    {"SlowDown", "InternalError", "RequestTimeout", "ServiceUnavailable", "Throttling", "BadDigest", "IncompleteBody"}
)
_PASSING = (
    botocore.exceptions.HTTPClientError,
    botocore.exceptions.ConnectionError,
    botocore.exceptions.IncompleteReadError,
    botocore.exceptions.FlexibleChecksumError,
)

MISSING = frozenset({"NoSuchKey", "404"})
NOT_THERE = MISSING | {"NoSuchBucket"}

CHANGE_KEYS = "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE) to a key pair of this store."

# Error code of S3 -> what it means and what to do. Codes: AWS "List of error codes", and what MinIO, Ceph and
# SeaweedFS answer; the bare numbers are what boto3 has when an answer has no body (HEAD).
_CODES = {
    "SignatureDoesNotMatch": f"the secret key does not belong to the access key. {CHANGE_KEYS}",
    "InvalidAccessKeyId": f"the store does not know this access key. {CHANGE_KEYS}",
    "ExpiredToken": "the session token has expired: get a new one (AWS_SESSION_TOKEN).",
    "InvalidToken": "the session token is wrong: unset AWS_SESSION_TOKEN or get a new one.",
    "RequestTimeTooSkewed": "this machine's clock and the store's differ too much (15 minutes at most): set the clock "
    "(`timedatectl`, chrony).",
    "NoSuchBucket": "the bucket does not exist: create it or correct `bucket` in the platform file.",
    "InvalidBucketName": "the store refuses the bucket's name: correct `bucket` in the platform file.",
    "BucketAlreadyExists": "the bucket belongs to somebody else: choose another name for `bucket`.",
    "AccessDenied": "these credentials may not do this: ask for read, write and list on the bucket, or use another "
    "key pair (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY).",
    "NoSuchKey": "the object does not exist.",
    "NoSuchUpload": "another process ended this upload: run again.",
    "QuotaExceeded": "the quota of the store is used up: free room there or ask for more.",
    "XMinioStorageFull": "the store is full: free room there.",
    "PermanentRedirect": "the bucket lies in another region: correct `region` and `endpoint_url`.",
    "AuthorizationHeaderMalformed": "the request was signed for the wrong region: correct `region`.",
    "SlowDown": "the store asks for fewer requests, also after several attempts: run again later.",
    "PreconditionFailed": "the object was replaced while it was read: run again.",
}
_CODES |= {"403": _CODES["AccessDenied"], "404": _CODES["NoSuchKey"], "ExpiredTokenException": _CODES["ExpiredToken"]}
_CODES |= {"InvalidAccessKey": _CODES["InvalidAccessKeyId"], "InsufficientStorage": _CODES["XMinioStorageFull"]}

_KINDS: tuple[tuple[tuple[type[BaseException], ...], str], ...] = (
    (
        (botocore.exceptions.NoCredentialsError, botocore.exceptions.PartialCredentialsError),
        "no credentials. Set the environment variables AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE.",
    ),
    (
        (botocore.exceptions.SSLError,),
        "the store's certificate is not trusted: set AWS_CA_BUNDLE to your site's CA file.",
    ),
    (
        (botocore.exceptions.ProxyConnectionError,),
        "the proxy does not answer: correct HTTPS_PROXY, or add the store's host to NO_PROXY.",
    ),
    (
        (botocore.exceptions.FlexibleChecksumError, botocore.exceptions.IncompleteReadError),
        "what arrived is not what was sent: run again; if it stays so, the object is damaged.",
    ),
    (
        (botocore.exceptions.ConnectionError, botocore.exceptions.HTTPClientError),
        (
            "the store cannot be reached. Check endpoint_url, that the store runs, and the proxy variables; a bucket's "
            "name in front of the host in this message wants `addressing_style: path`."
        ),
    ),
)


def error_code(error: BaseException | None) -> str | None:
    """The code of an S3 answer ("NoSuchKey"), or None for an error of another kind.

    A BerthError made by `s3.Store.explained` is judged by the error that caused it.
    """
    if isinstance(error, BerthError):
        error = error.__cause__
    if isinstance(error, botocore.exceptions.ClientError):
        return str(error.response.get("Error", {}).get("Code", ""))
    return None


def explain(error: BaseException) -> str:
    """What an error of boto3 means and what to do, in one or two sentences."""
    # boto3's transfers hide the store's answer in errors of their own.
    if isinstance(error, s3transfer.exceptions.RetriesExceededError):
        error = error.last_exception
    elif isinstance(error, boto3.exceptions.Boto3Error) and error.__context__ is not None:
        error = error.__context__
    code = error_code(error)
    if code is not None:
        return f"{_CODES.get(code, 'the store refused the request.')} (The store says: {error})"
    meaning = next((text for kinds, text in _KINDS if isinstance(error, kinds)), None)
    return f"{meaning} ({error})" if meaning else str(error)


def is_passing(error: BaseException) -> bool:
    """Whether the same request may succeed a little later: the store is busy, or the way to it was cut."""
    if isinstance(error, botocore.exceptions.ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return status in _PASSING_STATUS or error_code(error) in _PASSING_CODES
    return isinstance(error, _PASSING) and not isinstance(error, botocore.exceptions.SSLError)
