"""Which manifest a model has: what most of the places that know it say, and who says otherwise."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclass
class Witnesses:
    """The SHA-256 of the manifest by who says it, and the manifests themselves by theirs."""

    says: dict[str, str] = field(default_factory=dict)
    texts: dict[str, bytes] = field(default_factory=dict)

    def heard(self, who: str, text: bytes) -> None:
        """Somebody has this manifest."""
        sha256 = hashlib.sha256(text).hexdigest()
        self.says[who] = sha256
        self.texts[sha256] = text

    def receipt(self, path: Path) -> str | None:
        """Add what a receipt says; a problem where it cannot be read."""
        try:
            self.says[str(path)] = str(json.loads(path.read_bytes())["manifest"]["sha256"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            return f"{path}: no readable receipt ({error})"
        return None

    def verdict(self) -> tuple[str | None, list[str]]:
        """The SHA-256 that most say, and who says otherwise."""
        counted = Counter(self.says.values()).most_common(2)
        if not counted:
            return None, []
        if len(counted) == 2 and counted[0][1] == counted[1][1]:
            return None, [f"{who} says {sha256}" for who, sha256 in self.says.items()]
        agreed = counted[0][0]
        return agreed, [
            f"{who}: SHA-256 {each} instead of {agreed}" for who, each in self.says.items() if each != agreed
        ]
