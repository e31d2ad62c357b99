"""One sweep per run at a time, also across hosts on a shared file system and after a crash of its holder.

A directory holds generations of the lease: lease.000001.json, lease.000002.json, ... The highest one counts. A sweep
takes generation n + 1 when n is released or its holder is dead, by a hard link, which is atomic and exclusive on NFS
too. Two that see n free both link n + 1, and one fails. One that looked long ago may link a number that was taken,
released and removed meanwhile, but then sees a higher one, because the highest file is never removed, and retreats.
A holder that was paused finds a higher one at its next check(), and stops.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import threading
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from berth import leasefiles
from berth.containers import end_containers, find_containers
from berth.errors import BerthError
from berth.fsio import write_json
from berth.holder import Holder, Identity, Leftover, job_id
from berth.processes import Ended, end_processes, find_processes
from berth.signals import uninterrupted
from berth.sockets import remove_shared_memory, shared_memory_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

logger = logging.getLogger(__name__)

_RETRY_S = 0.05


class LeaseLost(BerthError):  # noqa: N818 - what happened.
    """Another sweep holds the lease: the caller must stop and write nothing."""


class Lease:
    """A lease that is held. `previous` is its last holder if that one died, else None."""

    def __init__(
        self,
        directory: Path,
        generation: int,
        holder: Holder,
        previous: Holder | None,
        *,
        pause_s: float,
        settle_s: float,
        environ: Mapping[str, str],
    ) -> None:
        self.directory = directory
        self.generation = generation
        self.previous = previous
        self.path = leasefiles.path(directory, generation)
        self._holder = holder
        self._pause_s = pause_s
        self._settle_s = settle_s
        self._environ = environ
        self._lock = threading.Lock()
        self._lost = False
        self._beaten_at = _now()
        self._doubt_until = 0.0

    def check(self) -> None:
        """Return while the lease is held. Call it before every write that another sweep could make too.

        Raises:
            LeaseLost: when another sweep took it, because this one was paused or cut off for too long.
        """
        self.beat()
        # After a long pause another sweep may be about to take the lease: let it, before looking.
        time.sleep(max(0.0, self._doubt_until - _now()))
        if not self._is_ours():
            raise LeaseLost(
                f"Another sweep took the lease {self.path} while this one was paused or cut off from its file system. "
                "This sweep stops and writes nothing more; the other one goes on from the points it found."
            )

    def beat(self) -> None:
        """Show that the holder lives, by the file's time stamp: that needs no free space on a full disk."""
        try:
            stamp = time.time_ns()
            os.utime(self.path, ns=(stamp, stamp))
            now = _now()
            if now - self._beaten_at > self._pause_s:
                self._doubt_until = now + self._settle_s
            self._beaten_at = now
        except FileNotFoundError:
            self._lost = True
        except OSError as error:
            logger.warning("The lease %s could not be renewed: %s", self.path, error)

    def record_shared_memory(self) -> None:
        """Note the files of the server in /dev/shm, so that a later sweep can remove them should all processes die.

        Call it when the server is ready.
        """
        pids = [process.pid for process in find_processes(self._holder.token)]
        self._rewrite(shared_memory=shared_memory_of(pids))

    def end_leftovers(self, *, grace_s: float) -> list[Ended]:
        """End what earlier holders left running on this host, and only that; returns what was ended.

        A container is told as a process whose pid is 0. What they left on other hosts stays noted for a sweep that
        runs there.

        Raises:
            BerthError: when a process cannot be ended.
        """
        here = self._holder.identity
        ended: list[Ended] = []
        kept = []
        for entry in self._holder.leftovers:
            if not here.same_kernel(entry.identity):
                if here.knows_dead(entry.identity) is None:
                    kept.append(entry)
                continue
            ended += end_leftover(entry, self._environ, grace_s=grace_s)
        self._rewrite(leftovers=tuple(kept))
        return ended

    def end_containers(self, *, grace_s: float) -> None:
        """End the containers of this sweep that its server and its client have left."""
        end_containers(self._holder.podman, self._holder.token, self._environ, grace_s=grace_s)

    def release(self) -> None:
        """Let the next sweep in. A server that still runs is noted for it. A lost lease is left as it is."""
        if not self._is_ours():
            return
        leftovers = self._holder.leftovers
        holder = self._holder
        if find_processes(holder.token) or find_containers(holder.podman, holder.token, self._environ):
            leftovers = (*leftovers, _leftover(self._holder))
        self._rewrite(released=True, leftovers=leftovers)

    def _is_ours(self) -> bool:
        with contextlib.suppress(FileNotFoundError):
            self._lost = self._lost or leasefiles.highest(self.directory) != self.generation
            return not self._lost
        self._lost = True
        return False

    def _rewrite(self, **changes: Any) -> None:
        with self._lock:
            self._holder = dataclasses.replace(self._holder, **changes)
            try:
                write_json(self.path, self._holder.as_json())
            except OSError as error:
                # On a full disk the lease still works: its time stamp is renewed, and the next sweep sees us gone.
                logger.warning("The lease %s could not be written: %s", self.path, error)


