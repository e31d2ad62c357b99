"""What uv is told when Berth installs packages."""

from __future__ import annotations

from pathlib import Path

import pytest

from berth import packages
from berth.errors import BerthError
from berth.pins import read_lock

LISTED = """\
:env:.extra-index-url='https://two.example/simple'
:env:.no-index='1'
global.cert='/etc/site.pem'
global.constraint='/etc/constraints.txt'
global.extra-index-url='https://one.example/simple'
global.find-links='/opt/wheels /opt/more\\n/opt/third'
global.index-url='https://user:word@mirror.example/simple'
global.timeout='60'
global.trusted-host='a.example\\nb.example'
install.index-url='https://nearer.example/simple'
list.format='columns'
"""


def test_pips_settings_are_uvs() -> None:
    """Indexes, folders, certificates, hosts and times; the nearer one counts; what is of no use to uv is left."""
    assert packages.uv_settings(LISTED) == {
        "SSL_CERT_FILE": "/etc/site.pem",
        "UV_INDEX": "https://two.example/simple",
        "UV_FIND_LINKS": "/opt/wheels,/opt/more,/opt/third",
        "UV_DEFAULT_INDEX": "https://nearer.example/simple",
        "UV_HTTP_TIMEOUT": "60",
        "UV_INSECURE_HOST": "a.example b.example",
        "UV_NO_INDEX": "1",
    }


def test_the_real_pip_says_what_is_set(tmp_path: Path) -> None:
    """pip.conf and pip's variables arrive, and what is set for uv itself stays."""
    (tmp_path / "pip.conf").write_text("[global]\nindex-url = https://mirror.example/simple\nno-index = false\n")
    environ = {"PATH": "/usr/bin", "HOME": str(tmp_path), "PIP_CONFIG_FILE": str(tmp_path / "pip.conf")}
    environ |= {"PIP_PROXY": "http://proxy.example:3128", "UV_INDEX_STRATEGY": "first-index"}
    added = packages.install_env(environ, tmp_path / "cache")
    assert added["UV_DEFAULT_INDEX"] == "https://mirror.example/simple"
    assert added["HTTPS_PROXY"] == added["HTTP_PROXY"] == "http://proxy.example:3128"
    assert added["UV_NO_INDEX"] == "false"
    assert added["UV_CACHE_DIR"] == str(tmp_path / "cache/uv")
    assert "UV_INDEX_STRATEGY" not in added


def test_no_address_is_in_a_command() -> None:
    """An index may carry a password: it travels by environment."""
    command = packages.install_command(Path("/e/bin/python"), "--no-deps", "--requirement", "x.lock")
    assert command[1:] == ["pip", "install", "--python", "/e/bin/python", "--no-deps", "--requirement", "x.lock"]
    assert Path(command[0]).name == "uv"


def test_a_missing_uv_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither beside Python nor on PATH: the error says how to get it."""
    monkeypatch.setattr(packages.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BerthError, match="pip install uv"):
        packages.uv_program()


def test_torch_gets_setuptools_beside_its_lock(tmp_path: Path) -> None:
    """An environment with torch gets it unless its lock pins one; others do not."""
    found = []
    for pins in ("torch==2.13.0\n", "torch==2.13.0\nsetuptools==80.9.0\n", "numpy==2.3.1\n"):
        (tmp_path / "x.lock").write_text(pins)
        found.append(packages.beside(read_lock(tmp_path / "x.lock")))
    assert found == [["setuptools==78.1.1"], [], []]
