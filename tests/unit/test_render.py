"""What `render` writes: compared with reviewed files, and run by bash with a program in the place of the runtime."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from berth.config import NodeModels, Registry, RuntimeSettings
from berth.container import podman_argv
from berth.errors import BerthError
from berth.parse import load_config
from berth.plan import make_plan
from berth.render import render_files, warnings_of, write_rendered
from berth.rendering import Rendering, renderings

if TYPE_CHECKING:
    from berth.config import Config

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "render"
UPDATE = "BERTH_UPDATE_GOLDEN"
SECRET = "do-not-show-this"
# case: platform, runtime (or the platform's own), deployment
CASES = {
    "hops-podman": ("hops", None, "scout-hops"),
    "hops-apptainer": ("hops", "apptainer", "scout-hops"),
    "hops-four-nodes": ("hops", None, "llama31-405b-hops"),
    "eldorado-podman": ("eldorado", None, "scout-eldorado"),
    "goodall-kubernetes": ("goodall", None, "scout-w4a16-goodall"),
}
EVERY = [(platform, runtime) for platform in ("hops", "eldorado") for runtime in ("podman", "apptainer")]


def configured(platform: str, runtime: str | None = None) -> Config:
    raw = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    config = load_config({**raw, "platform": platform}, ROOT)
    changed = dataclasses.replace(config.platforms[platform], **({"runtime": runtime} if runtime else {}))
    return dataclasses.replace(config, platforms={**config.platforms, platform: changed})


@functools.cache
def all_of(platform: str, runtime: str | None = None) -> dict[str, Rendering]:
    return renderings(configured(platform, runtime), ROOT, (3, 11))


def with_registry(platform: str, runtime: str, deployment: str, **changes: object) -> Rendering:
    """A deployment on a platform with a registry of its own."""
    config = configured(platform, runtime)
    registry = Registry("registry.example.gov:5000", "hpc/mirror", ca_file="/site/ca.pem", auth_file="/site/auth.json")
    changed = dataclasses.replace(config.platforms[platform], registry=registry, **changes)
    config = dataclasses.replace(config, platforms={**config.platforms, platform: changed})
    return renderings(config, ROOT, (3, 11))[deployment]


def test_a_model_on_the_nodes_own_disk_is_served_from_there() -> None:
    """The server reads the copy, stage.sh makes and verifies it, and the client reads the shared folder."""
    files = render_files(
        with_registry("hops", "podman", "scout-hops", node_models_dir="/local/models", node_models=NodeModels())
    )
    repo = "meta-llama/Llama-4-Scout-17B-16E-Instruct"
    assert f"/local/models/{repo}" in files["server.sh"]
    assert f"/projects/berth/models/{repo}" not in files["server.sh"]
    assert f"/projects/berth/models/{repo}" in files["client.sh"]
    copied = step(files["stage.sh"], "node")
    assert {f"/projects/berth/models/{repo}/.", f"/local/models/{repo}/", "sha256sum"} <= set(copied)


def step(text: str, name: str) -> list[str]:
    """The words of a step of stage.sh."""
    return shlex.split(text[text.index(f"\n  {name})") + len(name) + 4 :].partition("\n    ;;")[0], comments=True)


def test_the_image_comes_from_the_registry_of_the_site() -> None:
    """The mirror is made by digest, and SIF, shared folder and pull come from it, with its CA and its login."""
    digest = "sha256:0b51ec38fb965b44f6aa75d8d847c5f21bc062b7140e1d83444b39b67fc4a2ea"
    source = f"docker.io/vllm/vllm-openai@{digest}"
    place = "registry.example.gov:5000/hpc/mirror/vllm/vllm-openai"
    text = render_files(with_registry("hops", "podman", "scout-hops"))["stage.sh"]
    mirror, image, load = (step(text, name) for name in ("mirror", "image", "load"))
    assert {f"docker://{source}", f"docker://{place}:v0.9.1", "--dest-authfile=/site/auth.json"} <= set(mirror)
    assert "--dest-cert-dir=${CERTS}" in mirror
    assert {f"docker://{place}@{digest}", "--src-authfile=/site/auth.json", "--src-cert-dir=${CERTS}"} <= set(image)
    assert "docker.io/vllm/vllm-openai:berth-0b51ec38fb96" in load
    sif = step(render_files(with_registry("hops", "apptainer", "scout-hops"))["stage.sh"], "image")
    assert {f"docker://{place}@{digest}", "--authfile=/site/auth.json", "SSL_CERT_FILE=/site/ca.pem"} <= set(sif)
    single = step(
        render_files(with_registry("hops", "podman", "scout-hops", scheduler="local", slurm=None))["stage.sh"], "image"
    )
    assert {f"{place}@{digest}", "--authfile=/site/auth.json", "--cert-dir=${CERTS})"} & set(single)
    assert "IMAGE=$(podman" in single


def texts_of(case: str) -> dict[str, str]:
    platform, runtime, deployment = CASES[case]
    texts = render_files(all_of(platform, runtime)[deployment])
    texts = {name: text.replace(str(ROOT), "/checkout") for name, text in texts.items()}
    # The digest of the chart is another one with every change of the chart.
    texts["values.json"] = re.sub(r'("chart_sha256": )"[0-9a-f]+"', r'\1"DIGEST"', texts["values.json"])
    return texts


@pytest.mark.parametrize("case", sorted(CASES))
def test_files_are_as_reviewed(case: str) -> None:
    """Every rendered file of the paper's deployments is byte for byte the reviewed one.

    `BERTH_UPDATE_GOLDEN=1 pytest tests/unit/test_render.py` writes them anew; review the difference before a commit.
    """
    texts = texts_of(case)
    if os.environ.get(UPDATE):
        shutil.rmtree(GOLDEN / case, ignore_errors=True)
        (GOLDEN / case).mkdir(parents=True)
        for name, text in texts.items():
            (GOLDEN / case / name).write_text(text)
    reviewed = {path.name: path.read_text() for path in (GOLDEN / case).iterdir()}
    assert sorted(texts) == sorted(reviewed)
    for name, text in texts.items():
        assert text == reviewed[name], f"{case}/{name} differs; {UPDATE}=1 writes it anew"


def scripts() -> list[tuple[str, str]]:
    found = []
    everything = [
        (platform, runtime, all_of(platform, runtime))
        for platform, runtime in [*EVERY, ("local", None), ("goodall", None)]
    ]
    everything += [
        ("registry", runtime, {"scout-hops": with_registry("hops", runtime, "scout-hops")})
        for runtime in ("podman", "apptainer")
    ]
    for platform, runtime, renderings_ in everything:
        for name, rendering in renderings_.items():
            texts = render_files(rendering)
            found += [(f"{platform}-{runtime}-{name}/{file}", texts[file]) for file in texts if file.endswith(".sh")]
    return found


def test_every_script_is_good_bash(tmp_path: Path) -> None:
    """Bash parses every script of every shipped platform and runtime."""
    for number, (name, text) in enumerate(scripts()):
        path = tmp_path / f"{number}.sh"
        path.write_text(text)
        checked = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, f"{name}: {checked.stderr}"


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="apt-get install shellcheck checks the scripts further")
def test_shellcheck_finds_nothing(tmp_path: Path) -> None:
    """ShellCheck has nothing to say about any script of any shipped platform and runtime."""
    for number, (_, text) in enumerate(scripts()):
        (tmp_path / f"{number}.sh").write_text(text)
    checked = subprocess.run(
        ["shellcheck", *map(str, sorted(tmp_path.iterdir()))], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout


def test_every_setting_is_explained() -> None:
    """Every setting of the decision has its line in settings.md, with the reason that stands in the recipe."""
    rendering = all_of("eldorado")["scout-eldorado"]
    page = render_files(rendering)["settings.md"]
    for told in rendering.server.explanations:
        (line,) = [line for line in page.splitlines() if line.startswith((f"| `{told.name}=", f"| `--{told.name}"))]
        assert told.source in line
        assert told.reason.replace("|", "\\|") in line
    assert "--gpu-memory-utilization=0.7" in page
    assert "Its HBM is the host's memory too" in page


def test_the_values_are_the_spec_of_the_plan() -> None:
    """values.json holds the definition and the id under which the points of a measurement are filed."""
    config = dataclasses.replace(configured("hops"), select=("fig9",))
    rendering = renderings(config, ROOT, (3, 11))["scout-hops"]
    values = json.loads(render_files(rendering)["values.json"])
    planned = next(iter(make_plan(config, ROOT).runs.values()))
    assert values["experiments"]["fig9"]["spec"] == planned.id.spec
    assert values["experiments"]["fig9"]["definition"] == planned.definition.full
    assert values["secrets"] == ["VLLM_API_KEY"]


def test_an_unpinned_model_is_rendered_with_a_warning_and_not_measured() -> None:
    """Rendering costs nothing, so that a model without a commit is rendered; only a measurement of it is refused."""
    rendering = all_of("hops")["scout-w4a16-hops"]
    (warning,) = warnings_of(rendering)
    assert "git ls-remote https://huggingface.co/RedHatAI/" in warning
    texts = render_files(rendering)
    assert warning in texts["settings.md"]
    assert json.loads(texts["values.json"])["experiments"]["fig10"]["spec"] is None
    assert "--revision" not in texts["stage.sh"]
    with pytest.raises(BerthError, match="the model is not pinned"):
        make_plan(configured("hops"), ROOT).require_measurable()
    assert warnings_of(all_of("hops")["scout-hops"]) == ()


def test_only_selected_experiments_are_rendered() -> None:
    """`select` leaves out the deployments of other experiments."""
    config = dataclasses.replace(configured("hops"), select=("fig12",))
    assert list(renderings(config, ROOT, (3, 11))) == ["llama31-405b-hops"]


def test_the_mode_of_the_benchmark_is_in_the_server_and_two_are_refused() -> None:
    """A server is rendered as the sweep starts it, and a deployment in two modes has no one command."""
    config = configured("hops")
    fig12 = config.benchmarks[config.experiments["fig12"].benchmark]
    moded = {**config.benchmarks, "moded": dataclasses.replace(fig12, name="moded", mode="clean")}
    experiment = dataclasses.replace(config.experiments["fig12"], benchmark="moded")
    clean = dataclasses.replace(config, benchmarks=moded, experiments={"fig12": experiment})
    assert "--no-enable-prefix-caching" in renderings(clean, ROOT, (3, 11))["llama31-405b-hops"].server.container.args
    both = dataclasses.replace(clean, experiments={**config.experiments, "again": experiment})
    with pytest.raises(BerthError, match="llama31-405b-hops is measured in different modes"):
        renderings(both, ROOT, (3, 11))


def test_scripts_may_be_run_and_files_of_a_recipe_read_by_their_owner_alone(tmp_path: Path) -> None:
    """Scripts are executable; what a recipe declares may hold what others need not see."""
    write_rendered(tmp_path / "r", {"server.sh": "", "files/config.yaml": "", "settings.md": ""}, ())
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "r").rglob("*") if path.is_file()}
    assert modes == {"server.sh": 0o755, "config.yaml": 0o600, "settings.md": 0o644}


class Site:
    """A place in which the scripts of one deployment can run; programs there stand in for a runtime and write down
    what they were given, because no image of several gigabytes is at hand.
    """  # noqa: D205

    def __init__(self, folder: Path, rendering: Rendering) -> None:
        platform = dataclasses.replace(
            rendering.platform, models_dir=str(folder / "models"), scratch_dir=str(folder / "s"), images_dir=str(folder)
        )
        self.folder = folder
        self.rendering = dataclasses.replace(rendering, platform=platform, results=folder / "results")
        self.rendering.model_dir.mkdir(parents=True)
        self.bin = folder / "bin"
        self.bin.mkdir()
        write_rendered(folder / "rendered", render_files(self.rendering), ())

    def program(self, name: str, body: str = "") -> None:
        head = (
            f'#!/bin/bash\nprintf "%s\\0" "$@" > {self.folder}/{name}-$1.argv\nenv -0 > {self.folder}/{name}-$1.env\n'
        )
        (self.bin / name).write_text(head + body)
        (self.bin / name).chmod(0o755)

    def start(self, script: str, **environment: str) -> subprocess.Popen[str]:
        env = {"PATH": f"{self.bin}:/usr/bin:/bin", **environment}
        return subprocess.Popen(
            ["bash", str(self.folder / "rendered" / script)],
            env=env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def argv(self, name: str) -> list[str]:
        return (self.folder / f"{name}.argv").read_text().split("\0")[:-1]

    def env(self, name: str) -> dict[str, str]:
        lines = (self.folder / f"{name}.env").read_text().split("\0")[:-1]
        return dict(line.split("=", 1) for line in lines)


def no_devices(rendering: Rendering) -> Rendering:
    recipe = rendering.recipe
    return dataclasses.replace(
        rendering, recipe=dataclasses.replace(recipe, expects=dataclasses.replace(recipe.expects, accelerator=False))
    )


def test_a_script_without_its_secret_starts_nothing(tmp_path: Path) -> None:
    """The missing variable is named, and the runtime is never called."""
    site = Site(tmp_path, no_devices(all_of("hops")["scout-hops"]))
    site.program("podman")
    process = site.start("server.sh")
    output, _ = process.communicate()
    assert process.returncode != 0
    assert "VLLM_API_KEY: is not set" in output
    assert list(tmp_path.glob("podman-*")) == []


def test_a_script_says_what_was_not_staged(tmp_path: Path) -> None:
    """Without the model, and without the image, the script names the path and the step that brings it."""
    site = Site(tmp_path, no_devices(all_of("hops", "apptainer")["scout-hops"]))
    site.program("apptainer")
    output, _ = site.start("server.sh", VLLM_API_KEY=SECRET).communicate()
    assert "no image at" in output
    assert "run stage.sh image" in output
    site.rendering.model_dir.rmdir()
    output, _ = site.start("server.sh", VLLM_API_KEY=SECRET).communicate()
    assert "run stage.sh model" in output
    assert SECRET not in output


def test_a_node_without_a_cdi_specification_is_told_before_podman_runs(tmp_path: Path) -> None:
    """`nvidia.com/gpu=all` means nothing without a CDI specification, and Podman's own message does not say so."""
    if list(Path("/etc/cdi").glob("*")) or list(Path("/var/run/cdi").glob("*")):
        pytest.skip("this machine has a CDI specification")
    site = Site(tmp_path, all_of("hops")["scout-hops"])
    site.program("podman")
    output, _ = site.start("server.sh", VLLM_API_KEY=SECRET).communicate()
    assert "nvidia-ctk cdi generate" in output
    assert list(tmp_path.glob("podman-run*")) == []