@contextlib.contextmanager
def lease(
    directory: Path,
    *,
    heartbeat_s: float,
    stale_s: float,
    poll_s: float,
    token: str,
    podman: tuple[str, ...] = (),
    environ: Mapping[str, str] | None = None,
    on_wait: Callable[[Holder], None] | None = None,
    identity: Identity | None = None,
) -> Iterator[Lease]:
    """Hold the lease of a directory, after waiting for its present holder; `token` is that of the server to be started.

    `podman` is Podman with its global options, where the server will be a container of it; it is asked in `environ`,
    this process's environment where None.

    `on_wait` is called whenever there is a (new) holder to wait for. A holder on this host is dead when its process is
    gone. One on another host is dead when its heartbeat has not changed for `stale_s` seconds of this host's clock, so
    that differences between clocks do not matter. `stale_s` must be well above `heartbeat_s` and the attribute cache
    of the file system (60 s on NFS). `identity` is that of the calling process unless a test says otherwise.

    Raises:
        BerthError: when a lease file cannot be read, or the directory cannot be written.
    """
    if stale_s < 3 * heartbeat_s:
        raise BerthError(f"lease: stale_s ({stale_s:g}) must be at least three times heartbeat_s ({heartbeat_s:g}).")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        held = _acquire(
            directory,
            identity or Identity.current(),
            token=token,
            podman=podman,
            environ=os.environ if environ is None else environ,
            stale_s=stale_s,
            poll_s=poll_s,
            on_wait=on_wait,
        )
    except OSError as error:
        raise BerthError(
            f"The lease of {directory} could not be taken: {error}. The file system must allow hard links, and have "
            "room for a small file."
        ) from error
    stop = threading.Event()
    heart = threading.Thread(target=_beat_until, args=(held, stop, heartbeat_s), name="lease", daemon=True)
    heart.start()
    try:
        yield held
    finally:
        with uninterrupted():
            stop.set()
            heart.join()
            held.release()


def end_leftover(entry: Leftover, environ: Mapping[str, str], *, grace_s: float) -> list[Ended]:
    """End what one dead holder left running on this host, and only that; a container is told as pid 0.

    Raises:
        BerthError: when a process cannot be ended.
    """
    mapped = shared_memory_of(process.pid for process in find_processes(entry.token))
    # First, because Podman then knows that it was asked, and removes what it keeps of them.
    names = end_containers(entry.podman, entry.token, environ, grace_s=grace_s)
    ended = [Ended(0, name, "TERM") for name in names]
    ended += end_processes(entry.token, grace_s=grace_s)
    remove_shared_memory({**entry.shared_memory, **mapped})
    return ended


def _now() -> float:
    """Seconds that go on while the machine sleeps, unlike those of time.monotonic()."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _beat_until(held: Lease, stop: threading.Event, heartbeat_s: float) -> None:
    while not stop.wait(heartbeat_s):
        held.beat()


def _acquire(
    directory: Path,
    identity: Identity,
    *,
    token: str,
    podman: tuple[str, ...],
    environ: Mapping[str, str],
    stale_s: float,
    poll_s: float,
    on_wait: Callable[[Holder], None] | None,
) -> Lease:
    watch = _Watch(identity, stale_s, poll_s)
    waited_for = 0
    while True:
        generation = leasefiles.highest(directory)
        holder, beat = leasefiles.read(directory, generation) if generation else (None, 0)
        if generation and holder is None:
            time.sleep(_RETRY_S)  # A later holder removed it between the two looks.
            continue
        if holder and not holder.released and not watch.dead(generation, holder, beat):
            if waited_for != generation and on_wait is not None:
                on_wait(holder)
            waited_for = generation
            time.sleep(poll_s)
            continue
        previous = holder if holder and not holder.released else None
        left = (*holder.leftovers, *([_leftover(holder)] if previous else [])) if holder else ()
        ours = Holder(
            identity=identity,
            token=token,
            job_id=job_id(),
            acquired=datetime.now(UTC).isoformat(timespec="seconds"),
            released=False,
            shared_memory={},
            leftovers=left,
            podman=podman,
        )
        if leasefiles.link(directory, generation + 1, ours):
            leasefiles.clean(directory, generation + 1)
            times = {"pause_s": stale_s / 2, "settle_s": 2 * poll_s}
            return Lease(directory, generation + 1, ours, previous, environ=environ, **times)


class _Watch:
    """Judges holders, by looking again and again."""

    def __init__(self, identity: Identity, stale_s: float, poll_s: float) -> None:
        self._identity = identity
        self._stale_s = stale_s
        self._poll_s = poll_s
        self._seen: tuple[int, int] | None = None
        self._looked = 0.0
        self._unchanged_s = 0.0

    def dead(self, generation: int, holder: Holder, beat: int) -> bool:
        known = self._identity.knows_dead(holder.identity)
        if known is not None:
            return known
        now = _now()
        if self._seen != (generation, beat):
            self._seen, self._unchanged_s = (generation, beat), 0.0
        else:
            # A long gap between two looks means that we, or the file system, stood still, and perhaps the holder too.
            self._unchanged_s += min(now - self._looked, 2 * self._poll_s)
        self._looked = now
        return self._unchanged_s > self._stale_s


def _leftover(holder: Holder) -> Leftover:
    return Leftover(holder.identity, holder.token, holder.shared_memory, holder.podman)
