"""The model on the volume of a pod: `model.py download` brings it there from the store, `model.py wait` waits for it.

It runs in any image with Python 3.11 or newer, and needs nothing but the standard library. Berth pushed the model: the
object S3_PATH.manifest.json lists path, size and SHA-256 of each file, and was written last. Here the same file is
written beside the folder, last too, so that a folder with its manifest is a whole model.

download: S3_ENDPOINT_URL, S3_BUCKET_NAME, S3_PATH, S3_ADDRESSING_STYLE (path or virtual), AWS_REGION,
    AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN (if any); proxies and SSL_CERT_FILE as usual.
both: MODEL_DIR, and MODEL_REVISION (the commit that the manifest must name; empty takes any).
"""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import fcntl
import hashlib
import hmac
import http.client
import json
import os
import re
import shutil
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CHUNK_BYTES = 4 * 1024 * 1024
WORKERS = 8
ATTEMPTS = 6
TIMEOUT_S = 60
POLL_S = 5
TELL_S = 60
OK_PART = 206
# Answers that another attempt may change.
PASSING = {408, 425, 429, 500, 502, 503, 504}


class Failed(Exception):  # noqa: N818  # What the work has.
    """One sentence for the log of the pod: what is wrong and what to do."""


class Store:
    """A bucket of an S3 store, read with Signature Version 4."""

    def __init__(self, environ: dict[str, str]) -> None:
        self.endpoint = environ["S3_ENDPOINT_URL"].rstrip("/")
        self.bucket = environ["S3_BUCKET_NAME"]
        self.virtual = environ.get("S3_ADDRESSING_STYLE", "path") == "virtual"
        self.region = environ.get("AWS_REGION", "us-east-1")
        self.key_id = environ["AWS_ACCESS_KEY_ID"]
        self.secret = environ["AWS_SECRET_ACCESS_KEY"]
        self.token = environ.get("AWS_SESSION_TOKEN", "")

    def open(self, key: str, start: int = 0) -> http.client.HTTPResponse:
        """The answer to a GET of an object from a byte on.

        Raises:
            Failed: the store refuses, which another attempt would not change.
            OSError: it could not be reached, or is busy.
        """
        request = self._signed(key, start)
        try:
            return urllib.request.urlopen(request, timeout=TIMEOUT_S)
        except urllib.error.HTTPError as error:
            if error.code in PASSING:
                raise OSError(f"HTTP {error.code}") from None
            raise Failed(self._explained(key, error)) from None

    def read(self, key: str) -> bytes:
        """A small object."""
        return again(lambda: self.open(key).read(), f"{self.bucket}/{key}")

    def _signed(self, key: str, start: int) -> urllib.request.Request:
        # Host of the request and of the signature are one text, so it has no default port and no capitals to lose.
        scheme, _, host = self.endpoint.partition("://")
        path = "/" + urllib.parse.quote(key, safe="/-_.~")
        if self.virtual:
            host = f"{self.bucket}.{host}"
        else:
            path = f"/{self.bucket}{path}"
        now = dt.datetime.now(dt.UTC).strftime("%Y%m%dT%H%M%SZ")
        headers = {"host": host, "x-amz-content-sha256": hashlib.sha256(b"").hexdigest(), "x-amz-date": now}
        if self.token:
            headers["x-amz-security-token"] = self.token
        names = ";".join(sorted(headers))
        lines = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
        canonical = f"GET\n{path}\n\n{lines}\n{names}\n{headers['x-amz-content-sha256']}"
        scope = f"{now[:8]}/{self.region}/s3/aws4_request"
        text = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        key_bytes = f"AWS4{self.secret}".encode()
        for part in scope.split("/"):
            key_bytes = hmac.new(key_bytes, part.encode(), hashlib.sha256).digest()
        signature = hmac.new(key_bytes, text.encode(), hashlib.sha256).hexdigest()
        headers["Authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={self.key_id}/{scope}, SignedHeaders={names}, Signature={signature}"
        )
        if start:
            headers["Range"] = f"bytes={start}-"
        return urllib.request.Request(f"{scheme}://{host}{path}", headers=headers)

    def _explained(self, key: str, error: urllib.error.HTTPError) -> str:
        body = error.read(4096).decode("utf-8", "replace")
        code = (re.findall(r"<Code>([^<]+)</Code>", body) or [f"HTTP {error.code}"])[0]
        remedy = {
            "NoSuchKey": "Push the model with Berth (rule push_model), or correct extraInit.s3modelpath.",
            "NoSuchBucket": "Correct extraInit.s3.bucket.",
            "InvalidAccessKeyId": "Correct AWS_ACCESS_KEY_ID in the secret of extraInit.s3.existingSecret.",
            "SignatureDoesNotMatch": "Correct AWS_SECRET_ACCESS_KEY in the secret of extraInit.s3.existingSecret.",
            "AccessDenied": "Give these credentials the right to read the bucket.",
        }.get(code, "The store's operators know more.")
        return f"{self.endpoint}: {self.bucket}/{key}: {code}. {remedy}"


