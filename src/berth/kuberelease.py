"""A release of Helm of one sweep or one service: put there with its secrets, and taken away without trace."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from berth.errors import BerthError
from berth.fsio import write_json, write_text
from berth.kubectl import Cluster, ClusterError, secret
from berth.kubernetes import api_key_secret

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

logger = logging.getLogger(__name__)

# Helm's own label, which the chart gives to everything that it makes.
OF_RELEASE = "app.kubernetes.io/instance"
# What the chart does not make has the token of its sweep.
TOKEN_LABEL = "berth/instance"  # noqa: S105  # The name of a label.
_STORE_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_HELM_S = 300.0
_GONE_MARGIN_S = 60.0
_POLL_S = 0.5
# Everything that the chart makes, or that is made beside it. Routes are OpenShift's alone, and go with the release.
_KINDS = "pods,deployments.apps,statefulsets.apps,jobs.batch,services,persistentvolumeclaims,configmaps,secrets"


@dataclass(frozen=True)
class Release:
    """Where a release is, and the file that says that it is there: what a killed sweep leaves is found by that file."""

    cluster: Cluster
    name: str
    token: str
    state_file: Path

    @property
    def selector(self) -> str:
        """Selects what the chart makes."""
        return f"--selector={OF_RELEASE}={self.name}"

    @property
    def labels(self) -> dict[str, str]:
        """Of what is made beside the chart."""
        return {"app.kubernetes.io/managed-by": "berth", TOKEN_LABEL: self.token}

    def note(self) -> None:
        """Say in the file that it is going to be there."""
        place = {"context": self.cluster.context, "namespace": self.cluster.namespace}
        write_json(self.state_file, {"schema": 1, "release": self.name, "token": self.token, **place})

    def install(self, chart: Sequence[str], values: Mapping[str, Any], values_file: Path) -> None:
        """Install it, or bring it up to date; returns at once. The values are kept in a file for people.

        Raises:
            ClusterError: Helm or the cluster refuses.
        """
        text = yaml.safe_dump(dict(values), sort_keys=False, width=120, allow_unicode=True)
        write_text(values_file, text)
        self.cluster.run(install_argv(self.cluster, self.name, chart), given=text.encode(), timeout_s=_HELM_S)

    def set_up(
        self, chart: Mapping[str, Any], key: str, values_of: Callable[[str], dict[str, Any]], values_file: Path
    ) -> dict[str, Any]:
        """Put secrets, claim and release there; the values.

        Args:
            chart: of kubeplan.release_request.
            key: of the server; it is not used where the server asks for none.
            values_of: the values, from the name of the secret with the store's credentials.
            values_file: where the values are written for people.

        Raises:
            BerthError: the cluster refuses, or there are no credentials of the store.
        """
        store_secret = self.make_store_secret(chart["store_secret"], self.cluster.environment())
        if chart["server_key"]:
            self.make_key_secret(chart["server_key"], key)
        values = values_of(store_secret)
        if chart["make_claim"]:
            download = values["extraInit"]
            model_claim(self.cluster, chart["claim"], download["volume"], download["pvcStorage"])
        self.install(chart["chart"], values, values_file)
        return values

    def make_key_secret(self, variable: str, key: str) -> None:
        """Make the secret with the server's key."""
        self.cluster.apply(secret(api_key_secret(self.name), {variable: key}, self.labels))

    def make_store_secret(self, wanted: str, environ: Mapping[str, str]) -> str:
        """The name of a secret with the credentials of the store: `wanted` where it is there, else one of its own.

        Raises:
            BerthError: there is none, and the environment has no credentials either.
        """
        if self.cluster.get("secrets", wanted):
            return wanted
        values = {name: environ[name] for name in _STORE_KEYS if environ.get(name)}
        if len(values) < 2:
            raise BerthError(
                f"There is no secret {wanted} in the namespace, and AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are "
                "not set. Export them, or make the secret (kubernetes.store_secret in the platform file is its name)."
            )
        name = f"{self.name}-store"
        self.cluster.apply(secret(name, values, self.labels))
        return name

    def objects(self, kinds: str) -> list[dict[str, Any]]:
        """What the chart has made of some kinds.

        Raises:
            ClusterError: the cluster does not answer.
        """
        return self.cluster.get(kinds, self.selector)

    def left(self) -> list[str]:
        """KIND/NAME of everything of it that is still there; claims that are to stay are not counted."""
        found = self.objects(_KINDS) + self.cluster.get(_KINDS, f"--selector={TOKEN_LABEL}={self.token}")
        names = {f"{each['kind']}/{each['metadata']['name']}" for each in found if not _kept(each)}
        return sorted(names)

    def take_down(self, *, grace_s: float) -> None:
        """Uninstall it with its secrets and its client, and see that nothing is left. Harmless where nothing is.

        Raises:
            BerthError: something stays, or the cluster does not answer; the file stays too, so that the next sweep
                tries again.
        """
        if not self.state_file.exists():
            return
        try:
            try:
                self.cluster.run(self.cluster.helm("uninstall", self.name), timeout_s=_HELM_S)
            except ClusterError as error:
                if "not found" not in error.said:
                    raise
            self.cluster.run(
                self.cluster.kubectl(
                    "delete",
                    "pods,secrets",
                    f"--selector={TOKEN_LABEL}={self.token}",
                    "--ignore-not-found",
                    "--wait=false",
                )
            )
            self._until_gone(grace_s + _GONE_MARGIN_S)
        except ClusterError as error:
            raise BerthError(
                f"The release {self.name} could not be removed: {error}\n{self.state_file} keeps its name, and the "
                "next "
                f"sweep of this run removes it. By hand: {' '.join(self.cluster.helm('uninstall', self.name))}"
            ) from None
        self.state_file.unlink(missing_ok=True)
        logger.info("release %s is gone", self.name)

    def _until_gone(self, limit_s: float) -> None:
        end = time.monotonic() + limit_s
        while left := self.left():
            if time.monotonic() > end:
                raise ClusterError(f"waiting {limit_s:.0f} s for its end", f"still there: {', '.join(left)}")
            time.sleep(_POLL_S)


