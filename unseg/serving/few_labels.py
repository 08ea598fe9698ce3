"""Turn clusters into classes with a few labelled photographs: by vote, or by a linear head on frozen features.

    vote  each cluster takes the class of most of its labelled pixels; the result is a clusters.yaml
    head  logistic regression on the features before the last layer replaces that layer; the result is a segmenter

Both results have seen labels. They are for use; no stage of the pipeline reads them.

Shapes: H rows, W columns; D channels of a feature, N feature cells; K clusters, C classes (0 background). 255: no label.
"""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image as Pillow
from sklearn.linear_model import LogisticRegression
from torch import nn

from unseg.clustering.naming import ClusterEntry, ClusterNames
from unseg.core.console import InputError
from unseg.core.label_maps import IGNORE_LABEL
from unseg.data import photos
from unseg.engine import batching
from unseg.engine.precision import autocast
from unseg.evaluation import metrics
from unseg.segmentation.segmenter import TrainedSegmenter
from unseg.segmentation.tiles import network_size

MAX_CELLS = 4000  # per photograph, for the head
MAX_SIDE = 1024  # pixels of the longer side, for the head
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


def pairs(folder: Path, masks: Path) -> list[tuple[Path, Path]]:
    """Photographs and their masks: masks/NAME.png belongs to folder/NAME.jpg (or .png, ...), also in sub-folders.

    Raises InputError for a missing folder, no mask, or a mask without a photograph.
    """
    for path in (folder, masks):
        if not path.is_dir():
            raise InputError(f"{path}: no such folder")
    matched = []
    for mask in sorted(masks.rglob("*.png")):
        name = mask.relative_to(masks).with_suffix("").as_posix()
        photo = next((file for suffix in SUFFIXES if (file := folder / f"{name}{suffix}").is_file()), None)
        if photo is None:
            raise InputError(f"{mask}: {folder} has no photograph {name}.jpg (or .png, ...)")
        matched.append((photo, mask))
    if not matched:
        raise InputError(f"{masks} has no mask; NAME.jpg needs NAME.png: 0 background, 1.. classes, 255 unknown")
    return matched


def read_mask(path: Path, size: tuple[int, int]) -> np.ndarray:
    """[H, W] uint8 class indices from a grey or palette PNG. Raises InputError, also if its size is not `size` (H, W)."""
    try:
        with Pillow.open(path) as file:
            labels, mode = np.array(file), file.mode
    except Exception as error:
        raise InputError(f"{path} cannot be read as a mask ({error})") from None
    if mode not in ("L", "P", "1") or labels.ndim != 2:
        raise InputError(f"{path} has mode {mode}; a mask is a grey or palette PNG whose values are classes")
    if labels.shape != size:
        raise InputError(f"{path} is {labels.shape}, its photograph {size} (rows, columns)")
    return labels.astype(np.uint8)


def class_names(given: str | None, masks: Path, count: int) -> list[str]:
    """Names of classes 0..C-1: from "background,dog,cat", else from masks/classes.txt (one per line), else class 1, class 2, ...

    Raises InputError if there are fewer than `count` names (C in the masks), or equal ones.
    """
    file = masks / "classes.txt"
    text = given.split(",") if given else file.read_text("utf-8").splitlines() if file.exists() else []
    names = [t.strip() for t in text if t.strip()] or ["background", *(f"class {c}" for c in range(1, count))]
    if len(names) < count:
        given_count = f"{len(names)} {'is' if len(names) == 1 else 'are'} given"
        raise InputError(f"the masks have labels up to {count - 1}, so {count} names are needed, background first; {given_count}")
    for i, name in enumerate(names):
        if (first := next((n for n in names[:i] if n.casefold() == name.casefold()), None)) is not None:
            case = "" if first == name else " (upper and lower case count as equal)"
            raise InputError(f"two classes have the same name: {first}, {name}{case}; rename one")
    return names


