"""How long a served deployment is away when something of it ends: the real vLLM on the CPU, jobs of a real Slurm.

Usage: python benchmarks/serve_outages.py [--requests 16] [--tokens 1000]

Starts a private Slurm of four nodes (tests/slurm/up.sh; its programs must be installed), serves the tiny model, and
ends what can end: its server, its job, the job's time, and at last the service with --requests of --tokens in flight. A
client asks without a pause while the job is replaced. Prints one line for each.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/workflow"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/slurm"))

from slurm_cluster import PROGRAMS, Slurm, SlurmWorkspace, folder_for_slurm, missing_programs, wait_until

from berth import services
from berth.probe import ask
from berth.services import Service, key_in

if TYPE_CHECKING:
    from collections.abc import Callable

NAME = "tiny-local"
# Shorter than a site's, so that the benchmark ends: what is measured does not depend on them, but for backoff_s and
# check_s. A server is no quick failure once it has served for quick_s.
SETTINGS = {"minutes": 60, "margin_s": 1800, "drain_s": 60, "quick_s": 5, "backoff_s": 1, "poll_s": 0.5, "check_s": 1}
WARN_S = 100
START_S = 600.0


class Client:
    """Asks one deployment at the endpoint that its file names."""

    def __init__(self, workspace: SlurmWorkspace, keys: Path) -> None:
        self.results = workspace.path / "results"
        self.key = services.key_path("hops", NAME, {"BERTH_KEYS": str(keys)})

    def service(self) -> Service | None:
        """The service's state."""
        return services.read(self.results, "hops", NAME)

    def complete(self, tokens: int) -> int:
        """The status of a completion of so many tokens; 0 without an answer."""
        found = self.service()
        if found is None or found.endpoint is None:
            return 0
        body = {
            "model": found.served_model,
            "messages": [{"role": "user", "content": "Hello"}],
            "max_tokens": tokens,
            "ignore_eos": True,
        }
        url = f"http://{found.endpoint.address}:{found.endpoint.port}"
        return ask(url, "/v1/chat/completions", timeout_s=300, api_key=key_in(self.key), body=body).status

    def up(self, *, events: int, without: str = "") -> Service:
        """The service once it is ready again, so many ends later and without an instance."""

        def again() -> Service | None:
            found = self.service()
            if found is None or not found.ready or len(found.history) < events:
                return None
            over = all(event.outage_s is not None for event in found.history)
            return found if over and all(each.id != without for each in found.instances) else None

        return wait_until(again, f"{NAME} is up, {events} ends later", START_S)


def kill_server(service: Service) -> None:
    """SIGKILL to the process that listens at the endpoint."""
    assert service.endpoint
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "serve" in words and f"--port={service.endpoint.port}" in words:
            process.send_signal(signal.SIGKILL)


def in_threads(count: int, work: Callable[[], Any]) -> list[threading.Thread]:
    """So many threads that do the work, started."""
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads


def ended(client: Client, cluster: Slurm) -> list[str]:
    """End server, job and time of the job of a service that is up; a line for each."""
    told = []
    service = client.up(events=0)
    time.sleep(SETTINGS["quick_s"])
    kill_server(service)
    service = client.up(events=1)
    told.append(f"server, by SIGKILL: {service.history[0].outage_s} s, in the same job")

    time.sleep(SETTINGS["quick_s"])
    cluster("scancel", service.instances[0].job_id)
    service = client.up(events=2)
    told.append(f"job, by scancel: {service.history[1].outage_s} s")

    asked: list[int] = []
    over = threading.Event()

    def keep_asking() -> None:
        while not over.is_set():
            asked.append(client.complete(64))

    clients = in_threads(2, keep_asking)
    old = service.instances[0]
    # The least in which a successor can load and the old one can drain; Slurm counts from the start of the job.
    cluster("scontrol", "update", f"JobId={old.job_id}", "TimeLimit=20")
    service = client.up(events=3, without=old.id)
    over.set()
    for thread in clients:
        thread.join()
    answered = sum(status == 200 for status in asked)
    told.append(f"job's time, with a successor: {service.history[2].outage_s} s; {answered} of {len(asked)} answered")
    return told


def taken_down(client: Client, workspace: SlurmWorkspace, keys: Path, requests: int, tokens: int) -> str:
    """Take the service down with requests in flight; how many were answered."""
    statuses: list[int] = []
    threads = in_threads(requests, lambda: statuses.append(client.complete(tokens)))
    time.sleep(2)
    workspace.run("unserve", "--config", f"deployment={NAME}", BERTH_KEYS=str(keys))
    for thread in threads:
        thread.join()
    found = client.service()
    assert found
    return f"unserve, {requests} in flight: {sum(s == 200 for s in statuses)} answered; state {found.state}"


def main() -> None:
    """Serve, end, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=16, help="in flight when it is taken down")
    parser.add_argument("--tokens", type=int, default=1000, help="that each of them asks for")
    options = parser.parse_args()
    if missing := missing_programs(*PROGRAMS):
        parser.exit(2, f"not installed: {', '.join(missing)}\n")
    with folder_for_slurm() as folder, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        cluster = Slurm.start(folder)
        workspace = SlurmWorkspace.on(cluster, Path(name) / "workspace")
        workspace.use_vllm(runs=1)
        workspace.change_queue(warn_s=WARN_S)
        workspace.configure(lambda config: config.update(services=SETTINGS))
        keys = Path(name) / "keys"
        client = Client(workspace, keys)
        keeper = workspace.start("serve", "--config", f"deployment={NAME}", BERTH_KEYS=str(keys))
        try:
            told = ended(client, cluster)
            told.append(taken_down(client, workspace, keys, options.requests, options.tokens))
            told.append(f"keeper's exit code: {keeper.wait()}")
        except BaseException:
            print(workspace.output()[-6000:])
            raise
        finally:
            keeper.kill()
            cluster.stop()
    print("\n".join(told))


if __name__ == "__main__":
    main()