def install_argv(cluster: Cluster, name: str, chart: Sequence[str]) -> list[str]:
    """The command that installs a release with the values of its standard input."""
    return cluster.helm("upgrade", "--install", name, *chart, "--values=-")


def _kept(each: Mapping[str, Any]) -> bool:
    return (each["metadata"].get("annotations") or {}).get("helm.sh/resource-policy") == "keep"


def left_release(state_file: Path, cluster: Cluster) -> Release | None:
    """The release that a sweep noted in a file and did not remove; None where there is no such file.

    Raises:
        BerthError: the file is none of Berth's.
    """
    try:
        value = json.loads(state_file.read_text())
        place = Cluster(value["context"], value["namespace"], cluster.environ)
        return Release(place, value["release"], value["token"], state_file)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BerthError(
            f"{state_file}: does not say which release a sweep has left ({error}). See `helm list` for one of this "
            "run, "
            "uninstall it, and delete the file."
        ) from None


def model_claim(cluster: Cluster, name: str, volume: Mapping[str, Any], size: str) -> None:
    """Have a claim that stays when releases go, so that its model need not be downloaded again.

    Raises:
        ClusterError: the cluster refuses.
    """
    if cluster.get("persistentvolumeclaims", name):
        return
    spec: dict[str, Any] = {"accessModes": [volume["accessMode"]], "resources": {"requests": {"storage": size}}}
    if volume["storageClassName"]:
        spec["storageClassName"] = volume["storageClassName"]
    cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": name, "labels": {"app.kubernetes.io/managed-by": "berth"}},
            "spec": spec,
        }
    )
