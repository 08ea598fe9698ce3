"""Metrics against numbers worked out by hand, properties, and independent implementations."""

import itertools
from dataclasses import replace
from typing import Any

import factories
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from sklearn.metrics import confusion_matrix, jaccard_score

from unseg.core.instances import Detection, Instance
from unseg.core.masks import boxes_xyxy
from unseg.evaluation import metrics

VOID = 255


def row(*labels: int) -> np.ndarray:
    """A label map of one row."""
    return np.array([labels], np.uint8)


def square(x: int, y: int, size: int) -> np.ndarray:
    """A square in an image of 100x400 pixels."""
    mask = np.zeros((100, 400), bool)
    mask[y : y + size, x : x + size] = True
    return mask


def object_at(x: int, image: int = 1, category: int = 1, y: int = 0, size: int = 40, iscrowd: bool = False) -> Instance:
    return replace(factories.instance(square(x, y, size), image, category), iscrowd=iscrowd)


def detection_at(x: int, score: float, image: int = 1, category: int = 1, y: int = 0, size: int = 40) -> Detection:
    return factories.detection(square(x, y, size), score, image, category)


def miou(counts: np.ndarray, assignment: np.ndarray) -> float:
    return metrics.mean(metrics.iou(metrics.clusters_to_classes(counts, assignment)))


confusions = arrays(np.int64, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=5), elements=st.integers(0, 30))
pairs = st.integers(2, 6).flatmap(
    lambda n: st.tuples(st.just(n), *(arrays(np.uint8, (5, 12), elements=st.sampled_from([*range(n), VOID])) for _ in "tp"))
)


# Confusion


def test_confusion_by_hand() -> None:
    #       truth 0 0 0 1 1 2 void 1         the last prediction is void: it counts as background
    #  prediction 2 2 1 0 0 1    1 void
    counts = metrics.confusion(row(0, 0, 0, 1, 1, 2, VOID, 1), row(2, 2, 1, 0, 0, 1, 1, VOID), 3, 4)
    assert counts.tolist() == [[0, 1, 2, 0], [3, 0, 0, 0], [0, 1, 0, 0]]
    assert counts.dtype == np.int64
    wide = metrics.confusion(row(0, 0, 0, 1, 1, 2, VOID, 1).astype(np.int32), row(2, 2, 1, 0, 0, 1, 1, VOID).astype(int), 3, 4)
    assert (wide == counts).all()


@settings(max_examples=40, deadline=None)
@given(pairs)
def test_confusion_and_iou_agree_with_sklearn(case: tuple[int, np.ndarray, np.ndarray]) -> None:
    n, truth, prediction = case
    counts = metrics.confusion(truth, prediction, n, n)
    t, p = truth[truth != VOID], np.where(prediction == VOID, 0, prediction)[truth != VOID]
    if t.size == 0:
        assert not counts.any()
        return
    assert (counts == confusion_matrix(t, p, labels=range(n))).all()
    there = np.unique(t)
    ious = metrics.iou(counts)
    assert np.allclose(ious[there], jaccard_score(t, p, labels=there, average=None, zero_division=0))
    assert np.isnan(np.delete(ious, there)).all()
    assert metrics.pixel_accuracy(counts) == pytest.approx((t == p).mean())


@settings(max_examples=20, deadline=None)
@given(pairs, st.randoms(use_true_random=False))
def test_the_order_of_images_does_not_matter(case: tuple[int, np.ndarray, np.ndarray], random: Any) -> None:
    n, truth, prediction = case
    rows = list(zip(truth, prediction, strict=True))
    random.shuffle(rows)
    parts = np.sum([metrics.confusion(t[None], p[None], n, n) for t, p in rows], 0)
    assert (parts == metrics.confusion(truth, prediction, n, n)).all()


