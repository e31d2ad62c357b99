"""The benchmark client of a run: vLLM's own, or the one that its benchmark names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from berth._client_launch import Launch
from berth.client import Warming, open_client
from berth.clienttool import DEFAULT, load_client
from berth.toolclient import ADAPTERS, ToolLaunch, open_tool_client

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from berth.bench import BenchSettings
    from berth.coordinates import Level
    from berth.launch import Deployed
    from berth.nodes import Node


class BenchmarkClient(Warming, Protocol):
    """What every client does; client.BenchClient has the sentences."""

    version: str | None

    @property
    def engine_version(self) -> str | None:
        """The version of the vLLM in the server's image."""

    def prepare(self, *settings: BenchSettings) -> None:
        """Load what it will ask for."""

    def wait_ready(self, timeout_s: float = 600.0, should_stop: Callable[[], None] | None = None) -> None:
        """Wait until it can measure."""

    def describe(self, settings: BenchSettings, level: Level) -> dict[str, Any]:
        """The `client` of a record without a measurement."""


def client_of(
    deployed: Deployed, key: str, token: str, node: Node | None, name: str | None = None
) -> AbstractContextManager[BenchmarkClient]:
    """The client that the benchmark names, or the one of this name, of a server with this key; it is starting.

    Raises:
        BerthError: its image or its file is not there.
    """
    python, program = deployed.client(key, token, node)
    chosen = name or deployed.request.benchmark.get("client", DEFAULT)
    if chosen == DEFAULT:
        return open_client(
            command_prefix=python.argv,
            worker_path=deployed.worker,
            vllm_command=program.argv,
            env=python.env,
            secret_env=python.secret_env,
            stop=python.stop,
            log_path=deployed.client_log,
            files=deployed.files,
            mode=deployed.request.settings["client_mode"],
        )
    tool = load_client(Path(deployed.request.tools[chosen]["file"]))
    log = deployed.client_log.with_name(f"client.{chosen}.log")
    started = deployed.tool(tool, ADAPTERS[chosen].KEY_VARIABLE, key, token, node)
    sampler = Launch(
        tuple(python.argv),
        deployed.worker,
        tuple(program.argv),
        python.env,
        python.secret_env,
        log,
        "process",
        python.stop,
    )
    run = Launch(
        (), deployed.worker, tuple(started.argv), started.env, started.secret_env, log, "process", started.stop
    )
    return open_tool_client(ToolLaunch(tool, run, sampler, deployed.exchange / f"{chosen}-client"))
