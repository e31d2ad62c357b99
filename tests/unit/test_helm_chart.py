"""The chart under the real Helm: lint, manifests against the schemas of many versions of Kubernetes, and bad values."""

from __future__ import annotations

import copy
import functools
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes_cases import CASES, ROOT, goodall, pod

from berth.chartvalues import chart_values
from berth.errors import BerthError
from berth.helm import rendered
from berth.image import default_cache_dir
from berth.kubernetes import CHART
from berth.render import manifests_argv, render_files, write_rendered

kubernetes_validate = pytest.importorskip(
    "kubernetes_validate", reason="make check installs kubernetes-validate", exc_type=ImportError
)


def found_helm() -> str | None:
    """The helm of tools/install-helm.sh, or that on PATH."""
    installed = default_cache_dir() / "helm" / "helm"
    return str(installed) if installed.exists() else shutil.which("helm")


HELM = found_helm()
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
pytestmark = [
    pytest.mark.helm,
    pytest.mark.skipif(HELM is None, reason="no helm: tools/install-helm.sh"),
]
# From the oldest that kubernetes-validate has to the newest.
VERSIONS = ("1.25", "1.29", "1.33", "1.37")
# OpenShift's own kind, of which it has no schema.
FOREIGN = {"Route"}


def helm(*arguments: str, values: dict[str, Any] | None = None) -> subprocess.CompletedProcess[str]:
    """Run helm; it has no configuration of the machine's user to look at."""
    with tempfile.TemporaryDirectory() as folder:
        if values is not None:
            (Path(folder) / "values.yaml").write_text(yaml.safe_dump(values))
            arguments = (*arguments, f"--values={folder}/values.yaml")
        home = {f"HELM_{name}_HOME": folder for name in ("CONFIG", "CACHE", "DATA")}
        return subprocess.run(
            [str(HELM), *arguments], env={**os.environ, **home}, capture_output=True, text=True, check=False
        )


