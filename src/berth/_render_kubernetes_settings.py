"""settings.md of a deployment on Kubernetes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from berth._render_settings import LAYERS, arguments, code, environment, facts, table
from berth.chartvalues import Pod, chart_values, startup_s
from berth.helm import template_argv
from berth.kubernetes import api_key_secret
from berth.shelltext import shown

if TYPE_CHECKING:
    from collections.abc import Sequence


def kubernetes_page(pod: Pod, warnings: Sequence[str]) -> str:
    """The page, in Markdown."""
    rendering = pod.rendering
    what = f"{rendering.recipe.description}: {rendering.model.repo} on {rendering.platform.label}."
    sections = [
        f"# {rendering.deployment.name}\n\n{what}",
        *(f"**Warning:** {warning}" for warning in warnings),
        "## What and where\n\n" + table(("what", "value"), _facts(pod)),
        LAYERS + table(("argument", "from", "why", "in place of"), arguments(rendering)),
        "## Environment of the server\n\n" + table(("variable", "from", "why", "in place of"), environment(rendering)),
        "## Secrets\n\n" + _secrets(pod),
        "## Values\n\n" + table(("value", "from", "why"), _values(pod)),
        "## What the chart makes of it\n\n" + _manifests(pod),
        "## What is not here\n\nThere is no client: a sweep has one, in a pod beside its server (docs/kubernetes.md).",
    ]
    return "\n\n".join(sections) + "\n"


def _facts(pod: Pod) -> list[tuple[str, str]]:
    settings = pod.settings
    rows = [(what, value) for what, value in facts(pod.rendering) if what != "listens on"]
    return [
        *rows,
        ("listens on", f"{pod.rendering.platform.host}, port {pod.rendering.port} of its pod"),
        ("release", pod.release),
        ("namespace", settings.namespace or "the current one"),
        ("chart", "workflow/charts/vllm of Berth" if settings.own_chart else settings.chart),
    ]


def _secrets(pod: Pod) -> str:
    rows = [(code(pod.settings.store_secret), "`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`", "the download alone")]
    rows += [(code(api_key_secret(pod.release)), code(name), "the server") for name in pod.container.secret_env]
    text = "install.sh makes them from the environment; the chart knows their names.\n\n"
    text += table(("secret", "keys", "who reads it"), rows)
    if not pod.settings.own_chart:
        text += (
            "\n\nThe upstream chart takes the server's key as a whole secret (`externalConfigs`): a secret without "
            "that key would be a server without one."
        )
    return text


def _values(pod: Pod) -> list[tuple[str, str, str]]:
    """The values that follow from model and platform; those of the image are in the tables above."""
    values, platform = chart_values(pod), pod.rendering.platform
    site, model = f"platform {platform.name}", f"model {pod.rendering.model.name}"
    seconds = startup_s(pod.rendering.model.weights_bytes)
    gib = pod.rendering.model.weights_bytes / 2**30
    rows = [
        ("image.tag", "recipe", "By digest where it is known, because a tag can move."),
        ("containerPort", site, "The first port of server.ports: a pod has its own."),
        (
            "resources",
            site,
            "Reserved in full: who shares memory with others is killed when it is short.",
        ),
        ("shm", site, "Ranks exchange data in /dev/shm, and a container's own has 64 MB."),
        ("gpuModels", site, "Only nodes with this accelerator."),
        ("extraInit.pvcStorage", model, f"{gib:.0f} GiB of weights, a tenth more, and 10 GiB."),
        ("extraInit.s3modelpath", site, "Where Berth pushes the model."),
        ("startupProbe", model, f"{seconds} s: what a slow volume needs for the weights. Until then nothing kills it."),
        ("readinessProbe", "recipe", "A server that does not answer gets no requests."),
        ("livenessProbe", "recipe", "Three minutes without an answer: under full load a server answers late."),
        ("maxUnavailablePodDisruptionBudget", site, "Pods that a drain may take away at a time."),
    ]
    if pod.settings.own_chart:
        rows += [
            ("extraInit.volume", site, "The server reads it and writes nothing."),
            ("cache", site, "HOME and every cache: OpenShift's user is a random one, who can write nowhere else."),
            ("podSecurityContext", site, "No root in a pod."),
        ]
        rows += [("route", site, "TLS, and as long as a request may take.")] if "route" in values else []
        rows += [("ingress", site, "TLS, and as long as a request may take.")] if "ingress" in values else []
    return [(code(name), source, why) for name, source, why in rows]


def _manifests(pod: Pod) -> str:
    command = template_argv(pod.settings, pod.rendering.root, pod.release, str(pod.rendering.folder / "values.yaml"))
    return (
        "manifests.yaml, where helm was on PATH when this was rendered; it is the output of\n\n"
        f"    {shown(' '.join(command))}"
    )