def test_podman_gets_the_reviewed_command_and_a_clean_environment(tmp_path: Path) -> None:
    """The script starts exactly podman_argv, named after the job, without the login session, with the key by name."""
    site = Site(tmp_path, no_devices(all_of("hops")["scout-hops"]))
    site.program("podman")
    session = {"XDG_RUNTIME_DIR": "/run/user/1", "DBUS_SESSION_BUS_ADDRESS": "x"}
    process = site.start("server.sh", VLLM_API_KEY=SECRET, SLURM_JOB_ID="4711", **session)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    container = dataclasses.replace(site.rendering.server.container, name="berth-scout-hops-4711")
    assert ["podman", *site.argv("podman-run")] == podman_argv(container)
    assert not set(session) & set(site.env("podman-run"))
    assert site.env("podman-run")["VLLM_API_KEY"] == SECRET
    assert site.env("podman-run")["PWD"] == str(site.rendering.scratch)
    # The script ends, and leaves no container of this name.
    assert site.argv("podman-rm")[-1] == "berth-scout-hops-4711"


def test_modules_storage_and_options_of_the_site_are_in_the_script(tmp_path: Path) -> None:
    """The script loads the site's modules first, and every call of Podman says where its storage is."""
    rendering = no_devices(all_of("hops")["scout-hops"])
    settings = RuntimeSettings(options=("--cgroups=disabled",), storage="/local/c")
    platform = dataclasses.replace(rendering.platform, container=settings, modules=("podman/5.2",))
    site = Site(tmp_path, dataclasses.replace(rendering, platform=platform))
    # A stand-in for the function that a site's login shells have.
    module = f"() {{ echo $@ >> {tmp_path}/loaded; }}"
    site.program("podman", f'printf "%s\\n" "$@" >> {tmp_path}/calls\n')
    process = site.start("server.sh", VLLM_API_KEY=SECRET, **{"BASH_FUNC_module%%": module})
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert (tmp_path / "loaded").read_text() == "load podman/5.2\n"
    said = (tmp_path / "calls").read_text().split("\n")
    assert said.count("--root=/local/c/storage") == said.count("--runroot=/local/c/run") == 4
    assert said.count("--cgroups=disabled") == 1
    bare = site.start("server.sh", VLLM_API_KEY=SECRET, **{"BASH_FUNC_module%%": "() { return 1; }"})
    bare.communicate()
    assert bare.returncode == 1


