"""The flags that a version of a service knows, and their spelling on its command line."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from packaging.version import Version

from berth._schema import nearest
from berth.errors import BerthError


@dataclass(frozen=True)
class Span:
    """Versions from `since` on and before `until`; an empty text leaves that end open."""

    since: str = ""
    until: str = ""

    def has(self, version: str) -> bool:
        """Whether a version lies in the span."""
        at = Version(version)
        return (not self.since or at >= Version(self.since)) and (not self.until or at < Version(self.until))

    def __str__(self) -> str:
        words = [f"since {self.since}"] if self.since else []
        return " ".join([*words, f"until {self.until}"] if self.until else words) or "in every version"


@dataclass(frozen=True)
class Flag:
    """One flag: `value` is --x=V, `list` is --x A B, `switch` is --x or nothing, `toggle` is --x or --no-x."""

    name: str
    kind: Literal["value", "list", "switch", "toggle"]
    span: Span


def known_flag(flags: tuple[Flag, ...], name: str, version: str, *, notes: dict[str, str], where: str) -> Flag:
    """The flag of this name in this version.

    Raises:
        BerthError: no version has it, or this one does not; says which do and what to use instead.
    """
    same = [flag for flag in flags if flag.name == name]
    for flag in same:
        if flag.span.has(version):
            return flag
    note = f" {notes[name]}" if name in notes else ""
    if same:
        spans = ", ".join(str(flag.span) for flag in same)
        raise BerthError(f'{where}: version {version} does not know the flag "{name}" ({spans}).{note} Remove it.')
    names = sorted({flag.name for flag in flags if flag.span.has(version)})
    raise BerthError(
        f'{where}: no version knows the flag "{name}".{nearest(name, names)}{note} '
        "Write flags without leading dashes, as the service's own help spells them; "
        "a flag that the recipe lacks is added to its `flags`."
    )


def spell(flag: Flag, value: Any, where: str) -> list[str]:
    """The tokens of a flag with its value; none where the value says that it is not given.

    Raises:
        BerthError: the value does not suit the kind of flag.
    """
    if flag.kind in ("switch", "toggle"):
        if not isinstance(value, bool):
            raise BerthError(f"{where}: {flag.name}: {value!r} is not allowed. Use true or false.")
        if value:
            return [f"--{flag.name}"]
        return [f"--no-{flag.name}"] if flag.kind == "toggle" else []
    if flag.kind == "list":
        values = value if isinstance(value, list) else [value]
        if not values:
            raise BerthError(f"{where}: {flag.name}: an empty list is not allowed. Use null to remove the flag.")
        texts = [_text(item) for item in values]
        return [f"--{flag.name}={texts[0]}"] if len(texts) == 1 else [f"--{flag.name}", *texts]
    if isinstance(value, bool):
        raise BerthError(f"{where}: {flag.name}: {str(value).lower()} is not allowed; this flag takes a value.")
    return [f"--{flag.name}={_text(value)}"]


def _text(value: Any) -> str:
    if isinstance(value, dict | list):
        return json.dumps(value, separators=(",", ":"), allow_nan=False)
    return str(value)
