"""Train a segmenter on label maps, and run it; the loss averages hard pixels only (MaskDistill, section 3.3, A.3).

The network is DeepLab-v3 (the paper's) or a ViT student. `vit_student` imports timm, which takes seconds, so functions import it.

Shapes: B images, H rows, W columns, C = K + 1 labels (0 background, 1..K clusters), S side in training, pixels.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import cv2
import numpy as np
import torch
from annotated_types import Ge, Interval
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import Dataset

from unseg.core.console import InputError
from unseg.core.image_index import ImageRecord
from unseg.core.label_maps import IGNORE_LABEL, LabelMaps
from unseg.core.params import (
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveFraction,
    PositiveInt,
    Precision,
)
from unseg.core.storage import one_line
from unseg.data.photos import read, resize
from unseg.engine import batching, distributed, environment, training
from unseg.engine.batching import Batches
from unseg.engine.checkpoint import Checkpoint
from unseg.engine.precision import autocast
from unseg.models import resnet
from unseg.segmentation import log_pictures
from unseg.segmentation.deeplab import DeepLab

if TYPE_CHECKING:
    from unseg.models.vit import Backbone
    from unseg.segmentation.vit_student import ViTStudent


@dataclass(frozen=True)
class Segmenter:
    """The `segmenter` group of params.yaml."""

    arch: Literal["resnet18", "resnet50", "vit"]  # DeepLab-v3 on a ResNet, or a head on the ViT of the group backbone
    layer: int  # vit: the block whose tokens the head reads, as `embed.layer`; later ones are left out
    head: Literal["linear", "conv"]  # vit
    tuned_blocks: NonNegativeInt  # vit: the last blocks up to `layer`, which are trained with the head
    width: PositiveInt  # ResNets: channels of the first stage; 64 is the standard ResNet
    stride: Literal[8, 16, 32]  # ResNets: of the last feature map
    rates: list[PositiveInt]  # ResNets: dilations of the pyramid
    channels: PositiveInt  # of each branch of the pyramid, and of the features; of the head conv
    init: str  # ResNets: self-supervised weights, or weights.RANDOM_INIT
    frozen_stages: Annotated[int, Interval(ge=0, le=4)]  # ResNets
    size: PositiveInt  # S
    epochs: PositiveInt
    lr_milestone: int  # last epoch at the full lr, counted from 0; a tenth of it afterwards
    batch: Annotated[int, Ge(2)]  # batch norm needs more than one image
    lr: PositiveFloat
    momentum: Fraction
    weight_decay: NonNegativeFloat
    ema: Annotated[float, Interval(ge=0, lt=1)]  # decay of the moving average of the weights, which is saved; 0: the last weights
    hard_pixel_ratio: PositiveFraction  # fraction of a batch's pixels that the loss averages
    rotate: NonNegativeFloat  # ResNets: maximum, degrees
    scale: Annotated[float, Interval(ge=0, lt=1)]  # ResNets: 0.25: from 0.75 to 1.25
    border: Literal["background", "ignore"]  # ResNets: label of pixels that augmentation takes from outside the image
    precision: Precision


def hard_pixel_loss(logits: Tensor, labels: Tensor, ratio: float) -> Tensor:
    """Cross-entropy averaged over the hardest pixels of a batch (Eq. 4, without its constant factor 1 / |C|).

    Args:
        logits: [B, C, H, W].
        labels: [B, H, W] int64; 255 is ignored.
        ratio: the int(ratio * B * H * W) largest losses are averaged, or all valid ones if those are fewer.

    Returns:
        A scalar; 0 if all pixels are ignored. With several processes, the mean over processes is the loss of the whole batch.
    """
    losses = F.cross_entropy(logits, labels, ignore_index=IGNORE_LABEL, reduction="none").flatten()
    losses = losses.masked_fill(labels.flatten() == IGNORE_LABEL, -1.0)
    batch_losses = distributed.gather(losses.detach()).flatten()  # of all processes
    top = batch_losses.topk(max(1, int(ratio * batch_losses.numel()))).indices
    hardest = losses[top[top // len(losses) == distributed.rank()] % len(losses)]
    valid = hardest >= 0
    return (hardest * valid).sum() / distributed.all_reduce_mean(valid.sum().float()).clamp_min(1 / distributed.world())


@dataclass(frozen=True)
class SegmentationDataset(Dataset[Any]):
    """Maps (index, seed) to an augmented image [3, S, S], normalised, and its labels [S, S] int64."""

    root: str
    images: list[ImageRecord]
    labels: LabelMaps
    size: int  # S
    warp: tuple[float, float, int]  # rotate, scale, border: see `augment`

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, draw: tuple[int, int]) -> tuple[Tensor, Tensor]:
        index, seed = draw
        image, rng = self.images[index], np.random.default_rng(seed)
        pixels, labels = augment(rng, np.asarray(read(self.root, image)), self.labels[image], self.size, *self.warp)
        return batching.to_tensor(pixels), torch.from_numpy(labels.astype(np.int64))


def augment(
    rng: np.random.Generator,
    pixels: np.ndarray,
    labels: np.ndarray,
    size: int,
    rotate: float = 0.0,
    scale: float = 0.0,
    border: int = IGNORE_LABEL,
) -> tuple[np.ndarray, np.ndarray]:
    """Flip, rotate and scale about the centre, and resize to S x S ignoring the aspect ratio, in one resampling.

    Args:
        pixels: [H, W, 3] uint8; becomes [S, S, 3], bicubic.
        labels: [H, W] uint8; becomes [S, S], nearest neighbour.
        rotate: maximum, degrees.
        scale: 0.25 for 0.75 to 1.25.
        border: label of pixels from outside the image, which are black.
    """
    h, w = labels.shape
    warp = np.eye(3)
    warp[:2] = cv2.getRotationMatrix2D((w / 2, h / 2), rng.uniform(-rotate, rotate), rng.uniform(1 - scale, 1 + scale))
    if rng.random() < 0.5:
        warp = np.array([[-1, 0, w], [0, 1, 0], [0, 0, 1.0]]) @ warp
    warp = np.diag([size / w, size / h, 1.0]) @ warp
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1.0]])  # OpenCV's origin is the centre of a pixel
    matrix = (np.linalg.inv(half) @ warp @ half)[:2]
    pixels = cv2.warpAffine(pixels, matrix, (size, size), flags=cv2.INTER_CUBIC, borderValue=(0, 0, 0))
    return pixels, cv2.warpAffine(labels, matrix, (size, size), flags=cv2.INTER_NEAREST, borderValue=(border,))


def learning_rate(p: Segmenter, epoch: int) -> float:
    """Learning rate at an epoch, counted from 0."""
    return training.step_decay(p.lr, p.lr_milestone, epoch)


def train(
    p: Segmenter,
    k: int,
    root: str,
    images: list[ImageRecord],
    labels: LabelMaps,
    seed: int,
    checkpoint: Checkpoint,
    name: str,
    backbone: "Backbone | None" = None,
) -> "tuple[DeepLab | ViTStudent, list[dict[str, float]]]":
    """Train on label maps of K clusters; returns the model and the metrics of each step.

    `name` is on the progress bar and in TensorBoard. backbone: the ViT of a ViT student; no other network has one.

    With p.ema the model has the exponential moving average of the weights after each step, from those after the first on. The
    running statistics of batch norm are averaged too, because those of the last weights would not fit the averaged ones.

    Raises InputError for fewer than two images, a missing label map, weights that do not fit, or a loss that is not finite.
    """
    if len(images) < 2:
        raise InputError(f"the segmenter has {len(images)} training image(s); batch norm needs at least two: add photographs")
    torch.manual_seed(seed)
    device = environment.device()
    model: DeepLab | ViTStudent
    trained: nn.Module  # the part that is trained: it takes the inputs of the dataset
    groups: list[dict[str, Any]]  # of the trained parameters
    dataset: Dataset[Any]
    if backbone is not None:
        from unseg.segmentation import vit_student

        model = vit_student.build(p, backbone, k + 1)
        dataset = vit_student.read_tokens(model, p, root, images, labels)
        trained, groups = vit_student.trained_part(model, p)
    else:
        model = trained = DeepLab(p.arch, p.width, p.stride, p.rates, k + 1, p.frozen_stages, p.channels)
        resnet.initialise(model.body, p.init, "segmenter")
        border = IGNORE_LABEL if p.border == "ignore" else 0
        dataset = SegmentationDataset(root, images, labels, p.size, (p.rotate, p.scale, border))
        groups = [{"params": [x for x in trained.parameters() if x.requires_grad]}]
    distributed.sync_norms(trained)
    trained.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(groups, lr=p.lr, momentum=p.momentum, weight_decay=p.weight_decay)
    ddp_model = distributed.wrap_ddp(trained)
    average = AveragedModel(trained, multi_avg_fn=get_ema_multi_avg_fn(p.ema), use_buffers=True) if p.ema else None
    steps_per_epoch = training.steps_per_epoch(len(images), p.batch)

    def step(number: int, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        training.set_lr(optimizer, learning_rate(p, number // steps_per_epoch))
        x, y = batch[0].to(device), batch[1].to(device)
        x = x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
        with autocast(device, p.precision):
            logits = ddp_model(x)
        if logits.shape[-2:] != y.shape[-2:]:
            logits = F.interpolate(logits.float(), y.shape[-2:], mode="bilinear", align_corners=False)
        loss = hard_pixel_loss(logits, y, p.hard_pixel_ratio)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if average:
            average.update_parameters(trained)
        return {"loss": distributed.all_reduce_mean(loss)}

    def load(index: int) -> Tensor:
        if backbone is not None:
            tokens: Tensor = cast(Any, dataset).tokens  # of a vit_student.TokenDataset
            return tokens[index, :1].float()
        return batching.to_tensor(resize(read(root, images[index]), (p.size, p.size)))[None]

    def logits_of(x: Tensor) -> Tensor:
        with autocast(device, p.precision):
            logits: Tensor = average.module(x.to(device)) if average else trained(x.to(device))
        return logits

    draw = log_pictures.drawing(root, images, labels, k, load, logits_of)
    state = {"model": trained, "optimizer": optimizer} | ({"average": average} if average else {})
    values = training.fit(name, checkpoint, state, dataset, p.batch, p.epochs * steps_per_epoch, seed, step, draw=draw)
    if average:
        trained.load_state_dict(average.module.state_dict())
    return model, values


def save(path: str | Path, model: nn.Module, p: Segmenter, k: int, backbone: "Backbone | None" = None) -> None:
    """Write a segmenter of K clusters; backbone as in `train`."""
    if backbone is not None:
        from unseg.segmentation import vit_student

        shape = vit_student.shape_of(cast("ViTStudent", model), p, k + 1)
    else:
        shape = {"arch": p.arch, "width": p.width, "stride": p.stride, "rates": p.rates, "labels": k + 1, "channels": p.channels}
    write_segmenter(path, model, shape, p.size, p.precision)


def write_segmenter(
    path: str | Path,
    model: nn.Module,
    shape: dict[str, Any],
    size: int,
    precision: str,
    names: tuple[str, ...] = (),
    input_size: str | int | None = None,
) -> None:
    """Write the weights with the metadata that `load` needs; see `TrainedSegmenter`."""
    about = {"kind": "segmenter", "model": shape, "size": size, "precision": precision}
    optional = {"names": names, "seen": input_size}
    training.write_weights(path, model, about | {key: value for key, value in optional.items() if value})


@dataclass(frozen=True)
class TrainedSegmenter:
    """A segmenter from its file."""

    model: "DeepLab | ViTStudent"
    labels: int  # C
    size: int  # S
    precision: Precision
    names: tuple[str, ...] = ()  # of the labels, background first; empty if they are clusters
    shape: dict[str, Any] = field(default_factory=dict)  # the arguments of `build`
    input_size: str | int | None = None  # at which it was fitted to photographs, see `tiles.predict_bands`; None: unknown


def build(shape: dict[str, Any]) -> "DeepLab | ViTStudent":
    """A network with random weights; shape: `arch` and the arguments of its class."""
    if shape["arch"] == "vit":
        from unseg.segmentation import vit_student

        return vit_student.from_shape(shape)
    return DeepLab(**shape)


def load(path: str | Path) -> TrainedSegmenter:
    """Read a segmenter to the CPU, in evaluation mode. Raises InputError if it is not a segmenter of this version of unseg."""
    state, about = training.read_weights(path, "segmenter")
    try:
        shape, names = about["model"], tuple(map(str, about.get("names", ())))
        with torch.device("meta"):  # metadata from a damaged file cannot allocate memory
            model = build(shape)
        model.load_state_dict(state, assign=True)
        if any(x.is_meta for x in model.buffers()):  # not in the file: timm computes those of rotary embeddings at the start
            model = build(shape)
            model.load_state_dict(state)
        model.to(memory_format=torch.channels_last).eval()
        return TrainedSegmenter(model, shape["labels"], about["size"], about["precision"], names, shape, about.get("seen"))
    except Exception as error:  # metadata can be anything
        raise InputError(f"{path}: weights and metadata do not fit ({one_line(error)}); train it again") from None


@torch.inference_mode()
def probabilities(net: TrainedSegmenter, x: Tensor) -> Tensor:
    """[B, 3, H, W], normalised, to probabilities [B, C, H, W] on the same device."""
    with autocast(x.device, net.precision):
        logits: Tensor = net.model(x.to(memory_format=torch.channels_last))
    return logits.softmax(1)


@dataclass(frozen=True)
class Predict:
    """The `predict` group of params.yaml."""

    input: Literal["original", "square"]  # original: the photograph's size (paper); square: S x S (published code)
    pixels: PositiveInt  # maximum per batch


def load_batches(net: TrainedSegmenter, root: str, images: Iterable[ImageRecord], q: Predict) -> Batches[ImageRecord]:
    """Load photographs as batches [B, 3, H, W], normalised, at the size that q.input selects."""

    def shape(image: ImageRecord) -> tuple[int, int]:
        return (net.size, net.size) if q.input == "square" else image.size

    def load(image: ImageRecord) -> Tensor:
        return batching.to_tensor(resize(read(root, image), shape(image)))

    return batching.batches_by_shape(images, shape, load, q.pixels)


def predict(
    net: TrainedSegmenter,
    batches: Iterable[tuple[list[ImageRecord], Tensor]],
    fn: Callable[[TrainedSegmenter, Tensor], Tensor] = probabilities,
) -> Iterator[tuple[ImageRecord, Tensor]]:
    """Yield each image and its probabilities [C, H, W] at the photograph's size. fn: as `probabilities`, for a batch."""
    device = environment.device()
    net.model.to(device)
    for images, x in batches:
        for image, p in zip(images, fn(net, x.to(device)), strict=True):
            if p.shape[1:] != image.size:
                p = F.interpolate(p[None], image.size, mode="bilinear", align_corners=False)[0]
            yield image, p
