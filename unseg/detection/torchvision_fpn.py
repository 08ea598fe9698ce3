"""Mask R-CNN from torchvision: a ResNet of any width with a feature pyramid.

Shapes: B images, H rows, W columns, M objects of an image, R proposals, K clusters (labels 1..K inside, 0 is background).
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss, maskrcnn_loss
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign, box_iou
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.ops.poolers import LevelMapper

from unseg.detection import distributed_mask_rcnn
from unseg.detection.examples import Target
from unseg.detection.settings import Detect, Detections, Detector
from unseg.engine import batching
from unseg.models import resnet

sync_norms = distributed_mask_rcnn.distribute


class ResNetFPN(nn.Module):
    """ResNet with FPN. It maps images to feature maps at strides 4, 8, 16, 32, 64 with `out_channels` channels each."""

    def __init__(self, body: resnet.ResNetBackbone, channels: int) -> None:
        super().__init__()
        self.body, self.out_channels = body, channels
        self.fpn = FeaturePyramidNetwork(body.channels, channels, LastLevelMaxPool())

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return cast(dict[str, Tensor], self.fpn({str(i): m for i, m in enumerate(self.body(x))}))


class DropLossRoIHeads(RoIHeads):  # type: ignore[misc]
    """Heads that ignore the loss of proposals without a mask, as these may show an object that was not mined.

    CutLER (Wang et al., arXiv:2301.11320, Eq. 2): the loss of a region counts only if its IoU with some object is above
    the threshold. The mean still runs over all sampled regions. The RPN loss is unchanged.
    """

    drop_iou: float

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[Target] | None = None,
    ) -> tuple[list[Target], dict[str, Tensor]]:
        if not self.training or targets is None:
            return cast(tuple[list[Target], dict[str, Tensor]], super().forward(features, proposals, image_shapes, targets))
        proposals, matched, labels, deltas = self.select_training_samples(proposals, targets)
        logits, regression = self.box_predictor(self.box_head(self.box_roi_pool(features, proposals, image_shapes)))
        _, box_loss = fastrcnn_loss(logits, regression, labels, deltas)
        kept = torch.cat([overlap(x, t["boxes"]) > self.drop_iou for x, t in zip(proposals, targets, strict=True)])  # [R]
        classifier = (F.cross_entropy(logits, torch.cat(labels), reduction="none") * kept).mean()
        positive = [torch.where(x > 0)[0] for x in labels]
        boxes = [x[i] for x, i in zip(proposals, positive, strict=True)]
        masks = self.mask_predictor(self.mask_head(self.mask_roi_pool(features, boxes, image_shapes)))
        objects = [x[i] for x, i in zip(matched, positive, strict=True)]
        mask_loss = maskrcnn_loss(masks, boxes, [t["masks"] for t in targets], [t["labels"] for t in targets], objects)
        return [], {"loss_classifier": classifier, "loss_box_reg": box_loss, "loss_mask": mask_loss}


def overlap(proposals: Tensor, boxes: Tensor) -> Tensor:
    """Largest IoU [R] of each proposal [R, 4] with any of the boxes [M, 4]; 0 if there are no boxes."""
    return box_iou(proposals, boxes).amax(1) if len(boxes) else proposals.new_zeros(len(proposals))


def pool(size: int) -> MultiScaleRoIAlign:
    """RoIAlign to size x size on the first four maps of the pyramid.

    The strides are set explicitly. torchvision infers them from its first image, wrongly if that image is so small that
    the padding to 32 pixels is a large part of it.
    """
    align = MultiScaleRoIAlign(["0", "1", "2", "3"], size, 2)
    align.scales, align.map_levels = [1 / 4, 1 / 8, 1 / 16, 1 / 32], LevelMapper(2, 5)
    return align


def build(p: Detector, k: int) -> MaskRCNN:
    """Build an untrained Mask R-CNN for K clusters."""
    sizes = tuple((p.anchor * 2**i,) for i in range(5))
    pyramid = ResNetFPN(resnet.ResNetBackbone(p.arch, p.width, frozen=p.frozen_stages), p.fpn)
    model = MaskRCNN(
        pyramid,
        min_size=p.short_sides,
        max_size=p.long_side,
        image_mean=list(batching.MEAN),
        image_std=list(batching.STD),
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
    if p.drop_iou is not None:
        model.roi_heads.__class__ = DropLossRoIHeads  # same parameters, different forward
        model.roi_heads.drop_iou = p.drop_iou
    return model


def initialise(model: MaskRCNN, p: Detector) -> None:
    """Load self-supervised weights into the ResNet. Raises InputError if they do not fit."""
    resnet.initialise(model.backbone.body, p.init, "detector")


def param_groups(model: nn.Module, p: Detector) -> list[nn.Parameter]:
    """Trainable parameters for the optimiser."""
    return [x for x in model.parameters() if x.requires_grad]


def losses(model: nn.Module, p: Detector, pixels: list[Tensor], targets: list[Target]) -> dict[str, Tensor]:
    """Compute the parts of the loss: classifier, box_reg, mask, objectness, rpn_box_reg."""
    parts = {name.removeprefix("loss_"): x for name, x in model(pixels, targets).items()}
    mask_rcnn = getattr(model, "module", model)  # without DistributedDataParallel
    return distributed_mask_rcnn.weight_losses(mask_rcnn, parts)


def prepare(model: MaskRCNN, q: Detect) -> None:
    """Configure the model with the `detect` group of params.yaml."""
    model.transform.min_size = (q.short_side,)
    model.roi_heads.score_thresh, model.roi_heads.nms_thresh = q.min_score, q.nms
    model.roi_heads.detections_per_img = q.max_detections


def find(model: nn.Module, p: Detector, q: Detect, x: Tensor) -> list[Detections]:
    """Detect objects in photographs [B, 3, H, W] with values in 0..1."""
    outputs = []
    for output in model(list(x)):
        masks, boxes, scores = output["masks"][:, 0] > 0.5, output["boxes"].float(), output["scores"].float()
        outputs.append(Detections(*(v.cpu().numpy() for v in (masks, boxes, scores, output["labels"] - 1))))
    return outputs