def test_a_script_that_is_asked_to_end_takes_its_container_down(tmp_path: Path) -> None:
    """TERM to the script stops, kills and removes the container at once, and the exit code says why it ended."""
    site = Site(tmp_path, no_devices(all_of("hops")["scout-hops"]))
    pid = tmp_path / "pid"
    site.program(
        "podman",
        f'if [ "$1" = run ]; then echo $$ > {pid}; exec sleep 600; fi\n[ "$1" = stop ] && kill "$(cat {pid})"\n',
    )
    process = site.start("server.sh", VLLM_API_KEY=SECRET, SLURM_JOB_ID="4711")
    while not (pid.exists() and pid.read_text()) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 143
    for word in ("stop", "kill", "rm"):
        assert site.argv(f"podman-{word}")[-1] == "berth-scout-hops-4711"


def test_apptainer_gets_its_folders_on_scratch_and_the_key_in_its_environment(tmp_path: Path) -> None:
    """Apptainer unpacks on the local disk, and its container sees the key without its being an argument."""
    site = Site(tmp_path, no_devices(all_of("hops", "apptainer")["scout-hops"]))
    site.program("apptainer")
    site.rendering.image_path.touch()
    process = site.start("server.sh", VLLM_API_KEY=SECRET)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    env = site.env("apptainer-exec")
    assert env["APPTAINERENV_VLLM_API_KEY"] == SECRET
    for name in ("APPTAINER_CACHEDIR", "APPTAINER_TMPDIR"):
        assert env[name].startswith(str(site.rendering.scratch))
        assert Path(env[name]).is_dir()
    assert SECRET not in " ".join(site.argv("apptainer-exec"))
    assert {"--fakeroot", "--writable-tmpfs", "--cleanenv", "--no-home"} <= set(site.argv("apptainer-exec"))


