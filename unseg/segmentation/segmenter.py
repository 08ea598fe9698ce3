"""DeepLab-v3 on a dilated ResNet, trained on label maps with hard pixels only (MaskDistill, section 3.3, A.3).

Shapes: B images, H rows, W columns, C = K + 1 labels (0 background, 1..K clusters), S pixels a side in training.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from unseg.core.console import InputError
from unseg.core.image_index import ImageRecord
from unseg.core.label_maps import IGNORE_LABEL, LabelMaps
from unseg.core.storage import one_line
from unseg.data.photos import read, resize
from unseg.engine import batching, distributed, environment, training
from unseg.engine.batching import Batches
from unseg.engine.checkpoint import Checkpoint
from unseg.engine.precision import autocast, check_precision
from unseg.models import resnet
from unseg.segmentation.deeplab import DeepLab


@dataclass(frozen=True)
class Segmenter:
    """The `segmenter` group of params.yaml."""

    arch: str  # resnet18 | resnet50
    width: int  # channels of the first stage
    stride: int  # of the last feature map, against the image
    rates: list[int]  # dilations of the pyramid
    channels: int  # of each branch of the pyramid, and of the features
    init: str  # self-supervised ResNet weights, or weights.RANDOM_INIT
    frozen_stages: int
    size: int  # S
    epochs: int
    lr_milestone: int  # the last epoch, counted from 0, at the full lr; a tenth of it after that
    batch: int
    lr: float
    momentum: float
    weight_decay: float
    hard_pixel_ratio: float  # of a batch's pixels, the hardest, that the loss averages
    rotate: float  # degrees, either way
    scale: float  # 0.25: from 0.75 to 1.25
    border: str  # label of what an augmentation brings in from outside: background | ignore
    precision: str

    def __post_init__(self) -> None:
        resnet.check("segmenter", self.arch, self.width, self.frozen_stages)
        check_precision("segmenter.precision", self.precision)
        if self.stride not in (8, 16, 32):
            raise ValueError(f"segmenter.stride is {self.stride}; it must be 8, 16 or 32")
        if not 0 < self.hard_pixel_ratio <= 1:
            raise ValueError(f"segmenter.hard_pixel_ratio is {self.hard_pixel_ratio}; it must be above 0 and at most 1")
        if self.border not in ("background", "ignore"):
            raise ValueError(f"segmenter.border is {self.border!r}; it must be background or ignore")
        if self.batch < 2:
            raise ValueError("segmenter.batch must be at least 2: batch norm needs more than one image")


def hard_pixel_loss(logits: Tensor, labels: Tensor, share: float) -> Tensor:
    """Cross-entropy over the hardest pixels of a batch (Eq. 4, without its constant factor 1 / |C|).

    Args:
        logits: [B, C, H, W].
        labels: [B, H, W] int64; 255 is ignored.
        share: the mean is over the int(share * B * H * W) largest losses, or all valid ones where those are fewer.

    Returns:
        A scalar; 0 where every pixel is ignored. Of several processes each gives a part whose mean over them is the loss
        of the whole batch.
    """
    losses = F.cross_entropy(logits, labels, ignore_index=IGNORE_LABEL, reduction="none").flatten()
    losses = losses.masked_fill(labels.flatten() == IGNORE_LABEL, -1.0)
    every = distributed.gather(losses.detach()).flatten()  # of the whole batch, by process
    top = every.topk(max(1, int(share * every.numel()))).indices
    hardest = losses[top[top // len(losses) == distributed.rank()] % len(losses)]
    valid = hardest >= 0
    return (hardest * valid).sum() / distributed.all_reduce_mean(valid.sum().float()).clamp_min(1 / distributed.world())


@dataclass(frozen=True)
class SegmentationDataset(Dataset[Any]):
    """(index, seed) to an augmented image [3, S, S] and its labels [S, S] int64."""

    root: str
    records: list[ImageRecord]
    labels: LabelMaps
    size: int  # S
    warp: tuple[float, float, int]  # rotate, scale, outside: see `augment`

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, draw: tuple[int, int]) -> tuple[Tensor, Tensor]:
        index, seed = draw
        record = self.records[index]
        rng = np.random.default_rng(seed)
        pixels, labels = augment(rng, np.asarray(read(self.root, record)), self.labels[record], self.size, *self.warp)
        return batching.to_tensor(pixels), torch.from_numpy(labels.astype(np.int64))


def augment(
    rng: np.random.Generator,
    pixels: np.ndarray,
    labels: np.ndarray,
    size: int,
    rotate: float = 0.0,
    scale: float = 0.0,
    outside: int = IGNORE_LABEL,
) -> tuple[np.ndarray, np.ndarray]:
    """Flip, rotate and scale about the centre, resize to S x S ignoring the aspect, all in one resampling.

    Args:
        pixels: [H, W, 3] uint8.
        labels: [H, W] uint8.
        size: S.
        rotate: degrees, either way.
        scale: 0.25 for 0.75 to 1.25.
        outside: the label of what comes from outside the image.

    Returns:
        [S, S, 3] uint8 (bicubic) and [S, S] uint8 (nearest).
    """
    h, w = labels.shape
    turn = np.eye(3)
    turn[:2] = cv2.getRotationMatrix2D((w / 2, h / 2), rng.uniform(-rotate, rotate), rng.uniform(1 - scale, 1 + scale))
    if rng.random() < 0.5:
        turn = np.array([[-1, 0, w], [0, 1, 0], [0, 0, 1.0]]) @ turn
    fit = np.diag([size / w, size / h, 1.0]) @ turn
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1.0]])  # OpenCV counts from pixel centres
    matrix = (np.linalg.inv(half) @ fit @ half)[:2]
    square = (size, size)
    pixels = cv2.warpAffine(pixels, matrix, square, flags=cv2.INTER_CUBIC, borderValue=(0, 0, 0))
    return pixels, cv2.warpAffine(labels, matrix, square, flags=cv2.INTER_NEAREST, borderValue=(outside,))


def learning_rate(p: Segmenter, epoch: int) -> float:
    """At an epoch counted from 0."""
    return training.step_decay(p.lr, p.lr_milestone, epoch)


def train(
    p: Segmenter,
    k: int,
    root: str,
    records: list[ImageRecord],
    labels: LabelMaps,
    seed: int,
    checkpoint: Checkpoint,
    what: str,
) -> tuple[DeepLab, list[dict[str, float]]]:
    """Train on label maps of K clusters; returns the model and the metrics of each step.

    Raises:
        InputError: fewer than two images, a label map that is missing, weights that do not fit.
    """
    if len(records) < 2:
        raise InputError(f"the segmenter has {len(records)} training image(s); batch norm needs two at least: add photographs")
    torch.manual_seed(seed)
    device = environment.device()
    model = DeepLab(p.arch, p.width, p.stride, p.rates, k + 1, p.frozen_stages, p.channels)
    resnet.initialise(model.body, p.init, "segmenter")
    distributed.sync_norms(model)
    model.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    learned = [x for x in model.parameters() if x.requires_grad]
    optimizer = torch.optim.SGD(learned, lr=p.lr, momentum=p.momentum, weight_decay=p.weight_decay)
    shared = distributed.wrap_ddp(model)
    per_epoch = training.steps_per_epoch(len(records), p.batch)

    def step(number: int, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        training.set_lr(optimizer, learning_rate(p, number // per_epoch))
        x = batch[0].to(device, memory_format=torch.channels_last)
        with autocast(device, p.precision):
            logits = shared(x)
        loss = hard_pixel_loss(logits, batch[1].to(device), p.hard_pixel_ratio)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return {"loss": distributed.all_reduce_mean(loss)}

    dataset = SegmentationDataset(root, records, labels, p.size, (p.rotate, p.scale, IGNORE_LABEL if p.border == "ignore" else 0))
    values = training.fit(
        what, checkpoint, {"model": model, "optimizer": optimizer}, dataset, p.batch, p.epochs * per_epoch, seed, step
    )
    return model, values


def save(path: str | Path, model: DeepLab, p: Segmenter, k: int) -> None:
    shape = {"arch": p.arch, "width": p.width, "stride": p.stride, "rates": p.rates, "labels": k + 1, "channels": p.channels}
    write_segmenter(path, model, shape, p.size, p.precision)


def write_segmenter(
    path: str | Path,
    model: DeepLab,
    shape: dict[str, Any],
    size: int,
    precision: str,
    names: tuple[str, ...] = (),
    seen: str | int | None = None,
) -> None:
    """The weights with what `load` needs: DeepLab's arguments, S, and, where they are known, names and how it looks."""
    about = {"kind": "segmenter", "model": shape, "size": size, "precision": precision}
    training.write_weights(path, model, about | ({"names": names} if names else {}) | ({"seen": seen} if seen else {}))


