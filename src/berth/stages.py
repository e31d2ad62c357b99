"""Models into the object store and onto the cluster, images onto the cluster: what a platform's settings ask for."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from berth.container_image import stage_container
from berth.errors import BerthError
from berth.image import default_cache_dir, stage_environment
from berth.image_request import ImageRequest
from berth.kubestage import note_image, note_model
from berth.mirror import mirror_image
from berth.modules import with_modules
from berth.pins import LOCKS
from berth.s3 import Store
from berth.s3errors import NOT_THERE, error_code
from berth.seaweed import embedded_store
from berth.signals import terminate_as_exception
from berth.store import push_model, stage_model
from berth.storeplan import told_plan
from berth.treecopy import stage_unpacked
from berth.tuning import tuning_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextlib.contextmanager
def _endpoint(store: dict[str, Any], data_dir: str) -> Iterator[dict[str, Any]]:
    """How a store is reached: the site's own, or an embedded one that lives as long as the block."""
    if store["kind"] == "embedded":
        with embedded_store(Path(data_dir)) as running:
            yield {
                "endpoint_url": running.endpoint_url,
                "region": running.region,
                "credentials": running.credentials,
                "addressing_style": "path",
            }
    else:
        yield {
            "endpoint_url": store["endpoint_url"],
            "region": store["region"],
            "addressing_style": store["addressing_style"],
        }


@contextlib.contextmanager
def opened(store: dict[str, Any], data_dir: str) -> Iterator[Store]:
    """The bucket of a platform's store (the fields of config.Store); an embedded one runs as long as the block."""
    with _endpoint(store, data_dir) as endpoint:
        yield Store(store["bucket"], **endpoint)


def model_prefix(store: dict[str, Any], repo: str) -> str:
    """The keys of a model's objects begin with it."""
    return "/".join(part for part in (store["prefix"].strip("/"), repo) if part)


def push(
    *,
    store: dict[str, Any],
    repo: str,
    model_dir: str,
    manifest: str,
    receipt: str,
    data_dir: str,
) -> None:
    """Upload a model; `store` has the fields of config.Store, `data_dir` holds an embedded store's data."""
    with _endpoint(store, data_dir) as endpoint:
        push_model(
            model_dir=Path(model_dir),
            manifest_path=Path(manifest),
            bucket=store["bucket"],
            prefix=model_prefix(store, repo),
            receipt_path=Path(receipt),
            tuning=tuning_of(store),
            delete_extra=store.get("delete_extra", False),
            **endpoint,
        )


def stage(
    *,
    store: dict[str, Any],
    repo: str,
    models_dir: str,
    receipt: str,
    data_dir: str,
    pushed: str,
    in_pods: bool,
) -> None:
    """Bring a model from the store into `models_dir`/ORG/NAME.

    `pushed` is the receipt of push(), or of a bundle that brought the model without a store. `in_pods` says that the
    folder is one of pods, which bring it themselves.
    """
    if in_pods:
        note_model(
            store=store,
            prefix=model_prefix(store, repo),
            dest=f"{models_dir.rstrip('/')}/{repo}",
            pushed=Path(pushed),
            receipt=Path(receipt),
        )
        return
    unpacked = json.loads(Path(pushed).read_bytes())
    if unpacked["action"] == "unpack":
        stage_unpacked(unpacked, dest=Path(models_dir).expanduser() / repo, receipt_path=Path(receipt))
        return
    with terminate_as_exception(), _endpoint(store, data_dir) as endpoint:
        stage_model(
            dest=Path(models_dir).expanduser() / repo,
            receipt_path=Path(receipt),
            **_staging(store, repo),
            **endpoint,
        )


def would_move(*, store: dict[str, Any], models: list[dict[str, str]], models_dir: str, data_dir: str) -> None:
    """Print what push and stage would move of each model: {repo, model_dir, manifest}; `models_dir` is "" for pods."""
    with _endpoint(store, data_dir) as endpoint:
        for model in models:
            repo, manifest = model["repo"], Path(model["manifest"])
            dest = Path(models_dir).expanduser() / repo
            pushed = "the model has to be acquired first (rule download_model)"
            if manifest.exists():
                push_now = partial(
                    push_model,
                    model_dir=Path(model["model_dir"]),
                    manifest_path=manifest,
                    bucket=store["bucket"],
                    prefix=model_prefix(store, repo),
                    delete_extra=store.get("delete_extra", False),
                )
                pushed = _would(push_now, endpoint, "everything: there is no such bucket yet")
            staged = "pods bring it"
            if models_dir:
                stage_now = partial(stage_model, dest=dest, **_staging(store, repo))
                staged = _would(stage_now, endpoint, "the model has to be pushed first")
            print(f"{repo}\n  push_model:  {pushed}\n  stage_model: {staged}")


def _would(step: Callable[..., dict[str, Any]], endpoint: dict[str, Any], nothing_there: str) -> str:
    """What a step would move, for people; `nothing_there` where the store does not have what it needs."""
    try:
        return told_plan(step(receipt_path=Path(), dry_run=True, **endpoint))
    except BerthError as error:
        if error_code(error) in NOT_THERE:
            return nothing_there
        raise


def _staging(store: dict[str, Any], repo: str) -> dict[str, Any]:
    """What stage_model is told of a store, besides how it is reached."""
    return {
        "bucket": store["bucket"],
        "prefix": model_prefix(store, repo),
        "unsigned": store.get("unsigned", False),
        "tuning": tuning_of(store),
        "include": store.get("include", ()),
        "exclude": store.get("exclude", ()),
    }


@contextlib.contextmanager
def _modules(request: ImageRequest) -> Iterator[None]:
    """The site's modules, which may be what brings skopeo and the runtime, in this process's environment."""
    before = dict(os.environ)
    where = f"config/platforms/{request.platform}.yaml: modules"
    os.environ.update(with_modules(request.modules, before, where=where))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def _bundled_wheels(lock: str) -> Iterator[None]:
    """For the block, pip takes the packages that a bundle brought into this checkout, and asks no index."""
    folder = Path("bundle/image-wheels") / lock
    before = dict(os.environ)
    if folder.is_dir():
        os.environ.update({"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder.absolute())})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def mirror(request: dict[str, Any], receipt: str) -> None:
    """Copy a container image into the site's registry; `request` has the fields of ImageRequest."""
    asked = ImageRequest(**request)
    with terminate_as_exception(), _modules(asked):
        mirror_image(asked, Path(receipt))


def stage_image(image: dict[str, Any], request: dict[str, Any], images_dir: str, receipt: str, mirrored: str) -> None:
    """Bring an image onto the platform.

    A pinned environment is built once in `images_dir` and reused. For a container image `request` has the fields of
    ImageRequest, and `mirrored` is the receipt of mirror(), "" where the platform has no registry.
    """
    folder = Path(images_dir).expanduser().absolute() if images_dir else default_cache_dir()
    if image["kind"] == "environment":
        with _bundled_wheels(Path(image["lock"]).stem):
            stage_environment(
                lock_file=LOCKS / image["lock"],
                package=image["package"],
                program=image["program"],
                size_bytes=image["size_bytes"],
                cache_dir=folder,
                receipt_path=Path(receipt),
            )
        return
    asked = replace(ImageRequest(**request), images_dir=str(folder))
    if asked.runtime == "kubernetes":
        note_image(asked, Path(receipt), Path(mirrored) if mirrored else None)
        return
    with terminate_as_exception(), _modules(asked):
        stage_container(asked, Path(receipt), Path(mirrored) if mirrored else None)
