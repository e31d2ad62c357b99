"""The warm benchmark client: vLLM's own `bench serve`, imported once, run once per line of standard input.

This file, and `_client_watch.py` beside it, run inside the image's Python, where Berth is not installed: standard
library at the top, vLLM inside. It holds no benchmark code of its own. It takes vLLM's parser and vLLM's `main`, and
replaces three names in the module `vllm.benchmarks.serve`: the progress bar (to report progress, and when the measured
phase begins and ends), and the loaders of tokenizer and samples (which give the same value for the same arguments,
without reading the files again). A user's own JSONL is read without pandas.

Standard input, one JSON object per line:
    {"do": "prepare", "argv": [...]}     load tokenizer and samples for these arguments, send no request
    {"do": "measure", "argv": [...]}     run one benchmark; `argv` as for `vllm bench serve`
Standard output, one JSON object per line:
    {"event": "ready", "mode": "warm" | "process", "version": str | null, "reason": str | null, "import_s": float}
    {"event": "prepared", "error": str | null}
    {"event": "progress", "completed": int, "total": int}
    {"event": "measured", "error": str | null, "cpu_s", "phase_s", "start", "end", "loop_lag", "clock_step_s"}
With `--samples ASKED FILE` it writes the samples of each `argv` of the JSON list in ASKED to FILE (a list with an entry
per `argv`: rows of `prompt`, `prompt_len`, `output_len`, in the order of the requests) and ends: other clients ask the
same.
What vLLM prints goes to standard error. The end of standard input ends the process at once, also in a point: when
the parent is killed, no client goes on sending requests.
"""

from __future__ import annotations

import copy
import functools
import gc
import importlib.metadata
import json
import os
import pathlib
import queue
import sys
import threading
import time
import traceback
import types
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

try:
    from _client_watch import LoopLag, clock_offset_s  # type: ignore[import-not-found, unused-ignore]
except ModuleNotFoundError:
    # Where Berth is installed, for its tests: this file is no script then.
    from berth._client_watch import LoopLag, clock_offset_s

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

# Arguments that say where and how requests are sent, not which ones. All others are part of a sample's identity.
_NOT_THE_SAMPLES = frozenset(
    {"base_url", "host", "port", "endpoint", "max_concurrency", "metadata", "label"}
    | {"result_dir", "result_filename", "request_id_prefix"}
)
_PROGRESS_INTERVAL_S = 0.25


class _PreparedError(Exception):
    """Leaves vLLM's `main` once the samples are loaded, before any request is sent."""


class Channel:
    """JSON lines to the parent; safe from several threads."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def send(self, **message: Any) -> None:
        """Write one message."""
        with self._lock:
            self._stream.write(json.dumps(message) + "\n")
            self._stream.flush()


class Clocks(NamedTuple):
    """Seconds since 1970, of a clock that never steps, and of this process's CPU; how far the first two are apart."""

    wall: float
    monotonic: float
    cpu: float
    offset: float

    @classmethod
    def now(cls) -> Clocks:
        """The clocks, read together."""
        return cls(time.time(), time.perf_counter(), time.process_time(), clock_offset_s())


class Phase:
    """Stands in for tqdm: counts requests, and notes the clocks when vLLM opens and closes its bar.

    vLLM opens the bar right before it starts its own stopwatch and closes it right before it stops it, so the last
    bar of a run spans the measured phase. An earlier bar (`--num-warmups`) is forgotten.
    """

    def __init__(self) -> None:
        self.lag = LoopLag()
        self.reset()

    def reset(self) -> None:
        """Forget the run before."""
        self.total = 0
        self.completed = 0
        self.began: Clocks | None = None
        self.ended: Clocks | None = None

    def open(self, *_args: Any, total: int = 0, **_options: Any) -> Phase:
        """What `tqdm(total=...)` is replaced by."""
        self.total, self.completed = total, 0
        self.lag.start()
        self.began, self.ended = Clocks.now(), None
        return self

    def update(self, count: int = 1) -> None:
        """One more request is done."""
        self.completed += count

    def close(self) -> None:
        """All requests are done."""
        self.ended = Clocks.now()
        self.lag.stop()

    def report(self) -> dict[str, Any]:
        """CPU and wall seconds of the phase, its start and end in seconds since 1970, and what it saw of itself.

        Null where it never ended.
        """
        began, ended = self.began, self.ended
        if began is None or ended is None:
            nothing = dict.fromkeys(("cpu_s", "phase_s", "end", "loop_lag", "clock_step_s"))
            return {**nothing, "start": began.wall if began else None}
        return {
            "cpu_s": ended.cpu - began.cpu,
            "phase_s": ended.monotonic - began.monotonic,
            "start": began.wall,
            "end": ended.wall,
            "loop_lag": self.lag.report(),
            "clock_step_s": ended.offset - began.offset,
        }


