"""What a real cluster of 1.20 answered (tests/kubernetes/captured), as it is read, and what it means in plain words."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from berth.kubemeter import parse_counters
from berth.kubestate import (
    SERVER,
    WAIT,
    ContainerSeen,
    Ended,
    job_state,
    last_warning,
    pods_of,
    unbound_claims,
)
from berth.kubetrouble import container_trouble, how_it_ended, pod_trouble

CAPTURED = Path(__file__).resolve().parents[1] / "kubernetes/captured"
DIGEST = "sha256:"


def captured(name: str) -> list[dict[str, Any]]:
    value: list[dict[str, Any]] = json.loads((CAPTURED / f"{name}.json").read_text())
    return value


def test_a_pod_that_starts_is_no_trouble() -> None:
    """Its containers wait without a failure, its Job runs, its claim has a volume."""
    objects = captured("starting")
    (pod,) = pods_of(objects)
    assert (pod.node, pod.container(SERVER).state, pod.container(WAIT).reason) == (
        "localhost",
        "waiting",
        "PodInitializing",
    )
    assert (pod_trouble(pod), job_state(objects), unbound_claims(objects)) == (None, "running", [])


def test_a_pod_that_runs_tells_its_image_and_address() -> None:
    """The digest is what runs, whatever tag was asked for; what waited for the model has ended well."""
    objects = captured("running")
    (pod,) = pods_of(objects)
    seen = pod.container(SERVER)
    assert seen.state == "running"
    assert seen.image_digest.startswith(DIGEST)
    assert len(seen.image_digest) == len(DIGEST) + 64
    assert pod.address.startswith("10.244.")
    assert job_state(objects) == "complete"
    assert pod.container(WAIT).ended == replace(pod.container(WAIT).ended or Ended("", 0, "", ""), code=0)
    assert pod_trouble(pod) is None


def test_a_restart_is_another_identity() -> None:
    """After a kill the pod is the same, its container and its count are not, and its end is told once."""
    (before,), (after,) = pods_of(captured("running")), pods_of(captured("restarted"))
    assert before.uid == after.uid
    assert before.identity != after.identity
    last = after.container(SERVER).last
    assert last is not None
    assert (last.code, last.container_id) == (137, before.container(SERVER).container_id)
    trouble = pod_trouble(after)
    assert trouble is not None
    assert trouble.crashed
    assert "ended with exit code 137" in trouble.cause
    assert pod_trouble(after, known=frozenset({last.container_id})) is None


def test_an_unschedulable_pod_tells_the_schedulers_words() -> None:
    """It is no final trouble: a node may become free."""
    (pod,) = pods_of(captured("unschedulable"))
    trouble = pod_trouble(pod)
    assert trouble is not None
    assert "Insufficient nvidia.com/gpu" in trouble.cause
    assert not trouble.final


def test_an_image_that_is_not_there_is_final() -> None:
    """The registry's own words say so; a registry that is busy is asked again."""
    (pod,) = pods_of(captured("no-image"))
    trouble = pod_trouble(pod)
    assert trouble is not None
    assert "not found" in trouble.cause
    assert trouble.final
    busy = ContainerSeen(SERVER, "waiting", "ErrImagePull", "dial tcp: i/o timeout")
    assert (container_trouble(busy, "pod") or trouble).final is False


def test_a_claim_without_a_volume_is_named() -> None:
    """The claim's warning is told with it."""
    objects = captured("no-volume")
    (pod,) = pods_of(objects)
    (claim,) = unbound_claims(objects)
    warning = last_warning([each for each in objects if each["kind"] == "Event"])
    trouble = pod_trouble(pod, unbound=[claim], claim_says=warning)
    assert trouble is not None
    assert claim in trouble.cause
    assert "nowhere" in trouble.cause


@pytest.mark.parametrize(
    ("seen", "told", "remedy"),
    [
        (ContainerSeen(SERVER, "waiting", "CreateContainerConfigError", 'secret "x" not found'), "secret", "Make the"),
        (
            ContainerSeen(SERVER, "waiting", "CreateContainerConfigError", "container has runAsNonRoot and image ..."),
            "runAsNonRoot",
            "run_as_user",
        ),
        (ContainerSeen(SERVER, "waiting", "InvalidImageName", "couldn't parse image"), "InvalidImageName", "Correct"),
    ],
)
def test_a_container_that_cannot_be_made_is_final(seen: ContainerSeen, told: str, remedy: str) -> None:
    """What is missing is in the cause, and what to do about it in the remedy."""
    trouble = container_trouble(seen, "pod")
    assert trouble is not None
    assert trouble.final
    assert told in trouble.cause
    assert remedy in trouble.remedy


def test_memory_is_told_with_the_key_to_raise() -> None:
    """OOMKilled names kubernetes.memory_gib."""
    trouble = how_it_ended(Ended("OOMKilled", 137, "", "containerd://x"), "pod", SERVER)
    assert "OOMKilled" in trouble.cause
    assert "kubernetes.memory_gib" in trouble.remedy


def test_counters_of_a_pod_are_summed() -> None:
    """CPU ticks of user and system, and bytes read, of all its processes; a name may hold spaces and brackets."""
    stat = "1 (a (b) c) S 0 1 1 0 -1 4194560 1 2 3 4 70 30 0 0 20 0 1 0 5 6 7"
    text = f"{stat}\n{stat}\n\nrchar: 100\nwchar: 5\nrchar: 11\n"
    assert parse_counters(text) == (200, 111)
