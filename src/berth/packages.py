"""Locked packages into a Python environment: uv installs them, from where pip is told that packages come from.

pip took most of a minute of computing for each environment to choose among the files of indexes that a lock has chosen
from already. What sites set is for pip, though (pip.conf, PIP_INDEX_URL and the like), and uv reads none of it; so pip
says what it is, and uv is told in its own variables (https://docs.astral.sh/uv/reference/environment/).
"""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from berth.errors import BerthError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from berth.pins import Lock

# torch imports it, and Python 3.11 put one into every environment, so that locks were made without. In the version that
# vLLM 0.32.0 asks for; no pin of the lock, because the digest of its pins is part of what was measured with them.
_BESIDE_TORCH = "setuptools==78.1.1"

# pip's options, and the variables in which uv takes the same.
_VARIABLES = {
    "index-url": ("UV_DEFAULT_INDEX",),
    "extra-index-url": ("UV_INDEX",),
    "find-links": ("UV_FIND_LINKS",),
    "no-index": ("UV_NO_INDEX",),
    "cert": ("SSL_CERT_FILE",),
    "client-cert": ("SSL_CLIENT_CERT",),
    "trusted-host": ("UV_INSECURE_HOST",),
    "proxy": ("HTTP_PROXY", "HTTPS_PROXY"),
    "default-timeout": ("UV_HTTP_TIMEOUT",),
    "timeout": ("UV_HTTP_TIMEOUT",),
    "retries": ("UV_HTTP_RETRIES",),
}
# uv divides these by commas where pip has spaces or lines.
_BY_COMMAS = {"UV_FIND_LINKS"}
# A variable of pip's says more than its configuration, and what is set for one command more than what is for all.
_ORDER = ("global", "download", "install", ":env:")


def uv_program() -> Path:
    """uv, beside the Python that runs this or on PATH.

    Raises:
        BerthError: there is none.
    """
    beside = Path(sys.executable).with_name("uv")
    found = beside if beside.exists() else shutil.which("uv")
    if not found:
        raise BerthError(
            f"uv is neither beside {sys.executable} nor on PATH; environments are made with it. Install it with "
            "`pip install uv`, or from conda-forge."
        )
    return Path(found)


def install_command(python: Path, *arguments: str) -> list[str]:
    """The command that installs packages, as `uv pip install` names them, into the environment of `python`."""
    return [str(uv_program()), "pip", "install", "--python", str(python), *arguments]


def beside(lock: Lock) -> list[str]:
    """What an environment needs beside the pins of its lock."""
    return [_BESIDE_TORCH] if lock.has("torch") and not lock.has("setuptools") else []


def install_env(environ: Mapping[str, str], cache_dir: Path) -> dict[str, str]:
    """What is added to an environment for install_command: pip's settings as uv's, and where uv keeps what it unpacked.

    What is set for uv itself stays.
    """
    # Beside the environments, which share its files; in a home directory each would be there twice.
    wanted = {"UV_CACHE_DIR": str(cache_dir / "uv"), "UV_NO_PROGRESS": "1", "UV_PYTHON_DOWNLOADS": "never"}
    # Of all indexes, as pip does: a lock says which version it is.
    wanted |= {"UV_INDEX_STRATEGY": "unsafe-best-match", "UV_SYSTEM_CERTS": "1"}
    return {k: v for k, v in {**wanted, **uv_settings(_pip_settings(environ))}.items() if not environ.get(k)}


def uv_settings(listed: str) -> dict[str, str]:
    """What is to be set for uv by what `pip config list` printed, NAME='VALUE' a line."""
    settings: dict[str, dict[str, str]] = {section: {} for section in _ORDER}
    for line in listed.splitlines():
        name, equals, value = line.partition("=")
        section, _, option = name.rpartition(".")
        if equals and section in settings and option in _VARIABLES:
            settings[section][option] = str(ast.literal_eval(value))
    found = {}
    for section in _ORDER:
        for option, value in settings[section].items():
            for variable in _VARIABLES[option]:
                found[variable] = ("," if variable in _BY_COMMAS else " ").join(value.split())
    return found


def _pip_settings(environ: Mapping[str, str]) -> str:
    """What the pip of this Python prints of its settings, "" where there is no pip, as with conda it may be."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=dict(environ), check=False
    )
    return done.stdout if done.returncode == 0 else ""


def install_lock(python: Path, lock: Path, cache_dir: Path, *, hashes: bool) -> None:
    """Install all of a lock into the environment of `python`; `hashes` says that the lock has them.

    Raises:
        subprocess.CalledProcessError: with what uv printed.
    """
    environ = {**os.environ, **install_env(os.environ, cache_dir)}
    checked = ["--require-hashes"] if hashes else []
    command = install_command(python, "--no-deps", *checked, "--requirement", str(lock))
    subprocess.run(command, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
