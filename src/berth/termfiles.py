"""What a keeper and the jobs of its deployment tell each other, in files that both see.

results/services/{platform}/{deployment}/tN.order.json is written by the keeper, tN.json by the job of term N. A term is
one server in one job. Files and no signals, because they are the same on every scheduler, and stay when one side is
gone. Neither holds a secret.
"""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from berth.errors import BerthError
from berth.fsio import write_json, write_text
from berth.holder import Identity, Leftover

if TYPE_CHECKING:
    from pathlib import Path

_NAME = re.compile(r"t([0-9]+)\.(?:order\.)?json")
# Reports of ended terms that are kept: they say what a killed job left on its node.
_KEPT = 50

ReportState = Literal["starting", "ready", "draining", "ended"]


@dataclass(frozen=True)
class Order:
    """What a term is told: that it is wanted, or that it is to drain and end.

    `launcher` is the process that submits its job, `submitted` when it was started; `until` is when the term ends by
    itself, should there be no keeper. Both times are seconds since the epoch.
    """

    number: int
    key_file: str
    scheduler: str
    submitted: float
    launcher: dict[str, Any]
    until: float | None = None
    stop: bool = False


@dataclass(frozen=True)
class Failure:
    """A server that failed inside a job: when it answered last (or failed, if it never did), and why."""

    at: float
    kind: str
    cause: str
    remedy: str


@dataclass(frozen=True)
class Report:
    """What a term tells. Times are seconds since the epoch, on the clock of its node.

    `at` is when it was written, `ready_at` when the present server became ready (0: it is not yet), `answered` when it
    last answered. `kind`, `cause` and `remedy` say why it ends. `failures` are servers of the same job before it.
    `token`, `podman` and `shared_memory` say what is left of it, should everything of its job be killed.
    """

    number: int
    state: ReportState
    job_id: str
    identity: dict[str, Any]
    token: str
    at: float
    started: float
    host: str = ""
    address: str = ""
    port: int = 0
    ready_at: float = 0.0
    answered: float = 0.0
    ends: float | None = None
    kind: str = ""
    cause: str = ""
    remedy: str = ""
    failures: tuple[Failure, ...] = ()
    podman: tuple[str, ...] = ()
    shared_memory: dict[str, int] = field(default_factory=dict)
    cleaned: bool = False

    @property
    def process(self) -> Identity:
        """The process of the term."""
        return Identity.from_json(self.identity)

    @property
    def leftover(self) -> Leftover:
        """What it leaves when it is killed.

        Raises:
            ValueError: the file names something else than Podman to be run.
        """
        value = {name: getattr(self, name) for name in ("identity", "token", "shared_memory", "podman")}
        return Leftover.from_json(value)


class TermFiles:
    """The files of all terms of one deployment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def unserve(self) -> Path:
        """The file by which a keeper is asked to take everything down."""
        return self.folder / "unserve"

    @classmethod
    def of(cls, results: Path, platform: str, deployment: str) -> TermFiles:
        """Those of a deployment."""
        return cls(results / "services" / platform / deployment)

    def order(self, number: int) -> Order | None:
        """The order of a term; None where it is not wanted (any more).

        Raises:
            BerthError: the file is damaged.
        """
        value = _read(self.folder / f"t{number}.order.json")
        return None if value is None else Order(**value)

    def report(self, number: int) -> Report | None:
        """What a term told last; None before it told anything.

        Raises:
            BerthError: the file is damaged.
        """
        value = _read(self.report_path(number))
        if value is None:
            return None
        failures = tuple(Failure(**each) for each in value.pop("failures"))
        return Report(**{**value, "failures": failures, "podman": tuple(value["podman"])})

    def report_path(self, number: int) -> Path:
        """The report of a term; its time stamp moves as long as the job lives."""
        return self.folder / f"t{number}.json"

    def give(self, order: Order) -> None:
        """Write an order."""
        write_json(self.folder / f"t{order.number}.order.json", asdict(order))

    def tell(self, report: Report) -> None:
        """Write a report."""
        write_json(self.report_path(report.number), asdict(report))

    def settle(self, number: int) -> None:
        """Take back the order of a term that has ended, and remove what only it needed."""
        (self.folder / f"t{number}.order.json").unlink(missing_ok=True)
        # A job makes its marker after it has told its end, so that the last one goes with the next.
        for marker in self.folder.glob("t*.done"):
            marker.unlink(missing_ok=True)
        for old in self.reported()[:-_KEPT]:
            self.report_path(old).unlink(missing_ok=True)

    def ordered(self) -> list[int]:
        """Numbers of the terms that were ordered and are not settled."""
        return sorted(number for number, path in self._files() if path.name.endswith(".order.json"))

    def reported(self) -> list[int]:
        """Numbers of the terms that told something."""
        return sorted(number for number, path in self._files() if not path.name.endswith(".order.json"))

    def take_number(self) -> int:
        """A number that no term had and none will have; only the holder of the lease asks for one.

        A term that never told anything leaves no file, but a log and perhaps a lock of Snakemake's.
        """
        path = self.folder / "last"
        last = int(path.read_text()) if path.exists() else 0
        number = max([last, *(number for number, _ in self._files())]) + 1
        write_text(path, f"{number}\n")
        return number

    def _files(self) -> list[tuple[int, Path]]:
        with contextlib.suppress(FileNotFoundError):
            return [(int(match[1]), path) for path in self.folder.iterdir() if (match := _NAME.fullmatch(path.name))]
        return []


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise BerthError(f"{path}: cannot be read ({error}). Take the deployment down with unserve.") from None
    return value
