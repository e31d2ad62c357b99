"""What is asked of vLLM's benchmark client, and the exact arguments of `vllm bench serve` that say so."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from berth.coordinates import Rate, plain_rate

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from berth.coordinates import Level
    from berth.recipe import Client


@dataclass(frozen=True)
class BenchSettings:
    """One benchmark without its concurrency.

    `base_url` is the server's, without a path. `request_rate` is in requests per second. `temperature` None leaves
    sampling to the server; 0 is what vLLM 0.9.1 sent by itself. `backend_flag` is the version's name of the flag that
    chooses the protocol (0.9.1: endpoint-type). `extra_args` go last.
    """

    base_url: str
    served_model: str
    tokenizer: str
    dataset_path: Path | None
    dataset_name: str = "sharegpt"
    dataset_args: tuple[str, ...] = ()
    num_prompts: int = 1000
    seed: int = 12345
    backend: str = "openai-chat"
    backend_flag: str = "backend"
    endpoint: str = "/v1/chat/completions"
    request_rate: float | Literal["inf"] = "inf"
    # The most requests in flight where rates are swept; the level is that otherwise.
    max_concurrency: int | None = None
    burstiness: float = 1.0
    temperature: float | None = 0.0
    ignore_eos: bool = False
    percentiles: tuple[float, ...] = (99.0,)
    percentile_metrics: str = "ttft,tpot,itl,e2el"
    extra_args: tuple[str, ...] = ()


def settings_of(
    benchmark: Mapping[str, Any],
    *,
    base_url: str,
    served_model: str,
    tokenizer: Path,
    dataset_path: Path,
    client: Client,
    dataset: Mapping[str, Any],
) -> BenchSettings:
    """The settings of a benchmark of the configuration (config.Benchmark as a mapping) against one server.

    `dataset` is the dataset's identity (config.Dataset), as specs have it.
    """
    rate = benchmark["request_rate"]
    name, arguments = _dataset_arguments(dataset, client)
    return BenchSettings(
        base_url=base_url,
        served_model=served_model,
        tokenizer=str(tokenizer),
        dataset_path=None if name == "random" else dataset_path,
        dataset_name=name,
        dataset_args=arguments,
        num_prompts=benchmark["num_prompts"],
        seed=benchmark["seed"],
        request_rate=math.inf if rate == "inf" else float(rate),
        max_concurrency=benchmark.get("max_concurrency"),
        temperature=benchmark["temperature"],
        ignore_eos=benchmark["ignore_eos"],
        backend_flag=client.backend_flag,
    )


def _dataset_arguments(dataset: Mapping[str, Any], client: Client) -> tuple[str, tuple[str, ...]]:
    """The client's name of the kind of dataset, and what else it is told about it."""
    if "random" in dataset:
        lengths = dataset["random"]
        tokens = (str(lengths["input_tokens"]), "--random-output-len", str(lengths["output_tokens"]))
        return "random", ("--random-input-len", *tokens)
    if "jsonl" in dataset:
        return "custom", client.jsonl_args
    return "sharegpt", ()


def bench_argv(settings: BenchSettings, level: Level, result_path: Path) -> list[str]:
    """The arguments after `vllm bench serve` that measure one point and write the client's JSON to `result_path`.

    A level is a concurrency, under the settings' rate, or a rate, under their maximum concurrency.

    The API key is no argument: the client reads it from OPENAI_API_KEY.
    """
    argv = [f"--{settings.backend_flag}", settings.backend]
    argv += ["--base-url", settings.base_url, "--endpoint", settings.endpoint]
    argv += ["--model", settings.served_model, "--tokenizer", settings.tokenizer]
    argv += ["--dataset-name", settings.dataset_name]
    if settings.dataset_path is not None:
        argv += ["--dataset-path", str(settings.dataset_path)]
    argv += settings.dataset_args
    argv += ["--num-prompts", str(settings.num_prompts), "--seed", str(settings.seed)]
    concurrency = settings.max_concurrency if isinstance(level, Rate) else level
    rate = plain_rate(level) if isinstance(level, Rate) else f"{float(settings.request_rate):g}"
    if concurrency is not None:
        argv += ["--max-concurrency", str(concurrency)]
    argv += ["--request-rate", rate, "--burstiness", f"{settings.burstiness:g}"]
    if settings.temperature is not None:
        argv += ["--temperature", f"{settings.temperature:g}"]
    if settings.ignore_eos:
        argv += ["--ignore-eos"]
    argv += ["--percentile-metrics", settings.percentile_metrics]
    argv += ["--metric-percentiles", ",".join(f"{value:g}" for value in settings.percentiles)]
    argv += ["--save-result", "--save-detailed"]
    argv += ["--result-dir", str(result_path.parent), "--result-filename", result_path.name]
    return [*argv, *settings.extra_args]
