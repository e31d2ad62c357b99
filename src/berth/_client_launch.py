"""How the benchmark client of one run is started, and what is said when it fails."""

from __future__ import annotations

import contextlib
import json
import subprocess
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from berth._client_process import log_tail
from berth.checkup import ask
from berth.containers import tell_failed_stop
from berth.coordinates import level_words
from berth.errors import BerthError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from berth.coordinates import Level

Mode = Literal["auto", "warm", "process"]


class ClientFailed(BerthError):  # noqa: N818 (named by what happened, as in the record: failure kind "client")
    """The client gave no result for a point. The message ends with the last lines of its log."""


class ResultFiles(Protocol):
    """Where the client leaves its results. What cannot be done raises OSError."""

    def prepare(self, folder: Path, pattern: str) -> None:
        """Have the folder, without the files of this pattern."""

    def read(self, path: Path) -> bytes:
        """What is in a file."""

    def remove(self, path: Path) -> None:
        """Remove a file, if it is there."""


class LocalFiles:
    """Files of this machine."""

    def prepare(self, folder: Path, pattern: str) -> None:
        """Have the folder, without the files of this pattern."""
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob(pattern):
            old.unlink(missing_ok=True)

    def read(self, path: Path) -> bytes:
        """What is in a file."""
        return path.read_bytes()

    def remove(self, path: Path) -> None:
        """Remove a file, if it is there."""
        path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Launch:
    """How the client is started: `command_prefix` runs Python in the image, `vllm_command` runs `vllm` there.

    `env` and `secret_env` together are its whole environment; `secret_env` is shown nowhere. `stop` are commands that
    end what its processes leave. `files` are the results where the client runs.
    """

    command_prefix: tuple[str, ...]
    worker_path: Path
    vllm_command: tuple[str, ...]
    env: Mapping[str, str]
    secret_env: Mapping[str, str] = field(repr=False)
    log_path: Path
    mode: Mode
    stop: tuple[tuple[str, ...], ...] = ()
    files: ResultFiles = field(default_factory=LocalFiles)

    def environment(self) -> dict[str, str]:
        """The whole environment of the client."""
        return {**self.env, **self.secret_env}

    def end_rest(self) -> None:
        """End what the client's processes left."""
        for argv in self.stop:
            tell_failed_stop(argv, ask(*argv, environ=self.env))

    def command(self, argv: Sequence[str]) -> list[str]:
        """The `vllm bench serve` that measures what the warm worker measures from the same arguments."""
        return [*self.vllm_command, "bench", "serve", *argv]

    def installed_version(self) -> str | None:
        """The version of vLLM in the image, without importing it; None where it cannot be found."""
        command = [*self.command_prefix, str(self.worker_path), "--version"]
        with contextlib.suppress(OSError, ValueError, KeyError, subprocess.SubprocessError):
            done = subprocess.run(
                command, env=self.environment(), capture_output=True, timeout=60, check=True, text=True
            )
            version = json.loads(done.stdout)["version"]
            return str(version) if version is not None else None
        return None

    def failed(self, level: Level, what: str, log_start: int) -> ClientFailed:
        """The error of a point that has no result, with the log since byte `log_start`."""
        return ClientFailed(f"The benchmark client {what} in the point at {level_words(level)}.{self.tail(log_start)}")

    def cannot_start(self, program: str, error: OSError) -> ClientFailed:
        """The error of a program that is not there or may not be run."""
        return ClientFailed(
            f"The benchmark client cannot be started: {program}: {error.strerror}. Check the image of the client "
            "(stage it again) and the container runtime."
        )

    def tail(self, log_start: int = 0) -> str:
        """The last lines of the client's log, as the end of a message."""
        text = log_tail(self.log_path, log_start)
        return f" Last lines of {self.log_path}:\n{text}" if text else f" Its log {self.log_path} is empty."
