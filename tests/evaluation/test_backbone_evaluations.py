"""CrOC's evaluations of backbones: linear probe, K-means, video (unseg/evaluation/backbones/ and their stages).

Scores against numbers worked out by hand, the propagation against a loop over all pairs of tokens.
"""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import factories
import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow
from torch.utils.data import Dataset

from stages import evaluate_backbone_kmeans, evaluate_backbone_linear, evaluate_backbone_video
from unseg.core.console import InputError
from unseg.engine import batching, training
from unseg.engine.checkpoint import Checkpoint
from unseg.evaluation import probe
from unseg.evaluation.backbones import davis, kmeans, linear, sets, video
from unseg.evaluation.backbones.kmeans import BackboneKmeans
from unseg.evaluation.backbones.linear import BackboneLinear, CropDataset
from unseg.evaluation.backbones.video import BackboneVideo
from unseg.evaluation.probe import Schedule
from unseg.models import vit

SHAPE = vit.Backbone(vit.RANDOM_INIT, patch=8, width=32, depth=2, heads=2)
VOID = 255
RED, GREEN = (220, 40, 30), (30, 180, 60)


def linear_params(**changes: Any) -> BackboneLinear:
    head = {"epochs": 30, "lr_milestone": 25, "batch": 4, "lr": 1.0, "momentum": 0.9, "weight_decay": 0.0}
    values = {"size": 32, "grid": 16, "precision": "fp32", "head": head}
    return factories.group("backbone_linear", BackboneLinear, **(values | changes))


def kmeans_params(**changes: Any) -> BackboneKmeans:
    values = {"size": 32, "grid": 16, "components": 8, "starts": 3, "iterations": 30, "seeds": 2, "precision": "fp32"}
    return factories.group("backbone_kmeans", BackboneKmeans, **(values | changes))


def video_params(**changes: Any) -> BackboneVideo:
    values = {"size": 64, "multiple": 16, "context": 2, "radius": 1, "top": 3, "precision": "fp32"}
    return factories.group("backbone_video", BackboneVideo, **(values | changes))


# ---- DAVIS's scores


def square(top: int, left: int, side: int, size: tuple[int, int] = (100, 100)) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[top : top + side, left : left + side] = True
    return mask


NONE = np.zeros((100, 100), bool)


def test_j_by_hand() -> None:
    assert davis.region_similarity(square(0, 0, 10), square(0, 5, 10), NONE) == 50 / 150
    assert davis.region_similarity(square(0, 0, 10), square(0, 5, 10), square(0, 10, 10)) == 50 / 100  # of what is not void
    assert davis.region_similarity(square(0, 0, 10), square(0, 0, 10), square(0, 5, 10)) == 1  # though both masks reach into void
    assert davis.region_similarity(NONE, NONE, NONE) == 1
    assert davis.region_similarity(square(0, 0, 3), square(0, 0, 3), square(0, 0, 3)) == 1
    assert davis.region_similarity(square(0, 0, 3), NONE, NONE) == 0


def test_contours_by_hand() -> None:
    mask = np.zeros((4, 5), bool)
    mask[1:3, 1:4] = True
    want = ["1111.", "1..1.", "1111.", "....."]  # the outline lies up and to the left of a change
    assert davis.contour(mask).tolist() == [[c == "1" for c in row] for row in want]
    edge = np.zeros((3, 3), bool)
    edge[:, 0] = True  # an object at the border has no contour there, but on its last row
    assert davis.contour(edge).tolist() == [[True, False, False]] * 3


def test_f_by_hand() -> None:
    at = np.arange(100)
    left = np.broadcast_to(at < 10, (100, 100))  # diagonal 141.4: contours may be 2 pixels off
    assert davis.contour_accuracy(left, np.broadcast_to(at < 12, (100, 100)), NONE) == 1
    assert davis.contour_accuracy(left, np.broadcast_to(at < 13, (100, 100)), NONE) == 0
    step = np.where(at[:, None] < 50, at < 10, at < 30)
    # drawn: 49 at column 9, 21 on row 49, 50 at column 29; of them 49 + 3 are near. wanted: 100, of them 52 near.
    precision, recall = 52 / 120, 52 / 100
    assert davis.contour_accuracy(left, step, NONE) == pytest.approx(2 * precision * recall / (precision + recall))
    assert davis.contour_accuracy(left, NONE, NONE) == davis.contour_accuracy(NONE, left, NONE) == 0
    assert davis.contour_accuracy(NONE, NONE, NONE) == 1
    below = np.broadcast_to(at[:, None] >= 50, (100, 100))
    assert davis.contour_accuracy(left, step, below) == 1  # what differs is void, and so no part of either mask


