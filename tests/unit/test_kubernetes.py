"""A deployment on Kubernetes: settings, values for both charts, and the scripts that install it."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from kubernetes_cases import CASES, MANY_NODES, ROOT, UPSTREAM, goodall, pod

from berth.chartvalues import chart_values, in_pod, not_rendered, startup_s
from berth.errors import BerthError
from berth.kubernetes import release_name
from berth.parse import load_config
from berth.render import manifests_argv, render_files, tell_rendered, write_rendered

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from berth.rendering import Rendering

GOLDEN = ROOT / "tests" / "golden"
SECRETS = {
    "VLLM_API_KEY": "key-of-the-test",
    "AWS_ACCESS_KEY_ID": "id-of-the-test",
    "AWS_SECRET_ACCESS_KEY": "secret of the test, with = and '\"$x",
}


def env_of(values: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each["value"] for each in values["image"]["env"]}


def tokens(values: dict[str, Any], place: str) -> set[str]:
    """The values of a chart as single tokens: a flag and its value are one, whichever way they are spelled."""
    command: list[str] = []
    for word in values["image"]["command"]:
        if command and command[-1] in ("--host", "--port", "--served-model-name"):
            command[-1] += f"={word}"
        else:
            command.append(word)
    env = values["env"] if place == "env" else values["image"]["env"]
    image = {key: value for key, value in values["image"].items() if key not in ("command", "env")}
    return {
        f"{place}:",
        *command,
        *(f"{each['name']}={each['value']}" for each in env),
        *(f"image.{key}={value}" for key, value in image.items()),
        *(f"{key}:" for key in values if key not in ("image", "env")),
    }


@pytest.mark.parametrize(("chart", "section"), [("", "figure-6-own-chart"), (UPSTREAM, "figure-6-upstream-chart")])
def test_every_difference_from_figure_6_is_listed(chart: str, section: str) -> None:
    """The paper's values and ours differ in exactly what the list holds, each with a reason, for either chart."""
    listed = yaml.safe_load((GOLDEN / "paper-differences.yaml").read_text())
    paper = tokens(yaml.safe_load((GOLDEN / "paper-figure-6.yaml").read_text()), "env")
    ours = tokens(chart_values(pod(chart=chart)), "image.env")
    differences = [*listed["figure-6"], *listed[section]]
    assert all(item["reason"] for item in differences)
    assert sorted(paper - ours) == sorted(token for item in differences for token in item.get("paper", []))
    assert sorted(ours - paper) == sorted(token for item in differences for token in item.get("ours", []))


