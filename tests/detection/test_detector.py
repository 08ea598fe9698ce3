"""Mask R-CNN on mined masks (unseg/detection), at a size that trains in a second, with each backend that is installed.

Detectron2 is not on PyPI and not in the requirements. Its tests are skipped if it is not installed; docs/papers.md says which
version they were run with.
"""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import factories
import numpy as np
import pytest
import torch
import torchvision
import yaml
from PIL import Image as Pillow
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from stages import train_detector
from unseg.core import profiles, storage
from unseg.core.console import InputError
from unseg.core.image_index import ImageRecord
from unseg.core.instances import Detection, Instance
from unseg.data import demo
from unseg.detection import detector, torchvision_fpn
from unseg.detection.detector import learning_rate
from unseg.detection.examples import DetectionDataset, pasted
from unseg.detection.settings import Detect, Detections, Detector
from unseg.engine import event_log, training
from unseg.engine.checkpoint import Checkpoint
from unseg.models.weights import RANDOM_INIT

SIZE = 64
Objects = dict[int, list[Instance]]  # by image id
DETECT = Detect(short_side=SIZE, min_score=0.0, nms=0.5, max_detections=5, pixels=10**5)

pytestmark = [
    pytest.mark.usefixtures("scratch_on_cpu"),
    pytest.mark.filterwarnings("ignore:torch.meshgrid"),  # Detectron2's
    pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning"),  # torch's, of Detectron2
]


@pytest.fixture(params=["torchvision", "detectron2"])
def backend(request: pytest.FixtureRequest) -> str:
    return skip_if_missing(request.param)


def skip_if_missing(backend: str) -> str:
    if backend == "detectron2" and not importlib.util.find_spec("detectron2"):
        pytest.skip("Detectron2 is not installed")
    return backend


def run_detector(trained: detector.TrainedDetector, root: Path, images: list[ImageRecord]) -> dict[int, list[Detection]]:
    """Detections by image id."""
    return {i.id: d for i, d in detector.detect(trained, detector.load_batches(trained, str(root), images))}


def setting(**changes: Any) -> Detector:
    values = {"backend": "torchvision", "arch": "resnet18", "width": 8, "fpn": 16, "hidden": 16, "init": RANDOM_INIT}
    values |= {"frozen_stages": 0, "anchor": 12, "short_sides": [SIZE], "long_side": 96, "rois": 8, "proposals": 20}
    values |= {"drop_iou": None, "copy_paste": 0.0, "paste_scale": [0.3, 1.0], "iterations": 3}
    values |= {"batch": 2, "reference_batch": 2, "lr": 0.02, "lr_steps": [2], "warmup_iterations": 2, "momentum": 0.9}
    values |= {"weight_decay": 1e-4, "clip": 5.0, "precision": "fp32"}
    values |= {"arch": "resnet50"} if changes.get("backend") == "detectron2" else {}
    return factories.group("detector", Detector, **(values | changes))


def scenes(folder: Path, count: int = 4, k: int = 6) -> tuple[list[ImageRecord], Objects]:
    """Scenes of the demo; categories 0..K-1, as clusters are."""
    images, objects = [], {}
    for i in range(1, count + 1):
        pixels, shapes = demo.scene(np.random.default_rng([1, i - 1]), SIZE)
        Pillow.fromarray(pixels).save(folder / f"{i}.png")
        images.append(factories.image(i, (SIZE, SIZE), "train"))
        objects[i] = [factories.instance(mask, i, (c - 1) % k) for c, mask in shapes]
    return images, objects


def one_mask(folder: Path, mask: np.ndarray) -> tuple[list[ImageRecord], Objects]:
    """A black photograph with a white object, and the object's mask."""
    Pillow.fromarray(np.repeat(mask[..., None] * np.uint8(255), 3, 2)).save(folder / "1.png")
    return [factories.image(1, mask.shape, "train")], {1: [factories.instance(mask, 1, 3)]}


def learn(folder: Path, p: Detector, images: list[ImageRecord], objects: Objects, k: int = 6) -> tuple[nn.Module, Any]:
    with Checkpoint("detector", [p], []) as checkpoint:
        return detector.train(p, k, str(folder), images, objects, 0, checkpoint)


def detections(folder: Path, file: Path, images: list[ImageRecord], q: Detect = DETECT) -> dict[int, list[Detection]]:
    by_image = run_detector(detector.load(file, q), folder, images)
    assert by_image.keys() == {i.id for i in images}
    return by_image