@functools.cache
def template(case: str, version: str = "1.32") -> str:
    done = helm(
        *("template", "scout", str(CHART), "--namespace=genai", f"--kube-version={version}"),
        values=chart_values(pod(**CASES[case])),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@functools.cache
def parsed(case: str, version: str) -> list[dict[str, Any]]:
    return [each for each in yaml.load_all(template(case, version), Loader=LOADER) if each]


def manifests(case: str, version: str = "1.32") -> list[dict[str, Any]]:
    return copy.deepcopy(parsed(case, version))


def one(case: str, kind: str, name: str | None = None) -> dict[str, Any]:
    (found,) = [each for each in manifests(case) if each["kind"] == kind and name in (None, each["metadata"]["name"])]
    return found


def pods(case: str) -> list[dict[str, Any]]:
    kinds = ("Deployment", "StatefulSet", "Job")
    return [each["spec"]["template"]["spec"] for each in manifests(case) if each["kind"] in kinds]


@functools.cache
def validated(manifest: str, version: str) -> None:
    """Raise where a version of Kubernetes does not take a manifest (JSON); many cases share most of theirs."""
    kubernetes_validate.validate(json.loads(manifest), version, strict=True)


@pytest.mark.parametrize("case", sorted(CASES))
def test_helm_lint_finds_nothing(case: str) -> None:
    """Helm's linter, strict, has neither an error nor a warning for any case."""
    done = helm("lint", "--strict", str(CHART), values=chart_values(pod(**CASES[case])))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[WARNING]" not in done.stdout
    assert "[ERROR]" not in done.stdout


@pytest.mark.parametrize("case", sorted(CASES))
def test_manifests_are_what_kubernetes_takes(case: str) -> None:
    """Every manifest of every case is valid, strictly, in every version; nothing is unknown but OpenShift's Route."""
    known = [each for each in manifests(case) if each["kind"] not in FOREIGN]
    for version in VERSIONS:
        for manifest in known:
            validated(json.dumps(manifest, sort_keys=True), version)
    seen = {each["kind"] for each in known}
    assert {"Service", "PodDisruptionBudget"} <= seen


def test_strict_validation_would_notice_a_typo() -> None:
    """The validator that the test above relies on refuses a key that Kubernetes does not have."""
    manifest = one("figure-6", "Deployment")
    manifest["spec"]["template"]["spec"]["containers"][0]["startupProb"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifest, "1.32", strict=True)


@pytest.mark.parametrize("version", ["1.20", "1.21"])
def test_old_clusters_get_the_budget_of_their_time(version: str) -> None:
    """Before 1.21 a PodDisruptionBudget is a beta."""
    (budget,) = [each for each in manifests("figure-6", version) if each["kind"] == "PodDisruptionBudget"]
    assert budget["apiVersion"] == ("policy/v1beta1" if version == "1.20" else "policy/v1")


def edited(path: str, value: Any) -> dict[str, Any]:
    """The values of figure 6 with one of them set, added or misspelt."""
    values = chart_values(pod())
    inner = values
    *folders, last = path.split(".")
    for folder in folders:
        inner = inner[folder]
    inner[last] = value
    return values


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("imag", {}),
        ("image.repo", "x"),
        ("image.digest", "sha256:12"),
        ("image.command", "vllm serve"),
        ("secrets", {"s3accesskey": "in the clear"}),
        ("apiKey.value", "in the clear"),
        ("extraInit.s3.secretAccessKey", "in the clear"),
        ("extraInit.s3.endpointUrl", "s3.example.gov"),
        ("extraInit.modelDownlod", {}),
        ("extraInit.volume.accessMode", "ReadWriteOncePod"),
        ("extraInit.modelRevision", "main"),
        ("resources.limits.gpu", 4),
        ("resources.limits.memory", "lots"),
        ("startupProbe.failureTreshold", 3),
        ("shm.size", "16 GiB"),
        ("route.timeout", "3600"),
        ("ingress", {"enabled": True, "host": "x.example.gov"}),
        ("nodes", 0),
        ("containerPort", "8000"),
    ],
)
def test_a_wrong_value_is_refused(path: str, value: Any) -> None:
    """The schema refuses what is misspelt, of another type, or a secret; Helm names the place."""
    done = helm("template", "scout", str(CHART), values=edited(path, value))
    assert done.returncode != 0
    assert "don't meet the specifications of the schema" in done.stderr


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"nodes": 2}, "ReadWriteMany"),
        ({"nodes": 2, "replicaCount": 2}, "replicaCount must be 1"),
        ({"extraInit": {"s3": {"bucket": ""}}}, "extraInit.s3.bucket must be set"),
        ({"image": {"digest": "", "tag": ""}}, "image.tag or image.digest must be set"),
    ],
)
def test_values_that_do_not_go_together(changes: dict[str, Any], told: str) -> None:
    """What a schema cannot say is told by the chart in one sentence."""
    values = chart_values(pod())
    for key, value in changes.items():
        values[key] = {**values[key], **value} if isinstance(value, dict) else value
    if "extraInit" in changes:
        values["extraInit"]["s3"] = {**chart_values(pod())["extraInit"]["s3"], **changes["extraInit"]["s3"]}
    done = helm("template", "scout", str(CHART), values=values)
    assert done.returncode != 0
    assert told in done.stderr


@pytest.mark.parametrize("case", sorted(CASES))
def test_no_pod_runs_as_root_or_with_a_privilege(case: str) -> None:
    """Every container of every pod is restricted, has no token of the cluster, and reads HOME from a volume."""
    for spec in pods(case):
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["automountServiceAccountToken"] is False
        for container in [*spec.get("initContainers", []), *spec["containers"]]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"]["memory"]
    server = pods(case)[0]["containers"][0]
    writable = [mount["mountPath"] for mount in server["volumeMounts"] if not mount.get("readOnly")]
    places = {each["name"]: each.get("value", "") for each in server["env"]}
    assert sorted(writable) == ["/cache", "/dev/shm"]
    for name in ("HOME", "HF_HOME", "VLLM_CACHE_ROOT", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "XDG_CACHE_HOME"):
        assert places[name] == "/cache" or places[name].startswith("/cache/")