@pytest.mark.parametrize(
    ("truth", "prediction", "message"),
    [
        (row(0, 1), row(0, 1, 1), r"the truth is \(1, 2\), the prediction \(1, 3\)"),
        (row(0, 3), row(0, 1), "the truth has label 3; it may have 0 to 2, and 255"),
        (row(0, 1), row(0, 4), "the prediction has label 4; it may have 0 to 3, and 255"),
        (row(0, VOID), row(0, 4), "the prediction has label 4"),
        (row(0, 1).astype(float), row(0, 1), "the truth is float64; labels are integers"),
        (row(0, 1), row(0, 1).astype(int) - 1, "the prediction has label -1; labels are 0 to 255"),
        (row(0, 1), row(0, 1).astype(int) + 256, "the prediction has label 256; labels are 0 to 255"),
    ],
)
def test_confusion_refuses(truth: np.ndarray, prediction: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metrics.confusion(truth, prediction, 3, 4)


def test_254_clusters_fit() -> None:
    prediction = np.arange(256, dtype=np.uint8)[None]
    counts = metrics.confusion(np.zeros_like(prediction), prediction, 1, 255)
    assert counts[0, 0] == 2  # 0 and void
    assert (counts[0, 1:] == 1).all()


# IoU


def test_iou_by_hand() -> None:
    counts = np.array([[3, 1, 0, 1], [0, 2, 0, 0], [0, 0, 0, 0]])  # the last column: given no class; class 2 is absent
    assert np.allclose(metrics.iou(counts), [3 / 5, 2 / 3, np.nan], equal_nan=True)
    assert metrics.mean(metrics.iou(counts)) == pytest.approx((3 / 5 + 2 / 3) / 2)
    assert metrics.pixel_accuracy(counts) == 5 / 7


def test_an_absent_class_is_left_out_even_if_predicted_and_a_missed_one_is_not() -> None:
    absent = metrics.confusion(row(0, 0, 1, 1), row(0, 0, 1, 2), 3, 3)
    assert np.allclose(metrics.iou(absent), [1, 1 / 2, np.nan], equal_nan=True)
    missed = metrics.confusion(row(0, 0, 1, 2), row(0, 0, 1, 1), 3, 3)
    assert metrics.iou(missed).tolist() == [1, 0.5, 0]


def test_scores_without_pixels_are_nan() -> None:
    nothing = np.zeros((2, 3), np.int64)
    assert np.isnan(metrics.mean(metrics.iou(nothing)))
    assert np.isnan(metrics.pixel_accuracy(nothing))
    assert metrics.match(nothing, by="iou").tolist() == [-1, -1, -1]
    assert metrics.rounded(float("nan")) is None
    assert metrics.rounded(2 / 3) == 0.666667


# Matching


def test_matched_miou_of_six_pixels() -> None:
    counts = metrics.confusion(row(0, 0, 0, 1, 1, 2), row(2, 2, 1, 0, 0, 1), 3, 3)
    assignment = metrics.match(counts, by="iou")
    assert assignment.tolist() == [1, 2, 0]
    named = metrics.clusters_to_classes(counts, assignment)
    assert named.tolist() == [[2, 0, 1, 0], [0, 2, 0, 0], [0, 0, 1, 0]]
    assert np.allclose(metrics.iou(named), [2 / 3, 1, 1 / 2])
    assert metrics.pixel_accuracy(named) == 5 / 6


def test_iou_and_accuracy_can_choose_differently() -> None:
    # by pixels 50 + 0 > 30 + 15; by IoU 50 / 95 + 0 < 30 / 80 + 15 / 65
    counts = np.array([[50, 30], [15, 0]])
    assert metrics.match(counts, by="accuracy").tolist() == [0, -1]
    assert metrics.match(counts, by="iou").tolist() == [1, 0]
    assert miou(counts, metrics.match(counts, by="iou")) == pytest.approx((30 / 80 + 15 / 65) / 2)
    assert miou(counts, metrics.match(counts, by="accuracy")) == pytest.approx((50 / 95 + 0) / 2)


def test_equal_accuracies_are_told_apart_by_iou() -> None:
    # three ways to 4 + 6 pixels: 4/8 + 6/16 (clusters 0, 1), 4/14 + 6/12 (1, 2), 4/8 + 6/12 (0, 2)
    counts = np.array([[4, 4, 0], [0, 6, 6]])
    assert metrics.match(counts, by="accuracy").tolist() == [0, -1, 1]
    assert metrics.match(counts[:, ::-1], by="accuracy").tolist() == [1, -1, 0]
    close = np.array([[21, 10], [10, 0]])  # a pixel more outweighs IoU: 21 / 41 against 10 / 31 + 10 / 31
    assert metrics.match(close, by="accuracy").tolist() == [0, -1]


def test_background_fixed_is_not_matched() -> None:
    counts = np.array([[10, 60, 0], [40, 5, 0], [0, 5, 20]])  # label 1 is more of the background than label 0
    assert metrics.match(counts, by="iou").tolist() == [1, 0, 2]
    fixed = metrics.match(counts, by="iou", fixed_background=True)
    assert fixed.tolist() == [0, 1, 2]
    assert miou(counts, fixed) == pytest.approx((10 / 110 + 5 / 110 + 20 / 25) / 3)


def test_background_fixed_stays_without_a_pixel() -> None:
    assert metrics.match(np.array([[0, 3], [0, 4]]), by="iou", fixed_background=True).tolist() == [0, 1]


def test_more_clusters_than_classes() -> None:
    counts = np.array([[8, 0, 4, 0], [1, 6, 0, 0]])
    one_to_one = metrics.match(counts, by="iou")
    assert one_to_one.tolist() == [0, 1, -1, -1]
    assert metrics.clusters_to_classes(counts, one_to_one).tolist() == [
        [8, 0, 4],
        [1, 6, 0],
    ]  # the surplus cluster counts as missed
    assert miou(counts, one_to_one) == pytest.approx((8 / 13 + 6 / 7) / 2)
    many = metrics.majority(counts)
    assert many.tolist() == [0, 1, 0, -1]
    assert miou(counts, many) == pytest.approx((12 / 13 + 6 / 7) / 2)


def test_fewer_clusters_than_classes() -> None:
    counts = np.array([[8], [3], [1]])
    assert metrics.match(counts, by="iou").tolist() == [0]
    assert metrics.iou(metrics.clusters_to_classes(counts, np.array([0]))).tolist() == [8 / 12, 0, 0]


def test_majority_takes_the_first_of_equals() -> None:
    assert metrics.majority(np.array([[2, 0], [2, 1], [1, 1]])).tolist() == [0, 1]


def test_unknown_way_of_matching() -> None:
    with pytest.raises(ValueError, match="by is 'luck'; it must be iou or accuracy"):
        metrics.match(np.eye(2, dtype=np.int64), by="luck")


def every_assignment(classes: int, clusters: int) -> Any:
    """All ways to give clusters classes one to one, as arrays [K]; brute force."""
    options = [*range(classes), *[-1] * clusters]
    return (np.array(a) for a in set(itertools.permutations(options, clusters)))


@settings(max_examples=30, deadline=None)
@given(confusions.filter(lambda c: max(c.shape) <= 4))
def test_matching_is_the_best_of_all(counts: np.ndarray) -> None:
    def ious(a: np.ndarray) -> float:
        return float(np.nansum(metrics.iou(metrics.clusters_to_classes(counts, a))))

    def hits(a: np.ndarray) -> int:
        return int(metrics.clusters_to_classes(counts, a).trace())

    ways = list(every_assignment(*counts.shape))
    by_iou, by_accuracy = (metrics.match(counts, by=by) for by in ("iou", "accuracy"))
    assert ious(by_iou) == pytest.approx(max(map(ious, ways)))
    assert hits(by_accuracy) == max(map(hits, ways))
    assert ious(by_accuracy) == pytest.approx(max(ious(a) for a in ways if hits(a) == hits(by_accuracy)))
    assert metrics.clusters_to_classes(counts, metrics.majority(counts)).trace() == counts.max(0).sum()
    for assignment in (by_iou, by_accuracy):
        used = assignment[assignment >= 0]
        assert len(used) == len(set(used))


@settings(max_examples=50, deadline=None)
@given(confusions, st.randoms(use_true_random=False))
def test_names_of_clusters_do_not_matter(counts: np.ndarray, random: Any) -> None:
    order = list(range(counts.shape[1]))
    random.shuffle(order)
    for way in (lambda c: metrics.match(c, by="iou"), lambda c: metrics.match(c, by="accuracy"), metrics.majority):
        one, other = miou(counts, way(counts)), miou(counts[:, order], way(counts[:, order]))
        assert one == pytest.approx(other, nan_ok=True)


@settings(max_examples=30, deadline=None)
@given(confusions)
def test_renaming_loses_no_pixel(counts: np.ndarray) -> None:
    named = metrics.clusters_to_classes(counts, metrics.match(counts, by="iou"))
    assert named.shape == (len(counts), len(counts) + 1)
    assert (named.sum(1) == counts.sum(1)).all()


# Average precision

HIT_MISS_HIT = (51 * 1 + 50 * 2 / 3) / 101  # two objects: precision 1 up to recall 0.5, then 2/3


def test_average_precision_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    objects = [object_at(0), object_at(100)]
    detections = [detection_at(x, score=s) for x, s in ((0, 0.9), (300, 0.8), (100, 0.7))]
    numbers, curve = metrics.average_precision(objects, detections, class_aware=False)
    assert numbers["AP50"] == pytest.approx(HIT_MISS_HIT, abs=1e-6) == pytest.approx(0.834983, abs=1e-6)
    assert numbers["AP"] == pytest.approx(numbers["AP75"]) == pytest.approx(HIT_MISS_HIT)
    assert [numbers[f"AR@{n}"] for n in (1, 10, 100)] == [0.5, 1, 1]
    assert curve.shape == (101,)
    assert np.allclose(curve, [1] * 51 + [2 / 3] * 50)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("shift", "thresholds"),  # columns; how many of 0.5, 0.55 .. 0.95 are met
    [(10, 3), (13, 1), (6, 5), (5, 6), (14, 0), (0, 10)],  # IoU 30/50, 27/53, 34/46 < 0.75, 35/45 > 0.75, 26/54, 1
)
def test_each_threshold_of_iou_counts(shift: int, thresholds: int) -> None:
    numbers, curve = metrics.average_precision([object_at(0)], [detection_at(shift, score=0.9)], class_aware=False)
    hits = [float(thresholds > 0)] * 2 + [float(thresholds > 5), thresholds / 10, thresholds / 10]
    assert [numbers["AP50"], curve[100], numbers["AP75"], numbers["AP"], numbers["AR@1"]] == pytest.approx(hits)