def check(results: list[Detection], image: ImageRecord, k: int, q: Detect = DETECT) -> None:
    """The form of an image's detections."""
    assert len(results) <= q.max_detections
    assert [d.score for d in results] == sorted((d.score for d in results), reverse=True)
    for d in results:
        record = d.to_coco()
        assert record.keys() == {"image_id", "category_id", "segmentation", "bbox", "score"}
        assert Detection.from_coco(json.loads(json.dumps(record))) == d
        assert d.image_id == image.id
        assert 0 <= d.category_id < k
        assert q.min_score <= d.score <= 1
        mask = d.mask.decode()
        assert mask.shape == image.size
        assert mask.any()
        x, y, w, h = d.bbox
        assert 0 <= x <= x + w <= image.width + 0.02
        assert 0 <= y <= y + h <= image.height + 0.02
        rows, cols = np.nonzero(mask)  # the mask lies in its box, up to the rounding of the box
        assert x - 2 <= cols.min() <= cols.max() < x + w + 2
        assert y - 2 <= rows.min() <= rows.max() < y + h + 2


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_contract(tmp_path: Path, backend: str, precision: str) -> None:
    images, objects = scenes(tmp_path)
    p = setting(backend=backend, precision=precision)
    model, values = learn(tmp_path, p, images, objects)
    assert len(values) == 3
    assert values[0].keys() == {"loss", "classifier", "box_reg", "mask", "objectness", "rpn_box_reg"}
    for v in values:
        assert v["loss"] == pytest.approx(sum(x for key, x in v.items() if key != "loss"), rel=1e-3)
    detector.save(tmp_path / "d.safetensors", model, p, 6)
    with safe_open(tmp_path / "d.safetensors", "pt") as file:
        about = json.loads(file.metadata()["unseg"])
    assert (about["detector"]["backend"], about["detector"]["arch"], about["k"]) == (backend, p.arch, 6)
    assert (about["mean"], about["std"]) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    Pillow.fromarray(np.zeros((40, 100, 3), np.uint8)).save(tmp_path / "wide.png")
    images.append(ImageRecord(9, "wide.png", 40, 100, "val"))
    by_image = detections(tmp_path, tmp_path / "d.safetensors", images)
    assert any(by_image.values())
    for image in images:
        check(by_image[image.id], image, 6)
    assert detections(tmp_path, tmp_path / "d.safetensors", images) == by_image  # the file can be read again
    assert run_detector(detector.prepared(model, p, DETECT, 6), tmp_path, images) == by_image  # as before it was written


def test_a_training_is_repeatable(tmp_path: Path, backend: str) -> None:
    images, objects = scenes(tmp_path)
    p = setting(backend=backend, short_sides=[48, 64], iterations=2, copy_paste=0.5)
    first, again = (learn(tmp_path, p, images, objects) for _ in range(2))
    assert first[1] == again[1]
    assert all(torch.equal(a, b) for a, b in zip(first[0].state_dict().values(), again[0].state_dict().values(), strict=True))


