"""Label maps (segmentation/pseudo_labels.py, stages/aggregate.py): by hand, and against a slow painter."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import factories
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from stages import aggregate
from unseg.core.console import InputError
from unseg.core.image_index import read_images
from unseg.core.instances import Detection
from unseg.core.label_maps import LabelMaps
from unseg.core.masks import encode
from unseg.core.storage import write_json
from unseg.segmentation.pseudo_labels import Aggregation, keep_confident, paint

PAPER = Aggregation(source="detections", threshold=0.9, overlap="keep_higher", shape="mask", uncertain="background")


def detection(category: int, score: float, mask: Any, image: int = 1) -> Detection:
    return factories.detection(np.atleast_2d(np.asarray(mask, bool)), score, image, category)


def rows(*text: str) -> np.ndarray:
    return np.array([[c != "." for c in line] for line in text])


# ---- which detections are kept


def test_detections_above_tau_are_kept_or_else_the_best() -> None:
    a, b, c = (detection(0, score, [[1]]) for score in (0.5, 0.95, 0.92))
    assert keep_confident([a, b, c], 0.9) == [b, c]
    assert keep_confident([a], 0.9) == [a]
    assert keep_confident([a, c], 0.92) == [c]  # not above tau, but the best
    assert keep_confident([detection(0, 0.8, [[1]]), a], 0.92)[0].score == 0.8
    assert keep_confident([], 0.9) == []


def test_a_score_of_tau_is_not_above_it() -> None:
    assert [d.score for d in keep_confident([detection(0, 0.9, [[1]]), detection(1, 0.91, [[1]])], 0.9)] == [0.91]


def test_equal_scores_stay_in_order() -> None:
    ties = [detection(k, 0.5, [[1]]) for k in range(5)]
    assert keep_confident(ties, 0.9) == ties[:1]
    assert keep_confident(ties, 0.1) == ties
    assert paint(ties, (1, 1), PAPER).tolist() == [[1]]


# ---- painting

A, B, C = [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]


@pytest.mark.parametrize(
    ("overlap", "want"),
    [
        ("keep_higher", [5, 5, 8, 3]),
        ("overwrite", [5, 8, 8, 3]),
        ("skip", [5, 5, 0, 3]),
        ("published", [5, 5, 0, 0]),
    ],
)
def test_three_in_a_row(overlap: str, want: list[int]) -> None:
    three = [detection(4, 0.95, A), detection(7, 0.93, B), detection(2, 0.91, C)]
    for detections in (three, three[::-1]):
        assert paint(detections, (1, 4), replace(PAPER, overlap=overlap)).tolist() == [want]


def test_the_best_alone_below_tau() -> None:
    two = [detection(2, 0.4, C), detection(4, 0.5, A)]
    assert paint(two, (1, 4), PAPER).tolist() == [[5, 5, 0, 0]]
    assert paint(two, (1, 4), replace(PAPER, uncertain="ignore")).tolist() == [[5, 5, 0, 255]]


def test_dropped_detections_give_way_to_kept_ones() -> None:
    detections = [detection(1, 0.95, A), detection(2, 0.5, B), detection(3, 0.2, [0, 1, 0, 1])]
    assert paint(detections, (1, 4), replace(PAPER, uncertain="ignore")).tolist() == [[2, 2, 255, 255]]
    assert paint(detections, (1, 4), PAPER).tolist() == [[2, 2, 0, 0]]


def test_skipped_detections_leave_background_even_if_dropped_ones_are_ignored() -> None:
    detections = [detection(1, 0.95, A), detection(2, 0.93, B)]
    assert paint(detections, (1, 4), replace(PAPER, overlap="skip", uncertain="ignore")).tolist() == [[2, 2, 0, 0]]


def test_published_overlap_looks_at_the_first_two_rows_only() -> None:
    low = [detection(0, 0.99, rows("...", "...", "11.")), detection(1, 0.95, rows("...", "...", ".11"))]
    published = replace(PAPER, overlap="published")
    assert paint(low, (3, 3), published).tolist() == [[0, 0, 0], [0, 0, 0], [1, 2, 2]]  # overwritten
    for top in (("..1", "...", "..."), ("...", "..1", "...")):
        three = [detection(2, 0.999, rows(*top)), *low]
        assert paint(three, (3, 3), published).tolist() == (3 * rows(*top)).tolist()  # the others are gone


def test_no_detections_no_objects() -> None:
    for shape in ("mask", "box", "grabcut"):
        assert not paint([], (3, 5), replace(PAPER, shape=shape, uncertain="ignore")).any()
    assert paint([], (3, 5), PAPER).shape == (3, 5)
    assert not paint([detection(0, 0.99, np.zeros((3, 5)))], (3, 5), PAPER).any()


def test_254_clusters_fit_into_a_label_map() -> None:
    assert paint([detection(253, 0.99, [[1]])], (1, 1), PAPER).tolist() == [[254]]


detections_of = st.integers(1, 6).flatmap(
    lambda n: st.tuples(
        st.permutations([0.99, 0.95, 0.93, 0.8, 0.7, 0.1]).map(lambda scores: scores[:n]),
        st.lists(st.lists(st.booleans(), min_size=20, max_size=20), min_size=n, max_size=n),
        st.lists(st.integers(0, 3), min_size=n, max_size=n),
    )
)


def slowly(scores: list[float], masks: np.ndarray, categories: list[int], p: Aggregation) -> np.ndarray:
    """Pixel by pixel. masks [M, H, W]"""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    kept = [i for i in order if scores[i] > p.threshold] or order[:1]
    painted: list[int] = []
    for i in kept:
        if p.overlap != "skip" or not any((masks[i] & masks[j]).any() for j in painted):
            painted.append(i)
    out = np.zeros(masks.shape[1:], int)
    for at in np.ndindex(out.shape):
        candidates = [i for i in painted if masks[i][at]]
        if candidates:
            out[at] = 1 + categories[candidates[-1 if p.overlap == "overwrite" else 0]]
        elif p.uncertain == "ignore" and any(masks[i][at] for i in order if i not in kept):
            out[at] = 255
    return out


@settings(max_examples=40, deadline=None)
@given(detections_of, st.sampled_from(["keep_higher", "overwrite", "skip"]), st.sampled_from(["background", "ignore"]))
def test_paint_equals_a_slow_painter(given_: Any, overlap: str, uncertain: str) -> None:
    scores, masks, categories = given_
    pixels = np.array(masks, bool).reshape(-1, 4, 5)
    p = replace(PAPER, overlap=overlap, uncertain=uncertain)
    detections = [detection(k, s, m) for k, s, m in zip(categories, scores, pixels, strict=True)]
    got = paint(detections, (4, 5), p)
    assert got.dtype == np.uint8
    assert got.flags.c_contiguous
    assert got.tolist() == slowly(scores, pixels, categories, p).tolist()


# ---- boxes and GrabCut


def test_a_box_is_rounded_and_cut_to_the_image() -> None:
    d = detection(0, 0.99, np.zeros((4, 6)))
    for bbox, want in (
        ((1.4, 0.6, 2.0, 1.0), (1, 2, 1, 3)),  # rows 1 to 2, cols 1 to 3: from 0.6 to 1.6, from 1.4 to 3.4
        ((-5.0, -5.0, 100.0, 7.0), (0, 2, 0, 6)),
        ((2.0, 2.0, 0.2, 1.0), (0, 0, 0, 0)),  # no width
        ((50.0, 50.0, 3.0, 3.0), (0, 0, 0, 0)),
    ):
        expected = np.zeros((4, 6), int)
        expected[want[0] : want[1], want[2] : want[3]] = 1
        assert paint([replace(d, bbox=bbox)], (4, 6), replace(PAPER, shape="box")).tolist() == expected.tolist()


def scene() -> tuple[np.ndarray, np.ndarray]:
    """A reddish disc on green grain: RGB [60, 80, 3], and where it is."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:60, :80]
    disc = (y - 30) ** 2 + (x - 40) ** 2 < 15**2
    image = np.where(disc[..., None], (200, 40, 40), (40, 160, 60)) + rng.normal(0, 12, (60, 80, 3))
    return image.clip(0, 255).astype(np.uint8), disc


