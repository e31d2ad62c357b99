"""One term as its keeper sees it, through files, the process that submits its job, and the scheduler."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from berth.checkup import ask
from berth.diagnose import read_log
from berth.errors import BerthError
from berth.holder import Identity
from berth.processes import start_ticks
from berth.schedulerjobs import cancel_command, how_ended, job_state, submitted_id
from berth.services import Instance, InstanceState

if TYPE_CHECKING:
    from pathlib import Path

    from berth.termfiles import Order, Report, TermFiles

logger = logging.getLogger(__name__)

_TAIL_LINES = 12
# What Snakemake prints after its own errors, which says nothing of the cause.
_NOISE = ("Shutting down", "Exiting because", "Complete log", "WorkflowError:")


@dataclass(frozen=True)
class End:
    """Why a term ended, and when it answered last; when it failed, if it never did."""

    at: float
    kind: str
    cause: str
    remedy: str = ""


class TermJob:
    """A term that was ordered. `silent_s` without a sign of life makes its keeper ask, `lost_s` makes it give it up."""

    def __init__(self, files: TermFiles, order: Order, log: Path, *, silent_s: float, lost_s: float) -> None:
        self.order = order
        self.report: Report | None = None
        self.end: End | None = None
        self.failures_taken = 0
        self._files = files
        self._log = log
        self._silent_s, self._lost_s = silent_s, lost_s
        self._job_id = ""
        self._beat = 0
        self._moved = time.monotonic()
        self._asked = time.monotonic()
        self._launching = True
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def number(self) -> int:
        """Its number; its id is t and the number."""
        return self.order.number

    @property
    def job_id(self) -> str:
        """The scheduler's id of its job, without a scheduler the process id; "" before it is known."""
        return self.report.job_id if self.report else self._job_id

    @property
    def ready(self) -> bool:
        """Whether its server answers."""
        return self.end is None and self.report is not None and self.report.state == "ready"

    @property
    def stopping(self) -> bool:
        """Whether it ends, or was told to."""
        return self.order.stop or (self.report is not None and self.report.state == "draining")

    @property
    def served_s(self) -> float:
        """Seconds for which its present server answered; 0 where it never did."""
        report = self.report
        return max(report.answered - report.ready_at, 0.0) if report and report.ready_at else 0.0

    def instance(self) -> Instance:
        """It as the service's file has it."""
        name, report = f"t{self.number}", self.report
        if report is None:
            return Instance(name, self.job_id, "queued", since=self.order.submitted)
        state: InstanceState = "draining" if self.stopping else "ready" if self.ready else "starting"
        ready = bool(report.ready_at)
        return Instance(
            id=name,
            job_id=report.job_id,
            state=state,
            host=report.host,
            address=report.address if ready else "",
            port=report.port if ready else 0,
            since=report.ready_at or report.started,
            ends=report.ends,
        )

    def launch(self, argv: list[str]) -> None:
        """Start the Snakemake that submits its job, in a session of its own: it outlives the keeper."""
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        pid = self._process.pid
        launcher = replace(Identity.current(), pid=pid, start_ticks=start_ticks(pid) or 0).as_json()
        self.order = replace(self.order, launcher=launcher)
        self._files.give(self.order)

    def stop(self) -> None:
        """Tell it to drain and to end."""
        if not self.order.stop:
            self.order = replace(self.order, stop=True)
            self._files.give(self.order)

    def look(self) -> None:
        """See what has changed; `end` is set when it is over."""
        if self.end:
            return
        with contextlib.suppress(BerthError, OSError):
            report = self._files.report(self.number)
            beat = self._files.report_path(self.number).stat().st_mtime_ns
            if report is not None and beat != self._beat:
                self.report, self._beat, self._moved = report, beat, time.monotonic()
        if not self._job_id:
            self._job_id = submitted_id(read_log(self._log))
        report = self.report
        if report is not None and report.state == "ended":
            self.end = self._end(report.kind, report.cause, report.remedy)
        elif self._gone():
            self._note_end()
        elif report is not None and self._silent() > self._lost_s:
            self.end = self._end(
                "node", f"Nothing was heard of its node for {self._lost_s:g} s.", "See whether it is up."
            )

    def cancel(self) -> None:
        """Have the scheduler end its job; on this machine, ask its process."""
        if self.order.scheduler != "local":
            if self.job_id:
                answer = ask(*cancel_command(self.order.scheduler, self.job_id))
                if not answer.good and job_state(self.order.scheduler, self.job_id) != "gone":
                    logger.warning("t%d: job %s: %s", self.number, self.job_id, answer.complaint)
            return
        process = self.report.process if self.report else self._launcher()
        if Identity.current().knows_dead(process) is False:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGTERM)

    @property
    def idle(self) -> bool:
        """Whether it waits in the queue or loads, so that no request can be in flight."""
        return self.report is None or self.report.state == "starting"

    def _silent(self) -> float:
        return time.monotonic() - self._moved

    def _launcher(self) -> Identity:
        return Identity.from_json(self.order.launcher)

    def _launcher_gone(self) -> bool:
        if self._process is not None:
            return self._process.poll() is not None
        return Identity.current().knows_dead(self._launcher()) is True

    def _gone(self) -> bool:
        """Whether its job is over, or was never submitted."""
        launching = not self._launcher_gone()
        if self.order.scheduler == "local" and self.report is not None:
            return Identity.current().knows_dead(self.report.process) is True
        if self.order.scheduler == "local" or not self.job_id:
            return not launching
        # A Snakemake that has ended is a reason to ask at once, but no proof: somebody may have killed it.
        at_once = self._launching and not launching
        self._launching = launching
        now = time.monotonic()
        if not at_once and (self._silent() < self._silent_s or now - self._asked < self._silent_s):
            return False
        self._asked = now
        return job_state(self.order.scheduler, self.job_id) == "gone"

    def _note_end(self) -> None:
        report = self.report
        # What it told last may have come after the last look.
        with contextlib.suppress(BerthError):
            report = self.report = self._files.report(self.number) or report
        if report is None and not self.job_id:
            self.end = self._end("submit", self._said(), f"Read {self._log}.")
        elif report is not None and report.kind:
            self.end = self._end(report.kind, report.cause, report.remedy)
        elif self.order.scheduler == "local":
            self.end = self._end("killed", "Its process was killed.", "See who killed it, and the kernel's log.")
        else:
            kind, cause = how_ended(self.order.scheduler, self.job_id)
            self.end = self._end(kind, cause, f"See the scheduler's accounting of job {self.job_id}, and {self._log}.")

    def _end(self, kind: str, cause: str, remedy: str) -> End:
        answered = self.report.answered if self.report and self.report.ready_at else 0.0
        return End(answered or time.time(), kind, cause, remedy)

    def _said(self) -> str:
        lines = [line.strip() for line in read_log(self._log).splitlines() if line.strip()]
        told = [line for line in lines if not line.startswith(_NOISE)][-_TAIL_LINES:]
        return "Its job was not submitted. Snakemake said: " + " | ".join(told)
