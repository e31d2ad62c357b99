"""Images that are made on the spot, and sweeps of one run that start their server and client in them.

No registry and no copy of vLLM is needed: the image is a few links and two scripts, and sees this host's /usr, its
Python and the vLLM environment read only. The platform file of each test says so, as a site's would.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import yaml
from container_programs import apptainer_environment, podman_environment
from shared_starts import share_starts

from berth.dataset import generate_sharegpt
from berth.image import default_cache_dir
from berth.parse import load_config
from berth.parts import texts
from berth.plan import make_plan
from berth.processes import TOKEN_VARIABLE
from berth.tinymodel import generate_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parents[2]
STANDIN = ROOT / "tests/slurm/standin_vllm.py"
VLLM = "/opt/vllm"
PATH = "/opt/bin:/usr/local/bin:/usr/bin:/bin"
SWEEP = """
import json, sys
from pathlib import Path
from berth.console import script
from berth.sweep import SweepRequest, sweep
with script(sys.argv[2]):
    sweep(SweepRequest(**json.loads(Path(sys.argv[1]).read_text())))
"""
# What the real vLLM needs on a CPU, beside what the recipe says for CUDA.
ON_A_CPU = {
    "args": {"enforce-eager": True, "distributed-executor-backend": "uni", "max-model-len": 2048, "max-num-seqs": 16},
    "env": {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "1",
    },
    "reason": "The server in the image is vLLM for the CPU.",
}


def environment() -> Path:
    """The vLLM-CPU environment; the test skips where there is none."""
    for marker in sorted(default_cache_dir().glob("environments/vllm-cpu-*/.berth-complete.json")):
        return marker.parent
    pytest.skip("no vLLM: run `make` to build the environment")


def make_root(folder: Path, *, real: bool) -> dict[str, Path]:
    """An image's files, and the folders of the host that have to be seen inside: target -> source.

    `real` says whether `vllm` is vLLM's or the stand-in of tests/slurm.
    """
    for name in ("usr", "opt/bin", "opt/vllm", "root", "etc", "tmp", "var/tmp", "proc", "sys", "dev"):
        (folder / name).mkdir(parents=True)
    (folder / "vllm-workspace/models").mkdir(parents=True)
    for name in ("bin", "lib", "lib64"):
        (folder / name).symlink_to(f"usr/{name}")
    (folder / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (folder / "etc/group").write_text("root:x:0:\n")
    (folder / "etc/hosts").write_text("127.0.0.1 localhost\n")
    mounts = {"/usr": Path("/usr")}
    if real:
        home = environment()
        python, program = f"{VLLM}/bin/python", f"{VLLM}/bin/python -m vllm.entrypoints.cli.main"
        mounts[VLLM] = home
        base = Path(re.findall(r"^home = (.+)$", (home / "pyvenv.cfg").read_text(), re.MULTILINE)[0]).parent
    else:
        base = Path(sys.base_prefix)
        (folder / "standin").mkdir()
        python = f"{base}/bin/python3"
        program = f"{python} -u /standin/standin_vllm.py"
    if not base.is_relative_to("/usr"):
        mounts[str(base)] = base
        (folder / str(base)[1:]).mkdir(parents=True)
    # Where Apptainer looks for the variables of an image.
    profile = folder / ".singularity.d/env/90-environment.sh"
    profile.parent.mkdir(parents=True)
    profile.write_text(f"export PATH={PATH}\n")
    profile.chmod(0o755)
    for name, command in (("vllm", program), ("python3", python)):
        (folder / "opt/bin" / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        (folder / "opt/bin" / name).chmod(0o755)
    return mounts


def image_receipt(
    runtime: str, reference: str, digest: str, *, path: str = "", sha256: str | None = None, size_bytes: int = 1
) -> dict[str, Any]:
    """The receipt that stage_image would write for an image that is there already."""
    return {
        "schema": 1,
        "kind": "container",
        "runtime": runtime,
        "reference": reference,
        "digest": digest,
        "index_digest": "",
        "pulled_from": reference,
        "path": path,
        "archive": "",
        "sha256": sha256,
        "size_bytes": size_bytes,
        "platform": "linux/amd64",
    }


@dataclass(frozen=True)
class Podman:
    """Podman that works here, with one image and its own configuration."""

    environ: dict[str, str]
    image: str
    digest: str
    mounts: dict[str, Path]

    def __call__(self, *words: str, check: bool = True) -> str:
        """What Podman says."""
        done = subprocess.run(["podman", *words], env=self.environ, capture_output=True, text=True, check=False)
        assert not check or done.returncode == 0, done.stderr
        return done.stdout.strip()

    def receipt(self) -> dict[str, Any]:
        """The receipt of the image."""
        return image_receipt("podman", self.image, self.digest)

    def containers(self) -> list[str]:
        """The names of the containers of this image, running or not."""
        listed = [line.split() for line in self("ps", "--all", "--format={{.Image}} {{.Names}}").splitlines()]
        return [name for image, name in listed if image.startswith(self.image.rpartition(":")[0])]


@contextlib.contextmanager
def podman_image(folder: Path, *, real: bool) -> Iterator[Podman]:
    """Podman with an image that is made on the spot and removed at the end; the test skips where it cannot run."""
    environ = podman_environment(folder)
    mounts = make_root(folder / "root", real=real)
    subprocess.run(["tar", "-C", str(folder / "root"), "-cf", str(folder / "image.tar"), "."], check=True)
    image = f"localhost/berth/test-{uuid.uuid4().hex[:8]}:1"
    path = f"--change=ENV PATH={PATH}"
    podman = Podman(environ, image, "", mounts)
    try:
        podman("import", path, str(folder / "image.tar"), image)
        podman("run", "--rm", "--network=host", "--volume=/usr:/usr:ro", "--entrypoint=sh", image, "-c", "exit 0")
    except AssertionError as error:
        pytest.skip(f"Podman cannot run a container here: {error}")
    try:
        yield Podman(environ, image, podman("image", "inspect", "--format={{.Digest}}", image), mounts)
    finally:
        podman("rmi", "--force", image)


_started: list[subprocess.Popen[bytes]] = []


@pytest.fixture(autouse=True)
def ended_sweeps() -> Iterator[None]:
    """Whatever sweep a failed test leaves is asked to end."""
    yield
    while _started:
        process = _started.pop()
        process.terminate()
        process.wait()


@dataclass(frozen=True)
class Apptainer:
    """Apptainer that works here, with one SIF."""

    environ: dict[str, str]
    sif: Path
    mounts: dict[str, Path]


def apptainer_image(folder: Path, *, real: bool) -> Apptainer:
    """Apptainer with a SIF that is made on the spot; the test skips where it cannot run."""
    environ = apptainer_environment()
    mounts = make_root(folder / "root", real=real)
    environ |= {f"APPTAINER_{name}DIR": str(folder / name) for name in ("TMP", "CACHE")}
    (folder / "TMP").mkdir()
    sif = folder / "image.sif"
    for words in (
        ["build", str(sif), str(folder / "root")],
        ["exec", "--fakeroot", "--writable-tmpfs", "--bind=/usr:/usr:ro", str(sif), "sh", "-c", "exit 0"],
    ):
        done = subprocess.run(["apptainer", *words], env=environ, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"Apptainer cannot {words[0]} here: {done.stderr[-500:]}")
    return Apptainer(environ, sif, mounts)


def standin_folder(folder: Path) -> Path:
    """A folder with the stand-in, as it is mounted, and in which `hold` works."""
    place = folder / "standin"
    place.mkdir()
    shutil.copy(STANDIN, place / "standin_vllm.py")
    return place


@dataclass(frozen=True)
class Run:
    """One run of an experiment on a platform of its own, and the processes that sweep it."""

    folder: Path
    environ: dict[str, str]
    request: dict[str, Any]

    @property
    def results(self) -> Path:
        """The folder of results."""
        return self.folder / "results"

    @property
    def key(self) -> str:
        """The run's key, as in paths."""
        return "/".join((*(self.request[part] for part in ("experiment", "platform", "spec")), "run1"))

    def hold(self) -> Path:
        """The stand-in's point at concurrency 2 lasts until this file is removed."""
        file = self.folder / "standin/hold-run1"
        file.touch()
        return file

    def in_point(self) -> bool:
        """Whether the first point is finished and the second goes on."""
        return self.log.exists() and 1 in self.spooled() and "concurrency 2" in self.log.read_text()

    def sweep(self, *, before: str = "", **environ: str) -> subprocess.Popen[bytes]:
        """A sweep in a process of its own, as a job is; its log is sweep.log. `before` is code that goes first."""
        (self.folder / "request.json").write_text(json.dumps(self.request))
        command = [sys.executable, "-c", before + SWEEP, str(self.folder / "request.json"), str(self.log)]
        with (self.folder / "output.log").open("ab") as output:
            started = subprocess.Popen(
                command,
                cwd=self.folder,
                env={**self.environ, **environ},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        _started.append(started)
        return started

    def finish(self, **environ: str) -> str:
        """Sweep to the end; the log."""
        code = self.sweep(**environ).wait()
        assert code == 0, self.told()
        return self.log.read_text()

    @property
    def log(self) -> Path:
        """The sweep's log."""
        return self.folder / "sweep.log"

    def told(self) -> str:
        """Everything that was printed, for a failing assertion."""
        logs = [self.folder / "output.log", *sorted((self.results / "logs").rglob("*.log"))]
        return "\n".join(f"== {log}\n{log.read_text()[-6000:]}" for log in logs if log.exists())

    def spooled(self) -> dict[int, dict[str, Any]]:
        """The records in the spool by concurrency."""
        found = {}
        for path in (self.results / "spool" / self.key).glob("c*.json"):
            record = json.loads(path.read_text())
            found[record["point"]["concurrency"]] = record
        return found

    def lease(self) -> dict[str, Any]:
        """What the newest lease file says."""
        newest = max((self.results / "spool" / self.key).glob("lease.*.json"))
        value: dict[str, Any] = json.loads(newest.read_text())
        return value

    def processes(self) -> list[psutil.Process]:
        """Living processes of the sweep that holds the lease, by its token: the server's and the client's."""
        entry = f"{TOKEN_VARIABLE}={self.lease()['token']}".encode()
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.pid != os.getpid() and entry in Path(f"/proc/{process.pid}/environ").read_bytes().split(
                    b"\0"
                ):
                    found.append(process)
        return found


@functools.cache
def _inputs() -> Path:
    """A model and a dataset, made once."""
    folder = Path(tempfile.mkdtemp(prefix="berth-inputs-"))
    atexit.register(shutil.rmtree, folder)
    generate_model(dest=folder / "models/tiny", manifest_path=folder / "manifest.json", seed=0)
    generate_sharegpt(dest=folder / "sharegpt.json", receipt_path=folder / "dataset.json", count=200, seed=0, scale=0.1)
    return folder


def make_run(
    folder: Path,
    *,
    platform: dict[str, Any],
    receipt: dict[str, Any],
    environ: dict[str, str],
    levels: tuple[int, ...],
    prompts: int,
    real: bool,
    deployment: dict[str, Any] | None = None,
) -> Run:
    """A run on a platform of its own whose image is the receipt's. Model and dataset are small and real.

    `deployment` has what else the deployment says, such as its nodes.
    """
    config = folder / "config"
    for name in ("models", "datasets", "recipes"):
        shutil.copytree(ROOT / "config" / name, config / name)
    (config / "platforms").mkdir()
    kind = platform["accelerator"]["kind"]
    recipe = yaml.safe_load((config / "recipes/vllm.yaml").read_text())
    image = {"kind": "container", "reference": receipt["reference"], "digest": receipt["digest"]}
    recipe["versions"]["0.32.0"]["images"] = {kind: image}
    (config / "recipes/vllm.yaml").write_text(yaml.safe_dump(recipe))
    site = {
        "label": "Site",
        "nodes": 1,
        "scheduler": "local",
        "paths": {"models": str(folder / "models"), "scratch": str(folder / "scratch")},
        "store": {"kind": "embedded", "bucket": "models"},
        "server": {"host": "127.0.0.1", "ports": [20000, 29999]},
        **({"recipes": {"vllm": ON_A_CPU}} if real else {}),
        **platform,
    }
    (config / "platforms/site.yaml").write_text(yaml.safe_dump(site))
    if real:
        share_starts(folder / "scratch", receipt["digest"])
    tiny = {"model": "tiny-llama", "recipe": "vllm", "platform": "site", "version": "0.32.0", **(deployment or {})}
    raw = {
        "platform": "site",
        "results": "results",
        "config_dir": "config",
        "deployments": {"tiny": tiny},
        "benchmarks": {
            "short": {
                "dataset": "sharegpt-like",
                "num_prompts": prompts,
                "seed": 1,
                "concurrency": list(levels),
                "warm_up_prompts": 4 if real else 0,
                # Points of a second are enough to test containers; they say nothing about the machine.
                "validity": {"min_duration_s": 0.1, "min_concurrency_fraction": 0.1, "client_bound_lag_ms": 1e4},
            }
        },
        "experiments": {"try": {"title": "Try", "deployments": ["tiny"], "benchmark": "short", "runs": 1}},
        "sweep": {"stop_grace_s": 20 if real else 2, "stall_s": 120, "point_stall_s": 60, "lease_stale_s": 30},
    }
    plan = make_plan(load_config(raw, folder), folder)
    run = next(iter(plan.runs.values()))
    (part,) = texts([list(levels)])
    request = plan.sweep_request(run.id.key, part)
    shutil.copytree(_inputs(), folder, dirs_exist_ok=True)
    wanted = run.definition.full["model"]
    source = {"repo": wanted["repo"], "revision": None, "shape": wanted["generated"]}
    (folder / "model.json").write_text(json.dumps({"source": source, "dest": str(folder / "models/tiny")}))
    (folder / "image.json").write_text(json.dumps(receipt))
    receipts = {f"{name}_receipt": str(folder / f"{name}.json") for name in ("model", "image", "dataset")}
    environ = {**environ, "PYTHONPATH": ":".join([str(ROOT / "src"), *sys.path])}
    return Run(folder, environ, {**request, **receipts})


def until(condition: Callable[[], Any], run: Run, sweep: subprocess.Popen[bytes] | None = None) -> Any:
    """The first true value of what must happen; a test that waits in vain fails by pytest's time limit."""
    while not (value := condition()):
        assert sweep is None or sweep.poll() is None, run.told()
        time.sleep(0.1)
    return value


def end(process: subprocess.Popen[bytes], number: int = signal.SIGTERM) -> int:
    """Signal one process, not its group; its exit code."""
    process.send_signal(number)
    return process.wait()