def test_statistics_by_hand() -> None:
    values = np.array([1.0, 0.8, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    # quarters end at frames 1, 2.75, 4.5, 6.25 and 8, rounded: 1, 3, 5 (4.5 is rounded up), 6, 8; ends belong to both
    assert davis.statistics(values) == pytest.approx({"mean": 3.9 / 8, "recall": 3 / 8, "decay": 0.8 - 0.2})
    # of three frames the quarters end at 1, 1.5, 2, 2.5 and 3, rounded up: 1, 2, 2, 3, 3
    assert davis.statistics(np.array([1.0, 0.5, 0.2]))["decay"] == pytest.approx(0.75 - 0.2)
    assert davis.statistics(np.array([0.7])) == pytest.approx({"mean": 0.7, "recall": 1, "decay": 0})


def test_the_first_and_the_last_frame_are_not_scored() -> None:
    truth = np.stack([square(0, 0, 10).astype(np.uint8) + 2 * square(50, 50, 20)] * 4)
    guess = truth.copy()
    guess[0] = guess[3] = 0
    assert davis.score_objects(truth, guess).shape == (2, 2, 2)  # objects, J and F, frames 1 and 2
    assert (davis.score_objects(truth, guess) == 1).all()
    guess[2][truth[2] == 2] = 1  # object 2 lost, object 1 grown
    found = davis.summary([davis.score_objects(truth, guess)])
    j = np.array([[1, 100 / 500], [1, 0]])
    assert found["J"]["mean"] == pytest.approx(j.mean())  # type: ignore[index]
    f = davis.score_objects(truth, guess)[:, 1]
    assert f[1].tolist() == [1, 0]
    assert found["J&F"] == pytest.approx((j.mean() + f.mean()) / 2)
    assert found["J"]["recall"] == 0.5  # type: ignore[index]


def test_objects_count_equally_whatever_their_video_params() -> None:
    one, two = np.full((1, 2, 5), 0.9), np.full((2, 2, 8), 0.3)
    assert davis.summary([one, two])["J&F"] == pytest.approx((0.9 + 0.3 + 0.3) / 3)


def sequence(root: Path, name: str, masks: list[np.ndarray], mode: str = "P") -> None:
    for kind in ("JPEGImages", "Annotations"):
        (root / kind / "480p" / name).mkdir(parents=True)
    for i, mask in enumerate(masks):
        pixels = np.where(mask[..., None] > 0, np.uint8(RED), np.uint8(GREEN))
        Pillow.fromarray(pixels).save(root / f"JPEGImages/480p/{name}/{i:05d}.jpg", quality=95)
        Pillow.fromarray(mask.astype(np.uint8)).convert(mode).save(root / f"Annotations/480p/{name}/{i:05d}.png")


def test_davis_2016_and_2017(tmp_path: Path) -> None:
    mask = np.zeros((64, 80), np.uint8)
    mask[10:30, 10:30] = 255
    sequence(tmp_path, "old", [mask] * 3, "L")
    mask[40:50, 40:50] = 1
    sequence(tmp_path, "new", [mask, mask, mask * 0], "L")
    (tmp_path / "list.txt").write_text("old\nnew\n")
    assert [s.name for s in davis.find_sequences(str(tmp_path), "list.txt")] == ["old", "new"]
    new, old = davis.find_sequences(str(tmp_path), "JPEGImages/480p")
    assert (new.name, old.name, len(new.frames)) == ("new", "old", 3)
    assert np.unique(davis.read_masks(old)).tolist() == [0, 1]  # 255 is the object where there is no other
    assert np.unique(davis.read_masks(new)[:2]).tolist() == [0, 1, 255]
    (tmp_path / "Annotations/480p/old/00001.png").unlink()
    with pytest.raises(InputError, match=r"old/00001.png: no such file; each frame of old needs its mask"):
        davis.find_sequences(str(tmp_path), "list.txt")
    (tmp_path / "list.txt").write_text("../../etc\n")
    with pytest.raises(InputError, match="leads out of"):
        davis.find_sequences(str(tmp_path), "list.txt")
    sequence(tmp_path, "empty", [mask * 0] * 3, "L")
    (tmp_path / "list.txt").write_text("empty\n")
    with pytest.raises(InputError, match="no object in it"):
        davis.read_masks(davis.find_sequences(str(tmp_path), "list.txt")[0])


# ---- propagation


def carried(target: np.ndarray, sources: np.ndarray, labels: np.ndarray, p: BackboneVideo) -> np.ndarray:
    """The specification, token by token."""
    h, w, _ = target.shape
    out = np.zeros((h, w, labels.shape[-1]))
    for y, x in np.ndindex(h, w):
        near = [
            (math.exp(float(target[y, x] @ sources[r, v, u]) / p.temperature), labels[r, v, u])
            for r, v, u in np.ndindex(len(sources), h, w)
            if abs(v - y) <= p.radius and abs(u - x) <= p.radius
        ]
        least = sorted(weight for weight, _ in near)[-min(p.top, len(near))]
        kept = [(weight, label) for weight, label in near if weight >= least]
        out[y, x] = sum(weight * label for weight, label in kept) / sum(weight for weight, _ in kept)
    return out


@pytest.mark.parametrize(
    ("h", "w", "frames", "changed"), [(4, 5, 1, {}), (3, 6, 3, {"top": 5, "radius": 2}), (2, 2, 2, {"top": 50})]
)
def test_labels_come_from_the_most_similar_tokens_nearby(h: int, w: int, frames: int, changed: dict[str, Any]) -> None:
    g = torch.Generator().manual_seed(0)
    target, sources = torch.randn(h, w, 6, generator=g).double(), torch.randn(frames, h, w, 6, generator=g).double()
    target, sources = (t / t.norm(dim=-1, keepdim=True) for t in (target, sources))
    labels = torch.randn(frames, h, w, 3, generator=g).double().softmax(-1)
    got = video.propagate_to(target, sources, labels, video_params(**changed))
    assert np.allclose(got, carried(target.numpy(), sources.numpy(), labels.numpy(), video_params(**changed)), atol=1e-12)
    assert torch.allclose(got.sum(-1), torch.ones(h, w).double())


def test_equally_similar_tokens_all_count() -> None:
    same = torch.ones(1, 3, 3, 1)
    labels = torch.eye(9).view(1, 3, 3, 9)
    got = video.propagate_to(same[0], same, labels, video_params(top=1))
    assert torch.allclose(got[1, 1], torch.full((9,), 1 / 9))
    assert torch.allclose(got[0, 0], torch.tensor([1, 1, 0, 1, 1, 0, 0, 0, 0]) / 4)


def test_the_context_is_the_first_frame_and_the_last_few(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def spy(target: Any, sources: Any, labels: Any, p: Any) -> Any:
        seen.append((target.item(), sources.flatten().tolist(), labels.flatten().tolist()))
        return 10 * target

    monkeypatch.setattr(video, "propagate_to", spy)
    frames = [torch.full((1, 1, 1), float(i)) for i in range(5)]
    list(video.propagate(iter(frames), torch.full((1, 1, 1), -1.0), video_params(context=2)))
    assert seen == [
        (1, [0], [-1]),
        (2, [0, 1], [-1, 10]),
        (3, [0, 1, 2], [-1, 10, 20]),
        (4, [0, 2, 3], [-1, 20, 30]),
    ]
    seen.clear()
    list(video.propagate(iter(frames[:3]), torch.full((1, 1, 1), -1.0), video_params(context=0)))
    assert [s[1] for s in seen] == [[0], [0]]


def test_each_label_is_stretched_before_the_largest_is_taken() -> None:
    soft = torch.tensor([[[0.8, 0.2], [0.7, 0.3]]])  # [1, 2, 2]: 0.3 is the most that label 1 has, and so 1
    assert video.upsample(soft, 2, (2, 4)).tolist() == [[0, 0, 1, 1]] * 2
    gone = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    assert not video.upsample(gone, 2, (2, 4)).any()


@pytest.mark.parametrize(
    ("size", "want"), [((480, 854), (480, 832)), ((854, 480), (832, 480)), ((1080, 1920), (480, 832)), ((480, 480), (480, 448))]
)
def test_the_longer_side_is_cut_to_a_multiple(size: tuple[int, int], want: tuple[int, int]) -> None:
    assert video.input_size(size, video_params(size=480, multiple=64)) == want


# ---- sets


def halves(size: tuple[int, int], at: int, values: tuple[int, int] = (0, 1)) -> tuple[np.ndarray, np.ndarray]:
    """A photograph, red left of column `at` and green right of it, and its mask."""
    mask = np.full(size, values[1], np.uint8)
    mask[:, :at] = values[0]
    left = (np.arange(size[1]) < at)[None, :, None]
    return np.broadcast_to(np.where(left, np.uint8(RED), np.uint8(GREEN)), (*size, 3)).copy(), mask


@pytest.fixture
def voc(tmp_path: Path) -> str:
    for folder in ("JPEGImages", "SegmentationClass", "lists"):
        (tmp_path / folder).mkdir()
    stems = []
    for i, at in enumerate((16, 24, 12, 28, 20, 16)):
        photo, mask = halves((32 + 4 * i, 40), at, (0, 3))
        mask[0] = VOID
        stems.append(f"p{i}")
        Pillow.fromarray(photo).save(tmp_path / f"JPEGImages/p{i}.jpg", quality=95)
        Pillow.fromarray(mask).save(tmp_path / f"SegmentationClass/p{i}.png")
    (tmp_path / "lists/train.txt").write_text("\n".join(stems[:4]))
    (tmp_path / "lists/val.txt").write_text("\n".join(stems[3:]))
    return str(tmp_path)


def coco(root: Path) -> None:
    """Two photographs with a panoptic and a stuff mask: a person (7, super-class person), a dog (9), grass (120), sky (130)."""
    for folder in ("val2017", "annotations/panoptic_val2017", "annotations/stuff_val2017_pixelmaps"):
        (root / folder).mkdir(parents=True)
    ids = np.array([[1000, 1000, 70_000, 2], [1000, 5, 70_000, 0]])
    for n in (1, 2):
        Pillow.fromarray(np.zeros((2, 4, 3), np.uint8)).save(root / f"val2017/{n}.jpg")
        rgb = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
        Pillow.fromarray(rgb).save(root / f"annotations/panoptic_val2017/{n}.png")
        stuff = np.array([[183, 183, 120, 130], [183, 0, 120, 121]], np.uint8)
        Pillow.fromarray(stuff).save(root / f"annotations/stuff_val2017_pixelmaps/{n}.png")
    things = [{"id": 7, "supercategory": "person", "isthing": 1}, {"id": 9, "supercategory": "animal", "isthing": 1}]
    panoptic = {"categories": [*things, {"id": 120, "supercategory": "plant", "isthing": 0}]}
    segments = [
        {"id": 1000, "category_id": 7},
        {"id": 70_000, "category_id": 9},
        {"id": 5, "category_id": 7},
        {"id": 2, "category_id": 120},
    ]
    panoptic["annotations"] = [{"file_name": f"{n}.png", "image_id": n, "segments_info": segments} for n in (2, 1)]
    (root / "annotations/panoptic_val2017.json").write_text(json.dumps(panoptic))
    names = [(120, "plant"), (121, "plant"), (130, "sky"), (183, "other")]
    content = {"categories": [{"id": i, "supercategory": s} for i, s in names], "images": [{"file_name": "1.jpg", "id": 1}]}
    (root / "annotations/stuff_val2017.json").write_text(json.dumps(content))


def test_three_kinds_of_sets(voc: str, tmp_path: Path) -> None:
    classes, found = sets.read_examples(sets.Set("voc", voc, "lists/train.txt", "lists/val.txt", 1.0), "lists/val.txt")
    assert (len(classes), len(found)) == (21, 3)
    assert np.unique(sets.read_mask(found[0])).tolist() == [0, 3, VOID]
    (Path(voc) / "SegmentationClassAug").mkdir()  # of the augmented set, where the other folder has none
    (Path(voc) / "SegmentationClass/p3.png").rename(Path(voc) / "SegmentationClassAug/p3.png")
    classes, found = sets.read_examples(sets.Set("voc", voc, "lists/train.txt", "lists/val.txt", 1.0), "lists/val.txt")
    assert [Path(e.mask).parent.name for e in found] == ["SegmentationClassAug", "SegmentationClass", "SegmentationClass"]
    assert np.unique(sets.read_mask(found[0])).tolist() == [0, 3, VOID]
    coco(tmp_path)
    panoptic = "annotations/panoptic_val2017.json"
    classes, found = sets.read_examples(sets.Set("things", str(tmp_path), panoptic, panoptic, 1.0), panoptic)
    assert classes == ["animal", "person"]
    assert [Path(e.photo).name for e in found] == ["2.jpg", "1.jpg"]
    assert sets.read_mask(found[0]).tolist() == [[1, 1, 0, VOID], [1, 1, 0, VOID]]  # stuff, and what no segment has, is void
    stuff = "annotations/stuff_val2017.json"
    classes, found = sets.read_examples(sets.Set("stuff", str(tmp_path), stuff, stuff, 1.0), stuff)
    assert classes == ["plant", "sky"]
    assert sets.read_mask(found[0]).tolist() == [[VOID, VOID, 0, 1], [VOID, VOID, 0, 0]]
    with pytest.raises(InputError, match=r"stuff_val2017.json: categories\[0\] has no isthing"):
        sets.read_examples(sets.Set("things", str(tmp_path), stuff, stuff, 1.0), stuff)


def test_what_a_set_refuses(voc: str) -> None:
    data = sets.Set("voc", voc, "lists/train.txt", "lists/val.txt", 1.0)
    Path(voc, "lists/odd.txt").write_text("../p1")
    with pytest.raises(InputError, match=r"JPEGImages/\.\./p1\.jpg: .*(leads out|no such file)"):
        sets.read_examples(data, "lists/odd.txt")
    Path(voc, "SegmentationClass/p1.png").unlink()
    with pytest.raises(InputError, match=r"p1\.png: no such file; .*train\.txt names it"):
        sets.read_examples(data, data.train)
    Path(voc, "SegmentationClass/p4.png").write_bytes(b"no PNG")
    _, found = sets.read_examples(data, data.val)
    with pytest.raises(InputError, match=r"p4\.png cannot be read as a PNG"):
        sets.read_mask(found[1])
    Pillow.new("L", (3, 3)).save(Path(voc, "SegmentationClass/p4.png"))
    with pytest.raises(InputError, match=r"p4\.png is \(3, 3\), its photograph \(40, 48\)"):
        sets.read_pair(found[1])
    Pillow.new("RGBA", (40, 48)).save(Path(voc, "SegmentationClass/p4.png"))
    with pytest.raises(InputError, match="has mode RGBA"):
        sets.read_mask(found[1])
    with pytest.raises(InputError, match=r"sets.kind is 'ade'; it must be one of voc, things, stuff"):
        sets.read_set("ade", voc, "", "", 1.0)
    with pytest.raises(InputError, match=r"sets.fraction is 0.0; it must be above 0"):
        sets.read_set("voc", voc, "", "", 0.0)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40))
def test_subsample_is_torchs_nearest(size: int, grid: int) -> None:
    labels = np.random.default_rng(0).integers(0, 255, (size, size)).astype(np.uint8)
    want = torch.nn.functional.interpolate(torch.from_numpy(labels)[None, None].double(), (grid, grid), mode="nearest")
    assert np.array_equal(sets.subsample(labels, grid), want[0, 0].numpy())


def test_a_crops_labels_lie_where_its_pixels_do(voc: str) -> None:
    _, found = sets.read_examples(sets.Set("voc", voc, "lists/train.txt", "lists/val.txt", 1.0), "lists/train.txt")
    p = linear_params(size=64, grid=64)
    flips = set()
    for seed in range(12):
        pixels, labels = CropDataset(found, p, batching.MEAN, batching.STD)[seed % 4, seed]
        assert (pixels.shape, labels.shape, labels.dtype) == ((3, 64, 64), (64, 64), torch.int64)
        red = pixels[0] > pixels[1]
        known = labels[1:] != VOID
        assert ((labels[1:] == 0) == red[1:])[known].float().mean() > 0.95
        flips.add(bool(labels[-1, 0] == 0))
        again = CropDataset(found, p, batching.MEAN, batching.STD)[seed % 4, seed]
        assert torch.equal(again[0], pixels)
        assert torch.equal(again[1], labels)
    assert flips == {True, False}


# ---- linear and K-means


def test_a_linear_probe_learns_what_can_be_told_apart(voc: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNSEG_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.setenv("UNSEG_WORKERS", "0")
    monkeypatch.setenv("UNSEG_DEVICE", "cpu")
    data = sets.Set("voc", voc, "lists/train.txt", "lists/val.txt", 1.0)
    (classes, train), (_, val) = sets.read_examples(data, data.train), sets.read_examples(data, data.val)
    model, p = vit.load(SHAPE), linear_params()
    before = [x.clone() for x in model.parameters()]
    with Checkpoint("probe", [], []) as checkpoint:
        layer = linear.train(p, model, len(classes), train, 0, checkpoint)
    counts = linear.evaluate(p, model, layer, val)
    assert counts.sum() == 3 * 32 * 32 - 3 * 32  # all pixels but the row of void, squeezed to a pixel or none
    assert counts.trace() > 0.85 * counts.sum()
    assert counts[[0, 3]].sum() == counts.sum()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_linear_probe_averages_over_the_pixels_that_have_a_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNSEG_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.setenv("UNSEG_WORKERS", "0")
    schedule, images = Schedule(1, 0, 2, 0.1, 0.0, 0.0), torch.ones(2, 3, 4, 4)
    layers: list[torch.Tensor] = []
    for void in (0, 1, 3):  # rows of void
        labels = torch.ones(2, 4, 4, dtype=torch.int64)
        labels[:, :void] = VOID
        layer = probe.new_layer(3, 2)
        torch.nn.init.zeros_(layer.weight)
        pairs = Fixed(list(zip(images, labels, strict=True)))
        with Checkpoint("probe", [void], []) as checkpoint:
            probe.fit_layer(schedule, layer, lambda x: x, pairs, 0, checkpoint)
        layers.append(layer.weight.detach().clone())
    # from zeros both classes are as likely: the gradient of the loss by a logit is -1/2 and 1/2, and lr 0.1 makes it 0.05
    assert torch.allclose(layers[0][:, 0, 0, 0], torch.tensor([-0.05, 0.05]))
    assert all(torch.allclose(layers[0], layer) for layer in layers)


class Fixed(Dataset[Any]):
    """(index, seed) to a given example."""

    def __init__(self, examples: list[Any]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, draw: tuple[int, int]) -> Any:
        return self.examples[draw[0]]


def test_a_random_subset_of_the_examples() -> None:
    examples = [sets.Example(str(i), "", {}) for i in range(100)]
    some = linear.random_subset(examples, 0.1, 0)
    assert len(some) == 10
    assert some == sorted(some, key=lambda e: int(e.photo))
    assert some != linear.random_subset(examples, 0.1, 1)
    assert linear.random_subset(examples, 1.0, 0) == examples
    assert len(linear.random_subset(examples, 0.001, 0)) == 1


def test_whole_batches_alone_as_published() -> None:
    examples = [sets.Example(str(i), "", {}) for i in range(1449)]
    assert len(kmeans.whole_batches(examples, 60)) == 1440
    assert kmeans.whole_batches(examples, 1) == examples
    assert kmeans.whole_batches(examples[:59], 60) == []


def test_kmeans_score_by_hand() -> None:
    masks = np.array([[[0, 0, 1, 1]] * 4, [[0, 0, 0, VOID]] * 4], np.uint8)
    labels = np.array([[[1, 0]] * 2, [[1, 1]] * 2], np.uint8)  # 2 x 2 tokens stretch over 4 x 4 labels
    assert kmeans.score(labels, masks, 3, 3)[:2].tolist() == [1, 1]
    assert np.isnan(kmeans.score(labels, masks, 3, 3)[2])  # a class without a pixel
    labels[1, :, 1] = 0
    assert kmeans.score(labels, masks, 2, 2).tolist() == [16 / 20, 8 / 12]
    # more clusters than classes: both halves of class 0 are given to it
    labels = np.array([[[1, 0]] * 2, [[2, 2]] * 2], np.uint8)
    assert kmeans.score(labels, masks, 2, 3).tolist() == [1, 1]
    assert kmeans.score(labels, masks, 3, 3)[:2].tolist() == [12 / 20, 1]  # one to one


def test_tokens_are_standardised_before_the_pca() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 4)).astype(np.float32) * [1, 1000, 1, 1] + [0, 5, 0, 0]
    x[:, 2] = x[:, 0] + 0.1 * x[:, 2]
    scaled = (x - x.mean(0)) / x.std(0)
    _, _, axes = np.linalg.svd(scaled, full_matrices=False)
    got = kmeans.reduce(x.astype(np.float32), 2)
    assert np.allclose(np.abs(got), np.abs(scaled @ axes[:2].T), atol=1e-3)
    assert kmeans.reduce(x.astype(np.float32), 50).shape == (500, 4)


