"""Keeps one deployment up: starts terms, moves the endpoint, drains, and starts again what has ended.

It holds the deployment's lease, so that there is one keeper at a time. Everything that it must know again after it was
killed is in files: orders and reports of the terms, and the service's own.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from berth import services
from berth.access import refresh
from berth.config import ServiceSettings
from berth.holder import Identity
from berth.servesettings import nested
from berth.services import Event, Service
from berth.signals import raise_if_asked
from berth.termfiles import Order, TermFiles
from berth.termjob import TermJob

if TYPE_CHECKING:
    from berth.lease import Lease
    from berth.servesettings import ServeRequest
    from berth.termjob import End

logger = logging.getLogger(__name__)

# Looks at a term's health that may stay away before the scheduler is asked for its job.
_CHECKS_MISSED = 3
_HISTORY = 500
# From the order to end until the scheduler is asked to cancel: the file must be seen, and the job end, too.
_STOP_MARGIN_S = 30.0
# From the cancellation until a job is given up: KillWait of Slurm is 30 s by default.
_CANCELLED_S = 90.0
# From the move of the endpoint until the server before it is told to end.
_SETTLE_S = 3.0
# Ends that are no failure: nothing was wrong with the server.
_PLANNED = ("replaced", "walltime", "stopped")
# Ends of the service itself: nothing is waited for after them.
_FINAL = ("unserve", "until", "restarts")


class Keeper:
    """The keeper of a deployment whose lease is held; adopt() before anything else."""

    def __init__(self, request: ServeRequest, held: Lease, key_file: str) -> None:
        self.request = request
        self.settings = ServiceSettings(**request.settings)
        self.results = Path(request.results)
        self.files = TermFiles.of(self.results, request.platform, request.deployment)
        self.terms: list[TermJob] = []
        self.service = Service(
            deployment=request.deployment,
            platform=request.platform,
            scheduler=request.scheduler,
            served_model=request.served_model,
            state="starting",
            key_file=key_file,
            until=request.until,
        )
        self._held = held
        self._written: Service | None = None
        self._current: int | None = None
        self._switched = time.monotonic()
        self._quick = 0
        self._start_after = 0.0
        self._start_s = request.start_s

    @property
    def logs(self) -> Path:
        """Where the logs of the deployment's terms are."""
        return self.results / "logs/serve" / self.request.platform / self.request.deployment

    def adopt(self) -> bool:
        """Take over what an earlier keeper has left; whether anything runs or waits."""
        before = services.read(self.results, self.request.platform, self.request.deployment)
        if before is not None:
            running = before.state != "ended"
            until = self.request.until or (before.until if running else None)
            self.service = replace(
                self.service,
                state=before.state if running else "starting",
                history=before.history,
                restarts=before.restarts if running else 0,
                until=until,
            )
            if running and before.endpoint is not None:
                ready = [each for each in before.instances if services.endpoint_of(each) == before.endpoint]
                self._current = int(ready[0].id[1:]) if ready else None
        for number in self.files.ordered():
            order = self.files.order(number)
            if order is None:
                continue
            if order.until != self.service.until:
                order = replace(order, until=self.service.until)
                self.files.give(order)
            self.terms.append(self._job(order))
        known = {event.at for event in self.service.history}
        for term in self.terms:
            term.look()
            # What failed while there was no keeper is told now.
            term.failures_taken = sum(each.at in known for each in term.report.failures) if term.report else 0
            logger.info("took over t%d, job %s", term.number, term.job_id or "(not submitted yet)")
        return bool(self.terms)

    def keep(self) -> str:
        """Keep the deployment up until it is to end; why it is to end: unserve, until or restarts.

        Raises:
            LeaseLost: another keeper has taken over.
            Terminated: this process is asked to end; what it started goes on.
        """
        while True:
            raise_if_asked()
            self._held.check()
            try:
                self.look()
                if why := self._why_end():
                    return why
                self._start_what_is_needed()
                self.publish()
            except OSError as error:
                # A disk that is full, or a file system that is away for a while: what serves goes on.
                logger.warning("%s; trying again", error)
            time.sleep(self.settings.poll_s)

    def look(self) -> None:
        """See what happened to the terms, and choose the endpoint."""
        for term in self.terms:
            term.look()
            for failure in term.report.failures[term.failures_taken :] if term.report else ():
                self._happened(term, Event(failure.at, term.job_id, failure.kind, failure.cause, failure.remedy))
                term.failures_taken += 1
                self.service = replace(self.service, restarts=self.service.restarts + 1)
        for term in [term for term in self.terms if term.end]:
            self._settle(term)
        self._choose()
        # Not at once: a request may be on its way to where its sender has just seen the endpoint.
        if self._current is not None and time.monotonic() - self._switched >= _SETTLE_S:
            for term in self.terms:
                if term.number < self._current:
                    term.stop()

    def take_down(self, kind: str, cause: str) -> None:
        """End every term: those that wait or load at once, the others when their requests are answered."""
        self._current = None
        self.publish()
        for term in self.terms:
            term.stop()
        jobs = " ".join(filter(None, (term.job_id for term in self.terms)))
        began = time.monotonic()
        patience_s = self.settings.drain_s + self.request.stop_grace_s + _STOP_MARGIN_S + self.settings.check_s
        asked: set[int] = set()
        while self.terms and time.monotonic() - began < patience_s + _CANCELLED_S:
            self._held.check()
            for term in self.terms:
                term.look()
                at_once = term.idle or time.monotonic() - began > patience_s
                if term.end is None and term.number not in asked and term.job_id and at_once:
                    asked.add(term.number)
                    term.cancel()
            for term in [term for term in self.terms if term.end]:
                self.files.settle(term.number)
                self.terms.remove(term)
                logger.info("t%d has ended", term.number)
            time.sleep(min(self.settings.poll_s, 1.0))
        for term in self.terms:
            logger.error("t%d, job %s, does not end; look at it yourself", term.number, term.job_id or "not known")
        self.service = self.service.with_event(Event(time.time(), jobs, kind, cause))
        self.service = replace(self.service, state="ended", instances=(), endpoint=None)
        self.publish()

    def publish(self) -> None:
        """Write the service's file where something changed, and let what follows it know."""
        if self.service.state != "ended":
            instances = tuple(term.instance() for term in self.terms)
            current = next((each for each in instances if each.id == f"t{self._current}"), None)
            endpoint = services.endpoint_of(current) if current else None
            never = self.service.state == "starting"
            state: services.State = "ready" if endpoint else "starting" if never else "down"
            self.service = replace(self.service, instances=instances, endpoint=endpoint, state=state)
        if self.service == self._written:
            return
        services.write(self.results, self.service)
        moved = self._written is None or self._written.endpoint != self.service.endpoint
        if moved or self._written is None or self._written.state != self.service.state:
            where = self.service.endpoint.base_url if self.service.endpoint else "no endpoint"
            logger.info("%s: %s, %s", self.request.deployment, self.service.state, where)
        self._written = self.service
        refresh(self.results, self.request.platform, self.request.deployment)

    def _job(self, order: Order) -> TermJob:
        silent_s = _CHECKS_MISSED * self.settings.check_s
        log = self.logs / f"t{order.number}.snakemake.log"
        return TermJob(self.files, order, log, silent_s=silent_s, lost_s=self.request.lease_stale_s)

    def _why_end(self) -> str:
        if self.files.unserve.exists():
            return "unserve"
        if self.service.until is not None and time.time() >= self.service.until:
            return "until"
        return "restarts" if self.service.restarts > self.settings.restarts else ""

    def _settle(self, term: TermJob) -> None:
        assert term.end
        end = term.end
        self.terms.remove(term)
        self.files.settle(term.number)
        taken_over = self._current is not None and self._current != term.number
        if term.order.stop and taken_over:
            cause = f"The time of its job was nearly over, and t{self._current} had taken over."
            self._happened(term, Event(end.at, term.job_id, "replaced", cause, outage_s=0.0))
            return
        if end.kind == "node":
            # Should its node come back, its server must not.
            term.cancel()
        self._happened(term, Event(end.at, term.job_id, end.kind, end.cause, end.remedy, 0.0 if taken_over else None))
        self._wait_after(term, end)

    def _wait_after(self, term: TermJob, end: End) -> None:
        if end.kind in _PLANNED:
            return
        self.service = replace(self.service, restarts=self.service.restarts + 1)
        self._quick = self._quick + 1 if term.served_s < self.settings.quick_s else 0
        if self._quick:
            wait_s = backoff_s(self._quick, self.settings)
            self._start_after = time.monotonic() + wait_s
            logger.warning("the next one is started in %g s: %d quick failure(s) in a row", wait_s, self._quick)

    def _happened(self, term: TermJob, event: Event) -> None:
        logger.warning("t%d, job %s: %s: %s", term.number, event.job_id or "none", event.kind, event.cause)
        if term.number == self._current and event.outage_s is None:
            self._current = None
        history = (*self.service.history, event)[-_HISTORY:]
        self.service = replace(self.service, history=history)

    def _choose(self) -> None:
        """Let requests go to the newest server that is ready; the one before it is drained."""
        if not any(term.number == self._current and term.ready for term in self.terms):
            self._current = None
        ready = [term for term in self.terms if term.ready and not term.stopping]
        if not ready or ready[-1].number == self._current:
            return
        term = ready[-1]
        assert term.report
        self._current = term.number
        if not term.report.failures:
            self._start_s = term.report.ready_at - term.order.submitted
        self._up_again(term.report.ready_at)
        self._switched = time.monotonic()
        self.publish()

    def _up_again(self, at: float) -> None:
        """Note how long the service was away, in what happened since it was last taken down."""
        history = list(self.service.history)
        for index in range(len(history) - 1, -1, -1):
            event = history[index]
            if event.kind in _FINAL:
                break
            if event.outage_s is None:
                history[index] = replace(event, outage_s=round(max(at - event.at, 0.0), 1))
                logger.info("up again %.1f s after its last answer (%s)", history[index].outage_s, event.kind)
        self.service = replace(self.service, history=tuple(history))

    def _start_what_is_needed(self) -> None:
        wanted = [term for term in self.terms if not term.stopping]
        if not wanted:
            if time.monotonic() >= self._start_after:
                self._start()
            return
        current = next((term for term in wanted if term.number == self._current), None)
        # Where jobs run beside the keeper, a second server would take what the first one has.
        if self.request.term_s is None or len(wanted) > 1 or current is None or current.report is None:
            return
        ends, now = current.report.ends, time.time()
        if ends is None:
            return
        lead_s = lead_of(self._start_s, self.settings.margin_s, self.request.term_s)
        over = self.service.until is not None and self.service.until <= ends
        if now >= ends - lead_s and not over and time.monotonic() >= self._start_after:
            logger.info("t%d ends in %.0f s; starting the one after it", current.number, ends - now)
            self._start()

    def _start(self) -> None:
        number = self.files.take_number()
        order = Order(
            number=number,
            key_file=self.service.key_file,
            scheduler=self.request.scheduler,
            submitted=time.time(),
            launcher=Identity.current().as_json(),
            until=self.service.until,
        )
        # Before the job can look for it; its launcher is added when it has been started.
        self.files.give(order)
        term = self._job(order)
        # Snakemake reads the locks of all others in the folder, and fails where one of them is removed just then.
        # What a term writes is guarded by the deployment's lease and its own number.
        target = self.request.target.format(number=number)
        term.launch([*nested(self.request.argv, [target]), "--nolock"])
        self.terms.append(term)
        logger.info("starting t%d; what Snakemake says: %s", number, self.logs / f"t{number}.snakemake.log")


def backoff_s(failures: int, settings: ServiceSettings) -> float:
    """Seconds to wait after so many quick failures in a row, from 1 on."""
    return min(settings.backoff_s * 2.0 ** min(failures - 1, 60), settings.backoff_max_s)


def lead_of(start_s: float, margin_s: float, term_s: float | None) -> float:
    """Seconds before the end of a term at which the next is started: it is ready by then, with a margin.

    At most half of a term, or else two servers would run all the time.
    """
    lead_s = start_s + margin_s
    return lead_s if term_s is None else min(lead_s, term_s / 2)
