"""The evaluation stages on small artefacts made by hand, and on artefacts that do not fit together."""

import json
from pathlib import Path
from typing import Any

import factories
import numpy as np
import pytest

from stages import evaluate_clustering, evaluate_instances
from unseg.core.console import InputError
from unseg.core.label_maps import write_label_maps
from unseg.core.storage import encode_png, write_json, write_zip
from unseg.evaluation import loading

CLASSES = ["background", "cat", "dog"]
SPLITS = {"train_a.jpg": "train", "sub/b.jpg": "val", "c.jpg": "val", "d.jpg": "val"}  # d has no truth
INDEX = [{"id": i, "file_name": name, "height": 4, "width": 6, "split": split} for i, (name, split) in enumerate(SPLITS.items())]
# K = 3. Pixels by truth and label over b and c: background 12 0 0 4, cat 0 0 12 0, dog 4 8 0 2; 6 void
TRUTH = {
    "train_a.jpg": np.full((4, 6), 1),
    "sub/b.jpg": np.repeat([[0, 0, 0, 0, 1, 1]], 4, 0),
    "c.jpg": np.array([[1] * 4 + [255] * 2, [2] * 6, [2] * 6, [2, 2, 255, 255, 255, 255]]),
}
GUESS = {
    "sub/b.jpg": np.repeat([[0, 0, 0, 3, 2, 2]], 4, 0),
    "c.jpg": np.array([[2] * 4 + [1] * 2, [1] * 6, [1, 1, 0, 0, 0, 255], [3, 3, 0, 0, 0, 0]]),
    "d.jpg": np.zeros((4, 6)),
}


def object_at(x: int, image: int, category: int, **more: Any) -> dict[str, Any]:
    """Two columns of the picture, as a COCO record."""
    mask = np.zeros((4, 6), bool)
    mask[:, x : x + 2] = True
    return {**factories.instance(mask, image, category).to_coco(), **more}


def write_truth(path: str, classes: list[str], semantic: dict[str, np.ndarray], objects: list[dict[str, Any]] | None) -> None:
    members = [("classes.json", json.dumps({"classes": classes}).encode())]
    members += [(f"semantic/{name}.png", encode_png(labels.astype(np.uint8))) for name, labels in semantic.items()]
    if objects is not None:
        categories = [{"id": c, "name": name} for c, name in enumerate(classes) if c]
        truth = {"images": [r for r in INDEX if r["file_name"] in TRUTH], "annotations": objects, "categories": categories}
        members.append(("instances.json", json.dumps(truth).encode()))
    write_zip(path, members)


def write_guess(**changes: np.ndarray) -> None:
    maps = {**GUESS, **{f"{name}.jpg": labels for name, labels in changes.items()}}
    write_maps(maps)


def write_maps(maps: dict[str, np.ndarray]) -> None:
    """The first round's; masks and detector have GUESS."""
    for step, by_name in {"masks": GUESS, "detector": GUESS, "r0": maps}.items():
        write_label_maps(f"predictions/{step}.zip", ((name, labels.astype(np.uint8)) for name, labels in by_name.items()))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text("seed: 5\ncluster:\n  k: 3\nrounds: [r0]\ncorrections: []\nrefine: []\nregroup: []\n")
    write_json("images.json", {"images": INDEX})
    write_truth("truth.zip", CLASSES, TRUTH, [object_at(0, 0, 1), object_at(0, 1, 1), object_at(4, 1, 2), object_at(0, 2, 2)])
    write_guess()
    mined = [object_at(0, 0, 0), object_at(0, 1, 0), object_at(1, 2, 0), object_at(0, 3, 0)]
    write_json("masks.json", {"images": INDEX, "annotations": mined, "categories": []})
    clustered = [{**m, "category_id": k} for m, k in zip(mined, (0, 1, 0, 0), strict=True)]
    write_json("instances.json", {"images": INDEX, "annotations": clustered, "categories": []})
    found = [object_at(0, 1, 1, score=0.9), object_at(4, 1, 0, score=0.8), object_at(2, 1, 2, score=0.7)]
    write_json("detections.json", [*found, object_at(0, 2, 0, score=0.6), object_at(0, 3, 2, score=0.99)])
    return tmp_path