class SampleMemo:
    """`get_samples` of vLLM that loads and tokenises once per set of arguments and file.

    It returns fresh copies, and leaves both random generators and the arguments as the original call left them, so
    that everything that follows is the same as without it.
    """

    def __init__(self, get_samples: Callable[..., Any]) -> None:
        self._get_samples = get_samples
        self._memo: dict[str, tuple[list[Any], dict[str, Any], Any, Any]] = {}
        self.loads = 0

    @staticmethod
    def _key(args: argparse.Namespace) -> str:
        chosen = {name: value for name, value in vars(args).items() if name not in _NOT_THE_SAMPLES}
        path = chosen.get("dataset_path")
        if path and os.path.isfile(path):  # noqa: PTH113 (vLLM's arguments are plain text)
            status = os.stat(path)  # noqa: PTH116
            chosen["dataset_file"] = (status.st_ino, status.st_size, status.st_mtime_ns)
        return repr(sorted(chosen.items(), key=lambda item: item[0]))

    def __call__(self, args: argparse.Namespace, tokenizer: Any, *more: Any, **options: Any) -> list[Any]:
        """The samples for the arguments, request ids under the prefix of this call."""
        import random  # noqa: PLC0415

        import numpy as np  # noqa: PLC0415

        key = self._key(args)
        prefix = getattr(args, "request_id_prefix", "")
        if key not in self._memo:
            before = dict(vars(args))
            samples: list[Any] = self._get_samples(args, tokenizer, *more, **options)
            self.loads += 1
            changed = {k: v for k, v in vars(args).items() if k not in before or before[k] is not v}
            kept = [_with_request_id(sample, prefix, "") for sample in samples]
            self._memo[key] = (kept, changed, random.getstate(), np.random.get_state())  # noqa: NPY002
            return samples
        kept, changed, python_state, numpy_state = self._memo[key]
        vars(args).update({k: v for k, v in changed.items() if k not in _NOT_THE_SAMPLES})
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        return [_with_request_id(sample, "", prefix) for sample in kept]


def _with_request_id(sample: Any, old_prefix: str, new_prefix: str) -> Any:
    fresh = copy.copy(sample)
    request_id = getattr(sample, "request_id", None)
    if isinstance(request_id, str) and request_id.startswith(old_prefix):
        fresh.request_id = new_prefix + request_id[len(old_prefix) :]
    return fresh


class JsonLines:
    """Stands in for pandas where vLLM reads a JSONL file, and for nothing else: its server images may lack pandas.

    Values stay what they are in the file; pandas makes a number of a column of texts that look like one.
    """

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.columns = {name for row in rows for name in row}
        self._rows = rows

    @classmethod
    def read_json(cls, path_or_buf: str, **_options: Any) -> JsonLines:
        """What `pandas.read_json(path, lines=True)` is replaced by."""
        # Not splitlines(): a JSON text may hold the line ends of Unicode as they are.
        lines = pathlib.Path(path_or_buf).read_text(encoding="utf-8").split("\n")
        return cls([json.loads(line) for line in lines if line.strip()])

    def iterrows(self) -> Iterator[tuple[int, Any]]:
        """The rows, each with `to_dict`."""
        for index, row in enumerate(self._rows):
            yield index, types.SimpleNamespace(to_dict=row.copy)


def _dump(value: Any, stream: TextIO, **options: Any) -> None:
    """`json.dump` by the C encoder: the same bytes, several times faster for the long lists of a result."""
    stream.write(json.dumps(value, **options))


class Bench:
    """vLLM's benchmark, ready to run."""

    def __init__(self, serve: Any, parser_class: type[argparse.ArgumentParser]) -> None:
        self._serve = serve
        self._parser_class = parser_class
        self.phase = Phase()
        self.samples = SampleMemo(serve.get_samples)
        self._preparing = False
        self._rows: list[dict[str, Any]] = []
        serve.tqdm = self.phase.open
        serve.get_tokenizer = functools.cache(serve.get_tokenizer)
        serve.get_samples = self._samples_or_leave
        serve.json = types.SimpleNamespace(**{**vars(json), "dump": _dump})

    def _samples_or_leave(self, *args: Any, **options: Any) -> list[Any]:
        samples = self.samples(*args, **options)
        if self._preparing:
            self._rows = [_row(sample) for sample in samples]
            raise _PreparedError
        return samples

    def run(self, argv: list[str]) -> None:
        """One benchmark, as `vllm bench serve` does it. Raises what vLLM raises."""
        parser = self._parser_class(prog="vllm bench serve")
        # Anew for each run: the default of --request-id-prefix is drawn when the arguments are declared.
        self._serve.add_cli_args(parser)
        self._serve.main(parser.parse_args(argv))

    def prepare(self, argv: list[str]) -> None:
        """Load what `run` would load, and stop before the first request."""
        self._preparing = True
        try:
            self.run(argv)
        except _PreparedError:
            pass
        finally:
            self._preparing = False
        # vLLM does this before every benchmark; the first time costs half a second, which is better spent here.
        gc.collect()
        gc.freeze()

    def rows(self, argv: list[str]) -> list[dict[str, Any]]:
        """The samples that `run` would ask for, in its order."""
        self.prepare(argv)
        return self._rows


