"""Mask R-CNN on mined masks (MaskDistill, section 3.2, A.1), by torchvision: a ResNet with a feature pyramid.

Shapes: B images, H rows, W columns, M objects of an image, K clusters (labels 1..K inside, 0 is background).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.ops.poolers import LevelMapper

from unseg import distributed, training
from unseg.backbones import resnet
from unseg.detection import sharing
from unseg.io import images
from unseg.io.photos import read
from unseg.io.records import Image, boxes_xyxy, by_image, decode, encode_all

Target = dict[str, Tensor]


@dataclass(frozen=True)
class Detector:
    """The `detector` group of params.yaml."""

    backend: str  # torchvision
    arch: str  # resnet18 | resnet50
    width: int  # channels of the first stage
    fpn: int  # channels of the pyramid and the mask head
    hidden: int  # of the box head
    init: str  # self-supervised ResNet weights, or resnet.FRESH
    frozen_stages: int
    anchor: int  # side of the finest level's anchors, pixels; each level doubles it
    short_sides: list[int]  # in training, one drawn an image, pixels
    long_side: int  # at the most, pixels
    rois: int  # proposals an image that the heads learn from
    proposals: int  # an image, after the proposal network's NMS
    iterations: int
    batch: int
    lr: float
    lr_steps: list[int]  # iterations after which lr is divided by 10
    warmup_iterations: int
    momentum: float
    weight_decay: float
    clip: float  # norm of all gradients; 0 for none
    precision: str

    def __post_init__(self) -> None:
        if self.backend != "torchvision":
            raise ValueError(f"detector.backend is {self.backend!r}; only torchvision is there yet")
        resnet.check("detector", self.arch, self.width, self.frozen_stages)
        images.check_precision("detector.precision", self.precision)
        if self.iterations < 1 or self.batch < 1:
            raise ValueError("detector.iterations and detector.batch must be at least 1")
        if not self.short_sides:
            raise ValueError("detector.short_sides is empty; give at least one size in pixels")


@dataclass(frozen=True)
class Detect:
    """The `detect` group of params.yaml."""

    short_side: int  # pixels
    min_score: float  # detections below it are dropped
    nms: float  # box IoU above which the less sure of two of a cluster is dropped
    max_detections: int  # an image
    pixels: int  # of a batch, at the most

    def __post_init__(self) -> None:
        if not 0 <= self.min_score < 1:
            raise ValueError(f"detect.min_score is {self.min_score}; it must be from 0 and below 1")


class Pyramid(nn.Module):
    """ResNet and FPN: images to maps at strides 4, 8, 16, 32, 64, all of `out_channels`."""

    def __init__(self, body: resnet.Body, channels: int) -> None:
        super().__init__()
        self.body, self.out_channels = body, channels
        self.fpn = FeaturePyramidNetwork(body.channels, channels, LastLevelMaxPool())

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = {str(i): m for i, m in enumerate(self.body(x))}
        out: dict[str, Tensor] = self.fpn(maps)
        return out


def pool(size: int) -> MultiScaleRoIAlign:
    """RoIAlign to size x size on the pyramid's first four maps.

    It is told their strides: torchvision would guess them from the first image that it ever sees, and guess wrong where
    that one is so low that the padding to 32 pixels is a large part of it.
    """
    align = MultiScaleRoIAlign(["0", "1", "2", "3"], size, 2)
    align.scales, align.map_levels = [1 / 4, 1 / 8, 1 / 16, 1 / 32], LevelMapper(2, 5)
    return align


def build(p: Detector, k: int) -> MaskRCNN:
    """A fresh Mask R-CNN for K clusters."""
    sizes = tuple((p.anchor * 2**i,) for i in range(5))
    pyramid = Pyramid(resnet.Body(p.arch, p.width, frozen=p.frozen_stages), p.fpn)
    return MaskRCNN(
        pyramid,
        min_size=p.short_sides,
        max_size=p.long_side,
        image_mean=list(images.MEAN),
        image_std=list(images.STD),
        rpn_anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5),
        rpn_pre_nms_top_n_train=2 * p.proposals,
        rpn_pre_nms_top_n_test=2 * p.proposals,
        rpn_post_nms_top_n_train=p.proposals,
        rpn_post_nms_top_n_test=p.proposals,
        box_roi_pool=pool(7),
        box_head=TwoMLPHead(p.fpn * 49, p.hidden),
        box_predictor=FastRCNNPredictor(p.hidden, k + 1),
        box_batch_size_per_image=p.rois,
        mask_roi_pool=pool(14),
        mask_head=MaskRCNNHeads(p.fpn, [p.fpn] * 4, 1),
        mask_predictor=MaskRCNNPredictor(p.fpn, p.fpn, k + 1),
    )


@dataclass(frozen=True)
class Examples(Dataset[Any]):
    """(index, seed) to an image [3, H, W] in 0..1, flipped by chance, and its objects."""

    root: str
    records: list[Image]
    objects: dict[int, list[dict[str, Any]]]  # COCO annotations by image id

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, draw: tuple[int, int]) -> tuple[Tensor, Target]:
        index, seed = draw
        record = self.records[index]
        pixels = np.asarray(read(self.root, record))
        objects = self.objects.get(record.id, [])
        rles = [o["segmentation"] for o in objects]
        boxes = boxes_xyxy(rles) if rles else np.zeros((0, 4))
        masks = np.stack([decode(r) for r in rles]) if rles else np.zeros((0, *record.size), bool)
        if np.random.default_rng(seed).random() < 0.5:
            pixels, masks = pixels[:, ::-1], masks[:, :, ::-1]
            boxes = np.stack([record.width - boxes[:, 2], boxes[:, 1], record.width - boxes[:, 0], boxes[:, 3]], 1)
        target = {
            "boxes": torch.from_numpy(boxes.astype(np.float32)),  # [M, 4] xyxy
            "labels": torch.tensor([o["category_id"] + 1 for o in objects], dtype=torch.int64),  # [M]
            "masks": torch.from_numpy(np.ascontiguousarray(masks).view(np.uint8)),  # [M, H, W]
        }
        return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255, target


def collate(items: list[Any]) -> tuple[list[Tensor], list[Target]]:
    pixels, targets = zip(*items, strict=True)
    return list(pixels), list(targets)


def learning_rate(p: Detector, iteration: int) -> float:
    """Linear warm-up from a thousandth, then a tenth after each of lr_steps."""
    warm = min(1.0, 0.001 + iteration / p.warmup_iterations) if p.warmup_iterations else 1.0
    return p.lr * warm * math.prod(0.1 for s in p.lr_steps if iteration >= s)


def train(
    p: Detector, k: int, root: str, records: list[Image], annotations: list[dict[str, Any]], seed: int, scratch: training.Scratch
) -> tuple[MaskRCNN, list[dict[str, float]]]:
    """Train on instances of K clusters; images without one count as background.

    Args:
        annotations: COCO annotations, category_id 0..K-1.

    Returns:
        The model, and the metrics of each step: the sum of the losses and its parts.
    """
    torch.manual_seed(seed)
    device = images.device()
    model = build(p, k)
    resnet.initialise(model.backbone.body, p.init, "detector")
    sharing.join(model)
    model.to(device).train()
    learned = [x for x in model.parameters() if x.requires_grad]
    optimizer = torch.optim.SGD(learned, lr=p.lr, momentum=p.momentum, weight_decay=p.weight_decay)
    shared = distributed.share(model)

    def step(number: int, batch: tuple[list[Tensor], list[Target]]) -> dict[str, Tensor]:
        training.set_rates(optimizer, learning_rate(p, number))
        pixels = [x.to(device) for x in batch[0]]
        targets = [{key: x.to(device) for key, x in t.items()} for t in batch[1]]
        with images.autocast(device, p.precision):
            parts = sharing.weigh(model, shared(pixels, targets))
        loss = torch.stack([x.float() for x in parts.values()]).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if p.clip:
            nn.utils.clip_grad_norm_(learned, p.clip)
        optimizer.step()
        return {name.removeprefix("loss_"): distributed.average(x) for name, x in {"loss": loss, **parts}.items()}

    dataset = Examples(root, records, by_image(annotations))
    state = {"model": model, "optimizer": optimizer}
    values = training.fit("detector", scratch, state, dataset, p.batch, p.iterations, seed, step, collate)
    return model, values


def save(path: str | Path, model: MaskRCNN, p: Detector, k: int) -> None:
    about = {"kind": "detector", "detector": {**vars(p), "init": resnet.FRESH}, "k": k, "mean": images.MEAN, "std": images.STD}
    training.write_weights(path, model, about)


def load(path: str | Path, q: Detect) -> tuple[MaskRCNN, str]:
    """The model in evaluation mode, set up as `q` says, and its precision.

    Raises:
        InputError: no such file, or not a detector of this version of unseg.
    """
    state, about = training.read_weights(path, "detector")
    p = Detector(**about["detector"])
    model = build(p, about["k"])
    model.load_state_dict(state)
    model.transform.min_size = (q.short_side,)
    model.roi_heads.score_thresh, model.roi_heads.nms_thresh = q.min_score, q.nms
    model.roi_heads.detections_per_img = q.max_detections
    return model.eval(), p.precision


@torch.inference_mode()
def detect(
    model: MaskRCNN,
    precision: str,
    root: str,
    records: list[Image],
    pixels: int,
    left: Callable[[list[list[Image]]], list[list[Image]]] = list,
) -> Iterator[tuple[Image, list[dict[str, Any]]]]:
    """Each image and its COCO results, surest first; images come in the order of their sizes.

    Args:
        pixels: a batch holds at most this many (of the photographs), and at least one image.
        left: of all batches, those that are to be done here.
    """
    device = images.device()
    model.to(device)

    def load(record: Image) -> Tensor:
        return torch.from_numpy(np.array(read(root, record))).permute(2, 0, 1)

    for batch, x in images.batches_by_shape(records, lambda r: r.size, load, pixels, left):
        for record, results in zip(batch, instances(model, precision, x.to(device)), strict=True):
            yield record, [{"image_id": record.id, **r} for r in results]


@torch.inference_mode()
def instances(model: MaskRCNN, precision: str, x: Tensor) -> list[list[dict[str, Any]]]:
    """COCO results without image_id of each of the photographs [B, 3, H, W] uint8 (on the model's device), surest first."""
    with images.autocast(x.device, precision):
        found = model(list(x.float() / 255))
    results = []
    for f in found:
        masks = (f["masks"][:, 0] > 0.5).cpu().numpy()  # [M, H, W]
        boxes, scores, labels = (f[key].float().cpu().numpy() for key in ("boxes", "scores", "labels"))
        rles = encode_all(masks) if len(masks) else []
        results.append(
            [
                {
                    "category_id": int(label) - 1,
                    "segmentation": rle,
                    "bbox": [round(float(v), 2) for v in (x0, y0, x1 - x0, y1 - y0)],
                    "score": round(float(score), 6),
                }
                for rle, (x0, y0, x1, y1), score, label, mask in zip(rles, boxes, scores, labels, masks, strict=True)
                if mask.any()
            ]
        )
    return results
