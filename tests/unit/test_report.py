"""The report's page without a browser: what is in it, and what must never be."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest
from report_points import LEVELS, crashed, flagged, make_report, record, records

from berth.errors import BerthError
from berth.report_data import TABLE, rounded
from berth.report_page import json_block
from berth.report_provenance import hide_secrets, read_provenance
from berth.report_words import meanings, number
from berth.tidy import read_tidy
from berth.validity import FLAGGING, REFUSING

if TYPE_CHECKING:
    from pathlib import Path

_VOID = {"meta", "link", "input", "br", "img", "hr"}
HOSTILE = "</script><script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{ 7 * 7 }}\u2028"
SECRETS = ("hf_abcdefghijklmnopqrst", "sk-abcdefghijklmnopqrstuvwx", "ghp_abcdefghijklmnopqrst", "p4ssw0rd-of-a-user")


class Parsed(HTMLParser):
    """Elements with their attributes, text by element, and whether every element is closed in its order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self.open[-1] if self.open else "", []).append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def embedded(page: Path) -> dict[str, Any]:
    """What the page's script draws."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found
    return dict(json.loads(found[1]))


def column(experiment: dict[str, Any], name: str) -> list[Any]:
    """A column's values, words as words."""
    packed = experiment["columns"][name]
    words = packed.get("words")
    return packed["values"] if words is None else ["" if v < 0 else words[v] for v in packed["values"]]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of two runs with a flagged and a crashed point, beside a published figure."""
    return make_report(tmp_path_factory.mktemp("report"), records())


def test_page_is_whole_and_needs_nothing_else(page: Path) -> None:
    """Every element is closed, and no attribute, style or script refers to anything outside the page."""
    text = page.read_text()
    parsed = Parsed(text)
    assert parsed.open == []
    for _, attributes in parsed.elements:
        for name in ("src", "href", "action", "data", "srcset", "poster"):
            assert re.fullmatch(r"#[\w-]+|data:,", attributes.get(name, "#x"))
        assert not any(name.startswith("on") or name == "style" for name in attributes)
    assert "url(" not in text
    assert "@import" not in text
    policy = next(each["content"] for each in parsed.all("meta") if "http-equiv" in each)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert page.stat().st_size < 300_000


def test_page_is_semantic(page: Path) -> None:
    """It has a language, one main heading, labelled sections, captions, and every link of its own leads somewhere."""
    parsed = Parsed(page.read_text())
    ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert parsed.all("html")[0]["lang"] == "en"
    assert len(parsed.all("h1")) == 1
    assert all(each["aria-labelledby"] in ids for each in parsed.all("section"))
    assert all(each["href"][1:] in ids for each in parsed.all("a"))
    assert len(parsed.all("figure")) == len(parsed.all("figcaption")) == 7


def test_page_has_every_value_of_every_point(page: Path) -> None:
    """Each number of the table that the page shows is in it, with six digits, measured and published."""
    table = read_tidy(page.with_name("points.parquet"))
    experiment = embedded(page)["experiments"][0]
    assert experiment["rows"] == len(table) + 44
    numbers = [name for name in TABLE if name in experiment["columns"] and "words" not in experiment["columns"][name]]
    assert {"output_throughput_tok_s", "p99_e2el_ms", "duration_s"} <= set(numbers)
    for name in numbers:
        wanted = [
            None if value is None else rounded(float(value))
            for value in table[name].astype(object).where(table[name].notna(), None)
        ]
        assert column(experiment, name)[: len(table)] == wanted
    assert column(experiment, "output_throughput_tok_s")[len(table) :][:2] == [103.3, 192.03]


def test_curves_are_places_in_the_rows(page: Path) -> None:
    """A curve names the row of each of its levels, and its crosses."""
    experiment = embedded(page)["experiments"][0]
    second = experiment["curves"][1]
    assert [column(experiment, "run")[row] for row in second["rows"]] == [2] * 5
    assert [column(experiment, "concurrency")[row] for row in second["rows"]] == list(LEVELS)
    assert second["marks"] == [[4, "crash", True, False]]
    assert len(experiment["curves"]) == 2 + 4


def test_words_say_what_was_found(page: Path) -> None:
    """Summary, comparison, doubts, environment and reproduction are in the page without its script."""
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", page.read_text().split('<script type="application/json"')[0]))
    assert "Hops (mean of 2 runs) peaks at 697.8 output tokens/s, with 16 requests in flight" in text
    assert "times what Hops, published gives (mine, 5 levels)" in text
    assert "The server was killed: it ran out of memory." in text
    assert "57.0% of the prompt tokens came from the server&#39;s prefix cache." in text
    assert "prompts came from the server&#39;s prefix cache" in text
    assert "meta-llama/Scout" in text
    assert "podman run vllm/vllm-openai:v0.9.1 --port=8000" in text
    assert "snakemake --profile profiles/hops --config &#39;select=[&#34;mine&#34;]&#39;" in text


def test_doubts_and_runs_are_tables(page: Path) -> None:
    """Each doubt has its point, reason, value, threshold and remedy; each run its host, job and start."""
    tables = embedded(page)["tables"]
    doubts, runs, comparison = (tables[name] for name in ("doubts", "runs", "comparison"))
    assert column(doubts, "code") == ["warm_cache", "crash"]
    assert column(doubts, "verdict") == ["flagged", "refused"]
    assert column(doubts, "concurrency") == [2, 16]
    assert column(doubts, "value") == [0.57, None]
    assert column(doubts, "remedy") == ["", "Read the log."]
    assert column(runs, "jobs") == ["41", "42"]
    assert column(runs, "start to warm, s") == [412.5, 412.5]
    assert column(runs, "points") == [5, 4]
    # Two published platforms, and five levels in common with each.
    assert comparison["rows"] == 10
    assert column(comparison, "ratio")[0] == pytest.approx(101.8333 / 103.19, rel=1e-4)


def test_spread_over_runs_is_told(page: Path) -> None:
    """Levels with several valid runs have mean, interval and CV; a level with one has none."""
    spread = embedded(page)["tables"]["spread"]
    ours = [row for row, curve in enumerate(column(spread, "curve")) if curve == "Hops"]
    assert [column(spread, "concurrency")[row] for row in ours] == [1, 2, 4, 8]
    assert column(spread, "mean, tokens/s")[ours[0]] == pytest.approx(101.8333, rel=1e-5)
    # Two values that differ by 1: Student's t of one degree of freedom, 12.706, times 1/2.
    assert column(spread, "interval from")[ours[0]] == pytest.approx(101.8333 - 6.3531, rel=1e-4)
    assert "Hops</strong> (mine, 2 runs): CV 0.44 % over the curve, at most 0.69 % (at 1)" in page.read_text()


def test_comparisons_that_were_run_are_told(tmp_path: Path) -> None:
    """The outcome of `snakemake compare` is in the page with what is slower than allowed; a damaged one is an error."""
    point = {"curve": "Hops", "concurrency": 8, "metric": "output_throughput_tok_s", "ratio": 0.81}
    points = [{**point, "verdict": "slower", "regression": True}, {**point, "verdict": "ok", "regression": False}]
    outcome = {
        "schema": 1,
        "ours": {"name": "mine"},
        "theirs": {"name": "baseline:may"},
        "passed": False,
        "points": points,
    }
    (tmp_path / "a-comparison.json").write_text(json.dumps(outcome))
    text = make_report(tmp_path, [record(1, 1)], published=[]).read_text()
    assert "mine against baseline:may" in text
    assert "did not pass" in text
    assert "Points: 1 ok, 1 slower." in text
    assert "Hops at 8, output_throughput_tok_s: slower, 0.81 of the reference" in text
    (tmp_path / "a-comparison.json").write_text('{"schema": 1}')
    with pytest.raises(BerthError, match=r"a-comparison\.json: no readable comparison"):
        make_report(tmp_path, [record(1, 1)], published=[])


def test_same_input_gives_the_same_bytes(page: Path, tmp_path: Path) -> None:
    """A report made again of the same records in the same place is the same file."""
    before = page.read_bytes()
    assert make_report(page.parent, records()).read_bytes() == before


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    """Names, hosts, causes and titles that look like markup or like a template add no element to the page."""
    made = [record(1, 1), record(1, 2), record(1, 4)]
    made[0]["server"]["host"] = made[0]["point"]["deployment"] = HOSTILE
    made[0]["server"]["command"] = ["vllm", HOSTILE]
    made[1] |= {"validity": flagged("token_mismatch", HOSTILE)}
    made[2] |= crashed(HOSTILE, HOSTILE)
    text = make_report(tmp_path, made, title=HOSTILE).read_text()
    parsed = Parsed(text)
    assert parsed.open == []
    assert len(parsed.all("script")) == 2
    assert parsed.all("img") == []
    assert "alert(1)</script>" not in text
    assert "49" not in "".join(parsed.texts["h2"])
    assert any(HOSTILE in each for each in parsed.texts["h2"])
    first = embedded(tmp_path / "index.html")["experiments"][0]["curves"][0]
    assert first["label"].startswith(f"Hops run 1, {HOSTILE}")


def test_secrets_are_hidden(tmp_path: Path) -> None:
    """A secret that a user wrote into a setting, a command or an address is in neither provenance nor page."""
    made = [record(1, 1), record(1, 2)]
    made[0]["spec"]["serve"]["env"] = {"HF_TOKEN": SECRETS[0], "AWS_SECRET_ACCESS_KEY": SECRETS[3], "DEBUG": "on"}
    made[0]["server"]["command"] = ["vllm", "serve", "--api-key", SECRETS[3], f"--hf-token={SECRETS[0]}", "--port=1"]
    made[0]["client"]["command"] = ["vllm", f"--header=Authorization: Bearer {SECRETS[1]}"]
    made[1] |= crashed(f"clone of https://user:{SECRETS[3]}@host/x failed with {SECRETS[2]}")
    page = make_report(tmp_path, made)
    for path in (page, page.with_name("provenance.json")):
        text = path.read_text()
        assert not [secret for secret in SECRETS if secret in text]
        assert "--port=1" in text
        assert "DEBUG" in text


def test_settings_that_only_sound_secret_are_shown() -> None:
    """Numbers of tokens, tokenizers and key files' paths are no secrets."""
    words = ["--max-num-batched-tokens=8192", "--tokenizer", "/models/x", "--long-prefill-token-threshold=4", "--seed"]
    assert hide_secrets(words) == words


