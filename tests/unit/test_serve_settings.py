"""What keeping a deployment up takes, from the project's own configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from berth.config import ServiceSettings
from berth.errors import BerthError
from berth.keeper import backoff_s, lead_of
from berth.parse import load_config
from berth.servesettings import nested, serve_request, term_request, term_resources
from berth.sweep import SweepRequest
from berth.term import TermRequest

ROOT = Path(__file__).resolve().parents[2]
ARGV = ["/env/bin/python", "--profile", "profiles/hops", "serve", "--config", "deployment=serve", "until=36h"]


def config_of(platform: str, **changes: Any) -> Any:
    raw = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    return load_config({**raw, "platform": platform, **changes}, ROOT)


def test_a_request_is_plain_values() -> None:
    """Keeper and job get what Snakemake can hand over, and the job all that a server is started from."""
    config = config_of("local", deployment="tiny-local", services={"minutes": 60, "drain_s": 30})
    request = serve_request(config, ROOT, ARGV, local=True)
    assert (request.scheduler, request.term_s, request.key_variable) == ("local", None, "VLLM_API_KEY")
    assert request.target.format(number=3) == "results/services/local/tiny-local/t3.done"
    assert request.staged == ["results/staged/local/tiny-llama.json", "results/images/local/vllm-0.32.0.json"]
    term = TermRequest(**term_request(config, ROOT, 3))
    server = SweepRequest(**term.server)
    # vLLM from 0.18 on aborts what is in flight unless it is told otherwise; other versions have no such flag.
    assert server.deployment["args"]["shutdown-timeout"] == 30
    assert server.id.key == f"_serve/tiny-local/local/{server.spec}/run2"
    assert term_resources(config) == {}


def test_versions_that_wait_get_no_flag() -> None:
    """VLLM 0.9.1 answers what it has begun without being told; a deployment's own argument stays."""
    hub = {"deployment": "scout-hops"}
    assert "shutdown-timeout" not in term_request(config_of("hops", **hub), ROOT, 1)["server"]["deployment"]["args"]
    raw = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    raw["deployments"]["tiny-local"]["args"] = {"shutdown-timeout": 5}
    config = config_of("local", deployment="tiny-local", deployments=raw["deployments"])
    assert term_request(config, ROOT, 1)["server"]["deployment"]["args"] == {"shutdown-timeout": 5}


def test_a_term_asks_for_the_nodes_of_a_sweep() -> None:
    """A term has the resources of a sweep, for services.minutes or the site's longest job."""
    config = config_of("hops", deployment="scout-hops", services={"minutes": 9999})
    asked = term_resources(config)
    assert (asked["nodes"], asked["gres"], asked["runtime"]) == (1, "gpu:4", 2880)


@pytest.mark.parametrize(
    ("platform", "changes", "message"),
    [
        ("hops", {}, "Say --config deployment=NAME. Deployments on hops: llama31-405b-hops, scout-hops"),
        ("hops", {"deployment": "scout"}, 'there is no deployment "scout". Did you mean "scout-hops"'),
        ("hops", {"deployment": "scout-eldorado"}, "is of platform eldorado, and this is hops"),
        ("local", {"deployment": "tiny-local", "until": "2020-01-01"}, "has passed"),
        ("local", {"deployment": "tiny-local", "services": {"drain": 1}}, "drain_s"),
    ],
)
def test_what_cannot_be_served_is_one_error(platform: str, changes: dict[str, Any], message: str) -> None:
    """An unknown, missing or foreign deployment, a past date and an unknown key are told before anything starts."""
    with pytest.raises(BerthError, match=message.replace(".", r"\.")):
        serve_request(config_of(platform, **changes), ROOT, ARGV, local=True)


def pinned(tmp_path: Path) -> Path:
    """A copy of the configuration in which Scout has a commit."""
    folder = tmp_path / "config"
    for source in (ROOT / "config").rglob("*.yaml"):
        target = folder / source.relative_to(ROOT / "config")
        target.parent.mkdir(parents=True, exist_ok=True)
        text = source.read_text()
        if source.name == "llama-4-scout.yaml":
            value = yaml.safe_load(text)
            text = yaml.safe_dump({**value, "revision": "0" * 40})
        target.write_text(text)
    return folder


@pytest.mark.parametrize(
    ("services", "message"),
    [({"drain_s": 300}, "do not fit into the 180 s"), ({"minutes": 4}, "no server could be ready in it")],
)
def test_times_that_do_not_fit_a_job_are_refused(tmp_path: Path, services: dict[str, Any], message: str) -> None:
    """What drains must fit between the scheduler's warning and the end, and a start before it."""
    config = config_of("hops", deployment="scout-hops", services=services, config_dir=str(pinned(tmp_path)))
    with pytest.raises(BerthError, match=message):
        serve_request(config, ROOT, ARGV, local=False)


def test_options_of_the_call_reach_its_jobs() -> None:
    """The Snakemake of a job has the options of the first one, and another target in the place of the rule."""
    assert nested(ARGV, ["results/t1.done"]) == [
        "/env/bin/python",
        "-m",
        "snakemake",
        "--profile",
        "profiles/hops",
        "results/t1.done",
        "--config",
        "deployment=serve",
        "until=36h",
    ]


def test_quick_failures_wait_longer_and_longer() -> None:
    """The wait doubles with each, up to its limit, also after very many."""
    settings = ServiceSettings(backoff_s=10, backoff_max_s=1800)
    assert [backoff_s(count, settings) for count in (1, 2, 3, 9, 10_000)] == [10, 20, 40, 1800, 1800]


def test_a_successor_is_started_in_time() -> None:
    """It has the start of the one before it and a margin, but no more than half of a job's time."""
    assert lead_of(600, 300, 86400) == 900
    assert lead_of(3000, 300, 3600) == 1800


def test_a_term_on_flux_is_submitted_as_a_sweep_is() -> None:
    """What profiles/eldorado hands to flux-submit.sh: nodes, GPUs, CPUs, minutes and the options, in its words."""
    asked = term_resources(config_of("eldorado", deployment="scout-eldorado"))
    assert asked == {
        "nodes": 1,
        "gpus_per_node": 4,
        "cpus_per_task": 1,
        "runtime": 1440,
        "flux_options": "--queue=pbatch --exclusive --signal=SIGUSR1@180s",
    }
