from __future__ import annotations

import errno
import hashlib
import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

from berth.errors import BerthError
from berth.hub import PUBLIC_HUB, HubFile, hub_repo
from berth.huberrors import hub_error
from berth.hubprogress import Progress, StalledError, progress_class
from berth.model import check_file, declared_licence, download_model, select_files

if TYPE_CHECKING:
    from pathlib import Path

COMMIT = "a" * 40


def listed(*paths: str) -> dict[str, HubFile]:
    return {path: HubFile(path, 1, None, None) for path in paths}


def test_without_patterns_every_file_is_chosen() -> None:
    """The whole repository, sorted by path."""
    files = listed("b/c.bin", "a.json", ".gitattributes")
    assert [file.path for file in select_files(files)] == [".gitattributes", "a.json", "b/c.bin"]


@pytest.mark.parametrize("patterns", [(["*.safetensors"], []), (["*.safetensors"], ["*.md", "LICENSE*", "USE*"])])
def test_patterns_never_leave_out_the_licence_and_the_readme(patterns: tuple[list[str], list[str]]) -> None:
    """Terms and documentation of the top folder come along whatever is allowed or ignored."""
    files = listed("model.safetensors", "LICENSE.txt", "README.md", "USE_POLICY.md", "config.json", "x/README.md")
    assert [file.path for file in select_files(files, *patterns)] == [
        "LICENSE.txt",
        "README.md",
        "USE_POLICY.md",
        "model.safetensors",
    ]


def test_ignored_weights_stay_out() -> None:
    """The second copy of the weights that doubles a download is left out by a pattern."""
    files = listed("model.safetensors", "original/consolidated.00.pth", "original/params.json", "LICENSE")
    chosen = [file.path for file in select_files(files, (), ["original/*.pth"])]
    assert chosen == ["LICENSE", "model.safetensors", "original/params.json"]


def test_patterns_that_match_nothing_choose_nothing() -> None:
    """A licence alone is no model: a mistyped pattern must not pass as a download of documents."""
    assert select_files(listed("LICENSE", "model.bin"), ["*.safetensor"]) == []


def test_a_file_is_compared_as_git_and_lfs_name_it(tmp_path: Path) -> None:
    """The blob of git itself and the SHA-256 are accepted; another content of the same size is not."""
    (tmp_path / "f").write_bytes(b"content\n")
    blob = subprocess.run(["git", "hash-object", "f"], cwd=tmp_path, capture_output=True, text=True, check=True)
    sha256 = hashlib.sha256(b"content\n").hexdigest()
    plain = HubFile("f", 8, None, blob.stdout.strip())
    lfs = HubFile("f", 8, sha256, "0" * 40)
    assert check_file(tmp_path / "f", plain) == (sha256, None)
    assert check_file(tmp_path / "f", lfs) == (sha256, None)
    (tmp_path / "f").write_bytes(b"Content\n")
    assert "has git blob" in str(check_file(tmp_path / "f", plain)[1])
    assert "has SHA-256" in str(check_file(tmp_path / "f", lfs)[1])
    (tmp_path / "f").write_bytes(b"short")
    assert check_file(tmp_path / "f", lfs)[1] == "has 5 bytes instead of 8"
    assert check_file(tmp_path / "g", lfs)[1] == "is missing"


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        ("---\nlicense: apache-2.0\n---\n# Model\n", "apache-2.0"),
        ("---\nlicense: other\nlicense_name: llama4\n---\n", "llama4"),
        ("---\nlicense: other\n---\n", "other"),
        ("# No header\n", None),
        ("---\nlicense: [unclosed\n---\n", None),
        ("", None),
    ],
)
def test_the_licence_is_read_from_the_model_card(tmp_path: Path, text: str, licence: str | None) -> None:
    """A declared licence is named; a card without one, or a broken one, gives none and no error."""
    (tmp_path / "README.md").write_text(text)
    assert declared_licence(tmp_path / "README.md") == licence
    assert declared_licence(tmp_path / "absent.md") is None


def test_the_endpoint_comes_from_argument_then_environment_then_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """HF_ENDPOINT is honoured at the time of the call, and an argument wins."""
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    assert hub_repo("o/n", COMMIT).endpoint == PUBLIC_HUB
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/")
    assert hub_repo("o/n", COMMIT).endpoint == "https://mirror.example"
    assert hub_repo("o/n", COMMIT, endpoint="http://127.0.0.1:1").endpoint == "http://127.0.0.1:1"


def test_a_token_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the object's text nor an error has the token in it; the variable is named."""
    monkeypatch.setenv("SITE_TOKEN", "hf_verysecret")
    hub = hub_repo("o/n", COMMIT, token_env="SITE_TOKEN")
    assert hub.token == "hf_verysecret"
    assert "hf_verysecret" not in repr(hub) + str(hub_error(hub, OSError("x")))


def test_offline_mode_is_named(tmp_path: Path) -> None:
    """The variable that forbids downloads is what the error tells to unset, also when the library wrapped it."""
    error = LocalEntryNotFoundError("cannot find")
    error.__cause__ = OfflineModeIsEnabled("offline")
    assert "HF_HUB_OFFLINE" in str(hub_error(hub_repo("o/n", COMMIT), error, tmp_path))


def test_a_directory_without_permission_is_named(tmp_path: Path) -> None:
    """An error of the file system is not blamed on the network."""
    error = PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(tmp_path))
    assert "Check that directory's permissions" in str(hub_error(hub_repo("o/n", COMMIT), error, tmp_path))


def test_a_name_that_is_no_repository_is_refused(tmp_path: Path) -> None:
    """The form OWNER/NAME is checked before any request."""
    with pytest.raises(BerthError, match="'not a name' is no repository name"):
        download_model(
            repo="not a name",
            revision=COMMIT,
            dest=tmp_path / "m",
            manifest_path=tmp_path / "m.json",
            endpoint="http://x",
        )


def test_a_download_that_starts_over_without_end_is_ended() -> None:
    """Five starts from the beginning are borne, the sixth without progress is an error."""
    progress = Progress(1000, "model")
    for _ in range(5):
        progress.add(300)
        progress.add(-300)
    progress.add(300)
    with pytest.raises(StalledError, match="6 times"):
        progress.add(-300)


def test_starting_over_is_borne_while_it_gets_further() -> None:
    """A flaky hub that gets further each time is no stall."""
    progress = Progress(1000, "model")
    for reached in range(100, 1000, 30):
        progress.add(reached)
        progress.add(-reached)


def test_only_the_bar_of_all_bytes_counts() -> None:
    """The library's other bars (files, transfer) do not count as restarts."""
    bar_class = progress_class(1000, "model")
    for bar in (bar_class(total=3), bar_class(total=3, name="huggingface_hub.snapshot_download.transfer")):
        for _ in range(20):
            bar.update(-1)
    counting = bar_class(total=3, name="huggingface_hub.snapshot_download")
    for _ in range(5):
        counting.update(-1)
    with pytest.raises(StalledError):
        counting.update(-1)
