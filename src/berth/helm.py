"""Helm: the command that installs a chart, and what the chart makes of its values without a cluster."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

from berth.errors import BerthError
from berth.kubernetes import CHART

if TYPE_CHECKING:
    from pathlib import Path

    from berth.kubernetes import Kubernetes

INSTALL = "https://helm.sh/docs/intro/install, or tools/install-helm.sh"
_TIMEOUT_S = 120.0


def chart_words(settings: Kubernetes, root: Path) -> list[str]:
    """The chart as Helm takes it: a path, or an address with its version."""
    if settings.own_chart:
        return [str(CHART)]
    local = "://" not in settings.chart and (root / settings.chart).is_dir()
    version = ["--version", settings.chart_version] if settings.chart_version else []
    return [str(root / settings.chart) if local else settings.chart, *version]


def namespace_words(settings: Kubernetes) -> list[str]:
    """Context and namespace for Helm; empty for those that are current."""
    context = [f"--kube-context={settings.context}"] if settings.context else []
    return [*context, *([f"--namespace={settings.namespace}"] if settings.namespace else [])]


def install_argv(settings: Kubernetes, root: Path, release: str, values: str) -> list[str]:
    """The command that installs a release, or brings it up to date."""
    words = ["helm", "upgrade", "--install", release, *chart_words(settings, root)]
    return [*words, *namespace_words(settings), f"--values={values}"]


def template_argv(settings: Kubernetes, root: Path, release: str, values: str) -> list[str]:
    """The command that shows what a release would be; it asks no cluster."""
    words = ["helm", "template", release, *chart_words(settings, root)]
    namespace = [f"--namespace={settings.namespace}"] if settings.namespace else []
    return [*words, *namespace, f"--values={values}"]


def is_installed() -> bool:
    """Whether helm is on PATH."""
    return shutil.which("helm") is not None


def rendered(argv: list[str]) -> str:
    """The manifests that a command of template_argv prints.

    Raises:
        BerthError: Helm refuses; its own words say why.
    """
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BerthError(f"helm: {error}. Install it ({INSTALL}), or take it off PATH to render without it.") from None
    if done.returncode != 0:
        raise BerthError(f"{' '.join(argv)} failed:\n{done.stderr.strip()}")
    return done.stdout