def test_detect_settings(tmp_path: Path, backend: str) -> None:
    images, objects = scenes(tmp_path, 2)
    p = setting(backend=backend, iterations=1)
    detector.save(tmp_path / "d.safetensors", learn(tmp_path, p, images, objects)[0], p, 6)

    def detect(**changes: Any) -> dict[int, list[Detection]]:
        q = replace(DETECT, **changes)
        by_image = detections(tmp_path, tmp_path / "d.safetensors", images, q)
        for image in images:
            check(by_image[image.id], image, 6, q)
        return by_image

    many = detect(max_detections=20)
    assert max(map(len, many.values())) > 5
    assert {i: d[:3] for i, d in many.items()} == detect(max_detections=3)
    scores = sorted(d.score for results in many.values() for d in results)
    confident = detect(max_detections=20, min_score=scores[len(scores) // 2])
    assert 0 < sum(map(len, confident.values())) < len(scores)
    assert not any(detect(max_detections=20, min_score=0.99).values())
    shapes = []  # of the network's inputs
    trained = detector.load(tmp_path / "d.safetensors", Detect(48, 0.0, 0.5, 5, 1))
    trained.model.backbone.register_forward_pre_hook(lambda _module, args: shapes.append(args[0].shape))  # type: ignore[union-attr]
    run_detector(trained, tmp_path, images[:1])
    assert 48 <= shapes[0][2] <= 64  # padded to a multiple of 32


def test_a_low_first_image_does_not_change_the_detections_of_the_next(tmp_path: Path) -> None:
    """torchvision infers the strides of the pyramid from the first image: 40 rows, padded to 64, look like stride 2."""
    images, objects = scenes(tmp_path, 2)
    p = setting(iterations=1)
    detector.save(tmp_path / "d.safetensors", learn(tmp_path, p, images, objects)[0], p, 6)
    Pillow.fromarray(np.zeros((40, 96, 3), np.uint8)).save(tmp_path / "low.png")
    alone = detections(tmp_path, tmp_path / "d.safetensors", images)
    after = detections(tmp_path, tmp_path / "d.safetensors", [ImageRecord(9, "low.png", 40, 96, "val"), *images])
    assert {i: after[i] for i in alone} == alone


def test_one_cluster_and_images_without_an_object(tmp_path: Path, backend: str) -> None:
    images, objects = scenes(tmp_path, k=1)
    p = setting(backend=backend, batch=4, iterations=2)
    objects = {i: objects[i] for i in (1, 3)}
    model, values = learn(tmp_path, p, images, objects, k=1)
    assert all(np.isfinite(list(v.values())).all() for v in values)
    detector.save(tmp_path / "d.safetensors", model, p, 1)
    for image_id, results in detections(tmp_path, tmp_path / "d.safetensors", images).items():
        check(results, images[image_id - 1], 1)


@pytest.mark.parametrize("drop_iou", [None, 0.01])
def test_a_batch_without_any_object(tmp_path: Path, backend: str, drop_iou: float | None) -> None:
    images, _ = scenes(tmp_path, 2)
    _, values = learn(tmp_path, setting(backend=backend, iterations=1, drop_iou=drop_iou), images, {})
    assert all(np.isfinite(list(v.values())).all() for v in values)
    assert (values[0]["classifier"] == 0) is (drop_iou is not None)


def test_a_class_with_one_instance(tmp_path: Path, backend: str) -> None:
    images, objects = scenes(tmp_path, k=1)
    objects[4][-1] = replace(objects[4][-1], category_id=2)  # class 1 has none
    model, values = learn(tmp_path, setting(backend=backend, batch=4, iterations=1), images, objects, k=3)
    assert np.isfinite(values[0]["loss"])
    p = setting(backend=backend)
    by_image = run_detector(detector.prepared(model, p, DETECT, 3), tmp_path, images)
    for image in images:
        check(by_image[image.id], image, 3)


@pytest.mark.parametrize(("row", "col"), [(0, 0), (63, 63), (30, 63)])
def test_a_mask_of_one_pixel(tmp_path: Path, backend: str, row: int, col: int) -> None:
    mask = np.zeros((SIZE, SIZE), bool)
    mask[row, col] = True
    images, objects = one_mask(tmp_path, mask)
    _, values = learn(tmp_path, setting(backend=backend, batch=1, iterations=1, short_sides=[48]), images, objects)
    assert np.isfinite(values[0]["loss"])


def test_boxes_and_masks_are_flipped_with_the_photograph(tmp_path: Path) -> None:
    mask = np.zeros((20, 30), bool)
    mask[3:9, 4], mask[5, 4:11] = True, True  # a T on its side, which changes when it is mirrored
    images, objects = one_mask(tmp_path, mask)
    examples = DetectionDataset(str(tmp_path), images, objects)
    boxes = set()
    for seed in range(8):
        pixels, target = examples[0, seed]
        assert pixels.shape == (3, 20, 30)
        assert 0 <= pixels.min() < pixels.max() == 1
        assert target["masks"].shape == (1, 20, 30)
        assert target["masks"].dtype == torch.uint8
        assert torch.equal(pixels[0], target["masks"][0].float())  # the mask lies on the object
        rows, cols = target["masks"][0].nonzero(as_tuple=True)
        assert target["boxes"].tolist() == [[cols.min(), rows.min(), cols.max() + 1, rows.max() + 1]]  # xyxy
        assert target["labels"].tolist() == [4]  # cluster 3; 0 is background
        assert torch.equal(examples[0, seed][0], pixels)
        boxes.add(tuple(target["boxes"][0].tolist()))
    assert boxes == {(4, 3, 11, 9), (19, 3, 26, 9)}


def test_an_example_without_objects(tmp_path: Path) -> None:
    images, _ = one_mask(tmp_path, np.zeros((20, 30), bool))
    for seed in range(4):
        _, target = DetectionDataset(str(tmp_path), images, {})[0, seed]
        assert target["boxes"].shape == (0, 4)
        assert target["masks"].shape == (0, 20, 30)
        assert target["labels"].shape == (0,)


def test_learning_rate() -> None:
    # section A.1: 100 warm-up iterations, a tenth after 20,000 and again after 22,000
    p = setting(lr=0.02, warmup_iterations=100, lr_steps=[20000, 22000])
    rates = [learning_rate(p, i) for i in (0, 50, 100, 19999, 20000, 21999, 22000)]
    assert rates == pytest.approx([0.00002, 0.01002, 0.02, 0.02, 0.002, 0.002, 0.0002])
    assert learning_rate(setting(warmup_iterations=0), 0) == 0.02
    # half the paper's batch: half its rate
    assert learning_rate(setting(warmup_iterations=0, lr=0.02, batch=8, reference_batch=16), 0) == pytest.approx(0.01)


def test_steps_use_the_learning_rate_and_the_frozen_stages_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    real = training.set_lr
    monkeypatch.setattr(training, "set_lr", lambda o, lr: rates.append(lr) or real(o, lr))
    images, objects = scenes(tmp_path)
    p = setting(frozen_stages=2)
    model, _ = learn(tmp_path, p, images, objects)
    assert rates == [learning_rate(p, i) for i in range(3)]
    torch.manual_seed(0)
    initial = torchvision_fpn.build(p, 6).state_dict()
    unchanged = {key for key, v in model.state_dict().items() if torch.equal(v, initial[key])}
    frozen = tuple(f"backbone.body.net.{part}" for part in ("conv1", "bn1", "layer1"))
    assert {key for key in initial if key.startswith(frozen)} <= unchanged
    assert "backbone.body.net.layer3.0.conv1.weight" not in unchanged
    assert "backbone.body.net.layer3.0.bn1.running_mean" not in unchanged


def test_files_that_are_not_a_detector(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none cannot be read"):
        detector.load(tmp_path / "none", DETECT)
    (tmp_path / "text").write_text("hello")
    with pytest.raises(InputError, match="text cannot be read"):
        detector.load(tmp_path / "text", DETECT)
    save_file({"x": torch.zeros(1)}, tmp_path / "other", {"unseg": json.dumps({"kind": "segmenter"})})
    with pytest.raises(InputError, match="other is a segmenter of unseg, not a detector"):
        detector.load(tmp_path / "other", DETECT)


@pytest.mark.parametrize("changes", [{"rois": None}, {"arch": "vgg"}, {"width": 0}, {"new": 1}])
def test_a_detector_of_another_version(tmp_path: Path, changes: dict[str, Any]) -> None:
    p = setting()
    settings = {key: value for key, value in (vars(p) | changes).items() if value is not None or key == "drop_iou"}
    training.write_weights(tmp_path / "d", torchvision_fpn.build(p, 2), {"kind": "detector", "detector": settings, "k": 2})
    with pytest.raises(InputError, match=r"d is of another version of unseg; train it again"):
        detector.load(tmp_path / "d", DETECT)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("backend", "mmdet"), ("arch", "vgg"), ("iterations", 0), ("short_sides", []), ("precision", "x")),
        ("frozen_stages", 9),
        *(("drop_iou", 0.5), ("copy_paste", 1.1), ("paste_scale", [1.0, 0.3]), ("paste_scale", [1.0]), ("reference_batch", 0)),
    ],
)
def test_settings_out_of_range(key: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"detector\.{key}"):
        setting(**{key: value})