def test_grabcut_finds_the_disc_in_its_box() -> None:
    image, disc = scene()
    image.flags.writeable = False  # as Pillow gives it
    d = replace(detection(6, 0.99, disc), bbox=(20.0, 10.0, 40.0, 40.0))
    p = replace(PAPER, shape="grabcut")
    got = paint([d], (60, 80), p, image)
    assert set(np.unique(got)) == {0, 7}
    both, either = (got == 7) & disc, (got == 7) | disc
    assert both.sum() / either.sum() > 0.95


def test_grabcut_is_repeatable() -> None:
    rng = np.random.default_rng(2)
    tiles = np.kron(rng.integers(0, 256, (10, 10, 3)), np.ones((4, 4, 1))) + rng.normal(0, 5, (40, 40, 3))
    image = tiles.clip(0, 255).astype(np.uint8)
    image[10:25, 10:25, 0] //= 2
    image[10:25, 10:25, 1] = 200
    d = replace(detection(0, 0.99, np.zeros((40, 40))), bbox=(5.0, 5.0, 27.0, 27.0))
    maps = {paint([d], (40, 40), replace(PAPER, shape="grabcut"), image).tobytes() for _ in range(20)}
    assert len(maps) == 1  # 2 without a seed


def test_grabcut_that_fails_gives_no_mask() -> None:
    image, disc = scene()
    p = replace(PAPER, shape="grabcut")
    for bbox in ((0.0, 0.0, 80.0, 60.0), (3.0, 3.0, 0.0, 5.0)):  # a box without background; an empty box
        assert not paint([replace(detection(0, 0.99, disc), bbox=bbox)], (60, 80), p, image).any()
    for other in (None, image[:10]):
        with pytest.raises(ValueError, match="grabcut"):
            paint([detection(0, 0.99, disc)], (60, 80), p, other)


