"""Checks of a cluster of Kubernetes: helm 3 and newer, kubectl 1.20 and newer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from berth import helm
from berth.checkup import Answer, Result, ask, fail, ok, warn
from berth.helm import namespace_words

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from berth.kubernetes import Kubernetes

# A cluster that is away must not hold up the report.
_TIMEOUT = "--request-timeout=10s"
# The chart's own, and what a server with a volume is made of.
_KINDS = ("deployments.apps", "jobs.batch", "services", "persistentvolumeclaims", "secrets")


def kubernetes_checks(settings: Kubernetes, secrets: Sequence[str]) -> Iterator[Result]:
    """Whether a deployment could be installed: programs, cluster, namespace, rights, and secrets by name."""
    yield _helm()
    client = ask("kubectl", "version", "--client", "--output=yaml")
    if client.code is None:
        yield fail("Kubernetes: kubectl is not on PATH", "install it, or run tools/install-helm.sh and put it on PATH")
        return
    cluster = [word.replace("--kube-context", "--context") for word in namespace_words(settings)]
    answer = ask("kubectl", *cluster, _TIMEOUT, "get", "--raw=/version")
    if not answer.good:
        yield fail(
            f"Kubernetes: the cluster does not answer: {answer.complaint}",
            "log in (oc login), or correct KUBECONFIG or kubernetes.context in the platform file",
        )
        return
    yield ok(f"Kubernetes: the cluster answers, version {_version(answer)}")
    if settings.namespace:
        namespace = ask("kubectl", *cluster, _TIMEOUT, "get", "namespace", settings.namespace, "--output=name")
        yield _namespace(settings.namespace, namespace)
        if not namespace.good and "Forbidden" not in namespace.err:
            return
    yield from _rights(cluster)
    for name in secrets:
        yield _secret(name, ask("kubectl", *cluster, _TIMEOUT, "get", "secret", name, "--output=name"))


def _helm() -> Result:
    answer = ask("helm", "version", "--short")
    if not answer.good:
        return fail("Kubernetes: helm is not on PATH", helm.INSTALL)
    return ok(f"Kubernetes: helm {answer.out.strip()}")


def _version(answer: Answer) -> str:
    found = [line.split('"')[3] for line in answer.out.splitlines() if '"gitVersion"' in line]
    return found[0] if found else "unknown"


def _namespace(name: str, answer: Answer) -> Result:
    if answer.good:
        return ok(f"Kubernetes: the namespace {name} exists")
    if "Forbidden" in answer.err:
        return warn(f"Kubernetes: the namespace {name} cannot be looked at", "right on clusters that hide namespaces")
    return fail(
        f"Kubernetes: namespace {name}: {answer.complaint}",
        f"kubectl create namespace {name} (oc new-project), or correct kubernetes.namespace in the platform file",
    )


def _rights(cluster: Sequence[str]) -> Iterator[Result]:
    denied = [kind for kind in _KINDS if not ask("kubectl", *cluster, _TIMEOUT, "auth", "can-i", "create", kind).good]
    if denied:
        yield fail(f"Kubernetes: you may not create {', '.join(denied)}", "ask the namespace's owner for the role edit")
    else:
        yield ok(f"Kubernetes: you may create {', '.join(_KINDS)}")


def _secret(name: str, answer: Answer) -> Result:
    if answer.good:
        return ok(f"Kubernetes: the secret {name} is there")
    return warn(f"Kubernetes: there is no secret {name}", "the rendered install.sh makes it from the environment")
