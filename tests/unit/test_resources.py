"""What a job asks Slurm or Flux for, from deployment and platform."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from snakemake_executor_plugin_slurm.validation import get_forbidden_slurm_options

from berth.config import Config, Deployment, Flux, Platform, Slurm, Staging
from berth.errors import BerthError
from berth.parse import load_config
from berth.resources import staging_resources, sweep_names, sweep_resources
from berth.slurm import judge_status_command

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config(yaml.safe_load((ROOT / "config/config.yaml").read_text()), ROOT)


@pytest.fixture
def hops(config: Config) -> Platform:
    return config.platforms["hops"]


@pytest.fixture
def big(config: Config) -> Deployment:
    return config.deployments["llama31-405b-hops"]


def test_papers_deployments_on_hops(config: Config, hops: Platform, big: Deployment) -> None:
    """Scout takes four GPUs, its 4-bit form two, and 405B four nodes; the script runs once, in the batch step."""
    scout = sweep_resources(config.deployments["scout-hops"], hops, 90)
    assert scout["nodes"] == 1
    assert scout["gres"] == "gpu:4"
    assert scout["runtime"] == 90
    assert (scout["mpi"], scout["tasks_per_gpu"], scout["tasks_per_node"]) == ("srun", 0, 2)
    assert sweep_resources(config.deployments["scout-w4a16-hops"], hops, 1)["gres"] == "gpu:2"
    four = sweep_resources(big, hops, 1)
    assert (four["nodes"], four["gres"]) == (4, "gpu:4")


def test_warning_reaches_the_batch_shell(hops: Platform, big: Deployment) -> None:
    """The signal goes to the batch shell, the only process of the job that acts on it."""
    assert "--signal=B:USR1@180" in str(sweep_resources(big, hops, 1)["slurm_extra"]).split()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"gpus": "gres", "gpu_type": "h100"}, {"gres": "gpu:h100:4"}),
        ({"account": "a", "partition": "p"}, {"slurm_account": "a", "slurm_partition": "p"}),
        ({"qos": "long", "constraint": "nvlink"}, {"qos": "long", "constraint": "nvlink"}),
        ({"cpus_per_node": 64}, {"cpus_per_task": 32}),
        ({}, {"cpus_per_task": -1}),
        ({"mem_mb_per_node": 512_000}, {"mem_mb": 512_000}),
    ],
)
def test_platform_settings_become_resources_of_the_plugin(
    hops: Platform, big: Deployment, settings: dict[str, object], expected: dict[str, object]
) -> None:
    """Each setting of the section `slurm` is a resource of the name that the plugin knows."""
    resources = sweep_resources(big, replace(hops, slurm=Slurm(**settings)), 1)  # type: ignore[arg-type]
    assert expected.items() <= resources.items()


def test_gpus_per_node_and_extra_options_are_options(hops: Platform, big: Deployment) -> None:
    """Sites without a gres of that name ask by --gpus-per-node; other options are handed on, none that is refused."""
    slurm = Slurm(gpus="gpus-per-node", gpu_type="h100", exclusive=True, extra=("--reservation=demo",))
    resources = sweep_resources(big, replace(hops, slurm=slurm), 1)
    assert "gres" not in resources
    extra = str(resources["slurm_extra"])
    assert extra == "--signal=B:USR1@180 --gpus-per-node=h100:4 --exclusive --no-kill --reservation=demo"
    assert not [name for pattern, name in get_forbidden_slurm_options().items() if re.search(pattern, extra)]


def test_nothing_is_asked_for_that_was_not_set(hops: Platform, big: Deployment) -> None:
    """What the platform leaves open is no resource, so that profile and site decide; GPUs may be left out."""
    resources = sweep_resources(big, replace(hops, slurm=Slurm(gpus="none")), 1)
    assert not {"gres", "slurm_account", "slurm_partition", "qos", "constraint", "mem_mb"} & set(resources)
    assert "--gpus" not in str(resources["slurm_extra"])
    cpu = replace(hops, accelerator=replace(hops.accelerator, kind="cpu"), slurm=Slurm())
    assert "gres" not in sweep_resources(big, cpu, 1)


def test_names_are_those_of_the_resources(config: Config, hops: Platform, big: Deployment) -> None:
    """Rules name resources before a deployment is known; the names are the same for all of a platform."""
    for platform in (hops, config.platforms["eldorado"]):
        assert set(sweep_names(platform)) == set(sweep_resources(big, platform, 1))
    assert sweep_names(config.platforms["local"]) == ()


def test_more_accelerators_than_a_node_has_are_refused(hops: Platform, big: Deployment) -> None:
    """Ranks that do not fit on the nodes are told with the numbers, before anything is submitted."""
    with pytest.raises(
        BerthError, match=r"16 ranks on 2 node\(s\) need 8 accelerators on one, but a node of hops has 4"
    ):
        sweep_resources(replace(big, nodes=2), hops, 1)


def test_flux_gets_nodes_gpus_minutes_and_options(config: Config) -> None:
    """On Flux the same deployment asks for nodes, GPUs of each, minutes, queue and bank."""
    platform = replace(
        config.platforms["eldorado"], flux=Flux(queue="pbatch", bank="b", exclusive=True, cpus_per_node=96)
    )
    resources = sweep_resources(config.deployments["scout-eldorado"], platform, 120)
    assert resources == {
        "nodes": 1,
        "gpus_per_node": 4,
        "cpus_per_task": 96,
        "runtime": 120,
        "flux_options": "--queue=pbatch --bank=b --exclusive --signal=SIGUSR1@180s",
    }


def test_staging_is_a_job_only_where_the_platform_says_so(config: Config, hops: Platform) -> None:
    """Staging runs beside Snakemake unless the platform gives it minutes; then it has its own partition and CPUs."""
    assert staging_resources(hops) == {}
    slurm = Slurm(account="a", partition="gpu", staging=Staging(minutes=240, partition="cpu", cpus=8))
    assert staging_resources(replace(hops, slurm=slurm)) == {
        "runtime": 240,
        "cpus_per_task": 8,
        "slurm_account": "a",
        "slurm_partition": "cpu",
    }
    flux = replace(config.platforms["eldorado"], flux=Flux(queue="q", staging=Staging(minutes=60)))
    assert staging_resources(flux)["flux_options"] == "--queue=q"


# The two lines as Slurm 22.05 prints them.
CONFIG = "AccountingStorageType   = {type}\nMinJobAge               = {age} sec\n"


@pytest.mark.parametrize("kind", ["(null)", "accounting_storage/none"])
def test_sacct_without_accounting_is_refused(kind: str) -> None:
    """Where Slurm keeps no accounting, sacct would never show a job's end."""
    with pytest.raises(BerthError, match="Set it to squeue"):
        judge_status_command("sacct", 40, CONFIG.format(type=kind, age=300))
    judge_status_command("squeue", 40, CONFIG.format(type=kind, age=300))


def test_squeue_that_forgets_too_early_is_refused() -> None:
    """Squeue is right only where it knows a job for three checks after its end."""
    with pytest.raises(BerthError, match=r"forgets a job 60 s after its end .* to 20 or less"):
        judge_status_command("squeue", 40, CONFIG.format(type="accounting_storage/none", age=60))
    judge_status_command("squeue", 20, CONFIG.format(type="accounting_storage/none", age=60))
    judge_status_command("sacct", 40, CONFIG.format(type="accounting_storage/slurmdbd", age=2))
