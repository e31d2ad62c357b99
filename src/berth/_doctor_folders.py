"""Checks of folders: writable, on the right kind of file system, with room."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

from berth.checkup import Result, existing, fail, file_system, is_network, ok, warn
from berth.disk import free_bytes, human_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path


@dataclass(frozen=True)
class Store:
    """A place of models and the key that sets it; by the name of each, what is there once it is, and its bytes."""

    key: str
    path: Path
    models: Mapping[str, tuple[str, int]]


def folder_checks(folders: Mapping[str, Path], own: Mapping[str, Path], *, several_nodes: bool) -> Iterator[Result]:
    """Shared folders and those of a node's own disk, by the keys that set them.

    `several_nodes` where jobs run elsewhere than here.
    """
    for key, path in folders.items():
        yield writable(key, path)
        kind = file_system(path)
        if several_nodes and not is_network(kind):
            yield warn(
                f"{key}: {path} is on {kind or 'an unknown file system'}, which looks like a disk of this node alone",
                "every compute node must see this folder; put it on the cluster's shared file system",
            )
    for key, path in own.items():
        yield writable(key, path)
        kind = file_system(path)
        if is_network(kind):
            yield warn(
                f"{key}: {path} is on {kind}, and what is copied and unpacked there is slow",
                f"set {key} in the platform file to a local disk of the nodes",
            )


def writable(key: str, path: Path) -> Result:
    """Whether a file can be written there, or the folder be made; nothing is left behind."""
    place = existing(path)
    what = f"{key}: {path}"
    try:
        with tempfile.TemporaryFile(dir=place) as probe:
            probe.write(b"berth")
            probe.flush()
            os.fsync(probe.fileno())
    except NotADirectoryError:
        return fail(f"{what}: {place} is a file", "correct the path")
    except OSError as error:
        return fail(
            f"{what}: cannot be written ({error.strerror})", f"get the right to write in {place}, or correct {key}"
        )
    if place != path.absolute():
        return ok(f"{what} does not exist yet and can be made, {human_bytes(free_bytes(path))} free")
    return ok(f"{what} is writable, {human_bytes(free_bytes(path))} free")


def room_checks(stores: Sequence[Store]) -> Iterator[Result]:
    """Whether the models that are not at a place yet fit there; places on one file system share its room."""
    taken: dict[int, int] = {}
    for store in stores:
        missing = {name: size for name, (mark, size) in store.models.items() if not (store.path / mark).exists()}
        if not missing:
            yield ok(f"room: all models of the plan are in {store.path}")
            continue
        device = existing(store.path).stat().st_dev
        total, free = sum(missing.values()), free_bytes(store.path) - taken.get(device, 0)
        taken[device] = taken.get(device, 0) + total
        what = f"room: {human_bytes(total)} for {', '.join(sorted(missing))}"
        if total <= free:
            yield ok(f"{what} fit at {store.path}")
            continue
        yield fail(
            f"{what} are needed at {store.path}, and {human_bytes(max(free, 0))} are free"
            + (" beside what else is to come there" if taken[device] > total else ""),
            f"free {human_bytes(total - free)} there, correct {store.key}, or leave experiments out with select",
        )