# ---- backbones and stages


def test_the_shape_of_any_file(tmp_path: Path) -> None:
    other = vit.Backbone(str(tmp_path / "a.pth"), None, None, None, None)
    state = vit.build(vit.Shape(4, 128, 3, 2), 16).state_dict()
    torch.save({"teacher": {f"module.backbone.{k}": v for k, v in state.items()}}, other.weights)
    model = vit.load(other)
    assert (vit.patch_size(model), model.embed_dim, len(model.blocks)) == (4, 128, 3)
    assert model.blocks[0].attn.num_heads == 2  # a head for 64 channels
    assert vit.load(replace(other, heads=8)).blocks[0].attn.num_heads == 8
    noted = replace(other, weights=str(tmp_path / "b.safetensors"))
    about = {"kind": "vit", "backbone": {"patch": 4, "width": 128, "depth": 3, "heads": 4}}
    training.write_weights(noted.weights, vit.build(vit.Shape(4, 128, 3, 4), 16), about)
    assert vit.load(noted).blocks[0].attn.num_heads == 4
    for key, value in {"patch": 8, "width": 64, "depth": 2, "heads": 2}.items():
        with pytest.raises(InputError, match=rf"b\.safetensors: the ViT in it has {key} \d+, wanted is {key} {value}"):
            vit.load(replace(noted, **{key: value}))
    torch.save({"pos_embed": torch.zeros(1, 5, 8)}, other.weights)
    with pytest.raises(InputError, match=r"a\.pth has no patch_embed\.proj\.weight"):
        vit.load(other)
    with pytest.raises(InputError, match="depth of backbone or embedder is null; a ViT that starts from random weights needs"):
        vit.load(vit.Backbone(vit.RANDOM_INIT, 8, 32, None, 2))


