"""Why a release does not come up, in plain words: what stands in the state of its pods, claims and events."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from berth.kubestate import SERVER, WAIT, ContainerSeen, Ended, PodSeen

if TYPE_CHECKING:
    from collections.abc import Sequence

# What another attempt does not change, in the words of registries and of containerd, CRI-O and Docker.
_NO_SUCH_IMAGE = re.compile(
    r"not found|manifest unknown|unauthorized|denied|authentication required|no basic auth|forbidden|invalid reference"
    r"|couldn't parse image|x509|server gave HTTP response",
    re.IGNORECASE,
)
_PULL = ("ErrImagePull", "ImagePullBackOff")
_WRONG = ("InvalidImageName", "ErrImageNeverPull", "CreateContainerConfigError", "CreateContainerError")
_RUN = ("RunContainerError", "ContainerCannotRun", "StartError")
_REMEDIES = (
    (
        r"secret \"?[\w.-]+\"? not found|couldn't find key",
        "Make the secret that it names, in the namespace of the deployment.",
    ),
    (r"configmap \"?[\w.-]+\"? not found", "Make the ConfigMap that it names (kubernetes.ca_config_map)."),
    (
        r"runAsNonRoot|non-numeric user",
        "Set kubernetes.run_as_user in the platform file: this cluster chooses no user, and the image's is root.",
    ),
    (r"executable file not found|no such file", "Compare the recipe's entrypoint with what the image holds."),
)


@dataclass(frozen=True)
class Trouble:
    """What keeps a pod from its work. `final` says that waiting does not help; else it is given some time."""

    cause: str
    remedy: str
    final: bool
    returncode: int | None = None
    crashed: bool = False


def pod_trouble(
    pod: PodSeen, *, unbound: Sequence[str] = (), claim_says: str = "", known: frozenset[str] = frozenset()
) -> Trouble | None:
    """What is the matter with a pod of the server, None where it gets on.

    `unbound` are claims without a volume, and `claim_says` is the last warning about them; `known` are ids of
    containers whose end is an old story.
    """
    if pod.phase == "Failed" or pod.reason == "Evicted":
        told = f"{pod.reason}: {pod.message}".strip(": ")
        return Trouble(
            f"Pod {pod.name} was ended by the cluster: {told or 'it does not say why'}.",
            "Evicted for memory or disk: raise kubernetes.memory_gib or set kubernetes.cache_gib. Else ask its staff.",
            final=True,
            crashed=True,
        )
    if unbound and not pod.node:
        return Trouble(
            f"The claim {', '.join(unbound)} has no volume, so that pod {pod.name} has no place. "
            f"{claim_says or pod.unscheduled or 'The cluster says no more.'}",
            "Set kubernetes.storage_class to a class of this cluster (kubectl get storageclass), or kubernetes.claim "
            "to a claim that exists.",
            final=False,
        )
    if pod.unscheduled:
        return Trouble(
            f"Pod {pod.name} has no node. The scheduler: {pod.unscheduled}",
            "Compare what the deployment asks for (accelerators, kubernetes.cpus, memory_gib, gpu_models, "
            "node_selector, tolerations) with what nodes have: kubectl describe nodes. If they are only busy, raise "
            "kubernetes.schedule_s.",
            final=False,
        )
    for each in (pod.container(WAIT), pod.container(SERVER)):
        found = container_trouble(each, pod.name, known)
        if found is not None:
            return found
    return None


def container_trouble(seen: ContainerSeen, pod: str, known: frozenset[str] = frozenset()) -> Trouble | None:
    """What keeps one container of a pod from running."""
    ended = seen.ended or (seen.last if seen.name == SERVER else None)
    if seen.state != "running" and seen.reason in (*_PULL, *_WRONG, *_RUN):
        return _not_created(seen, pod)
    if ended is None or ended.container_id in known or (seen.name == WAIT and ended.code == 0):
        return None
    return how_it_ended(ended, pod, seen.name)


def _not_created(seen: ContainerSeen, pod: str) -> Trouble:
    said = seen.message or seen.reason
    if seen.reason in _PULL:
        return Trouble(
            f"The image of {seen.name} in pod {pod} cannot be pulled: {said}",
            "Compare the reference with the registry, and name a secret with its login in kubernetes.pull_secrets "
            "where it asks for one. Nodes must trust the registry's certificate.",
            final=bool(_NO_SUCH_IMAGE.search(said)),
        )
    remedy = next((how for pattern, how in _REMEDIES if re.search(pattern, said)), "Correct what it names.")
    return Trouble(f"Container {seen.name} of pod {pod} cannot be started: {seen.reason}: {said}", remedy, final=True)


def how_it_ended(ended: Ended, pod: str, container: str) -> Trouble:
    """A container that ended: of memory, by a signal, or by itself."""
    where = f"Container {container} of pod {pod}"
    if ended.reason == "OOMKilled":
        return Trouble(
            f"{where} was killed because it used more memory than its limit (OOMKilled).",
            "Raise kubernetes.memory_gib; what lies in /dev/shm (shm_gib) counts as memory too.",
            final=True,
            returncode=ended.code,
            crashed=True,
        )
    code = "" if ended.code is None else f" with exit code {ended.code}"
    told = f": {ended.message.strip().splitlines()[-1]}" if ended.message.strip() else ""
    return Trouble(f"{where} ended{code}{told}.", "Read its log.", final=True, returncode=ended.code, crashed=True)
