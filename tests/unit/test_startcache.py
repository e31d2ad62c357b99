"""What a server looked up at its start reaches the next server of the same image, and no other."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from berth.recipes import load_recipe
from berth.startcache import StartCache

NAMES = ("vllm/modelinfos",)
INFO = "vllm/modelinfos/llama.json"
DIGEST = "sha256:" + "a" * 64


def of(scratch: Path, digest: str = DIGEST) -> StartCache:
    return StartCache.of(scratch, "vllm-0.32.0", digest, NAMES)


def made(cache: Path, text: str = "{}", name: str = INFO) -> Path:
    path = cache / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_the_next_run_starts_with_what_the_first_looked_up(tmp_path: Path) -> None:
    """Only the folders that the recipe names go from run to run; compiled kernels do not."""
    first, second = tmp_path / "first", tmp_path / "second"
    made(first, "looked up")
    made(first, name="triton/kernel.so")
    made(first, name="vllm/modelinfos/.llama.json.1.tmp")
    of(tmp_path).keep(first)
    of(tmp_path).seed(second)
    assert [path.relative_to(second).as_posix() for path in second.rglob("*") if path.is_file()] == [INFO]
    assert (second / INFO).read_text() == "looked up"


def test_another_image_starts_with_nothing(tmp_path: Path) -> None:
    """The folder is that of one digest: a version that was built anew looks everything up."""
    made(tmp_path / "first")
    of(tmp_path).keep(tmp_path / "first")
    of(tmp_path, "sha256:" + "b" * 64).seed(tmp_path / "second")
    assert not (tmp_path / "second").exists()


def test_what_a_run_has_looked_up_itself_stays(tmp_path: Path) -> None:
    """Neither a run's own file nor one that is kept is written over."""
    made(tmp_path / "first", "first")
    of(tmp_path).keep(tmp_path / "first")
    own = made(tmp_path / "second", "second")
    of(tmp_path).seed(tmp_path / "second")
    of(tmp_path).keep(tmp_path / "second")
    assert own.read_text() == "second"
    assert (of(tmp_path).folder / INFO).read_text() == "first"


def test_links_and_large_files_are_not_taken(tmp_path: Path) -> None:
    """A link would be followed to whatever it names, and a large file is none of what is looked up."""
    made(tmp_path / "secret")
    link = made(tmp_path / "first").with_name("link.json")
    link.symlink_to(tmp_path / "secret" / INFO)
    made(tmp_path / "first", "x" * (1024 * 1024 + 1), "vllm/modelinfos/large")
    of(tmp_path).keep(tmp_path / "first")
    assert [path.name for path in (of(tmp_path).folder / NAMES[0]).iterdir()] == ["llama.json"]


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file to another user: run as root")
def test_what_another_user_left_is_not_taken(tmp_path: Path) -> None:
    """On a disk that users share, a folder of this name may be somebody else's."""
    path = made(of(tmp_path).folder)
    os.chown(path, 65534, 65534)
    of(tmp_path).seed(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_folder_that_cannot_be_used_does_no_harm(tmp_path: Path) -> None:
    """A file in the place of a folder is no reason to fail: the server looks everything up."""
    made(tmp_path / "first")
    (tmp_path / "berth").write_text("in the way")
    of(tmp_path).keep(tmp_path / "first")
    of(tmp_path).seed(tmp_path / "second")
    assert not (tmp_path / "second").exists()


def test_two_servers_at_the_same_time_leave_whole_files(tmp_path: Path) -> None:
    """Whoever comes first, a reader sees the whole of one file."""
    texts = [str(number) * 100_000 for number in range(4)]
    for number, text in enumerate(texts):
        made(tmp_path / f"run{number}", text)
    threads = [threading.Thread(target=of(tmp_path).keep, args=(tmp_path / f"run{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    seen = set()
    while any(thread.is_alive() for thread in threads):
        reader = tmp_path / f"reader{len(seen)}"
        of(tmp_path).seed(reader)
        if (reader / INFO).exists():
            seen.add((reader / INFO).read_text())
    for thread in threads:
        thread.join()
    seen.add((of(tmp_path).folder / INFO).read_text())
    assert seen <= set(texts)


def test_the_recipe_of_vllm_keeps_what_it_learned_of_model_classes() -> None:
    """The folder is the one in which vLLM 0.32.0 writes it, below its VLLM_CACHE_ROOT."""
    expects = load_recipe(Path(__file__).resolve().parents[2] / "config/recipes/vllm.yaml").expects
    assert expects.cache_kept == (f"{expects.cache_env['VLLM_CACHE_ROOT']}/modelinfos",)