CLUSTERING = ("images.json", "truth.zip", "instances.json", "predictions", "results/clustering", "results/details/clustering")


def read(name: str) -> Any:
    return json.loads(Path("results", name).read_text())


def clustering(step: str = "r0") -> tuple[Any, Any, Any]:
    """Scores, pixels of the confusion matrix, and IoUs."""
    evaluate_clustering.main(*CLUSTERING)
    scores, cells, ious = (read(f"details/clustering/{step}/{name}.json") for name in ("scores", "confusion", "class_iou"))
    assert read(f"clustering/{step}.json") == {
        key: scores[key] for key in ("miou", "pixel_accuracy", "human_labels") if key in scores
    }
    columns = list(dict.fromkeys(cell["prediction"] for cell in cells))
    matrix: dict[str, list[int]] = {cell["truth"]: [0] * len(columns) for cell in cells}
    for cell in cells:
        matrix[cell["truth"]][columns.index(cell["prediction"])] = cell["pixels"]
    assert columns == ([*matrix, "(no class)"] if cells else [])
    return scores, matrix, ious


def instances() -> tuple[Any, Any]:
    evaluate_instances.main(
        *("images.json", "truth.zip", "masks.json", "instances.json", "detections.json"),
        *("results/instances", "results/details/instances.json", "results/pr.json"),
    )
    return read("details/instances.json"), read("pr.json")


# Clustering


def test_clustering_by_hand() -> None:
    scores, confusion, ious = clustering()
    want = [12 / 20, 1, 8 / 14]  # background 12 of 16 + 4, cat 12 of 12, dog 8 of 14 + 0
    assert {p["number"] for p in scores.pop("protocols")} == {name for name in scores if name[:4] in ("miou", "pixe")}
    assert scores == {
        "images": 2,
        "seeds": [5],
        "clusters": 3,
        "classes": 3,
        "miou": round(sum(want) / 3, 6),
        "miou_accuracy_matching": round(sum(want) / 3, 6),
        "miou_background_fixed": round(sum(want) / 3, 6),
        "miou_majority": round((16 / 22 + 1 + 8 / 14) / 3, 6),  # label 3 joins the background
        "miou_training_objects": round((0.6 + 0 + 0) / 3, 6),  # cluster 0 lies on the training image's cat; the others on none
        "pixel_accuracy": round(32 / 42, 6),
    }
    assert confusion == {"background": [12, 0, 0, 4], "cat": [0, 12, 0, 0], "dog": [4, 0, 8, 2]}
    fractions = [cell["fraction"] for cell in read("details/clustering/r0/confusion.json")]
    assert fractions == [12 / 16, 0, 0, 4 / 16, 0, 1, 0, 0, round(4 / 14, 6), 0, round(8 / 14, 6), round(2 / 14, 6)]
    assert ious == [
        {"class": "background", "iou": 0.6, "cluster": -1},
        {"class": "cat", "iou": 1.0, "cluster": 1},
        {"class": "dog", "iou": round(8 / 14, 6), "cluster": 0},
    ]


def test_every_step_has_its_own_scores() -> None:
    """Each label map has the score that it would have alone."""
    swapped = {name: np.where(m == 1, 2, np.where(m == 2, 1, m)) for name, m in GUESS.items()}
    corrected = "corrections: [{from: g0, file: c.zip, to: r1}]\nrefine: []\nregroup: []\n"
    Path("params.yaml").write_text(f"seed: 5\ncluster:\n  k: 3\nrounds: [g0, r1]\n{corrected}")
    for step, maps in {"g0": swapped, "r1": {name: np.zeros((4, 6)) for name in GUESS}}.items():
        write_label_maps(f"predictions/{step}.zip", ((name, labels.astype(np.uint8)) for name, labels in maps.items()))
    first = clustering("masks")
    assert sorted(p.name for p in Path("results/clustering").iterdir()) == ["detector.json", "g0.json", "masks.json", "r1.json"]
    assert clustering("detector") == first
    (scores, confusion, ious), (_, same, _) = clustering("g0"), first
    assert (scores["miou"], confusion) == (first[0]["miou"], same)  # clusters have no names
    assert [row["cluster"] for row in ious] == [-1, 0, 1]
    assert clustering("r1")[0]["miou"] == round(16 / 42 / 3, 6)  # all background
    assert [clustering(step)[0].get("human_labels") for step in ("masks", "g0", "r1")] == [None, None, 1]