@pytest.mark.parametrize(("key", "value"), [("min_score", 1.0), ("nms", 0.0), ("short_side", 0), ("max_detections", 0)])
def test_detect_settings_out_of_range(key: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"detect\.{key} is {value}; it must be"):
        factories.group("detect", Detect, **{key: value})


@pytest.mark.parametrize("changes", [{"arch": "resnet18"}, {"frozen_stages": 4}])
def test_detectron2_is_r50_c4(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"arch must be resnet50, frozen_stages at most 3"):
        setting(backend="detectron2", **changes)


def test_detections_without_a_pixel_are_dropped() -> None:
    masks = np.zeros((2, 4, 6), bool)
    masks[1, 1:3, 2:5] = True
    boxes = np.array([[0, 0, 1, 1], [2.004, 1, 5, 3]], np.float32)
    output = Detections(masks, boxes, np.array([0.9, 0.1234567], np.float32), np.array([3, 1]))
    (d,) = detector.to_detections(7, output)
    assert (d.image_id, d.category_id, d.bbox, d.score) == (7, 1, (2.0, 1.0, 3.0, 2.0), 0.123457)
    assert np.array_equal(d.mask.decode(), masks[1])


@pytest.mark.parametrize(
    ("image_id", "cluster", "message"),
    [(2, 0, r"i\.json has no object in a training image"), (1, 6, r"i\.json: 1\.png has cluster 6; it must be from 0 to 5")],
)
def test_train_detector_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image_id: int, cluster: int, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(yaml.safe_dump(factories.demo_params()))
    storage.write_json("images.json", {"images": [vars(factories.image(i, split=s)) for i, s in ((1, "train"), (2, "val"))]})
    instance = factories.instance(np.eye(8) > 0, image_id, cluster)
    storage.write_json("i.json", {"annotations": [instance.to_coco()]})
    with pytest.raises(InputError, match=message):
        train_detector.main("images.json", "i.json", "photos", "d.safetensors", "d.tsv")


