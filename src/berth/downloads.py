"""One object on its way into a file: in parts, resumable, hashed as it arrives, named only when it is right.

Beside `.NAME.part` lies `.NAME.part.map`: a line of JSON (etag, size, part_bytes), then the number of each part that is
whole, one a line. What it says is only believed once the SHA-256 of the whole file is right.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from typing import TYPE_CHECKING

import botocore.exceptions

from berth.engine import OtherSizeError, Session, Span
from berth.errors import BerthError
from berth.fsio import CHUNK_BYTES
from berth.s3errors import MISSING, error_code

if TYPE_CHECKING:
    from pathlib import Path

    from berth.manifest import FileEntry
    from berth.moving import Moving

_REPLACED = frozenset({"PreconditionFailed", "412"})
_RESTARTS = 1


class Download:
    """A crew's job: fetch `key` into `path`, which appears when its SHA-256 is right.

    Args:
        moving: what all files of a stage share.
        entry: what the file must be.
        path: the file.
        key: of the object.
        durable: whether the file is on the disk before it gets its name.
    """

    def __init__(self, moving: Moving, entry: FileEntry, path: Path, key: str, *, durable: bool) -> None:
        self._moving, self.entry, self._path, self._key, self._durable = moving, entry, path, key, durable
        self._temporary = path.with_name(f".{path.name}.part")
        self._map = path.with_name(f".{path.name}.part.map")
        self._lock = threading.Lock()
        self._hashing = threading.Lock()
        self._parts = max(1, -(-entry.size_bytes // moving.part_bytes))
        self._fd = -1
        self._restarts = 0
        self._in_flight = 0
        self._waiting = list(range(self._parts))
        self._reset()

    def _reset(self) -> None:
        self._etag: str | None = None
        self._done: set[int] = set()
        self._finishing = False
        self._waiting = list(range(self._parts))
        self._hashed_bytes = 0
        self._digest = hashlib.sha256()
        self._restart_because = ""

    @property
    def size_bytes(self) -> int:
        """Of the whole file."""
        return self.entry.size_bytes

    @property
    def untaken(self) -> int:
        """Parts that nobody has begun."""
        return len(self._waiting)

    def step(self, session: Session) -> None:
        """Fetch the next part; see crew.Job."""
        with self._lock:
            # Whoever was told of the last part before another took it comes when there is nothing left to do.
            if self._finishing:
                return
            if self._fd < 0:
                self._open()
            if not self._waiting and len(self._done) < self._parts:
                return
            number = self._waiting.pop(0) if self._waiting else None
            self._in_flight += 1
        try:
            if number is not None:
                self._fetch(session, number)
        except BaseException:
            with self._lock:
                self._in_flight -= 1
                if not self._in_flight:
                    self._close()
            raise
        with self._lock:
            self._in_flight -= 1
            last = self._in_flight == 0 and not self._waiting
            self._finishing = last
        if last:
            self._finish()

    def _open(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(self._temporary, os.O_RDWR | os.O_CREAT, 0o644)
        if os.fstat(self._fd).st_size == self.entry.size_bytes and self._parts > 1:
            self._etag, self._done = self._read_map()
            self._waiting = [number for number in range(self._parts) if number not in self._done]
            self._moving.progress.already(sum(self._span(number).size_bytes for number in self._done))
        if not self._done:
            self._map.unlink(missing_ok=True)
        os.ftruncate(self._fd, self.entry.size_bytes)

    def _read_map(self) -> tuple[str | None, set[int]]:
        try:
            head, *numbers = self._map.read_text().split("\n")
            said = json.loads(head)
            etag = said.pop("etag")
        except (OSError, ValueError, KeyError, AttributeError):
            return None, set()
        if said != {"size": self.entry.size_bytes, "part_bytes": self._moving.part_bytes} or not etag:
            return None, set()
        # The last line may have been cut by what ended the process.
        done = {int(number) for number in numbers[:-1] if number.isdigit()}
        return etag, {number for number in done if number < self._parts}

    def _span(self, number: int) -> Span:
        start = number * self._moving.part_bytes
        return Span(start, min(start + self._moving.part_bytes, self.entry.size_bytes), self.entry.size_bytes)

    def _fetch(self, session: Session, number: int) -> None:
        span = self._span(number)
        at = span.start
        # One thread at a time may hash; it does so as the bytes arrive if they are the next ones.
        hashes = self._hashing.acquire(blocking=False)
        try:
            passing = hashes and self._hashed_bytes == span.start

            def sink(chunk: memoryview) -> None:
                nonlocal at
                self._moving.account(len(chunk))
                _write(self._fd, chunk, at)
                if passing:
                    self._digest.update(chunk)
                    self._hashed_bytes += len(chunk)
                at += len(chunk)

            def request() -> str:
                # What arrived before a connection was cut is not asked for again.
                rest = Span(at, span.stop, span.total_bytes)
                return session.get(self._key, rest, self._etag, sink)

            try:
                etag = self._moving.retries.call(request, lambda: at, f"{self._key} part {number + 1}")
            except (botocore.exceptions.ClientError, OtherSizeError) as error:
                self._refused(error)
                return
            self._note(number, etag)
            if hashes:
                self._hash_what_is_there()
        finally:
            if hashes:
                self._hashing.release()

    def _refused(self, error: Exception) -> None:
        code = error_code(error)
        if code in MISSING:
            raise self._damaged("is missing") from error
        if code not in _REPLACED and not isinstance(error, OtherSizeError):
            raise error
        with self._lock:
            if isinstance(error, OtherSizeError):
                self._restart_because = f"has {error.size_bytes} bytes instead of {self.entry.size_bytes}"
            else:
                self._restart_because = "was replaced while it was read"
            self._waiting = []

    def _note(self, number: int, etag: str) -> None:
        with self._lock:
            if etag and self._parts > 1:
                if self._etag is None:
                    self._etag = etag
                    head = {"etag": etag, "size": self.entry.size_bytes, "part_bytes": self._moving.part_bytes}
                    self._map.write_text(json.dumps(head) + "\n")
                if self._etag == etag:
                    with self._map.open("a") as handle:
                        handle.write(f"{number}\n")
            self._done.add(number)

    def _hash_what_is_there(self) -> None:
        """Read back the next parts that others, or an earlier process, have written; the caller holds the lock."""
        buffer = memoryview(bytearray(min(CHUNK_BYTES, max(1, self.entry.size_bytes))))
        while self._hashed_bytes < self.entry.size_bytes:
            number = self._hashed_bytes // self._moving.part_bytes
            if number not in self._done:
                return
            stop = self._span(number).stop
            while self._hashed_bytes < stop:
                self._moving.retries.check()
                left = stop - self._hashed_bytes
                count = os.preadv(self._fd, [buffer[: min(len(buffer), left)]], self._hashed_bytes)
                if not count:
                    raise OSError(0, "became shorter while it was written", str(self._temporary))
                self._digest.update(buffer[:count])
                self._hashed_bytes += count

    def _finish(self) -> None:
        problem = self._restart_because
        if not problem:
            with self._hashing:
                self._hash_what_is_there()
            sha256 = self._digest.hexdigest()
            if sha256 != self.entry.sha256:
                problem = f"has SHA-256 {sha256} instead of {self.entry.sha256}"
        if problem:
            self._again(problem)
            return
        if self._durable:
            os.fsync(self._fd)
        with self._lock:
            self._close()
        self._temporary.replace(self._path)
        self._map.unlink(missing_ok=True)

    def _again(self, problem: str) -> None:
        """Fetch everything once more: a byte may have been damaged on the way, or the object replaced meanwhile."""
        self._map.unlink(missing_ok=True)
        self._restarts += 1
        if self._restarts > _RESTARTS:
            with self._lock:
                self._close()
            self._temporary.unlink(missing_ok=True)
            raise self._damaged(problem)
        self._moving.warn(f"{self._key} {problem}; it is fetched once more")
        with self._lock:
            self._moving.progress.back(sum(self._span(number).size_bytes for number in self._done))
            self._reset()

    def _damaged(self, problem: str) -> BerthError:
        return BerthError(
            f"{self._moving.store}: the object {self._key} {problem}, so it changed after the push. Delete it there "
            "and push the model again (rule push_model); files that are right are kept."
        )

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _write(fd: int, chunk: memoryview, offset: int) -> None:
    while chunk:
        written = os.pwrite(fd, chunk, offset)
        offset += written
        chunk = chunk[written:]
