"""Container images into the site's registry: copied once, by digest, and never over another image."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from berth import registry
from berth.disk import human_bytes
from berth.errors import BerthError
from berth.fsio import write_json
from berth.references import Reference

if TYPE_CHECKING:
    from pathlib import Path

    from berth.image_request import ImageRequest
    from berth.registry import Access, Found

logger = logging.getLogger(__name__)

SCHEMA = 1


def mirror_image(request: ImageRequest, receipt_path: Path) -> dict[str, Any]:
    """Copy an image into the site's registry, or find it there, and write the receipt.

    The source is asked only for what the site's registry does not have, so that an air gap may lie between them. An
    image without a digest in its recipe is what the tag means at the site, and at the source where the site has none.

    Returns:
        The receipt: schema, source, destination, digest (of the manifest for this machine), index_digest (of the list
        that it stands in, or ""), size_bytes (in the registry), platform, copied (bool), duration_s.

    Raises:
        BerthError: a digest changed at either end; a registry does not answer, wants a login or has no such image.
    """
    site, digest = request.site, request.digest
    if site is None:
        raise BerthError(f"config/platforms/{request.platform}.yaml: registry: there is none to mirror into. Add it.")
    started = time.monotonic()
    source = Reference.parse(request.reference)
    place = source.moved_to(site["host"], site["prefix"])
    source_access = registry.access_to(source.host, None, request.platform, request.recipe)
    site_access = registry.access_to(place.host, site, request.platform, request.recipe)
    found = _at_site(place, site_access)
    copied = found is None
    if found is None:
        found = registry.find_pinned(source, source_access, digest)
        logger.info("Copying %s (%s) to %s", source.at(found.digest), human_bytes(found.size_bytes), place)
        registry.copy(source.at(found.digest), str(place), source_access, site_access)
        arrived = registry.find(place, site_access)
        if arrived.digest != found.digest:
            raise BerthError(
                f"{site_access.key}: {place} is {arrived.digest} after a copy of {found.digest}: somebody else pushed "
                "there, or the registry rewrites manifests. Run again; if it stays so, ask its operators."
            )
    elif digest and not found.is_(digest) and not _same(source, source_access, digest, found):
        raise BerthError(
            f"{site_access.key}: {place} is {found.digest} there, and the recipe {request.recipe} says {digest}. "
            "Nothing was overwritten. If that image is the one to measure, put its digest into the recipe; if not, set "
            "another registry.prefix, or delete the tag there, and run again."
        )
    receipt = {
        "schema": SCHEMA,
        "source": request.reference,
        "destination": str(place),
        "digest": found.digest,
        "index_digest": found.index_digest or (digest if digest != found.digest else ""),
        "size_bytes": found.size_bytes,
        "platform": found.platform,
        "copied": copied,
        "duration_s": round(time.monotonic() - started, 3),
    }
    write_json(receipt_path, receipt)
    logger.info("%s is %s: %s", place, found.digest, "copied" if copied else "it was there already")
    return receipt


def _at_site(place: Reference, access: Access) -> Found | None:
    try:
        return registry.find(place, access)
    except registry.ImageMissing:
        return None


def _same(source: Reference, access: Access, digest: str, found: Found) -> bool:
    """Whether a digest of the recipe is the list in which the image at the site stands."""
    try:
        return registry.find(source, access, digest).digest == found.digest
    except BerthError:
        return False