@dataclass(frozen=True)
class TrainedSegmenter:
    """A segmenter from its file."""

    model: DeepLab
    labels: int  # C
    size: int  # S, of its training
    precision: str
    names: tuple[str, ...] = ()  # of the labels, background first; none where they are clusters
    shape: dict[str, Any] = field(default_factory=dict)  # DeepLab's arguments
    seen: str | int | None = None  # at what size it was fitted to photographs (tiles.bands); None: it does not say


def load(path: str | Path) -> TrainedSegmenter:
    """Read weights and what they say of themselves; on the CPU, in evaluation mode.

    Raises:
        InputError: no such file, or not a segmenter of this version of unseg.
    """
    state, about = training.read_weights(path, "segmenter")
    try:
        shape, names = about["model"], tuple(map(str, about.get("names", ())))
        with torch.device("meta"):  # whatever the metadata ask for, no memory but the file's is taken
            model = DeepLab(**shape)
        model.load_state_dict(state, assign=True)
        model.to(memory_format=torch.channels_last).eval()
        return TrainedSegmenter(model, shape["labels"], about["size"], about["precision"], names, shape, about.get("seen"))
    except Exception as error:  # metadata can be anything
        raise InputError(f"{path}: weights and metadata do not fit ({one_line(error)}); train it again") from None


