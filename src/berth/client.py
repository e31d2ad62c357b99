"""The benchmark client of one run: vLLM's own benchmark, in one warm process or in one process per point."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, Protocol

from berth._client_launch import ClientFailed, Launch, LocalFiles, Mode, ResultFiles
from berth._client_process import Worker, WorkerDiedError, ended_how, log_size, run_once
from berth.bench import BenchSettings, bench_argv
from berth.coordinates import level_name
from berth.measurement import Measurement, client_section
from berth.record import split_result

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from berth.coordinates import Level

__all__ = [
    "BenchClient",
    "BenchSettings",
    "ClientFailed",
    "Measurement",
    "bench_argv",
    "open_client",
    "warm_up_settings",
]

logger = logging.getLogger(__name__)

_POLL_S = 0.1  # between two calls of should_stop()


@contextlib.contextmanager
def open_client(
    *,
    command_prefix: Sequence[str],
    worker_path: Path,
    vllm_command: Sequence[str],
    env: Mapping[str, str],
    secret_env: Mapping[str, str],
    log_path: Path,
    mode: Mode = "auto",
    stop: tuple[tuple[str, ...], ...] = (),
    files: ResultFiles | None = None,
) -> Iterator[BenchClient]:
    """A client that is starting. It is gone, with all that it started, when the block ends.

    `env` and `secret_env` together are its whole environment. `stop` are commands that end what its processes leave,
    such as a container. `files` are its results where it does not run on this machine.

    The import of vLLM takes seconds: enter the block before the server is ready, call `prepare`, and call
    `wait_ready` when the server is.

    Raises:
        ClientFailed: the program cannot be started.
    """
    launch = Launch(
        tuple(command_prefix),
        worker_path,
        tuple(vllm_command),
        env,
        secret_env,
        log_path,
        mode,
        stop,
        files or LocalFiles(),
    )
    client = BenchClient(launch)
    try:
        client.start()
        yield client
    finally:
        client.close()


class Warming(Protocol):
    """A client that can measure, and so warm a server up."""

    def measure(
        self,
        settings: BenchSettings,
        level: Level,
        scratch_dir: Path,
        on_progress: Callable[[int, int], None] | None = None,
        should_stop: Callable[[], None] | None = None,
    ) -> Measurement:
        """Measure one point."""

    def warm_up(
        self,
        settings: BenchSettings,
        scratch_dir: Path,
        *,
        num_prompts: int,
        concurrency: int,
        on_progress: Callable[[int, int], None] | None = None,
        should_stop: Callable[[], None] | None = None,
    ) -> None:
        """Send requests that are not measured, so that the first point meets a server that has worked before.

        Raises:
            ClientFailed: no client, or not one request completed.
        """
        warm = warm_up_settings(settings, num_prompts)
        completed_something(self.measure(warm, concurrency, scratch_dir, on_progress, should_stop))


class BenchClient(Warming):
    """Measures points one after the other. Made by `open_client`."""

    def __init__(self, launch: Launch) -> None:
        self._launch = launch
        self._worker: Worker | None = None
        self._ready = False
        self._prepared_pending = 0
        self.mode: Literal["warm", "process"] = "process" if launch.mode == "process" else "warm"
        self.version: str | None = None

    @property
    def engine_version(self) -> str | None:
        """The version of the vLLM in the server's image, which this client is a part of."""
        return self.version

    @property
    def worker_pid(self) -> int | None:
        """The process id of the warm worker, None where there is none."""
        return self._worker.pid if self._worker else None

    def start(self) -> None:
        """Start the warm worker without waiting for it; in process mode there is nothing to start."""
        self._ready = False
        self._prepared_pending = 0
        if self.mode == "process":
            return
        command = [*self._launch.command_prefix, str(self._launch.worker_path)]
        self._worker = Worker(command, self._launch.environment(), self._launch.log_path, self._launch.end_rest)
        try:
            self._worker.start()
        except OSError as error:
            self._worker = None
            raise self._launch.cannot_start(command[0], error) from None

    def prepare(self, *settings: BenchSettings) -> None:
        """Let the worker load tokenizer and samples while the server starts. Returns at once.

        `base_url` need not be known yet. Settings that cannot be loaded are told by the point that uses them.
        """
        if self._worker is None:
            return
        for each in settings:
            self._worker.send(do="prepare", argv=bench_argv(each, 1, self._launch.log_path.with_name("prepare.json")))
            self._prepared_pending += 1

    def wait_ready(self, timeout_s: float = 600.0, should_stop: Callable[[], None] | None = None) -> None:
        """Wait until the worker has imported vLLM and loaded what was prepared.

        In mode "auto" a worker that cannot work leaves process mode in force, with a warning.

        Raises:
            ClientFailed: not ready in time, or mode "warm" and the worker cannot work.
        """
        if self.mode == "process" and self.version is None:
            self.version = self._launch.installed_version()
        deadline = time.monotonic() + timeout_s
        while self._worker is not None and not (self._ready and self._prepared_pending == 0):
            if should_stop is not None:
                should_stop()
            try:
                message = self._worker.receive(_POLL_S)
            except WorkerDiedError as error:
                self._fall_back(f"it {error}")
                return
            if message is not None:
                self._take_start_message(message)
            elif time.monotonic() > deadline:
                self.close()
                raise ClientFailed(f"The benchmark client was not ready after {timeout_s:.0f} s.{self._launch.tail()}")

    def _take_start_message(self, message: dict[str, Any]) -> None:
        if message["event"] == "ready":
            self.version = message["version"]
            self._ready = True
            if message["mode"] == "process":
                self._fall_back(message["reason"])
            else:
                logger.info("benchmark client ready: vLLM %s, imported in %.1f s", self.version, message["import_s"])
        elif message["event"] == "prepared":
            self._prepared_pending -= 1
            if message["error"]:
                logger.warning("benchmark client could not prepare: %s", message["error"])

    def _fall_back(self, reason: str) -> None:
        self.close()
        if self._launch.mode == "warm":
            raise ClientFailed(
                f"The warm benchmark client cannot work here: {reason}. Set the client's mode to auto or process, "
                f"or look for the cause in the log.{self._launch.tail()}"
            )
        logger.warning("no warm benchmark client: %s; one `vllm bench serve` per point from now on", reason)
        self.mode = "process"

    def describe(self, settings: BenchSettings, level: Level) -> dict[str, Any]:
        """The `client` of the record of a point that gave no measurement."""
        argv = bench_argv(settings, level, self._launch.log_path.with_name(f"{level_name(level)}.json"))
        return client_section(self._launch.command(argv), self.mode, self.version, None, None)

    def measure(
        self,
        settings: BenchSettings,
        level: Level,
        scratch_dir: Path,
        on_progress: Callable[[int, int], None] | None = None,
        should_stop: Callable[[], None] | None = None,
    ) -> Measurement:
        """Measure one point. The client's own file is written into `scratch_dir`, read, and removed.

        `on_progress(completed, total)` is called as requests complete. `should_stop()` is called several times a
        second; what it raises ends the client and leaves this call.

        Raises:
            ClientFailed: no result. The next call starts a new client.
        """
        started, start = time.perf_counter(), _now()
        try:
            self._launch.files.prepare(scratch_dir, f"{level_name(level)}.*.client.json")
        except OSError as error:
            raise self._launch.failed(level, f"has no place for its result ({error})", 0) from None
        # A new name: a file system that several nodes share may go on saying for a minute that the old one is gone.
        result_path = scratch_dir / f"{level_name(level)}.{time.time_ns()}.client.json"
        argv = bench_argv(settings, level, result_path)
        if self.mode == "warm" and self._worker is None:
            self.start()
        self.wait_ready(should_stop=should_stop)
        log_start = log_size(self._launch.log_path)
        try:
            measure = self._measure_warm if self.mode == "warm" else self._measure_process
            phase = measure(argv, level, log_start, on_progress or (lambda _completed, _total: None), should_stop)
            result, requests = split_result(self._read_result(result_path, level, log_start))
        finally:
            with contextlib.suppress(OSError):
                self._launch.files.remove(result_path)
        duration = result.get("duration")
        return Measurement(
            result=result,
            requests=requests,
            command=self._launch.command(argv),
            mode=self.mode,
            version=self.version,
            cpu_s=phase.get("cpu_s"),
            start=start,
            end=_now(),
            duration_s=time.perf_counter() - started,
            client_duration_s=float(duration) if isinstance(duration, int | float) else None,
            phase_start=_iso(phase.get("start")),
            phase_end=_iso(phase.get("end")),
            log=self._launch.log_path,
            loop_lag=phase.get("loop_lag"),
            clock_step_s=phase.get("clock_step_s"),
        )

    def _measure_warm(
        self,
        argv: list[str],
        level: Level,
        log_start: int,
        on_progress: Callable[[int, int], None],
        should_stop: Callable[[], None] | None,
    ) -> dict[str, Any]:
        worker = self._worker
        if worker is None:
            raise AssertionError("wait_ready() leaves a worker in warm mode")
        worker.send(do="measure", argv=argv)
        try:
            while True:
                if should_stop is not None:
                    should_stop()
                message = worker.receive(_POLL_S)
                if message is None:
                    continue
                if message["event"] == "measured":
                    break
                if message["event"] == "progress":
                    on_progress(message["completed"], message["total"])
        except WorkerDiedError as error:
            self.close()
            raise self._launch.failed(level, str(error), log_start) from None
        except BaseException:
            self.close()
            raise
        if message["error"]:
            raise self._launch.failed(level, f"reports {message['error']}", log_start)
        on_progress(message["completed"], message["total"])
        return message

    def _measure_process(
        self,
        argv: list[str],
        level: Level,
        log_start: int,
        on_progress: Callable[[int, int], None],
        should_stop: Callable[[], None] | None,
    ) -> dict[str, Any]:
        command = self._launch.command(argv)
        try:
            launch = self._launch
            code = run_once(
                command, launch.environment(), launch.log_path, on_progress, should_stop, end_rest=launch.end_rest
            )
        except OSError as error:
            raise self._launch.cannot_start(command[0], error) from None
        if code != 0:
            raise self._launch.failed(level, ended_how(code), log_start)
        return {}

    def _read_result(self, path: Path, level: Level, log_start: int) -> dict[str, Any]:
        try:
            raw = json.loads(self._launch.files.read(path))
        except (OSError, ValueError) as error:
            raise self._launch.failed(level, f"left no readable result file ({error})", log_start) from None
        if not isinstance(raw, dict):
            raise self._launch.failed(level, "left a result file that is no JSON object", log_start)
        return raw

    def close(self) -> None:
        """End the worker and all of its group; harmless when there is none."""
        worker, self._worker, self._ready = self._worker, None, False
        if worker is not None:
            worker.end()


def warm_up_settings(settings: BenchSettings, num_prompts: int) -> BenchSettings:
    """The settings of the warm-up: another seed, so that it does not put the measured prompts into the prefix cache."""
    return replace(settings, num_prompts=num_prompts, seed=settings.seed + 1)


def completed_something(warmed: Measurement) -> None:
    """Return when a warm-up has reached the server.

    Raises:
        ClientFailed: not one request completed.
    """
    if not warmed.result.get("completed"):
        errors = [str(error).strip() for error in warmed.requests.get("errors", []) if error]
        cause = errors[0].splitlines()[-1] if errors else "the server answered nothing"
        raise ClientFailed(f"No request of the warm-up completed: {cause}. See the server's log and {warmed.log}.")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _iso(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