def test_the_start_may_take_as_long_as_the_weights_need() -> None:
    """The startup probe waits longer for a larger model, and longer than the published start took."""
    seconds = [startup_s(size) for size in (0, 62_000_000_000, 217_283_738_720, 811_706_000_000)]
    assert seconds == sorted(set(seconds))
    # Scout was ready after 840 s from a parallel file system, and the paper says 30 minutes and more of large models.
    assert seconds[2] > 1800
    probe = chart_values(pod())["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] == seconds[2]


def test_accelerators_of_a_pod_are_what_its_ranks_need() -> None:
    """One pod gets its ranks' accelerators by the name of their vendor, and a CPU's pod gets none."""
    assert chart_values(pod())["resources"]["limits"]["nvidia.com/gpu"] == 4
    assert chart_values(pod(**CASES["several-nodes"]))["resources"]["limits"]["nvidia.com/gpu"] == 4
    rocm = chart_values(pod(**CASES["rocm"]))
    assert rocm["resources"]["requests"]["amd.com/gpu"] == 4
    assert rocm["gpuModelLabel"] == "amd.com/gpu.product-name"
    assert rocm["image"]["repository"] == "docker.io/vllm/vllm-openai-rocm"


def test_what_the_deployment_says_reaches_the_server_as_it_is() -> None:
    """Kubernetes would replace $(NAME) and $$ in arguments and variables; they are escaped, other dollars are not."""
    given = '{"a": "$(HOME) $$ $x"}'
    values = chart_values(
        pod(deployment={"args": {"override-generation-config": given}, "env": {"EXTRA": "$(X)", "PRICE": "$1"}})
    )
    expanded = [word.replace("$$", "$") for word in values["image"]["command"]]
    assert f"--override-generation-config={given}" in expanded
    assert env_of(values)["EXTRA"] == "$$(X)"
    assert env_of(values)["PRICE"] == "$1"


def test_several_nodes_run_one_script_that_bash_runs(tmp_path: Path) -> None:
    """By its number a pod is the first, which answers, or another one, which works for it; each knows its rank."""
    values = chart_values(pod(**CASES["several-nodes"]))
    shell, flags, script = values["image"]["command"]
    assert values["nodes"] == 4
    assert env_of(values)["VLLM_HOST_IP"] == "$(NODE_ADDRESS)"
    (tmp_path / "vllm").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "vllm").chmod(0o755)
    path = f"{tmp_path}:/usr/bin:/bin"

    def started_as(host: str) -> list[str]:
        env = {"PATH": path, "HOSTNAME": host, "HEAD_ADDRESS": "scout-0.scout-nodes.ns.svc", "NODE_ADDRESS": "10.0.0.7"}
        done = subprocess.run(
            [shell, flags, script.replace("$$", "$")], env=env, capture_output=True, text=True, check=True
        )
        return done.stdout.splitlines()

    first, third = started_as("scout-0"), started_as("scout-3")
    assert "--node-rank=0" in first
    assert "--headless" not in first
    assert "--node-rank=3" in third
    assert "--headless" in third
    for argv in (first, third):
        assert "--master-addr=scout-0.scout-nodes.ns.svc" in argv
        assert "--nnodes=4" in argv
        assert argv[:2] == ["serve", "/data/meta-llama/Llama-4-Scout-17B-16E-Instruct"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"deployment": {"nodes": 4, "pipeline_parallel": 4}, "access_mode": "ReadWriteMany"}, "with Ray"),
        ({"deployment": MANY_NODES}, "Use ReadWriteMany"),
        ({"deployment": MANY_NODES, "chart": UPSTREAM}, "one node only"),
        ({"kind": "cpu", "deployment": {"version": "0.32.0", "tensor_parallel": 1}}, "no container image"),
    ],
)
def test_what_the_chart_cannot_do_is_left_out_aloud(
    changes: dict[str, Any], told: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A deployment that a chart cannot put up has no files, and the run says which, why, and what to do."""
    why = not_rendered(goodall(**changes))
    assert why is not None
    assert why.startswith("scout is not rendered: ")
    assert told in why
    tell_rendered([], [why])
    assert why in caplog.text


@pytest.mark.parametrize("case", sorted(CASES))
def test_what_it_can_do_is_rendered(case: str) -> None:
    """Every case that the other tests use has files, and its values are the same when they are read back."""
    rendering = goodall(**CASES[case])
    assert not_rendered(rendering) is None
    texts = render_files(rendering)
    assert sorted(texts) == ["install.sh", "settings.md", "stage.sh", "uninstall.sh", "values.json", "values.yaml"]
    assert yaml.safe_load(texts["values.yaml"]) == chart_values(in_pod(rendering))


def test_releases_have_names_that_helm_takes_and_no_two_the_same() -> None:
    """A name that Kubernetes takes stays; others are changed, and stay apart."""
    assert release_name("scout-w4a16-goodall") == "scout-w4a16-goodall"
    odd = ["Scout", "scout.1", "scout_1", "-scout-", "s" * 80, "s" * 81, "_", "0"]
    names = [release_name(name) for name in odd]
    assert len(set(names)) == len(odd)
    assert all(re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", name) and len(name) <= 53 for name in names)


def platform_with(tmp_path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Read the shipped configuration with a changed platform file."""
    shutil.copytree(ROOT / "config", tmp_path / "config")
    file = tmp_path / "config/platforms/goodall.yaml"
    value = yaml.safe_load(file.read_text())
    change(value)
    file.write_text(yaml.safe_dump(value))
    raw = yaml.safe_load((tmp_path / "config/config.yaml").read_text())
    load_config({**raw, "platform": "goodall"}, tmp_path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda p: p.update(runtime="podman"), "scheduler and runtime are kubernetes both"),
        (lambda p: p.update(scheduler="local"), "it is only for scheduler kubernetes"),
        (lambda p: p.update(store={"kind": "embedded", "bucket": "models"}), "cannot reach an embedded store"),
        (lambda p: p["paths"].update(scratch="/data/cache"), "neither inside the other"),
        (lambda p: p["paths"].update(models="data"), "Give absolute paths"),
        (lambda p: p["kubernetes"]["expose"].update(kind="ingress"), "kubernetes.expose.domain"),
        (lambda p: p["kubernetes"].update(namspace="x"), 'Did you mean "namespace"'),
        (lambda p: p["kubernetes"].update(namespace="Not A Name"), "kubernetes.namespace"),
        (lambda p: p["kubernetes"].update(chart="x", gpu_models=[]), "kubernetes.gpu_models"),
        (lambda p: (p["kubernetes"].update(chart="x"), p["accelerator"].update(kind="rocm")), "nvidia.com/gpu alone"),
    ],
)
def test_keys_that_do_not_go_together(tmp_path: Path, change: Callable[[dict[str, Any]], Any], told: str) -> None:
    """Each is one error that names the platform file."""
    with pytest.raises(BerthError) as caught:
        platform_with(tmp_path, change)
    assert told in str(caught.value)
    assert "platforms/goodall.yaml" in str(caught.value)


