"""How long a run on photographs takes: the work of each stage, by the speed of this machine's matrix products.

The counts are rough. A ViT's block takes 24 N D^2 + 4 N^2 D operations an image (N tokens, D channels). A ResNet's operations a
pixel come from the published multiply-adds at 224 x 224: 1.8 billion for resnet18, 4.1 billion for resnet50. `EFFICIENCY` was
fitted to one run of `unseg fit` on 120 photographs (docs/folder.md); an estimate may be wrong by half.
"""

import time
from pathlib import Path
from typing import Any

import timm
import torch

from unseg.core.fetched import CROC
from unseg.engine import environment
from unseg.engine.precision import autocast
from unseg.models import timm_weights, vit, vit_files
from unseg.models.vit import Backbone, Shape
from unseg.models.weights import RANDOM_INIT

ASPECT = 4 / 3  # of a photograph
RESNET = {"resnet18": 2 * 1.8e9 / 224**2, "resnet50": 2 * 4.1e9 / 224**2}  # operations a pixel, width 64, stride 32
MASK_RCNN, DEEPLAB = 7.0, 6.0  # times the ResNet alone: pyramid and heads; stride 8 and the pyramid of dilations
BACKWARD = 3  # times the forward pass: forward and backward
START = 6.0  # seconds that a stage takes to start
STAGES = 20
EFFICIENCY = 0.7  # fraction of the matrix product's speed that a stage reaches


def seconds(params: dict[str, Any], photos: int, shape: Shape) -> float:
    """Seconds that `dvc repro` will take here. params: content of params.yaml; shape: of the ViT of `backbone`."""
    return STAGES * START + operations(params, photos, shape) / (EFFICIENCY * speed())


def operations(params: dict[str, Any], photos: int, shape: Shape) -> float:
    """Floating-point operations of all stages."""
    croc, mine, embed, detector = (params[key] for key in ("croc", "mine", "embed", "detector"))
    segmenter = params["segmenter"]

    def forward_vit(side: float, aspect: float = 1.0) -> float:
        tokens = aspect * side**2 / shape.patch**2
        return shape.depth * (24 * tokens * shape.width**2 + 4 * tokens**2 * shape.width)

    views = (2 if mine["flip"] else 1) * sum(scale**2 for scale in mine["scales"])
    mined = photos + 3 * min(photos, params["quality"]["images"])  # quality mines the photograph, its mirror image and a crop
    total: float = mined * views * forward_vit(mine["resize"], ASPECT)
    total += photos * mine["objects"] * forward_vit(embed["resize"] or mine["resize"], ASPECT)
    if params["backbone"]["weights"] == CROC:
        steps = croc["epochs"] * max(1, photos // croc["batch"])
        total += steps * croc["batch"] * 2 * (1 + BACKWARD) * forward_vit(croc["views"]["size"])
    side = sum(detector["short_sides"]) / len(detector["short_sides"])
    per_pixel = RESNET[detector["arch"]] * (detector["width"] / 64) ** 2 * MASK_RCNN
    images = detector["iterations"] * detector["batch"] * BACKWARD * (1 + len(params["retrain"])) + photos
    total += images * side**2 * ASPECT * per_pixel
    square = segmenter["size"] ** 2
    if segmenter["arch"] == "vit":
        forward = forward_vit(segmenter["size"]) * (segmenter["layer"] % shape.depth + 1) / shape.depth
        head = 2 * 9 * segmenter["channels"] * (shape.width + 4 * segmenter["channels"]) * square / shape.patch**2
        trained = 2 * forward + segmenter["epochs"] * BACKWARD * (head if segmenter["head"] == "conv" else 0)
    else:
        forward = RESNET[segmenter["arch"]] * (segmenter["width"] / 64) ** 2 * DEEPLAB * square
        trained = segmenter["epochs"] * BACKWARD * forward
    total += photos * len(params["rounds"]) * (trained + 2 * forward)
    return total


def shape_of(backbone: Backbone) -> Shape:
    """The shape of the ViT of `backbone`: of the file, of timm's model if it has not been fetched yet, or of params.yaml.

    Raises:
        InputError: the file is missing or is no ViT.
    """
    weights = Path(backbone.weights)
    if backbone.weights in (RANDOM_INIT, CROC):
        return backbone.shape()
    if not weights.exists() and (name := timm_weights.name_of(backbone.weights)):
        with torch.device("meta"):
            network = vit.describe(vit.checked(timm.create_model(name, num_classes=0), name))
    else:
        network = vit_files.describe(backbone.weights, vit_files.read_vit(backbone.weights), backbone.heads)
    return Shape(network.patch, network.width, network.depth, network.heads)


def speed() -> float:
    """Operations a second of a matrix product on the device that the stages will use, in its fastest precision."""
    device = environment.device()
    x, best = torch.randn(1024, 1024, device=device), 0.0
    with autocast(device, "auto"), torch.inference_mode():
        for _ in range(5):
            start = time.perf_counter()
            float((x @ x)[0, 0])  # waits for the device
            best = max(best, 2 * 1024**3 / (time.perf_counter() - start))
    return best