def test_an_object_is_found_once() -> None:
    detections = [detection_at(x, score=s) for x, s in ((0, 0.9), (0, 0.8), (100, 0.7))]
    numbers, _ = metrics.average_precision([object_at(0), object_at(100)], detections, class_aware=False)
    assert numbers["AP50"] == pytest.approx(HIT_MISS_HIT)


def test_class_agnostic_counts_every_cluster() -> None:
    objects = [object_at(0, category=1), object_at(100, category=2)]
    detections = [
        detection_at(0, category=0, score=0.9),
        detection_at(100, category=7, score=0.8),
    ]  # 0 and 7 are no class's number
    assert metrics.average_precision(objects, detections, class_aware=False)[0]["AP50"] == pytest.approx(1)
    assert metrics.average_precision(objects, detections, class_aware=True)[0]["AP50"] == 0


def test_class_aware_is_the_mean_over_classes_with_objects() -> None:
    objects = [object_at(0, category=1), object_at(100, category=2), object_at(200, category=3, iscrowd=True)]
    detections = [
        detection_at(0, category=1, score=0.9),
        detection_at(0, category=2, score=0.8),
        detection_at(0, category=9, score=0.7),
    ]
    numbers, curve = metrics.average_precision(objects, detections, class_aware=True)
    assert [numbers["AP50"], numbers["AR@100"], curve[0]] == pytest.approx(
        [0.5] * 3
    )  # class 1 is found, class 2 is not, 3 and 9 have no object


