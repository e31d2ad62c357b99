"""A private Slurm for tests, and a workspace whose sweeps run on it with the settings of profiles/hops."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import yaml
from shared_starts import share_starts
from standin import set_standin, stage_standin
from workspace import Workspace, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = ["set_standin", "wait_until"]
HERE = Path(__file__).resolve().parent
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
INSTALL = "Debian: apt-get install --no-install-recommends slurmctld slurmd slurm-client munge"
_PORTS = 20


def missing_programs(*names: str) -> list[str]:
    """Programs that are not installed."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    return [name for name in names if shutil.which(name, path=path) is None]


@contextlib.contextmanager
def folder_for_slurm() -> Iterator[Path]:
    """A folder for a cluster. It is not pytest's own, which is closed to others: munge refuses that."""
    with tempfile.TemporaryDirectory(prefix="berth-slurm-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def free_ports() -> int:
    """The first of a row of ports that nobody listens on."""
    for base in range(24000 + os.getpid() % 100 * 20, 30000, _PORTS):
        for port in range(base, base + _PORTS):
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError:
                    break
        else:
            return base
    raise AssertionError("no free ports")


@dataclass(frozen=True)
class Slurm:
    """A running cluster in a folder."""

    path: Path

    @classmethod
    def start(cls, path: Path, *, nodes: int = 4, accounting: bool = False, owner: int | None = None) -> Slurm:
        """Bring it up, with four GPUs on each node; it goes when its owner (this process) has gone."""
        environment = {**os.environ, "SLURM_BASE_PORT": str(free_ports()), "WITH_DBD": str(int(accounting))}
        environment["SLURM_OWNER"] = str(os.getpid() if owner is None else owner)
        environment["PATH"] += ":/usr/sbin:/sbin"
        subprocess.run([HERE / "up.sh", path, str(nodes), "4"], env=environment, check=True)
        return cls(path)

    def stop(self) -> None:
        """Cancel every job and stop every daemon."""
        subprocess.run([HERE / "down.sh", self.path], check=True)

    @property
    def environment(self) -> dict[str, str]:
        """What a user of this cluster has in the environment."""
        return {"PATH": f"{self.path / 'bin'}:{os.environ['PATH']}", "SLURM_CONF": str(self.path / "conf/slurm.conf")}

    def __call__(self, *command: str) -> str:
        """The output of one of Slurm's commands."""
        done = subprocess.run(
            [str(self.path / "bin" / command[0]), *command[1:]], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def jobs(self) -> dict[int, str]:
        """Ids of the jobs that wait or run, by the number of their run; a sweep's comment names its wildcards."""
        listed = self("squeue", "--noheader", "--states=pending,running", "--format=%i|%k")
        found = {}
        for job, comment in (line.split("|") for line in listed.split()):
            # The wildcards in the rule's order: experiment, platform, spec, run, attempt, part.
            match = re.search(r"_[0-9a-f]{10}_([0-9]+)_", comment)
            assert match, comment
            found[int(match[1])] = job
        return found

    def times_of(self, job: str) -> tuple[str, str]:
        """When a job started and ended; Slurm writes times so that they sort."""
        shown = self("scontrol", "show", "job", job)
        start, end = (re.search(rf"\b{word}Time=(\S+)", shown)[1] for word in ("Start", "End"))  # type: ignore[index]
        return start, end

    def shorten(self, job: str) -> None:
        """Give a job one minute in all, the least that Slurm knows."""
        self("scontrol", "update", f"JobId={job}", "TimeLimit=1")

    def node_of(self, job: str) -> str:
        """The node on which a job runs."""
        return self("squeue", "--noheader", f"--jobs={job}", "--format=%N").strip()

    def kill_node(self, node: str, job: str) -> None:
        """End the slurmd of a node and every process of its job as a loss of power does: at once, and unheard."""
        script = f"{self.path}/spool/{node}/job{int(job):05d}/slurm_script"
        shells = [process for process in psutil.process_iter(["cmdline"]) if script in (process.info["cmdline"] or [])]
        # The script's parent is Slurm's own process for the job, and everything in the job descends from it.
        step = next(parent for shell in shells if (parent := shell.parent()) and script not in parent.cmdline())
        daemon = psutil.Process(int((self.path / "pid" / f"slurmd-{node}").read_text()))
        for process in [daemon, step, *step.children(recursive=True)]:
            # One that lost its parent may be gone by itself.
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)

    def revive_node(self, node: str) -> None:
        """Start a node's slurmd again, and wait until the node takes jobs."""
        environment = {**os.environ, **self.environment, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
        start = f"setsid slurmd -D -N {node} >>log/slurmd-{node}.out 2>&1 </dev/null & echo $! >pid/slurmd-{node}"
        subprocess.run(["sh", "-c", start], cwd=self.path, env=environment, check=True)
        wait_until(lambda: self("sinfo", "-h", "-N", "-n", node, "-o", "%t").strip() == "idle", f"{node} idle")


@dataclass(frozen=True)
class SlurmWorkspace(Workspace):
    """A workspace with profiles/hops on a private cluster."""

    cluster: Slurm | None = None

    @classmethod
    def on(cls, cluster: Slurm, path: Path) -> SlurmWorkspace:
        """A fresh copy of the sources, where the platform hops is the private cluster."""
        self = cls(Workspace.create(path).path, cluster)
        self.change_profile(
            # The private cluster keeps no accounting, and its jobs take seconds.
            **{"slurm-status-command": "squeue", "slurm-init-seconds-before-status-checks": 5, "latency-wait": 15}
        )
        self.change_platform(
            runtime="process",
            paths={"models": "results/staged", "scratch": "results/scratch"},
            store={"kind": "embedded", "bucket": "models"},
            server={"host": "127.0.0.1", "ports": [18000, 18999]},
        )
        return self

    def change_profile(self, **changes: Any) -> None:
        """Set keys of profiles/hops/config.yaml, a user's overlay; None removes one."""
        _edit(self.path / "profiles/hops/config.yaml", changes)

    def change_platform(self, **changes: Any) -> None:
        """Set keys of config/platforms/hops.yaml."""
        _edit(self.path / "config/platforms/hops.yaml", changes)

    def change_queue(self, **changes: Any) -> None:
        """Set keys of the section `slurm` there."""
        path = self.path / "config/platforms/hops.yaml"
        value = yaml.safe_load(path.read_text())
        value["slurm"].update(changes)
        path.write_text(yaml.safe_dump(value))

    def use_vllm(self, *, runs: int, levels: Sequence[int] = (1, 2)) -> None:
        """Let the experiment `local` run on the cluster, with the real vLLM on the CPU."""
        self.change_platform(accelerator={"kind": "cpu", "name": "CPU", "per_node": 1})
        share_starts(self.path / "results/scratch")

        def change(config: dict[str, Any]) -> None:
            config["deployments"] = {"tiny-local": {**config["deployments"]["tiny-local"], "platform": "hops"}}
            config["benchmarks"]["demo"].update(concurrency=list(levels))
            config["experiments"] = {"local": {**config["experiments"]["local"], "runs": runs}}

        self.configure(change)

    def command(self, *arguments: str) -> list[str]:
        """The command line of a user of the cluster."""
        return [str(Path(sys.executable).with_name("snakemake")), "--profile", "profiles/hops", *arguments]

    def environment(self, **changes: str) -> dict[str, str]:
        """The environment of a user of the cluster."""
        assert self.cluster
        return super().environment(**self.cluster.environment, **changes)

    def output(self) -> str:
        """What the runs that were started in the background have printed."""
        return (self.path / "run.log").read_text()


def _edit(path: Path, changes: dict[str, Any]) -> None:
    value = yaml.safe_load(path.read_text())
    value.update(changes)
    path.write_text(yaml.safe_dump({key: each for key, each in value.items() if each is not None}, sort_keys=False))


def by_run(records: Iterable[str]) -> dict[int, list[int]]:
    """Levels by run, from keys of points."""
    found: dict[int, list[int]] = {}
    for key in records:
        run, level = re.search(r"/run(\d+)/c(\d+)$", key).groups()  # type: ignore[union-attr]
        found.setdefault(int(run), []).append(int(level))
    return {run: sorted(levels) for run, levels in found.items()}


def servers(workspace: SlurmWorkspace, after: float = 0.0) -> list[list[str]]:
    """Command lines of the servers and clients of the stand-in that run, and were started after a time."""
    found = []
    for process in workspace.processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            if str(workspace.path / "standin/bin/vllm") in process.cmdline() and process.create_time() > after:
                found.append(process.cmdline())
    return found


def in_second_point(workspace: SlurmWorkspace, runs: Iterable[int], after: float = 0.0) -> bool:
    """Whether the second point of each of these runs is being measured."""
    busy = {
        int(run)
        for command in map(" ".join, servers(workspace, after))
        if "--max-concurrency 2 " in command
        for run in re.findall(r"/run(\d+)", command)
    }
    return busy >= set(runs)


@contextlib.contextmanager
def started(workspace: SlurmWorkspace) -> Iterator[subprocess.Popen[bytes]]:
    """Snakemake in the background; it and what it printed are shown when the block fails."""
    running = workspace.start("points")
    try:
        yield running
    except BaseException:
        print(workspace.output()[-6000:])
        raise
    finally:
        running.kill()
        running.wait()


def use_standin(
    workspace: Workspace, runs: int, levels: list[int], platform: str = "hops", accelerators: int = 4
) -> None:
    """Let the experiment `local` run on the cluster with the stand-in for vLLM, on four GPUs of a node.

    With `platform` local it runs on this machine. What staging would have brought stands there with its receipts.
    """
    stage_standin(workspace, platform)

    def change(config: dict[str, Any]) -> None:
        config["deployments"]["tiny-local"].update(platform=platform, tensor_parallel=accelerators)
        config["benchmarks"]["demo"].update(num_prompts=8, concurrency=levels, warm_up_prompts=0)
        config["experiments"] = {"local": {**config["experiments"]["local"], "runs": runs}}
        config["sweep"] = {**config["sweep"], "client_mode": "process", "stop_grace_s": 3, "point_stall_s": 600}

    workspace.configure(change)