def again(action: Callable[[], Any], what: str) -> Any:
    """What an action returns, tried several times where the network or the store fails."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return action()
        except (OSError, http.client.HTTPException) as error:
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                raise Failed("The volume is full. Raise extraInit.pvcStorage.") from None
            if attempt == ATTEMPTS:
                raise Failed(f"{what}: {error}, {ATTEMPTS} times. See that the store can be reached.") from None
            print(f"{what}: {error}; attempt {attempt + 1} of {ATTEMPTS} follows")
            time.sleep(min(30, 2 ** (attempt - 1)))
    raise AssertionError


def entries_of(manifest: bytes, revision: str) -> list[dict[str, Any]]:
    """The files of a manifest.

    Raises:
        Failed: it is none, or that of another revision.
    """
    try:
        value = json.loads(manifest)
        entries = [{"path": each["path"], "size": each["size"], "sha256": each["sha256"]} for each in value["files"]]
        found = value["source"].get("revision")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Failed("The manifest is none of Berth's. Push the model again.") from None
    for each in entries:
        if each["path"].startswith("/") or ".." in each["path"].split("/"):
            raise Failed(f"The manifest names a file outside of the model: {each['path']}. Push the model again.")
    if revision and found != revision:
        raise Failed(f"The manifest is of revision {found}, and {revision} is wanted. Push that revision.")
    return entries


def marker_of(folder: Path) -> Path:
    """Where the manifest of a whole model lies: beside its folder."""
    return folder.with_name(f"{folder.name}.manifest.json")


def missing(folder: Path, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The files that are not there in their size."""

    def there(entry: dict[str, Any]) -> bool:
        path = folder / entry["path"]
        return path.is_file() and path.stat().st_size == entry["size"]

    return [entry for entry in entries if not there(entry)]


def hashed(handle: BinaryIO, digest: Any) -> None:
    """Feed the rest of an open file into a digest."""
    while chunk := handle.read(CHUNK_BYTES):
        digest.update(chunk)


class Part:
    """A file that is on its way: what is there of it is hashed already."""

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.size = size
        self.at = 0
        self.digest = hashlib.sha256()

    def fill(self, store: Store, key: str) -> None:
        """Append what is missing."""
        with self.path.open("a+b") as handle:
            handle.seek(0)
            hashed(handle, self.digest)
            self.at = handle.tell()
            again(lambda: self._rest(store, key, handle), key)
            handle.flush()
            os.fsync(handle.fileno())

    def _rest(self, store: Store, key: str, handle: BinaryIO) -> None:
        if self.at >= self.size:
            return
        with store.open(key, self.at) as answer:
            if self.at and answer.status != OK_PART:
                handle.truncate(0)
                self.at, self.digest = 0, hashlib.sha256()
            while chunk := answer.read(CHUNK_BYTES):
                handle.write(chunk)
                self.digest.update(chunk)
                self.at += len(chunk)
        if self.at < self.size:
            raise OSError(f"ended after {self.at} of {self.size} bytes")


