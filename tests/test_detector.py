"""Mask R-CNN on mined masks (unseg/detection/detector.py), at a size that trains in a second."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from safetensors.torch import save_file
from torch import nn

from unseg import training
from unseg.backbones import resnet
from unseg.console import InputError
from unseg.detection import detector, fpn
from unseg.detection.detector import learning_rate
from unseg.detection.examples import Examples
from unseg.detection.settings import Detect, Detector
from unseg.io import demo
from unseg.io.records import Image, annotation, by_image, decode, encode

SIZE = 64
Annotations = list[dict[str, Any]]
DETECT = Detect(short_side=SIZE, min_score=0.0, nms=0.5, max_detections=5, pixels=10**5)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNSEG_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.setenv("UNSEG_WORKERS", "0")
    monkeypatch.setenv("UNSEG_DEVICE", "cpu")


def setting(**changed: Any) -> Detector:
    values = {"backend": "torchvision", "arch": "resnet18", "width": 8, "fpn": 16, "hidden": 16, "init": resnet.FRESH}
    values |= {"frozen_stages": 0, "anchor": 12, "short_sides": [SIZE], "long_side": 96, "rois": 8, "proposals": 20}
    values |= {"drop_iou": None, "copy_paste": 0.0, "paste_scale": [0.3, 1.0], "iterations": 3, "batch": 2, "reference_batch": 2, "lr": 0.02, "lr_steps": [2], "warmup_iterations": 2, "momentum": 0.9}
    values |= {"weight_decay": 1e-4, "clip": 5.0, "precision": "fp32"}
    return Detector(**(values | changed))  # type: ignore[arg-type]


def scenes(folder: Path, count: int = 4, k: int = 6) -> tuple[list[Image], Annotations]:
    """Scenes of the demo; categories 0..K-1, as clusters are."""
    every, objects = [], []
    for i in range(count):
        pixels, found = demo.scene(np.random.default_rng([1, i]), SIZE)
        Pillow.fromarray(pixels).save(folder / f"{i}.png")
        every.append(Image(i + 1, f"{i}.png", SIZE, SIZE, "train"))
        objects += [annotation(10 * i + j, i + 1, (c - 1) % k, encode(mask)) for j, (c, mask) in enumerate(found)]
    return every, objects


def one_mask(folder: Path, mask: np.ndarray) -> tuple[list[Image], Annotations]:
    """A photograph that shows its mask: black, and white where the object is."""
    Pillow.fromarray(np.repeat(mask[..., None] * np.uint8(255), 3, 2)).save(folder / "m.png")
    return [Image(1, "m.png", *mask.shape, "train")], [annotation(1, 1, 3, encode(mask))]


def learn(folder: Path, p: Detector, every: list[Image], objects: Annotations, k: int = 6) -> tuple[nn.Module, Any]:
    with training.Scratch("detector", [p], []) as scratch:
        return detector.train(p, k, str(folder), every, objects, 0, scratch)


def detections(folder: Path, file: Path, every: list[Image], q: Detect = DETECT) -> dict[int, Annotations]:
    found = list(detector.detect(detector.load(file, q), str(folder), every))
    assert len(found) == len(every)
    return by_image([r for results in found for r in results])


def check(results: Annotations, image: Image, k: int, q: Detect = DETECT) -> None:
    """The form of an image's detections."""
    assert len(results) <= q.max_detections
    assert [r["score"] for r in results] == sorted((r["score"] for r in results), reverse=True)
    for r in results:
        assert r.keys() == {"image_id", "category_id", "segmentation", "bbox", "score"}
        assert json.loads(json.dumps(r)) == r
        assert 0 <= r["category_id"] < k
        assert q.min_score <= r["score"] <= 1
        mask = decode(r["segmentation"])
        assert mask.shape == image.size
        assert mask.any()
        x, y, w, h = r["bbox"]
        assert 0 <= x <= x + w <= image.width + 0.02
        assert 0 <= y <= y + h <= image.height + 0.02
        rows, cols = np.nonzero(mask)  # the mask is painted into its box, give or take the box's rounding
        assert x - 2 <= cols.min() <= cols.max() < x + w + 2
        assert y - 2 <= rows.min() <= rows.max() < y + h + 2


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_train_save_load_detect(tmp_path: Path, precision: str) -> None:
    every, objects = scenes(tmp_path)
    p = setting(precision=precision)
    model, values = learn(tmp_path, p, every, objects)
    assert len(values) == 3
    assert values[0].keys() == {"loss", "classifier", "box_reg", "mask", "objectness", "rpn_box_reg"}
    for v in values:
        assert v["loss"] == pytest.approx(sum(x for key, x in v.items() if key != "loss"), rel=1e-3)
    detector.save(tmp_path / "d.safetensors", model, p, 6)
    Pillow.fromarray(np.zeros((40, 100, 3), np.uint8)).save(tmp_path / "wide.png")
    asked = [*every, Image(9, "wide.png", 40, 100, "val")]
    found = detections(tmp_path, tmp_path / "d.safetensors", asked)
    assert any(found.values())
    for image in asked:
        check(found.get(image.id, []), image, 6)
    assert detections(tmp_path, tmp_path / "d.safetensors", asked) == found  # read again, and the same
    here = [r for results in detector.detect(detector.prepared(model, p, DETECT), str(tmp_path), asked) for r in results]
    assert by_image(here) == found  # as the model was before it was written


