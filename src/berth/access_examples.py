"""Examples that ask a served deployment: with curl, and with OpenAI's Python client. They read the key themselves."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from berth.shelltext import comment, quote, script

if TYPE_CHECKING:
    from berth.access_target import Target

CURL, OPENAI = "curl.sh", "openai_example.py"
_TOKENS = 32


def curl_example(target: Target, base_url: str, ca_file: str) -> str:
    """curl.sh: the models, one completion, and one that is streamed; `ca_file` is "" where the system's CAs do."""
    variable, key_file = target.key_variable, target.key_file
    head = comment(
        f"Asks {target.name} with curl.",
        "",
        "    bash curl.sh",
        "    BASE_URL=http://127.0.0.1:8000/v1 bash curl.sh    by another way in, such as a tunnel",
        "",
        f"The key comes from {variable}, or from the 0600 file that KEY_FILE names." if variable else "",
    )
    settings = f'BASE_URL="${{BASE_URL:-{base_url}}}"\n'
    if ca_file:
        settings += f'CA_FILE="${{CA_FILE-{ca_file}}}"\n'
    if variable:
        settings += f'KEY_FILE="${{KEY_FILE:-{key_file}}}"\n'
    header = ""
    if variable:
        settings += (
            f'KEY="${{{variable}:-}}"\n'
            '[ -n "$KEY" ] || [ -r "$KEY_FILE" ] || {\n'
            f'  echo "no key: export {variable}, or bring $KEY_FILE here from where the server was started" >&2\n'
            "  exit 1\n}\n"
            '[ -n "$KEY" ] || KEY="$(<"$KEY_FILE")"\n'
        )
        header = comment("The key goes through a pipe: the arguments of a program are seen by everyone on the machine.")
    piped = "  printf 'Authorization: Bearer %s\\n' \"$KEY\" |\n    " if variable else "  "
    words = ["curl --silent --show-error --fail --no-buffer --noproxy '*'"]
    words += ['${CA_FILE:+--cacert "$CA_FILE"}'] if ca_file else []
    words += ["--header @-"] if variable else []
    ask = f'{header}ask() {{\n{piped}{" ".join(words)} "$@"\n  echo\n}}\n'
    complete = 'ask --header "Content-Type: application/json" --data {} "$BASE_URL/chat/completions"\n'
    return script(
        head,
        "set -euo pipefail\n",
        settings,
        ask,
        'ask "$BASE_URL/models"\n',
        complete.format(quote(json.dumps(_question(target)))),
        comment("Each token as it comes.") + complete.format(quote(json.dumps(_question(target) | {"stream": True}))),
    )


def _question(target: Target) -> dict[str, Any]:
    return {
        "model": target.models[0],
        "messages": [{"role": "user", "content": "What is a berth?"}],
        "max_tokens": _TOKENS,
    }


def openai_example(target: Target, base_url: str, ca_file: str) -> str:
    """openai_example.py: one completion, streamed; `ca_file` is "" where the system's CAs do."""
    variable, key_file = target.key_variable, target.key_file
    imports = ["import os", *(["import ssl"] if ca_file else []), *(["from pathlib import Path"] if variable else [])]
    settings = [f'base_url = os.environ.get("BASE_URL", {_python(base_url)})']
    key, verify = '"none is asked for"', ""
    if variable:
        settings += [
            f'key_file = os.environ.get("KEY_FILE", {_python(key_file)})',
            f'key = os.environ.get("{variable}") or Path(key_file).read_text().strip()',
        ]
        key = "key"
    if ca_file:
        settings.append(
            f'tls = ssl.create_default_context(cafile=os.environ.get("CA_FILE", {_python(ca_file)}) or None)'
        )
        verify = ", verify=tls"
    told = f"The key comes from {variable}, or from the 0600 file that KEY_FILE names.\n" if variable else ""
    return (
        f'"""Asks {target.name} with OpenAI\'s client (pip install openai): python {OPENAI}\n\n'
        f'BASE_URL names another way in, such as http://127.0.0.1:8000/v1 of a tunnel.\n{told}"""\n\n'
        + "\n".join(imports)
        + "\n\nfrom openai import DefaultHttpxClient, OpenAI\n\n"
        + "\n".join(settings)
        + "\n# The server is behind no proxy, whatever the environment says.\n"
        f"http_client = DefaultHttpxClient(trust_env=False{verify})\n"
        f"client = OpenAI(base_url=base_url, api_key={key}, http_client=http_client)\n"
        "stream = client.chat.completions.create(\n"
        f"    model={_python(target.models[0])},\n"
        '    messages=[{"role": "user", "content": "What is a berth?"}],\n'
        f"    max_tokens={_TOKENS},\n"
        "    stream=True,\n"
        ")\n"
        "for chunk in stream:\n"
        "    for choice in chunk.choices:\n"
        '        print(choice.delta.content or "", end="", flush=True)\n'
        "print()\n"
    )


def _python(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
