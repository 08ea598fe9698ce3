"""What bfloat16 changes: the stages that read a network, in fp32 and in bf16, on the same weights and photographs.

    python benchmarks/precision.py [--photos 200]

Runs in a finished run's folder, on its params.yaml, weights and data. Prints, of photographs spread over all: for mined masks
(the first of each photograph) and for detections surer than 0.5 the mean IoU of one precision's with the other's, and each one's
mean IoU with the true object that it fits best (where there is truth of objects); for tokens the mean angle between the two, and
how far K-means on the one and on the other agree (adjusted Rand index); for the segmentation the share of pixels with the same
label.
"""

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import adjusted_rand_score

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.quality import objects, true_objects
from stages.embed import GREY
from unseg.clustering import algorithms
from unseg.core import image_index, params, rle, storage
from unseg.data import photos
from unseg.detection import detector
from unseg.detection.settings import Detect
from unseg.engine import batching, environment
from unseg.engine.precision import autocast
from unseg.evaluation.label_free.quality import binary_iou
from unseg.mining import affinity, crops, miner
from unseg.models import vit
from unseg.segmentation import segmenter

BOTH = ("fp32", "bf16")
Masks = dict[int, list[np.ndarray]]  # by image


def mined(every: list[image_index.ImageRecord], root: str, precision: str) -> Masks:
    p, shape = params.group("mine", affinity.Mining), params.group("backbone", vit.Backbone)
    found = miner.mine_first_object(
        vit.load(shape), every, lambda i: i.size, lambda i: photos.read(root, i), replace(p, precision=precision), shape.patch
    )
    return {image.id: [mask] for image, mask in found}


def detected(every: list[image_index.ImageRecord], root: str, precision: str) -> Masks:
    trained = detector.load("models/detector.safetensors", params.group("detect", Detect))
    trained = replace(trained, p=replace(trained.p, precision=precision))
    found = detector.detect(trained, detector.load_batches(trained, root, every))
    return {image.id: [rle.decode(d["segmentation"]) for d in own if d["score"] > 0.5] for image, own in found}


@torch.inference_mode()
def tokens(every: list[image_index.ImageRecord], root: str, precision: str) -> np.ndarray:
    """CLS tokens [M, D] of the run's own masks of these photographs."""
    p, shape = params.group("embed", crops.Embedding), params.group("embedder", vit.Backbone)
    model, by_id = vit.load(shape).to(environment.device()), {i.id: i for i in every}
    out = []
    for a in storage.read_json("data/masks.json")["annotations"]:
        if a["image_id"] in by_id:
            crop = crops.crop(photos.read(root, by_id[a["image_id"]]), a["segmentation"], p, GREY)
            x = batching.pad_to(batching.to_tensor(crop), shape.patch)[None].to(environment.device())
            with autocast(x.device, precision):
                out.append(vit.tokens(model, x)[0, 0].float().cpu().numpy())
    return np.array(out)


def segmented(every: list[image_index.ImageRecord], root: str, precision: str) -> dict[int, np.ndarray]:
    net = replace(segmenter.load(f"models/segmenter-{params.value('final', str)}.safetensors"), precision=precision)
    maps = segmenter.predict(net, segmenter.load_batches(net, root, every, params.group("predict", segmenter.Predict)))
    return {image.id: p.argmax(0).cpu().numpy() for image, p in maps}


def fit(masks: Masks, others: Masks) -> float:
    """Mean IoU of each mask with the one of the same image that it fits best, 0 where there is none; nan without masks."""
    found = [max((binary_iou(m, o) for o in others[i]), default=0.0) for i, own in masks.items() for m in own]
    return float(np.mean(found)) if found else float("nan")


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=200)
    options = parser.parse_args(words)
    os.environ.setdefault("UNSEG_WORKERS", "0")  # lambdas read the photographs
    root, truth = params.value("data.images", str), "data/truth.zip"
    every = image_index.evenly_spaced(image_index.read_images("data/images.json"), options.photos)
    known = objects(truth)
    true = {i.id: [mask for _, mask in true_objects(truth, i, known)] for i in every} if known else {}
    for name, way in (("masks", mined), ("detections", detected)):
        fp32, bf16 = (way(every, root, precision) for precision in BOTH)
        judged = f"; with the truth fp32 {fit(fp32, true):.4f}, bf16 {fit(bf16, true):.4f}" if true else ""
        print(f"{name}: IoU of one with the other {(fit(fp32, bf16) + fit(bf16, fp32)) / 2:.4f}{judged}", flush=True)
    found: list[Any] = [tokens(every, root, precision) for precision in BOTH]
    unit = [t / np.linalg.norm(t, axis=1, keepdims=True) for t in found]
    angle = np.degrees(np.arccos(np.clip((unit[0] * unit[1]).sum(1), -1, 1))).mean()
    p, seed = params.group("cluster", algorithms.Clustering), params.value("seed", int)
    agree = adjusted_rand_score(*(algorithms.cluster(t, t, p, seed) for t in found))
    print(f"tokens: {angle:.2f} degrees apart; clusters agree to {agree:.3f} (adjusted Rand index)")
    maps = [segmented(every, root, precision) for precision in BOTH]
    same = np.mean([np.mean(maps[0][i.id] == maps[1][i.id]) for i in every])
    print(f"segmentation: {same:.2%} of the pixels have the same label")


if __name__ == "__main__":
    main()
