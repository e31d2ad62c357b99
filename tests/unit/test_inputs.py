"""The inputs of a recipe that deployments give, and environments that are not vLLM's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from berth.clienttool import load_client
from berth.errors import BerthError
from berth.parse import load_config
from berth.pins import LOCKS, read_lock
from berth.plan import make_plan
from berth.recipes import load_recipe
from berth.render import render_files
from berth.rendering import renderings

if TYPE_CHECKING:
    from berth.config import Config
    from berth.plan import Plan

ROOT = Path(__file__).resolve().parents[2]
BACKEND = "http://127.0.0.1:18000"


def config_of(**inputs: Any) -> Config:
    """The shipped configuration with a proxy on the local platform, which one experiment names."""
    raw = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    proxy = {"model": "tiny-llama", "recipe": "litellm", "platform": "local", "version": "1.103.0", "inputs": inputs}
    raw["deployments"]["proxy"] = proxy
    raw["experiments"] = {
        "proxied": {"title": "t", "deployments": ["proxy"], "benchmark": "demo", "runs": 1},
        "local": {"title": "t", "deployments": ["tiny-local"], "benchmark": "demo", "runs": 1},
    }
    return load_config({**raw, "config_dir": str(ROOT / "config")}, ROOT)


def plan_of(root: Path, **inputs: Any) -> Plan:
    return make_plan(config_of(**inputs), root)


def test_a_misspelt_input_is_told_with_the_nearest(tmp_path: Path) -> None:
    """An input that the recipe does not have names the key of the configuration and the input that was meant."""
    with pytest.raises(BerthError, match=r'deployments\.proxy\.inputs: .*no input "backend_ur"\..*"backend_url"\?'):
        plan_of(tmp_path, backend_ur=BACKEND)
    with pytest.raises(BerthError, match=r'deployments\.proxy\.inputs: the input "backend_url" is missing: The root'):
        plan_of(tmp_path)


def test_inputs_of_a_recipe_without_any_are_refused(tmp_path: Path) -> None:
    """VLLM has no inputs, so that one that is given is an error and not ignored."""
    raw = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    raw["deployments"]["tiny-local"]["inputs"] = {"backend_url": BACKEND}
    with pytest.raises(BerthError, match=r"recipe vllm has no input .* It has: none"):
        make_plan(load_config({**raw, "config_dir": str(ROOT / "config")}, ROOT), tmp_path)


def test_inputs_are_part_of_the_definition_and_change_no_other(tmp_path: Path) -> None:
    """Another backend is another definition; a deployment without inputs keeps the id that it had before them."""
    ids, serve = [], []
    for backend in (BACKEND, "http://node8:8000"):
        proxy = renderings(config_of(backend_url=backend), ROOT, (3, 11))["proxy"]
        ids.append(proxy.uses[0].definition.id)
        serve.append(proxy.uses[0].definition.full["serve"])
    assert ids[0] != ids[1]
    assert serve[0]["inputs"] == {"backend_url": BACKEND}
    (run,) = plan_of(tmp_path, backend_url=BACKEND).runs.values()
    assert "inputs" not in run.definition.full["serve"]


def test_a_service_without_a_client_is_refused_when_it_is_to_be_measured(tmp_path: Path) -> None:
    """The proxy can be planned around, rendered and staged, but no measurement of it starts."""
    plan = plan_of(tmp_path, backend_url=BACKEND)
    assert {run.deployment.name for run in plan.runs.values()} == {"tiny-local"}
    with pytest.raises(BerthError, match=r"deployments\.proxy\.recipe: litellm has no benchmark client"):
        plan.require_measurable()
    image = plan.image("local", "litellm", "1.103.0")
    assert (image["reference"], image["program"]) == ("litellm==1.103.0", "litellm")


def test_the_proxy_is_rendered_with_its_input_and_without_a_model(tmp_path: Path) -> None:
    """The rendered files name the backend, ask for both keys, and stage no model, because the proxy mounts none."""
    files = render_files(renderings(config_of(backend_url=BACKEND), ROOT, (3, 11))["proxy"])
    assert f"api_base: {BACKEND}/v1" in files["files/config.yaml"]
    assert "client.sh" not in files
    assert "litellm-1.103.0.json" in files["stage.sh"]
    assert "tiny-llama.json" not in files["stage.sh"]
    assert "no model at" not in files["server.sh"]
    for name in ("LITELLM_MASTER_KEY", "BACKEND_API_KEY"):
        assert f'"${{{name}:?' in files["server.sh"]


@pytest.mark.parametrize("path", sorted(LOCKS.glob("*.lock")), ids=lambda path: path.name)
def test_every_shipped_lock_is_read_and_belongs_to_a_recipe_or_a_client(path: Path) -> None:
    """Each lock can be read, and an image of a recipe or of a client names it with a package that it pins."""
    lock = read_lock(path)
    named = [
        image.package
        for recipe in sorted((ROOT / "config/recipes").glob("*.yaml"))
        for version in load_recipe(recipe).versions.values()
        for image in version.images.values()
        if image.lock == path.name
    ]
    images = [load_client(each).images["environment"] for each in (ROOT / "config/clients").glob("*.yaml")]
    named += [image["package"] for image in images if image["lock"] == path.name]
    assert named
    assert all(lock.has(package) for package in named)
