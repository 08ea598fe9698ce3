"""The teacher of a self-training round (segmentation/teacher.py, stages/relabel.py): views, thresholds, settings of a round."""

import json
from pathlib import Path
from typing import Any

import factories
import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow
from torch import Tensor
from torch.nn import functional as F

from stages import relabel
from unseg.core.console import InputError
from unseg.core.image_index import ImageRecord
from unseg.core.label_maps import IGNORE_LABEL, LabelMaps
from unseg.engine.batching import to_tensor
from unseg.segmentation import crf, segmenter, teacher
from unseg.segmentation.crf import Crf
from unseg.segmentation.deeplab import DeepLab
from unseg.segmentation.segmenter import TrainedSegmenter
from unseg.segmentation.teacher import Relabel, average, class_thresholds, confidence_bins, keep_confident

pytestmark = pytest.mark.usefixtures("scratch_on_cpu")
CPU = torch.device("cpu")


def setting(**changes: Any) -> Relabel:
    return factories.group("relabel", Relabel, **({"crf": False} | changes))


def net(labels: int = 3) -> TrainedSegmenter:
    torch.manual_seed(0)
    shape = {"arch": "resnet18", "width": 8, "stride": 8, "rates": [1, 2, 4], "labels": labels, "channels": 16}
    model = DeepLab(**shape).eval()  # type: ignore[arg-type]
    last: Any = model.head[-1]
    torch.nn.init.normal_(last.weight, 0, 30)
    with torch.no_grad():  # every label is somewhere the most probable one
        last.bias -= model(torch.randn(1, 3, 32, 32)).mean((0, 2, 3))
    return TrainedSegmenter(model, labels, 32, "fp32", shape=shape)


# ---- views


def test_the_mean_over_mirror_images_and_scales() -> None:
    trained, x = net(), torch.randn(2, 3, 40, 56)

    def probabilities(view: Tensor) -> Tensor:
        with torch.inference_mode():
            return trained.model(view).softmax(1)

    plain = average(trained, x, False, [1.0])
    assert torch.equal(plain, segmenter.probabilities(trained, x))
    mirrored = probabilities(x.flip(3)).flip(3)
    assert not torch.allclose(plain, mirrored, atol=1e-2)
    torch.testing.assert_close(average(trained, x, True, [1.0]), (plain + mirrored) / 2)
    larger = F.interpolate(x, (50, 70), mode="bilinear", antialias=True)
    back = F.interpolate(probabilities(larger), (40, 56), mode="bilinear")
    torch.testing.assert_close(average(trained, x, False, [1.25, 1.0]), (plain + back) / 2)
    views = average(trained, x, True, [1.0, 1.25, 0.01])
    torch.testing.assert_close(views.sum(1), torch.ones(2, 40, 56))


def test_the_average_is_the_prediction(tmp_path: Path) -> None:
    Pillow.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)).save(tmp_path / "1.png")
    trained, image = net(), ImageRecord(1, "1.png", 20, 30, "train")
    batches = segmenter.load_batches(trained, str(tmp_path), [image], segmenter.Predict("original", 10**6))
    ((got, p),) = segmenter.predict(trained, batches, lambda n, x: average(n, x, True, [1.0]))
    assert got == image
    x = to_tensor(Pillow.open(tmp_path / "1.png"))[None]
    torch.testing.assert_close(p, average(trained, x, True, [1.0])[0])


# ---- confidence


def test_confidence_is_ranked_in_bins() -> None:
    p = np.linspace(0, 1, 100_001, dtype=np.float32)
    bins = confidence_bins(np.stack([1 - p, p])[:, None], np.ones((1, len(p)), np.uint8))[0].astype(int)
    assert (np.diff(bins) >= 0).all()
    assert (bins[0], bins[-1]) == (0, 255)
    middle = bins[p.searchsorted([0.5, 0.9, 0.99, 0.999])]
    assert (np.diff(middle) > 20).all()  # confidences close to 1 are told apart


def slow_thresholds(labels: np.ndarray, bins: np.ndarray, fraction: float) -> np.ndarray:
    """[N], [N]: whether each pixel is kept, by sorting each label's pixels."""
    kept = np.zeros(len(labels), bool)
    for c in np.unique(labels):
        mine = np.sort(bins[labels == c])[::-1]
        last = mine[int(np.ceil(fraction * len(mine) - 1e-9)) - 1]
        kept |= (labels == c) & (bins >= last)
    return kept


@given(st.integers(0, 10**6), st.sampled_from([0.01, 0.25, 0.5, 0.7, 1.0]))
def test_the_fraction_of_each_label_over_all_images(seed: int, fraction: float) -> None:
    rng = np.random.default_rng(seed)
    results = [rng.integers(0, (4, 256)[i], (5, 6), np.uint8) for _ in range(3) for i in range(2)]
    results = [np.concatenate(pair) for pair in zip(results[::2], results[1::2], strict=True)]  # labels above bins
    thresholds = class_thresholds(results, fraction)
    labels, bins = (np.concatenate([np.split(r, 2)[i].ravel() for r in results]) for i in range(2))
    got = np.concatenate([keep_confident(r, thresholds).ravel() for r in results])
    kept = slow_thresholds(labels, bins, fraction)
    assert np.array_equal(got != IGNORE_LABEL, kept)
    assert np.array_equal(got[kept], labels[kept])


