"""A real hub server (olah, PyPI) on loopback, with real git repositories behind it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import filelock
from locked_environment import make_environment

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

VERSION = "0.5.4"
LOCK = Path(__file__).parents[1] / "locks" / "olah.lock"
_START_TIMEOUT_S = 60


class OlahMissingError(Exception):
    """Why there is no hub server here."""


def olah_python() -> Path:
    """The Python of olah's own environment, which is built once in the cache and then reused.

    The cache is $BERTH_CACHE or ~/.cache/berth. Raises OlahMissingError where it cannot be built.
    """
    cache = Path(os.environ.get("BERTH_CACHE") or Path.home() / ".cache" / "berth")
    root = cache / f"olah-{VERSION}"
    python, marker = root / "bin" / "python", root / ".berth-lock-sha256"
    wanted = hashlib.sha256(LOCK.read_bytes() + sys.version.encode()).hexdigest()
    cache.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(cache / f"olah-{VERSION}.lock"):
        if marker.exists() and marker.read_text() == wanted and python.exists():
            return python
        shutil.rmtree(root, ignore_errors=True)
        try:
            make_environment(root, LOCK)
        except subprocess.CalledProcessError as error:
            shutil.rmtree(root, ignore_errors=True)
            detail = str(error.stderr or error).strip().splitlines()[-3:]
            raise OlahMissingError(f"olah {VERSION} could not be installed (olah.lock): {detail}") from error
        marker.write_text(wanted)
        return python


def git(folder: Path, *arguments: str) -> str:
    """The output of git, untouched by the user's configuration, with a fixed author and date."""
    fixed = {
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_SYSTEM": os.devnull,
        "GIT_AUTHOR_DATE": "2025-01-01T00:00:00Z",
        "GIT_COMMITTER_DATE": "2025-01-01T00:00:00Z",
    }
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "init.defaultBranch=main"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | fixed).stdout.strip()


def lfs_object(repo: Path, sha256: str) -> Path:
    """Where git LFS keeps an object in a clone."""
    return repo / ".git" / "lfs" / "objects" / sha256[:2] / sha256[2:4] / sha256


def make_repo(repo: Path, files: Mapping[str, bytes], lfs: Mapping[str, bytes]) -> str:
    """Make a git clone as a hub has it (LFS files as pointers, their content beside) and return its commit."""
    repo.mkdir(parents=True)
    git(repo, "init", "-q")
    pointers = {}
    for path, content in lfs.items():
        sha256 = hashlib.sha256(content).hexdigest()
        target = lfs_object(repo, sha256)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(content)}\n"
        pointers[path] = pointer.encode()
    for path, content in {**files, **pointers}.items():
        (repo / path).parent.mkdir(parents=True, exist_ok=True)
        (repo / path).write_bytes(content)
    git(repo, "add", "-A")
    git(repo, "commit", "-q", "-m", "files")
    return git(repo, "rev-parse", "HEAD")


def remove_from(repo: Path, *paths: str) -> str:
    """Commit the removal of files or folders, and return the new commit."""
    git(repo, "rm", "-q", "-r", *paths)
    git(repo, "commit", "-q", "-m", "removed")
    return git(repo, "rev-parse", "HEAD")


def tamper_blob(repo: Path, path: str) -> None:
    """Change one byte of a committed file inside git's own object, which keeps its name and its size."""
    blob = git(repo, "rev-parse", f"HEAD:{path}")
    target = repo / ".git" / "objects" / blob[:2] / blob[2:]
    raw = bytearray(zlib.decompress(target.read_bytes()))
    raw[-1] ^= 1
    target.chmod(0o644)
    target.write_bytes(zlib.compress(bytes(raw)))


def tamper_lfs(repo: Path, sha256: str) -> None:
    """Change one byte of an LFS object, which keeps its name and its size."""
    raw = bytearray(lfs_object(repo, sha256).read_bytes())
    raw[len(raw) // 2] ^= 1
    lfs_object(repo, sha256).write_bytes(bytes(raw))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def olah(python: Path, mirrors: Path, work: Path, *, tls: tuple[Path, Path] | None = None) -> Iterator[str]:
    """A running olah that serves mirrors/{models,datasets}/ORG/NAME; yields its address."""
    port = free_port()
    work.mkdir(parents=True, exist_ok=True)
    certificate = f'ssl-key = "{tls[0]}"\nssl-cert = "{tls[1]}"\n' if tls else ""
    (work / "olah.toml").write_text(
        f'[basic]\nhost = "127.0.0.1"\nport = {port}\nrepos-path = "{work / "cache"}"\n'
        f'mirrors-path = ["{mirrors}"]\n{certificate}[accessibility]\noffline = true\n'
    )
    command = [str(python), "-m", "olah.server", "--config", "olah.toml", "--log-path", str(work / "logs")]
    with (work / "stdout").open("wb") as log:
        server = subprocess.Popen(command, cwd=work, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"olah did not start:\n{(work / 'stdout').read_text()[-2000:]}")
            time.sleep(0.1)
        yield f"{'https' if tls else 'http'}://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(timeout=20)
