"""The descriptor of a crop (unseg/mining/descriptors.py) and the mask in it (unseg/mining/crops.py)."""

from typing import Any

import factories
import numpy as np
import pytest
import timm
import torch
from torch import Tensor
from torch.nn import functional

from unseg.core.masks import encode
from unseg.mining import descriptors
from unseg.mining.crops import Embedding, crop_size, mask_in_crop
from unseg.models import vit

MODELS: dict[str, dict[str, Any]] = {  # plain; four registers; rotary embeddings and registers (Eva)
    "vit_small_patch16_224": {"patch_size": 8},
    "vit_small_patch14_reg4_dinov2": {"patch_size": 8},
    "vit_small_patch16_dinov3": {"patch_size": 8},
}


def embedding(**changes: Any) -> Embedding:
    return factories.group("embed", Embedding, **({"resize": 0, "longest": 1000, "shifts": 1} | changes))


def network(arch: str) -> vit.ViT:
    torch.manual_seed(0)
    size = {"num_classes": 0, "depth": 2, "embed_dim": 48, "num_heads": 3, "img_size": 32, "dynamic_img_size": True}
    return vit.checked(timm.create_model(arch, pretrained=False, **size, **MODELS[arch]), arch).eval()


def pixelwise_mean(tokens: Tensor, inside: np.ndarray, columns: int) -> Tensor:
    """The mean over the pixels inside [H, W], each of which has its patch's token; tokens [N, D] of patches of 8 pixels."""
    total = sum(inside[r, c] * tokens[r // 8 * columns + c // 8] for r, c in np.argwhere(inside > 0))
    mean: Tensor = total / float(inside.sum())
    return mean


def test_the_mask_in_an_unscaled_crop_is_the_mask() -> None:
    mask = np.zeros((9, 11), bool)
    mask[2:7, 3], mask[4, 5:8] = True, True
    assert np.array_equal(mask_in_crop(encode(mask), embedding()), mask[2:7, 3:8])
    assert np.array_equal(mask_in_crop(encode(mask), embedding(region="image")), mask)


def test_the_mask_scales_with_its_crop() -> None:
    mask = np.zeros((30, 40), bool)
    mask[3:20, 5:16] = True  # 17 rows, 11 columns
    mask[3:20, 9:12] = False
    for resize in (5, 13, 33):
        p = embedding(resize=resize)
        inside = mask_in_crop(encode(mask), p)
        assert inside.shape == crop_size(encode(mask), p)
        assert inside.min() >= 0
        assert inside.max() <= 1 + 1e-6
        assert inside.mean() == pytest.approx(8 / 11, abs=0.05)
    blocks = np.kron(np.array([[1, 0], [1, 1]]), np.ones((6, 6))).astype(bool)  # each pixel of the smaller crop is of one kind
    assert np.allclose(mask_in_crop(encode(blocks), embedding(resize=4))[[0, 0, 3, 3], [0, 3, 0, 3]], [1, 0, 1, 1])


def test_where_nothing_is_inside_everything_is() -> None:
    assert np.array_equal(mask_in_crop(encode(np.zeros((5, 7), bool)), embedding(region="image")), np.ones((5, 7)))


@pytest.mark.parametrize("arch", MODELS)
@torch.no_grad()
def test_the_mean_is_that_of_the_pixels_inside(arch: str) -> None:
    """A crop of odd sides, padded to whole patches, in each kind of ViT; registers take no part."""
    model, rng = network(arch), np.random.default_rng(0)
    height, width = 13, 21  # 2 x 3 patches of 8 pixels
    mask = rng.random((1, height, width)) < 0.2
    mask[0, :, 17:] = True
    pixels, inside = torch.zeros(1, 3, 16, 24), torch.zeros(1, 1, 16, 24)
    pixels[..., :height, :width] = torch.from_numpy(rng.normal(size=(3, height, width)).astype(np.float32))
    inside[0, :, :height, :width] = torch.from_numpy(mask.astype(np.float32))
    tokens = model.forward_features(pixels)[0]  # [P + N, D]
    want = pixelwise_mean(tokens[model.num_prefix_tokens :], mask[0].astype(np.float32), 3)
    mean = descriptors.describe(model, pixels, inside, embedding(descriptor="mean"))[0]
    assert torch.allclose(mean, want, atol=1e-5)
    both = descriptors.describe(model, pixels, inside, embedding(descriptor="both"))[0]
    assert torch.allclose(both, torch.cat([functional.normalize(x, dim=0) for x in (tokens[0], want)]), atol=1e-5)
    assert len(both) == descriptors.width(model, embedding(descriptor="both"))
    assert torch.equal(descriptors.describe(model, pixels, None, embedding())[0], tokens[0])  # the paper's, to the bit


@torch.no_grad()
def test_shifts_average_over_positions_of_the_grid() -> None:
    model = network("vit_small_patch16_224")
    pixels, inside = torch.randn(2, 3, 16, 24), (torch.rand(2, 1, 16, 24) < 0.5).float()
    for descriptor in ("cls", "mean"):
        views = []
        for top, left in ((0, 0), (0, 4), (4, 0), (4, 4)):
            rows, columns = 16 + 8 * (top > 0), 24 + 8 * (left > 0)
            x, m = torch.zeros(2, 3, rows, columns), torch.zeros(2, 1, rows, columns)
            x[..., top : top + 16, left : left + 24], m[..., top : top + 16, left : left + 24] = pixels, inside
            views.append(descriptors.describe(model, x, m, embedding(descriptor=descriptor)))
        got = descriptors.describe(model, pixels, inside, embedding(descriptor=descriptor, shifts=2))
        assert torch.allclose(got, torch.stack(views).mean(0), atol=1e-6)
        assert not torch.allclose(got, views[0], atol=1e-3)