def test_a_detection_on_a_crowd_is_no_false_alarm() -> None:
    detections = [detection_at(100, score=0.9), detection_at(0, score=0.8)]
    with_crowd = [object_at(0), object_at(100, iscrowd=True)]
    assert metrics.average_precision(with_crowd, detections, class_aware=False)[0]["AP50"] == pytest.approx(1)
    assert metrics.average_precision([object_at(0)], detections, class_aware=False)[0]["AP50"] == pytest.approx(0.5)


def test_an_image_without_objects_can_only_have_false_alarms() -> None:
    detections = [detection_at(0, image=2, score=0.9), detection_at(0, image=1, score=0.8)]
    assert metrics.average_precision([object_at(0)], detections, class_aware=False)[0]["AP50"] == pytest.approx(0.5)


@pytest.mark.parametrize("class_aware", [True, False])
def test_nothing_found_and_nothing_to_find(class_aware: bool) -> None:
    numbers, curve = metrics.average_precision([object_at(0)], [], class_aware)
    assert set(numbers.values()) == {0}
    assert not curve.any()
    for detections in ([], [detection_at(0, score=0.9)]):
        numbers, curve = metrics.average_precision([], detections, class_aware)
        assert np.isnan([*numbers.values(), *curve]).all()


def random_scenes(seed: int) -> tuple[list[Instance], list[Detection]]:
    """Squares in six images, detections near them and far from them, scores all different."""
    rng = np.random.default_rng(seed)
    objects = [object_at(int(rng.integers(360)), int(rng.integers(6)), int(rng.integers(1, 4))) for _ in range(12)]
    scores = iter(rng.permutation(100) / 100)
    near = [(o.bbox[0] + rng.integers(0, 14), o.image_id, o.category_id) for o in objects[:9]]
    far = [(rng.integers(360), rng.integers(7), rng.integers(1, 4)) for _ in range(9)]
    detections = [detection_at(min(360, int(x)), float(next(scores)), int(i), int(c)) for x, i, c in near + far]
    return objects, detections


