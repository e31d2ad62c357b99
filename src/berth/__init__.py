"""Berth deploys containerised LLM inference servers on HPC clusters and benchmarks them."""

__version__ = "0.1.0"
