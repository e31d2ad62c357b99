"""Deployments that are kept up as jobs of a real Slurm: what ends their servers, jobs and keepers, and who takes over.

Slurm, Snakemake, its executor and everything of Berth are real. In the place of vLLM is standin_vllm.py. Two
deployments are served at a time from one folder, and a sweep runs beside them, so that the waits are waited once.
"""

from __future__ import annotations

import signal
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from slurm_cluster import Slurm, SlurmWorkspace, servers, use_standin, wait_until

from berth import services
from berth.holder import Identity
from berth.leasefiles import highest, read
from berth.probe import ask
from berth.services import Service, key_in

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.slurm, pytest.mark.workflow]

FIRST, SECOND = "tiny-local", "tiny-two"
# Waits of a test in the place of those of sites. A term is longer than the test, and one that is cut to less than
# margin_s has a successor at once, with minutes left in which it can become ready on a busy machine.
SETTINGS = {
    "minutes": 20,
    "margin_s": 600,
    "drain_s": 8,
    "quick_s": 1,
    "backoff_s": 0.5,
    "poll_s": 0.3,
    "check_s": 0.5,
}


@dataclass
class Served:
    """What happened, in the order in which it did, and the client that went on asking meanwhile."""

    cluster: Slurm
    workspace: SlurmWorkspace
    after: dict[str, Service] = field(default_factory=dict)
    before: dict[str, Service] = field(default_factory=dict)
    answers: dict[str, int] = field(default_factory=dict)
    asked: list[tuple[float, float, str, str]] = field(default_factory=list)
    jobs_left: str = ""
    servers_left: list[list[str]] = field(default_factory=list)
    leftovers: int = 0

    @property
    def results(self) -> Path:
        return self.workspace.path / "results"

    def now(self, deployment: str) -> Service:
        found = services.read(self.results, "hops", deployment)
        assert found
        return found

    def up(self, deployment: str, what: str, **changed: Any) -> Service:
        """The service as soon as it is ready, with at least so many events and a job of another id."""

        def again() -> Service | None:
            found = services.read(self.results, "hops", deployment)
            if found is None or not found.ready or len(found.history) < changed.get("events", 0):
                return None
            if any(event.outage_s is None for event in found.history):
                return None
            return found if all(each.id not in changed.get("without", ()) for each in found.instances) else None

        try:
            return wait_until(again, what, 120)
        except AssertionError:
            for path in (self.workspace.path / ".snakemake/slurm_logs").rglob("*.log"):
                print(path, path.read_text()[-1500:])
            print((self.workspace.path / "run.log").read_text()[-4000:])
            print(services.path_of(self.results, "hops", deployment).read_text())
            raise

    def post(self, deployment: str, key: str | None, stand_in_s: float = 0.0) -> int:
        """The status of a completion at the endpoint as it is now; 0 without an answer."""
        endpoint = self.now(deployment).endpoint
        if endpoint is None:
            return 0
        body = {"stand_in_s": stand_in_s}
        url = f"http://{endpoint.address}:{endpoint.port}"
        return ask(url, "/v1/chat/completions", timeout_s=20, api_key=key, body=body).status

    def keep_asking(self, deployment: str, over: threading.Event) -> None:
        """Ask one long question after the other, each at the endpoint of its beginning."""
        key = key_in(self.key(deployment))
        while not over.is_set():
            began = time.time()
            endpoint = self.now(deployment).endpoint
            status = self.post(deployment, key, 1.5)
            self.asked.append((began, time.time(), str(endpoint and endpoint.port), str(status)))

    def key(self, deployment: str) -> Path:
        return services.key_path("hops", deployment, self.keys)

    @property
    def keys(self) -> dict[str, str]:
        return {"BERTH_KEYS": str(self.workspace.path / "keys")}

    def serve(self, deployment: str, verb: str = "serve") -> subprocess.Popen[bytes]:
        return self.workspace.start(verb, "--config", f"deployment={deployment}", **self.keys)

    def keeper(self, deployment: str) -> psutil.Process:
        """The living process that holds the lease of a deployment."""
        folder = self.results / "services/hops" / deployment / "keeper"
        holder, _ = read(folder, highest(folder))
        assert holder
        assert Identity.current().knows_dead(holder.identity) is False
        return psutil.Process(holder.identity.pid)

    def kill_keeper(self, deployment: str, snakemake: subprocess.Popen[bytes]) -> None:
        """End a keeper and the Snakemake that it runs beside, at once and unheard."""
        keeper = self.keeper(deployment)
        self.workspace.kill_session(snakemake)
        keeper.kill()
        wait_until(lambda: not keeper.is_running() or keeper.status() == psutil.STATUS_ZOMBIE, "the keeper's end")

    def kill_server(self, deployment: str) -> None:
        """Kill the process that answers at the endpoint of a deployment."""
        endpoint = self.now(deployment).endpoint
        assert endpoint
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if "serve" in words and f"--port={endpoint.port}" in words:
                process.send_signal(signal.SIGKILL)


