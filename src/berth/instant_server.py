"""A stand-in for an inference server that answers at once: what limits a measurement against it is the client.

It computes nothing. Each streamed answer has as many tokens as were asked for, one event each: the first alone, the
others together in the next turn of the loop. It ends with the usage that vLLM sends. Standard library alone, so that it
runs in any image's Python; with uvloop, where that Python has it, it is several times faster.

    python instant_server.py PORT [FILE]    prints "ready PORT"; ends with its standard input. Port 0 takes a free one.
                                            The bodies of requests are appended to FILE, one a line.

The key is in VLLM_API_KEY, or there is none.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import pathlib
import re
import sys
import threading
from typing import Any, BinaryIO

MODEL = "stand-in"

_MAX_TOKENS = re.compile(rb'"max_(?:completion_)?tokens":\s*(\d+)')
_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)
_DEFAULT_TOKENS = 16
_PROMPT_TOKENS = 8


def _event(value: dict[str, Any]) -> bytes:
    text = b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"
    return f"{len(text):x}\r\n".encode() + text + b"\r\n"


def _chunk(delta: dict[str, str], finish: str | None, usage: dict[str, int] | None = None) -> bytes:
    choices = [{"index": 0, "delta": delta, "finish_reason": finish}] if usage is None else []
    value = {"id": "chatcmpl-0", "object": "chat.completion.chunk", "created": 0, "model": MODEL, "choices": choices}
    return _event({**value, **({"usage": usage} if usage else {})})


_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-store\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
_TOKEN = _chunk({"content": " the"}, None)
_LAST_TOKEN = _chunk({"content": " the"}, "length")
_FIRST = _HEAD + _TOKEN
_END = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


def _usage(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": _PROMPT_TOKENS, "total_tokens": _PROMPT_TOKENS + tokens, "completion_tokens": tokens}


@functools.lru_cache(maxsize=4096)
def _rest_of(tokens: int) -> bytes:
    """All after the first token. A client at its limit reads many events at a time from any server."""
    more = _TOKEN * (tokens - 2) + _LAST_TOKEN if tokens > 1 else b""
    return more + _chunk({}, None, _usage(tokens)) + _END


class Connection(asyncio.Protocol):
    """One connection: requests one after the other."""

    key: str | None = None
    bodies: BinaryIO | None = None

    def __init__(self) -> None:
        self._received = b""
        self._transport: Any = None
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: Any) -> None:
        """Keep the way back."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer as soon as a request is whole."""
        self._received += data
        head, end, rest = self._received.partition(b"\r\n\r\n")
        if not end:
            return
        found = _LENGTH.search(head)
        length = int(found[1]) if found else 0
        if len(rest) < length:
            return
        self._received = rest[length:]
        self._answer(head, rest[:length])

    def _answer(self, head: bytes, body: bytes) -> None:
        method, path, _ = head.split(b" ", 2)
        bearer = f"bearer {self.key}".encode()
        if path.startswith(b"/v1") and self.key and bearer.lower() not in head.lower():
            self._json({"error": "Unauthorized"}, b"401 Unauthorized")
        elif method == b"GET" and path.startswith(b"/health"):
            self._json({})
        elif method == b"GET" and path.startswith(b"/v1/models"):
            self._json({"object": "list", "data": [{"id": MODEL, "object": "model"}]})
        elif method == b"POST" and path.startswith(b"/v1/chat/completions"):
            if self.bodies is not None:
                self.bodies.write(body.replace(b"\n", b" ") + b"\n")
            asked = _MAX_TOKENS.search(body)
            tokens = max(1, int(asked[1])) if asked else _DEFAULT_TOKENS
            if b'"stream":true' in body or b'"stream": true' in body:
                self._transport.write(_FIRST)
                self._loop.call_soon(self._rest, tokens)
            else:
                message = {"role": "assistant", "content": " the" * tokens}
                choice = {"index": 0, "message": message, "finish_reason": "length"}
                self._json({"model": MODEL, "choices": [choice], "usage": _usage(tokens)})
        else:
            self._json({"error": "Not Found"}, b"404 Not Found")

    def _rest(self, tokens: int) -> None:
        if not self._transport.is_closing():
            self._transport.write(_rest_of(tokens))

    def _json(self, value: dict[str, Any], status: bytes = b"200 OK") -> None:
        body = json.dumps(value).encode()
        head = b"HTTP/1.1 " + status + b"\r\ncontent-type: application/json\r\ncontent-length: "
        self._transport.write(head + str(len(body)).encode() + b"\r\n\r\n" + body)


async def _serve(port: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Connection, "127.0.0.1", port, backlog=4096)
    print(f"ready {server.sockets[0].getsockname()[1]}", flush=True)
    async with server:
        await server.serve_forever()


def _end_with_input() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


def main() -> None:
    """Serve until standard input ends."""
    Connection.key = os.environ.get("VLLM_API_KEY") or None
    if sys.argv[2:]:
        Connection.bodies = pathlib.Path(sys.argv[2]).open("ab", buffering=0)  # noqa: SIM115  # Open as long as it serves.
    threading.Thread(target=_end_with_input, daemon=True).start()
    with contextlib.suppress(ImportError):
        import uvloop  # type: ignore[import-not-found]  # noqa: PLC0415  # Not of Berth's environment.

        uvloop.install()
    asyncio.run(_serve(int(sys.argv[1])))


if __name__ == "__main__":
    main()