# ---- the two backends


class Killed(Exception):
    pass


def test_a_killed_training_resumes_with_the_same_result(tmp_path: Path, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images, objects = scenes(tmp_path)
    p = setting(backend=backend, batch=1)
    model, values = learn(tmp_path, p, images, objects)
    monkeypatch.setenv("UNSEG_CHECKPOINT_SECONDS", "0")  # after images step
    by, calls = detector.backend(p), []
    real = by.losses

    def killed_in_the_third_call(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise Killed
        return real(*args)

    monkeypatch.setattr(by, "losses", killed_in_the_third_call)
    with pytest.raises(Killed):
        learn(tmp_path, p, images, objects)
    again, resumed = learn(tmp_path, p, images, objects)
    assert len(calls) == 4  # two, the killed one, and the last one
    assert resumed == values
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


def test_a_log_shows_detections_and_changes_no_weight(tmp_path: Path, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images, objects = scenes(tmp_path)
    p = setting(backend=backend, iterations=4)
    model, values = learn(tmp_path, p, images, objects)
    monkeypatch.setenv("UNSEG_LOGDIR", str(tmp_path / "logs"))
    monkeypatch.setattr(event_log, "LEAST_STEPS", 2)
    monkeypatch.setitem(detector.DRAWN, "min_score", 0.0)
    logged, again = learn(tmp_path, p, images, objects)
    assert again == values
    assert all(torch.equal(x, logged.state_dict()[key]) for key, x in model.state_dict().items())
    if backend == "torchvision":
        assert logged.roi_heads.detections_per_img == model.roi_heads.detections_per_img
        assert logged.transform.min_size == model.transform.min_size
    shown = factories.logged_pictures(tmp_path / "logs/detector")
    assert set(shown) == {f"pictures/{i}.png" for i in range(1, 5)}
    for i, pictures in enumerate(shown.values(), 1):
        assert [step for step, _ in pictures] == [0, 2, 4]
        photo = np.asarray(Pillow.open(tmp_path / f"{i}.png").resize((128, 128), Pillow.Resampling.BILINEAR))
        assert all(x.shape == (128, 256, 3) for _, x in pictures)
        changed = (pictures[0][1][:, :128] != photo).any(2)  # where there are masks
        masks = np.any([cv2.resize(o.mask.decode().astype(np.uint8), (128, 128)) > 0 for o in objects[i]], 0)
        assert changed[2:-2, 2:-2].any()
        assert not changed[~cv2.dilate(masks.astype(np.uint8), np.ones((5, 5))).astype(bool)].any()
    assert any((pictures[-1][1][:, 128:] != pictures[0][1][:, 128:]).any() for pictures in shown.values())


PARTS = ("loss", "classifier", "box_reg", "mask", "objectness", "rpn_box_reg")
# Losses of the first step with seed 0, measured once.
GOLDEN = {"torchvision": (3.967, 1.896, 0.367, 1.007, 0.694, 0.003)}


def test_golden_losses(tmp_path: Path, backend: str) -> None:
    """On pictures drawn here, so that changes of the demo's scenes do not matter."""
    if backend not in GOLDEN:
        pytest.skip(f"the losses of {backend} on these pictures were not measured")
    images, objects = [], {}
    for i in range(4):
        mask = np.zeros((SIZE, SIZE), bool)
        mask[8 + i : 40 + i, 16 : 40 + 2 * i] = True
        pixels = np.where(mask, 40 * i + 60, np.arange(SIZE)).astype(np.uint8)
        Pillow.fromarray(np.repeat(pixels[..., None], 3, 2)).save(tmp_path / f"{i}.png")
        images.append(ImageRecord(i + 1, f"{i}.png", SIZE, SIZE, "train"))
        objects[i + 1] = [factories.instance(mask, i + 1, i)]
    _, values = learn(tmp_path, setting(backend=backend, iterations=1), images, objects)
    assert [values[0][name] for name in PARTS] == pytest.approx(GOLDEN[backend], abs=2e-3)


def iou(a: list[float], b: list[float]) -> float:
    common = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


def test_drop_loss_counts_proposals_that_overlap_a_mask(tmp_path: Path, backend: str) -> None:
    """Against a loop over the sampled proposals, whose classes and logits are recorded."""
    images, objects = scenes(tmp_path)
    p = setting(backend=backend, drop_iou=0.05, rois=32)
    by = detector.backend(p)
    torch.manual_seed(0)
    model = by.build(p, 6).train()
    heads, recorded = model.roi_heads, {}  # type: ignore[var-annotated]
    name = "select_training_samples" if backend == "torchvision" else "label_and_sample_proposals"
    sampled = getattr(heads, name)
    setattr(heads, name, lambda *args: recorded.setdefault("sampled", sampled(*args)))
    heads.box_predictor.register_forward_hook(lambda _module, _args, out: recorded.update(logits=out[0].detach()))
    examples = DetectionDataset(str(tmp_path), images, objects)
    pixels, targets = zip(*(examples[i, 0] for i in range(4)), strict=True)
    parts = by.losses(model, p, list(pixels), list(targets))
    if backend == "torchvision":
        proposals, _, labels, _ = recorded["sampled"]
        pairs = [(b, c) for boxes, classes in zip(proposals, labels, strict=True) for b, c in zip(boxes, classes, strict=True)]
        images_of = [i for i, boxes in enumerate(proposals) for _ in boxes]
    else:
        pairs = [(b, c) for x in recorded["sampled"] for b, c in zip(x.proposal_boxes.tensor, x.gt_classes, strict=True)]
        images_of = [i for i, x in enumerate(recorded["sampled"]) for _ in range(len(x))]
    logs, kept, total = recorded["logits"].log_softmax(1), 0, 0.0
    for (box, label), i, log in zip(pairs, images_of, logs, strict=True):
        if max(iou(box.tolist(), b) for b in targets[i]["boxes"].tolist()) > 0.05:  # the scale is 1
            kept, total = kept + 1, total - float(log[int(label)])
    assert 4 < kept < len(pairs) - 4  # of both kinds
    assert float(parts["classifier"].detach()) == pytest.approx(total / len(pairs), rel=1e-4)
    assert parts["classifier"].requires_grad


@pytest.fixture(scope="module")
def source() -> nn.Module:
    """torchvision's ResNet-50, with weights and statistics as of a trained one."""
    torch.manual_seed(1)
    net: nn.Module = torchvision.models.resnet50()
    for name, x in net.state_dict().items():
        if name.endswith(("bias", "running_mean")):
            x.normal_(0, 0.1)
        elif x.ndim == 1:
            x.uniform_(0.5, 1.5)
    return net.eval()


@pytest.mark.parametrize("official", ["moco", "dino"])
def test_official_weights_give_the_source_models_features(tmp_path: Path, source: nn.Module, backend: str, official: str) -> None:
    net = source
    state = {name: x for name, x in net.state_dict().items() if not name.startswith("fc.")}
    fc = {f"fc.{i}.{x}": torch.zeros(2) for i in (0, 2) for x in ("weight", "bias")}
    if official == "moco":
        nested: Any = {"epoch": 800, "state_dict": {f"module.encoder_q.{name}": x for name, x in (state | fc).items()}}
    else:
        nested = state
    torch.save(nested, tmp_path / "official.pth")
    p = setting(backend=backend, arch="resnet50", width=64, frozen_stages=1, init=str(tmp_path / "official.pth"))
    by = detector.backend(p)
    model = by.build(p, 2)
    by.initialise(model, p)
    model.eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        want, at = [], net.maxpool(net.relu(net.bn1(net.conv1(x))))  # type: ignore[operator]
        for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
            at = layer(at)  # type: ignore[operator]
            want.append(at)
        if backend == "torchvision":
            got = model.backbone.body(x)
        else:
            got = [model.backbone(x)["res4"]]
            for block in list(model.roi_heads.res5)[:3]:
                got.append(block(got[-1]))
            want = [want[2], None, None, want[3]]
    for have, need in zip(got, want, strict=True):
        assert need is None or torch.allclose(have, need, rtol=1e-5, atol=1e-5 * float(need.abs().max()))
    del state["layer3.5.conv2.weight"]
    torch.save(state, tmp_path / "official.pth")
    with pytest.raises(InputError, match=r"official\.pth: .*conv2.* has shape None"):
        by.initialise(model, p)


def test_the_papers_settings_in_detectron2() -> None:
    skip_if_missing("detectron2")
    from unseg.detection import detectron2_c4

    p = profiles.group("voc", "detector", Detector, Path(__file__).parents[2] / "profiles")
    cfg = detectron2_c4.config(replace(p, backend="detectron2"), 20)
    model = cfg.MODEL
    assert (model.META_ARCHITECTURE, model.ROI_HEADS.NAME, model.RESNETS.DEPTH) == ("GeneralizedRCNN", "Res5ROIHeads", 50)
    assert model.BACKBONE.FREEZE_AT == 2
    assert (model.ROI_HEADS.NUM_CLASSES, model.ROI_HEADS.BATCH_SIZE_PER_IMAGE) == (20, 512)
    assert (model.RPN.PRE_NMS_TOPK_TEST, model.RPN.POST_NMS_TOPK_TEST) == (6000, 1000)
    assert (model.RPN.PRE_NMS_TOPK_TRAIN, model.RPN.POST_NMS_TOPK_TRAIN) == (12000, 2000)
    assert model.ANCHOR_GENERATOR.SIZES == [[32, 64, 128, 256, 512]]
    assert list(model.PIXEL_STD) == pytest.approx([58.395, 57.12, 57.375])
    assert (p.short_sides[0], p.short_sides[-1], p.long_side) == (480, 800, 1333)
    assert (p.lr, p.lr_steps, p.iterations, p.warmup_iterations) == (0.02, [20000, 22000], 24000, 100)
    assert (p.batch, p.reference_batch) == (16, 16)
    assert (p.drop_iou, p.copy_paste) == (None, 0.0)
    net = detectron2_c4.build(setting(backend="detectron2", frozen_stages=1), 3).train()
    frozen = {name.rsplit(".", 1)[0] for name, x in net.backbone.named_parameters() if not x.requires_grad}
    assert frozen
    assert all(name.startswith(("stem", "res2")) for name in frozen)
    assert all(name.startswith(("res3", "res4")) for name, x in net.backbone.named_parameters() if x.requires_grad)
    assert isinstance(net.roi_heads.res5.norm, nn.BatchNorm2d)
    decayed = {g["weight_decay"] for g in detectron2_c4.param_groups(net, p)}
    assert decayed == {0.0, p.weight_decay}
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():  # in bfloat16 Detectron2 would round the proposals too
        assert net.eval().backbone(torch.zeros(1, 3, 64, 64))["res4"].dtype == torch.float32


def test_detectron2_gets_boxes_and_masks_that_lie_on_the_object(tmp_path: Path) -> None:
    skip_if_missing("detectron2")
    c4 = detector.backend(setting(backend="detectron2"))
    mask = np.zeros((40, 60), bool)
    mask[6:18, 4:12], mask[10:14, 12:24] = True, True
    images, objects = one_mask(tmp_path, mask)
    pixels, target = DetectionDataset(str(tmp_path), images, objects)[0, 0]
    inputs: list[Any] = []

    def model(batch: list[Any]) -> dict[str, torch.Tensor]:
        inputs.extend(batch)
        return dict.fromkeys(c4.NAMES.values(), torch.zeros(()))

    for short, long, size in ((80, 500, (80, 120)), (80, 90, (60, 90)), (20, 500, (20, 30))):
        inputs.clear()
        parts = c4.losses(model, setting(backend="detectron2", short_sides=[short], long_side=long), [pixels], [target])
        assert list(parts) == ["classifier", "box_reg", "mask", "objectness", "rpn_box_reg"]
        image, truth = inputs[0]["image"], inputs[0]["instances"]
        assert image.shape == (3, *size)
        assert truth.image_size == size
        assert 250 < image.max() <= 255.1
        factor = size[0] / 40
        assert torch.allclose(truth.gt_boxes.tensor, target["boxes"] * factor)
        assert truth.gt_classes.tolist() == [3]
        drawn = image[0] > 127
        assert float((drawn & truth.gt_masks.tensor[0]).sum() / (drawn | truth.gt_masks.tensor[0]).sum()) > 0.8
    assert target["boxes"].max() < 60  # the target is not changed

    def diverged(batch: list[Any]) -> dict[str, torch.Tensor]:
        raise FloatingPointError("Predicted boxes or scores contain Inf/NaN. Training has diverged.")

    with pytest.raises(InputError, match=r"diverged\. Lower detector\.lr"):
        c4.losses(diverged, setting(backend="detectron2"), [pixels], [target])


def test_nothing_is_registered_in_detectron2(tmp_path: Path) -> None:
    skip_if_missing("detectron2")
    from detectron2.data import DatasetCatalog, MetadataCatalog

    before = list(DatasetCatalog), list(MetadataCatalog)
    images, objects = scenes(tmp_path, 2)
    for seed in (0, 1):
        with Checkpoint("detector", [seed], []) as checkpoint:
            detector.train(setting(backend="detectron2", iterations=1), 6, str(tmp_path), images, objects, seed, checkpoint)
    assert (list(DatasetCatalog), list(MetadataCatalog)) == before


def test_detectron2_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "detectron2", None)
    for name in [n for n in sys.modules if n.startswith("detectron2.")] + ["unseg.detection.detectron2_c4"]:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.delattr("unseg.detection.detectron2_c4", raising=False)
    with pytest.raises(InputError, match=r"detectron2 is not installed; install .* or set detector.backend: torchvision"):
        detector.backend(setting(backend="detectron2"))


# ---- copy-paste


def two_scenes(folder: Path) -> tuple[list[ImageRecord], Objects]:
    """A black photograph with an object of grey 50, cluster 0, and one with an object of grey 200, cluster 1."""
    images, objects = [], {}
    for n, (value, box) in enumerate([(50, np.s_[4:10, 4:12]), (200, np.s_[20:30, 10:18])], 1):
        mask = np.zeros((40, 48), bool)
        mask[box] = True
        Pillow.fromarray(np.repeat((mask * np.uint8(value))[..., None], 3, 2)).save(folder / f"{n}.png")
        images.append(factories.image(n, mask.shape, "train"))
        objects[n] = [factories.instance(mask, n, n - 1)]
    return images, objects


def test_objects_of_another_image_are_pasted(tmp_path: Path) -> None:
    images, objects = two_scenes(tmp_path)
    examples = DetectionDataset(str(tmp_path), images, objects, 1.0, [0.5, 1.0])
    label_sets: set[tuple[int, ...]] = set()
    sizes, covered = set(), 0
    for seed in range(40):
        pixels, target = examples[0, seed]
        grey = (pixels[0] * 255).round().int()
        label_sets.add(tuple(target["labels"].tolist()))
        assert target["masks"].sum(0).max() <= 1  # no pixel belongs to two objects
        for mask, label, box in zip(target["masks"], target["labels"], target["boxes"], strict=True):
            rows, cols = mask.nonzero(as_tuple=True)
            assert box.tolist() == [cols.min(), rows.min(), cols.max() + 1, rows.max() + 1]
            assert set(grey[mask > 0].tolist()) <= ({50} if label == 1 else {200})  # each mask lies on its own object
        if target["labels"].tolist() == [1, 2]:
            h, w = (target["masks"][1].any(d).sum().item() for d in (1, 0))
            sizes.add((h, w))
            assert 5 <= h <= 10
            assert 4 <= w <= 8
            covered += int(target["masks"][0].sum()) < 48
        assert torch.equal(pixels, examples[0, seed][0])
    assert {(1, 2), (1, 1)} <= label_sets  # an object of the other image, or of the same one
    assert len(sizes) > 2
    assert covered
    plain = DetectionDataset(str(tmp_path), images, objects)
    some = DetectionDataset(str(tmp_path), images, objects, 0.3, [0.5, 1.0])
    changed = [not torch.equal(plain[0, n][0], some[0, n][0]) for n in range(60)]
    assert 6 <= sum(changed) <= 30


def test_objects_that_cannot_be_pasted_are_left_out() -> None:
    rng = np.random.default_rng(0)
    onto = np.zeros((8, 8, 3), np.uint8), [1], np.ones((1, 8, 8), bool)
    large = np.full((20, 20, 3), 9, np.uint8), [2], np.ones((1, 20, 20), bool)
    pixels, labels, masks = pasted(onto, large, rng, [1.0, 1.0])
    assert (labels, pixels.max(), masks.sum()) == ([1], 0, 64)
    same = np.full((8, 8, 3), 9, np.uint8), [2], np.ones((1, 8, 8), bool)
    pixels, labels, masks = pasted(onto, same, rng, [1.0, 1.0])
    assert (labels, pixels.min(), masks.shape) == ([2], 9, (1, 8, 8))  # fully occluded masks are dropped
    none = np.full((8, 8, 3), 9, np.uint8), [], np.zeros((0, 8, 8), bool)
    assert pasted(onto, none, rng, [1.0, 1.0])[1] == [1]
    assert pasted(none, none, rng, [1.0, 1.0])[2].shape == (0, 8, 8)
