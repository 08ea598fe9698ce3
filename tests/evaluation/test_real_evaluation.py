"""Evaluation of what the pipeline's stages make of real photographs, with an untrained ViT: VOC's classes, COCO's instances."""

import json
import shutil
from pathlib import Path
from typing import Any

import factories
import numpy as np
import pytest
import torch
import yaml
from PIL import Image as Pillow
from pycocotools.coco import COCO
from safetensors.torch import save_file

from stages import aggregate, choose_k, cluster, embed, evaluate_clustering, evaluate_instances, evaluate_quality, mine, prepare
from stages import evaluate_backbone_kmeans as kmeans
from stages import evaluate_backbone_linear as linear
from unseg.core.storage import read_json, write_json
from unseg.models import vit

REAL = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
SHAPE = {"weights": "vit.safetensors", "patch": 16, "width": 16, "depth": 1, "heads": 2}
PARAMS: dict[str, Any] = {
    "seed": 0,
    "backbone": SHAPE,
    "embedder": SHAPE,
    "mine": {**factories.MINE, "resize": 128},
    "embed": {
        "region": "masked",
        "resize": 32,
        "longest": 64,
        "precision": "fp32",
        "descriptor": "cls",
        "layer": -1,
        "shifts": 1,
    },
    "cluster": {
        "k": 2,
        "whiten": "std",
        "components": None,
        "algorithm": "full",
        "starts": 2,
        "iterations": 20,
        "neighbors": 5,
        "overclusters": 150,
        "uncertain": 0.2,
        "support": None,
    },
    "aggregate": {"source": "detections", "threshold": 0.5, "overlap": "keep_higher", "shape": "mask", "uncertain": "background"},
    "rounds": [],
    "quality": {"images": 3, "seeds": 2, "objects": 100},
    "choose": {"ks": [2, 3], "repeats": 2, "objects": 100, "starts": 1},
    "alarms": {
        "masks": {"min_images": 50, "max_missing": 0.5, "min_area": 0.0, "max_area": 1.0},
        "clusters": {"min_masks": 50, "max_fraction": 1.0},
        "labels": {"min_images": 50, "max_empty": 1.0},
        "segmentation": {"min_images": 50, "min_clusters": 2},
    },
}
for key in prepare.PRECISION_KEYS:
    PARAMS.setdefault(key.split(".")[0], {}).setdefault("precision", "auto")
PARAMS["detector"]["backend"] = "torchvision"
PARAMS["crf"] = {"method": "conv"}
PARAMS["fetch"] = []
PARAMS |= {"corrections": [], "refine": [], "regroup": []}
for group, name in (key.split(".") for key in prepare.WEIGHT_KEYS):
    PARAMS.setdefault(group, {}).setdefault(name, "models/fresh")
MAPS = ("labels.zip", "predictions/masks.zip", "predictions/detector.zip")


def pipeline(data: dict[str, Any]) -> str:
    """The stages up to label maps, in the working directory; mined masks stand for the detector's. The photographs' folder."""
    Path("params.yaml").write_text(yaml.safe_dump(PARAMS | {"data": data}))
    torch.manual_seed(0)
    save_file(vit.build(vit.Backbone(**SHAPE).shape(), 64).state_dict(), "vit.safetensors")  # type: ignore[arg-type]
    prepare.main("images.json", "rejected.json", "truth.zip")
    mine.main("images.json", data["images"], "vit.safetensors", "masks.json")
    embed.main("images.json", "masks.json", data["images"], "vit.safetensors", "tokens.npz")
    cluster.main("tokens.npz", "masks.json", "instances.json")
    scored = [{**a, "score": 0.9 - 0.01 * n} for n, a in enumerate(read_json("instances.json")["annotations"])]
    write_json("detections.json", scored)
    aggregate.main("images.json", data["images"], "instances.json", "detections.json", *MAPS)
    return str(data["images"])


@pytest.mark.skipif(not (REAL / "VOC2012").is_dir(), reason="../shared/data/VOC2012 is not here")
def test_voc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("JPEGImages", "SegmentationClass"):
        (tmp_path / "voc").mkdir(exist_ok=True)
        (tmp_path / "voc" / folder).symlink_to(REAL.resolve() / "VOC2012" / folder)
    for split, count in {"train": 5, "val": 4}.items():
        stems = (REAL / f"VOC2012/ImageSets/Segmentation/{split}.txt").read_text().split()
        (tmp_path / "voc" / f"{split}.txt").write_text("\n".join(stems[::37][:count]) + "\n")
    lists = {"train": "train.txt", "val": "val.txt", "annotations": None}
    photos = pipeline({"kind": "voc", "root": "voc", "images": "voc/JPEGImages", **lists})
    evaluate_clustering.main("images.json", "truth.zip", "instances.json", "predictions", "clustering", "details")
    scores = read_json("details/masks/scores.json")
    assert (scores["images"], scores["classes"]) == (4, 21)
    assert 0 < scores["miou"] < 0.9
    assert scores["miou"] >= scores["miou_background_fixed"]
    assert scores["miou_training_objects"] is None  # this VOC has no masks of objects
    assert [row["iou"] is not None for row in read_json("details/masks/image_iou.json")] == [True] * 4
    evaluate_instances.main(
        "images.json", "truth.zip", "masks.json", "instances.json", "detections.json", "ap", "ap.json", "pr.json"
    )
    assert "has no object" in read_json("ap.json")["needs"]
    files = ("masks.json", "tokens.npz", "instances.json", *MAPS, MAPS[-1], "few.json", "quality.json")
    evaluate_quality.main("images.json", photos, "vit.safetensors", *files)
    numbers = read_json("quality.json")
    assert numbers["foreground_detector_final"] == 1
    assert all(-1 <= numbers[key] <= 1 for key in ("mask_flip", "mask_crop", "mask_area", "mask_border", "cluster_stability"))
    choose_k.main("images.json", "tokens.npz", "masks.json", "k.json")
    assert [row["k"] for row in read_json("k.json")["tried"]] == [2]  # five masks: a half has two


