"""The types of the configuration; parse.py makes them from YAML, once."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

from berth.access_settings import Access
from berth.stopping import Asked

if TYPE_CHECKING:
    from berth.analysis import CompareSettings, CrossCheckSettings, StatisticsSettings
    from berth.clienttool import ClientTool
    from berth.coordinates import Level, Rate
    from berth.kubernetes import Kubernetes


@dataclass(frozen=True)
class Model:
    """A Hugging Face repository at a pinned commit, or a model that is generated from a seed."""

    name: str
    source: Literal["hub", "generate"]
    repo: str
    revision: str | None = None
    description: str = ""
    licence: str = ""
    gated: bool = False
    weights_bytes: int = 0
    allow_patterns: tuple[str, ...] = ()
    ignore_patterns: tuple[str, ...] = ()
    seed: int = 0
    vocab_size: int = 4096
    hidden_size: int = 128
    layers: int = 2

    @property
    def identity(self) -> dict[str, Any]:
        """What makes it this model: part of every spec."""
        if self.source == "hub":
            return {"repo": self.repo, "revision": self.revision}
        return {
            "repo": self.repo,
            "generated": {
                "seed": self.seed,
                "vocab_size": self.vocab_size,
                "hidden_size": self.hidden_size,
                "layers": self.layers,
            },
        }


@dataclass(frozen=True)
class Dataset:
    """What the requests hold.

    ShareGPT's format from the hub (pinned by commit and SHA-256) or generated from a seed; prompts of random tokens of
    fixed lengths; or a user's own lines of JSON, of which `sha256` is the file's.
    """

    name: str
    source: Literal["hub", "generate", "random", "jsonl"]
    description: str = ""
    repo: str = ""
    filename: str = ""
    revision: str = ""
    sha256: str = ""
    count: int = 0
    seed: int = 0
    scale: float = 1.0
    input_tokens: int = 0
    output_tokens: int = 0
    path: str = ""

    @property
    def identity(self) -> dict[str, Any]:
        """What makes it this dataset: part of every spec. berth.bench reads from it what the client is told."""
        if self.source == "hub":
            return {"name": self.name, "repo": self.repo, "filename": self.filename, "sha256": self.sha256}
        if self.source == "random":
            lengths = {"input_tokens": self.input_tokens, "output_tokens": self.output_tokens}
            return {"name": self.name, "random": lengths}
        if self.source == "jsonl":
            return {"name": self.name, "jsonl": {"sha256": self.sha256, "output_tokens": self.output_tokens}}
        return {"name": self.name, "generated": {"count": self.count, "seed": self.seed, "scale": self.scale}}

    @property
    def file(self) -> str:
        """The name of its file below results/datasets/NAME, with the ending that vLLM's client expects."""
        return {"random": "random.json", "jsonl": "prompts.jsonl"}.get(self.source, "sharegpt.json")

    @property
    def of_rules(self) -> dict[str, Any]:
        """What the rule that fetches it is told: the fields, without later ones that its kind has not.

        Snakemake runs a rule again when its parameters change, and a new Berth must fetch nothing again.
        """
        values = asdict(self)
        later = ("input_tokens", "output_tokens", "path")
        return {name: value for name, value in values.items() if name not in later or value}


# In the parameters of every push and stage from the first Berth on.
_FIRST_STORE_FIELDS = frozenset({"kind", "bucket", "endpoint_url", "region", "prefix", "addressing_style"})


@dataclass(frozen=True)
class Store:
    """The object store of a platform."""

    kind: Literal["embedded", "s3"]
    bucket: str
    endpoint_url: str = ""
    region: str = "us-east-1"
    prefix: str = ""
    addressing_style: Literal["auto", "path", "virtual"] = "auto"
    results_prefix: str = "berth-results"
    unsigned: bool = False
    engine: Literal["auto", "wire", "boto3"] = "auto"
    connections: int | None = None
    part_mib: int | None = None
    max_bandwidth_mib_s: float | None = None
    durable: bool = True
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    @property
    def of_rules(self) -> dict[str, Any]:
        """What the rules of models are told: the fields, without later ones that nobody has set.

        Snakemake runs a rule again when its parameters change, and a new Berth must move nothing again.
        """
        values = asdict(self)
        # Where points are does not concern them.
        del values["results_prefix"]
        unset = {each.name: each.default for each in fields(self) if each.name not in _FIRST_STORE_FIELDS}
        return {name: value for name, value in values.items() if name not in unset or value != unset[name]}


