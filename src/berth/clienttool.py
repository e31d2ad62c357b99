"""A benchmark client other than vLLM's own: config/clients/NAME.yaml, and the images that it runs in."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from berth import _schema
from berth.diagnose import KnownFailure
from berth.errors import BerthError
from berth.pins import LOCKS, read_lock

if TYPE_CHECKING:
    from pathlib import Path

# The client that every benchmark has unless it names another one, and its name in records.
DEFAULT = "vllm"
VLLM_BENCH = "vllm-bench"


@dataclass(frozen=True)
class ClientTool:
    """One client. `images` has what it runs in, by kind: "environment" and "container". None in `env` removes."""

    name: str
    file: str
    program: str
    version: str
    images: dict[str, dict[str, Any]]
    env: dict[str, str | None] = field(default_factory=dict)
    failures: tuple[KnownFailure, ...] = ()

    def image(self, runtime: str) -> dict[str, Any]:
        """The image under a platform's runtime, as spec.Definition has images.

        Raises:
            BerthError: there is none, or it does not run under this runtime.
        """
        if runtime == "kubernetes":
            raise BerthError(
                f"{self.file}: {self.name} does not run on Kubernetes: there the client is a pod of the server's "
                f"image. Set the benchmark's client to {DEFAULT}, or leave its experiments out with select."
            )
        kind = "environment" if runtime == "process" else "container"
        if kind not in self.images:
            raise BerthError(f"{self.file}: images.{kind}: {self.name} has none. Add it, for runtime {runtime}.")
        image = self.images[kind]
        if kind == "container":
            return {"kind": kind, "reference": image["reference"], "digest": image.get("digest")}
        lock = read_lock(LOCKS / image["lock"])
        return {
            "kind": kind,
            "reference": lock.pin(image["package"]),
            "digest": lock.digest,
            "program": self.program,
            **image,
        }


def load_client(path: Path) -> ClientTool:
    """The client in a YAML file; its name is the file's.

    Raises:
        BerthError: names file, key, value, what is allowed and what to do.
    """
    raw = _schema.load_yaml(path)
    _schema.check(raw, "client", str(path))
    for number, failure in enumerate(raw.get("failures", ())):
        try:
            re.compile(failure["pattern"])
        except re.error as error:
            raise BerthError(f"{path}: failures.{number}.pattern: no regular expression: {error}.") from None
    return ClientTool(
        name=path.stem,
        file=str(path),
        program=raw["program"],
        version=raw["version"],
        images=raw["images"],
        env={name: setting["value"] for name, setting in raw.get("env", {}).items()},
        failures=tuple(KnownFailure(**each) for each in raw.get("failures", ())),
    )
