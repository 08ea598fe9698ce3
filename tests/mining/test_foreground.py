"""The foreground head (unseg/mining/foreground.py): coarse masks, training, its file, and the masks that it makes."""

import math
from pathlib import Path
from typing import Any

import factories
import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from unseg.core.console import InputError
from unseg.core.image_index import ImageRecord
from unseg.engine.checkpoint import Checkpoint
from unseg.engine.training import read_weights, write_weights
from unseg.mining import foreground
from unseg.mining.foreground import Foreground
from unseg.models import facets, vit
from unseg.models.weights import RANDOM_INIT

BACKBONE = vit.Backbone(RANDOM_INIT, 8, 32, 2, 2)
GRID = (3, 3)

pytestmark = pytest.mark.usefixtures("scratch_on_cpu")


def setting(**changed: Any) -> Foreground:
    values = {"heads": [], "size": 48, "facet": "tokens", "center": True, "threshold": 0.0, "corners": False, "batch": 4}
    values |= {"iterations": 40, "coarse": 0.5, "lr": 0.05, "weight_decay": 0.0, "precision": "fp32"}
    return factories.group("foreground", Foreground, **(values | changed))


def photographs(folder: Path, count: int = 6, size: int = 48) -> list[ImageRecord]:
    """Grey noise with a bright square in the middle."""
    rng, images = np.random.default_rng(0), []
    for n in range(count):
        pixels = rng.integers(90, 110, (size, size, 3), np.uint8)
        pixels[16:32, 16:32] = 250
        Pillow.fromarray(pixels).save(folder / f"{n}.png")
        images.append(ImageRecord(n, f"{n}.png", size, size, "train"))
    return images


def learn(folder: Path, p: Foreground, count: int = 6) -> tuple[Any, list[dict[str, float]]]:
    with Checkpoint("foreground", [p], []) as checkpoint:
        return foreground.train(p, vit.load(BACKBONE), str(folder), photographs(folder, count), 0, checkpoint)


def test_a_log_shows_masks_and_changes_no_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head, values = learn(tmp_path, setting())
    monkeypatch.setenv("UNSEG_LOGDIR", str(tmp_path / "logs"))
    logged, again = learn(tmp_path, setting())
    assert again == values
    assert torch.equal(head.weight, logged.weight)
    assert torch.equal(head.bias, logged.bias)
    shown = factories.logged_pictures(tmp_path / "logs/foreground")
    assert set(shown) == {f"pictures/{i}.png" for i in (0, 2, 3, 5)}
    (start, first), (end, last) = shown["pictures/0.png"]
    assert (start, end) == (0, 40)
    assert first.shape == last.shape == (128, 256, 3)
    assert (first[:, :128] == last[:, :128]).all()  # the coarse mask
    assert (first[:, 128:] != last[:, 128:]).any()


# ---- coarse masks


def coarse(logits: list[float], classes: list[int], **changed: Any) -> list[int]:
    """One head; attention logits of nine patches, whose features are one of two directions."""
    keys = torch.tensor(logits).view(1, 1, 9, 1)
    features = torch.eye(2)[classes][None, None]
    values: dict[str, Any] = {"center": False, "threshold": 0.3, "corners": False} | changed
    return foreground.coarse_masks(torch.ones(1, 1, 1), keys, features, GRID, **values)[0].int().tolist()


def test_what_resembles_the_least_attended_patch_is_background() -> None:
    assert coarse([3, 2, 1, 0, 3, 3, 3, 3, 3], [1, 0, 1, 0, 1, 1, 0, 1, 1]) == [1, 0, 1, 0, 1, 1, 0, 1, 1]
    assert coarse([3, 2, 0, 1, 3, 3, 3, 3, 3], [1, 0, 1, 0, 1, 1, 0, 1, 1]) == [0, 1, 0, 1, 0, 0, 1, 0, 0]


def test_the_threshold_of_otsu_splits_each_image() -> None:
    angles = torch.tensor([0.0, 0.1, 0.2, 0.3, 1.2, 1.3, 0.2, 1.2, 0.1])
    features, keys = torch.stack([angles.cos(), angles.sin()], 1)[None, None], torch.arange(9.0).view(1, 1, 9, 1)
    got = foreground.coarse_masks(torch.ones(1, 1, 1), keys, features, GRID, False, "otsu", False)
    assert got[0].tolist() == (angles > 1).tolist()


def test_a_mask_with_most_corners_is_inverted() -> None:
    two, three = [1, 0, 1, 0, 0, 0, 0, 0, 0], [1, 0, 1, 0, 0, 0, 1, 0, 0]
    seed = [3.0, 3, 3, 0, 3, 3, 3, 3, 3]  # the least attended patch is of class 0
    assert coarse(seed, two, corners=True) == two
    assert coarse(seed, three, corners=False) == three
    assert coarse(seed, three, corners=True) == [1 - x for x in three]


def test_a_sparse_head_outweighs_one_that_attends_everywhere() -> None:
    # head a attends to one patch and little to patch 1; head b to six patches alike, and little to the three last ones
    a = torch.tensor([4.0, -3, 0, 0, 0, 0, 0, 0, 0])
    b = torch.tensor([2.0, 2, 2, 2, 2, 2, 0, 0.1, 0.1])
    keys = torch.stack([a, b])[None, :, :, None]
    attention = torch.stack([a.softmax(0), b.softmax(0)])
    weights = torch.tensor([math.log(7 / 1), math.log(7 / 6)])  # patches above a ninth: 1 and 6
    assert attention.mean(0).argmin() == 6
    assert (weights[:, None] * attention).sum(0).argmin() == 1
    mask = foreground.coarse_masks(torch.ones(1, 2, 1), keys, torch.eye(9)[None, None], GRID, False, 0.3, False)[0]
    assert mask.int().tolist() == [1, 0, 1, 1, 1, 1, 1, 1, 1]


