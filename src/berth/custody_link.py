"""One link of a chain of custody: what was compared, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

Verdict = Literal["ok", "broken", "not recorded", "cannot be checked"]

_NAMED = 20


@dataclass(frozen=True)
class Link:
    """A link: its name, what it joins, the verdict, and the reason in plain words."""

    name: str
    verdict: Verdict
    detail: str

    def __str__(self) -> str:
        """One line for people."""
        return f"{self.verdict.upper() if self.verdict == 'broken' else self.verdict:>17}  {self.name}: {self.detail}"

    def as_json(self) -> dict[str, str]:
        """The link in a report."""
        return {"link": self.name, "verdict": self.verdict, "detail": self.detail}


@dataclass(frozen=True)
class Chain:
    """The links of one model or of one point, from the hub on."""

    of: str
    links: list[Link] = field(default_factory=list)

    @property
    def broken(self) -> list[Link]:
        """Those that do not hold."""
        return [link for link in self.links if link.verdict == "broken"]

    def add(self, name: str, verdict: Verdict, detail: str) -> None:
        """One more link."""
        self.links.append(Link(name, verdict, detail))

    def compared(self, name: str, problems: Sequence[str], fine: str) -> None:
        """A link that holds where there are no problems."""
        self.add(name, "broken" if problems else "ok", named(problems) if problems else fine)

    def as_json(self) -> dict[str, Any]:
        """The chain in a report."""
        return {"of": self.of, "holds": not self.broken, "links": [link.as_json() for link in self.links]}


def named(problems: Sequence[str]) -> str:
    """Problems in one text, the first of many by name."""
    rest = len(problems) - _NAMED
    return "; ".join(problems[:_NAMED]) + (f"; and {rest} more" if rest > 0 else "")
