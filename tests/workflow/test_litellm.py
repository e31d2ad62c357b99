"""LiteLLM's proxy, a recipe that has nothing of vLLM in it, on the local platform in front of a real vLLM server."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from real_server import KEY as BACKEND_KEY
from workspace import LEVELS, Workspace

from berth.errors import BerthError
from berth.launch import Deployed, prepare
from berth.metrics import read_metrics
from berth.parse import load_config
from berth.parts import texts
from berth.plan import make_plan
from berth.probe import ask
from berth.processes import find_processes, new_token
from berth.ready import wait_until_ready
from berth.recipes import load_recipe
from berth.serve import Server, serve
from berth.sweep import SweepRequest

if TYPE_CHECKING:
    import contextlib

    from real_server import RealServer

    from berth.config import Config

pytestmark = [pytest.mark.workflow, pytest.mark.vllm, pytest.mark.timeout(1200)]

PROXY_KEY = "sk-of-the-proxy-90a2"
RECEIPTS = {
    "model_receipt": "results/staged/local/tiny-llama.json",
    "image_receipt": "results/images/local/vllm-0.32.0.json",
    "dataset_receipt": "results/datasets/sharegpt-like-short/receipt.json",
}
PROXY_IMAGE = "results/images/local/litellm-1.103.0.json"


@pytest.fixture(scope="module")
def staged(image: None, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with a deployment of the proxy, and everything that Berth's own rules stage for it and for vLLM."""
    workspace = Workspace.create(tmp_path_factory.mktemp("litellm") / "workspace")
    configure(workspace, "http://127.0.0.1:9")
    workspace.run(*RECEIPTS.values(), PROXY_IMAGE)
    return workspace


def configure(workspace: Workspace, backend_url: str) -> None:
    proxy = {"model": "tiny-llama", "recipe": "litellm", "platform": "local", "version": "1.103.0"}
    proxy |= {"inputs": {"backend_url": backend_url}}
    workspace.configure(lambda config: config["deployments"].update({"proxy-local": proxy}))


def loaded(workspace: Workspace) -> Config:
    return load_config(yaml.safe_load((workspace.path / "config/config.yaml").read_text()), workspace.path)


def vllm_of(workspace: Workspace, config: Config) -> Deployed:
    plan = make_plan(config, workspace.path)
    request = plan.sweep_request(next(iter(plan.runs)), texts([LEVELS])[0])
    return prepare(SweepRequest(**request, **RECEIPTS))


def proxy_of(vllm: Deployed, config: Config) -> Deployed:
    recipe_file = f"{config.config_dir}/recipes/litellm.yaml"
    request = replace(
        vllm.request, deployment=asdict(config.deployments["proxy-local"]), recipe_file=recipe_file, experiment="proxy"
    )
    folders = {"scratch": vllm.scratch / "proxy", "logs": vllm.logs / "proxy"}
    for folder in folders.values():
        folder.mkdir()
    image = json.loads(Path(PROXY_IMAGE).read_text())
    return replace(vllm, request=request, recipe=load_recipe(Path(recipe_file)), image=image, **folders)


def serving(deployed: Deployed, key: str, token: str) -> contextlib.AbstractContextManager[Server]:
    return serve(
        deployed.launch(deployed.free_port(), key, token),
        log_path=deployed.server_log,
        token=token,
        grace_s=20,
        known_failures=deployed.known_failures,
    )


def wait(server: Server, deployed: Deployed, key: str) -> list[str]:
    timeline = wait_until_ready(
        server, api_key=key, checks=deployed.checks, stall_s=300, request_timeout_s=10, poll_s=0.1
    )
    return [event.event for event in timeline.events]


def completion(url: str, model: str, key: str | None) -> Any:
    body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5, "temperature": 0}
    return ask(url, "/v1/chat/completions", timeout_s=60, api_key=key, body=body)


def test_a_completion_goes_through_the_proxy_to_vllm(
    staged: Workspace, vllm_server: RealServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code that runs vLLM runs the proxy: it is ready when it is, asks for its key, and vLLM makes the tokens."""
    monkeypatch.chdir(staged.path)
    token = new_token()
    configure(staged, vllm_server.url)
    config = loaded(staged)
    proxy = proxy_of(vllm_of(staged, config), config)
    assert proxy.image["reference"] == "litellm==1.103.0"
    assert proxy.image["litellm_version"] == "1.103.0"
    monkeypatch.delenv("BACKEND_API_KEY", raising=False)
    with pytest.raises(BerthError, match=r"BACKEND_API_KEY is not set\. Export it: The key of the server behind"):
        proxy.launch(1, PROXY_KEY, token)
    monkeypatch.setenv("BACKEND_API_KEY", BACKEND_KEY)
    vllm_server.wait()
    with serving(proxy, PROXY_KEY, token) as server:
        events = wait(server, proxy, PROXY_KEY)
        assert events == ["process_started", "listening", "health", "models", "first_completion"]
        before = read_metrics(vllm_server.url).counters["generation_tokens"]
        answer = completion(server.base_url, "berth/tiny-llama", PROXY_KEY)
        assert answer.status == 200, answer
        assert answer.json()["usage"]["completion_tokens"] == 5
        assert read_metrics(vllm_server.url).counters["generation_tokens"] == before + 5
        # Neither without a key nor with the backend's own.
        assert completion(server.base_url, "berth/tiny-llama", None).status == 401
        assert completion(server.base_url, "berth/tiny-llama", BACKEND_KEY).status == 400
        shown = repr([process.cmdline() for process in server.processes()])
        shown += (proxy.scratch / "files" / "config.yaml").read_text()
    shown += proxy.server_log.read_text()
    assert PROXY_KEY not in shown
    assert BACKEND_KEY not in shown
    # It found what it needs in its package: nothing was looked up elsewhere.
    assert "github" not in proxy.server_log.read_text().lower().replace("github.com/berriai/litellm/issues/new", "")
    assert find_processes(token) == []
