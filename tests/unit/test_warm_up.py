"""The warm-up of a server before its first point. A small program stands in for `vllm`: only it hangs when asked to."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from berth import pointwatch
from berth.bench import BenchSettings
from berth.client import open_client
from berth.measure import Session
from berth.recording import Instance
from berth.watchdog import Stalled

if TYPE_CHECKING:
    from pathlib import Path


def test_a_server_that_hangs_in_the_warm_up_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing moves for point_stall_s, the warm-up is broken off, as a point is."""
    monkeypatch.setattr(pointwatch, "_CHECK_LEASE_EVERY_S", 0.0)
    monkeypatch.setattr(pointwatch, "_ASK_SERVER_AFTER_S", 0.0)
    program = tmp_path / "vllm"
    program.write_text("import time\ntime.sleep(600)\n")
    with open_client(
        command_prefix=[sys.executable],
        worker_path=tmp_path / "none.py",
        vllm_command=[sys.executable, str(program)],
        env={},
        secret_env={},
        log_path=tmp_path / "client.log",
        mode="process",
    ) as client:
        session = Session(
            deployed=cast(
                "Any",
                SimpleNamespace(exchange=tmp_path, recipe=SimpleNamespace(ready=SimpleNamespace(metrics=""))),
            ),
            request=cast(
                "Any",
                SimpleNamespace(benchmark={"warm_up_prompts": 4}, levels=[2], settings={"point_stall_s": 0.2}),
            ),
            server=cast("Any", SimpleNamespace(alive=lambda: True, check=lambda: None)),
            client=client,
            settings=BenchSettings(
                base_url="http://127.0.0.1:1",
                served_model="tiny",
                tokenizer="/models/tiny",
                dataset_path=tmp_path / "s.json",
            ),
            check_lease=lambda: None,
            instance=Instance(1, [], ()),
            other_client=lambda _name: cast("Any", None),
        )
        with pytest.raises(Stalled, match=r"nothing for 0\.2 s"):
            session.warm_up()
