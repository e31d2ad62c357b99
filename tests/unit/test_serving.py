"""The keeper of a deployment whose jobs never come up; a script stands for the Snakemake that submits them.

tests/slurm and tests/workflow keep real ones up.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from berth import services
from berth.config import ServiceSettings
from berth.errors import BerthError
from berth.lease import lease
from berth.processes import new_token
from berth.servesettings import ServeRequest
from berth.serving import serve, unserve
from berth.termfiles import TermFiles

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
