"""DAVIS: its files, and its scores J (regions), F (contours) and J&F of objects through a video, as in its toolkit.

Perazzi et al., CVPR 2016; Pont-Tuset et al., arXiv:1704.00675. The first and the last frame are not scored.

Shapes: T frames, H rows, W columns.
"""

import math
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from unseg.core.console import InputError
from unseg.core.label_maps import IGNORE_LABEL
from unseg.data import examination, readers
from unseg.evaluation.backbones.sets import read_png

RESOLUTION = "480p"
TOLERANCE = 0.008  # of the image's diagonal, between matching contours
RECALL = 0.5  # a frame counts as recalled above this J or F
BINS = 4  # parts of a video; decay compares the first and the last


class Sequence(NamedTuple):
    name: str
    frames: list[Path]  # photographs, in order
    masks: list[Path]  # PNGs, one a frame


def find_sequences(root: str, sequences: str) -> list[Sequence]:
    """The sequences of a list (ImageSets/2017/val.txt), or of a folder (JPEGImages/480p) of them.

    Raises:
        InputError: no such file or folder, fewer than three frames, or frames without a mask.
    """
    listed = Path(root) / sequences
    names = sorted(p.name for p in listed.iterdir() if p.is_dir()) if listed.is_dir() else readers.read_list(listed)
    if not names:
        raise InputError(f"{listed}: no sequence in it; put DAVIS there, or change videos in params.yaml")
    return [find_sequence(root, name, listed) for name in names]


def find_sequence(root: str, name: str, listed: Path) -> Sequence:
    folder = f"JPEGImages/{RESOLUTION}/{name}"
    reason = examination.refuse(Path(root).resolve(), folder)
    if reason != "a folder":
        raise InputError(f"{root}/{folder}: {reason or 'no folder'}; {listed} names it")
    frames = sorted((Path(root) / folder).glob("*.jpg"))
    masks = [Path(root) / "Annotations" / RESOLUTION / name / f"{f.stem}.png" for f in frames]
    if len(frames) < 3:
        raise InputError(f"{root}: sequence {name} has {len(frames)} frames; at least three are needed for a score")
    if missing := [m for m in masks if not m.is_file()]:
        raise InputError(f"{missing[0]}: no such file; each frame of {name} needs its mask")
    return Sequence(name, frames, masks)


def read_masks(sequence: Sequence) -> np.ndarray:
    """[T, H, W] uint8: 0 background, 1.. objects, 255 void, which is object 1 if there is no other (DAVIS 2016).

    Raises:
        InputError: an unreadable mask, one of another size than the first, or no object in the first.
    """
    masks: list[np.ndarray] = []
    for path in sequence.masks:
        mode, values = read_png(path, ("L", "P", "1"))
        masks.append(values.astype(np.uint8) * (IGNORE_LABEL if mode == "1" else 1))
        if masks[-1].shape != masks[0].shape:
            raise InputError(f"{path} is {masks[-1].shape}, the first mask {masks[0].shape} (rows, columns); make them agree")
    stacked = np.stack(masks)
    if set(np.unique(stacked[0])) <= {0, IGNORE_LABEL}:
        stacked[stacked == IGNORE_LABEL] = 1
    if not ((stacked[0] > 0) & (stacked[0] < IGNORE_LABEL)).any():
        raise InputError(f"{sequence.masks[0]}: no object in it; the first frame's mask must show the objects to track")
    return stacked


def region_similarity(truth: np.ndarray, prediction: np.ndarray, void: np.ndarray) -> float:
    """J: intersection over union of two masks [H, W] bool outside of void; 1 if both are empty."""
    union = ((truth | prediction) & ~void).sum()
    return float((truth & prediction & ~void).sum() / union) if union else 1.0


def contour(mask: np.ndarray) -> np.ndarray:
    """Pixels of [H, W] bool that differ from their right, lower or lower right neighbour, but not the last pixel."""
    edge = np.zeros_like(mask)
    edge[:, :-1] |= mask[:, :-1] ^ mask[:, 1:]
    edge[:-1] |= mask[:-1] ^ mask[1:]
    edge[:-1, :-1] |= mask[:-1, :-1] ^ mask[1:, 1:]
    return edge


def contour_accuracy(truth: np.ndarray, prediction: np.ndarray, void: np.ndarray) -> float:
    """F: harmonic mean of the fractions of each contour within TOLERANCE of the other; masks [H, W] bool."""
    radius = math.ceil(TOLERANCE * math.hypot(*truth.shape))
    offsets = np.arange(-radius, radius + 1)
    disk = (offsets[:, None] ** 2 + offsets**2 <= radius**2).astype(np.uint8)
    a, b = contour(truth & ~void), contour(prediction & ~void)
    if not a.any() or not b.any():
        return float(a.any() == b.any())  # if one is empty, precision or recall is 0
    near_a, near_b = (cv2.dilate(edge.astype(np.uint8), disk) > 0 for edge in (a, b))
    precision, recall = (b & near_a).sum() / b.sum(), (a & near_b).sum() / a.sum()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def score_objects(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """J and F of each object of the first frame in each scored frame: [objects, 2, T - 2]; label maps [T, H, W]."""
    scores = []
    for label in range(1, int(truth[0][truth[0] < IGNORE_LABEL].max()) + 1):
        frames = zip(truth[1:-1], prediction[1:-1], strict=True)
        masks = [(t == label, p == label, t == IGNORE_LABEL) for t, p in frames]
        scores.append([[region_similarity(*m) for m in masks], [contour_accuracy(*m) for m in masks]])
    return np.array(scores)


def statistics(values: np.ndarray) -> dict[str, float]:
    """Mean, recall (fraction above RECALL) and decay (first minus last quarter) of an object's J or F over frames [T - 2]."""
    ends = (np.round(np.linspace(1, len(values), BINS + 1) + 1e-10) - 1).astype(int)
    first, last = values[ends[0] : ends[1] + 1], values[ends[-2] : ends[-1] + 1]
    return {
        "mean": float(values.mean()),
        "recall": float((values > RECALL).mean()),
        "decay": float(first.mean() - last.mean()),
    }


def summary(scores: list[np.ndarray]) -> dict[str, dict[str, float] | float]:
    """Means of the scores of `score_objects` over all objects of all sequences. J&F is the mean of both means."""
    objects = [x for sequence in scores for x in sequence]  # [2, T - 2]
    means: dict[str, dict[str, float] | float] = {}
    for i, name in enumerate(("J", "F")):
        rows = [statistics(x[i]) for x in objects]
        means[name] = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
    return means | {"J&F": float(np.mean([x.mean(1) for x in objects]))}
