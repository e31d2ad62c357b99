"""Kill pushes and stages at random moments, and their store, and see that the run that completes is right.

Usage: python benchmarks/data_faults.py [--kills 20] [--mib 256] [--seed 1] [--restarts 2]

Each kill is a SIGKILL to a push or a stage in a process of its own, drawn over the length that it takes.
After every kill: a model in the store that has a manifest is whole, and so is a directory with its final name. With
--restarts the SeaweedFS is killed too, and started again on its ports, while a push and a stage go on. Prints one line
per kill and what was moved twice; ends with an error at the first wrong byte.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from berth import manifest, store, weed
from berth.errors import BerthError
from berth.seaweed import embedded_store
from berth.tuning import Tuning

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1024 * 1024
CALL = """
import json, sys
from pathlib import Path
from berth import store
from berth.tuning import Tuning
action, arguments = json.loads(sys.stdin.read())
for name in ("model_dir", "manifest_path", "receipt_path", "dest"):
    if name in arguments:
        arguments[name] = Path(arguments[name])
arguments["tuning"] = Tuning(**arguments["tuning"])
getattr(store, action)(**arguments)
"""


def start(action: str, arguments: dict[str, Any]) -> subprocess.Popen[str]:
    """push_model or stage_model in a process of its own."""
    process = subprocess.Popen([sys.executable, "-c", CALL], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdin
    process.stdin.write(json.dumps([action, arguments], default=str))
    process.stdin.close()
    process.stdin = None
    return process


def require_right(folder: Path, wanted: manifest.Manifest) -> None:
    """End with an error if a file is missing, too many or wrong."""
    problems = manifest.tree_problems(folder, wanted)
    if problems:
        raise SystemExit(f"WRONG: {folder}: {problems}")


def kill_at_random(action: str, arguments: dict[str, Any], length_s: float, rng: random.Random) -> str:
    """What came of it."""
    after_s = rng.uniform(0.3, length_s)
    process = start(action, arguments)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=after_s)
    ended = process.poll() is not None
    process.kill()
    _, said = process.communicate()
    if ended and process.returncode:
        raise SystemExit(f"{action} ended with {process.returncode}: {said}")
    return "had ended" if ended else f"killed after {after_s:.2f} s"


def answers(port: int) -> bool:
    """Whether somebody listens there."""
    with contextlib.suppress(OSError), socket.create_connection((weed.HOST, port), 1):
        return True
    return False


@contextlib.contextmanager
def restarts(data_dir: Path, count: int) -> Iterator[None]:
    """Kill the store `count` times while the block works, and start it again on its ports two seconds later."""
    program = weed.find_weed()
    ended = threading.Event()
    started: list[subprocess.Popen[bytes]] = []

    def restart() -> None:
        for _ in range(count):
            if ended.wait(3):
                return
            holder = json.loads((data_dir / "holder.json").read_text())
            os.kill(started[-1].pid if started else holder["pid"], signal.SIGKILL)
            if started:
                started[-1].wait()
            time.sleep(2)
            weed.remove_sockets(holder["ports"])
            log = (data_dir / "again.log").open("ab")
            command = weed.weed_command(program, data_dir, holder["ports"])
            started.append(subprocess.Popen(command, cwd=data_dir, stdout=log, stderr=log))
            print("the store was killed and started again", flush=True)
            while not answers(holder["ports"]["s3.port"]) and not ended.wait(0.2):
                pass

    thread = threading.Thread(target=restart)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        for process in started:
            process.kill()
            process.wait()
        for line in (
            (data_dir / "again.log").read_text(errors="replace").splitlines()[-15:] if sys.exc_info()[0] else ()
        ):
            print(line, file=sys.stderr)


def main() -> None:
    """Kill, complete, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--restarts", type=int, default=2)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="berth-data-faults-") as name:
        folder = Path(name)
        model, listing, dest = folder / "model", folder / "manifest.json", folder / "down/model"
        model.mkdir()
        dest.parent.mkdir()
        for number in range(4):
            (model / f"{number}.safetensors").write_bytes(rng.randbytes(options.mib * MIB // 4 - number))
        for number in range(20):
            (model / f"{number}.json").write_bytes(rng.randbytes(1000))
        wanted = manifest.build_manifest(model, {"kind": "generate"})
        manifest.write_manifest(listing, wanted)
        with embedded_store(folder / "seaweedfs") as endpoint:
            place = {"bucket": "faults", "endpoint_url": endpoint.endpoint_url, "region": endpoint.region}
            place |= {"credentials": endpoint.credentials, "receipt_path": folder / "receipt.json"}
            push = place | {"model_dir": model, "manifest_path": listing}
            # Slow enough that the moments are spread over all that happens.
            rate = options.mib * MIB // 6
            slow = {"part_bytes": 8 * MIB, "max_bandwidth_bytes_s": rate, "abandoned_after_s": 0.0}
            for number in range(options.kills):
                prefix = f"model{number // 5}"
                told = kill_at_random("push_model", push | {"prefix": prefix, "tuning": slow}, 9, rng)
                with contextlib.suppress(BerthError):
                    early = folder / "down/early"
                    store.stage_model(**place, prefix=prefix, dest=early)
                    require_right(early, wanted)
                print(f"push {number + 1}: {told}", flush=True)
            sent = store.push_model(**push, prefix="model0", tuning=Tuning(abandoned_after_s=0))
            print(f"the push that completes sent {sent['sent_bytes'] / MIB:.0f} of {options.mib} MiB")
            for number in range(options.kills):
                arguments = place | {"prefix": "model0", "dest": dest, "tuning": slow}
                told = kill_at_random("stage_model", arguments, 9, rng)
                if dest.exists():
                    require_right(dest, wanted)
                    dest.rename(folder / f"down/whole{number}")
                print(f"stage {number + 1}: {told}", flush=True)
            store.stage_model(**place, prefix="model0", dest=dest)
            require_right(dest, wanted)
            if options.restarts:
                slow_tuning = Tuning(part_bytes=8 * MIB, max_bandwidth_bytes_s=rate)
                with restarts(folder / "seaweedfs", options.restarts):
                    store.push_model(**push, prefix="restarted", tuning=slow_tuning)
                    store.stage_model(**place, prefix="restarted", dest=folder / "down/restarted", tuning=slow_tuning)
                require_right(folder / "down/restarted", wanted)
    print(f"right: {2 * options.kills} kills, {options.restarts} restarts of the store, seed {options.seed}")


if __name__ == "__main__":
    main()