def test_nothing_measured_gives_a_page(tmp_path: Path) -> None:
    """With published curves alone the page says that nothing was measured, and how many points are missing."""
    text = make_report(tmp_path, [], kinds=["output_throughput"], missing=3).read_text()
    assert "Nothing of this experiment is measured" in text
    assert "3 points are not measured yet" in text
    assert Parsed(text).open == []


def test_a_reason_that_the_configuration_accepts_is_told(tmp_path: Path) -> None:
    """A point that counts like any other still has its doubt in the report, and the report names the mode."""
    reason = {"code": "preemptions", "message": "Three requests.", "value": 3.0, "threshold": 0.0, "action": "accept"}
    one = record(1, 2, validity={"verdict": "accepted", "reasons": [reason]})
    page = make_report(tmp_path, [one])
    doubts = embedded(page)["tables"]["doubts"]
    assert column(doubts, "verdict") == ["accepted"]
    assert column(doubts, "found") == ["Three requests. Accepted by the configuration."]
    assert "Benchmark mode: paper." in page.read_text()


def test_every_reason_code_is_explained() -> None:
    """docs/validity.md says of each code of the gate when it is found, why that matters and what to do."""
    known = meanings()
    for code in (*REFUSING, *FLAGGING):
        assert all((known[code].found_when, known[code].why, known[code].remedy)), code
        assert not re.search(r"[*`]|\]\(", known[code].why), code


