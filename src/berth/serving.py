"""What the rules `serve` and `unserve` do: one keeper of a deployment, and its end."""

from __future__ import annotations

import logging
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from berth import kubeserve, services
from berth.access import refresh
from berth.errors import BerthError
from berth.filelocks import exclusive
from berth.fsio import write_text
from berth.holder import Identity
from berth.keeper import Keeper
from berth.lease import lease
from berth.processes import new_token
from berth.servesettings import nested
from berth.signals import Terminated, terminate_as_exception
from berth.termfiles import TermFiles

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Callable

    from berth.holder import Holder
    from berth.lease import Lease
    from berth.servesettings import ServeRequest

logger = logging.getLogger(__name__)

_HEARTBEATS_PER_STALE = 6
# At least so many seconds between two questions to a cluster of Kubernetes.
_ASK_CLUSTER_S = 15.0
_ENDED = {
    "unserve": "It was taken down by unserve.",
    "until": "The time until which it was to be kept up has come.",
    "restarts": "It failed more often than services.restarts allows.",
}


def serve(request: ServeRequest) -> None:
    """Keep a deployment up until `unserve`, its end date, or too many failures.

    TERM, INT and HUP end the keeper and not what it keeps: the same call takes it over again.

    Raises:
        BerthError: another keeper has it, there is no key, staging failed, or it failed too often.
        Terminated: as above.
    """
    if request.kubernetes:
        _serve_on_kubernetes(request)
        return
    variable = request.key_variable
    key_file = services.key_file(request.platform, request.deployment, variable) if variable else None
    with terminate_as_exception(), _lease(request, _refuse_if_alive(request)) as held:
        keeper = Keeper(request, held, str(key_file or ""))
        keeper.files.unserve.unlink(missing_ok=True)
        try:
            # What runs already must not wait for its model to be looked at again.
            if not keeper.adopt():
                _stage(request, keeper.logs / "staging.snakemake.log")
            why = keeper.keep()
            logger.info("%s", _ENDED[why])
            keeper.take_down(why, _ENDED[why])
        except Terminated as asked:
            logger.warning(
                "%s: %s goes on without a keeper, until its job ends. The same command keeps it up again; "
                "`unserve` takes it down.",
                asked,
                request.deployment,
            )
            raise
    if why == "restarts":
        allowed = keeper.settings.restarts
        path = services.path_of(keeper.results, request.platform, request.deployment)
        raise BerthError(
            f"services.restarts: {request.deployment} failed {keeper.service.restarts} times, and {allowed} are "
            f"allowed; it was taken down. Every cause is in {path}."
        )


def unserve(request: ServeRequest) -> None:
    """Take a deployment down: by its keeper, or, where none lives, from here.

    Raises:
        BerthError: it was never served.
        Terminated: TERM, INT or HUP.
    """
    results = Path(request.results)
    path = services.path_of(results, request.platform, request.deployment)
    files = TermFiles.of(results, request.platform, request.deployment)
    if not path.exists() and not files.folder.exists():
        raise BerthError(f"{request.deployment} was never served: there is no {path}.")
    key_file = services.key_path(request.platform, request.deployment)

    def wait(holder: Holder) -> None:
        logger.info("its keeper (%s) takes it down", holder)

    write_text(files.unserve, "")
    with terminate_as_exception(), _lease(request, wait) as held:
        if request.kubernetes:
            kubeserve.unserve(kubeserve.ServeRequest(**request.kubernetes))
            refresh(results, request.platform, request.deployment)
            files.unserve.unlink(missing_ok=True)
            return
        keeper = Keeper(request, held, str(key_file))
        keeper.adopt()
        before = services.read(results, request.platform, request.deployment)
        if keeper.terms or before is None or before.state != "ended":
            keeper.take_down("unserve", _ENDED["unserve"])
        files.unserve.unlink(missing_ok=True)
    logger.info("%s is down", request.deployment)


def _serve_on_kubernetes(request: ServeRequest) -> None:
    """Put a deployment on the cluster, which keeps it up, and note what happens to it as long as this process lives."""
    results = Path(request.results)
    files = TermFiles.of(results, request.platform, request.deployment)
    placed = kubeserve.ServeRequest(**request.kubernetes)
    with terminate_as_exception(), _lease(request, _refuse_if_alive(request)) as held:
        files.unserve.unlink(missing_ok=True)
        _stage(request, results / "logs/serve" / request.platform / request.deployment / "staging.snakemake.log")
        seen = kubeserve.serve(placed)
        refresh(results, request.platform, request.deployment)
        while not files.unserve.exists():
            if request.until is not None and time.time() >= request.until:
                logger.info("%s", _ENDED["until"])
                kubeserve.unserve(placed)
                refresh(results, request.platform, request.deployment)
                return
            time.sleep(max(request.settings["poll_s"], _ASK_CLUSTER_S))
            held.check()
            try:
                found = kubeserve.look(placed)
            except BerthError as error:
                # A cluster that does not answer for a while goes on serving all the same.
                logger.warning("%s", error)
                continue
            for event in found.history[len(seen.history) :]:
                logger.warning("%s: %s: %s", event.job_id, event.kind, event.cause)
            if found != seen:
                refresh(results, request.platform, request.deployment)
            seen = found


def _lease(request: ServeRequest, on_wait: Callable[[Holder], None]) -> contextlib.AbstractContextManager[Lease]:
    folder = TermFiles.of(Path(request.results), request.platform, request.deployment).folder
    return lease(
        folder / "keeper",
        heartbeat_s=request.lease_stale_s / _HEARTBEATS_PER_STALE,
        stale_s=request.lease_stale_s,
        poll_s=0.5,
        token=new_token(),
        on_wait=on_wait,
    )


def _refuse_if_alive(request: ServeRequest) -> Callable[[Holder], None]:
    def refuse(holder: Holder) -> None:
        if Identity.current().knows_dead(holder.identity) is False:
            raise BerthError(
                f"{request.deployment} is kept up already, by {holder}. Leave it to that keeper, or end it with "
                f"`kill {holder.identity.pid}` on {holder.identity.host}: what it keeps goes on, and the next one "
                "takes it over."
            )
        logger.warning(
            "another keeper has it (%s), on a host that cannot be looked at from here; this one takes over %g s after "
            "its last sign of life",
            holder,
            request.lease_stale_s,
        )

    return refuse


def _stage(request: ServeRequest, log: Path) -> None:
    """Have model and image staged, by a Snakemake of its own: its locks end with it."""
    logger.info("staging model and image; what Snakemake says: %s", log)
    log.parent.mkdir(parents=True, exist_ok=True)
    # One after the other: two Snakemakes that make the same receipt would refuse each other.
    with (
        exclusive(Path(request.results) / "services/staging.lock", "staging for a served deployment"),
        log.open("wb") as told,
    ):
        done = subprocess.run(
            nested(request.argv, request.staged), stdin=subprocess.DEVNULL, stdout=told, stderr=told, check=False
        )
    if done.returncode:
        lines = log.read_text(errors="replace").strip().splitlines()[-15:]
        raise BerthError(
            f"{request.deployment} was not started: its model or its image could not be staged. {log} says:\n"
            + "\n".join(lines)
        )