def plain_ap50(objects: list[Instance], detections: list[Detection]) -> float:
    """AP at IoU 0.5 of one category, as a slow loop over detections."""
    taken: set[int] = set()
    hits = []
    for d in sorted(detections, key=lambda d: -d.score):
        best, which = 0.5, None
        for j, o in enumerate(objects):
            if o.image_id == d.image_id and j not in taken:
                a, b = d.mask.decode(), o.mask.decode()
                overlap = (a & b).sum() / (a | b).sum()
                if overlap >= best:
                    best, which = overlap, j
        hits.append(which is not None)
        taken |= {which} if which is not None else set()
    recall, precision = np.cumsum(hits) / len(objects), np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float(np.mean([max(precision[recall >= r - 1e-12], default=0) for r in np.linspace(0, 1, 101)]))


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_agrees_with_a_slow_loop_in_any_order(seed: int) -> None:
    objects, detections = random_scenes(seed)
    numbers, _ = metrics.average_precision(objects, detections, class_aware=False)
    assert numbers["AP50"] == pytest.approx(plain_ap50(objects, detections))
    assert 0.2 < numbers["AP50"] < 0.9
    rng = np.random.default_rng(seed)
    mixed, shuffled = ([records[i] for i in rng.permutation(len(records))] for records in (objects, detections))
    assert metrics.average_precision(mixed, shuffled, class_aware=False)[0] == pytest.approx(numbers)
    by_class = [plain_ap50(*([r for r in rs if r.category_id == c] for rs in (objects, detections))) for c in (1, 2, 3)]
    assert metrics.average_precision(objects, detections, class_aware=True)[0]["AP50"] == pytest.approx(np.mean(by_class))


