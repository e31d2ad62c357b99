"""Which tests run beside each other when there are several workers (`pytest -n 2 --dist loadgroup`)."""

from __future__ import annotations

import pytest

# Two vLLM servers, or two schedulers, at once are too much for two cores: those tests share a worker, and start first
# because they take longest. All others stay together by file, so that each server of a file starts once.
_ALONE = ("vllm", "slurm")


# First, because xdist reads the groups in the same hook.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        group = "alone" if any(item.get_closest_marker(name) for name in _ALONE) else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: item.get_closest_marker("xdist_group").args[0] != "alone")
