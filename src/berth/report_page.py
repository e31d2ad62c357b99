"""The report as one HTML page: the template of workflow/report/page filled, with a policy that allows nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from berth.report_words import listed, number

if TYPE_CHECKING:
    from collections.abc import Mapping

FOLDER = Path(__file__).resolve().parents[2] / "workflow" / "report" / "page"
_SCRIPTS = ("chart-scale.js", "chart-data.js", "chart.js", "chart-pointer.js", "table.js", "page.js")
_STYLES = ("page.css",)
# A data block ends at "</script"; the two line separators are no line breaks in JSON, but in old JavaScript.
_ESCAPES = {ord(mark): f"\\u{ord(mark):04x}" for mark in "<>&\u2028\u2029"}


def page(context: Mapping[str, Any], data: Any) -> str:
    """The page: `context` fills the template, every text escaped; `data` is what its script draws."""
    script, style = ("\n".join((FOLDER / name).read_text().strip() for name in names) for names in (_SCRIPTS, _STYLES))
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["number"] = number
    environment.filters["listed"] = listed
    return environment.get_template("page.html.j2").render(
        **context,
        policy=_policy(script, style),
        script=Markup(script),  # noqa: S704  # Our own file.
        style=Markup(style),  # noqa: S704  # Our own file.
        data=Markup(json_block(data)),  # noqa: S704  # Escaped by json_block.
    )


def json_block(value: Any) -> str:
    """JSON that can stand in a script element of HTML: it holds none of the characters that HTML looks at."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.translate(_ESCAPES)


def _policy(script: str, style: str) -> str:
    """A Content-Security-Policy: this very script and style, no network, no frame, no form, no other resource."""
    allowed = {"script-src": script, "style-src": style}
    hashes = {name: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for name, text in allowed.items()}
    own = "; ".join(f"{name} 'sha256-{digest}'" for name, digest in hashes.items())
    return f"default-src 'none'; {own}; img-src data:; base-uri 'none'; form-action 'none'"