def votes(maps: Iterable[tuple[np.ndarray, np.ndarray]], count: int, classes: int) -> np.ndarray:
    """Pixels [K, C] of each cluster and class, from pairs of a label map and a mask, both [H, W]."""
    table = sum(metrics.confusion(truth, labels, classes, count + 1) for labels, truth in maps)  # [C, K + 1]
    return np.asarray(table)[:, 1:].T


def name_by_votes(table: np.ndarray, names: Sequence[str]) -> ClusterNames:
    """Clusters named by their votes [K, C].

    A cluster takes the class of most of its labelled pixels. Of several clusters of a class, the largest takes the name and
    the others merge into it. Clusters of background merge into it. A cluster without labelled pixels stays as it is.
    """
    entries: dict[int, ClusterEntry] = {}
    winner = table.argmax(1)
    for c, name in enumerate(names):
        members = [int(k) for k in np.argsort(-table[:, c], kind="stable") if winner[k] == c and table[k, c]]
        for k in members:
            entries[k] = ClusterEntry(merge=members[0] + 1 if c else 0)
        if c and members:
            entries[members[0]] = ClusterEntry(name=name)
    return ClusterNames(len(table), entries)


@torch.inference_mode()
def cell_features(
    net: TrainedSegmenter, photo: Pillow.Image, labels: np.ndarray, input_size: str | int, device: torch.device, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Features [N, D] of labelled cells and their classes [N]. A cell has the label at its middle, from labels [H, W]."""
    height, width = network_size(net, (photo.height, photo.width), input_size)
    scale = min(1.0, MAX_SIDE / max(height, width))
    small = photos.resize(photo, (max(1, round(height * scale)), max(1, round(width * scale))))
    x = batching.to_tensor(small)[None].to(device, memory_format=torch.channels_last)
    with autocast(device, net.precision):
        features = net.model.features(x)[0].float().cpu().numpy()  # [D, h, w]
    sides = zip(features.shape[1:], labels.shape, strict=True)
    rows, cols = (((np.arange(n) + 0.5) * side / n).astype(int) for n, side in sides)
    y = labels[rows[:, None], cols].ravel()  # [h w]
    kept = np.flatnonzero(y != IGNORE_LABEL)
    if len(kept) > MAX_CELLS:
        kept = np.sort(np.random.default_rng(seed).choice(kept, MAX_CELLS, replace=False))
    return features.reshape(len(features), -1).T[kept], y[kept]


def fit_head(net: TrainedSegmenter, features: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> TrainedSegmenter:
    """The segmenter with a last layer for the classes, fitted to features [N, D] and labels [N].

    Raises InputError for a class without labelled cells, or only one class.
    """
    present = np.unique(labels)
    if absent := sorted(set(range(len(names))) - set(present.tolist())):
        c, name = absent[0], names[absent[0]]
        label = f"class {c}" if name == f"class {c}" else f"class {c} ({name})"
        remedy = "label more of it" + (", or, if it is unused, renumber the masks without it" if c else "")
        raise InputError(f"{label} has no labelled cell; {remedy}")
    if len(present) < 2:
        raise InputError("the masks have one class; label background (0) as well")
    mean, deviation = features.mean(0), features.std(0) + 1e-6
    model = LogisticRegression(max_iter=500).fit((features - mean) / deviation, labels)
    weight = model.coef_ / deviation  # [C, D]; [1, D] for two classes: the second against the first
    bias = model.intercept_ - weight @ mean
    if len(names) == 2:
        weight, bias = np.concatenate([np.zeros_like(weight), weight]), np.concatenate([np.zeros_like(bias), bias])
    layer = nn.Conv2d(features.shape[1], len(names), 1)
    layer.load_state_dict({"weight": torch.from_numpy(weight).float()[..., None, None], "bias": torch.from_numpy(bias).float()})
    trained = copy.deepcopy(net.model)
    trained.head[-1] = layer.to(next(trained.parameters()).device)
    shape = {**net.shape, "labels": len(names)}
    return replace(net, model=trained.eval(), labels=len(names), names=tuple(names), shape=shape)