def test_a_random_vit_is_always_the_same_and_draws_from_nobody() -> None:
    torch.manual_seed(7)
    first, after = vit.load(SHAPE), torch.rand(1)
    torch.manual_seed(7)
    assert torch.equal(torch.rand(1), after)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), vit.load(SHAPE).parameters(), strict=True))


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    groups = {
        "seed": 0,
        "backbone": {"patch": 8, "width": 32, "depth": 2, "heads": 2},
        "backbone_linear": {**vars(linear_params()), "head": {**vars(linear_params().head), "epochs": 2}},
        "backbone_kmeans": vars(kmeans_params()),
        "backbone_video": vars(video_params()),
    }
    work = tmp_path / "work"
    (work / "models").mkdir(parents=True)
    (work / "models/fresh").write_text("")
    (work / "params.yaml").write_text(yaml.safe_dump(groups))
    monkeypatch.chdir(work)
    monkeypatch.setenv("UNSEG_WORKERS", "0")
    monkeypatch.setenv("UNSEG_DEVICE", "cpu")
    return work


def test_the_stages_write_what_the_report_reads(params: Path, voc: str) -> None:
    evaluate_backbone_linear.main(
        "models/fresh", "voc", voc, f"{voc}/lists/train.txt", f"{voc}/lists/val.txt", "0.5", "random", "l.json"
    )
    found = json.loads(Path("l.json").read_text())
    assert (found["backbone"], found["images"], found["train_images"]) == ("random", 3, 2)
    assert 0 <= found["miou"] <= 1
    first = Path("l.json").read_bytes()
    evaluate_backbone_linear.main(
        "models/fresh", "voc", voc, f"{voc}/lists/train.txt", f"{voc}/lists/val.txt", "0.5", "random", "l.json"
    )
    assert Path("l.json").read_bytes() == first
    evaluate_backbone_kmeans.main("models/fresh", "voc", voc, f"{voc}/lists/val.txt", "random", "k.json")
    found = json.loads(Path("k.json").read_text())
    assert (found["images"], found["clusters"], found["seeds"]) == (3, 21, 2)
    assert 0 < found["miou"] <= 1
    assert found["miou_std"] >= 0


