"""A service on a real cluster: up, restarted and counted, drained, down."""

from __future__ import annotations

import json
import stat
import threading
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from cluster_site import Site, until

from berth import kubeserve, services
from berth.access import access
from berth.kubeforward import Forward
from berth.parse import load_config
from berth.rendering import renderings

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.kubernetes, pytest.mark.vllm, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def request_(site: Site) -> Iterator[kubeserve.ServeRequest]:
    """The tiny model, pushed and ready to be served; what a failed test leaves is taken down."""
    work = site.workspace("served", platform={"drain_s": 60})
    work.run("results/store/goodall/tiny-llama.json", **site.environ())
    raw = {**yaml.safe_load((work.path / "config/config.yaml").read_text()), "platform": "goodall"}
    raw["config_dir"] = str(work.path / "config")
    rendering = renderings(load_config(raw, work.path), work.path, (3, 11))["tiny"]
    request = kubeserve.ServeRequest(**kubeserve.request_of(rendering, stall_s=180))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in site.environ().items():
            patch.setenv(name, value)
        yield request
        kubeserve.unserve(request, grace_s=1)


@pytest.fixture(scope="module")
def served(request_: kubeserve.ServeRequest) -> services.Service:
    return kubeserve.serve(request_)


def complete(port: int, key: str, tokens: int) -> int:
    """The tokens of a completion, through a forwarded port."""
    body = {"model": "berth/tiny-llama", "prompt": "Once", "max_tokens": tokens, "ignore_eos": True}
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/completions", json.dumps(body).encode(), headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=120) as answer:
        return int(json.load(answer)["usage"]["completion_tokens"])


def test_it_is_up_with_a_key_that_only_its_file_has(
    site: Site, request_: kubeserve.ServeRequest, served: services.Service, tmp_path: Path
) -> None:
    """The file says where it is; the key is in a 0600 file and in the Secret, and not in what Helm keeps as values."""
    assert (served.state, served.restarts, served.scheduler) == ("ready", 0, "kubernetes")
    assert served.kubernetes is not None
    assert (served.kubernetes.namespace, served.kubernetes.release) == (site.cluster.namespace, "tiny")
    assert services.read(Path(request_.results), "goodall", "tiny") == served
    file = Path(served.key_file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    key = services.key_in(file)
    shown = site.cluster.run(site.cluster.helm("get", "all", "tiny")) + json.dumps(site.server_pod()).encode()
    assert key.encode() not in shown
    assert site.store.environ["AWS_SECRET_ACCESS_KEY"].encode() not in shown
    forward = Forward(site.cluster, served.instances[0].port, log_path=tmp_path / "forward.log", token="test")
    forward.to(f"pod/{served.instances[0].id}")
    assert complete(forward.port(), key, 5) == 5
    forward.close()


def test_access_goes_through_kubectl_where_there_is_no_route(
    site: Site, served: services.Service, tmp_path: Path
) -> None:
    """The probe asks the service for a token by the command that ACCESS.md shows."""
    del served
    work, report = site.folder / "served", tmp_path / "report.txt"
    raw = {**yaml.safe_load((work / "config/config.yaml").read_text()), "platform": "goodall", "deployment": "tiny"}
    access(load_config({**raw, "config_dir": str(work / "config")}, work), work, report)
    assert "ok    kubectl port-forward service/tiny (tiny): one token in" in report.read_text()


def test_a_container_that_ends_is_started_again_and_counted(
    site: Site, request_: kubeserve.ServeRequest, served: services.Service
) -> None:
    """Its end is in the history with its cause, once, however often one looks."""
    del served
    site.kill_server()
    until(lambda: kubeserve.look(request_).state == "down")
    found = until(lambda: (now := kubeserve.look(request_)).state == "ready" and now)
    assert found.restarts == 1
    assert [(event.kind, "137" in event.cause) for event in found.history] == [("crash", True)]
    assert kubeserve.look(request_).restarts == 1


def test_a_request_in_flight_ends_before_the_server(
    site: Site, request_: kubeserve.ServeRequest, served: services.Service, tmp_path: Path
) -> None:
    """`unserve` waits for a long completion, which is whole; nothing is left."""
    instance = kubeserve.look(request_).instances[0]
    key = services.key_in(Path(served.key_file))
    forward = Forward(site.cluster, instance.port, log_path=tmp_path / "forward.log", token="test")
    forward.to(f"pod/{instance.id}")
    port, answers = forward.port(), []
    thread = threading.Thread(target=lambda: answers.append(complete(port, key, 1900)))
    thread.start()
    until(lambda: _running(port) > 0)
    ended = kubeserve.unserve(request_)
    thread.join()
    forward.close()
    assert answers == [1900]
    assert (ended.state, ended.kubernetes, ended.instances) == ("ended", None, ())
    assert site.left() == []


def _running(port: int) -> float:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines: list[Any] = answer.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:num_requests_running"))


def test_a_service_that_cannot_start_says_so(site: Site, request_: kubeserve.ServeRequest) -> None:
    """Its file says that it is down, and why; `unserve` removes it."""
    values = {**request_.chart["values"], "nodeSelector": {"pool": "nowhere"}}
    wrong = replace(request_, chart={**request_.chart, "values": values, "schedule_s": 3})
    with pytest.raises(kubeserve.BerthError, match="The scheduler: "):
        kubeserve.serve(wrong)
    found = services.read(Path(wrong.results), "goodall", "tiny")
    assert found is not None
    assert found.state == "down"
    assert "The scheduler: " in found.history[-1].cause
    kubeserve.unserve(wrong)
    assert site.left() == []
