"""The download against a real hub server (olah, PyPI) over real git repositories, with real faults in between."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import time
from typing import TYPE_CHECKING, Any

import hub_faults
import hub_server
import pytest
from huggingface_hub import constants
from small_disk import small_disk

from berth.custody_model import ModelPlaces, model_chain
from berth.dataset import fetch_sharegpt
from berth.errors import BerthError
from berth.manifest import Manifest, list_tree, read_manifest, verify_tree
from berth.model import download_model

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from berth.custody_link import Link

pytestmark = pytest.mark.olah

WEIGHTS = bytes(hashlib.sha256(str(number).encode()).digest()[0] for number in range(1024)) * 1200
SECOND = WEIGHTS[: 1024 * 100]
FILES = {
    "README.md": b"---\nlicense: apache-2.0\n---\n# A model\n",
    "LICENSE": b"Apache-2.0\n",
    "config.json": b'{"model_type": "llama"}\n',
    "tokenizer/extra [1].json": b"{}\n",
}
LFS = {"model.safetensors": WEIGHTS, "original/consolidated.00.pth": SECOND}
CONVERSATIONS = json.dumps([{"id": "1", "conversations": [{"from": "human", "value": "hello"}]}] * 100).encode()


class Hub:
    """A hub with one model and one dataset, and a fresh directory for each download."""

    def __init__(self, url: str, mirrors: Path, commits: dict[str, str]) -> None:
        self.url = url
        self.mirrors = mirrors
        self.commits = commits

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def download(self, root: Path, **changes: Any) -> Manifest:
        options = {
            "repo": "org/model",
            "revision": self.commits["model"],
            "dest": root / "model",
            "manifest_path": root / "manifest.json",
            "endpoint": self.url,
            "max_workers": 2,
        }
        return download_model(**(options | changes))


@pytest.fixture(scope="module")
def python() -> Path:
    if shutil.which("git") is None:
        pytest.skip("needs git: apt-get install git")
    try:
        return hub_server.olah_python()
    except hub_server.OlahMissingError as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def hub(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    root = tmp_path_factory.mktemp("hub")
    mirrors = root / "mirrors"
    commits = {
        "model": hub_server.make_repo(mirrors / "models" / "org" / "model", FILES, LFS),
        "bad-lfs": hub_server.make_repo(mirrors / "models" / "org" / "bad-lfs", FILES, LFS),
        "bad-blob": hub_server.make_repo(mirrors / "models" / "org" / "bad-blob", FILES, LFS),
        "data": hub_server.make_repo(mirrors / "datasets" / "org" / "data", {}, {"conversations.json": CONVERSATIONS}),
    }
    moved = mirrors / "models" / "org" / "moved"
    commits["before"] = hub_server.make_repo(moved, FILES, LFS)
    commits["after"] = hub_server.remove_from(moved, "tokenizer", "config.json")
    hub_server.tamper_lfs(mirrors / "models" / "org" / "bad-lfs", hashlib.sha256(WEIGHTS).hexdigest())
    hub_server.tamper_blob(mirrors / "models" / "org" / "bad-blob", "config.json")
    with hub_server.olah(python, mirrors, root / "olah") as url:
        yield Hub(url, mirrors, commits)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HF_TOKEN", "HF_ENDPOINT", "HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    # Not the tokens and caches of the person who runs the tests.
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the library's pauses between its retries, not the retries."""
    monkeypatch.setattr(time, "sleep", lambda _: None)


def assert_nothing_complete(root: Path) -> None:
    """No manifest, and no file under its own name that is not whole."""
    assert not (root / "manifest.json").exists()
    whole = FILES | LFS
    for path in list_tree(root / "model") if (root / "model").exists() else ():
        assert (root / "model" / path).read_bytes() == whole[path]