@pytest.mark.parametrize("case", sorted(CASES))
def test_secrets_are_references(case: str) -> None:
    """Keys reach a container from a Secret that is there already, and the chart makes none."""
    assert not [each for each in manifests(case) if each["kind"] == "Secret"]
    found = {}
    for spec in pods(case):
        for container in [*spec.get("initContainers", []), *spec["containers"]]:
            for each in container["env"]:
                if any(word in each["name"] for word in ("KEY", "SECRET", "TOKEN")):
                    found[each["name"]] = each["valueFrom"]["secretKeyRef"]["name"]
    assert found == {
        "VLLM_API_KEY": "scout-api-key",
        "AWS_ACCESS_KEY_ID": "berth-s3",
        "AWS_SECRET_ACCESS_KEY": "berth-s3",
        "AWS_SESSION_TOKEN": "berth-s3",
    }


def test_only_the_download_knows_the_keys_of_the_store() -> None:
    """The server and the container that waits have no credentials of the object store."""
    server = one("figure-6", "Deployment")["spec"]["template"]["spec"]
    assert "AWS_" not in json.dumps([server["containers"], server["initContainers"]])


def test_the_wait_and_the_download_speak_of_one_folder() -> None:
    """The container that waits looks where the Job writes, for the same commit, in the same script."""
    wait = one("figure-6", "Deployment")["spec"]["template"]["spec"]["initContainers"][0]
    download = one("figure-6", "Job")["spec"]["template"]["spec"]["containers"][0]
    shared = ("MODEL_DIR", "MODEL_REVISION")
    told = [{each["name"]: each["value"] for each in c["env"] if each["name"] in shared} for c in (wait, download)]
    assert told[0] == told[1]
    assert told[0]["MODEL_DIR"] == "/data/meta-llama/Llama-4-Scout-17B-16E-Instruct"
    assert one("figure-6", "ConfigMap")["data"]["model.py"] == (CHART / "files/model.py").read_text()
    server = one("figure-6", "Deployment")["spec"]["template"]["spec"]["containers"][0]
    assert told[0]["MODEL_DIR"] in server["command"]


def test_another_download_is_another_job() -> None:
    """A Job cannot be changed, so that its name follows what it does; the same download keeps its name."""
    name = one("figure-6", "Job")["metadata"]["name"]
    assert one("no-route", "Job")["metadata"]["name"] != name
    changed = helm("template", "scout", str(CHART), "--namespace=genai", values=edited("servicePort", 81))
    assert f"name: {name}\n" in changed.stdout