def test_each_image_has_its_own_iou() -> None:
    clustering()
    ious = read("details/clustering/r0/image_iou.json")
    b = [12 / 16, 1]  # background, cat: the only classes there
    c = [1, 8 / 14]  # of the 18 pixels that are not void: cat 4, dog 8 of 14
    assert ious == [{"file_name": "sub/b.jpg", "iou": sum(b) / 2}, {"file_name": "c.jpg", "iou": round(sum(c) / 2, 6)}]


def test_published_matching_goes_by_the_objects_of_the_training_images() -> None:
    """Clusters 1 and 0 lie on the training images' cats and dogs: the other way round than in the evaluation images."""
    objects = [object_at(0, 0, 1), object_at(4, 0, 2), object_at(0, 1, 1)]
    write_truth("truth.zip", CLASSES, TRUTH, objects)
    mined = [object_at(0, 0, 0), object_at(1, 0, 0), object_at(4, 0, 1)]  # two masks of cluster 0 on the cat
    write_json("instances.json", {"images": INDEX, "annotations": mined, "categories": []})
    scores, _, _ = clustering()
    assert scores["miou_training_objects"] == round((0.6 + 0 + 0) / 3, 6)
    swapped = [{**m, "category_id": 1 - m["category_id"]} for m in mined]
    write_json("instances.json", {"images": INDEX, "annotations": swapped, "categories": []})
    assert clustering()[0]["miou_training_objects"] == round(
        (0.6 + 1 + 8 / 14) / 3, 6
    )  # as by the pixels of the evaluation images
    write_truth("truth.zip", CLASSES, TRUTH, None)
    assert clustering()[0]["miou_training_objects"] is None  # no object, no such number
    write_json("instances.json", {"images": INDEX, "annotations": [object_at(0, 0, 3)], "categories": []})
    with pytest.raises(InputError, match=r"instances.json: train_a.jpg has cluster 3; it must be from 0 to 2"):
        clustering()


def test_box_votes_read_the_boxes_of_objects_and_crowds_without_their_masks() -> None:
    objects = [object_at(0, 1, 1, iscrowd=1), object_at(0, 0, 1), object_at(4, 1, 2), object_at(0, 3, 2)]
    write_truth("truth.zip", CLASSES, TRUTH, objects)
    images = [factories.image(id, (4, 6), "train", name) for id, name in ((1, "sub/b.jpg"), (3, "d.jpg"))]
    assert loading.read_boxes("truth.zip", images) == [(1, 1, (0, 0, 2, 4)), (1, 2, (4, 0, 2, 4)), (3, 2, (0, 0, 2, 4))]
    assert [x.iscrowd for x in loading.read_objects("truth.zip", images).objects] == [True, False, False]


def test_background_can_be_matched_freely_or_fixed() -> None:
    swapped = {0: 2, 2: 0}
    maps = {n: np.vectorize(lambda label: swapped.get(label, label))(m) for n, m in GUESS.items()}
    maps["c.jpg"][2, 5] = 2  # it was unsure, which is background, which is now 2
    write_maps(maps)
    scores, _, ious = clustering()
    assert scores["miou"] == round((0.6 + 1 + 8 / 14) / 3, 6)  # the names do not matter
    assert scores["miou_background_fixed"] < scores["miou"] == scores["miou_accuracy_matching"]
    assert [row["cluster"] for row in ious] == [1, -1, 0]


def test_all_images_are_evaluation_images_without_a_validation_split() -> None:
    write_json("images.json", {"images": [{**r, "split": "train"} for r in INDEX]})
    for step in ("masks", "detector", "r0"):
        write_label_maps(f"predictions/{step}.zip", ((name, labels.astype(np.uint8)) for name, labels in TRUTH.items()))
    scores, _, _ = clustering()
    assert (scores["images"], scores["miou"], scores["pixel_accuracy"]) == (3, 1, 1)