def test_a_video_whose_object_moves(params: Path) -> None:
    masks = [np.pad(np.ones((24, 24), np.uint8), ((16, 24), (8 + 2 * i, 48 - 2 * i))) for i in range(5)]  # 64 x 80
    sequence(params / "davis", "slide", masks)
    evaluate_backbone_video.main("models/fresh", "davis", "davis/JPEGImages/480p", "random", "v.json")
    found = json.loads(Path("v.json").read_text())
    assert (found["sequences"], found["objects"]) == (1, 1)
    assert found["J"]["mean"] > 0.5
    assert found["per_sequence"] == [
        {"sequence": "slide", **{key: found[key] for key in found["per_sequence"][0] if key != "sequence"}}
    ]


def test_what_the_stages_refuse(params: Path, voc: str) -> None:
    content = yaml.safe_load(Path("params.yaml").read_text())
    content["backbone_kmeans"] |= {"size": 30}
    content["backbone_video"] |= {"size": 48, "multiple": 12}
    Path("params.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match=r"backbone_kmeans\.size is 30; it must be a multiple of the patch of models/fresh, 8"):
        evaluate_backbone_kmeans.main("models/fresh", "voc", voc, f"{voc}/lists/val.txt", "random", "k.json")
    with pytest.raises(InputError, match=r"backbone_video\.multiple is 12"):
        evaluate_backbone_video.main("models/fresh", "davis", "davis/JPEGImages/480p", "random", "v.json")
    content["backbone_kmeans"] |= {"size": 32, "batch": 60}
    Path("params.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match=r"names 3 images; backbone_kmeans\.batch, 60, leaves none"):
        evaluate_backbone_kmeans.main("models/fresh", "voc", voc, f"{voc}/lists/val.txt", "random", "k.json")
    for build, changed, words in (
        (linear_params, {"crop_min_scale": 0.0}, "backbone_linear.crop_min_scale is 0.0"),
        (linear_params, {"grid": 64}, "backbone_linear.grid is 64"),
        (kmeans_params, {"seeds": 0}, "backbone_kmeans.seeds is 0"),
        (kmeans_params, {"clusters": 256}, "backbone_kmeans.clusters is 256"),
        (kmeans_params, {"grid": 0}, "backbone_kmeans.grid is 0"),
        (kmeans_params, {"grid": 64}, "backbone_kmeans.grid is 64"),
        (video_params, {"top": 0}, "backbone_video.top is 0"),
        (video_params, {"size": 8}, "backbone_video.size is 8"),
        (video_params, {"temperature": 0.0}, "backbone_video.temperature is 0.0; it must be above 0"),
        (video_params, {"precision": "fp16"}, "backbone_video.precision is 'fp16'"),
    ):
        with pytest.raises(InputError, match=words):
            build(**changed)
