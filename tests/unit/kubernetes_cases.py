"""Deployments on clusters of Kubernetes that the tests of values and chart share."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from berth.chartvalues import Pod, in_pod
from berth.config import Network, Registry
from berth.kubernetes import Expose
from berth.parse import load_config
from berth.rendering import Rendering, renderings

if TYPE_CHECKING:
    from berth.config import Config

ROOT = Path(__file__).resolve().parents[2]


@functools.cache
def configured() -> Config:
    """The shipped configuration, with Goodall at hand."""
    raw = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    return load_config({**raw, "platform": "goodall"}, ROOT)


def goodall(
    *, kind: str = "cuda", deployment: dict[str, Any] | None = None, site: dict[str, Any] | None = None, **settings: Any
) -> Rendering:
    """Scout in bf16 on a Goodall with four accelerators in a node: figure 6, unless something is changed.

    `deployment` changes the deployment, `site` the platform, `settings` its section kubernetes.
    """
    config = configured()
    platform = config.platforms["goodall"]
    assert platform.kubernetes is not None
    accelerator = dataclasses.replace(platform.accelerator, kind=kind, per_node=4)
    platform = dataclasses.replace(
        platform,
        accelerator=accelerator,
        kubernetes=dataclasses.replace(platform.kubernetes, **settings),
        **(site or {}),
    )
    changes = {
        "name": "scout",
        "model": "llama-4-scout",
        "tensor_parallel": 4,
        "args": {"max-model-len": 65536},
        "env": {},
    }
    wanted = dataclasses.replace(config.deployments["scout-w4a16-goodall"], **{**changes, **(deployment or {})})
    experiment = dataclasses.replace(config.experiments["fig10"], deployments=(wanted.name,), runs={wanted.name: 1})
    config = dataclasses.replace(
        config,
        platforms={**config.platforms, "goodall": platform},
        deployments={**config.deployments, wanted.name: wanted},
        experiments={"fig10": experiment},
    )
    return renderings(config, ROOT, (3, 11))[wanted.name]


def pod(**changes: Any) -> Pod:
    """The same in its pod."""
    return in_pod(goodall(**changes))


MANY_NODES = {"version": "0.31.0", "nodes": 4, "pipeline_parallel": 4}
UPSTREAM = "/somewhere/chart-helm"
# What a site can choose, each at least once.
CASES: dict[str, dict[str, Any]] = {
    "figure-6": {},
    "one-gpu-w4a16": {"deployment": {"model": "llama-4-scout-w4a16", "tensor_parallel": 1}},
    "several-nodes": {"deployment": MANY_NODES, "access_mode": "ReadWriteMany"},
    "rocm": {"kind": "rocm", "deployment": {"version": "0.31.0"}, "gpu_models": ("AMD_Instinct_MI300A",)},
    "no-route": {"expose": None, "namespace": "", "gpu_models": ()},
    "ingress": {"expose": Expose("ingress", "apps.example.gov", "a-certificate", "nginx", 1800)},
    "ingress-of-the-cluster": {"expose": Expose("ingress", "apps.example.gov")},
    "route-with-certificate": {"expose": Expose("route", "apps.example.gov", "a-certificate")},
    "plain-kubernetes": {"run_as_user": 1000, "storage_class": "nfs", "cache_gib": 50, "runtime_class": "nvidia"},
    "shared-claim": {"claim": "models", "access_mode": "ReadWriteMany"},
    "kept-claim": {"keep_model": True},
    "other-download-image": {"download_image": "registry.example.gov:5000/python:3.12-slim"},
    "certificates": {"ca_config_map": "site-ca"},
    "certificates-of-openshift": {"openshift_ca": True},
    "placed": {
        "node_selector": {"pool": "gpu"},
        "tolerations": ({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},),
        "pull_secrets": ("quay",),
        "max_unavailable": 0,
    },
    "network": {
        "site": {"network": Network(https_proxy="http://proxy.example.gov:3128", ca_bundle="/etc/ssl/site.pem")},
        "ca_config_map": "site-ca",
    },
    "registry": {"site": {"registry": Registry("quay.example.gov:8443", "mirrored")}},
}