def test_thresholds_by_hand() -> None:
    """Label 0 is sure of itself, label 1 is not: each keeps its own upper half."""
    labels, bins = [[0, 0, 0, 0], [1, 1, 1, 1]], [[200, 210, 220, 230], [10, 30, 40, 20]]
    result = np.array(labels + bins, np.uint8)
    kept = keep_confident(result, class_thresholds([result], 0.5))
    assert kept.tolist() == [[255, 255, 0, 0], [255, 1, 1, 255]]


def test_ignored_pixels_stay_ignored() -> None:
    result = np.array([[255, 0], [9, 9]], np.uint8)
    assert keep_confident(result, class_thresholds([result], 1.0)).tolist() == [[255, 0]]


# ---- labels


def images_and_predictions(count: int = 4) -> list[tuple[ImageRecord, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    draw = [(torch.randn(3, 9, 7, generator=generator) * 2).softmax(0) for _ in range(count)]
    return [(ImageRecord(i, f"{i}.png", 9, 7, "train"), p) for i, p in enumerate(draw)]


def photo(image: ImageRecord) -> np.ndarray:
    return np.random.default_rng(image.id).integers(0, 256, (9, 7, 3), np.uint8)


@pytest.mark.parametrize("with_crf", [False, True])
@pytest.mark.parametrize("threshold", [None, 0.5])
def test_labels_and_the_confidence_before_the_crf(with_crf: bool, threshold: float | None) -> None:
    c, predictions = factories.group("crf", Crf), images_and_predictions()
    p = setting(crf=with_crf, threshold=threshold)
    results = list(teacher.label(iter(predictions), photo, p, c, 4, CPU))
    assert [image for image, _ in results] == [image for image, _ in predictions]
    for (image, result), (_, q) in zip(results, predictions, strict=True):
        x = q.numpy()
        labels = crf.refine(x, photo(image), c) if with_crf else x.argmax(0).astype(np.uint8)
        want = labels if threshold is None else np.concatenate([labels, confidence_bins(x, labels)])
        assert result.dtype == np.uint8
        assert np.array_equal(result, want)


# ---- settings


def test_an_item_of_refine_has_its_own_values() -> None:
    refine = [{"from": "r0", "to": "r1", "crf": False, "scales": [1, 1.5]}, {"from": "r1", "to": "r2"}]
    base = setting(crf=True, threshold=0.5)
    assert teacher.of_round(base, refine, "r1") == Relabel(False, False, [1.0, 1.5], 0.5)
    assert teacher.of_round(base, refine, "r2") == base


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"to": "r1", "crf": "no"}, r"refine\[0\]\.crf is 'no'; it must be bool"),
        ({"to": "r1", "threshold": 1.5}, r"refine\[0\]\.threshold is 1\.5; it must be above 0 and at most 1"),
        ({"to": "r1", "fold": 1}, r"refine\[0\]\.fold is not a parameter; refine\[0\] has crf, flip, scales, threshold"),
        ({"to": "r2"}, "refine has no item whose `to` is r1"),
        ("r1", "refine has no item whose `to` is r1"),
    ],
)
def test_an_item_that_cannot_be_used(item: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        teacher.of_round(setting(), [item], "r1")


def test_settings_out_of_range() -> None:
    with pytest.raises(InputError, match=r"relabel\.scales is \[\]; it must have at least 1 values"):
        setting(scales=[])
    with pytest.raises(InputError, match=r"relabel\.scales\[1\] is 0"):
        setting(scales=[1.0, 0])


# ---- the stage


def run_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> tuple[LabelMaps, list[ImageRecord]]:
    sizes = [(24, 32), (24, 32), (20, 28)]
    images = [ImageRecord(i + 1, f"{i}.png", *size, "train") for i, size in enumerate(sizes)]
    for image in images:
        pixels = np.random.default_rng(image.id).integers(0, 256, (*image.size, 3), np.uint8)
        Pillow.fromarray(pixels).save(tmp_path / image.file_name)
    trained = net()
    segmenter.write_segmenter(tmp_path / "s.safetensors", trained.model, trained.shape, 32, "fp32")
    (tmp_path / "images.json").write_text(json.dumps({"images": [vars(i) for i in images]}))
    content = {**factories.demo_params(), "refine": [{"from": "r0", "to": "r1", **changes}]}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.chdir(tmp_path)
    relabel.main("images.json", ".", "s.safetensors", "labels.zip", "r1")
    return LabelMaps(tmp_path / "labels.zip"), images


def test_the_stage_keeps_the_confident_part_of_each_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    views = {"flip": True, "scales": [1.0, 1.25]}
    plain, images = run_stage(tmp_path, monkeypatch, crf=False, **views)
    everything = np.concatenate([plain[i].ravel() for i in images])
    kept_maps, _ = run_stage(tmp_path, monkeypatch, crf=False, threshold=0.7, **views)
    kept = np.concatenate([kept_maps[i].ravel() for i in images])
    assert len(np.unique(everything)) > 1
    assert np.array_equal(kept[kept != IGNORE_LABEL], everything[kept != IGNORE_LABEL])
    for c in np.unique(everything):
        assert 0.7 <= (kept[everything == c] == c).mean() < 0.8


def test_the_stage_without_own_values_is_a_prediction_and_a_crf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maps, images = run_stage(tmp_path, monkeypatch)
    trained, c = segmenter.load("s.safetensors"), factories.group("crf", Crf)
    batches = segmenter.load_batches(trained, ".", images, factories.group("predict", segmenter.Predict))
    for image, p in segmenter.predict(trained, batches):
        want = crf.refine(p.numpy(), np.asarray(Pillow.open(image.file_name)), c)
        assert np.array_equal(maps[image], want)
