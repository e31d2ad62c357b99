"""What a sweep on Kubernetes is told, and the commands that follow; nothing is run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from kubernetes_cases import goodall

from berth.errors import BerthError
from berth.kubeclient import ClientPod, client_pod
from berth.kubectl import Cluster, secret
from berth.kubeplan import claim_name, for_measuring, of_release, release_request
from berth.kuberelease import Release, install_argv, left_release

CLUSTER = Cluster("prod", "genai")


def test_the_request_of_a_sweep_holds_plain_values_and_no_secret() -> None:
    """It passes through JSON unchanged, as it must through Snakemake; names of secrets are all that it has of them."""
    request = release_request(goodall())
    assert json.loads(json.dumps(request)) == request
    assert (request["context"], request["namespace"], request["store_secret"]) == ("", "genai", "berth-s3")
    assert (request["client"]["program"], request["client"]["key_variable"]) == ("vllm", "OPENAI_API_KEY")
    assert request["client"]["env"]["no_proxy"] == "*"
    assert (request["claim"], request["make_claim"]) == ("", False)


def test_a_release_has_names_of_its_own_and_nothing_is_open_to_the_outside() -> None:
    """The key's secret is the release's, a measured server has no Route, waits for nobody, and may not be drained."""
    request = release_request(goodall())
    values = of_release(request, "berth-x-0123abcd", "0" * 32, "berth-s3")
    assert values["apiKey"]["existingSecret"] == "berth-x-0123abcd-api-key"
    assert values["labels"] == {"berth/instance": "0" * 32}
    assert "route" in values
    measured = for_measuring(values, 20.0)
    assert "route" not in measured
    assert (measured["drainSeconds"], measured["terminationGracePeriodSeconds"]) == (0, 20)
    assert request["values"]["apiKey"]["existingSecret"] == "scout-api-key"


def test_one_claim_keeps_a_model_for_all_its_deployments() -> None:
    """With keep_model the claim is the model's and of its revision; a claim of the site wins."""
    request = release_request(goodall(keep_model=True))
    assert request["make_claim"]
    assert request["claim"].startswith("berth-model-llama-4-scout-")
    assert of_release(request, "r", "t", "s")["extraInit"]["volume"]["existingClaim"] == request["claim"]
    rendering = goodall(keep_model=True)
    other = dataclasses.replace(rendering, model=dataclasses.replace(rendering.model, revision="b" * 40))
    assert claim_name(other) != claim_name(rendering)
    assert release_request(goodall(keep_model=True, claim="models"))["make_claim"] is False


def test_what_the_chart_cannot_run_is_refused() -> None:
    """The upstream chart is rendered, and not measured."""
    with pytest.raises(BerthError, match=r"kubernetes\.chart: Berth measures and serves with its own chart"):
        release_request(goodall(chart="/elsewhere", kind="cuda"))


def test_commands_name_context_and_namespace() -> None:
    """Each command, word for word; values and secrets come by standard input and never stand among the words."""
    assert CLUSTER.kubectl("get", "pods") == ["kubectl", "--context=prod", "--namespace=genai", "get", "pods"]
    assert Cluster().kubectl("get", "pods") == ["kubectl", "get", "pods"]
    assert install_argv(CLUSTER, "berth-x", ["/chart"]) == [
        *("helm", "upgrade", "--install", "berth-x", "/chart", "--values=-"),
        *("--kube-context=prod", "--namespace=genai"),
    ]
    pod = ClientPod(CLUSTER, "berth-x-client", Path("/cache/berth"))
    assert pod.run_argv("python3") == [
        *("kubectl", "--context=prod", "--namespace=genai", "exec", "-i", "berth-x-client", "--container=client", "--"),
        *("/bin/sh", "-c", 'echo $$ >"$0" && exec "$@"', "/cache/berth/client.pid", "python3"),
    ]
    assert pod.stop_argv()[:9] == pod.run_argv("x")[:9]
    assert pod.stop_argv()[-1] == "/cache/berth/client.pid"


def test_a_secret_is_an_object_with_labels() -> None:
    """Its values are text of the object, which goes through a pipe."""
    made = secret("s", {"KEY": "value"}, {"berth/instance": "t"})
    assert (made["kind"], made["stringData"], made["metadata"]["labels"]) == (
        "Secret",
        {"KEY": "value"},
        {"berth/instance": "t"},
    )


def test_the_client_is_beside_its_server() -> None:
    """Its pod has the server's image and volume, read only, no root, the key by name, and a place on the same node."""
    request = release_request(goodall())
    values = of_release(request, "r", "t", "s")
    made: dict[str, Any] = client_pod(
        "r-client", values, request["client"], claim="r-model", key_secret="r-api-key", labels={"a": "b"}, release="r"
    )
    spec, container = made["spec"], made["spec"]["containers"][0]
    assert container["image"].startswith("docker.io/vllm/vllm-openai@sha256:")
    assert {"name": "model", "mountPath": "/data", "readOnly": True} in container["volumeMounts"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    (beside,) = spec["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert beside["labelSelector"]["matchLabels"]["app.kubernetes.io/instance"] == "r"
    key = {"secretKeyRef": {"name": "r-api-key", "key": "VLLM_API_KEY"}}
    assert {"name": "OPENAI_API_KEY", "valueFrom": key} in container["env"]
    assert "nvidia.com/gpu" not in json.dumps(container["resources"])


def test_a_noted_release_is_found_again(tmp_path: Path) -> None:
    """The file that is written before anything is made says where it is; one that is damaged is told."""
    file = tmp_path / "release.json"
    assert left_release(file, CLUSTER) is None
    Release(CLUSTER, "berth-x", "token", file).note()
    assert left_release(file, Cluster()) == Release(CLUSTER, "berth-x", "token", file)
    file.write_text("{")
    with pytest.raises(BerthError, match="does not say which release"):
        left_release(file, CLUSTER)