# ---- params


@pytest.mark.parametrize(
    ("key", "bad"), [("threshold", 1.5), ("overlap", "keep"), ("shape", "polygon"), ("uncertain", "void"), ("threshold", -0.1)]
)
def test_aggregation_refuses(key: str, bad: Any) -> None:
    with pytest.raises(InputError, match=rf"aggregate\.{key} is '?{bad}'?; it must be"):
        factories.group("aggregate", Aggregation, **{key: bad})


# ---- the stage

SPLITS = {"train_a.png": "train", "sub/b.png": "val", "c.png": "val"}
INDEX = [{"id": i, "file_name": n, "height": 2, "width": 4, "split": s} for i, (n, s) in enumerate(SPLITS.items(), 1)]
ALARMS = {"labels": {"min_images": 50, "max_empty": 0.95}}
OUTS = ("labels-r0.zip", "predictions/masks.zip", "predictions/detector.zip")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stage's inputs: image c has no detection, image b two uncertain ones."""
    monkeypatch.chdir(tmp_path)
    settings = replace(PAPER, uncertain="ignore")
    Path("params.yaml").write_text(yaml.safe_dump({"aggregate": asdict(settings), "alarms": ALARMS}))
    write_json("images.json", {"images": INDEX})
    mined = [factories.instance(rows("1...", "1..."), i, 10 * i, i).to_coco() for i in (1, 2, 3)]
    write_json("instances.json", {"images": INDEX, "annotations": mined, "categories": []})
    detections = [
        detection(4, 0.95, rows("11..", "...."), 1),
        detection(7, 0.5, rows(".11.", "...."), 1),
        detection(5, 0.6, rows("....", "..11"), 2),
        detection(6, 0.3, rows("....", "11.."), 2),
    ]
    write_json("detections.json", [d.to_coco() for d in detections])
    return tmp_path


def go() -> None:
    aggregate.main("images.json", "photographs", "instances.json", "detections.json", *OUTS)


def test_stage(folder: Path) -> None:
    go()
    a, b, c = read_images("images.json")
    labels, masks, detector = (LabelMaps(out) for out in OUTS)
    assert labels.names == {"train_a.png.png"}
    assert masks.names == detector.names == {"sub/b.png.png", "c.png.png"}
    assert labels[a].tolist() == [[5, 5, 255, 0], [0] * 4]
    assert masks[b].tolist() == [[21, 0, 0, 0]] * 2
    assert masks[c].tolist() == [[31, 0, 0, 0]] * 2
    assert detector[b].tolist() == [[0] * 4, [0, 0, 6, 6]]  # no void in a prediction
    assert not detector[c].any()


