"""Which tests run by default: quick ones that need no GPU. The others say why they are skipped."""

from __future__ import annotations

import pytest

OPT_IN = {
    "slow": "takes minutes; run with: make test ARGS='-m slow'",
    "gpu": "needs a CUDA device; run with: make test ARGS='-m gpu'",
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skips what `-m` did not ask for, and `gpu` wherever there is no device."""
    chosen = config.getoption("markexpr") != ""
    for item in items:
        for marker, why in OPT_IN.items():
            if item.get_closest_marker(marker) is not None and not chosen:
                item.add_marker(pytest.mark.skip(reason=f"{marker}: {why}"))
        if chosen and item.get_closest_marker("gpu") is not None and not _has_cuda():
            item.add_marker(pytest.mark.skip(reason="gpu: torch finds no CUDA device"))


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()
