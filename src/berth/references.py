"""Names of container images, and those that follow from them: at a site's registry, on disk, in Podman's storage."""

from __future__ import annotations

from dataclasses import dataclass

_SHORT_DIGITS = 12


@dataclass(frozen=True)
class Reference:
    """REGISTRY/REPOSITORY:TAG."""

    host: str
    repository: str
    tag: str

    @classmethod
    def parse(cls, text: str) -> Reference:
        """A reference of the form that the recipe's schema allows."""
        host, _, rest = text.partition("/")
        repository, _, tag = rest.rpartition(":")
        return cls(host, repository, tag)

    def __str__(self) -> str:
        return f"{self.name}:{self.tag}"

    @property
    def name(self) -> str:
        """REGISTRY/REPOSITORY."""
        return f"{self.host}/{self.repository}"

    def at(self, digest: str) -> str:
        """REGISTRY/REPOSITORY@DIGEST, or with the tag where no digest is known."""
        return f"{self.name}@{digest}" if digest else str(self)

    def moved_to(self, host: str, prefix: str) -> Reference:
        """The same repository and tag at another registry, below a prefix that may be empty."""
        return Reference(host, "/".join(filter(None, (prefix.strip("/"), self.repository))), self.tag)


def short(digest: str) -> str:
    """The digits of a digest that stand in names of files and tags."""
    return digest.removeprefix("sha256:")[:_SHORT_DIGITS]


def file_stem(reference: str, digest: str) -> str:
    """NAME-TAG-DIGITS: how an image is called in the platform's folder of images; `digest` is the recipe's, or ""."""
    found = Reference.parse(reference)
    return "-".join(filter(None, (found.repository.rpartition("/")[2], found.tag, short(digest))))


def sif_name(reference: str, digest: str) -> str:
    """The file of an image for Apptainer, in the platform's folder of images."""
    return f"{file_stem(reference, digest)}.sif"


def archive_name(reference: str, digest: str) -> str:
    """The folder of an image for Podman, in the platform's folder of images: manifest and blobs as they were pulled."""
    return f"{file_stem(reference, digest)}.image"


def local_name(name: str, digest: str) -> str:
    """What REGISTRY/REPOSITORY is called in Podman's storage, so that REGISTRY/REPOSITORY@DIGEST finds it there.

    The tag holds the digest and so never moves: a node may have several images of one tag.
    """
    return f"{name}:berth-{short(digest)}"
