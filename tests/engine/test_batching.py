"""Photographs as tensors, in batches (unseg/engine/batching.py)."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from unseg.engine import batching


def test_to_tensor_normalises_by_channel() -> None:
    pixels = np.array([[[0, 255, 51]]], np.uint8)
    expected = [(0 - 0.485) / 0.229, (1 - 0.456) / 0.224, (0.2 - 0.406) / 0.225]
    for source in (pixels, Pillow.fromarray(pixels)):
        tensor = batching.to_tensor(source)
        assert tensor.shape == (3, 1, 1)
        torch.testing.assert_close(tensor.flatten(), torch.tensor(expected))


def test_pad_to_adds_at_the_bottom_and_right() -> None:
    tensor = torch.ones(3, 5, 7)
    padded = batching.pad_to(tensor, 4)
    assert padded.shape == (3, 8, 8)
    assert padded[:, :5, :7].eq(1).all()
    assert padded.sum() == tensor.sum()
    assert batching.pad_to(tensor, 1).equal(tensor)


def load(item: tuple[int, int, int]) -> torch.Tensor:
    return torch.full((3, item[1], item[2]), float(item[0]))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=20), st.integers(1, 60))
def test_batches_hold_each_item_once_with_items_of_its_shape(sizes: list[tuple[int, int]], pixels: int) -> None:
    items = [(i, h, w) for i, (h, w) in enumerate(sizes)]
    loaded = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNSEG_WORKERS", "0")
        for members, batch in batching.batches_by_shape(items, lambda i: i[1:], load, pixels):
            assert batch.shape == (len(members), 3, *members[0][1:])
            assert batch[:, 0, 0, 0].tolist() == [m[0] for m in members]
            assert len(members) == 1 or len(members) * members[0][1] * members[0][2] <= pixels
            loaded += members
    assert sorted(loaded) == items