def test_stage_paints_the_mined_masks_as_they_are(folder: Path) -> None:
    """The settings for detections do not matter; boxes need no photograph."""
    settings = Aggregation(source="detections", threshold=1.0, overlap="skip", shape="box", uncertain="background")
    Path("params.yaml").write_text(yaml.safe_dump({"aggregate": asdict(settings), "alarms": ALARMS}))
    instances = json.loads(Path("instances.json").read_text())
    ell = factories.instance(rows("..1.", "..11"), 2, 0, 9).to_coco()
    write_json("instances.json", instances | {"annotations": [*instances["annotations"], ell]})
    go()
    b = read_images("images.json")[1]
    assert LabelMaps(OUTS[1])[b].tolist() == [[21, 0, 1, 0], [21, 0, 1, 1]]


def test_stage_paints_pseudo_labels_from_masks_alone(folder: Path) -> None:
    """Only the pseudo-labels change their source; a photograph without a mask is background."""
    go()
    predictions = [Path(out).read_bytes() for out in OUTS[1:]]
    Path("params.yaml").write_text(yaml.safe_dump({"aggregate": asdict(replace(PAPER, source="masks")), "alarms": ALARMS}))
    go()
    assert LabelMaps(OUTS[0])[read_images("images.json")[0]].tolist() == [[11, 0, 0, 0]] * 2
    assert [Path(out).read_bytes() for out in OUTS[1:]] == predictions


def test_stage_fails_where_pseudo_labels_are_empty(folder: Path) -> None:
    content = yaml.safe_load(Path("params.yaml").read_text())
    Path("params.yaml").write_text(yaml.safe_dump(content | {"alarms": {"labels": {"min_images": 1, "max_empty": 0.5}}}))
    go()
    detections = [d for d in json.loads(Path("detections.json").read_text()) if d["image_id"] != 1]
    write_json("detections.json", detections)
    with pytest.raises(InputError, match=r"labels-r0.zip: collapse: 100% of 1 pseudo-labels are all background"):
        go()
    assert not LabelMaps(OUTS[0])[read_images("images.json")[0]].any()  # it is written all the same


def test_stage_twice_gives_the_same_bytes(folder: Path) -> None:
    go()
    first = [Path(out).read_bytes() for out in OUTS]
    go()
    assert [Path(out).read_bytes() for out in OUTS] == first


def test_stage_reads_photographs_for_grabcut(folder: Path) -> None:
    Path("params.yaml").write_text(yaml.safe_dump({"aggregate": asdict(replace(PAPER, shape="grabcut")), "alarms": ALARMS}))
    image, disc = scene()
    write_json("images.json", {"images": [INDEX[0] | {"height": 60, "width": 80}]})
    write_json("instances.json", {"annotations": []})
    write_json("detections.json", [detection(0, 0.99, disc).to_coco() | {"bbox": [20.0, 10.0, 40.0, 40.0]}])
    Path("photographs").mkdir()
    Pillow.fromarray(image).save("photographs/train_a.png")
    go()
    got = LabelMaps(OUTS[0])[read_images("images.json")[0]] == 1
    assert (got & disc).sum() / (got | disc).sum() > 0.95


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 77}, r"detections\.json: no image has the id 77"),
        ({"segmentation": encode(np.ones((4, 2), bool)).rle}, r"detections\.json: a mask is \[4, 2\], train_a\.png is \[2, 4\]"),
        ({"category_id": 254}, r"detections\.json: train_a\.png has cluster 254; it must be from 0 to 253"),
        ({"segmentation": {"size": [2, 4], "counts": "03"}}, r"detections\.json: train_a\.png: .* do not add up to 2 x 4 pixels"),
        ({"segmentation": {"size": [2, 4], "counts": "1N4"}}, r"detections\.json: train_a\.png: .*below 0"),
        ({"segmentation": {"size": [2, 4], "counts": ""}}, r"detections\.json: train_a\.png: .*not empty"),
        ({"segmentation": {"size": [2, 4], "counts": [0, 8]}}, r"detections\.json: train_a\.png: .*counts"),
    ],
)
def test_stage_refuses_invalid_detections(folder: Path, change: dict[str, Any], message: str) -> None:
    detections = json.loads(Path("detections.json").read_text())
    write_json("detections.json", [detections[0] | change, *detections[1:]])
    with pytest.raises(InputError, match=message):
        go()
    assert not list(folder.glob("*.part"))
    assert not list(folder.glob(".*.part"))


def test_stage_needs_no_torch() -> None:
    code = "import sys, stages.aggregate; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