def test_client_measures_the_level_that_is_asked_for(tmp_path: Path) -> None:
    """CONCURRENCY and BASE_URL reach the client as arguments, the key under the client's own name."""
    site = Site(tmp_path, no_devices(all_of("hops")["scout-hops"]))
    site.program("podman")
    site.rendering = dataclasses.replace(
        site.rendering, uses=tuple(dataclasses.replace(use, dataset=tmp_path / "d.json") for use in site.rendering.uses)
    )
    (tmp_path / "d.json").touch()
    write_rendered(tmp_path / "rendered", render_files(site.rendering), ())
    process = site.start("client.sh", VLLM_API_KEY=SECRET, CONCURRENCY="16", BASE_URL="http://node7:8000")
    output, _ = process.communicate()
    assert process.returncode == 0, output
    argv = site.argv("podman-run")
    assert argv[argv.index("--max-concurrency") + 1] == "16"
    assert argv[argv.index("--base-url") + 1] == "http://node7:8000"
    assert argv[argv.index("--result-filename") + 1] == "c16.json"
    # The client of 0.9.1 names the protocol by another flag than later ones.
    assert argv[argv.index("--endpoint-type") + 1] == "openai-chat"
    assert argv[argv.index("--seed") + 1] == "12345"
    assert site.env("podman-run")["OPENAI_API_KEY"] == SECRET
    assert SECRET not in " ".join(argv) + output
    clean = [
        dataclasses.replace(use, benchmark={**use.benchmark, "mode": "clean", "seed_per_point": True})
        for use in site.rendering.uses
    ]
    write_rendered(tmp_path / "rendered", render_files(dataclasses.replace(site.rendering, uses=tuple(clean))), ())
    assert "In mode clean" in (tmp_path / "rendered/client.sh").read_text()
    output, _ = site.start("client.sh", VLLM_API_KEY=SECRET, CONCURRENCY="16").communicate()
    argv = site.argv("podman-run")
    # The seed of the benchmark, one, and the level: as Berth measures it.
    assert argv[argv.index("--seed") + 1] == "12362", output


