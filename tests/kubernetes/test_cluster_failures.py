"""What a real cluster says of a server that does not come up, in the words of the sweep's failure."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import yaml

if TYPE_CHECKING:
    from cluster_site import OnCluster, Site

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(600)]


def causes(work: OnCluster) -> dict[str, dict[str, Any]]:
    """The failure of each deployment."""
    records = [json.loads(path.read_text()) for path in work.failures().values()]
    return {record["point"]["deployment"]: record["failure"] for record in records}


@pytest.fixture(scope="module")
def failed(site: Site) -> dict[str, dict[str, Any]]:
    """The failures of deployments that ask for what is not there, one after the other in one workflow."""
    work = site.workspace("failing", image=site.standin, levels=(1,), platform={"schedule_s": 5})
    recipes = work.path / "config/recipes"
    shutil.copy(recipes / "vllm.yaml", recipes / "vllm-nowhere.yaml")
    recipe = yaml.safe_load((recipes / "vllm-nowhere.yaml").read_text())
    recipe["versions"]["0.32.0"]["images"]["cuda"]["reference"] = site.reference.rpartition("/")[0] + "/nowhere:1"
    (recipes / "vllm-nowhere.yaml").write_text(yaml.safe_dump(recipe))
    platform = work.path / "config/platforms/goodall.yaml"
    settings = yaml.safe_load(platform.read_text())
    settings["recipes"]["vllm-nowhere"] = settings["recipes"]["vllm"]
    platform.write_text(yaml.safe_dump(settings))

    def change(config: dict[str, Any]) -> None:
        tiny = config["deployments"].pop("tiny")
        config["deployments"] = {
            "too-many": {**tiny, "tensor_parallel": 8},
            "no-image": {**tiny, "recipe": "vllm-nowhere"},
        }
        config["experiments"]["try"]["deployments"] = list(config["deployments"])

    work.configure(change)
    output = work.run("points", code=None, **site.environ())
    found = causes(work)
    assert set(found) == {"too-many", "no-image"}, output[-4000:]
    return found


def test_a_request_for_too_many_accelerators_ends_with_the_schedulers_reason(failed: dict[str, dict[str, Any]]) -> None:
    """It waits as long as the platform says, and then the scheduler's own words are the cause."""
    cause = failed["too-many"]["cause"]
    assert "The scheduler: " in cause
    assert "Insufficient nvidia.com/gpu" in cause
    assert "kubernetes.schedule_s" in failed["too-many"]["remedy"]


def test_an_image_that_is_not_there_ends_at_once(failed: dict[str, dict[str, Any]]) -> None:
    """The registry's answer is the cause."""
    assert "cannot be pulled" in failed["no-image"]["cause"]
    assert "not found" in failed["no-image"]["cause"]
    assert "pull_secrets" in failed["no-image"]["remedy"]


def test_a_server_that_ends_is_told_with_its_exit_code(site: Site, failed: dict[str, dict[str, Any]]) -> None:
    """A container that ends at once is no endless wait: the sweep says how it ended, with the end of its log."""
    del failed
    work = site.workspace("ends", image=site.standin, levels=(1,), platform={"run_as_user": 1001})
    recipe = yaml.safe_load((work.path / "config/recipes/vllm.yaml").read_text())
    recipe["arguments"] = ["no-such-mode"]
    (work.path / "config/recipes/vllm.yaml").write_text(yaml.safe_dump(recipe))
    output = work.run("points", code=None, **site.environ())
    found = causes(work)["tiny"]
    assert "ended with exit code 1" in found["cause"], output[-3000:]
    assert site.left() == []


def test_a_claim_without_a_volume_is_told(site: Site, failed: dict[str, dict[str, Any]]) -> None:
    """A storage class that does not exist is named, and nothing is left, the claim included."""
    del failed
    work = site.workspace(
        "no-volume",
        image=site.standin,
        levels=(1,),
        platform={"schedule_s": 5, "storage_class": "nowhere", "keep_model": False},
    )
    output = work.run("points", code=None, **site.environ())
    cause = causes(work)["tiny"]["cause"]
    assert "has no volume" in cause, output[-3000:]
    assert "nowhere" in cause
    assert site.left() == []