def test_a_training_is_repeatable(tmp_path: Path) -> None:
    every, objects = scenes(tmp_path)
    first, again = (learn(tmp_path, setting(short_sides=[48, 64]), every, objects) for _ in range(2))
    assert first[1] == again[1]
    assert all(torch.equal(a, b) for a, b in zip(first[0].state_dict().values(), again[0].state_dict().values(), strict=True))


def test_what_detect_says_holds(tmp_path: Path) -> None:
    every, objects = scenes(tmp_path, 2)
    p = setting(iterations=1)
    detector.save(tmp_path / "d.safetensors", learn(tmp_path, p, every, objects)[0], p, 6)

    def asked(**changed: Any) -> tuple[dict[int, Annotations], Detect]:
        q = Detect(**(vars(DETECT) | changed))
        found = detections(tmp_path, tmp_path / "d.safetensors", every, q)
        for image in every:
            check(found.get(image.id, []), image, 6, q)
        return found, q

    many = asked(max_detections=20)[0]
    assert max(map(len, many.values())) > 5
    assert {i: r[:3] for i, r in many.items()} == asked(max_detections=3)[0]
    scores = sorted(r["score"] for results in many.values() for r in results)
    middle = scores[len(scores) // 2]
    sure = asked(max_detections=20, min_score=middle)[0]
    assert 0 < sum(map(len, sure.values())) < len(scores)
    assert asked(max_detections=20, min_score=0.99)[0] == {}
    trained = detector.load(tmp_path / "d.safetensors", Detect(48, 0.0, 0.5, 5, 1))
    assert trained.model.transform.min_size == (48,)  # type: ignore[union-attr]


def test_a_low_first_image_does_not_change_what_is_seen_in_the_next(tmp_path: Path) -> None:
    """torchvision guesses the pyramid's strides from the first image: 40 rows, padded to 64, look like stride 2."""
    every, objects = scenes(tmp_path, 2)
    p = setting(iterations=1)
    detector.save(tmp_path / "d.safetensors", learn(tmp_path, p, every, objects)[0], p, 6)
    Pillow.fromarray(np.zeros((40, 96, 3), np.uint8)).save(tmp_path / "low.png")
    alone = detections(tmp_path, tmp_path / "d.safetensors", every)
    after = detections(tmp_path, tmp_path / "d.safetensors", [Image(9, "low.png", 40, 96, "val"), *every])
    assert {i: after[i] for i in alone} == alone


def test_one_cluster_and_images_without_an_object(tmp_path: Path) -> None:
    every, objects = scenes(tmp_path, k=1)
    p = setting(batch=4)
    objects = [a for a in objects if a["image_id"] in (1, 3)]
    model, values = learn(tmp_path, p, every, objects, k=1)
    assert all(np.isfinite(list(v.values())).all() for v in values)
    detector.save(tmp_path / "d.safetensors", model, p, 1)
    for image_id, results in detections(tmp_path, tmp_path / "d.safetensors", every).items():
        check(results, every[image_id - 1], 1)


def test_a_batch_without_any_object(tmp_path: Path) -> None:
    every, _ = scenes(tmp_path, 2)
    _, values = learn(tmp_path, setting(iterations=2), every, [])
    assert all(np.isfinite(list(v.values())).all() for v in values)


@pytest.mark.parametrize(("row", "col"), [(0, 0), (63, 63), (30, 63)])
def test_a_mask_of_one_pixel(tmp_path: Path, row: int, col: int) -> None:
    mask = np.zeros((SIZE, SIZE), bool)
    mask[row, col] = True
    every, objects = one_mask(tmp_path, mask)
    _, values = learn(tmp_path, setting(batch=1, iterations=1, short_sides=[48]), every, objects)
    assert np.isfinite(values[0]["loss"])


def test_boxes_and_masks_are_flipped_with_the_picture(tmp_path: Path) -> None:
    mask = np.zeros((20, 30), bool)
    mask[3:9, 4], mask[5, 4:11] = True, True  # a T, which no mirror leaves as it is
    every, objects = one_mask(tmp_path, mask)
    examples = Examples(str(tmp_path), every, by_image(objects))
    boxes = set()
    for seed in range(8):
        pixels, target = examples[0, seed]
        assert pixels.shape == (3, 20, 30)
        assert 0 <= pixels.min() < pixels.max() == 1
        assert target["masks"].shape == (1, 20, 30)
        assert target["masks"].dtype == torch.uint8
        assert torch.equal(pixels[0], target["masks"][0].float())  # the mask lies where the picture shows the object
        rows, cols = target["masks"][0].nonzero(as_tuple=True)
        assert target["boxes"].tolist() == [[cols.min(), rows.min(), cols.max() + 1, rows.max() + 1]]  # xyxy
        assert target["labels"].tolist() == [4]  # cluster 3; 0 is background
        assert torch.equal(examples[0, seed][0], pixels)
        boxes.add(tuple(target["boxes"][0].tolist()))
    assert boxes == {(4, 3, 11, 9), (19, 3, 26, 9)}


def test_an_example_without_objects(tmp_path: Path) -> None:
    every, _ = one_mask(tmp_path, np.zeros((20, 30), bool))
    for seed in range(4):
        _, target = Examples(str(tmp_path), every, {})[0, seed]
        assert target["boxes"].shape == (0, 4)
        assert target["masks"].shape == (0, 20, 30)
        assert target["labels"].shape == (0,)


def test_learning_rate() -> None:
    # section A.1: 100 warm-up iterations, a tenth after 20,000 and again after 22,000
    p = setting(lr=0.02, warmup_iterations=100, lr_steps=[20000, 22000])
    rates = [learning_rate(p, i) for i in (0, 50, 100, 19999, 20000, 21999, 22000)]
    assert rates == pytest.approx([0.00002, 0.01002, 0.02, 0.02, 0.002, 0.002, 0.0002])
    assert learning_rate(setting(warmup_iterations=0), 0) == 0.02


def test_steps_use_the_learning_rate_and_the_frozen_stages_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    real = training.set_rates
    monkeypatch.setattr(training, "set_rates", lambda o, lr: rates.append(lr) or real(o, lr))
    every, objects = scenes(tmp_path)
    p = setting(frozen_stages=2)
    model, _ = learn(tmp_path, p, every, objects)
    assert rates == [learning_rate(p, i) for i in range(3)]
    torch.manual_seed(0)
    fresh = fpn.build(p, 6).state_dict()
    same = {key for key, v in model.state_dict().items() if torch.equal(v, fresh[key])}
    still = [
        key for key in fresh if key.startswith(("backbone.body.net.conv1", "backbone.body.net.bn1", "backbone.body.net.layer1"))
    ]
    assert set(still) <= same
    assert "backbone.body.net.layer3.0.conv1.weight" not in same
    assert "backbone.body.net.layer3.0.bn1.running_mean" not in same


def test_files_that_are_no_detector(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none cannot be read"):
        detector.load(tmp_path / "none", DETECT)
    (tmp_path / "text").write_text("hello")
    with pytest.raises(InputError, match="text cannot be read"):
        detector.load(tmp_path / "text", DETECT)
    save_file({"x": torch.zeros(1)}, tmp_path / "other", {"unseg": json.dumps({"kind": "segmenter"})})
    with pytest.raises(InputError, match="other is not a detector of unseg"):
        detector.load(tmp_path / "other", DETECT)


@pytest.mark.parametrize(
    ("key", "value"),
    [("backend", "mmdet"), ("arch", "vgg"), ("iterations", 0), ("short_sides", []), ("precision", "x"), ("frozen_stages", 9)],
)
def test_settings_out_of_range(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"detector\.{key}"):
        setting(**{key: value})
    with pytest.raises(ValueError, match=r"detect\.min_score"):
        Detect(64, 1.0, 0.5, 5, 1)
