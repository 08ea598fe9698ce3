"""Facets averaged over mirror image and scales (unseg/mining/averaging.py)."""

from typing import Any

import factories
import pytest
import torch
from torch.nn import functional as F

from unseg.core.console import InputError
from unseg.mining import averaging
from unseg.mining.affinity import Mining
from unseg.models import facets, vit
from unseg.models.weights import RANDOM_INIT

BACKBONE = vit.Backbone(RANDOM_INIT, 8, 32, 2, 2)


def setting(**changed: Any) -> Mining:
    return factories.group("mine", Mining, **({"precision": "fp32"} | changed))


@pytest.fixture(scope="module")
def model() -> vit.ViT:
    return vit.load(BACKBONE)


@torch.inference_mode()
def test_one_view_is_what_the_vit_gives(model: vit.ViT) -> None:
    x = torch.randn(2, 3, 24, 40)
    for facet in ("keys", "values", "tokens"):
        got, want = averaging.read(model, x, setting(facet=facet, layer=0)), facets.read(model, x, facet, 0)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    head = averaging.read(model, x, setting(method="head", head="models/a.safetensors", facet="keys", layer=0))
    assert torch.equal(head.features, facets.read(model, x, "tokens", -1).features)


@torch.inference_mode()
@pytest.mark.parametrize("facet", ["keys", "tokens"])
def test_mirror_images_are_un_mirrored(model: vit.ViT, facet: str) -> None:
    x, p = torch.randn(1, 3, 24, 40), setting(facet=facet, flip=True)
    got = averaging.read(model, x, p)
    one, other = facets.read(model, x, facet), facets.read(model, x.flip(3), facet)
    swapped = other.features.unflatten(2, (3, 5)).flip(3).flatten(2, 3)
    torch.testing.assert_close(got.features, (one.features + swapped) / 2)
    torch.testing.assert_close(got.query, (one.query + other.query) / 2)
    mirrored = averaging.read(model, x.flip(3), p)  # a mirrored photograph has mirrored facets
    for a, b in ((got.keys, mirrored.keys), (got.features, mirrored.features)):
        torch.testing.assert_close(a.unflatten(2, (3, 5)).flip(3).flatten(2, 3), b)


@torch.inference_mode()
def test_other_scales_come_back_to_the_grid(model: vit.ViT) -> None:
    x = torch.randn(2, 3, 32, 48)
    got = averaging.read(model, x, setting(scales=[1.0, 0.5]))
    half = facets.read(model, F.interpolate(x, (16, 24), mode="bilinear", antialias=True))
    maps = half.keys.permute(0, 1, 3, 2).reshape(2, -1, 2, 3)
    up = F.interpolate(maps, (4, 6), mode="bilinear").reshape(2, 2, 16, 24).permute(0, 1, 3, 2)
    torch.testing.assert_close(got.keys, (facets.read(model, x).keys + up) / 2)
    assert averaging.read(model, x, setting(scales=[0.01, 2.0], flip=True)).features.shape == (2, 2, 24, 16)


def test_larger_views_make_smaller_batches() -> None:
    assert [averaging.pixels(setting(scales=s), 4000) for s in ([1.0], [0.5], [0.5, 2.0])] == [4000, 4000, 1000]


@pytest.mark.parametrize(("key", "value"), [("scales", []), ("scales", [1.0, 0.0]), ("scales", 1.0), ("flip", 1)])
def test_settings_out_of_range(key: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"mine\.{key}"):
        setting(**{key: value})