def test_every_setting_is_explained() -> None:
    """settings.md has each argument and variable of the server with the reason that stands in the recipe."""
    rendering = goodall()
    page = render_files(rendering)["settings.md"]
    for told in rendering.server.explanations:
        assert told.reason.replace("|", "\\|") in page
    assert "`--max-model-len=65536`" in page
    assert "`HF_HOME=/cache/huggingface`" in page
    assert f"{startup_s(217_283_738_720)} s" in page


def test_the_pinned_revision_is_asked_of_the_store() -> None:
    """The download takes no other commit than the configured one; one that is not pinned is taken as it comes."""
    assert chart_values(pod())["extraInit"]["modelRevision"] == "92f3b1597a195b523d8d9e5700e57e4fbb8f20d3"
    assert chart_values(pod(**CASES["one-gpu-w4a16"]))["extraInit"]["modelRevision"] == ""


def test_proxies_reach_server_and_download() -> None:
    """The site's proxies are in both; its certificates are a file of this machine, and pods have another."""
    values = chart_values(pod(**CASES["network"]))
    server = env_of(values)
    download = {each["name"]: each["value"] for each in values["extraInit"]["modelDownload"]["env"]}
    for env in (server, download):
        assert env["https_proxy"] == env["HTTPS_PROXY"] == "http://proxy.example.gov:3128"
        assert "localhost" in env["no_proxy"]
    assert "/etc/ssl/site.pem" not in str(values)
    assert values["caBundle"]["configMap"] == "site-ca"


def test_the_image_comes_from_the_sites_registry() -> None:
    """With a registry of its own the site's image is pulled, by the same digest, and stage.sh brings it there."""
    rendering = goodall(**CASES["registry"])
    image = chart_values(in_pod(rendering))["image"]
    assert image["repository"] == "quay.example.gov:8443/mirrored/vllm/vllm-openai"
    assert image["digest"] == rendering.server.container.digest
    stage = render_files(rendering)["stage.sh"]
    assert "usage: bash stage.sh push|mirror" in stage
    assert "docker://quay.example.gov:8443/mirrored/vllm/vllm-openai:v0.9.1" in stage
    upstream = chart_values(pod(chart=UPSTREAM, **CASES["registry"]))["image"]
    assert upstream["repository"] == "quay.example.gov:8443/mirrored/vllm/vllm-openai@sha256"


