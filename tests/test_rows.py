"""Rows that are picked and placed are those that indexing would pick and place."""

from __future__ import annotations

import pytest
import torch

from visuomotor import rows


def _images(count: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, *shape), generator=generator).to(dtype)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 5, 5)])
def test_as_indexing_does(shape, dtype):
    store, ids = _images(9, shape, dtype), torch.tensor([7, 0, 3])
    torch.testing.assert_close(rows.take(store, ids), store[ids], rtol=0.0, atol=0.0)
    size = shape[0] * shape[1] * shape[2]
    for new in (
        _images(3, shape, dtype),
        _images(3, shape[::-1], dtype).permute(0, 3, 2, 1),
        _images(8, shape, dtype)[5:],
        _images(4, shape, dtype).flatten()[3 : 3 + 3 * size].view(3, *shape),  # amid a word
    ):
        expected, placed = store.clone(), store.clone()
        expected[ids] = new
        rows.put(placed, ids, new)
        torch.testing.assert_close(placed, expected, rtol=0.0, atol=0.0)


def test_none_are_none():
    store = _images(4, (3, 8, 8), torch.uint8)
    before, none = store.clone(), torch.zeros(0, dtype=torch.int64)
    assert rows.take(store, none).shape == (0, 3, 8, 8)
    rows.put(store, none, store[:0])
    assert torch.equal(store, before)