def test_torchmetrics_agrees() -> None:
    torch = pytest.importorskip("torch")
    from torchmetrics.detection import MeanAveragePrecision
    from torchmetrics.functional.classification import multiclass_confusion_matrix, multiclass_jaccard_index

    rng = np.random.default_rng(0)
    truth, prediction = (rng.integers(0, 5, (30, 40)).astype(np.uint8) for _ in "tp")
    prediction = np.where(rng.random(truth.shape) < 0.5, truth, prediction)
    truth[:3] = VOID
    maps = torch.tensor(prediction.astype(int)), torch.tensor(truth.astype(int))
    counts = metrics.confusion(truth, prediction, 5, 5)
    assert (counts == multiclass_confusion_matrix(*maps, 5, ignore_index=VOID).numpy()).all()
    assert metrics.mean(metrics.iou(counts)) == pytest.approx(multiclass_jaccard_index(*maps, 5, ignore_index=VOID).item())

    objects, detections = random_scenes(1)
    images = {o.image_id for o in objects}  # torchmetrics leaves out images without objects, COCO's own code does not
    detections = [d for d in detections if d.image_id in images]
    steps = np.linspace(0.5, 0.95, 10).tolist(), np.linspace(0, 1, 101).tolist()  # its own are float32 and miss some recalls
    judge = MeanAveragePrecision(iou_type="segm", iou_thresholds=steps[0], rec_thresholds=steps[1])
    for image in images:

        def tensors(records: list[Any], image: int = image) -> dict[str, Any]:
            mine = [r for r in records if r.image_id == image]
            masks = np.array([r.mask.decode() for r in mine]).reshape(-1, 100, 400)
            labels = torch.tensor([r.category_id for r in mine], dtype=torch.int64)
            scores = torch.tensor([getattr(r, "score", 1.0) for r in mine])
            return {"masks": torch.tensor(masks), "labels": labels, "scores": scores}

        judge.update([tensors(detections)], [tensors(objects)])
    theirs = judge.compute()
    ours, _ = metrics.average_precision(objects, detections, class_aware=True)
    names = {"AP": "map", "AP50": "map_50", "AP75": "map_75", "AR@1": "mar_1", "AR@10": "mar_10", "AR@100": "mar_100"}
    assert {k: theirs[v].item() for k, v in names.items()} == pytest.approx(ours, abs=1e-6)


# Protocols for objects


def test_single_object_keeps_the_highest_scoring_detection_and_its_object() -> None:
    objects = [object_at(0), object_at(100), object_at(0, image=2), object_at(0, image=3, iscrowd=True)]
    detections = [detection_at(0, score=0.5), detection_at(110, score=0.8)]
    detections += [detection_at(0, image=3, score=0.9), detection_at(0, image=4, score=0.9)]
    kept, tops = metrics.single_object(objects, detections)
    assert kept == [objects[1]]  # image 2 has no detection, 3 only a crowd, 4 no object
    assert tops == [detections[1]]
    assert metrics.average_precision(kept, tops, class_aware=False)[0]["AP"] == pytest.approx(0.3)  # IoU 0.6
    assert metrics.average_precision(objects, detections, class_aware=False)[0]["AP50"] < 0.6


def frame() -> Instance:
    """The outline, a pixel wide, of a square of 60 pixels: 236 of its 3,600."""
    mask = np.zeros((100, 400), bool)
    mask[0:60, 0:60] = True
    mask[1:59, 1:59] = False
    return factories.instance(mask, 1, 1)


