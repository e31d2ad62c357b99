"""A stand-in for the `vllm` program on several nodes: it computes nothing, but its nodes need each other as vLLM's do.

`serve` on the first node answers only when every other node has come, and ends when one of them goes. With
--nnodes the nodes meet at --master-addr, as vLLM's own do; with --distributed-executor-backend=ray there is an actor
on every node of a real Ray cluster. Each node leaves what it was told in seen-rankR.json beside this file. And
`bench serve` is that of tests/slurm/standin_vllm.py, after one request to the server over the network.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import socket
import sys
import threading
import time
import urllib.request
from pathlib import Path

from standin_vllm import Handler, bench, options

HERE = Path(__file__).resolve().parent


def leave(rank: int) -> None:
    """Write down what this node was started with, and where: the agent's environment says which node Slurm means."""
    parent: list[str] = []
    # Inside a container there is nobody above.
    with contextlib.suppress(OSError):
        parent = Path(f"/proc/{os.getppid()}/environ").read_bytes().decode(errors="replace").split("\0")
    around = dict(entry.partition("=")[::2] for entry in parent)
    seen = {
        "argv": sys.argv[1:],
        "env": {name: os.environ.get(name) for name in ("VLLM_HOST_IP", "GLOO_SOCKET_IFNAME")},
        "has_key": bool(os.environ.get("VLLM_API_KEY")),
        "slurm_node": around.get("SLURMD_NODENAME"),
        "slurm_rank": around.get("SLURM_PROCID"),
        "gpus": around.get("CUDA_VISIBLE_DEVICES"),
        "net": str(Path("/proc/self/ns/net").readlink()),
    }
    (HERE / f"seen-rank{rank}.json").write_text(json.dumps(seen))


def die(rank: object) -> None:
    print(f"RuntimeError: rank {rank} does not answer any more", flush=True)
    os._exit(1)


def watch(connection: socket.socket, rank: int) -> None:
    connection.recv(1)
    die(rank)


def meet(given: dict[str, str]) -> None:
    """Return on the first node when all have come; never on another."""
    place = (given["master-addr"], int(given["master-port"]))
    if int(given["node-rank"]) > 0:
        while True:
            try:
                connection = socket.create_connection(place)
                break
            except OSError:
                time.sleep(0.1)
        connection.recv(1)
        die(0)
    listener = socket.create_server(place)
    for rank in range(1, int(given["nnodes"])):
        threading.Thread(target=watch, args=(listener.accept()[0], rank), daemon=True).start()


def meet_in_ray() -> None:
    """Return when an actor runs on every node of the cluster around this process."""
    import ray

    # The cluster's head names its address by this variable, as vLLM reads it.
    ray.init("auto", log_to_driver=False, logging_level="error", _node_ip_address=os.environ["VLLM_HOST_IP"])
    nodes = [node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]]

    class Rank:
        def here(self) -> str:
            return os.environ["VLLM_HOST_IP"]

        def sleep(self) -> None:
            time.sleep(1e6)

    actors = {
        address: ray.remote(Rank).options(max_concurrency=2, num_cpus=0, resources={f"node:{address}": 0.01}).remote()
        for address in nodes
    }
    assert ray.get([actor.here.remote() for actor in actors.values()]) == nodes

    def hold(address: str) -> None:
        try:
            ray.get(actors[address].sleep.remote())
        except ray.exceptions.RayError:
            die(address)

    for address in nodes:
        threading.Thread(target=hold, args=(address,), daemon=True).start()


def serve(given: dict[str, str]) -> None:
    rank = int(given.get("node-rank", 0))
    leave(rank)
    if given["distributed-executor-backend"] == "ray":
        meet_in_ray()
    else:
        meet(given)
    Handler.served = given["served-model-name"]
    http.server.ThreadingHTTPServer((given["host"], int(given["port"])), Handler).serve_forever()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(options(sys.argv[2:]))
    else:
        told = options(sys.argv[3:])
        urllib.request.urlopen(f"{told['base-url']}/health", timeout=10).close()
        (HERE / "seen-client.json").write_text(json.dumps({"net": str(Path("/proc/self/ns/net").readlink())}))
        bench(told)
