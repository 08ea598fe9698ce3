"""Mask R-CNN R50-C4 from Detectron2 with MaskDistill's settings (A.1).

Detectron2 is an optional dependency; docs/papers.md explains the installation. Its compiled extension is not needed.
Only its model is used. Data loading, training loop, checkpoints and launch are the same as in every other stage.
Nothing is registered in Detectron2's global catalogues, and Detectron2 writes nothing to disk.

The following comes from LOST's recipe (docs/spec/maskdistill.md, B.3): RGB with ImageNet normalisation, strides in the 3x3
convolutions, trained batch norm in the backbone (synchronised) and after res5, frozen batch norm in frozen stages.

Shapes: B images, H rows, W columns, M objects of an image, R proposals, K clusters (labels 1..K here, 0..K-1 in Detectron2).
"""

import re
from typing import Any, cast

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec, cat
from detectron2.modeling import build_model, detector_postprocess
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.solver.build import get_default_optimizer_params
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.structures.boxes import matched_pairwise_iou
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from unseg.core.console import InputError
from unseg.data import photos
from unseg.detection.examples import Target
from unseg.detection.settings import Detect, Detections, Detector
from unseg.engine import batching, distributed
from unseg.models.weights import RANDOM_INIT, resnet_state

NAMES = {  # loss names: ours to Detectron2's
    "classifier": "loss_cls",
    "box_reg": "loss_box_reg",
    "mask": "loss_mask",
    "objectness": "loss_rpn_cls",
    "rpn_box_reg": "loss_rpn_loc",
}
sync_norms = distributed.sync_norms  # each process still draws its own image sizes and proposals


def config(p: Detector, k: int) -> CfgNode:
    """Convert our settings to a Detectron2 config. All other values are the defaults of Detectron2 0.6."""
    cfg = get_cfg()
    model, rpn = cfg.MODEL, cfg.MODEL.RPN
    model.DEVICE, model.MASK_ON, cfg.INPUT.FORMAT = "cpu", True, "RGB"  # the caller moves the model
    model.PIXEL_MEAN, model.PIXEL_STD = ([255 * x for x in values] for values in (batching.MEAN, batching.STD))
    model.BACKBONE.FREEZE_AT = p.frozen_stages + 1 if p.frozen_stages else 0  # FREEZE_AT counts the stem
    model.RESNETS.NORM, model.RESNETS.STRIDE_IN_1X1 = "BN", False
    model.RESNETS.STEM_OUT_CHANNELS = model.RESNETS.WIDTH_PER_GROUP = p.width
    model.RESNETS.RES2_OUT_CHANNELS = 4 * p.width
    model.ANCHOR_GENERATOR.SIZES = [[p.anchor * 2**i for i in range(5)]]
    rpn.PRE_NMS_TOPK_TRAIN, rpn.POST_NMS_TOPK_TRAIN = 12 * p.proposals, 2 * p.proposals
    rpn.PRE_NMS_TOPK_TEST, rpn.POST_NMS_TOPK_TEST = 6 * p.proposals, p.proposals
    model.ROI_HEADS.NUM_CLASSES, model.ROI_HEADS.BATCH_SIZE_PER_IMAGE = k, p.rois
    model.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
    return cfg


class DropLossRes5ROIHeads(FastRCNNOutputLayers):  # type: ignore[misc]
    """Ignores the class loss of proposals without a mask; see `unseg.detection.torchvision_fpn.DropLossRoIHeads`."""

    drop_iou: float

    def losses(self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]) -> dict[str, Tensor]:
        parts: dict[str, Tensor] = super().losses(predictions, proposals)
        kept = torch.cat([overlap(x) > self.drop_iou for x in proposals])  # [R]
        labels = cat([x.gt_classes for x in proposals])
        parts["loss_cls"] = (F.cross_entropy(predictions[0], labels, reduction="none") * kept).mean()
        return parts


def overlap(proposals: Instances) -> Tensor:
    """IoU [R] of each proposal with its matched object, the one of largest IoU; 0 if there is none."""
    if not proposals.has("gt_boxes"):
        return torch.zeros(len(proposals), device=proposals.proposal_boxes.device)
    return torch.as_tensor(matched_pairwise_iou(proposals.proposal_boxes, proposals.gt_boxes))


def build(p: Detector, k: int) -> nn.Module:
    """Build an untrained Mask R-CNN for K clusters."""
    cfg = config(p, k)
    model: Any = build_model(cfg)
    channels, heads = 32 * p.width, model.roi_heads
    heads.res5.add_module("norm", nn.BatchNorm2d(channels))
    # Under autocast the feature maps are bfloat16, and Detectron2 would round the proposal coordinates to bfloat16.
    model.backbone.register_forward_hook(lambda _module, _given, maps: {name: x.float() for name, x in maps.items()})
    if p.drop_iou is not None:
        heads.box_predictor = DropLossRes5ROIHeads(cfg, ShapeSpec(channels=channels, height=1, width=1))
        heads.box_predictor.drop_iou = p.drop_iou
    return cast(nn.Module, model)