def test_stage_names_the_exact_places_in_the_store(tmp_path: Path) -> None:
    """The model is copied between the folder, the bucket and the key that Berth itself uses."""
    site = Site(tmp_path, all_of("hops")["scout-hops"])
    site.program("aws")
    output, _ = site.start("stage.sh").communicate()
    assert "usage: bash stage.sh download|push|model|verify|image" in output
    env = {"PATH": f"{site.bin}:/usr/bin:/bin", "AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": SECRET}
    subprocess.run(["bash", str(tmp_path / "rendered/stage.sh"), "model"], env=env, check=True)
    argv = site.argv("aws-s3")
    assert argv[:4] == ["s3", "sync", "s3://huggingface.co/meta-llama/Llama-4-Scout-17B-16E-Instruct/", argv[3]]
    assert argv[3] == str(site.rendering.model_dir)
    assert argv[argv.index("--endpoint-url") + 1] == "https://s3.example.gov"
    assert site.env("aws-s3")["AWS_REQUEST_CHECKSUM_CALCULATION"] == "when_required"
    without = subprocess.run(
        ["bash", str(tmp_path / "rendered/stage.sh"), "model"],
        env={"PATH": env["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert without.returncode == 1
    assert "no credentials" in without.stderr


def test_secrets_of_the_caller_are_in_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is in the environment when it is rendered, no value of it is written."""
    for name in ("VLLM_API_KEY", "OPENAI_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, SECRET)
    for rendering in renderings(configured("hops"), ROOT, (3, 11)).values():
        assert SECRET not in "".join(render_files(rendering).values())