def test_tokens_and_masks_of_an_image_and_of_its_mirror_image(tmp_path: Path) -> None:
    images, model = photographs(tmp_path, 2), vit.load(BACKBONE)
    for p in (setting(), setting(facet="keys", threshold=0.2, size=44)):  # rounded up to 48
        data = foreground.read_tokens(model, p, str(tmp_path), images)
        assert (data.tokens.shape, data.tokens.dtype, data.masks.shape) == ((2, 2, 32, 6, 6), torch.float16, (2, 2, 6, 6))
        pixels = torch.from_numpy(np.array(Pillow.open(tmp_path / "1.png"))).permute(2, 0, 1)[None] / 255
        mean, std = (torch.tensor(x).view(3, 1, 1) for x in vit.normalisation(model))
        with torch.inference_mode():
            read = facets.read(model, ((pixels - mean) / std).flip(3), "tokens")
            features = read.features if p.facet == "tokens" else read.keys
            masks = foreground.coarse_masks(read.query, read.keys, features, (6, 6), p.center, p.threshold, False)
        assert torch.allclose(data.tokens[1, 1].float().flatten(1).T, read.features[0, 0], atol=5e-3)
        assert data.masks[1, 1].flatten().tolist() == masks[0].tolist()
        x, y = data[1, 3]
        mirrored = int(torch.equal(x, data.tokens[1, 1].float()))
        assert torch.equal(x, data.tokens[1, mirrored].float())
        assert torch.equal(y, data.masks[1, mirrored].float())


# ---- training and the file


def test_the_head_learns_the_coarse_masks_then_its_own_and_is_repeatable(tmp_path: Path) -> None:
    head, values = learn(tmp_path, setting())
    assert len(values) == 40
    assert values[19]["loss"] < 0.5 * values[0]["loss"]
    again, repeated = learn(tmp_path, setting())
    assert repeated == values
    assert torch.equal(head.weight, again.weight)
    _, longer = learn(tmp_path, setting(coarse=1.0))
    assert longer[:20] == values[:20]
    assert longer[20:] != values[20:]


def test_own_masks_are_smoothed() -> None:
    scores = torch.full((1, 5, 5), -1.0)
    scores[0, 2, 2] = 2  # one patch among others of probability 0.27: too few
    assert foreground.own_masks(scores).sum() == 0
    scores[0, :, :3] = 1
    assert foreground.own_masks(scores)[0].tolist() == [[1, 1, 1, 0, 0]] * 5


def test_no_photograph(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no training image; add photographs"):
        learn(tmp_path, setting(), 0)


def test_a_head_is_read_back_and_others_are_refused(tmp_path: Path) -> None:
    model, head = vit.load(BACKBONE), torch.nn.Conv2d(32, 1, 1)
    foreground.save(tmp_path / "a", head)
    assert torch.equal(foreground.load(tmp_path / "a", model).weight, head.weight)
    assert read_weights(tmp_path / "a", foreground.KIND)[1]["width"] == 32
    foreground.save(tmp_path / "b", torch.nn.Conv2d(48, 1, 1))
    with pytest.raises(InputError, match=r"b: its weights are \(1, 48, 1, 1\), and the ViT .* has tokens of 32 channels; train"):
        foreground.load(tmp_path / "b", model)
    write_weights(tmp_path / "c", head, {"kind": "segmenter"})
    with pytest.raises(InputError, match="is a segmenter of unseg, not a foreground head"):
        foreground.load(tmp_path / "c", model)


# ---- masks


def test_masks_are_all_of_the_foreground_or_its_regions_by_size() -> None:
    scores = np.array([[1.0, -1, 1, 1], [-1, -1, 1, 1], [1, 1, -1, -1]])
    large, middle, small = (scores * 0 for _ in range(3))
    large[:2, 2:], middle[2, :2], small[0, 0] = 1, 1, 1
    assert [m.tolist() for m in foreground.masks(scores, 1, False)] == [(scores > 0).tolist()]
    assert [m.tolist() for m in foreground.masks(scores, 1, True)] == [(large > 0).tolist()]
    assert [m.tolist() for m in foreground.masks(scores, 2, False)] == [(large > 0).tolist(), (middle > 0).tolist()]
    assert len(foreground.masks(scores, 9, True)) == 3
    assert foreground.masks(scores, 9, True)[2].tolist() == (small > 0).tolist()
    assert foreground.masks(np.array([[-3.0, -1], [-1, -2]]), 1, False)[0].tolist() == [[False, True], [False, False]]


def test_logits_are_the_convolutions() -> None:
    head, tokens = torch.nn.Conv2d(4, 1, 1), torch.randn(2, 6, 4)
    want = head(tokens.mT.unflatten(2, (2, 3))).flatten(1)
    torch.testing.assert_close(foreground.logits(head, tokens), want)


@pytest.mark.parametrize(("key", "value"), [("coarse", 1.1), ("facet", "values"), ("iterations", 0), ("lr", 0.0)])
def test_settings_out_of_range(key: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"foreground\.{key}"):
        setting(**{key: value})