class Site:
    """A place in which the rendered scripts run. helm and kubectl stand in: they write down what they were given,
    because no cluster is at hand.
    """  # noqa: D205

    def __init__(self, folder: Path, rendering: Rendering, *, secrets_there: bool = False) -> None:
        self.folder = folder
        write_rendered(folder / "rendered", render_files(rendering), ())
        there = "true" if secrets_there else "false"
        body = f'printf "%s\\n" "$*" >> {folder}/NAME.argv\n'
        kubectl = (
            f'case " $* " in *" get secret "*) {there} ;; '
            f'*" create secret "* | *" apply "*) cat >> {folder}/stdin ;; esac\n'
        )
        for name, more in {"helm": "", "kubectl": kubectl}.items():
            (folder / name).write_text("#!/bin/bash\n" + body.replace("NAME", name) + more)
            (folder / name).chmod(0o755)

    def run(self, script: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
        env = {"PATH": f"{self.folder}:/usr/bin:/bin", **environment}
        return subprocess.run(
            ["bash", str(self.folder / "rendered" / script)], env=env, capture_output=True, text=True, check=False
        )

    def argv(self, name: str) -> list[str]:
        file = self.folder / f"{name}.argv"
        return file.read_text().splitlines() if file.exists() else []


def test_secrets_go_through_a_pipe(tmp_path: Path) -> None:
    """install.sh makes both secrets from the environment, no value is an argument, and Helm gets the values file."""
    site = Site(tmp_path, goodall())
    done = site.run("install.sh", SECRETS)
    assert done.returncode == 0, done.stderr
    given = (tmp_path / "stdin").read_text()
    for name, value in SECRETS.items():
        assert f"{name}={value}\n" in given
    told = "\n".join([*site.argv("kubectl"), *site.argv("helm"), done.stdout, done.stderr])
    assert not [value for value in SECRETS.values() if value in told]
    (helm,) = site.argv("helm")
    assert helm.startswith(f"upgrade --install scout {ROOT}/workflow/charts/vllm --namespace=genai --values=")
    assert helm.strip().endswith("results/render/goodall/scout/values.yaml")
    assert all("--namespace=genai" in line for line in site.argv("kubectl"))


def test_a_missing_secret_stops_before_helm(tmp_path: Path) -> None:
    """A variable that is not set is named, unless the secret is there already."""
    (tmp_path / "without").mkdir()
    site = Site(tmp_path / "without", goodall())
    done = site.run("install.sh", {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret"})
    assert done.returncode != 0
    assert "VLLM_API_KEY is not set, and there is no secret scout-api-key yet" in done.stderr
    assert site.argv("helm") == []
    (tmp_path / "with").mkdir()
    site = Site(tmp_path / "with", goodall(), secrets_there=True)
    done = site.run("install.sh", {})
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "with" / "stdin").exists()
    assert len(site.argv("helm")) == 1


def test_uninstall_takes_the_key_along(tmp_path: Path) -> None:
    """The release goes and the key with it; the secret of the store, which others use, stays."""
    site = Site(tmp_path, goodall())
    assert site.run("uninstall.sh", {}).returncode == 0
    assert site.argv("helm")[0].startswith("uninstall scout --namespace=genai")
    assert "delete secret scout-api-key" in site.argv("kubectl")[0]
    assert "berth-s3" not in " ".join(site.argv("kubectl"))


def test_context_and_address_of_a_chart(tmp_path: Path) -> None:
    """The context is told to both programs as each spells it; a chart in a registry keeps its address and version."""
    changes = {"context": "goodall-admin", "chart": "oci://registry.example.gov/charts/vllm", "chart_version": "0.2.0"}
    site = Site(tmp_path, goodall(**changes), secrets_there=True)
    assert site.run("install.sh", {}).returncode == 0
    assert "oci://registry.example.gov/charts/vllm --version 0.2.0 --kube-context=goodall-admin" in site.argv("helm")[0]
    assert "--context=goodall-admin" in site.argv("kubectl")[0]


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="apt-get install shellcheck checks the scripts further")
def test_shellcheck_finds_nothing_in_the_scripts_of_kubernetes(tmp_path: Path) -> None:
    """ShellCheck has nothing to say about the scripts that install and remove."""
    write_rendered(tmp_path, {name: text for name, text in render_files(goodall()).items() if name.endswith(".sh")}, ())
    done = subprocess.run(
        ["shellcheck", *map(str, sorted(tmp_path.iterdir()))], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_without_helm_the_rest_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where helm is not on PATH no manifests are written, the run says so, and names how to get it."""
    monkeypatch.setenv("PATH", "/nowhere")
    rendering = goodall()
    assert manifests_argv(rendering) == []
    write_rendered(tmp_path, render_files(rendering), (), manifests_argv(rendering))
    assert not (tmp_path / "manifests.yaml").exists()
    assert (tmp_path / "values.yaml").exists()
    assert "helm is not on PATH" in caplog.text
    assert "tools/install-helm.sh" in caplog.text


def test_secrets_of_the_caller_are_in_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is in the environment when it is rendered, no value of it is written, for either chart."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    for chart in ("", UPSTREAM):
        text = "".join(render_files(goodall(chart=chart)).values())
        assert not [value for value in SECRETS.values() if value in text]


def test_a_chart_that_changed_is_rendered_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The digest of the chart is part of what is rendered, so that other templates make other manifests."""
    before = render_files(goodall())["values.json"]
    shutil.copytree(ROOT / "workflow/charts/vllm", tmp_path / "vllm")
    with (tmp_path / "vllm/values.yaml").open("a") as handle:
        handle.write("# changed\n")
    monkeypatch.setattr("berth.kubernetes.CHART", tmp_path / "vllm")
    assert render_files(goodall())["values.json"] != before