@pytest.mark.skipif(not (REAL / "coco").is_dir(), reason="../shared/data/coco is not here")
def test_coco(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "coco").mkdir()
    for folder in ("train2017", "annotations"):
        (tmp_path / "coco" / folder).symlink_to(REAL.resolve() / "coco" / folder)
    file = "annotations/instances_train2017.json"
    names = [image["file_name"] for image in read_json(REAL / "coco" / file)["images"]][:6]
    (tmp_path / "coco/list.txt").write_text("\n".join(names) + "\n")
    lists = {"train": "list.txt", "val": "list.txt", "annotations": file}
    pipeline({"kind": "coco", "root": "coco", "images": "coco/train2017", **lists})
    evaluate_instances.main(
        "images.json", "truth.zip", "masks.json", "instances.json", "detections.json", "ap", "ap.json", "pr.json"
    )
    scores = read_json("ap.json")
    assert scores["images"] == 6
    assert scores["masks"]["multi"]["objects"] > scores["masks"]["single"]["objects"] == 6
    assert 0 < scores["masks"]["mean_iou"] < 1
    for mode in ("multi", "single"):
        for setting in ("agnostic", "aware"):
            assert 0 <= scores["detector"][mode][setting]["AP"] <= scores["detector"][mode][setting]["AP50"] <= 1
    evaluate_clustering.main("images.json", "truth.zip", "instances.json", "predictions", "clustering", "details")
    assert read_json("details/masks/scores.json")["miou_training_objects"] is not None


def write_panoptic(root: Path, split: str, image_ids: list[int], source: COCO) -> str:
    """Real photographs in COCO's panoptic layout, things drawn from their instances, later ones in front. The JSON's path."""
    listed = f"annotations/panoptic_{split}_train2017"
    (root / listed).mkdir(parents=True)
    annotations = []
    for image in source.loadImgs(image_ids):
        numbers = np.zeros((image["height"], image["width"]), np.int64)
        objects = source.loadAnns(source.getAnnIds(image["id"]))
        for a in objects:
            numbers[source.annToMask(a).astype(bool)] = a["id"]
        stem = Path(image["file_name"]).stem
        colours = np.stack([numbers >> bits & 255 for bits in (0, 8, 16)], -1).astype(np.uint8)  # [H, W, 3]
        Pillow.fromarray(colours).save(root / listed / f"{stem}.png")
        shutil.copy(REAL / "coco/train2017" / image["file_name"], root / "train2017")
        segments = [{"id": a["id"], "category_id": a["category_id"]} for a in objects]
        annotations.append({"image_id": image["id"], "file_name": f"{stem}.png", "segments_info": segments})
    things = [{**c, "isthing": 1} for c in source.dataset["categories"]]
    (root / f"{listed}.json").write_text(json.dumps({"annotations": annotations, "categories": things}))
    return f"coco/{listed}.json"


@pytest.mark.skipif(not (REAL / "coco").is_dir(), reason="../shared/data/coco is not here")
def test_coco_things(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """COCO-Things' protocol on real photographs: 12 super-classes, all else void."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "coco/train2017").mkdir(parents=True)
    source = COCO(REAL / "coco/annotations/instances_train2017.json")
    ids = sorted(source.imgs)
    train, val = (write_panoptic(tmp_path / "coco", *part, source) for part in (("a", ids[:6]), ("b", ids[6:10])))
    given = {"size": 64, "grid": 16, "precision": "fp32"}
    head = {"epochs": 2, "lr_milestone": 1, "batch": 3, "lr": 0.01, "momentum": 0.9, "weight_decay": 0.0001}
    evaluations = {
        "backbone_linear": given | {"crop_min_scale": 0.8, "head": head},
        "backbone_kmeans": given | {"components": 8, "clusters": None, "starts": 1, "iterations": 10, "seeds": 2, "batch": 1},
    }
    Path("params.yaml").write_text(yaml.safe_dump({"seed": 0, "backbone": SHAPE} | evaluations))
    save_file(vit.build(vit.Backbone(**SHAPE).shape(), 64).state_dict(), "vit.safetensors")  # type: ignore[arg-type]
    linear.main("vit.safetensors", "things", "coco", train, val, "1.0", "random", "linear.json")
    kmeans.main("vit.safetensors", "things", "coco", val, "random", "kmeans.json")
    large = source.loadAnns(source.getAnnIds(ids[6:10], areaRng=[10_000, 1e9]))  # smaller ones may vanish on the grid
    there = {source.cats[a["category_id"]]["supercategory"] for a in large}
    for scores in (read_json("linear.json"), read_json("kmeans.json")):
        assert (scores["images"], len(scores["class_iou"])) == (4, 12)
        assert {row["class"] for row in scores["class_iou"] if row["iou"] is not None} >= there
        assert 0 < scores["miou"] < 0.9
    assert read_json("kmeans.json")["clusters"] == 12
