"""Proxies and certificates of a site: where they arrive, what stays out of them, and that they define nothing."""

from __future__ import annotations

import dataclasses
import http.server
import re
import ssl
import subprocess
import threading
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from berth._doctor_node import certificate_checks
from berth.config import Network
from berth.container import Mount, apptainer_argv, apptainer_env, podman_argv, process_env
from berth.decide import Site
from berth.errors import BerthError
from berth.network import at_site, check_certificates, client_env, exempt, network_env, own_env
from berth.parse import load_config
from berth.plan import make_plan
from berth.probe import ask
from berth.recipes import load_recipe
from berth.render import render_files
from berth.rendering import renderings
from berth.resolve import client_container, resolve

if TYPE_CHECKING:
    from collections.abc import Iterator

    from berth.config import Config
    from berth.container import Container

ROOT = Path(__file__).resolve().parents[2]
CA = "/etc/pki/site.pem"
PROXY = "http://proxy.example:3128"
NETWORK = Network(http_proxy=PROXY, https_proxy=PROXY, no_proxy=(".example", "s3.near"), ca_bundle=CA)
EXEMPT = ".example,s3.near,localhost,127.0.0.1,::1"


def server(host: str = "10.0.0.7", **given: Any) -> Container:
    place: dict[str, Any] = {
        "accelerator": "cuda",
        "version": "0.31.0",
        "platform_name": "hops",
        "model_path": Path("/models/m"),
        "served_name": "org/m",
        "host": host,
        "port": 8000,
        "cache_dir": Path("/cache"),
        "files_dir": Path("/files"),
        "site": at_site(Site(), NETWORK),
    }
    return resolve(load_recipe(ROOT / "config/recipes/vllm.yaml"), **{**place, **given}).container


def config_of(network: dict[str, Any] | None, tmp_path: Path, platform: str = "hops") -> Config:
    """The shipped configuration with another network of one platform."""
    folder = tmp_path / "config"
    subprocess.run(["cp", "-r", str(ROOT / "config"), str(folder)], check=True)
    file = folder / f"platforms/{platform}.yaml"
    if network is not None:
        file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), "network": network}))
    raw = yaml.safe_load((folder / "config.yaml").read_text())
    return load_config({**raw, "platform": platform, "config_dir": str(folder)}, ROOT)


SITE = {"http_proxy": PROXY, "https_proxy": PROXY, "no_proxy": [".example", "s3.near"], "ca_bundle": CA}


def test_the_site_reaches_a_container_of_podman() -> None:
    """Both spellings, the server's own host among the exceptions, the bundle read only at its own path."""
    argv = podman_argv(server())
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"):
        assert f"--env={name}={PROXY}" in argv
    for name in ("no_proxy", "NO_PROXY"):
        assert f"--env={name}={EXEMPT},10.0.0.7" in argv
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "AWS_CA_BUNDLE"):
        assert f"--env={name}={CA}" in argv
    assert f"--volume={CA}:{CA}:ro" in argv


def test_the_site_reaches_a_container_of_apptainer() -> None:
    """What --env would split goes by APPTAINERENV_, the rest by --env, and the bundle is bound."""
    container = server()
    argv = apptainer_argv(container, "v.sif")
    assert {f"--env=https_proxy={PROXY}", f"--env=SSL_CERT_FILE={CA}", f"--bind={CA}:{CA}:ro"} <= set(argv)
    assert apptainer_env(container, {})["APPTAINERENV_no_proxy"] == f"{EXEMPT},10.0.0.7"


def test_the_site_reaches_a_plain_process() -> None:
    """A process gets the site's values in place of the caller's; there is nothing to mount."""
    container = server(accelerator="cpu", version="0.32.0", host="127.0.0.1")
    env = process_env(container, "/env", {"https_proxy": "http://other:1", "no_proxy": "elsewhere"})
    assert (env["https_proxy"], env["no_proxy"], env["SSL_CERT_FILE"]) == (PROXY, EXEMPT, CA)
    assert container.mounts == ()