@pytest.fixture(scope="module")
def served(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Everything that can happen to a service, once."""
    workspace = SlurmWorkspace.on(slurm, tmp_path_factory.mktemp("served") / "workspace")
    use_standin(workspace, runs=1, levels=[1])
    workspace.change_queue(warn_s=45)

    def change(config: dict[str, Any]) -> None:
        config["services"] = SETTINGS
        # The same server twice: what tells the two apart is their name alone.
        config["deployments"][SECOND] = dict(config["deployments"][FIRST])

    workspace.configure(change)
    here = Served(slurm, workspace)
    started = [here.serve(FIRST), here.serve(SECOND)]
    try:
        yield happened(here, started)
    finally:
        for process in started:
            process.kill()
            process.wait()
        for process in workspace.processes():
            process.kill()


def happened(here: Served, started: list[subprocess.Popen[bytes]]) -> Served:
    """Let things happen to both services."""
    here.before = {name: here.up(name, f"{name} is up") for name in (FIRST, SECOND)}
    key = key_in(here.key(FIRST))
    here.answers = {"key": here.post(FIRST, key), "other key": here.post(FIRST, key_in(here.key(SECOND)))}
    here.answers["none"] = here.post(FIRST, None)
    sweep = here.workspace.start("points", **here.keys)
    started.append(sweep)

    # The first: its server is killed, when it has served long enough not to be a quick failure.
    ready_at = here.before[FIRST].instances[0].since
    wait_until(lambda: time.time() - ready_at > SETTINGS["quick_s"], "a server that has served for a while")
    here.kill_server(FIRST)
    # The second: its keeper is killed, and another one takes over.
    here.kill_keeper(SECOND, started[1])
    started[1] = here.serve(SECOND)
    here.after["server"] = here.up(FIRST, "up again after its server was killed", events=1)

    # The first: its job is lost with its node, while its server is deaf to TERM and stays.
    lost = here.now(FIRST).instances[0]
    node = here.cluster.node_of(lost.job_id)
    here.cluster.kill_node(node, lost.job_id)
    # The second: its time is nearly over.
    here.after["keeper"] = here.now(SECOND)
    over = threading.Event()
    client = threading.Thread(target=here.keep_asking, args=(SECOND, over))
    client.start()
    old = here.now(SECOND).instances[0]
    here.cluster("scontrol", "update", f"JobId={old.job_id}", "TimeLimit=9")
    here.after["walltime"] = here.up(SECOND, "another job has taken over", events=1, without=[old.id])
    over.set()
    client.join()
    here.after["node"] = here.up(FIRST, "up again after its node was lost", events=2)
    here.leftovers = len([words for words in servers(here.workspace) if f"--port={lost.port}" in words])
    here.cluster.revive_node(node)

    # Both are taken down: the first by its keeper, the second without one.
    here.kill_keeper(SECOND, started[1])
    downs = [here.serve(name, "unserve") for name in (FIRST, SECOND)]
    assert [down.wait() for down in downs] == [0, 0]
    assert started[0].wait() == 0
    assert sweep.wait() == 0
    wait_until(lambda: not here.cluster("squeue", "--noheader").strip(), "no job is left", 60)
    here.servers_left = servers(here.workspace)
    for name in (FIRST, SECOND):
        here.after[f"{name} down"] = here.now(name)
        for event in here.now(name).history:
            print(f"{name}: {event.kind}: {event.outage_s} s")
    return here


def test_two_are_up_at_a_time(served: Served) -> None:
    """Two calls of Snakemake serve from one folder, each with a job, a port and an endpoint of its own."""
    first, second = served.before[FIRST], served.before[SECOND]
    assert (first.state, second.state) == ("ready", "ready")
    assert first.instances[0].job_id != second.instances[0].job_id
    assert first.endpoint != second.endpoint
    assert first.served_model == "berth/tiny-llama"
    assert first.instances[0].host.startswith("s")
    ends = first.instances[0].ends
    assert ends
    assert ends - first.instances[0].since < SETTINGS["minutes"] * 60


def test_each_has_its_own_key(served: Served) -> None:
    """A server answers those who have its key, and neither strangers nor the users of another deployment."""
    assert served.answers == {"key": 200, "other key": 401, "none": 401}


def test_a_killed_server_starts_again_in_its_job(served: Served) -> None:
    """The job keeps its nodes; the endpoint has another port, and cause and outage are in the history."""
    before, after = served.before[FIRST], served.after["server"]
    assert after.instances[0].job_id == before.instances[0].job_id
    assert after.endpoint != before.endpoint
    event = after.history[0]
    assert (event.kind, after.restarts) == ("crash", 1)
    assert "SIGKILL" in event.cause
    assert event.outage_s is not None


def test_a_lost_job_is_replaced(served: Served) -> None:
    """A job that ended unheard is noticed, another one is submitted, and the outage is written down."""
    before, after = served.after["server"], served.after["node"]
    assert after.instances[0].job_id != before.instances[0].job_id
    event = after.history[-1]
    assert event.kind in ("node", "killed")
    assert event.outage_s is not None
    assert event.outage_s > 0
    assert after.restarts == 2


def test_what_a_lost_job_left_is_ended(served: Served) -> None:
    """The next job ends the server that the lost one left on the node, and nothing else."""
    assert served.leftovers == 0


def test_a_keeper_that_was_killed_is_replaced(served: Served) -> None:
    """The next keeper takes over the running job, and starts no other."""
    before, after = served.before[SECOND], served.after["keeper"]
    assert [each.job_id for each in after.instances] == [each.job_id for each in before.instances]
    assert after.endpoint == before.endpoint
    assert after.restarts == 0
    assert after.history == ()


def test_a_successor_takes_over_before_the_walltime(served: Served) -> None:
    """The endpoint moves when the next job is ready, so that there is no outage."""
    before, after = served.after["keeper"], served.after["walltime"]
    assert after.endpoint != before.endpoint
    assert [(event.kind, event.outage_s) for event in after.history] == [("replaced", 0.0)]
    assert after.restarts == 0


def test_no_request_is_lost_when_the_endpoint_moves(served: Served) -> None:
    """Requests in flight at the old server are answered, and those after them go to the new one."""
    assert {status for *_, status in served.asked} == {"200"}
    assert {port for _, _, port, _ in served.asked} <= {
        str(served.after[when].endpoint.port)  # type: ignore[union-attr]
        for when in ("keeper", "walltime")
    }


def test_a_sweep_runs_beside(served: Served) -> None:
    """Neither of Snakemake's locks nor markers stand in the way of a sweep from the same folder; none tidies up."""
    said = [path.read_text() for path in served.workspace.path.glob(".snakemake/log/*.log")]
    # It would remove the folder into which a job that waits is going to write, and end that job.
    assert said
    assert not any("Cleaning up SLURM log files" in text for text in said)
    assert len(served.workspace.points()) == 1


def test_unserve_ends_everything(served: Served) -> None:
    """With and without a keeper, no job and no server is left, and the file says that it has ended."""
    assert served.servers_left == []
    for name in (FIRST, SECOND):
        after = served.after[f"{name} down"]
        assert (after.state, after.instances, after.endpoint) == ("ended", (), None)
        assert after.history[-1].kind == "unserve"
    assert not list(served.results.glob("services/hops/*/t*.order.json"))


def test_no_key_is_in_what_is_kept(served: Served) -> None:
    """Neither results, logs, metadata of Snakemake nor the logs of Slurm hold a key."""
    keys = [key_in(served.key(name)).encode() for name in (FIRST, SECOND)]
    for folder in ("results", ".snakemake"):
        for path in (served.workspace.path / folder).rglob("*"):
            if path.is_file() and not path.is_symlink():
                assert not any(key in path.read_bytes() for key in keys), path
    assert served.key(FIRST).stat().st_mode & 0o077 == 0