def test_a_class_without_pixels_has_no_iou() -> None:
    write_truth("truth.zip", [*CLASSES, "cow"], TRUTH, None)
    scores, confusion, ious = clustering()
    assert scores["miou"] == round((0.6 + 1 + 8 / 14) / 3, 6)
    assert ious[3] == {"class": "cow", "iou": None, "cluster": None}
    assert confusion["background"] == [12, 0, 0, 0, 4]


@pytest.mark.parametrize(
    ("classes", "semantic"),
    [([], {}), (CLASSES, {"train_a.jpg": TRUTH["train_a.jpg"]}), (CLASSES, {"c.jpg": np.full((4, 6), 255)})],
)
def test_clustering_without_truth_says_so(classes: list[str], semantic: dict[str, np.ndarray]) -> None:
    write_truth("truth.zip", classes, semantic, None)
    scores, confusion, ious = clustering()
    assert scores == {"images": 0, "needs": "ground truth: truth.zip has no pixel of a known class in an evaluation image"}
    assert (confusion, ious) == ({}, [])


def test_clustering_errors() -> None:
    write_guess(c=np.zeros((4, 7)))
    with pytest.raises(InputError, match=r"predictions/r0.zip: c.jpg.png is \(4, 7\), its image \(4, 6\)"):
        clustering()
    write_guess(c=np.full((4, 6), 4))
    with pytest.raises(
        InputError, match=r"c.jpg: the prediction has label 4; it may have 0 to 3, .* in predictions/r0.zip.*cluster.k"
    ):
        clustering()
    write_zip("predictions/r0.zip", [(f"{name}.png", b"no PNG") for name in GUESS])
    with pytest.raises(InputError, match=r"predictions/r0.zip: sub/b.jpg.png cannot be read .*make it again"):
        clustering()
    write_label_maps("predictions/r0.zip", [("c.jpg", GUESS["c.jpg"].astype(np.uint8))])
    with pytest.raises(InputError, match=r"predictions/r0.zip has no sub/b.jpg.png"):
        clustering()
    write_guess()
    write_truth("truth.zip", CLASSES[:2], TRUTH, None)
    with pytest.raises(InputError, match=r"c.jpg: the truth has label 2; it may have 0 to 1.*truth in truth.zip"):
        clustering()
    write_zip("truth.zip", [("semantic/c.jpg.png", encode_png(np.zeros((4, 6), np.uint8)))])
    with pytest.raises(InputError, match=r"truth.zip cannot be read .*classes.json.*make it again"):
        clustering()
    Path("truth.zip").write_bytes(b"")
    with pytest.raises(InputError, match=r"truth.zip cannot be read"):
        clustering()
    Path("truth.zip").unlink()
    with pytest.raises(InputError, match=r"truth.zip cannot be read .*No such file"):
        clustering()
    assert not Path("results").exists()


# Instances


def test_instances_by_hand() -> None:
    scores, curve = instances()
    masks, detector = scores["masks"], scores["detector"]
    assert scores["images"] == 2  # b and c; a is for training and d has no truth, though a detection
    # detections by score: hit, hit, miss, hit on 3 objects -> precision 1 up to recall 2/3, then 3/4
    ap = (67 + 34 * 3 / 4) / 101
    assert detector["multi"]["agnostic"]["AP50"] == detector["multi"]["agnostic"]["AP75"] == round(ap, 6)
    assert detector["multi"]["agnostic"]["AR@1"] == round(2 / 3, 6)
    assert detector["multi"]["agnostic"]["AR@100"] == 1
    assert detector["multi"]["objects"] == 3
    assert curve == [{"recall": i / 100, "precision": 1.0 if i < 67 else 0.75} for i in range(101)]
    # cluster 1 is the cat, 0 the dog, 2 nothing: the miss is not counted
    assert set(detector["multi"]["aware"].values()) == {1}
    assert detector["single"]["objects"] == 2
    assert set(detector["single"]["agnostic"].values()) == set(detector["single"]["aware"].values()) == {1}
    # mined: b hits its cat, c has 4 of 12 pixels
    assert masks["mean_iou"] == round((1 + 1 / 3) / 2, 6)
    assert masks["corloc"] == 0.5
    assert masks["multi"]["agnostic"]["AP50"] == round(34 / 101, 6)
    assert masks["multi"]["aware"]["AP50"] == 0.5  # cluster 1 found the cat, no cluster found a dog
    assert masks["single"]["agnostic"]["AP50"] == round(51 / 101, 6)
    # what `dvc metrics show` shows of it
    assert read("instances/masks.json") == {"mean_iou": masks["mean_iou"], "corloc": 0.5, "AP50": round(34 / 101, 6)}
    assert read("instances/detector.json") == {"AP": round(ap, 6), "AP50": round(ap, 6), "AR@100": 1}