def test_without_its_documents_a_report_still_explains_failures(tmp_path: Path) -> None:
    """A copy of the workflow without docs/ has no words for the gate's codes, and those of failures all the same."""
    known = meanings(tmp_path / "validity.md")
    assert "warm_cache" not in known
    assert known["crash"].remedy


def test_data_block_holds_no_markup() -> None:
    """JSON in the page has none of the characters at which HTML or old JavaScript ends, and reads back as it was."""
    value = {"</script>": "<!-- & \u2028\u2029"}
    assert not set(json_block(value)) & set("<>&\u2028\u2029")
    assert json.loads(json_block(value)) == value


@pytest.mark.parametrize(
    ("value", "text"), [(4311.4, "4,311"), (103.25, "103.2"), (12.5, "12.50"), (8, "8"), (0.05, "0.05")]
)
def test_numbers_are_for_people(value: float, text: str) -> None:
    """Numbers have as many decimals as tell something."""
    assert number(value) == text


def test_damaged_provenance_is_one_error(tmp_path: Path) -> None:
    """A file that is no provenance is told with its name and what to do."""
    path = tmp_path / "provenance.json"
    for text in ("{", '{"schema": 99}', "[]"):
        path.write_text(text)
        with pytest.raises(BerthError, match=r"provenance\.json: .*make the report again"):
            read_provenance(path)
