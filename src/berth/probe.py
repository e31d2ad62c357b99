"""Questions to a server over HTTP, past every proxy."""

from __future__ import annotations

import concurrent.futures
import http.client
import json
import ssl
import threading
import urllib.parse
from dataclasses import dataclass
from typing import Any

_ANSWER_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Answer:
    """A status (0 when there was no HTTP answer, with the reason as text) and the text of an answer."""

    status: int
    text: str

    def json(self) -> Any:
        """The answer as JSON; None when it is none."""
        try:
            return json.loads(self.text)
        except ValueError:
            return None

    def __str__(self) -> str:
        text = " ".join(self.text.split())[:500]
        return f"HTTP {self.status}: {text}" if self.status else text


def ask(
    base_url: str, path: str, *, timeout_s: float, api_key: str | None = None, body: Any = None, ca_file: str = ""
) -> Answer:
    """GET, or POST of `body` as JSON. The key goes into the Authorization header and nowhere else.

    With https the server's certificate must be good by the system's CAs, or by those in `ca_file`.
    """
    try:
        connection = _connection(urllib.parse.urlsplit(base_url), timeout_s, ca_file)
    except OSError as error:
        return Answer(0, f"{ca_file or 'the certificates of the system'}: {error.strerror or error}")
    headers = {"Connection": "close"}
    if api_key is not None:
        headers["Authorization"] = f"Bearer {api_key}"
    data = None
    if body is not None:
        headers["Content-Type"] = "application/json"
        data = json.dumps(body).encode()
    try:
        connection.request("GET" if data is None else "POST", path, body=data, headers=headers)
        response = connection.getresponse()
        return Answer(response.status, response.read(_ANSWER_BYTES).decode(errors="replace"))
    except TimeoutError:
        return Answer(0, f"no answer to {path} within {timeout_s:g} s")
    except (OSError, http.client.HTTPException) as error:
        return Answer(0, f"{path}: {error or type(error).__name__}")
    finally:
        connection.close()


def _connection(address: urllib.parse.SplitResult, timeout_s: float, ca_file: str) -> http.client.HTTPConnection:
    # http.client knows nothing of proxies: a site's HTTP_PROXY must not see requests to a server of this node.
    if address.scheme == "https":
        context = ssl.create_default_context(cafile=ca_file or None)
        return http.client.HTTPSConnection(address.hostname or "", address.port, timeout=timeout_s, context=context)
    return http.client.HTTPConnection(address.hostname or "", address.port, timeout=timeout_s)


def ask_aside(base_url: str, path: str, **question: Any) -> concurrent.futures.Future[Answer]:
    """Like ask(), in a thread that never keeps the program alive, so that the server can be watched meanwhile."""
    future: concurrent.futures.Future[Answer] = concurrent.futures.Future()

    def work() -> None:
        try:
            future.set_result(ask(base_url, path, **question))
        except BaseException as error:  # noqa: BLE001 - it is handed to the caller, in whose thread it is raised.
            future.set_exception(error)

    threading.Thread(target=work, name=f"ask {path}", daemon=True).start()
    return future
