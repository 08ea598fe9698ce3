"""A handful of labelled photographs turn clusters into classes: by vote, or by a linear head on frozen features.

    vote  each cluster gets the class that most of its labelled pixels have: a clusters.yaml
    head  a new last layer, by logistic regression on the features of the last layer's input: a segmenter of one's own

What either makes has seen labels: it is for use, no stage of the pipeline reads it.

Shapes: H rows, W columns; D channels of a feature, N of its cells; K clusters, C classes (0 background). 255: no label.
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
from unseg.segmentation.segmenter import TrainedSegmenter
from unseg.segmentation.tiles import looked_at

CELLS = 4000  # of a photograph that the head learns from, at the most
LONGEST = 1024  # pixels of the longer side from which features are taken, at the most
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


def pairs(folder: Path, masks: Path) -> list[tuple[Path, Path]]:
    """Photographs and their masks: NAME.png in masks, for NAME.jpg (or .png, ...) in the folder.

    Raises:
        InputError: no such folder, no mask, or a mask without a photograph.
    """
    for path in (folder, masks):
        if not path.is_dir():
            raise InputError(f"{path}: no such folder")
    found = []
    for mask in sorted(masks.glob("*.png")):
        photo = next((folder / f"{mask.stem}{s}" for s in SUFFIXES if (folder / f"{mask.stem}{s}").is_file()), None)
        if photo is None:
            raise InputError(f"{mask}: {folder} has no photograph {mask.stem}.jpg (or .png, ...)")
        found.append((photo, mask))
    if not found:
        raise InputError(f"{masks}: no mask found; NAME.jpg wants NAME.png: 0 background, 1.. classes, 255 unknown")
    return found


def read_mask(path: Path, size: tuple[int, int]) -> np.ndarray:
    """[H, W] uint8 of class indices, from a grey or palette PNG. Raises: InputError, also where size (H, W) is another."""
    try:
        with Pillow.open(path) as file:
            labels = np.array(file)
            mode = file.mode
    except Exception as error:
        raise InputError(f"{path} cannot be read as a mask ({error})") from None
    if mode not in ("L", "P", "1") or labels.ndim != 2:
        raise InputError(f"{path} has mode {mode}; a mask is a grey or palette PNG whose values are classes")
    if labels.shape != size:
        raise InputError(f"{path} is {labels.shape}, its photograph {size} (rows, columns)")
    return labels.astype(np.uint8)


def class_names(given: str | None, masks: Path, count: int) -> list[str]:
    """Names of classes 0..C-1: given as "background,dog,cat", from masks/classes.txt (a line each), or class 1, class 2, ...

    Args:
        count: C as the masks have it; fewer names than that are refused.
    """
    file = masks / "classes.txt"
    text = given.split(",") if given else file.read_text("utf-8").splitlines() if file.exists() else []
    names = [t.strip() for t in text if t.strip()] or ["background", *(f"class {c}" for c in range(1, count))]
    if len(names) < count:
        raise InputError(f"the masks have class {count - 1}, but {len(names)} names are given; name all, background first")
    if len({n.casefold() for n in names}) < len(names):
        raise InputError(f"two classes have one name: {', '.join(names)}; rename one")
    return names


def votes(maps: Iterable[tuple[np.ndarray, np.ndarray]], count: int, classes: int) -> np.ndarray:
    """Pixels [K, C] of each cluster and class, from pairs of a label map and a mask, both [H, W]."""
    table = np.zeros((256, 256), np.int64)
    for labels, truth in maps:
        np.add.at(table, (labels.ravel(), truth.ravel()), 1)
    return table[1 : count + 1, :classes]


def named(table: np.ndarray, names: Sequence[str]) -> ClusterNames:
    """Clusters with the class that most of their labelled pixels have; of several, the largest has the name, the others merge.

    A cluster without labelled pixels stays as it is; one of background is merged into it.
    """
    entries: dict[int, ClusterEntry] = {}
    winner = table.argmax(1)
    for c, name in enumerate(names):
        own = [int(k) for k in np.argsort(-table[:, c], kind="stable") if winner[k] == c and table[k, c]]
        for k in own:
            entries[k] = (
                ClusterEntry(merge=0) if c == 0 else ClusterEntry(name=name) if k == own[0] else ClusterEntry(merge=own[0] + 1)
            )
    return ClusterNames(len(table), entries)


@torch.inference_mode()
def cells(
    net: TrainedSegmenter, photo: Pillow.Image, labels: np.ndarray, seen: str | int, device: torch.device, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Features [N, D] of labelled cells and their classes [N]: a cell has the label at its middle.

    Args:
        seen: the size at which the network sees the photograph, as it will at prediction (see tiles.bands).
    """
    height, width = looked_at(net, (photo.height, photo.width), seen)
    scale = min(1.0, LONGEST / max(height, width))
    small = photos.resize(photo, (max(1, round(height * scale)), max(1, round(width * scale))))
    x = batching.to_tensor(small)[None].to(device, memory_format=torch.channels_last)
    with autocast(device, net.precision):
        features = net.model.features(x)[0].float().cpu().numpy()  # [D, h, w]
    sides = zip(features.shape[1:], labels.shape, strict=True)
    rows, cols = (((np.arange(n) + 0.5) * side / n).astype(int) for n, side in sides)
    y = labels[rows[:, None], cols].ravel()
    kept = np.flatnonzero(y != IGNORE_LABEL)
    if len(kept) > CELLS:
        kept = np.sort(np.random.default_rng(seed).choice(kept, CELLS, replace=False))
    return features.reshape(len(features), -1).T[kept], y[kept]


def head(net: TrainedSegmenter, features: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> TrainedSegmenter:
    """The segmenter with a last layer for the classes, fitted to features [N, D] and labels [N].

    Raises:
        InputError: a class without any labelled cell, or only one class.
    """
    seen = np.unique(labels)
    if absent := sorted(set(range(len(names))) - set(seen.tolist())):
        raise InputError(f"no labelled pixel of class {absent[0]} ({names[absent[0]]}); label some, or leave its name out")
    if len(seen) < 2:
        raise InputError("the masks have one class; label background (0) as well")
    mean, deviation = features.mean(0), features.std(0) + 1e-6
    model = LogisticRegression(max_iter=500).fit((features - mean) / deviation, labels)
    weight = model.coef_ / deviation  # [C, D], or [1, D] of two classes: the second against the first
    bias = model.intercept_ - weight @ mean
    if len(names) == 2:
        weight, bias = np.concatenate([np.zeros_like(weight), weight]), np.concatenate([np.zeros_like(bias), bias])
    layer = nn.Conv2d(features.shape[1], len(names), 1)
    layer.load_state_dict({"weight": torch.from_numpy(weight).float()[..., None, None], "bias": torch.from_numpy(bias).float()})
    trained = copy.deepcopy(net.model)
    trained.head[-1] = layer.to(next(trained.parameters()).device)
    shape = {**net.shape, "labels": len(names)}
    return replace(net, model=trained.eval(), labels=len(names), names=tuple(names), shape=shape)
