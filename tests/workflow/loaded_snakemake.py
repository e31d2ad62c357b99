"""The real Snakemake in forks of one process that has loaded its modules: 2.3 of the 2.7 CPU seconds of a call.

A fork gets arguments, environment, working directory and output of its own, and none of Berth's modules is loaded
before it. Calls that are looked at from outside, or killed, are `Workspace.start`'s, which starts the program itself.
"""

from __future__ import annotations

import atexit
import functools
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@functools.cache
def loaded() -> subprocess.Popen[str]:
    """The process that forks, one for each of pytest's workers; it ends with its standard input."""
    process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(end, process)
    return process


def end(process: subprocess.Popen[str]) -> None:
    """Let it end, and collect it."""
    process.communicate()


def run_loaded(arguments: Sequence[str], cwd: Path, environment: Mapping[str, str]) -> tuple[int, str]:
    """The exit code and the output of `snakemake ARGUMENTS`."""
    process = loaded()
    assert process.stdin
    assert process.stdout
    with tempfile.NamedTemporaryFile() as output:
        asked = {"argv": list(arguments), "cwd": str(cwd), "env": dict(environment), "output": output.name}
        process.stdin.write(json.dumps(asked) + "\n")
        process.stdin.flush()
        pid = int(process.stdout.readline())
        try:
            status = int(process.stdout.readline())
        except BaseException:
            # Interrupted, or out of the test's time. The answer must not be taken for that of the next call.
            os.kill(pid, signal.SIGKILL)
            process.stdout.readline()
            raise
        return os.waitstatus_to_exitcode(status), Path(output.name).read_text()


def become_snakemake(asked: Mapping[str, Any]) -> None:
    """Be what `snakemake` is when its program has imported it. Does not return."""
    from snakemake.cli import main

    quiet = os.open(os.devnull, os.O_RDONLY)
    output = os.open(asked["output"], os.O_WRONLY | os.O_APPEND)
    for theirs, ours in ((quiet, 0), (output, 1), (output, 2)):
        os.dup2(theirs, ours)
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    program = str(Path(sys.executable).with_name("snakemake"))
    # As Python does at its start: the program's folder, PYTHONPATH, and what was there.
    sys.path[:] = [str(Path(program).parent), *asked["env"].get("PYTHONPATH", "").split(":"), *sys.path[1:]]
    sys.argv = [program, *asked["argv"]]
    main()
    sys.exit(0)


def serve(requests: TextIO, answers: TextIO) -> None:
    """Fork for each line, and answer with the child's number and then with its exit status."""
    import snakemake.cli

    # Registers the plugins of executors, which are looked for and loaded here.
    snakemake.cli.get_argument_parser()
    gc.freeze()
    for line in requests:
        pid = os.fork()
        if pid == 0:
            become_snakemake(json.loads(line))
        print(pid, file=answers, flush=True)
        print(os.waitpid(pid, 0)[1], file=answers, flush=True)


if __name__ == "__main__":
    serve(sys.stdin, sys.stdout)
