"""What the exceptions of huggingface_hub mean for the person who started the download."""

from __future__ import annotations

from typing import TYPE_CHECKING

from huggingface_hub.errors import (  # type: ignore[attr-defined]
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from berth.disk import full_disk_error, is_disk_full
from berth.errors import BerthError
from berth.hubprogress import StalledError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from berth.hub import HubRepo

_RESUME = "Run again when the network is well: files that are whole are kept, and nothing was declared complete."
_UNREACHABLE = ("ConnectError", "ConnectTimeout", "ProxyError")


def hub_error(hub: HubRepo, error: BaseException, dest: Path | None = None) -> BerthError:
    """The one error that says what is wrong and what to do, without any secret.

    The library often wraps the telling exception in a vague one, so causes are looked at too.
    """
    if dest is not None and is_disk_full(error):
        return full_disk_error(dest, f"the {hub.label}")
    chain = list(_chain(error))
    for kind, explain in _MEANINGS:
        for item in chain:
            if isinstance(item, kind):
                return BerthError(explain(hub, item))
    if any(isinstance(item, OSError) and item.errno is not None for item in chain):
        return BerthError(f"{hub.label} cannot be written to {dest}: {error}. Check that directory's permissions.")
    return BerthError(f"{hub.label}: the download did not succeed: {error}. {_RESUME}")


def _chain(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    seen: set[int] = set()
    while current is not None and id(current) not in seen:
        yield current
        seen.add(id(current))
        current = current.__cause__ or current.__context__


def _token_state(hub: HubRepo) -> str:
    return "it is set" if hub.token else "it is not set"


def _gated(hub: HubRepo, _: BaseException) -> str:
    hint = _token_state(hub)
    if hub.token:
        hint += ", so its account has no access yet, or the token may not read gated repositories"
    return (
        f"{hub.repo_type} {hub.repo} is gated: accept its terms on {hub.page}, create a token with read permission on "
        f"{hub.endpoint}/settings/tokens, and put it into the environment variable {hub.token_env} ({hint})."
    )


def _revision(hub: HubRepo, _: BaseException) -> str:
    return (
        f"{hub.page} has no revision {hub.revision}: take the commit from its page (Files, History) "
        "and set it as the revision."
    )


def _repository(hub: HubRepo, _: BaseException) -> str:
    return (
        f"{hub.endpoint} has no {hub.repo_type} {hub.repo} at {hub.revision}, or it is private: check the spelling and "
        f"the revision; for a private one set {hub.token_env} ({_token_state(hub)}) to a token that may read it."
    )


def _offline(hub: HubRepo, _: BaseException) -> str:
    return f"{hub.label}: HF_HUB_OFFLINE forbids downloads: unset it (and TRANSFORMERS_OFFLINE) here."


def _name(hub: HubRepo, _: BaseException) -> str:
    return f"{hub.repo!r} is no repository name: it is OWNER/NAME, as on {hub.endpoint}."


def _stalled(hub: HubRepo, error: BaseException) -> str:
    return f"{hub.label}: {error}. {_RESUME}"


def _status(hub: HubRepo, error: BaseException) -> str:
    assert isinstance(error, HfHubHTTPError)
    status = error.response.status_code
    if status == 404:
        return _repository(hub, error)
    if status in (401, 403):
        return (
            f"{hub.endpoint} refused access to {hub.label} (HTTP {status}): check the token in {hub.token_env} "
            f"({_token_state(hub)})."
        )
    return f"{hub.endpoint} answered HTTP {status} for {hub.label}. {_RESUME}"


def _transport(hub: HubRepo, error: BaseException) -> str:
    kind = type(error).__name__
    if kind in _UNREACHABLE:
        return (
            f"Cannot reach the hub {hub.endpoint} ({error}): check the network, HF_ENDPOINT, and, behind a proxy, "
            "HTTPS_PROXY and SSL_CERT_FILE."
        )
    return f"The hub {hub.endpoint} dropped the connection during {hub.label} ({kind}). {_RESUME}"


# The first that fits anything in the chain explains it, so the special ones come before those that they derive from.
_MEANINGS: tuple[tuple[type[BaseException], Callable[[HubRepo, BaseException], str]], ...] = (
    (GatedRepoError, _gated),
    (RevisionNotFoundError, _revision),
    (RepositoryNotFoundError, _repository),
    (OfflineModeIsEnabled, _offline),
    (HFValidationError, _name),
    (StalledError, _stalled),
    (HfHubHTTPError, _status),
    (HTTPError, _transport),
)
