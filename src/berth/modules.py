"""Environment modules of a site (Lmod or Environment Modules), as the environment that they leave behind."""

from __future__ import annotations

import socket
import subprocess
from typing import TYPE_CHECKING

from berth.errors import BerthError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# `module` is a function of login shells. What a profile prints comes before the first NUL.
_LOAD = 'module load "$@" >&2 || exit 1; printf "\\0"; exec env --null'
_LIMIT_S = 120.0
_SHELLS_OWN = frozenset({"_", "SHLVL", "PWD", "OLDPWD"})


def load_argv(modules: Sequence[str]) -> list[str]:
    """The command that prints, after a NUL, the environment with these modules loaded, each variable ended by a NUL."""
    return ["bash", "--login", "-c", _LOAD, "bash", *modules]


def with_modules(modules: Sequence[str], environ: Mapping[str, str], *, where: str) -> dict[str, str]:
    """An environment with these modules loaded, in this order. Without modules it is `environ` itself.

    `where` is the file and key that an error names.

    Raises:
        BerthError: there is no `module` command on this node, or a module cannot be loaded.
    """
    if not modules:
        return dict(environ)
    try:
        done = subprocess.run(
            load_argv(modules),
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BerthError(f"{where}: the modules could not be loaded: {error}.") from None
    if done.returncode != 0:
        said = (done.stderr.decode(errors="replace").strip() or "it does not say why").splitlines()[-1]
        raise BerthError(
            f"{where}: {' '.join(modules)}: cannot be loaded on {socket.gethostname()}: {said}. "
            "Correct the names (`module avail` in a job lists them), or remove the key where the site has no modules."
        )
    entries = done.stdout.partition(b"\0")[2].split(b"\0")
    found = (entry.decode(errors="surrogateescape").partition("=") for entry in entries if b"=" in entry)
    return {name: value for name, _, value in found if name not in _SHELLS_OWN}
