"""`access` without a network: settings and their errors, what follows a server, and what each kind of target gets."""

from __future__ import annotations

import ast
import json
import logging
import shutil
import socket
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from access_cases import KEY, MODEL, Site, running

from berth import services
from berth.access import refresh
from berth.access_probe import probe
from berth.binding import at_interface
from berth.errors import BerthError
from berth.services import KubernetesPlace
from berth.sweep import SweepRequest

if TYPE_CHECKING:
    from pathlib import Path

LOCAL = {"name": "localhost", "port": 19443, "bind": "127.0.0.1"}
TLS = {"certificate": "/etc/cert.pem", "key": "/etc/key.pem"}
LOGIN = {"host": "login.example.gov", "user": "ada", "port": 2222, "jump": "gate.example.gov"}
ROUTE = KubernetesPlace("", "genai", "b", "b", 80, "https://b.apps.example.gov")


@pytest.fixture(autouse=True)
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No key of the person who runs the tests is read or written."""
    monkeypatch.setenv("BERTH_KEYS", str(tmp_path / "own-keys"))
    monkeypatch.delenv("LITELLM_MASTER_KEY", raising=False)


@pytest.mark.parametrize(
    ("access", "told"),
    [
        (
            {"nginx": LOCAL | {"bind": "10.0.0.1"}},
            "access.nginx: without certificate and key it speaks HTTP, and on 10",
        ),
        ({"nginx": {"name": "a", "port": 1}}, "access.nginx: without certificate and key it speaks HTTP, and on every"),
        ({"nginx": LOCAL | {"key": "/k"}}, "access.nginx.certificate: it is missing, and key is there"),
        ({"nginx": LOCAL | {"certificate": "/k"}}, "access.nginx.key: it is missing, and certificate is there"),
        (
            {"nginx": LOCAL | TLS | {"ports": {"b": 19443}}},
            "access.nginx.ports.b: 19443 is that of access.nginx.port too",
        ),
        ({"nginx": LOCAL | {"ports": {"b": 2, "c": 2}}}, "access.nginx.ports.c: 2 is that of access.nginx.ports.b too"),
        ({"reload": ["true"]}, "access.reload: there is no access.nginx that it would reload"),
        ({"nginx": LOCAL | {"nmae": "x"}}, 'access.nginx: unknown key "nmae". Did you mean "name"?'),
        (
            {"nginx": LOCAL | {"certificate": "/a; include /etc/shadow", "key": "/k"}},
            "access.nginx.certificate: '/a; inc",
        ),
        ({"login": {"host": "-oProxyCommand=x"}}, "access.login.host: '-oProxyCommand=x' does not match"),
        ({"login": LOGIN | {"jump": "-oProxyCommand=x"}}, "access.login.jump: '-oProxyCommand=x' does not match"),
    ],
)
def test_settings_that_are_wrong_are_one_error(tmp_path: Path, access: dict[str, Any], told: str) -> None:
    """Plain HTTP off the machine, half a certificate, a port twice, and words that ssh or NGINX would obey."""
    site = Site.create(tmp_path, {})
    site.configure(access)
    with pytest.raises(BerthError) as caught:
        site.config("a")
    assert told in str(caught.value)
    assert str(caught.value).startswith(("config/platforms/local.yaml: ", f"{tmp_path}/config/platforms/local.yaml: "))


def test_targets_that_are_wrong_are_one_error(tmp_path: Path) -> None:
    """No name, an unknown one, one twice, one never served and a port that is taken are told with what to do."""
    site = Site.create(tmp_path, {"nginx": LOCAL}, deployments=3)
    for wanted, told in (
        ("", "Name it: --config deployment=NAME, several as NAME,NAME. Served on local: none."),
        ("tiny-lcal", 'there is no deployment "tiny-lcal" in config/config.yaml. Did you mean "tiny-local"?'),
        ("a,a", "a name stands twice"),
        ("a", "a was never served. Serve it first: snakemake --profile profiles/local serve --config deployment=a"),
    ):
        with pytest.raises(BerthError) as caught:
            site.written(wanted)
        assert told in str(caught.value)
    site.serve("a", 18001)
    site.serve("b", 18002)
    site.written("a")
    site.written("a")
    with pytest.raises(BerthError, match=r"ports: 19443 is the port of a already\. Give b one of its own"):
        site.written("b")
    site.configure({"nginx": LOCAL | {"ports": {"b": 19444}}})
    assert "listen 127.0.0.1:19444;" in (site.written("b").folder / "server.conf").read_text()


def test_refresh_follows_every_folder_and_survives_what_fails(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """All files of a deployment follow it, NGINX is reloaded once for a change, and what fails is told."""
    calls = tmp_path / "calls"
    site = Site.create(tmp_path / "site", {"nginx": LOCAL | {"ports": {"a+b": 19445}}}, deployments=2)
    site.configure(site.access | {"reload": ["bash", "-c", f"echo >> {calls}; echo no rights >&2; exit 3"]})
    results = site.path / "results"
    refresh(results, "local", "a")
    site.serve("a", 18001)
    site.serve("b", 18002, state="starting", endpoint=None)
    alone, both = site.written("a").folder, site.written("a,b").folder
    assert [line for line in (both / "upstream.conf").read_text().splitlines() if line[0] != "#"] == [
        "server 127.0.0.1:18001 max_fails=1 fail_timeout=10s;"
    ]
    refresh(results, "local", "a")
    # There was nothing that NGINX could have read before.
    assert not calls.exists()
    with caplog.at_level(logging.WARNING):
        site.serve("a", 18009)
        refresh(results, "local", "a")
    assert len(calls.read_text().splitlines()) == 2
    assert "access.reload: `bash -c" in caplog.text
    assert "failed (no rights): NGINX still leads to where a was before" in caplog.text
    for folder in (alone, both):
        assert "18009" in (folder / "upstream.conf").read_text()
        assert (folder / "endpoint").read_text() == "127.0.0.1 18009\n"
    site.serve("a", 18009, state="ended", endpoint=None)
    (both / "access.json").write_text("{")
    refresh(results, "local", "a")
    assert (alone / "endpoint").read_text() == ""
    assert "server 127.0.0.1:9 down;" in (alone / "upstream.conf").read_text()
    assert "what leads to a was not brought up to date" in caplog.text


def test_replicas_with_other_keys_or_models_get_a_router(tmp_path: Path) -> None:
    """NGINX leads to LiteLLM where it cannot stand before them itself; the router has a key of its own and no value."""
    site = Site.create(tmp_path, {"nginx": LOCAL, "login": LOGIN}, deployments=3)
    site.serve("a", 18001)
    site.serve("b", 18002, key="sk-another-one")
    site.serve("c", 18003, served_model="berth/other")
    target = site.written("a,b")
    assert "different API keys" in target.needs_router
    folder = target.folder
    assert "server 127.0.0.1:4000;" in (folder / "upstream.conf").read_text()
    assert "proxy_pass http://berth_a_b/health/liveliness;" in (folder / "server.conf").read_text()
    assert (folder / "backends").read_text() == "http://127.0.0.1:18001/v1\nhttp://127.0.0.1:18002/v1\n"
    # A tunnel leads to one server, whose key is not the router's.
    assert not (folder / "tunnel.sh").exists()
    config = yaml.safe_load((folder / "litellm/files/config.yaml").read_text())
    assert [each["litellm_params"]["api_key"] for each in config["model_list"]] == [
        "os.environ/BACKEND_1_KEY",
        "os.environ/BACKEND_2_KEY",
    ]
    key = services.key_in(services.key_path("local", "a+b"))
    assert key not in (KEY, "sk-another-one")
    for path in folder.rglob("*"):
        assert not path.is_file() or not {KEY, "sk-another-one", key} & set(path.read_text().split()), path
    site.configure({"nginx": LOCAL | {"ports": {"a+c": 19446}}})
    assert "different models" in site.written("a,c").needs_router
    subprocess.run(["bash", "-n", str(folder / "litellm/litellm.sh"), str(folder / "litellm/server.sh")], check=True)


def test_a_route_is_a_backend_beside_a_node(tmp_path: Path) -> None:
    """A deployment on Kubernetes is reached by verified TLS, through a socket of NGINX's own, and by kubectl."""
    site = Site.create(tmp_path, {"nginx": LOCAL, "login": LOGIN}, deployments=2)
    site.scratch("/tmp/s")
    site.serve("a", 18001)
    site.serve("b", 0, endpoint=None, instances=(), kubernetes=ROUTE)
    target = site.written("a,b")
    upstream = (target.folder / "upstream.conf").read_text()
    assert f"server unix:{target.run_dir}/b.sock max_fails=1" in upstream
    assert "server 127.0.0.1:18001 max_fails=1" in upstream
    server = (target.folder / "server.conf").read_text()
    for words in ("proxy_pass https://b.apps.example.gov", "proxy_ssl_verify on", "proxy_ssl_name b.apps.example.gov"):
        assert f"        {words};\n" in server
    page = (target.folder / "ACCESS.md").read_text()
    assert "https://b.apps.example.gov/v1" in page
    assert "kubectl --namespace genai port-forward service/b 18000:80" in page
    assert (target.folder / "tunnel.sh").exists()
    site.scratch("/tmp/" + 100 * "s")
    with pytest.raises(BerthError, match=r"b\.sock: a socket's path has at most 107 characters"):
        site.written("a,b")