def test_instances_in_another_order_are_the_same() -> None:
    first = instances()
    for name in ("detections.json", "instances.json"):
        content = json.loads(Path(name).read_text())
        write_json(name, content[::-1] if isinstance(content, list) else {**content, "annotations": content["annotations"][::-1]})
    assert instances() == first


def test_no_detection_at_all() -> None:
    write_json("detections.json", [])
    scores, curve = instances()
    assert set(scores["detector"]["multi"]["agnostic"].values()) == {0}
    assert set(scores["detector"]["single"]["aware"].values()) == {None}  # no image is left: no number
    assert {row["precision"] for row in curve} == {0}


@pytest.mark.parametrize("objects", [None, [], [object_at(0, 0, 1)], [object_at(0, 1, 1, iscrowd=1)]])
def test_instances_without_truth_says_so(objects: list[dict[str, Any]] | None) -> None:
    write_truth("truth.zip", CLASSES, {}, objects)
    assert instances() == ({"images": 0, "needs": "ground truth: truth.zip has no object in an evaluation image"}, [])
    assert (read("instances/masks.json"), read("instances/detector.json")) == ({}, {})


def test_instances_errors() -> None:
    large = factories.instance(np.ones((4, 7), bool), 1, 0).to_coco()
    write_json("detections.json", [{**large, "score": 0.5}])
    with pytest.raises(InputError, match=r"detections.json: a mask is \[4, 7\], sub/b.jpg is \[4, 6\]"):
        instances()
    write_json("detections.json", [object_at(0, 9, 0, score=0.5)])
    with pytest.raises(InputError, match=r"detections.json: no image has the id 9"):
        instances()
    write_json("detections.json", [{"image_id": 1, "category_id": 0, "score": 0.5}])
    with pytest.raises(
        InputError, match=r"detections.json: sub/b.jpg: a record has the bbox None; it must be \[x, y, width, height\]"
    ):
        instances()
    write_json("detections.json", [object_at(0, 1, -1, score=0.5)])
    with pytest.raises(InputError, match=r"detections.json: sub/b.jpg: a record has the category_id -1; it must be at least 0"):
        instances()
    write_truth("truth.zip", CLASSES, TRUTH, [object_at(0, 1, 3)])
    write_json("detections.json", [])
    with pytest.raises(InputError, match=r"truth.zip: an object has the class 3; it may have 1 to 2"):
        instances()
    write_truth("truth.zip", CLASSES, TRUTH, [{**large, "category_id": 1}])
    with pytest.raises(InputError, match=r"truth.zip: a mask is \[4, 7\], sub/b.jpg is \[4, 6\]"):
        instances()
    broken = object_at(0, 1, 1)
    broken["segmentation"]["counts"] = "11"
    write_truth("truth.zip", CLASSES, TRUTH, [broken])
    with pytest.raises(InputError, match=r"truth.zip: sub/b.jpg: the run lengths of a mask do not add up to 4 x 6 pixels"):
        instances()
    write_truth("truth.zip", CLASSES, TRUTH, [object_at(0, 1, 1)])
    Path("masks.json").unlink()
    with pytest.raises(InputError, match=r"masks.json: no such file"):
        instances()
    Path("truth.zip").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"truth.zip cannot be read"):
        instances()


def test_written_twice_the_bytes_are_the_same() -> None:
    def everything() -> dict[str, bytes]:
        clustering()
        instances()
        return {str(p): p.read_bytes() for p in Path("results").rglob("*.json")}

    first = everything()
    assert len(first) == 3 * 5 + 4
    assert everything() == first