def test_a_whole_repository_arrives_with_its_manifest(hub: Hub, tmp_path: Path) -> None:
    """Every file has the bytes of the commit; the manifest names source, licence, sizes and SHA-256."""
    manifest = hub.download(tmp_path)
    contents = FILES | LFS
    assert {f.path: f.sha256 for f in manifest.files} == {p: hashlib.sha256(c).hexdigest() for p, c in contents.items()}
    assert manifest.total_bytes == sum(len(content) for content in contents.values())
    assert manifest.source == {
        "kind": "hub",
        "repo": "org/model",
        "revision": hub.commits["model"],
        "licence": "apache-2.0",
        "allow_patterns": [],
        "ignore_patterns": [],
    }
    assert read_manifest(tmp_path / "manifest.json") == manifest
    verify_tree(tmp_path / "model", manifest)
    assert not (tmp_path / "model" / ".cache").exists()


def test_custody_compares_the_manifest_with_the_commit(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's digests of a commit are those of the manifest, and one that is not is named; offline it is told so."""
    manifest = tmp_path / "results/models/m/manifest.json"
    hub.download(tmp_path, dest=manifest.with_name("files"), manifest_path=manifest)
    identity = {"repo": "org/model", "revision": hub.commits["model"]}
    place = ModelPlaces("m", "org/model", identity, tmp_path / "results", "here", tmp_path / "staged", "", "org/model")
    monkeypatch.setenv("HF_ENDPOINT", hub.url)

    def link() -> Link:
        links = model_chain(place, "the store is not asked").chain.links
        return next(each for each in links if each.name == "hub")

    assert (link().verdict, link().detail) == ("ok", f"{len(FILES | LFS)} files are those of the commit")
    value = json.loads(manifest.read_text())
    wrong = next(each for each in value["files"] if each["path"] == "model.safetensors")
    wrong["sha256"] = "0" * 64
    manifest.write_text(json.dumps(value))
    assert link().verdict == "broken"
    assert "model.safetensors has SHA-256" in link().detail
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert link().verdict == "cannot be checked"


def test_the_second_call_asks_nobody(hub: Hub, tmp_path: Path) -> None:
    """A whole download is verified and returned also when the hub is away."""
    manifest = hub.download(tmp_path)
    assert hub.download(tmp_path, endpoint="http://127.0.0.1:9") == manifest


def test_damage_is_repaired_and_only_that(hub: Hub, tmp_path: Path) -> None:
    """A file that was changed in place is downloaded again; the others keep their inodes."""
    manifest = hub.download(tmp_path)
    weights, other = tmp_path / "model" / "model.safetensors", tmp_path / "model" / "original/consolidated.00.pth"
    inode = other.stat().st_ino
    with weights.open("r+b") as handle:
        handle.write(b"damage")
    assert hub.download(tmp_path) == manifest
    assert weights.read_bytes() == WEIGHTS
    assert other.stat().st_ino == inode


def test_patterns_choose_files_and_keep_the_documents(hub: Hub, tmp_path: Path) -> None:
    """The second copy of the weights stays out; licence and README come with the allowed files."""
    manifest = hub.download(tmp_path, allow_patterns=["*.safetensors"], ignore_patterns=["README*"])
    assert [f.path for f in manifest.files] == ["LICENSE", "README.md", "model.safetensors"]


def test_other_patterns_are_another_download(hub: Hub, tmp_path: Path) -> None:
    """A manifest made with fewer files is not taken for the whole repository."""
    hub.download(tmp_path, ignore_patterns=["original/*"])
    assert len(hub.download(tmp_path).files) == len(FILES | LFS)


def test_files_of_another_download_are_refused(hub: Hub, tmp_path: Path) -> None:
    """A stray file would be served too, so it is named, and nothing is deleted."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "stray.safetensors").write_bytes(b"x")
    with pytest.raises(BerthError, match=r"stray\.safetensors\. Move them away"):
        hub.download(tmp_path)
    assert (tmp_path / "model" / "stray.safetensors").exists()


def test_a_new_revision_takes_the_files_away_that_it_no_longer_has(hub: Hub, tmp_path: Path) -> None:
    """What only the former revision had is deleted by its manifest; a foreign file still stops the download."""
    hub.download(tmp_path, repo="org/moved", revision=hub.commits["before"])
    foreign = tmp_path / "model" / "tokenizer" / "mine.json"
    foreign.write_bytes(b"{}")
    with pytest.raises(BerthError, match=r"tokenizer/mine\.json\. Move them away"):
        hub.download(tmp_path, repo="org/moved", revision=hub.commits["after"])
    assert foreign.exists()
    foreign.unlink()
    foreign.parent.rmdir()
    manifest = hub.download(tmp_path, repo="org/moved", revision=hub.commits["after"])
    left = sorted((FILES | LFS).keys() - {"tokenizer/extra [1].json", "config.json"})
    assert [file.path for file in manifest.files] == left == list(list_tree(tmp_path / "model"))
    verify_tree(tmp_path / "model", manifest)


def test_a_former_file_that_was_changed_is_left(hub: Hub, tmp_path: Path) -> None:
    """A listed file that has another size now holds somebody's work, so it is named and not deleted."""
    hub.download(tmp_path, repo="org/moved", revision=hub.commits["before"])
    (tmp_path / "model" / "config.json").write_bytes(b'{"mine": true}')
    with pytest.raises(BerthError, match=r"config\.json\. Move them away"):
        hub.download(tmp_path, repo="org/moved", revision=hub.commits["after"])
    assert (tmp_path / "model" / "config.json").read_bytes() == b'{"mine": true}'


def test_patterns_that_leave_nothing_are_refused(hub: Hub, tmp_path: Path) -> None:
    """A mistyped pattern is an error that shows the patterns."""
    with pytest.raises(BerthError, match="no file is left after allow_patterns"):
        hub.download(tmp_path, allow_patterns=["*.safetensor"])


def test_a_branch_is_refused_with_its_commit(hub: Hub, tmp_path: Path) -> None:
    """`main` can change, so the error says which commit to write instead."""
    with pytest.raises(BerthError, match=f"write {hub.commits['model']}, which it is now"):
        hub.download(tmp_path, revision="main")
    assert_nothing_complete(tmp_path)


def test_an_unknown_revision_is_named_with_the_current_one(hub: Hub, tmp_path: Path) -> None:
    """A commit that the repository does not have is an error that names one that it has."""
    with pytest.raises(BerthError, match=f"has no revision {'f' * 40}; its branch main is at {hub.commits['model']}"):
        hub.download(tmp_path, revision="f" * 40)
    assert_nothing_complete(tmp_path)


def test_an_unknown_repository_is_named(hub: Hub, tmp_path: Path) -> None:
    """The error asks for the spelling and, for a private one, the token's variable."""
    with pytest.raises(BerthError, match=r"has no model org/nobody .* set HF_TOKEN \(it is not set\)"):
        hub.download(tmp_path, repo="org/nobody")
    assert_nothing_complete(tmp_path)


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("revision", ["c" * 40, "main"])
def test_an_unreachable_hub_is_named(tmp_path: Path, revision: str) -> None:
    """The address and the variables to look at are in the error, for a commit and for a branch."""
    unused = f"http://127.0.0.1:{hub_server.free_port()}"
    with pytest.raises(BerthError, match=f"Cannot reach the hub {unused} .*HF_ENDPOINT.*HTTPS_PROXY"):
        download_model(
            repo="o/m",
            revision=revision,
            dest=tmp_path / "model",
            manifest_path=tmp_path / "manifest.json",
            endpoint=unused,
        )
    assert_nothing_complete(tmp_path)


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_a_connection_that_drops_once_is_survived(hub: Hub, tmp_path: Path, *, reset: bool) -> None:
    """The download goes on by itself after a cut in the middle of the weights, whether closed or reset."""
    with hub_faults.CuttingProxy(hub.port, cut_after_bytes=400_000, cuts=1, reset=reset) as proxy:
        manifest = hub.download(tmp_path, endpoint=proxy.address)
        assert proxy.cut_count == 1
    verify_tree(tmp_path / "model", manifest)


@pytest.mark.usefixtures("no_waiting")
def test_a_hub_that_always_drops_is_given_up_and_resumed_later(hub: Hub, tmp_path: Path) -> None:
    """After the library's own retries one error says so; what was whole is kept and not downloaded again."""
    with (
        hub_faults.CuttingProxy(hub.port, cut_after_bytes=400_000) as proxy,
        pytest.raises(BerthError, match=r"dropped the connection.*Run again"),
    ):
        hub.download(tmp_path, endpoint=proxy.address)
    assert proxy.cut_count > 1
    assert_nothing_complete(tmp_path)
    kept = {path: (tmp_path / "model" / path).stat().st_ino for path in list_tree(tmp_path / "model")}
    assert "original/consolidated.00.pth" in kept
    hub.download(tmp_path)
    assert {path: (tmp_path / "model" / path).stat().st_ino for path in kept} == kept


@pytest.mark.usefixtures("no_waiting")
def test_a_download_that_would_go_in_circles_ends(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the hub cannot resume and cuts each time after some data, the library alone would never end."""
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 50_000)
    with (
        hub_faults.CuttingProxy(hub.port, cut_after_bytes=400_000) as proxy,
        pytest.raises(BerthError, match="cut the connection 6 times at about the same place"),
    ):
        hub.download(tmp_path, endpoint=proxy.address)
    assert_nothing_complete(tmp_path)


@pytest.mark.parametrize(
    ("repo", "file", "kind"), [("bad-lfs", "model.safetensors", "SHA-256"), ("bad-blob", "config.json", "git blob")]
)
def test_wrong_content_of_the_right_size_is_found_and_deleted(
    hub: Hub, tmp_path: Path, repo: str, file: str, kind: str
) -> None:
    """One changed byte in the hub's storage, LFS or git, is named with both checksums, and the file does not stay."""
    with pytest.raises(BerthError, match=f"(?s){file}: has {kind} [0-9a-f]+ instead of [0-9a-f]+.*They were deleted"):
        hub.download(tmp_path, repo=f"org/{repo}", revision=hub.commits[repo])
    assert not (tmp_path / "model" / file).exists()
    assert_nothing_complete(tmp_path)


@pytest.fixture(name="small_disk")
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "size=4m") as root:
        yield root


def test_a_disk_too_small_is_refused_before_the_download(hub: Hub, small_disk: Path) -> None:
    """The room is checked against the listing, so no file is written."""
    (small_disk / "other").write_bytes(bytes(3_000_000))
    with pytest.raises(BerthError, match=r"The model org/model at .* needs .* MB at .* free .* there"):
        hub.download(small_disk)
    assert_nothing_complete(small_disk)
    assert not (small_disk / "model" / "model.safetensors").exists()


def test_a_disk_that_fills_up_in_the_middle_is_named(hub: Hub, small_disk: Path) -> None:
    """Another user takes the room while the weights arrive: one error, whole files kept, and the next try succeeds."""
    filler = small_disk / "other"

    def fill(passed_bytes: int) -> None:
        if passed_bytes > 600_000 and not filler.exists():
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as handle:
                while True:
                    handle.write(bytes(100_000))

    with (
        hub_faults.CuttingProxy(hub.port, on_bytes=fill) as proxy,
        pytest.raises(BerthError, match="became full while the model org/model"),
    ):
        hub.download(small_disk, endpoint=proxy.address, max_workers=1)
    assert_nothing_complete(small_disk)
    filler.unlink()
    verify_tree(small_disk / "model", hub.download(small_disk))


@pytest.mark.parametrize("token", [None, "hf_verysecrettoken"])
def test_a_gated_repository_says_how_to_get_access(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str | None
) -> None:
    """The terms' page and the variable are named, the token never. The gate is a mock: olah knows no gated models."""
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    with hub_faults.gated_hub(hub.url) as (address, seen):
        with pytest.raises(BerthError, match=f"is gated: accept its terms on {address}/org/model.*HF_TOKEN") as caught:
            hub.download(tmp_path, endpoint=address)
        assert {header for header in seen if header} == ({f"Bearer {token}"} if token else set())
    assert ("it is set, so its account" if token else "it is not set") in str(caught.value)
    assert "verysecret" not in str(caught.value)
    assert_nothing_complete(tmp_path)


def test_the_proxy_variable_is_honoured(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With HTTP_PROXY set, the listing and the files are asked for through the proxy."""
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with hub_faults.http_proxy() as (address, seen):
        monkeypatch.setenv("HTTP_PROXY", address)
        monkeypatch.setenv("http_proxy", address)
        manifest = hub.download(tmp_path)
    verify_tree(tmp_path / "model", manifest)
    assert any("/api/models/org/model/tree/" in url for url in seen)
    assert any(url.endswith("/model.safetensors") for url in seen)


@pytest.fixture(scope="module")
def tls_hub(python: Path, hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl: apt-get install openssl")
    root = tmp_path_factory.mktemp("tls")
    key, certificate = root / "key.pem", root / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    with hub_server.olah(python, hub.mirrors, root / "olah", tls=(key, certificate)) as url:
        yield url, certificate


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_the_sites_own_certificate_is_trusted(
    hub: Hub, tls_hub: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """A hub behind the site's own authority works with each of the variables that sites set."""
    url, certificate = tls_hub
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(certificate))
    before = dict(os.environ)
    manifest = hub.download(tmp_path, endpoint=url, ignore_patterns=["*.pth"])
    verify_tree(tmp_path / "model", manifest)
    assert dict(os.environ) == before


@pytest.mark.usefixtures("no_waiting")
def test_an_unknown_certificate_is_named_with_its_remedy(
    hub: Hub, tls_hub: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the variable the error says that the certificate is the problem, and which variable to set."""
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(BerthError, match=r"(?i)certificate verify failed.*SSL_CERT_FILE"):
        hub.download(tmp_path, endpoint=tls_hub[0])


def fetch(hub: Hub, root: Path, **changes: Any) -> dict[str, Any]:
    options = {
        "dest": root / "sharegpt.json",
        "receipt_path": root / "receipt.json",
        "repo": "org/data",
        "filename": "conversations.json",
        "revision": hub.commits["data"],
        "sha256": hashlib.sha256(CONVERSATIONS).hexdigest(),
        "endpoint": hub.url,
    }
    return fetch_sharegpt(**(options | changes))


def test_a_dataset_arrives_with_its_receipt(hub: Hub, tmp_path: Path) -> None:
    """The file has the pinned bytes, the receipt describes it, nothing else is left, and a second call needs no hub."""
    receipt = fetch(hub, tmp_path)
    assert (tmp_path / "sharegpt.json").read_bytes() == CONVERSATIONS
    assert json.loads((tmp_path / "receipt.json").read_text()) == receipt
    assert receipt["size"] == len(CONVERSATIONS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["receipt.json", "sharegpt.json"]
    assert fetch(hub, tmp_path, endpoint="http://127.0.0.1:9") == receipt


def test_a_dataset_of_another_checksum_is_refused(hub: Hub, tmp_path: Path) -> None:
    """The error names both checksums and the keys to look at; no file is left."""
    with pytest.raises(BerthError, match=f"expects {'0' * 64}: it is another file.*`revision` and `sha256`"):
        fetch(hub, tmp_path, sha256="0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_a_dataset_without_the_file_is_refused(hub: Hub, tmp_path: Path) -> None:
    """A wrong name is an error that names the key."""
    with pytest.raises(BerthError, match=r"has no file other\.json: check the dataset's `filename`"):
        fetch(hub, tmp_path, filename="other.json")