def test_single_goes_by_the_overlap_of_boxes() -> None:
    objects = [object_at(10, y=10), frame()]
    detections = [detection_at(0, size=60, score=0.9)]
    assert metrics.single_object(objects, detections)[0] == [objects[1]]
    assert metrics.mask_iou(detections, objects).argmax() == 0


def test_of_equal_scores_and_overlaps_the_first_is_taken() -> None:
    objects, detections = [object_at(100), object_at(100, category=2)], [detection_at(0, score=0.9), detection_at(100, score=0.9)]
    assert metrics.single_object(objects, detections) == ([objects[0]], [detections[0]])


def test_overlaps_agree_with_pixels_and_boxes() -> None:
    objects, detections = random_scenes(2)
    detections, objects = detections[:5], objects[:4]
    masks, others = ([r.mask.decode() for r in records] for records in (detections, objects))
    want = [[(a & b).sum() / (a | b).sum() for b in others] for a in masks]
    assert np.max(want) > 0.5
    assert np.allclose(metrics.mask_iou(detections, objects), want)
    assert np.allclose(metrics.box_iou(detections, objects), want)  # squares fill their boxes
    assert metrics.box_iou([], objects).shape == (0, len(objects))
    x0, y0, x1, y1 = boxes_xyxy([objects[0].mask])[0]
    assert (x1 - x0) * (y1 - y0) == objects[0].mask.area


def test_objects_are_counted_for_the_cluster_of_the_highest_scoring_detection() -> None:
    objects = [object_at(0, category=1), object_at(100, category=2), object_at(0, image=2, category=2)]
    objects += [object_at(0, image=3, category=3), object_at(200, category=1, iscrowd=True)]
    detections = [
        detection_at(0, category=0, score=0.4),
        detection_at(2, category=1, score=0.8),
        detection_at(30, category=2, score=0.9),
    ]
    detections += [detection_at(100, category=0, score=0.3), detection_at(0, image=2, category=0, score=0.7)]
    detections += [detection_at(200, category=2, score=0.99)]
    counts = metrics.object_counts(objects, detections, 3, 4)
    assert counts.tolist() == [[0, 1, 0, 0], [2, 0, 0, 0], [0, 0, 0, 0]]
    assignment = metrics.match(counts, by="accuracy")
    assert assignment.tolist() == [1, 0, -1, -1]
    named = metrics.class_names_of_clusters(detections, assignment)
    assert [(d.category_id, d.score) for d in named] == [(2, 0.4), (1, 0.8), (2, 0.3), (2, 0.7)]
    assert detections[0].category_id == 0  # the detections given are not changed


def test_quality_of_mined_masks_by_hand() -> None:
    objects = [object_at(0), object_at(100), object_at(0, image=2), object_at(0, image=3), object_at(0, image=4, iscrowd=True)]
    masks = [detection_at(110, score=1.0), detection_at(20, image=2, score=1.0), detection_at(0, image=4, score=1.0)]
    quality = metrics.mask_quality(objects, masks)  # image 1: 0.6, image 2: 20 / 60, image 3: no mask, 4: a crowd only
    assert quality == pytest.approx({"mean_iou": (0.6 + 1 / 3 + 0) / 3, "corloc": 1 / 3})
    half = metrics.mask_quality([object_at(0, size=60)], [detection_at(0, size=60, y=20, score=1.0)])
    assert half == pytest.approx({"mean_iou": 0.5, "corloc": 1})  # 40 of 80 rows: an IoU of 0.5 counts
    outline = metrics.mask_quality([frame()], [detection_at(0, size=60, score=1.0)])
    assert outline == pytest.approx({"mean_iou": 236 / 3600, "corloc": 1})
    assert np.isnan([*metrics.mask_quality([], masks).values()]).all()