@torch.inference_mode()
def probabilities(net: TrainedSegmenter, x: Tensor) -> Tensor:
    """[B, 3, H, W], normalised, to probabilities [B, C, H, W] on the input's device."""
    with autocast(x.device, net.precision):
        logits: Tensor = net.model(x.to(memory_format=torch.channels_last))
    return logits.softmax(1)


@dataclass(frozen=True)
class Predict:
    """The `predict` group of params.yaml."""

    input: str  # original: the photograph's own size (paper) | square: the training size, S x S (published code)
    pixels: int  # of a batch, at the most

    def __post_init__(self) -> None:
        if self.input not in ("original", "square"):
            raise ValueError(f"predict.input is {self.input!r}; it must be original or square")


def load_batches(net: TrainedSegmenter, root: str, records: Iterable[ImageRecord], q: Predict) -> Batches[ImageRecord]:
    """Photographs as batches [B, 3, H, W], normalised, at the size that q.input says."""

    def shape(record: ImageRecord) -> tuple[int, int]:
        return (net.size, net.size) if q.input == "square" else record.size

    def load(record: ImageRecord) -> Tensor:
        return batching.to_tensor(resize(read(root, record), shape(record)))

    return batching.batches_by_shape(records, shape, load, q.pixels)


def every_probability(
    net: TrainedSegmenter, batches: Iterable[tuple[list[ImageRecord], Tensor]]
) -> Iterator[tuple[ImageRecord, Tensor]]:
    """Each photograph of the batches and its probabilities [C, H, W] at its own size."""
    device = environment.device()
    net.model.to(device)
    for records, x in batches:
        for record, p in zip(records, probabilities(net, x.to(device)), strict=True):
            if p.shape[1:] != record.size:
                p = F.interpolate(p[None], record.size, mode="bilinear", align_corners=False)[0]
            yield record, p