def renamed(name: str) -> str:
    """Translate torchvision's name of a ResNet tensor to its name in Mask R-CNN R50-C4."""
    name = re.sub(r"^(conv1|bn1)\.", r"backbone.stem.\1.", name)
    name = re.sub(r"^layer4\.", "roi_heads.res5.", name)
    name = re.sub(r"^layer([123])\.", lambda m: f"backbone.res{int(m[1]) + 1}.", name)
    name = name.replace(".downsample.0.", ".shortcut.").replace(".downsample.1.", ".shortcut.norm.")
    return re.sub(r"\.bn([123])\.", r".conv\1.norm.", name)


def initialise(model: nn.Module, p: Detector) -> None:
    """Load self-supervised weights (MoCo-v2 or DINO) into the ResNet. Raises InputError if they do not fit."""
    if p.init == RANDOM_INIT:
        return
    state = {renamed(name): x for name, x in resnet_state(p.init).items()}
    resnet = re.compile(r"backbone\.|roi_heads\.res5\.(?!norm\.)")
    want = {n: x for n, x in model.state_dict().items() if resnet.match(n)}
    # Frozen batch norm has no num_batches_tracked.
    state = {n: x for n, x in state.items() if n in want or not n.endswith(".num_batches_tracked")}
    for name in sorted(want.keys() | state.keys()):
        have, need = (list(s[name].shape) if name in s else None for s in (state, want))
        if have != need:
            raise InputError(f"{p.init}: {name} has shape {have}, detector in params.yaml needs {need}")
    model.load_state_dict(state, strict=False)


def param_groups(model: nn.Module, p: Detector) -> list[dict[str, object]]:
    """Parameter groups for the optimiser. As in Detectron2, batch norm weights have no weight decay."""
    return list(get_default_optimizer_params(model, weight_decay=p.weight_decay, weight_decay_norm=0.0))


def resized(x: Tensor, short_side: int, long_side: int) -> Tensor:
    """Scale [B, 3, H, W] from 0..1 to 0..255 and resize the shorter side, with an upper limit for the longer side."""
    h, w = x.shape[-2:]
    size = photos.short_side((h, w), min(short_side, max(1, long_side * min(h, w) // max(h, w))))
    return F.interpolate(x, size, mode="bilinear", antialias=True) * 255


def losses(model: nn.Module, p: Detector, pixels: list[Tensor], targets: list[Target]) -> dict[str, Tensor]:
    """Compute the parts of the loss, named as in `torchvision_fpn`. Raises InputError if boxes or scores are not finite."""
    batch = []
    for x, target in zip(pixels, targets, strict=True):
        image = resized(x[None], p.short_sides[int(torch.randint(len(p.short_sides), ()))], p.long_side)[0]
        objects = Instances((image.shape[1], image.shape[2]))
        objects.gt_boxes = Boxes(target["boxes"].clone())
        objects.gt_boxes.scale(image.shape[2] / x.shape[2], image.shape[1] / x.shape[1])
        objects.gt_classes = target["labels"] - 1
        objects.gt_masks = BitMasks(nearest(target["masks"], objects.image_size))
        batch.append({"image": image, "instances": objects})
    try:
        with EventStorage():  # required by Detectron2's counters
            parts = model(batch)
    except FloatingPointError as error:
        raise InputError(f"detector: {error} Lower detector.lr in params.yaml") from None
    return {name: parts[detectron2_name] for name, detectron2_name in NAMES.items()}


def nearest(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize [M, H, W] uint8 to [M, *size] bool by nearest neighbour; M may be 0."""
    sizes = zip(size, masks.shape[1:], strict=True)
    rows, cols = ((2 * torch.arange(n, device=masks.device) + 1) * m // (2 * n) for n, m in sizes)
    return masks[:, rows[:, None], cols] > 0


def prepare(model: Any, q: Detect) -> None:
    """Configure the model with the `detect` group of params.yaml. `find` handles the image size."""
    predictor = model.roi_heads.box_predictor
    predictor.test_score_thresh, predictor.test_nms_thresh = q.min_score, q.nms
    predictor.test_topk_per_image = q.max_detections


def find(model: Any, p: Detector, q: Detect, x: Tensor) -> list[Detections]:
    """Detect objects in photographs [B, 3, H, W] with values in 0..1."""
    outputs = []
    for small in model.inference([{"image": i} for i in resized(x, q.short_side, p.long_side)], do_postprocess=False):
        small.pred_masks = small.pred_masks.float()  # bfloat16 would misplace the masks
        full = detector_postprocess(small, *x.shape[-2:])
        boxes, scores, clusters = full.pred_boxes.tensor.float(), full.scores.float(), full.pred_classes
        outputs.append(Detections(*(v.cpu().numpy() for v in (full.pred_masks, boxes, scores, clusters))))
    return outputs
