"""What can be checked of a point that another tool measured: the validity gate's rules, as far as its file goes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from berth.delivered import delivered_fraction
from berth.validity import FLAGGING, REFUSING, Observed, Reason, Thresholds, judge

if TYPE_CHECKING:
    from berth.reading import Reading

# Reasons beyond the gate's own that refuse a point: the tool, or the file, says that it is none.
_TOLD = ("run_cancelled", "told_crashed", "told_failed", "told_not_run")
# Throughput times duration may differ by so much from the tokens: tools round, and differ in where a run ends.
_MISMATCH = 0.01


def doubts(reading: Reading, concurrency: int) -> dict[str, Any]:
    """The `validity` of an imported point: verdict, reasons, and which rules could and could not be applied."""
    values = reading.values
    completed, prompts = values.get("completed"), values.get("num_prompts")
    result = {
        "completed": completed,
        "total_output_tokens": values.get("total_output_tokens"),
        "duration": values.get("duration_s"),
    }
    server = reading.server_tokens
    applied = {
        "failed_requests": completed is not None and prompts is not None,
        "zero_tokens": values.get("total_output_tokens") is not None,
        "short_run": values.get("duration_s") is not None,
        "concurrency_not_delivered": delivered_fraction(result, reading.requests, concurrency) is not None,
        "token_mismatch": server is not None and values.get("total_output_tokens") is not None,
    }
    seen = Observed(
        result=result,
        requests=reading.requests,
        concurrency=concurrency,
        num_prompts=int(prompts) if prompts is not None else int(completed or 0),
        request_rate=_rate(reading.result.get("request_rate")),
        server_metrics={"generation_tokens": server} if server is not None else None,
    )
    reasons = [reason for reason in judge(seen, Thresholds()).reasons if applied.get(reason.code)]
    reasons += [Reason(code, message) for code, message in reading.reasons]
    rate, tokens, duration = (
        values.get(name) for name in ("output_throughput_tok_s", "total_output_tokens", "duration_s")
    )
    applied["throughput_mismatch"] = bool(rate and tokens and duration)
    if rate and tokens and duration:
        gap = abs(rate * duration / tokens - 1)
        if gap > _MISMATCH:
            message = f"{rate:.6g} tokens/s over {duration:.6g} s are not {tokens:.0f} tokens: {gap:.1%} apart."
            reasons.append(Reason("throughput_mismatch", message, gap, _MISMATCH))
    if reading.incomplete:
        message = f"{reading.incomplete} requests were cut off at the end; they count as neither answered nor failed."
        reasons.append(Reason("requests_cut_off", message, reading.incomplete, 0))
    refused = any(reason.code in (*REFUSING, *_TOLD) for reason in reasons)
    every = dict.fromkeys((*REFUSING, *FLAGGING, *applied))
    return {
        "verdict": "refused" if refused else "imported",
        "reasons": [
            {"code": each.code, "message": each.message, "value": each.value, "threshold": each.threshold}
            for each in reasons
        ],
        "checked": [code for code in every if applied.get(code)],
        "not_checked": [code for code in every if not applied.get(code)],
    }


def _rate(value: Any) -> float:
    """The request rate of vLLM's client, which writes "inf"; infinite where nothing is said."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.inf