def _row(sample: Any) -> dict[str, Any]:
    return {"prompt": sample.prompt, "prompt_len": sample.prompt_len, "output_len": sample.expected_output_len}


def version() -> str | None:
    """The version of the installed vLLM."""
    try:
        return importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        return None


def load() -> Bench:
    """Import vLLM's benchmark and check that it has what this worker replaces.

    Raises:
        ImportError, AttributeError: this version is made differently; the caller then runs a process per point.
    """
    # A fifth of the import's time is a search for garbage in what it makes, of which there is next to none.
    gc.disable()
    try:
        from vllm.benchmarks import serve  # noqa: PLC0415

        try:
            from vllm.utils.argparse_utils import FlexibleArgumentParser  # noqa: PLC0415
        except ImportError:
            from vllm.utils import FlexibleArgumentParser  # noqa: PLC0415
    finally:
        gc.enable()
    for name in ("add_cli_args", "main", "get_samples", "get_tokenizer", "tqdm", "json"):
        if not hasattr(serve, name):
            raise AttributeError(f"vllm.benchmarks.serve has no {name}")
    datasets = getattr(serve.get_samples, "__globals__", {})
    if "CustomDataset" in datasets:
        datasets["pd"] = JsonLines
    return Bench(serve, FlexibleArgumentParser)


def _private_stdout() -> TextIO:
    """The parent's pipe for messages alone; file descriptor 1 becomes standard error, for all that vLLM prints."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return channel


def _read_commands(commands: queue.Queue[dict[str, Any]]) -> None:
    for line in sys.stdin:
        commands.put(json.loads(line))
    os._exit(0)


def _report_progress(channel: Channel, phase: Phase, done: threading.Event) -> None:
    told = None
    while not done.wait(_PROGRESS_INTERVAL_S):
        now = (phase.completed, phase.total)
        if now != told and phase.total:
            channel.send(event="progress", completed=now[0], total=now[1])
            told = now


def _attempt(action: Callable[[list[str]], None], argv: list[str]) -> str | None:
    """None, or what went wrong in one line; the traceback goes to the log."""
    try:
        action(argv)
    except SystemExit as error:
        return None if error.code in (0, None) else f"vllm bench serve refused its arguments (exit code {error.code})"
    except Exception as error:
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"
    return None


def _measure(channel: Channel, bench: Bench, argv: list[str]) -> None:
    phase = bench.phase
    phase.reset()
    done = threading.Event()
    reporter = threading.Thread(target=_report_progress, args=(channel, phase, done), daemon=True)
    reporter.start()
    error = _attempt(bench.run, argv)
    done.set()
    reporter.join()
    sys.stdout.flush()
    sys.stderr.flush()
    channel.send(event="measured", error=error, completed=phase.completed, total=phase.total, **phase.report())


def main() -> int:
    """Answer commands until standard input ends."""
    if sys.argv[1:] == ["--version"]:
        print(json.dumps({"version": version()}))
        return 0
    if sys.argv[1:2] == ["--samples"]:
        bench = load()
        asked, written = map(pathlib.Path, sys.argv[2:])
        written.write_text(json.dumps([bench.rows(argv) for argv in json.loads(asked.read_text())]), encoding="utf-8")
        return 0
    channel = Channel(_private_stdout())
    commands: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_read_commands, args=(commands,), daemon=True).start()
    started = time.perf_counter()
    try:
        bench = load()
    except Exception as error:
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}"
        channel.send(event="ready", mode="process", version=version(), reason=reason, import_s=0.0)
        return 0
    import_s = time.perf_counter() - started
    channel.send(event="ready", mode="warm", version=version(), reason=None, import_s=import_s)
    while True:
        command = commands.get()
        if command["do"] == "prepare":
            channel.send(event="prepared", error=_attempt(bench.prepare, command["argv"]))
        else:
            _measure(channel, bench, command["argv"])


if __name__ == "__main__":
    sys.exit(main())
