"""Images into another registry and onto a cluster, with the real skopeo, Podman, Apptainer and docker-registry."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from container_programs import apptainer_environment, podman_nodes
from registry_server import LOGIN, RegistryServer, make_image, need_registry
from small_disk import small_disk

from berth import registry, sif
from berth.container_image import ensure_loaded, stage_container
from berth.errors import BerthError
from berth.image_request import ImageRequest
from berth.mirror import mirror_image
from berth.references import sif_name

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME, TAG = "vllm/small", "v1"
STAGER = """
import json, sys
from pathlib import Path
from berth.container_image import stage_container
from berth.image_request import ImageRequest
stage_container(ImageRequest(**json.loads(sys.argv[1])), Path(sys.argv[2]))
"""


@dataclasses.dataclass
class World:
    """A recipe's registry with one image, and a site's registry that is empty."""

    path: Path
    source: RegistryServer
    site: RegistryServer
    digest: str

    @property
    def reference(self) -> str:
        return f"{self.source.host}/{NAME}:{TAG}"

    def settings(self, **changes: Any) -> dict[str, Any]:
        """The fields of config.Registry for the site's registry."""
        given = {"host": self.site.host, "prefix": "hpc", "tls_verify": False, "ca_file": "", "auth_file": ""}
        return {**given, **changes}

    def request(self, runtime: str, **changes: Any) -> ImageRequest:
        given = ImageRequest(
            reference=self.reference,
            digest=self.digest,
            recipe="small",
            platform="here",
            runtime=runtime,
            shared=True,
            images_dir=str(self.path / "images"),
            scratch_dir=str(self.path / "scratch"),
        )
        return dataclasses.replace(given, **changes)

    def receipt(self, name: str = "receipt") -> Path:
        return self.path / f"{name}.json"

    def mirror(self, digest: str | None = None, **changes: Any) -> dict[str, Any]:
        """Mirror the recipe's image; its receipt."""
        wanted = self.digest if digest is None else digest
        asked = self.request("podman", digest=wanted, site=self.settings(**changes))
        return mirror_image(asked, self.receipt("mirrored"))

    def another(self, says: str = "another") -> str:
        """Push another image under the recipe's tag; its digest."""
        digest = make_image(self.path / says, says)
        self.source.push(self.path / says, f"{NAME}:{TAG}")
        return digest


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    need_registry()
    for name in ("REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    source = RegistryServer.start_new(tmp_path / "source")
    site = RegistryServer.start_new(tmp_path / "site")
    digest = make_image(tmp_path / "image", "the image")
    source.push(tmp_path / "image", f"{NAME}:{TAG}")
    yield World(tmp_path, source, site, digest)
    source.stop()
    site.stop()


@pytest.fixture
def apptainer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", apptainer_environment()["PATH"])


@pytest.fixture
def podman(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with podman_nodes(tmp_path, ["node1", "node2"]) as nodes:
        monkeypatch.setenv("CONTAINERS_CONF", nodes["node1"]["CONTAINERS_CONF"])
        at_node(tmp_path, "node1", monkeypatch)
        yield


def at_node(path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Go on with the Podman of another node: its own storage, the same file system."""
    monkeypatch.setenv("CONTAINERS_STORAGE_CONF", str(path / f"{name}.conf"))


def said_by_sif(receipt: dict[str, Any]) -> str:
    command = ["apptainer", "exec", "--fakeroot", "--writable-tmpfs", "--no-home", receipt["path"], "cat", "/says"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def said_by_podman(name: str) -> str:
    command = ["podman", "run", "--rm", "--network=none", "--pull=never", name, "cat", "/says"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def error_of(call: Any, *arguments: Any, **named: Any) -> str:
    with pytest.raises(BerthError) as caught:
        call(*arguments, **named)
    return str(caught.value)


# mirror_image


def test_an_image_is_mirrored_by_digest_and_then_found_without_its_source(world: World) -> None:
    """The copy has the same digest, the receipt says from where to where, and a second run needs no internet."""
    receipt = world.mirror()
    assert receipt["copied"]
    assert (receipt["source"], receipt["digest"]) == (world.reference, world.digest)
    assert receipt["destination"] == f"{world.site.host}/hpc/{NAME}:{TAG}"
    assert world.site.digest_of(f"hpc/{NAME}", TAG) == world.digest
    assert json.loads(world.receipt("mirrored").read_text()) == receipt
    world.source.stop()
    again = world.mirror()
    assert not again["copied"]
    assert again["digest"] == world.digest


def test_a_tag_that_moved_is_an_error_and_nothing_is_copied(world: World) -> None:
    """The message has both digests and the way out; the site's registry stays empty."""
    moved = world.another()
    told = error_of(world.mirror)
    assert world.digest in told
    assert moved in told
    assert "Put the new digest into the recipe" in told
    assert world.site.digest_of(f"hpc/{NAME}", TAG) is None


def test_a_tag_that_is_gone_does_no_harm(world: World) -> None:
    """The recipe's digest is enough as long as the registry has it."""
    kept = world.source.digest_of(NAME, world.digest)
    assert kept == world.digest
    shutil.rmtree(world.source.folder / "data/docker/registry/v2/repositories" / NAME / "_manifests/tags" / TAG)
    assert world.source.digest_of(NAME, TAG) is None
    assert world.mirror()["digest"] == world.digest


def test_another_image_at_the_site_is_never_overwritten(world: World) -> None:
    """Where the site's registry has another image of that name, the message has both digests and the way out."""
    foreign = make_image(world.path / "foreign", "foreign")
    world.site.push(world.path / "foreign", f"hpc/{NAME}:{TAG}")
    told = error_of(world.mirror)
    assert foreign in told
    assert world.digest in told
    assert "registry.prefix" in told
    assert world.site.digest_of(f"hpc/{NAME}", TAG) == foreign


def test_without_a_digest_in_the_recipe_the_one_that_was_mirrored_stays(world: World) -> None:
    """The digest found is recorded; when the tag moves at its source later, the site's image is still the one."""
    assert world.mirror(digest="")["digest"] == world.digest
    world.another()
    assert world.mirror(digest="")["digest"] == world.digest


def test_the_digest_of_a_list_means_the_image_for_this_machine(world: World) -> None:
    """A recipe may pin the list of all architectures; copied and recorded is the one image, now and on a second run."""
    other = make_image(world.path / "arm", "for arm", architecture="arm64")
    world.source.push(world.path / "arm", f"{NAME}:arm")
    index = world.source.push_index(NAME, "list", {"arm64": other, "amd64": world.digest})
    asked = world.request("podman", reference=f"{world.source.host}/{NAME}:list", digest=index, site=world.settings())
    for copied in (True, False):
        receipt = mirror_image(asked, world.receipt("mirrored"))
        assert (receipt["digest"], receipt["index_digest"], receipt["copied"]) == (world.digest, index, copied)
    told = error_of(
        mirror_image,
        dataclasses.replace(asked, reference=f"{world.source.host}/{NAME}:arm", digest=""),
        world.receipt(),
    )
    assert "is for linux/arm64, and this machine is linux/amd64" in told


def test_an_image_that_the_registry_has_not(world: World) -> None:
    """The message names the recipe's key, the image, and what to do."""
    asked = world.request("podman", reference=f"{world.source.host}/vllm/nothing:v1", digest="", site=world.settings())
    told = error_of(mirror_image, asked, world.receipt())
    assert "config/recipes/small.yaml: images: reference" in told
    assert f"{world.source.host}/vllm/nothing:v1" in told
    assert "has no such image" in told


def test_a_registry_that_is_down(world: World) -> None:
    """The registry that does not answer is named by the key that sets it, the site's and the recipe's."""
    world.source.stop()
    told = error_of(world.mirror)
    assert "config/recipes/small.yaml" in told
    assert "the registry does not answer" in told
    world.site.stop()
    told = error_of(world.mirror)
    assert "config/platforms/here.yaml: registry" in told
    assert "the registry does not answer" in told


def test_a_login_that_is_missing_wrong_or_open_to_others(world: World) -> None:
    """Each is told with the command that writes the file; with the login the copy goes through, and it is not told."""
    world.site.stop()
    world.site.auth = True
    world.site.start()
    assert "skopeo login --authfile=" in error_of(world.mirror)
    file = world.path / "auth.json"
    assert f"skopeo login --authfile={file}" in error_of(world.mirror, auth_file=str(file))

    def write(password: str) -> None:
        token = base64.b64encode(f"{LOGIN[0]}:{password}".encode()).decode()
        file.write_text(json.dumps({"auths": {world.site.host: {"auth": token}}}))

    write("wrong")
    file.chmod(0o644)
    assert f"chmod 600 {file}" in error_of(world.mirror, auth_file=str(file))
    file.chmod(0o600)
    told = error_of(world.mirror, auth_file=str(file))
    assert "wants a login" in told
    assert "wrong" not in told.partition("said:")[2]
    write(LOGIN[1])
    assert world.mirror(auth_file=str(file))["copied"]
    assert LOGIN[1] not in world.receipt("mirrored").read_text()


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 that no system trusts, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed: apt-get install openssl")
    pair = (tmp_path / "site.crt", tmp_path / "site.key")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=site"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-out", str(pair[0]), "-keyout", str(pair[1])]
    subprocess.run(command, check=True, capture_output=True)
    return pair


def test_a_site_with_its_own_ca(world: World, certificate: tuple[Path, Path], apptainer: None) -> None:
    """Its certificate is refused with the key to set, and with the CA file both the copy and the SIF go through."""
    world.site.stop()
    world.site.certificate = certificate
    world.site.start()
    assert "registry.ca_file" in error_of(world.mirror, tls_verify=True)
    assert "nowhere.pem is not there" in error_of(world.mirror, tls_verify=True, ca_file="/nowhere.pem")
    settings = {"tls_verify": True, "ca_file": str(certificate[0])}
    assert world.mirror(**settings)["copied"]
    asked = world.request("apptainer", site=world.settings(**settings))
    receipt = stage_container(asked, world.receipt(), world.receipt("mirrored"))
    assert receipt["pulled_from"].startswith(world.site.host)
    assert said_by_sif(receipt) == "the image"


def test_a_registry_without_tls(world: World) -> None:
    """One that speaks HTTP is told with the key that allows it."""
    assert "registry.tls_verify: false" in error_of(world.mirror, tls_verify=True)


@pytest.mark.parametrize("program", ["skopeo", "apptainer", "podman"])
def test_a_program_that_is_absent(world: World, program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The node and the program are named, with what to do."""
    tools = world.path / "bin"
    tools.mkdir()
    if program != "skopeo":
        (tools / "skopeo").symlink_to(str(shutil.which("skopeo")))
    monkeypatch.setenv("PATH", str(tools))
    if program == "skopeo":
        told = error_of(world.mirror)
    else:
        told = error_of(stage_container, world.request(program, shared=False), world.receipt())
    assert f"{program} is not on PATH of {os.uname().nodename}" in told
    assert "module" in told
    assert not world.receipt().exists()


# stage_image, Apptainer


@pytest.mark.usefixtures("apptainer")
class TestSif:
    """A SIF on the shared file system."""

    def test_it_is_built_once_and_another_checkout_finds_it(self, world: World) -> None:
        """The receipt has digest, path, size and SHA-256; the second time nothing is asked of the registry."""
        receipt = stage_container(world.request("apptainer"), world.receipt())
        path = world.path / "images" / sif_name(world.reference, world.digest)
        assert receipt["path"] == str(path)
        assert (receipt["digest"], receipt["kind"], receipt["archive"]) == (world.digest, "container", "")
        assert receipt["size_bytes"] == path.stat().st_size
        assert said_by_sif(receipt) == "the image"
        world.source.stop()
        before = path.stat().st_mtime_ns
        again = stage_container(world.request("apptainer"), world.receipt("checkout2"))
        assert again == receipt == json.loads(world.receipt("checkout2").read_text())
        assert path.stat().st_mtime_ns == before
        assert sorted(each.name for each in path.parent.iterdir() if "lock" not in each.name) == [
            path.name,
            f"{path.name}.json",
        ]
        assert not list((world.path / "scratch/berth/images").iterdir())
        ensure_loaded(receipt, receipt_path="r.json", scratch_dir=world.path / "scratch")
        path.write_bytes(b"short")
        told = error_of(ensure_loaded, receipt, receipt_path="r.json", scratch_dir=world.path / "scratch")
        assert "Delete r.json" in told

    def test_it_comes_from_the_site_where_there_is_a_registry(self, world: World) -> None:
        """With the source gone, the SIF is built from the mirror, by digest."""
        world.mirror()
        world.source.stop()
        asked = world.request("apptainer", site=world.settings())
        receipt = stage_container(asked, world.receipt(), world.receipt("mirrored"))
        assert receipt["pulled_from"] == f"{world.site.host}/hpc/{NAME}@{world.digest}"
        assert said_by_sif(receipt) == "the image"

    @pytest.mark.parametrize("whole_group", [True, False], ids=["job", "process"])
    def test_a_killed_build_leaves_nothing_that_is_taken(self, world: World, *, whole_group: bool) -> None:
        """After SIGKILL in the middle of a build there is no SIF, and the next run builds it."""
        make_image(world.path / "large", "large", padding=os.urandom(20_000_000))
        world.source.push(world.path / "large", f"{NAME}:large")
        asked = world.request("apptainer", reference=f"{world.source.host}/{NAME}:large", digest="")
        path = Path(asked.images_dir) / sif_name(asked.reference, "")
        command = [sys.executable, "-c", STAGER, json.dumps(dataclasses.asdict(asked)), str(world.receipt())]
        process = subprocess.Popen(command, start_new_session=True)
        while not (world.path / "scratch/berth/images" / path.stem / "apptainer").exists():
            assert process.poll() is None
            time.sleep(0.01)
        if whole_group:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()
        assert not path.exists()
        assert not world.receipt().exists()
        receipt = stage_container(asked, world.receipt())
        assert said_by_sif(receipt) == "large"
        assert not list(path.parent.glob(".*.partial"))

    def test_a_sif_without_its_receipt_or_with_other_bytes_is_built_again(self, world: World) -> None:
        """What was killed before the receipt was written, or truncated later, is not taken for the image."""
        path = world.path / "images" / sif_name(world.reference, world.digest)
        path.parent.mkdir()
        path.write_bytes(b"half of a SIF")
        receipt = stage_container(world.request("apptainer"), world.receipt())
        assert said_by_sif(receipt) == "the image"
        path.write_bytes(bytes(path.stat().st_size))
        receipt = stage_container(world.request("apptainer"), world.receipt())
        assert said_by_sif(receipt) == "the image"

    def test_of_two_at_once_one_builds(self, world: World) -> None:
        """Both end well with the same receipt."""
        commands = []
        for name in ("one", "two"):
            asked = json.dumps(dataclasses.asdict(world.request("apptainer")))
            commands.append([sys.executable, "-c", STAGER, asked, str(world.receipt(name))])
        processes = [subprocess.Popen(command) for command in commands]
        assert [process.wait() for process in processes] == [0, 0]
        assert world.receipt("one").read_text() == world.receipt("two").read_text()

    def test_a_digest_that_changed_since_is_an_error(self, world: World) -> None:
        """Without a digest in the recipe the SIF stays what it was, and a moved tag is told with both digests."""
        asked = world.request("apptainer", digest="")
        assert stage_container(asked, world.receipt())["digest"] == world.digest
        moved = world.another()
        told = error_of(stage_container, asked, world.receipt())
        assert world.digest in told
        assert f"digest: {moved}" in told
        world.source.stop()
        assert stage_container(asked, world.receipt())["digest"] == world.digest

    def test_no_room(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """A disk that is too small is told before the build; one that fills up during it, with the same remedy."""
        with small_disk(world.path / "images", "size=64k") as images:
            told = error_of(stage_container, world.request("apptainer"), world.receipt())
            assert "The SIF of" in told
            assert "are free" in told
            # A quota that the file system does not report shows only when it is reached.
            monkeypatch.setattr(sif, "require_space", lambda *_: None)
            told = error_of(stage_container, world.request("apptainer"), world.receipt())
            assert "the disk is full" in told
            assert not world.receipt().exists()
            assert not list(images.glob("*.sif")) + list(images.glob(".*.partial"))


# stage_image, Podman


@pytest.mark.usefixtures("podman")
class TestPodman:
    """Podman's storage on one node or several."""

    def test_a_single_machine_pulls_by_digest(self, world: World) -> None:
        """The image runs by the recipe's name and digest, and the second time nothing is asked of the registry."""
        asked = world.request("podman", shared=False)
        receipt = stage_container(asked, world.receipt())
        assert (receipt["path"], receipt["archive"], receipt["sha256"]) == ("", "", None)
        assert said_by_podman(f"{world.source.host}/{NAME}@{world.digest}") == "the image"
        world.source.stop()
        assert stage_container(asked, world.receipt()) == receipt
        ensure_loaded(receipt, receipt_path="r.json", scratch_dir=world.path / "scratch")
        subprocess.run(["podman", "rmi", "--all", "--force"], check=True, capture_output=True)
        told = error_of(ensure_loaded, receipt, receipt_path="r.json", scratch_dir=world.path / "scratch")
        assert "Delete r.json" in told

    def test_a_cluster_copies_once_and_every_node_loads(
        self, world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """With both registries gone, each node has the image from the shared folder, by digest and under both names."""
        world.mirror()
        asked = world.request("podman", site=world.settings())
        receipt = stage_container(asked, world.receipt(), world.receipt("mirrored"))
        world.source.stop()
        world.site.stop()
        assert stage_container(asked, world.receipt(), world.receipt("mirrored")) == receipt
        caplog.set_level("INFO", logger="berth")
        for node in ("node1", "node2"):
            at_node(world.path, node, monkeypatch)
            for _ in range(2):
                ensure_loaded(receipt, receipt_path="r.json", scratch_dir=world.path / node)
            for name in (f"{world.source.host}/{NAME}@{world.digest}", receipt["pulled_from"]):
                assert said_by_podman(name) == "the image"
        assert sum("is loaded on" in record.message for record in caplog.records) == 2

    def test_the_image_of_another_digest_does_not_take_the_place_of_the_first(self, world: World) -> None:
        """Two digests of one tag live in one storage, each found by its own."""
        first = stage_container(world.request("podman", shared=False), world.receipt())
        moved = world.another()
        second = stage_container(world.request("podman", shared=False, digest=moved), world.receipt())
        assert said_by_podman(first["pulled_from"]) == "the image"
        assert said_by_podman(second["pulled_from"]) == "another"

    def test_a_node_loads_by_itself_under_srun(self, world: World) -> None:
        """The module's command loads the image on the node where it runs, and names the node in its error."""
        stage_container(world.request("podman"), world.receipt())
        command = [sys.executable, "-m", "berth.container_image", str(world.receipt()), str(world.path / "scratch")]
        command += ["podman", "--log-level=error"]
        subprocess.run(command, check=True)
        assert said_by_podman(f"{world.source.host}/{NAME}@{world.digest}") == "the image"
        subprocess.run(["podman", "rmi", "--all", "--force"], check=True, capture_output=True)
        (archive,) = (world.path / "images").glob("*.image")
        shutil.rmtree(archive)
        failed = subprocess.run(command, capture_output=True, text=True, check=False)
        assert failed.returncode == 1
        assert os.uname().nodename in failed.stderr
        assert f"Delete {world.receipt()}" in failed.stderr

    def test_a_damaged_archive_is_not_loaded(self, world: World) -> None:
        """A blob that lost its end or has other bytes is told, and staging again mends it."""
        receipt = stage_container(world.request("podman"), world.receipt())
        archive = Path(receipt["archive"])
        blob = max(archive.iterdir(), key=lambda path: path.stat().st_size)
        whole = blob.read_bytes()
        arguments = {"receipt_path": "r.json", "scratch_dir": world.path / "scratch"}
        for damaged in (whole[:-1], bytes(len(whole))):
            blob.write_bytes(damaged)
            told = error_of(ensure_loaded, receipt, **arguments)
            assert "is not whole" in told
            assert "Delete r.json" in told
        receipt = stage_container(world.request("podman"), world.receipt())
        ensure_loaded(receipt, **arguments)
        assert said_by_podman(receipt["pulled_from"]) == "the image"

    def test_podman_absent_on_the_compute_node(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """The node and what to do are named."""
        receipt = stage_container(world.request("podman"), world.receipt())
        with monkeypatch.context() as without:
            without.setenv("PATH", "/nowhere")
            told = error_of(ensure_loaded, receipt, receipt_path="r.json", scratch_dir=world.path / "scratch")
        assert f"podman is not on PATH of {os.uname().nodename}" in told


def test_logins_of_the_session_are_found(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """REGISTRY_AUTH_FILE comes first, then what `skopeo login` wrote for the session."""
    session = world.path / "session"
    (session / "containers").mkdir(parents=True)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(session))
    assert registry.access_to("r.example", None, "here", "small").auth_file == ""
    (session / "containers/auth.json").write_text("{}")
    assert registry.access_to("r.example", None, "here", "small").auth_file == str(session / "containers/auth.json")
    monkeypatch.setenv("REGISTRY_AUTH_FILE", "/mine.json")
    assert registry.access_to("r.example", None, "here", "small").auth_file == "/mine.json"