def test_a_page_names_every_way_and_the_examples_are_sound(tmp_path: Path) -> None:
    """ACCESS.md has the commands with their user, port and jump host; scripts and the Python example can be parsed."""
    ca = tmp_path / "ca.pem"
    site = Site.create(tmp_path / "site", {"nginx": LOCAL | TLS | {"ca_file": str(ca)}, "login": LOGIN})
    site.serve("a", 18001)
    folder = site.written("a").folder
    page = (folder / "ACCESS.md").read_text()
    for text in (
        "https://localhost:19443/v1",
        f"scp ada@login.example.gov:{folder}/tunnel.sh .",
        "ssh -N -L 127.0.0.1:18000:127.0.0.1:18001 -o ExitOnForwardFailure=yes",
        "-p2222 -J gate.example.gov ada@login.example.gov",
        f"include {folder}/server.conf;",
        "no `access.reload` is configured",
    ):
        assert text in page
    assert KEY not in page
    assert f'CA_FILE="${{CA_FILE-{ca}}}"' in (folder / "curl.sh").read_text()
    for name in ("curl.sh", "tunnel.sh", "nginx.sh"):
        subprocess.run(["bash", "-n", str(folder / name)], check=True)
        assert (folder / name).stat().st_mode & 0o777 == 0o755
    ast.parse((folder / "openai_example.py").read_text())
    assert json.loads((folder / "access.json").read_text())["port"] == 19443


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="apt-get install shellcheck checks the scripts further")
def test_shellcheck_finds_nothing_in_the_scripts_of_access(tmp_path: Path) -> None:
    """Every script of one deployment and of a router passes shellcheck without a remark."""
    site = Site.create(tmp_path, {"nginx": LOCAL | {"ports": {"a+b": 19447}}, "login": LOGIN}, deployments=2)
    site.serve("a", 18001)
    site.serve("b", 18002, key="sk-another-one")
    scripts = [path for name in ("a", "a,b") for path in site.written(name).folder.rglob("*.sh")]
    assert {path.name for path in scripts} == {
        *("curl.sh", "tunnel.sh", "nginx.sh", "litellm.sh", "server.sh", "stage.sh")
    }
    done = subprocess.run(["shellcheck", *map(str, scripts)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_probe_says_what_is_wrong(tmp_path: Path) -> None:
    """A state that is not ready, a key that others can read and a port where nothing listens are told."""
    site = Site.create(tmp_path, {})
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    service = site.serve("a", port)
    target = site.written("a")
    first, second = probe(target)
    assert (first.status, second.status) == ("ok", "WARN")
    assert "no connection from here (Connection refused)" in second.what
    (tmp_path / "keys/a").chmod(0o644)
    results = list(probe(target))
    assert results[-1].status == "FAIL"
    assert "others may read this API key" in results[-1].what
    down = replace(service, state="down", endpoint=None)
    services.write(site.path / "results", down)
    (tmp_path / "keys/a").chmod(0o600)
    (told,) = probe(site.written("a"))
    assert told.status == "WARN"
    assert "a on local is down" in told.what


# In the place of kubectl: it says that a port is forwarded, or what the cluster says. Real ones: tests/kubernetes.
KUBECTL = """#!/bin/sh
case "$*" in
  "--namespace=genai port-forward --address=127.0.0.1 service/a :80") ;;
  *) echo "asked for: $*" >&2; exit 1 ;;
esac
[ -z "{fails}" ] || {{ echo 'error: no pod of service/a is ready' >&2; exit 1; }}
echo "Forwarding from 127.0.0.1:{port} -> 8000"
exec sleep 60
"""


def test_the_probe_goes_through_kubectl_where_nothing_leads_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service without Route or Ingress is tried as ACCESS.md says; a way that cannot be taken is told with why."""
    site = Site.create(tmp_path / "site", {})
    place = KubernetesPlace("", "genai", "a", "a", 80)
    site.serve("a", 0, endpoint=None, instances=(), kubernetes=place)
    target = site.written("a")
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    with running() as server:
        for fails, status, told in (
            ("", "ok", "kubectl port-forward service/a (a): one token in"),
            ("yes", "WARN", "error: no pod of service/a is ready"),
        ):
            (folder / "kubectl").write_text(KUBECTL.format(port=server.port, fails=fails))
            (folder / "kubectl").chmod(0o755)
            _, way = probe(target)
            assert (way.status, told in way.what) == (status, True), way
    (folder / "kubectl").unlink()
    monkeypatch.setenv("PATH", str(folder))
    _, way = probe(target)
    assert (way.status, "'kubectl' was not found" in way.what) == ("WARN", True), way


def test_a_served_server_listens_at_the_interface_alone() -> None:
    """Every address becomes that of server.interface; what is narrower already, or on several nodes, stays."""

    def host_of(host: str, interface: str, nodes: int = 1) -> str:
        fields = dict.fromkeys(SweepRequest.__dataclass_fields__, None)
        fields |= {"platform_settings": {"host": host, "interface": interface}, "deployment": {"nodes": nodes}}
        return str(at_interface(SweepRequest(**fields)).platform_settings["host"])  # type: ignore[arg-type]

    assert host_of("0.0.0.0", "127.0.0.0/8") == "127.0.0.1"
    assert host_of("0.0.0.0", "lo") == "127.0.0.1"
    assert host_of("0.0.0.0", "") == "0.0.0.0"
    assert host_of("10.1.2.3", "lo") == "10.1.2.3"
    assert host_of("0.0.0.0", "lo", nodes=2) == "0.0.0.0"
    with pytest.raises(BerthError, match=r"does not have an address in server\.interface, nosuch0"):
        host_of("0.0.0.0", "nosuch0")


def test_models_are_asked_for_by_their_served_name(tmp_path: Path) -> None:
    """The examples send the name that the state says."""
    site = Site.create(tmp_path, {})
    site.serve("a", 18001, served_model=MODEL + "-v2")
    folder = site.written("a").folder
    assert f'"model": "{MODEL}-v2"' in (folder / "curl.sh").read_text()
    assert f'model="{MODEL}-v2"' in (folder / "openai_example.py").read_text()
