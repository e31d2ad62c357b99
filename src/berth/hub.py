"""One repository of a Hugging Face hub: what it lists, how it is downloaded, and what its errors mean.

Everything goes through huggingface_hub, which retries, resumes within a file, and speaks Xet. The environment that it
honours: HF_ENDPOINT, the token variable, HTTPS_PROXY / HTTP_PROXY / NO_PROXY, SSL_CERT_FILE / SSL_CERT_DIR; Berth adds
REQUESTS_CA_BUNDLE and CURL_CA_BUNDLE, which older clients use and many sites set.
"""

from __future__ import annotations

import contextlib
import glob
import logging
import os
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from huggingface_hub import HfApi, close_session, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError  # type: ignore[attr-defined]
from huggingface_hub.hf_api import RepoFile

from berth.errors import BerthError
from berth.huberrors import hub_error
from berth.hubprogress import StalledError, progress_class

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

logger = logging.getLogger(__name__)

PUBLIC_HUB = "https://huggingface.co"

_TIMEOUT_S = 30.0
_NOT_FOUND = 404
# The library itself retries refused connections, timeouts and cut streams, but not a connection that is reset.
_RESET_RETRIES = 3
_RESET_WAIT_S = 1.0


@dataclass(frozen=True)
class HubRepo:
    """A repository at a revision, and how to reach it. The token is never shown."""

    repo: str
    revision: str
    endpoint: str
    repo_type: Literal["model", "dataset"] = "model"
    token: str | None = field(default=None, repr=False)
    token_env: str = "HF_TOKEN"  # noqa: S105 - the name of a variable

    @property
    def label(self) -> str:
        """How messages name it: `model org/name at <revision>`."""
        return f"{self.repo_type} {self.repo} at {self.revision}"

    @property
    def page(self) -> str:
        """The address of its page on the hub."""
        return f"{self.endpoint}/{'datasets/' if self.repo_type == 'dataset' else ''}{self.repo}"


@dataclass(frozen=True)
class HubFile:
    """A file as the hub lists it: LFS files have a SHA-256, the others the SHA-1 of their git blob."""

    path: str
    size_bytes: int
    lfs_sha256: str | None
    blob_id: str | None


def hub_repo(
    repo: str,
    revision: str,
    *,
    repo_type: Literal["model", "dataset"] = "model",
    endpoint: str | None = None,
    token_env: str = "HF_TOKEN",  # noqa: S107 - the name of a variable
) -> HubRepo:
    """The repository with the endpoint (argument, else HF_ENDPOINT, else the public hub) and the token from the
    environment. Without a token, one stored by `hf auth login` is used.
    """  # noqa: D205 - one sentence that does not fit a line
    address = (endpoint or os.environ.get("HF_ENDPOINT") or PUBLIC_HUB).rstrip("/")
    return HubRepo(repo, revision, address, repo_type, os.environ.get(token_env) or None, token_env)


@contextlib.contextmanager
def _certificates() -> Iterator[None]:
    """For the block, trust the CA file of REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE where SSL_CERT_* says nothing."""
    names = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
    standard, bundle = [os.environ.get(name) for name in names[:2]], [os.environ.get(name) for name in names[2:]]
    chosen = next((path for path in bundle if path), None)
    # The library keeps one client per process, with the certificates it was made with.
    close_session()
    try:
        if chosen is None or any(standard):
            yield
            return
        os.environ["SSL_CERT_DIR" if os.path.isdir(chosen) else "SSL_CERT_FILE"] = chosen  # noqa: PTH112
        try:
            yield
        finally:
            for name, value in zip(names[:2], standard, strict=True):
                os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)
    finally:
        close_session()


@contextlib.contextmanager
def hub_errors(hub: HubRepo, dest: Path | None = None) -> Iterator[None]:
    """Turn what goes wrong with the hub (or the disk at `dest`) in the block into one BerthError."""
    try:
        with _certificates():
            yield
    except (HTTPError, OSError, HFValidationError, StalledError) as error:
        raise hub_error(hub, error, dest) from error


def resolve_commit(hub: HubRepo) -> str:
    """The commit that the revision (a branch or tag) is at now."""
    with hub_errors(hub):
        info = _api(hub).repo_info(hub.repo, revision=hub.revision, repo_type=hub.repo_type, timeout=_TIMEOUT_S)
        return str(info.sha)


def list_files(hub: HubRepo) -> dict[str, HubFile]:
    """All files of the repository at the revision, by path.

    Raises:
        BerthError: see hub_error; for an unknown revision it names the commit that the branch main is at.
    """
    try:
        with hub_errors(hub):
            tree = _api(hub).list_repo_tree(hub.repo, recursive=True, revision=hub.revision, repo_type=hub.repo_type)
            return {
                item.path: HubFile(item.path, item.size, item.lfs.sha256 if item.lfs else None, item.blob_id)
                for item in tree
                if isinstance(item, RepoFile)
            }
    except BerthError as error:
        cause = error.__cause__
        if not isinstance(cause, HfHubHTTPError) or cause.response.status_code != _NOT_FOUND:
            raise
        # Mirrors answer the same for an unknown repository and an unknown revision.
        try:
            current = resolve_commit(replace(hub, revision="main"))
        except BerthError:
            raise error from cause
        raise BerthError(
            f"{hub.page} has no revision {hub.revision}; its branch main is at {current} now. "
            "Set the revision to a commit that its page lists (Files, History)."
        ) from cause


def download_files(hub: HubRepo, files: Sequence[HubFile], dest: Path, *, max_workers: int) -> None:
    """Download the files into `dest`; whole files that an earlier try left there are kept.

    Raises:
        BerthError: see hub_error. Files in flight are then absent, never half there.
    """
    if not files:
        return
    bars = progress_class(sum(file.size_bytes for file in files), hub.label)
    with hub_errors(hub, dest):
        for attempt in range(_RESET_RETRIES + 1):
            try:
                snapshot_download(
                    hub.repo,
                    repo_type=hub.repo_type,
                    revision=hub.revision,
                    endpoint=hub.endpoint,
                    token=hub.token,
                    local_dir=dest,
                    allow_patterns=[glob.escape(file.path) for file in files],
                    max_workers=max_workers,
                    tqdm_class=bars,
                )
            except HTTPError as error:
                # By name, because the class is in httpx for some versions of the library and in httpx2 for others.
                if type(error).__name__ != "ReadError" or attempt == _RESET_RETRIES:
                    raise
                logger.warning("%s: the connection was reset; trying again (%d).", hub.label, attempt + 1)
                time.sleep(_RESET_WAIT_S * 2**attempt)
            else:
                return


def _api(hub: HubRepo) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=hub.token)
