"""Effect of bfloat16 on the stages that run a network: fp32 against bf16 on the same weights and photographs.

    python benchmarks/precision.py [--photos 200]

Runs in the folder of a finished run, on its params.yaml, weights and data, with evenly spaced photographs. Prints, for mined
masks (the first of each photograph) and for detections with a score above 0.5: the mean IoU of both precisions' masks with
each other, and with the true objects that they fit best (if there are any). For tokens: the mean angle between both, and the
adjusted Rand index of their clusters. For the segmentation: the fraction of pixels with the same label.
"""

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import adjusted_rand_score

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.quality import true_objects
from unseg.clustering import algorithms
from unseg.core import image_index, instances, params
from unseg.core.image_index import ImageRecord
from unseg.core.instances import Instance
from unseg.core.params import Precision
from unseg.data import photos
from unseg.detection import detector
from unseg.detection.settings import Detect
from unseg.engine import batching, environment
from unseg.engine.precision import autocast
from unseg.evaluation import loading, metrics
from unseg.evaluation.label_free.quality import binary_iou
from unseg.mining import affinity, crops, miner
from unseg.models import vit
from unseg.segmentation import segmenter

PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
Masks = dict[int, list[np.ndarray]]  # by image id


def mined_masks(images: list[ImageRecord], root: str, precision: Precision) -> Masks:
    p, shape = params.group("mine", affinity.Mining), params.group("backbone", vit.Backbone)
    mined = miner.mine_first_object(
        vit.load(shape), images, lambda i: i.size, lambda i: photos.read(root, i), replace(p, precision=precision)
    )
    return {image.id: [mask] for image, mask in mined}


def detected_masks(images: list[ImageRecord], root: str, precision: Precision) -> Masks:
    trained = detector.load("models/detector.safetensors", params.group("detect", Detect))
    trained = replace(trained, p=replace(trained.p, precision=precision))
    detected = detector.detect(trained, detector.load_batches(trained, root, images))
    return {image.id: [d.mask.decode() for d in detections if d.score > 0.5] for image, detections in detected}


@torch.inference_mode()
def cls_tokens(images: list[ImageRecord], root: str, precision: Precision) -> np.ndarray:
    """CLS tokens [M, D] of the run's masks of these photographs."""
    p, shape = params.group("embed", crops.Embedding), params.group("embedder", vit.Backbone)
    model, masks = vit.load(shape).to(environment.device()), instances.Lookup("data/masks.json", Instance)
    mean, std = vit.normalisation(model)
    red, green, blue = (round(255 * x) for x in mean)
    tokens = []
    for image, mask in ((i, x.mask) for i in images for x in masks[i]):
        crop = crops.crop(photos.read(root, image), mask, p, (red, green, blue))
        pixels = batching.pad_to(batching.to_tensor(crop, mean, std), vit.patch_size(model))[None].to(environment.device())
        with autocast(pixels.device, precision):
            tokens.append(vit.tokens(model, pixels)[0, 0].float().cpu().numpy())
    return np.array(tokens)


def label_maps(images: list[ImageRecord], root: str, precision: Precision) -> dict[int, np.ndarray]:
    net = replace(segmenter.load(f"models/segmenter-{params.value('final', str)}.safetensors"), precision=precision)
    batches = segmenter.load_batches(net, root, images, params.group("predict", segmenter.Predict))
    return {image.id: p.argmax(0).cpu().numpy() for image, p in segmenter.predict(net, batches)}


def best_iou(masks: Masks, others: Masks) -> float:
    """Mean IoU of each mask with the best of the other masks of its image, 0 without any; nan without masks."""
    ious = [max((binary_iou(m, o) for o in others[i]), default=0.0) for i, of_image in masks.items() for m in of_image]
    return float(np.mean(ious)) if ious else float("nan")


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=200)
    options = parser.parse_args(words)
    os.environ.setdefault("UNSEG_WORKERS", "0")  # lambdas read the photographs
    root, truth = params.value("data.images", str), "data/truth.zip"
    images = image_index.evenly_spaced(image_index.read_images("data/images.json"), options.photos)
    objects = metrics.group_by_image(loading.read_objects(truth, images).objects)
    true_masks = {i.id: [mask for _, mask in true_objects(truth, i, objects)] for i in images} if objects else {}
    for name, masks in (("masks", mined_masks), ("detections", detected_masks)):
        fp32, bf16 = (masks(images, root, precision) for precision in PRECISIONS)
        with_truth = f"; with the truth fp32 {best_iou(fp32, true_masks):.4f}, bf16 {best_iou(bf16, true_masks):.4f}"
        mutual = (best_iou(fp32, bf16) + best_iou(bf16, fp32)) / 2
        print(f"{name}: IoU with each other {mutual:.4f}{with_truth if true_masks else ''}", flush=True)
    tokens = [cls_tokens(images, root, precision) for precision in PRECISIONS]
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in tokens]
    angle = np.degrees(np.arccos(np.clip((unit[0] * unit[1]).sum(1), -1, 1))).mean()
    p, seed = params.group("cluster", algorithms.Clustering), params.value("seed", int)
    rand = adjusted_rand_score(*(algorithms.cluster(x, x, p, seed) for x in tokens))
    print(f"tokens: {angle:.2f} degrees apart; adjusted Rand index of the clusters {rand:.3f}")
    fp32_maps, bf16_maps = (label_maps(images, root, precision) for precision in PRECISIONS)
    same = np.mean([np.mean(fp32_maps[i.id] == bf16_maps[i.id]) for i in images])
    print(f"segmentation: {same:.2%} of the pixels have the same label")


if __name__ == "__main__":
    main()
