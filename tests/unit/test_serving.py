"""The keeper of a deployment, by the files of its jobs; a script stands for the Snakemake that submits them.

tests/slurm and tests/workflow keep real ones up.
"""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from berth import services
from berth.config import ServiceSettings
from berth.errors import BerthError
from berth.holder import Identity
from berth.keeper import Keeper
from berth.lease import lease
from berth.processes import new_token
from berth.servesettings import ServeRequest
from berth.serving import serve, unserve
from berth.termfiles import Failure, Order, Report, TermFiles

if TYPE_CHECKING:
    from collections.abc import Iterator

# Staging works, and no job is submitted. The words before the target are `-m snakemake`.
SNAKEMAKE = """#!/bin/sh
case $3 in
    */services/*) echo "sbatch: error: Invalid partition"; exit 1 ;;
esac
"""


@pytest.fixture
def request_(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ServeRequest:
    """A deployment on Slurm that may fail twice, in short waits."""
    monkeypatch.setenv("BERTH_KEYS", str(tmp_path / "keys"))
    program = tmp_path / "snakemake"
    program.write_text(SNAKEMAKE)
    program.chmod(0o755)
    results = str(tmp_path / "results")
    return ServeRequest(
        deployment="tiny",
        platform="hops",
        scheduler="slurm",
        served_model="tiny-llama",
        results=results,
        key_variable="VLLM_API_KEY",
        argv=[str(program), "serve"],
        staged=["model.json"],
        target=f"{results}/services/hops/tiny/t{{number}}.done",
        settings=asdict(ServiceSettings(restarts=2, backoff_s=0.01, poll_s=0.01, check_s=0.01)),
        until=None,
        term_s=3600,
        start_s=60,
        stop_grace_s=1,
        lease_stale_s=3,
        kubernetes={},
    )


def test_a_deployment_that_never_comes_up_is_given_up(request_: ServeRequest) -> None:
    """After as many failures as are allowed it is taken down, and every cause is kept; the key is made once."""
    with pytest.raises(BerthError, match="failed 3 times, and 2 are allowed"):
        serve(request_)
    results = Path(request_.results)
    found = services.read(results, "hops", "tiny")
    assert found
    assert (found.state, found.restarts, found.endpoint, found.instances) == ("ended", 3, None, ())
    assert [event.kind for event in found.history] == ["submit"] * 3 + ["restarts"]
    assert all("Invalid partition" in event.cause for event in found.history[:3])
    assert all(event.outage_s is None for event in found.history)
    assert services.key_in(Path(found.key_file))
    files = TermFiles.of(results, "hops", "tiny")
    assert files.ordered() == []
    assert files.take_number() == 4


def test_staging_that_fails_says_why(request_: ServeRequest) -> None:
    """No job is submitted for a model that is not there; what Snakemake said is in the error."""
    program = Path(request_.argv[0])
    program.write_text("#!/bin/sh\necho 'no credentials for the store'\nexit 1\n")
    with pytest.raises(BerthError, match="no credentials for the store"):
        serve(request_)
    assert services.read(Path(request_.results), "hops", "tiny") is None


def test_a_second_keeper_is_refused(request_: ServeRequest) -> None:
    """A keeper that lives on this host is named, and nothing is started beside it."""
    folder = TermFiles.of(Path(request_.results), "hops", "tiny").folder / "keeper"
    with (
        lease(folder, heartbeat_s=1, stale_s=3, poll_s=0.1, token=new_token()),
        pytest.raises(BerthError, match="is kept up already, by process"),
    ):
        serve(request_)


def test_what_was_never_served_cannot_be_taken_down(request_: ServeRequest) -> None:
    """A name that was mistyped is told, and leaves nothing; what has ended already is no error."""
    with pytest.raises(BerthError, match="was never served"):
        unserve(request_)
    assert not (Path(request_.results) / "services").exists()
    with pytest.raises(BerthError, match="2 are allowed"):
        serve(request_)
    unserve(request_)
    found = services.read(Path(request_.results), "hops", "tiny")
    assert found
    assert found.state == "ended"
    assert not TermFiles.of(Path(request_.results), "hops", "tiny").unserve.exists()


def report_of(number: int, **changes: Any) -> Report:
    """A term whose process is this one, and so alive."""
    report = Report(
        number=number,
        state="ready",
        job_id=str(100 + number),
        identity=Identity.current().as_json(),
        token="t",
        at=1000.0,
        started=900.0,
        host=f"node{number}",
        address=f"10.0.0.{number}",
        port=8000,
        ready_at=950.0,
        answered=1000.0,
        ends=time.time() + 3600,
    )
    return replace(report, **changes)


@pytest.fixture
def keeper(request_: ServeRequest) -> Iterator[Keeper]:
    """A keeper of a deployment of which one term runs."""
    request = replace(request_, scheduler="local", term_s=7200)
    files = TermFiles.of(Path(request.results), "hops", "tiny")
    files.give(Order(files.take_number(), "/keys/tiny", "local", 800.0, Identity.current().as_json()))
    files.tell(report_of(1))
    with lease(files.folder / "keeper", heartbeat_s=1, stale_s=3, poll_s=0.1, token=new_token()) as held:
        yield Keeper(request, held, "/keys/tiny")


def test_what_failed_without_a_keeper_is_told(keeper: Keeper) -> None:
    """A server that was started again in its job while no keeper lived is in the history, once, with its outage."""
    keeper.files.tell(report_of(1, failures=(Failure(940.0, "crash", "out of memory", "take more"),)))
    assert keeper.adopt()
    keeper.look()
    keeper.look()
    keeper.publish()
    found = services.read(keeper.results, "hops", "tiny")
    assert found
    assert found.ready
    assert [(event.kind, event.outage_s) for event in found.history] == [("crash", 10.0)]
    assert found.restarts == 1
    # The next keeper finds it told.
    again = Keeper(keeper.request, keeper._held, "/keys/tiny")
    again.adopt()
    again.look()
    assert again.service.history == found.history


def test_the_endpoint_moves_before_the_old_server_is_told(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    """A successor that loads changes nothing; one that is ready gets the requests, and only then the other drains."""
    keeper.adopt()
    keeper.look()
    number = keeper.files.take_number()
    keeper.files.give(Order(number, "/keys/tiny", "local", 800.0, Identity.current().as_json()))
    keeper.files.tell(report_of(number, state="starting", ready_at=0.0))
    following = Keeper(keeper.request, keeper._held, "/keys/tiny")
    following.adopt()
    following.look()
    following.publish()
    assert following.service.endpoint
    assert following.service.endpoint.host == "node1"
    keeper.files.tell(report_of(number, ready_at=990.0))
    following.look()
    moved = services.read(keeper.results, "hops", "tiny")
    assert moved
    assert moved.endpoint
    assert moved.endpoint.host == "node2"
    order = keeper.files.order(1)
    assert order
    assert not order.stop
    monkeypatch.setattr("berth.keeper._SETTLE_S", 0.0)
    following.look()
    order = keeper.files.order(1)
    assert order
    assert order.stop
    keeper.files.tell(report_of(1, state="ended", kind="stopped"))
    following.look()
    following.publish()
    assert [(event.kind, event.outage_s) for event in following.service.history] == [("replaced", 0.0)]
    assert [each.id for each in following.service.instances] == ["t2"]


def test_a_later_end_reaches_what_runs(keeper: Keeper) -> None:
    """A keeper that is called with another date tells it to the job that it takes over."""
    later = Keeper(replace(keeper.request, until=5e9), keeper._held, "/keys/tiny")
    later.adopt()
    order = keeper.files.order(1)
    assert order
    assert order.until == 5e9
