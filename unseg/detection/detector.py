"""Train and run Mask R-CNN on mined masks (MaskDistill, section 3.2, A.1) with one of two backends.

`torchvision_fpn` is torchvision's model with a feature pyramid. `detectron2_c4` is Detectron2's R50-C4, as in the paper.
Both modules define the same functions: build, initialise, sync_norms, param_groups, losses, prepare, find.

Shapes: B images, H rows, W columns, M objects of an image, K clusters.
"""

import copy
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unseg.core import optional, params
from unseg.core.console import InputError
from unseg.core.image_index import ImageRecord
from unseg.core.instances import Detection
from unseg.core.masks import encode_all
from unseg.core.storage import one_line
from unseg.data.photos import read
from unseg.detection import log_pictures
from unseg.detection.examples import DetectionDataset, Objects, Target, collate
from unseg.detection.settings import Detect, Detections, Detector
from unseg.engine import batching, distributed, environment, training
from unseg.engine.batching import Batches
from unseg.engine.checkpoint import Checkpoint
from unseg.engine.precision import autocast
from unseg.models.weights import RANDOM_INIT

DRAWN: Any = {"min_score": 0.5, "nms": 0.5, "max_detections": 10}  # of `Detect`, for the pictures in TensorBoard


@dataclass(frozen=True)
class TrainedDetector:
    """A detector in evaluation mode, configured for `detect`."""

    model: nn.Module
    p: Detector
    q: Detect
    k: int  # number of clusters


def backend(p: Detector) -> ModuleType:
    """Import the module of a backend. Raises InputError if it is not installed."""
    if p.backend == "torchvision":
        from unseg.detection import torchvision_fpn

        return torchvision_fpn
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch.jit deprecation, repeated ten times
            from unseg.detection import detectron2_c4
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package == "unseg":
            raise
        raise optional.detectron2_missing(package) from None
    return detectron2_c4


def learning_rate(p: Detector, iteration: int) -> float:
    """Learning rate at an iteration: linear warm-up from lr / 1000, then division by 10 after each of lr_steps."""
    warm = min(1.0, 0.001 + iteration / p.warmup_iterations) if p.warmup_iterations else 1.0
    return p.lr * (p.batch / p.reference_batch) * warm * math.prod(0.1 for s in p.lr_steps if iteration >= s)


def train(
    p: Detector,
    k: int,
    root: str,
    images: list[ImageRecord],
    objects: Objects,
    seed: int,
    checkpoint: Checkpoint,
    name: str = "detector",
) -> tuple[nn.Module, list[dict[str, float]]]:
    """Train on instances of K clusters. Images without instances count as background.

    `name` is on the progress bar and in TensorBoard.
    Returns the model, and the metrics of each step: the total loss and its parts, with the same names for both backends.
    Raises InputError if the backend is not installed, the weights do not fit, or a loss is not finite.
    """
    by = backend(p)
    torch.manual_seed(seed)
    device = environment.device()
    model: nn.Module = by.build(p, k)
    by.initialise(model, p)
    by.sync_norms(model)
    model.to(device).train()
    trainable = [x for x in model.parameters() if x.requires_grad]
    optimizer = torch.optim.SGD(by.param_groups(model, p), lr=p.lr, momentum=p.momentum, weight_decay=p.weight_decay)
    ddp_model = distributed.wrap_ddp(model)

    def step(number: int, batch: tuple[list[Tensor], list[Target]]) -> dict[str, Tensor]:
        training.set_lr(optimizer, learning_rate(p, number))
        pixels = [x.to(device) for x in batch[0]]
        targets = [{key: x.to(device) for key, x in t.items()} for t in batch[1]]
        with autocast(device, p.precision):
            parts: dict[str, Tensor] = by.losses(ddp_model, p, pixels, targets)
        loss = torch.stack([x.float() for x in parts.values()]).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if p.clip:
            nn.utils.clip_grad_norm_(trainable, p.clip)
        optimizer.step()
        return {name: distributed.all_reduce_mean(x) for name, x in {"loss": loss, **parts}.items()}

    def detect_each(photos: Sequence[Tensor]) -> list[list[Detection]]:
        trained = prepared(copy.deepcopy(model), p, q, k)  # a copy, because `prepare` changes settings of the model
        return [detect_batch(trained, x.to(device), [0])[0] for x in photos]

    q = Detect(short_side=min(p.short_sides), pixels=1, **DRAWN)
    draw = log_pictures.drawing(root, images, objects, k, q.short_side, detect_each)
    dataset = DetectionDataset(root, images, objects, p.copy_paste, p.paste_scale)
    state = {"model": model, "optimizer": optimizer}
    values = training.fit(name, checkpoint, state, dataset, p.batch, p.iterations, seed, step, collate, draw=draw)
    return model, values


