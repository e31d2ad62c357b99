"""Checks of a cluster of Kubernetes: helm 3 and newer, kubectl 1.20 and newer."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from berth import helm
from berth.checkup import Answer, Result, ask, fail, ok, warn
from berth.helm import namespace_words

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from berth.kubernetes import Kubernetes

# A cluster that is away must not hold up the report.
_TIMEOUT = "--request-timeout=10s"
# The chart's own, and what a server with a volume is made of.
_KINDS = ("deployments.apps", "jobs.batch", "services", "configmaps", "persistentvolumeclaims", "secrets", "pods")
# Of a sweep: it starts its client and reads its results in a pod, and asks the server through a forwarded port.
_ACTS = (("create", "pods/exec"), ("create", "pods/portforward"), ("get", "pods/log"), ("list", "events"))


def kubernetes_checks(
    settings: Kubernetes, secrets: Sequence[str], environ: Mapping[str, str] | None = None
) -> Iterator[Result]:
    """Whether a deployment could be installed: programs, cluster, namespace, rights, and secrets by name.

    `environ` is what helm and kubectl are asked in, None this process's.
    """
    asked = partial(ask, environ=environ)
    yield _helm(asked)
    client = asked("kubectl", "version", "--client", "--output=yaml")
    if client.code is None:
        yield fail("Kubernetes: kubectl is not on PATH", "install it, or run tools/install-helm.sh and put it on PATH")
        return
    cluster = [word.replace("--kube-context", "--context") for word in namespace_words(settings)]
    answer = asked("kubectl", *cluster, _TIMEOUT, "get", "--raw=/version")
    if not answer.good:
        yield fail(
            f"Kubernetes: the cluster does not answer: {answer.complaint}",
            "log in (oc login), or correct KUBECONFIG or kubernetes.context in the platform file",
        )
        return
    yield ok(f"Kubernetes: the cluster answers, version {_version(answer)}")
    if settings.namespace:
        namespace = asked("kubectl", *cluster, _TIMEOUT, "get", "namespace", settings.namespace, "--output=name")
        yield _namespace(settings.namespace, namespace)
        if not namespace.good and "Forbidden" not in namespace.err:
            return
    yield from _rights(cluster, asked)
    for name in secrets:
        yield _secret(name, asked("kubectl", *cluster, _TIMEOUT, "get", "secret", name, "--output=name"))


def _helm(asked: Callable[..., Answer]) -> Result:
    answer = asked("helm", "version", "--short")
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


def _rights(cluster: Sequence[str], asked: Callable[..., Answer]) -> Iterator[Result]:
    wanted = (*(("create", kind) for kind in _KINDS), *_ACTS)
    denied = [pair for pair in wanted if not asked("kubectl", *cluster, _TIMEOUT, "auth", "can-i", *pair).good]
    if denied:
        told = ", ".join(" ".join(pair) for pair in denied)
        yield fail(f"Kubernetes: you may not {told}", "ask the namespace's owner for the role edit")
    else:
        yield ok(f"Kubernetes: you may {', '.join(' '.join(pair) for pair in wanted)}")


def _secret(name: str, answer: Answer) -> Result:
    if answer.good:
        return ok(f"Kubernetes: the secret {name} is there")
    return warn(
        f"Kubernetes: there is no secret {name}", "a sweep and the rendered install.sh make it from the environment"
    )
