"""Another benchmark client of one run, such as guidellm: one process per point, asked what vLLM's client would ask.

The prompts are those that vLLM's client samples, in its order: the image's Python writes them down once, while the
server starts.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from berth import _client_aiperf, _client_guidellm
from berth._client_launch import ClientFailed
from berth._client_process import end_group, ended_how, log_size, run_once, start_group
from berth.bench import bench_argv
from berth.client import Warming
from berth.coordinates import level_name
from berth.diagnose import diagnose
from berth.fsio import write_text
from berth.measurement import Measurement, client_section, iso
from berth.vllm_result import Asked, not_given, vllm_lists, vllm_result

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from berth._client_launch import Launch
    from berth.bench import BenchSettings
    from berth.clienttool import ClientTool
    from berth.coordinates import Level
    from berth.vllm_result import Request

logger = logging.getLogger(__name__)

_POLL_S = 0.1
_SAMPLES_S = 600.0


class Adapter(Protocol):
    """What a module such as _client_guidellm has."""

    KEY_VARIABLE: str
    OUTPUTS: tuple[str, ...]

    def inputs(
        self, settings: BenchSettings, concurrency: int, samples: Iterable[Mapping[str, Any]], folder: Path
    ) -> dict[str, str]:
        """The files that the client reads, by name."""

    def arguments(self, folder: Path) -> list[str]:
        """What follows the program."""

    def read(self, outputs: Mapping[str, str]) -> tuple[list[Request], float | None, dict[str, float | None]]:
        """Requests, measured seconds, and start and end of the measured phase."""


ADAPTERS: dict[str, Adapter] = {"guidellm": _client_guidellm, "aiperf": _client_aiperf}


class ToolFailed(ClientFailed):
    """A client gave no result: cause, remedy and the end of its log."""

    def __init__(self, cause: str, remedy: str, log: str) -> None:
        self.cause, self.remedy = cause, remedy
        super().__init__(f"{cause}\nWhat to do: {remedy}{log}")


@dataclass(frozen=True)
class ToolLaunch:
    """How a client is started: `program` in its own image, `sampler` is vLLM's Python in the server's image.

    `folder` is where samples and the client's files lie, on a file system that both nodes have.
    """

    tool: ClientTool
    program: Launch
    sampler: Launch
    folder: Path


class ToolClient(Warming):
    """Measures points one after the other, as client.BenchClient does. Made by `open_tool_client`."""

    mode = "process"

    def __init__(self, launch: ToolLaunch) -> None:
        self._launch = launch
        self._adapter = ADAPTERS[launch.tool.name]
        self._samples: dict[str, list[dict[str, Any]]] = {}
        self._asked: list[BenchSettings] = []
        self._sampling: subprocess.Popen[bytes] | None = None
        self._sampled_from = 0
        self.version: str | None = launch.tool.version
        self.engine_version: str | None = None

    def prepare(self, *settings: BenchSettings) -> None:
        """Let vLLM's Python write down the prompts while the server starts. Returns at once."""
        self._end_sampling()
        self._asked = [each for each in settings if _key(each) not in self._samples]
        if not self._asked:
            return
        sampler, folder = self._launch.sampler, self._launch.folder
        folder.mkdir(parents=True, exist_ok=True)
        self._written.unlink(missing_ok=True)
        write_text(folder / "samples.asked.json", json.dumps([_argv(each) for each in self._asked]), mode=0o600)
        command = [
            *sampler.command_prefix,
            str(sampler.worker_path),
            *("--samples", str(folder / "samples.asked.json"), str(self._written)),
        ]
        self._sampled_from = log_size(sampler.log_path)
        try:
            self._sampling = start_group(command, env=sampler.environment(), log_path=sampler.log_path, piped=False)
        except OSError as error:
            raise sampler.cannot_start(command[0], error) from None

    @property
    def _written(self) -> Path:
        return self._launch.folder / "samples.json"

    def wait_ready(self, timeout_s: float = _SAMPLES_S, should_stop: Callable[[], None] | None = None) -> None:
        """Wait until the prompts are written down.

        Raises:
            ClientFailed: they are not, in time or at all.
        """
        process, deadline = self._sampling, time.monotonic() + timeout_s
        while process is not None and process.poll() is None:
            if should_stop is not None:
                should_stop()
            if time.monotonic() > deadline:
                self.close()
                raise self._failed_sampling(f"did not end within {timeout_s:.0f} s")
            time.sleep(_POLL_S)
        if process is None:
            return
        self._end_sampling()
        try:
            lists = json.loads(self._written.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise self._failed_sampling(ended_how(process.returncode)) from None
        if self.engine_version is None:
            self.engine_version = self._launch.sampler.installed_version()
        self._samples |= {_key(each): rows for each, rows in zip(self._asked, lists, strict=True)}
        self._written.unlink(missing_ok=True)
        logger.info("benchmark client ready: %s %s", self._launch.tool.name, self.version)

    def _failed_sampling(self, what: str) -> ToolFailed:
        return ToolFailed(
            f"vLLM's Python, which writes down the prompts for {self._launch.tool.name}, {what}.",
            "Look for the cause in the log; vLLM 0.10 and newer can do this.",
            self._launch.sampler.tail(self._sampled_from),
        )

    def describe(self, settings: BenchSettings, level: Level) -> dict[str, Any]:
        """The `client` of the record of a point that gave no measurement."""
        del settings
        folder = self._launch.folder / f"{level_name(level)}.client"
        return client_section(self._command(folder), self.mode, self.version, None, None, name=self._launch.tool.name)

    def _command(self, folder: Path) -> list[str]:
        return [*self._launch.program.vllm_command, *self._adapter.arguments(folder)]

    def measure(
        self,
        settings: BenchSettings,
        level: Level,
        scratch_dir: Path,
        on_progress: Callable[[int, int], None] | None = None,
        should_stop: Callable[[], None] | None = None,
    ) -> Measurement:
        """Measure one point; see client.BenchClient.measure.

        Raises:
            ClientFailed: no result. The next call starts a new client.
        """
        del scratch_dir
        # The configuration lets no rates reach a tool.
        concurrency = int(level)
        started, start = time.perf_counter(), iso(time.time())
        if _key(settings) not in self._samples:
            self.prepare(settings)
        self.wait_ready(should_stop=should_stop)
        folder = self._launch.folder / f"c{concurrency}.{time.time_ns()}.client"
        program = self._launch.program
        log_start = log_size(program.log_path)
        try:
            self._write(folder, settings, concurrency)
            outputs = self._run(folder, concurrency, log_start, on_progress, should_stop)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        try:
            requests, duration_s, span = self._adapter.read(outputs)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            cause = f"left a result that is none of {self._launch.tool.name} {self.version} ({error!r})"
            raise self._failed(concurrency, cause, 0, log_start) from None
        asked = Asked(settings.num_prompts, concurrency, float(settings.request_rate), settings.served_model)
        result = vllm_result(requests, duration_s, asked)
        return Measurement(
            result=result,
            # What the client itself wrote is kept beside them, character by character.
            requests={**vllm_lists(requests), "client_files": dict(outputs)},
            command=self._command(folder),
            mode="process",
            version=self.version,
            cpu_s=None,
            start=start,
            end=iso(time.time()),
            duration_s=time.perf_counter() - started,
            client_duration_s=duration_s,
            phase_start=_iso(span["start"]),
            phase_end=_iso(span["end"]),
            log=program.log_path,
            name=self._launch.tool.name,
            not_given=tuple(not_given(result)),
        )

    def _write(self, folder: Path, settings: BenchSettings, concurrency: int) -> None:
        rows = self._samples[_key(settings)]
        odd = next((row for row in rows if not isinstance(row["prompt"], str)), None)
        if odd is not None:
            raise ToolFailed(
                f"{self._launch.tool.name} is given prompts that are text, and this dataset has others.",
                "Use the default client for it.",
                "",
            )
        try:
            folder.mkdir(parents=True)
            for name, text in self._adapter.inputs(settings, concurrency, rows, folder).items():
                write_text(folder / name, text, mode=0o600)
        except OSError as error:
            raise self._failed(concurrency, f"has no place for its files ({error})", 0, 0) from None

    def _run(
        self,
        folder: Path,
        concurrency: int,
        log_start: int,
        on_progress: Callable[[int, int], None] | None,
        should_stop: Callable[[], None] | None,
    ) -> dict[str, str]:
        program = self._launch.program
        command = self._command(folder)
        try:
            code = run_once(
                command,
                program.environment(),
                program.log_path,
                on_progress or (lambda _completed, _total: None),
                should_stop,
                end_rest=program.end_rest,
            )
        except OSError as error:
            raise program.cannot_start(command[0], error) from None
        try:
            # Its own end tells less than its files: aiperf ends with 1 where requests failed, and with results.
            return {name: (folder / name).read_text(encoding="utf-8") for name in self._adapter.OUTPUTS}
        except (OSError, ValueError):
            raise self._failed(concurrency, ended_how(code), code, log_start) from None

    def _failed(self, concurrency: int, what: str, code: int, log_start: int) -> ToolFailed:
        program, tool = self._launch.program, self._launch.tool
        told = diagnose(
            program.log_path,
            known_failures=tool.failures,
            returncode=code or None,
            secrets=program.secret_env.values(),
            start=log_start,
        )
        known = any(told.cause == each.cause for each in tool.failures)
        cause = f" {told.cause}" if known else ""
        remedy = told.remedy if known else "Look for the cause in the log."
        return ToolFailed(
            f"The benchmark client {tool.name} gave no result for the point at concurrency {concurrency}: it {what}."
            f"{cause}",
            remedy,
            program.tail(log_start),
        )

    def close(self) -> None:
        """End what still runs; harmless when there is nothing."""
        self._end_sampling()

    def _end_sampling(self) -> None:
        process, self._sampling = self._sampling, None
        if process is not None:
            end_group(process, end_rest=self._launch.sampler.end_rest)


@contextlib.contextmanager
def open_tool_client(launch: ToolLaunch) -> Iterator[ToolClient]:
    """A client. It is gone, with all that it started, when the block ends."""
    client = ToolClient(launch)
    try:
        yield client
    finally:
        client.close()


def _argv(settings: BenchSettings) -> list[str]:
    # Of the samples' arguments the server and the place of a result are none.
    return bench_argv(settings, 1, Path("samples.json"))


def _key(settings: BenchSettings) -> str:
    return json.dumps(_argv(replace(settings, base_url="")))


def _iso(seconds: float | None) -> str | None:
    return None if seconds is None else iso(seconds)
