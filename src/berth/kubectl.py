"""The commands kubectl and helm on one namespace of one cluster, and what they answer."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from berth.errors import BerthError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_TIMEOUT_S = 60.0
_SAID_LINES = 8


class ClusterError(BerthError):
    """The cluster refused something, or did not answer; `said` is what the program printed."""

    def __init__(self, what: str, said: str) -> None:
        self.said = said
        tail = "\n".join(said.strip().splitlines()[-_SAID_LINES:])
        super().__init__(f"{what} failed: {tail or 'it said nothing'}")


@dataclass(frozen=True)
class Cluster:
    """Context and namespace, "" for the current ones; `environ` is what the programs run in, None this process's."""

    context: str = ""
    namespace: str = ""
    environ: Mapping[str, str] | None = None

    def kubectl(self, *words: str) -> list[str]:
        """A command of kubectl."""
        place = [f"--context={self.context}"] if self.context else []
        return ["kubectl", *place, *([f"--namespace={self.namespace}"] if self.namespace else []), *words]

    def helm(self, *words: str) -> list[str]:
        """A command of Helm."""
        place = [f"--kube-context={self.context}"] if self.context else []
        return ["helm", *words, *place, *([f"--namespace={self.namespace}"] if self.namespace else [])]

    def run(self, argv: Sequence[str], *, given: bytes = b"", timeout_s: float = _TIMEOUT_S) -> bytes:
        """What a command prints; `given` is its standard input, which is where secrets go.

        Raises:
            ClusterError: it failed, or gave no answer in time.
        """
        what = " ".join(argv[: _words(argv)])
        try:
            done = subprocess.run(
                list(argv),
                input=given,
                capture_output=True,
                timeout=timeout_s,
                check=False,
                env=self.environment(),
                # A Ctrl-C at the terminal is ours to handle: what runs now may be what cleans up.
                start_new_session=True,
            )
        except OSError as error:
            raise ClusterError(argv[0], f"{error.strerror}. Put it on PATH: tools/install-helm.sh") from None
        except subprocess.TimeoutExpired:
            raise ClusterError(what, f"no answer in {timeout_s:.0f} s") from None
        if done.returncode:
            raise ClusterError(what, (done.stderr or done.stdout).decode(errors="replace"))
        return done.stdout

    def environment(self) -> dict[str, str]:
        """The whole environment of the programs."""
        return dict(os.environ if self.environ is None else self.environ)

    def get(self, kinds: str, *words: str, timeout_s: float = _TIMEOUT_S) -> list[dict[str, Any]]:
        """Objects of some kinds, such as "pods,jobs.batch"; `words` select them.

        Raises:
            ClusterError: as run().
        """
        argv = self.kubectl("get", kinds, "--output=json", "--ignore-not-found", *words)
        printed = self.run(argv, timeout_s=timeout_s)
        if not printed.strip():
            return []
        value = json.loads(printed)
        found: list[dict[str, Any]] = value["items"] if value.get("kind", "").endswith("List") else [value]
        return found

    def create(self, manifest: Mapping[str, Any]) -> None:
        """Make an object that is not there yet. Its text goes through a pipe.

        Raises:
            ClusterError: as run().
        """
        self.run(self.kubectl("create", "--filename=-"), given=json.dumps(manifest).encode())

    def apply(self, manifest: Mapping[str, Any]) -> None:
        """Make an object, or change it to be so. Its text goes through a pipe, and no copy of it into an annotation.

        Raises:
            ClusterError: as run().
        """
        argv = self.kubectl("apply", "--server-side", "--force-conflicts", "--filename=-")
        self.run(argv, given=json.dumps(manifest).encode())

    def events_of(self, name: str) -> list[dict[str, Any]]:
        """The events of an object, the oldest first; none where they may not be read."""
        try:
            events = self.get("events", f"--field-selector=involvedObject.name={name}")
        except ClusterError:
            return []
        return sorted(events, key=lambda event: event.get("lastTimestamp") or event.get("eventTime") or "")


def secret(name: str, values: Mapping[str, str], labels: Mapping[str, str]) -> dict[str, Any]:
    """The manifest of a Secret; only for create() and apply(), which show it to nobody."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "metadata": {"name": name, "labels": dict(labels)},
        "stringData": dict(values),
    }


def _words(argv: Sequence[str]) -> int:
    """How many words of a command say what it does: arguments of a program in a pod do not."""
    return list(argv).index("--") if "--" in argv else len(argv)
