"""One real vLLM server that the tests of clients, of proxies and of examples share: a start costs 40 CPU seconds."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import urllib.request
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from shared_starts import vllm_cache_root

from berth.image import default_cache_dir
from berth.sockets import free_port
from berth.tinymodel import generate_model

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY = "sk-a-key-of-the-test-7f3a"
# The second is the name that Berth's deployments of the tiny model have.
NAMES = ("tiny", "berth/tiny-llama")
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
# One process beside the API's, and no threads that wait for each other on shared cores.
ON_THE_CPU = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
START_S = 500


def environment_python() -> Path:
    """The Python of the environment with vLLM; where there is none, the test is skipped."""
    chosen = os.environ.get("BERTH_VLLM_PYTHON")
    if chosen:
        return Path(chosen)
    for marker in sorted(default_cache_dir().glob("environments/vllm-cpu-*/.berth-complete.json")):
        python = marker.parent / "bin/python"
        if python.with_name("vllm").exists():
            return python
    pytest.skip("no vLLM: run `make` to build the environment, or set BERTH_VLLM_PYTHON to the Python of one")


@dataclass(frozen=True)
class RealServer:
    """A process of vLLM on a port of loopback, perhaps still loading; its log, and the folder of its model."""

    python: Path
    port: int
    model: Path
    log: Path
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    def wait(self) -> None:
        """Return when it is healthy."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                with opener.open(f"{self.url}/health", timeout=5):
                    return
            except OSError:
                time.sleep(0.3)
        pytest.fail(f"the server did not start:\n{self.log.read_text()[-3000:]}")

    def stop(self) -> None:
        """End it with all its processes, which need 3 CPU seconds each to end by themselves."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def start(folder: Path, port: int, options: list[str], env: dict[str, str]) -> RealServer:
    """A server of the tiny model in `folder`/model, with more options and variables."""
    python = environment_python()
    command = [str(python.with_name("vllm")), "serve", str(folder / "model")]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    command += ["--enforce-eager", "--distributed-executor-backend", "uni", "--max-num-seqs", "16", *options]
    env = {**os.environ, **OFFLINE, **ON_THE_CPU, "HF_HOME": str(folder / "hf"), **env}
    env["VLLM_CACHE_ROOT"] = str(vllm_cache_root())
    log = folder / "server.log"
    with log.open("ab") as output:
        process = subprocess.Popen(command, env=env, stdout=output, stderr=output, start_new_session=True)
    return RealServer(python, port, folder / "model", log, process)


@contextmanager
def shared_server(folder: Path) -> Iterator[RealServer]:
    """A server that asks for KEY, started and not waited for, for the block."""
    environment_python()
    generate_model(dest=folder / "model", manifest_path=folder / "manifest.json", seed=0)
    options = ["--served-model-name", *NAMES, "--max-model-len", "4096", "--no-enable-prefix-caching"]
    server = start(folder, free_port("127.0.0.1", 20000, 29999), options, {"VLLM_API_KEY": KEY})
    try:
        yield server
    finally:
        server.stop()
