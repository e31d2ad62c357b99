"""A copy of the workflow in a folder of its own, with a small benchmark, and the real Snakemake on it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import yaml
from loaded_snakemake import Forked, run_loaded, start_loaded

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("Snakefile", "environment.yml", "workflow", "config", "profiles", "src", "data")
LEVELS = (1, 2, 4)
BENCHMARK = {
    "dataset": "sharegpt-like-short",
    "num_prompts": 16,
    "seed": 12345,
    "concurrency": list(LEVELS),
    "warm_up_prompts": 8,
    # Points of two seconds are enough to test the workflow; they say nothing about the machine.
    "validity": {"min_duration_s": 0.2, "min_concurrency_fraction": 0.5},
}


@dataclass(frozen=True)
class Workspace:
    """One checkout-like folder with its own results."""

    path: Path

    @classmethod
    def create(cls, path: Path) -> Workspace:
        """A fresh copy of the sources, with one experiment of one run and three short points."""
        path.mkdir(parents=True)
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, path / name, ignore=shutil.ignore_patterns("*.egg-info"))
            else:
                shutil.copy2(source, path / name)
        self = cls(path)
        (path / "config/datasets/sharegpt-like-short.yaml").write_text(
            "source: generate\ncount: 400\nseed: 0\nscale: 0.2\n"
        )
        self.configure(
            lambda config: (
                config["benchmarks"].update(demo=dict(BENCHMARK)),
                config["experiments"]["local"].update(runs=1),
                config.update(sweep={"stop_grace_s": 5, "stall_s": 120, "point_stall_s": 30}),
            )
        )
        return self

    def clone(self, path: Path) -> Workspace:
        """A copy of everything, results and Snakemake's own records included, with the time stamps kept."""
        shutil.copytree(self.path, path, symlinks=True)
        return Workspace(path)

    def configure(self, change: Callable[[dict[str, Any]], Any]) -> None:
        """Edit config/config.yaml."""
        file = self.path / "config/config.yaml"
        config = yaml.safe_load(file.read_text())
        change(config)
        file.write_text(yaml.safe_dump(config, sort_keys=False))

    def command(self, *arguments: str) -> list[str]:
        """The real command line of a user."""
        return [str(Path(sys.executable).with_name("snakemake")), "--profile", "profiles/local", *arguments]

    def environment(self, **changes: str) -> dict[str, str]:
        """The environment of a run: this copy's src goes before the installed one."""
        # Set and empty: every job imports a hundred modules, which are compiled once.
        own = {"PYTHONPATH": str(self.path / "src"), "PYTHONDONTWRITEBYTECODE": "", "NO_COLOR": "1"}
        return {**os.environ, **own, **changes}

    def run(self, *arguments: str, code: int | None = 0, **environment: str) -> str:
        """Run Snakemake to its end; its output. Fails when the exit code is another than expected (None: any)."""
        environ = self.environment(**environment)
        if words := self._forkable(arguments, environment):
            ended, output = run_loaded(words, self.path, environ)
        else:
            done = subprocess.run(
                self.command(*arguments),
                cwd=self.path,
                env=environ,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
            ended, output = done.returncode, done.stdout
        if code is not None:
            assert ended == code, f"exit code {ended}, expected {code}:\n{output[-8000:]}"
        return output

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[bytes] | Forked:
        """Start Snakemake in a session of its own; its output goes to run.log in the workspace."""
        environ = self.environment(**environment)
        with (self.path / "run.log").open("ab") as log:
            if words := self._forkable(arguments, environment):
                return start_loaded(words, self.path, environ, Path(log.name), session=True)
            return subprocess.Popen(
                self.command(*arguments),
                cwd=self.path,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _forkable(self, arguments: tuple[str, ...], environment: dict[str, str]) -> list[str]:
        """The words after `snakemake` where a fork can be what the command would be, else []."""
        program, *words = self.command(*arguments)
        # What Python itself reads at its start is nothing that a fork could be told.
        told = not any(name.startswith("PYTHON") for name in environment)
        return words if Path(program).name == "snakemake" and told else []

    def planned(self, *arguments: str, **environment: str) -> dict[str, int]:
        """What `snakemake -n` lists: the number of jobs by rule; empty where nothing is to be done."""
        output = self.run("-n", *arguments, **environment)
        if "Nothing to be done" in output:
            return {}
        table = output[output.index("Job stats:") :]
        return {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", table, re.MULTILINE)}

    def points(self) -> dict[str, Path]:
        """Records in results by key."""
        return self._records("points")

    def spooled(self) -> dict[str, Path]:
        """Records in the spool by key."""
        return self._records("spool")

    def failures(self) -> dict[str, Path]:
        """Records of failures by key."""
        return self._records("failures")

    def _records(self, kind: str) -> dict[str, Path]:
        folder = self.path / "results" / kind
        return {
            path.relative_to(folder).as_posix().removesuffix(".json"): path
            for path in sorted(folder.glob("*/*/*/run*/c*.json"))
        }

    def snapshot(self) -> dict[str, tuple[bytes, int]]:
        """Bytes and time stamp of every file of a point."""
        folder = self.path / "results/points"
        return {
            path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
            for path in sorted(folder.rglob("c*.*"))
        }

    def processes(self) -> list[psutil.Process]:
        """Living processes that this workspace started: by their working directory, command line or log."""
        mine = []
        for process in psutil.process_iter():
            try:
                if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                    continue
                if str(self.path) in " ".join(process.cmdline()) or process.cwd().startswith(str(self.path)):
                    mine.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return mine

    def leave_nothing(self) -> None:
        """Return when no process of this workspace lives; one that does is ended, and told."""
        left = self.processes()
        for process in left:
            process.kill()
        assert not left, f"left behind: {left}"

    def servers(self) -> list[psutil.Process]:
        """Living vLLM servers of this workspace."""
        return [
            process
            for process in self.processes()
            if "serve" in (words := words_of(process)[:4]) and "bench" not in words
        ]

    def kill_session(self, process: subprocess.Popen[bytes] | Forked, number: int = signal.SIGKILL) -> None:
        """Signal one process, not its group, and reap it."""
        process.send_signal(number)
        process.wait()


def words_of(process: psutil.Process) -> list[str]:
    """The command line of a process, [] where it has ended since it was found."""
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def parent_of(process: psutil.Process) -> int | None:
    """The number of a process's parent, None where it has ended since it was found."""
    try:
        return process.ppid()
    except psutil.NoSuchProcess:
        return None


def levels_of(records: dict[str, Path]) -> list[int]:
    """The concurrency of records, in order."""
    return sorted(int(key.rpartition("/c")[2]) for key in records)


def run_log(workspace: Workspace) -> str:
    """What the Snakemake runs that were started, not run, have printed."""
    path = workspace.path / "run.log"
    return path.read_text() if path.exists() else ""


def point_starts(workspace: Workspace, level: int) -> bool:
    """Whether a level is being measured, or was."""
    return f"concurrency {level}: point" in run_log(workspace)


def wait_until(condition: Callable[[], Any], what: str, limit_s: float = 900.0) -> Any:
    """The first true value of a condition. The limit is a safeguard against a hanging test, not a measurement."""
    begin = time.monotonic()
    while (waited_s := time.monotonic() - begin) < limit_s:
        if value := condition():
            return value
        # Most conditions look at every process: after a while that costs more than a later answer.
        time.sleep(min(0.25, 0.05 + waited_s / 50))
    raise AssertionError(f"{what}: not within {limit_s:.0f} s")