def fetch(store: Store, prefix: str, folder: Path, entry: dict[str, Any]) -> None:
    """Bring one file; it has its name once its SHA-256 is right.

    Raises:
        Failed: the object is another one.
    """
    target = folder / entry["path"]
    path = target.with_name(f"{target.name}.part")
    target.parent.mkdir(parents=True, exist_ok=True)
    # What an earlier pod left may be of another file; then everything is taken anew, once.
    for left in (path.exists(), False):
        part = Part(path, entry["size"])
        part.fill(store, f"{prefix}/{entry['path']}")
        if part.at == entry["size"] and part.digest.hexdigest() == entry["sha256"]:
            path.replace(target)
            print(f"{entry['path']}: {entry['size']} bytes")
            return
        path.unlink()
        if not left:
            break
    raise Failed(
        f"{prefix}/{entry['path']} in the store is not what the manifest says (SHA-256 or size). Push the model again."
    )


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Only one download of a model at a time, where the volume has locks."""
    with folder.with_name(f".{folder.name}.lock").open("w") as handle:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def download(environ: dict[str, str]) -> None:
    """Make MODEL_DIR the model in the store, whole and verified.

    Raises:
        Failed: with what to do.
    """
    folder, prefix = Path(environ["MODEL_DIR"]), environ["S3_PATH"].strip("/")
    store = Store(environ)
    manifest = store.read(f"{prefix}.manifest.json")
    entries = entries_of(manifest, environ.get("MODEL_REVISION", ""))
    folder.mkdir(parents=True, exist_ok=True)
    marker = marker_of(folder)
    with alone(folder):
        if marker.exists() and marker.read_bytes() == manifest and not missing(folder, entries):
            print(f"{folder} is whole already")
            return
        marker.unlink(missing_ok=True)
        started = time.monotonic()
        _bring(store, prefix, folder, entries)
        _remove_others(folder, entries)
        temporary = marker.with_name(f".{marker.name}.tmp")
        temporary.write_bytes(manifest)
        with temporary.open("rb+") as handle:
            os.fsync(handle.fileno())
        temporary.replace(marker)
    print(f"{folder} is whole and verified, after {time.monotonic() - started:.1f} s")


def _bring(store: Store, prefix: str, folder: Path, entries: list[dict[str, Any]]) -> None:
    absent = {entry["path"] for entry in missing(folder, entries)}

    def kept(entry: dict[str, Any]) -> bool:
        # Of an earlier revision, or damaged since: nothing without a marker is believed by its size.
        digest = hashlib.sha256()
        with (folder / entry["path"]).open("rb") as handle:
            hashed(handle, digest)
        return bool(digest.hexdigest() == entry["sha256"])

    with ThreadPoolExecutor(WORKERS) as pool:
        present = [entry for entry in entries if entry["path"] not in absent]
        wrong = [entry for entry, good in zip(present, pool.map(kept, present), strict=True) if not good]
        for entry in wrong:
            (folder / entry["path"]).unlink()
        wanted = [entry for entry in entries if entry["path"] in absent] + wrong
        _require_room(folder, wanted)
        print(f"{len(wanted)} of {len(entries)} files, {sum(entry['size'] for entry in wanted)} bytes, are to be moved")
        for _ in pool.map(lambda entry: fetch(store, prefix, folder, entry), wanted):
            pass


def _require_room(folder: Path, wanted: list[dict[str, Any]]) -> None:
    parts = [folder / f"{entry['path']}.part" for entry in wanted]
    needed = sum(entry["size"] for entry in wanted) - sum(part.stat().st_size for part in parts if part.exists())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise Failed(f"The volume has {free} bytes free, and {needed} are needed. Raise extraInit.pvcStorage.")


def _remove_others(folder: Path, entries: list[dict[str, Any]]) -> None:
    known = {folder / entry["path"] for entry in entries}
    for path in list(folder.rglob("*")):
        if path.is_file() and path not in known:
            path.unlink()


def reason_to_wait(folder: Path, revision: str) -> str:
    """Why the model is not whole; empty where it is."""
    marker = marker_of(folder)
    if not marker.exists():
        return f"{marker} is not there: the download has not ended"
    try:
        entries = entries_of(marker.read_bytes(), revision)
    except Failed as failed:
        return str(failed)
    absent = missing(folder, entries)
    return f"{len(absent)} files are missing, such as {absent[0]['path']}" if absent else ""


def wait(environ: dict[str, str]) -> None:
    """Return when MODEL_DIR is whole; says now and then why it is not."""
    folder, told_at = Path(environ["MODEL_DIR"]), float("-inf")
    while reason := reason_to_wait(folder, environ.get("MODEL_REVISION", "")):
        if time.monotonic() - told_at > TELL_S:
            told_at = time.monotonic()
            print(reason)
        time.sleep(POLL_S)
    print(f"{folder} is whole")


def main() -> int:
    """`download` or `wait`; 1 with one line where it cannot be done."""
    try:
        {"download": download, "wait": wait}[sys.argv[1]](dict(os.environ))
    except Failed as failed:
        print(f"error: {failed}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