def test_the_download_follows_a_volume_of_one_node() -> None:
    """With ReadWriteOnce the Job runs on the server's node; with ReadWriteMany on any that may have the server."""
    alone = one("figure-6", "Job")["spec"]["template"]["spec"]["affinity"]
    assert (
        alone["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][0]["labelSelector"]["matchLabels"]
        == (one("figure-6", "Deployment")["spec"]["selector"]["matchLabels"])
    )
    assert "podAffinity" not in one("shared-claim", "Job")["spec"]["template"]["spec"]["affinity"]
    assert not [each for each in manifests("shared-claim") if each["kind"] == "PersistentVolumeClaim"]


def test_probes_are_apart() -> None:
    """A start of half an hour is waited for, and a server under load is not killed before it misses three minutes."""
    server = one("figure-6", "Deployment")["spec"]["template"]["spec"]["containers"][0]
    seconds = {
        name: server[name]["periodSeconds"] * server[name]["failureThreshold"]
        for name in ("startupProbe", "readinessProbe", "livenessProbe")
    }
    assert seconds["startupProbe"] > 1800
    assert seconds["readinessProbe"] < seconds["livenessProbe"] == 180
    assert {server[name]["httpGet"]["path"] for name in seconds} == {"/health"}


def test_several_nodes() -> None:
    """A StatefulSet of as many pods as nodes, each on its own node, that find each other before they are ready."""
    server = one("several-nodes", "StatefulSet")
    assert server["spec"]["replicas"] == 4
    assert server["spec"]["podManagementPolicy"] == "Parallel"
    headless = one("several-nodes", "Service", "scout-nodes")["spec"]
    assert headless["clusterIP"] == "None"
    assert headless["publishNotReadyAddresses"] is True
    assert server["spec"]["serviceName"] == "scout-nodes"
    spec = server["spec"]["template"]["spec"]
    labels = server["spec"]["template"]["metadata"]["labels"]
    assert headless["selector"].items() <= labels.items()
    anti = spec["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][0]
    assert anti["labelSelector"]["matchLabels"].items() <= labels.items()
    # Only the first pod answers requests.
    assert (
        one("several-nodes", "Service", "scout")["spec"]["selector"]["statefulset.kubernetes.io/pod-name"] == "scout-0"
    )
    env = {each["name"]: each for each in spec["containers"][0]["env"]}
    assert env["HEAD_ADDRESS"]["value"] == "scout-0.scout-nodes.genai.svc"
    assert env["NODE_ADDRESS"]["valueFrom"]["fieldRef"]["fieldPath"] == "status.podIP"
    # A variable must stand before the one that names it.
    names = list(env)
    assert names.index("NODE_ADDRESS") < names.index("VLLM_HOST_IP")


def test_the_probe_of_several_nodes_runs(tmp_path: Path) -> None:
    """A pod that is not the first is well as long as it runs; the first is well when its port answers."""
    spec = one("several-nodes", "StatefulSet")["spec"]["template"]["spec"]["containers"][0]
    argv = spec["readinessProbe"]["exec"]["command"]
    assert subprocess.run(argv, env={"PATH": os.environ["PATH"], "HOSTNAME": "scout-2"}, check=False).returncode == 0
    # Nothing listens: port 1 in the place of the server's.
    closed = [word.replace(":8000", ":1") for word in argv]
    first = subprocess.run(
        closed, env={"PATH": os.environ["PATH"], "HOSTNAME": "scout-0"}, check=False, capture_output=True, text=True
    )
    assert first.returncode != 0
    assert "refused" in first.stderr


def test_the_route() -> None:
    """OpenShift's Route ends TLS, takes no plain HTTP, and lets a request take an hour."""
    route = one("route-with-certificate", "Route")
    assert route["apiVersion"] == "route.openshift.io/v1"
    assert route["metadata"]["annotations"] == {"haproxy.router.openshift.io/timeout": "3600s"}
    assert route["spec"] == {
        "host": "scout.apps.example.gov",
        "to": {"kind": "Service", "name": "scout", "weight": 100},
        "port": {"targetPort": "http"},
        "tls": {
            "termination": "edge",
            "insecureEdgeTerminationPolicy": "None",
            "externalCertificate": {"name": "a-certificate"},
        },
        "wildcardPolicy": "None",
    }
    assert not {"host"} & set(one("figure-6", "Route")["spec"])
    assert not [each for each in manifests("no-route") if each["kind"] in ("Route", "Ingress")]


def test_the_ingress() -> None:
    """An Ingress ends TLS, redirects plain HTTP, passes tokens on as they come, and has the site's time limit."""
    ingress = one("ingress", "Ingress")
    notes = {key.rpartition("/")[2]: value for key, value in ingress["metadata"]["annotations"].items()}
    assert (notes["proxy-read-timeout"], notes["proxy-send-timeout"]) == ("1800", "1800")
    assert notes["proxy-buffering"] == "off"
    assert notes["force-ssl-redirect"] == "true"
    assert ingress["spec"]["ingressClassName"] == "nginx"
    assert ingress["spec"]["tls"] == [{"hosts": ["scout.apps.example.gov"], "secretName": "a-certificate"}]
    assert one("ingress-of-the-cluster", "Ingress")["spec"]["tls"] == [{"hosts": ["scout.apps.example.gov"]}]


def test_certificates_reach_both_pods() -> None:
    """The site's certificates are a file in server and download; OpenShift's ConfigMap is made empty for it to fill."""
    for case in ("certificates", "certificates-of-openshift"):
        for spec in pods(case):
            env = {each["name"]: each.get("value") for each in spec["containers"][0]["env"]}
            (mount,) = [each for each in spec["containers"][0]["volumeMounts"] if each["name"] == "ca"]
            assert env["SSL_CERT_FILE"] == f"{mount['mountPath']}/ca-bundle.crt"
    injected = one("certificates-of-openshift", "ConfigMap", "scout-ca")
    assert injected["metadata"]["labels"]["config.openshift.io/inject-trusted-cabundle"] == "true"
    assert "data" not in injected


def test_placement_and_user() -> None:
    """Labels, taints, login, user and class of the site are in the pods that need them."""
    for spec in pods("placed"):
        assert spec["nodeSelector"] == {"pool": "gpu"}
        assert spec["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
        assert spec["imagePullSecrets"] == [{"name": "quay"}]
        terms = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
        assert terms[0]["matchExpressions"][0]["values"] == ["NVIDIA-H100-NVL"]
    for spec in pods("plain-kubernetes"):
        assert spec["securityContext"]["runAsUser"] == spec["securityContext"]["fsGroup"] == 1000
        assert spec["runtimeClassName"] == "nvidia"
    assert one("plain-kubernetes", "PersistentVolumeClaim")["spec"]["storageClassName"] == "nfs"
    annotations = one("kept-claim", "PersistentVolumeClaim")["metadata"]["annotations"]
    assert annotations == {"helm.sh/resource-policy": "keep"}


def test_rendered_files_have_the_manifests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where helm is on PATH, manifests.yaml is what it makes of values.yaml; a value that it refuses is one error."""
    monkeypatch.setenv("PATH", f"{Path(str(HELM)).parent}:{os.environ['PATH']}")
    rendering = goodall()
    folder = rendering.folder
    argv = [word.replace(str(folder), str(tmp_path)) for word in manifests_argv(rendering)]
    write_rendered(tmp_path, render_files(rendering), (), argv)
    kinds = sorted(each["kind"] for each in yaml.safe_load_all((tmp_path / "manifests.yaml").read_text()) if each)
    assert kinds == [
        *("ConfigMap", "Deployment", "Job", "PersistentVolumeClaim", "PodDisruptionBudget", "Route", "Service")
    ]
    (tmp_path / "values.yaml").write_text("imag: {}\n")
    with pytest.raises(BerthError, match="don't meet the specifications"):
        rendered(argv)


def test_the_charts_own_values_are_the_schemas() -> None:
    """Every value of values.yaml is in the schema and the other way round, down to the last key."""

    def keys(node: Any, prefix: str = "") -> set[str]:
        if not isinstance(node, dict):
            return set()
        return {f"{prefix}{key}" for key in node} | {
            inner for key, value in node.items() for inner in keys(value, f"{prefix}{key}.")
        }

    def described(node: dict[str, Any], prefix: str = "") -> set[str]:
        return {f"{prefix}{key}" for key in node.get("properties", {})} | {
            inner for key, value in node.get("properties", {}).items() for inner in described(value, f"{prefix}{key}.")
        }

    values = keys(yaml.safe_load((CHART / "values.yaml").read_text()))
    schema = described(json.loads((CHART / "values.schema.json").read_text()))
    # What Kubernetes itself says of resources and security is not repeated in the values.
    assert values - schema == {
        "podSecurityContext.runAsNonRoot",
        "podSecurityContext.seccompProfile",
        "podSecurityContext.seccompProfile.type",
    }
    assert schema - values == {
        f"resources.{part}.{name}"
        for part in ("requests", "limits")
        for name in ("ephemeral-storage", "nvidia.com/gpu", "amd.com/gpu")
    }
    assert ROOT in CHART.parents