def save(path: str | Path, model: nn.Module, p: Detector, k: int) -> None:
    settings = {**vars(p), "init": RANDOM_INIT}
    about = {"kind": "detector", "detector": settings, "k": k, "mean": batching.MEAN, "std": batching.STD}
    training.write_weights(path, model, about)


def load(path: str | Path, q: Detect) -> TrainedDetector:
    """Load a detector from a file and configure it with `q`.

    Raises InputError if the file is not a detector of this version of unseg, or its backend is not installed.
    """
    state, about = training.read_weights(path, "detector")
    try:
        p: Detector = params.check("detector", Detector, about.get("detector"), path)
    except InputError:
        raise InputError(f"{path} is of another version of unseg; train it again with `dvc repro`") from None
    network = backend(p)
    try:
        model: nn.Module = network.build(p, about["k"])
        model.load_state_dict(state)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:  # the metadata can be anything
        raise InputError(f"{path}: weights and metadata do not fit ({one_line(error)}); train it again") from None
    return prepared(model, p, q, about["k"])


def prepared(model: nn.Module, p: Detector, q: Detect, k: int) -> TrainedDetector:
    backend(p).prepare(model, q)
    return TrainedDetector(model.eval(), p, q, k)


def load_batches(trained: TrainedDetector, root: str, images: Iterable[ImageRecord]) -> Batches[ImageRecord]:
    """Load photographs as batches [B, 3, H, W] uint8 of equal size."""

    def load(image: ImageRecord) -> Tensor:
        return torch.from_numpy(np.array(read(root, image))).permute(2, 0, 1)

    return batching.batches_by_shape(images, lambda i: i.size, load, trained.q.pixels)


def detect(
    trained: TrainedDetector, batches: Iterable[tuple[list[ImageRecord], Tensor]]
) -> Iterator[tuple[ImageRecord, list[Detection]]]:
    """Yield each image and its detections, highest score first."""
    device = environment.device()
    trained.model.to(device)
    for images, x in batches:
        yield from zip(images, detect_batch(trained, x.to(device), [i.id for i in images]), strict=True)


@torch.inference_mode()
def detect_batch(trained: TrainedDetector, x: Tensor, image_ids: Sequence[int]) -> list[list[Detection]]:
    """Detections in each photograph, highest score first; x is [B, 3, H, W] uint8 on the model's device."""
    with autocast(x.device, trained.p.precision):
        outputs: list[Detections] = backend(trained.p).find(trained.model, trained.p, trained.q, x.float() / 255)
    return [to_detections(id, output) for id, output in zip(image_ids, outputs, strict=True)]


def to_detections(image_id: int, output: Detections) -> list[Detection]:
    """Convert the output of a backend. Detections with an empty mask are dropped."""
    detections = []
    rows = zip(encode_all(output.masks), output.boxes, output.scores, output.clusters, strict=True)
    for mask, (x0, y0, x1, y1), score, cluster in rows:
        if mask.area:
            x, y, w, h = (round(float(v), 2) for v in (x0, y0, x1 - x0, y1 - y0))
            detections.append(Detection(image_id, int(cluster), mask, (x, y, w, h), round(float(score), 6)))
    return detections