@dataclass(frozen=True)
class Registry:
    """The site's registry of container images; `ca_file` and `auth_file` are paths, "" where nothing is set."""

    host: str
    prefix: str = ""
    tls_verify: bool = True
    ca_file: str = ""
    auth_file: str = ""


@dataclass(frozen=True)
class RecipeSettings:
    """What a platform sets for one recipe, and why."""

    reason: str
    args: dict[str, Any] = field(default_factory=dict)
    env: dict[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Accelerator:
    """The accelerators of a node."""

    kind: Literal["cuda", "rocm", "cpu"]
    name: str
    per_node: int
    memory_gib: float | None = None


@dataclass(frozen=True)
class Staging:
    """Staging models and images as jobs; `minutes` is the time limit of one."""

    minutes: int
    partition: str = ""
    cpus: int = 4


@dataclass(frozen=True)
class Queue:
    """How a scheduler is asked for jobs, as far as schedulers have it in common."""

    max_minutes: int | None = None
    warn_s: int = 180
    exclusive: bool = False
    extra: tuple[str, ...] = ()
    staging: Staging | None = None


@dataclass(frozen=True)
class Slurm(Queue):
    """What sbatch is told beyond nodes, accelerators and time."""

    account: str = ""
    partition: str = ""
    qos: str = ""
    constraint: str = ""
    gpus: Literal["gres", "gpus-per-node", "none"] = "gres"
    gpu_type: str = ""
    cpus_per_node: int | None = None
    mem_mb_per_node: int | None = None


@dataclass(frozen=True)
class Flux(Queue):
    """What flux batch is told beyond nodes, accelerators and time."""

    queue: str = ""
    bank: str = ""
    cpus_per_node: int | None = None


@dataclass(frozen=True)
class Host:
    """One machine of several that no scheduler gives: `run` is what goes before a command so that it runs there."""

    name: str
    address: str
    run: tuple[str, ...]


@dataclass(frozen=True)
class RuntimeSettings:
    """What a site adds to its container runtime.

    `options` are further ones of `podman run` or `apptainer exec`. `storage` is where Podman keeps images and
    containers, "" for what the site's storage.conf says.
    """

    options: tuple[str, ...] = ()
    storage: str = ""


@dataclass(frozen=True)
class Network:
    """How a site reaches the outside; `ca_bundle` is the path of a PEM file on every node."""

    http_proxy: str = ""
    https_proxy: str = ""
    no_proxy: tuple[str, ...] = ()
    ca_bundle: str = ""


@dataclass(frozen=True)
class NodeModels:
    """Copies of models on the nodes' own disks: where they come from, and whether older ones make room."""

    source: Literal["store", "shared"] = "shared"
    evict: bool = False


@dataclass(frozen=True)
class Power:
    """How a node's power is read: a command, and the parser or the regular expression that finds watts in its output.

    `scope` says for people what is summed, such as "GPUs".
    """

    command: tuple[str, ...]
    scope: str
    parser: Literal["nvidia-smi", "rocm-smi", "amd-smi", "rapl", ""] = ""
    pattern: str = ""
    interval_s: float = 5.0


@dataclass(frozen=True)
class Platform:
    """One cluster."""

    name: str
    label: str
    accelerator: Accelerator
    nodes: int
    scheduler: Literal["local", "slurm", "flux", "kubernetes"]
    runtime: Literal["process", "podman", "apptainer", "kubernetes"]
    models_dir: str
    images_dir: str
    scratch_dir: str
    store: Store
    host: str
    ports: tuple[int, int]
    recipes: dict[str, RecipeSettings] = field(default_factory=dict)
    description: str = ""
    slurm: Slurm | None = None
    flux: Flux | None = None
    interface: str = ""
    hosts: tuple[Host, ...] = ()
    registry: Registry | None = None
    container: RuntimeSettings = field(default_factory=RuntimeSettings)
    modules: tuple[str, ...] = ()
    network: Network | None = None
    kubernetes: Kubernetes | None = None
    access: Access = field(default_factory=Access)
    node_models_dir: str = ""
    node_models: NodeModels | None = None
    power: Power | None = None

    @property
    def node_copies(self) -> dict[str, Any] | None:
        """What a sweep is told of copies on nodes, as plain values; None where models are served from models_dir."""
        if self.node_models is None:
            return None
        return {"dir": self.node_models_dir, **asdict(self.node_models), "store": asdict(self.store)}

    @property
    def queue(self) -> Queue | None:
        """How its scheduler is asked for jobs; None where there is no scheduler that takes jobs."""
        return self.slurm or self.flux


@dataclass(frozen=True)
class Deployment:
    """Model x recipe x platform, with its parallelism and serving arguments."""

    name: str
    model: str
    recipe: str
    platform: str
    version: str
    nodes: int = 1
    client_nodes: Literal[0, 1] = 0
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    args: dict[str, Any] = field(default_factory=dict)
    env: dict[str, str | None] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    reason: str = ""

    @property
    def job_nodes(self) -> int:
        """Nodes of the job: those of the server, and the client's own."""
        return self.nodes + self.client_nodes


@dataclass(frozen=True)
class Benchmark:
    """What is asked of a server."""

    name: str
    dataset: str
    num_prompts: int
    seed: int
    concurrency: tuple[int, ...] = ()
    request_rates: tuple[Rate, ...] = ()
    max_concurrency: int | None = None
    request_rate: float | Literal["inf"] = "inf"
    temperature: float | None = 0.0
    ignore_eos: bool = False
    warm_up_prompts: int = 16
    mode: Literal["paper", "clean"] | None = None
    client: str = "vllm"
    seed_per_point: bool = False
    validity: dict[str, Any] = field(default_factory=dict)
    goodput: dict[str, float] = field(default_factory=dict)
    stop_when: dict[str, Any] = field(default_factory=dict)
    refine: dict[str, Any] = field(default_factory=dict)

    @property
    def levels(self) -> tuple[Level, ...]:
        """What is swept, rising: levels of concurrency, or request rates."""
        return self.request_rates or self.concurrency

    @property
    def asked(self) -> Asked:
        """What it asks of each run."""
        return Asked(self.levels, self.stop_when, self.refine)


@dataclass(frozen=True)
class Experiment:
    """Deployments x a benchmark x a number of runs."""

    name: str
    title: str
    deployments: tuple[str, ...]
    benchmark: str
    runs: dict[str, int]
    restarts: int = 1
    published: tuple[str, ...] = ()
    validity: dict[str, Any] = field(default_factory=dict)

    def validity_over(self, benchmark: Benchmark) -> dict[str, Any]:
        """The validity of a benchmark in this experiment: each threshold, and each action, that is set here wins."""
        actions = {**benchmark.validity.get("actions", {}), **self.validity.get("actions", {})}
        return {**benchmark.validity, **self.validity, **({"actions": actions} if actions else {})}


@dataclass(frozen=True)
class SweepSettings:
    """How long a sweep waits, in seconds, and how its client runs."""

    stall_s: float = 600.0
    point_stall_s: float = 300.0
    stop_grace_s: float = 20.0
    lease_stale_s: float = 120.0
    client_mode: Literal["auto", "warm", "process"] = "auto"


@dataclass(frozen=True)
class ServiceSettings:
    """How served deployments are kept up: see docs/serve.md."""

    minutes: int = 1440
    margin_s: float = 300.0
    drain_s: float = 60.0
    quick_s: float = 300.0
    backoff_s: float = 10.0
    backoff_max_s: float = 1800.0
    restarts: int = 50
    poll_s: float = 5.0
    check_s: float = 5.0
    unhealthy_s: float = 120.0


@dataclass(frozen=True)
class Config:
    """The whole configuration."""

    platform: str
    models: dict[str, Model]
    datasets: dict[str, Dataset]
    platforms: dict[str, Platform]
    deployments: dict[str, Deployment]
    benchmarks: dict[str, Benchmark]
    experiments: dict[str, Experiment]
    sweep: SweepSettings
    services: ServiceSettings
    clients: dict[str, ClientTool] = field(default_factory=dict)
    results: str = "results"
    config_dir: str = "config"
    published_dir: str = "data/published"
    partial: bool = False
    select: tuple[str, ...] = ()
    deployment: str = ""
    until: str = ""
    share: tuple[str, ...] = ()
    dry_run: bool = False
    delete_extra: bool = False
    model: str = ""
    point: str = ""
    quick: bool = False
    bundle: str = ""
    bundle_wheels: bool = True
    experiment: str = ""
    against: str = ""
    only_runs: tuple[int, ...] = ()
    baseline: str = ""
    imports: str = ""
    compare: CompareSettings | None = None
    statistics: StatisticsSettings | None = None
    cross_check: CrossCheckSettings | None = None