def test_every_node_of_a_server_is_an_exception() -> None:
    """The first node's address and the node's own are never asked through the proxy; "every address" is no host."""
    container = server(
        "0.0.0.0", version="0.31.0", nodes=2, tensor_parallel=4, pipeline_parallel=2, head_address="10.0.0.1",
        node_address="10.0.0.2", node_rank=1,
    )  # fmt: skip
    assert container.env["no_proxy"] == f"{EXEMPT},10.0.0.1,10.0.0.2"


def test_the_client_asks_no_proxy_at_all() -> None:
    """The client of a site with proxies has no_proxy=*, wherever its server is, and the same certificates."""
    recipe = load_recipe(ROOT / "config/recipes/vllm.yaml")
    client = client_container(recipe, server(), version="0.31.0", name="c")
    assert (client.env["no_proxy"], client.env["NO_PROXY"], client.env["SSL_CERT_FILE"]) == ("*", "*", CA)
    assert Mount(CA, CA, read_only=True) in client.mounts
    without = client_container(recipe, server(site=Site()), version="0.31.0", name="c")
    assert "no_proxy" not in without.env


def test_a_deployment_may_replace_or_remove_what_the_site_sets() -> None:
    """A value of the deployment wins over the site's, and null takes it away."""
    container = server(deployment_env={"https_proxy": "http://mine:1", "SSL_CERT_FILE": None})
    assert container.env["https_proxy"] == "http://mine:1"
    assert "SSL_CERT_FILE" not in container.env
    assert container.env["HTTPS_PROXY"] == PROXY


def test_the_network_is_no_part_of_a_definition(tmp_path: Path) -> None:
    """Proxies and certificates change no id, so that no measured point is missing for them."""
    ids = []
    for number, network in enumerate((None, SITE, {"no_proxy": ["x"]})):
        (tmp_path / str(number)).mkdir()
        plan = make_plan(config_of(network, tmp_path / str(number), "local"), tmp_path)
        ids.append(sorted(run.id.spec for run in plan.runs.values()))
        assert plan.sweep_request(next(iter(plan.runs)), "c1-32")["platform_settings"]["network"]["ca_bundle"] == (
            (network or {}).get("ca_bundle", "")
        )
    assert ids[0] == ids[1] == ids[2] != []


def test_the_rendered_scripts_show_it(tmp_path: Path) -> None:
    """Server, client and staging name proxies and certificates, and settings.md says who set them."""
    files = render_files(renderings(config_of(SITE, tmp_path), ROOT, (3, 11))["scout-hops"])
    assert f"--env=no_proxy={EXEMPT}" in files["server.sh"]
    assert f"--volume={CA}:{CA}:ro" in files["server.sh"]
    assert f"[ -r {CA} ]" in files["server.sh"]
    assert "--env=no_proxy=*" in files["client.sh"].replace("'", "")
    assert f"export https_proxy={PROXY}" in files["stage.sh"]
    assert f"export AWS_CA_BUNDLE={CA}" in files["stage.sh"]
    assert f"| `https_proxy={PROXY}` | platform hops | The site sets it everywhere." in files["settings.md"]


@pytest.mark.parametrize(
    ("network", "told"),
    [
        ({"http_proxi": PROXY}, r'unknown key "http_proxi"\. Did you mean "http_proxy"\?'),
        ({"https_proxy": "http://user:secret@proxy:3128"}, r"network\.https_proxy: .*export the variable instead"),
        ({"https_proxy": "proxy:3128"}, r"does not match .*http://HOST:PORT"),
        ({"no_proxy": ["a,b"]}, r"network\.no_proxy\.0: 'a,b' does not match"),
        ({"ca_bundle": "site.pem"}, r"network\.ca_bundle: 'site\.pem' does not match .*Absolute path"),
    ],
)
def test_a_wrong_network_is_refused(tmp_path: Path, network: dict[str, Any], told: str) -> None:
    """A misspelt key, a password in a proxy, a list in one word and a relative path are named with what is allowed."""
    with pytest.raises(BerthError, match=rf"(?s)platforms/hops\.yaml: .*{told}"):
        config_of(network, tmp_path)


def test_what_a_user_exported_stays(tmp_path: Path) -> None:
    """Berth's own processes get what is not set; the exceptions of user, site, loopback and server add up."""
    bundle = tmp_path / "site.pem"
    bundle.write_text("")
    network = dataclasses.replace(NETWORK, ca_bundle=str(bundle))
    mine = {"HTTPS_PROXY": "http://me:pw@proxy:1", "NO_PROXY": "mine", "SSL_CERT_FILE": "/mine.pem"}
    added = own_env(network, mine, "10.0.0.7")
    assert not {"https_proxy", "HTTPS_PROXY", "SSL_CERT_FILE"} & set(added)
    assert added["http_proxy"] == added["HTTP_PROXY"] == PROXY
    assert added["no_proxy"] == added["NO_PROXY"] == f"mine,{EXEMPT},10.0.0.7"
    assert added["AWS_CA_BUNDLE"] == added["PIP_CERT"] == str(bundle)
    # Asked again by the job that inherits it, nothing changes.
    assert {**mine, **added, **own_env(network, {**mine, **added}, "10.0.0.7")} == {**mine, **added}


def test_a_site_without_a_network_adds_nothing_but_the_loopback_to_a_users_proxy() -> None:
    """Without proxies the environment is left alone; with a user's own the loopback is taken out of it."""
    assert own_env(Network(), {"PATH": "/bin"}, "0.0.0.0") == {}
    assert own_env(Network(), {"http_proxy": PROXY}, "0.0.0.0")["no_proxy"] == "localhost,127.0.0.1,::1"
    assert network_env(Network()) == exempt({}, "h") == client_env({}) == {}


def test_a_bundle_that_is_absent_here_is_left_out_and_told(tmp_path: Path) -> None:
    """A login node without the bundle can still read the configuration; what needs it says what is wrong."""
    assert "SSL_CERT_FILE" not in own_env(NETWORK, {})
    where = "config/platforms/hops.yaml"
    with pytest.raises(BerthError, match=r"hops\.yaml: network\.ca_bundle: /etc/pki/site\.pem: cannot be read"):
        check_certificates(CA, where)
    empty = tmp_path / "empty.pem"
    empty.write_text("no certificate\n")
    with pytest.raises(BerthError, match="no bundle of certificates in PEM"):
        check_certificates(str(empty), where)
    assert check_certificates("", where) == 0


def test_doctor_looks_at_the_bundle() -> None:
    """Doctor counts the certificates of a bundle, fails where it cannot be read, and is silent where none is named."""
    assert list(certificate_checks("", "hops")) == []
    (failed,) = certificate_checks(CA, "hops")
    assert (failed.status, "cannot be read on this machine" in failed.what) == ("FAIL", True)
    system = ssl.get_default_verify_paths().cafile or "/etc/ssl/certs/ca-certificates.crt"
    if not Path(system).is_file():
        pytest.skip("this machine has no bundle of certificates: apt-get install ca-certificates")
    (good,) = certificate_checks(system, "hops")
    assert good.status == "ok"
    assert re.search(r" has [1-9]\d*$", good.what)


class _Refusing(http.server.BaseHTTPRequestHandler):
    seen: list[str]

    def parse_request(self) -> bool:
        if super().parse_request():
            self.seen.append(self.path)
            self.send_error(403)
        return False

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What a real proxy on the loopback was asked for; it refuses everything, and the environment names it."""
    seen: list[str] = []
    handler = type("Handler", (_Refusing,), {"seen": seen})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        for name in ("no_proxy", "NO_PROXY", "HTTP_PROXY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{listening.server_address[1]}")
        yield seen
        listening.shutdown()


def test_questions_to_a_server_pass_no_proxy(proxy: list[str]) -> None:
    """Berth's own questions go straight to the server even where no exception is set; others would be refused."""
    # Not urlopen, which would keep this proxy for the tests after this one.
    with pytest.raises(OSError, match="403"):
        urllib.request.build_opener().open("http://127.0.0.1:9/control", timeout=10)
    assert proxy == ["http://127.0.0.1:9/control"]
    assert ask("http://127.0.0.1:9", "/health", timeout_s=10).status == 0
    assert proxy == ["http://127.0.0.1:9/control"]
