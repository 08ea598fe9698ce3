"""DAVIS: its files, and its scores J (regions), F (contours) and J&F of objects through a video, as its toolkit has them.

Perazzi et al., CVPR 2016; Pont-Tuset et al., arXiv:1704.00675. The first and the last frame are not scored.

Shapes: T frames, H rows, W columns.
"""

import math
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image as Pillow

from unseg.core.console import InputError
from unseg.core.label_maps import IGNORE_LABEL
from unseg.data import examination, readers

RESOLUTION = "480p"
TOLERANCE = 0.008  # of the image's diagonal: how far a contour may be off
FOUND = 0.5  # a frame counts as recalled above this
BINS = 4  # stretches of a video, of which the first and the last are compared: decay


class Sequence(NamedTuple):
    name: str
    frames: list[Path]  # photographs, in order
    masks: list[Path]  # PNGs, one a frame


def find(root: str, sequences: str) -> list[Sequence]:
    """The sequences of a list (ImageSets/2017/val.txt), or of a folder (JPEGImages/480p) of them.

    Raises:
        InputError: no such file or folder, fewer than three frames, or frames without a mask.
    """
    listed = Path(root) / sequences
    names = sorted(p.name for p in listed.iterdir() if p.is_dir()) if listed.is_dir() else readers.read_list(listed)
    if not names:
        raise InputError(f"{listed}: no sequence in it; put DAVIS there, or change videos in params.yaml")
    found = []
    for name in names:
        reason = examination.refuse(Path(root).resolve(), f"JPEGImages/{RESOLUTION}/{name}")
        if reason != "a folder":
            raise InputError(f"{root}/JPEGImages/{RESOLUTION}/{name}: {reason or 'no folder'}; {listed} names it")
        frames = sorted((Path(root) / "JPEGImages" / RESOLUTION / name).glob("*.jpg"))
        masks = [Path(root) / "Annotations" / RESOLUTION / name / f"{f.stem}.png" for f in frames]
        if len(frames) < 3:
            raise InputError(f"{root}: sequence {name} has {len(frames)} frames; three are the least that can be scored")
        if absent := [m for m in masks if not m.is_file()]:
            raise InputError(f"{absent[0]}: no such file; each frame of {name} needs its mask")
        found.append(Sequence(name, frames, masks))
    return found


def read_masks(sequence: Sequence) -> np.ndarray:
    """[T, H, W] uint8: 0 background, 1.. objects, 255 void.

    Where the first mask knows 0 and 255 alone, as in DAVIS 2016, 255 is object 1.

    Raises:
        InputError: a mask that cannot be read or has another size than the first, or no object in the first.
    """
    masks = []
    for path in sequence.masks:
        try:
            with Pillow.open(path, formats=["PNG"]) as mask:
                mode, values = mask.mode, np.array(mask)
        except Exception as error:  # decoders of broken files raise anything
            raise InputError(f"{path} cannot be read as a PNG ({error}); put a whole one there") from None
        if mode not in ("L", "P", "1"):
            raise InputError(f"{path} has mode {mode}; a mask is a PNG of one index a pixel (palette or grey, 8 bits)")
        masks.append(values.astype(np.uint8) * (IGNORE_LABEL if mode == "1" else 1))
        if masks[-1].shape != masks[0].shape:
            raise InputError(f"{path} is {masks[-1].shape}, the first mask {masks[0].shape} (rows, columns); make them agree")
    stacked = np.stack(masks)
    if set(np.unique(stacked[0])) <= {0, IGNORE_LABEL}:
        stacked[stacked == IGNORE_LABEL] = 1
    if not ((stacked[0] > 0) & (stacked[0] < IGNORE_LABEL)).any():
        raise InputError(f"{sequence.masks[0]}: no object in it; the first frame's mask says what to follow")
    return stacked


def region(truth: np.ndarray, guess: np.ndarray, void: np.ndarray) -> float:
    """J: intersection over union of two masks [H, W] bool outside of void; 1 where both are empty."""
    union = ((truth | guess) & ~void).sum()
    return float((truth & guess & ~void).sum() / union) if union else 1.0


def contour(mask: np.ndarray) -> np.ndarray:
    """Pixels of [H, W] bool that differ from their right, lower or lower right neighbour; the last one is none."""
    edge = np.zeros_like(mask)
    edge[:, :-1] |= mask[:, :-1] ^ mask[:, 1:]
    edge[:-1] |= mask[:-1] ^ mask[1:]
    edge[:-1, :-1] |= mask[:-1, :-1] ^ mask[1:, 1:]
    return edge


def boundary(truth: np.ndarray, guess: np.ndarray, void: np.ndarray) -> float:
    """F: harmonic mean of the shares of each contour that lie within TOLERANCE of the other; masks [H, W] bool."""
    radius = math.ceil(TOLERANCE * math.hypot(*truth.shape))
    at = np.arange(-radius, radius + 1)
    disk = (at[:, None] ** 2 + at**2 <= radius**2).astype(np.uint8)
    wanted, drawn = contour(truth & ~void), contour(guess & ~void)
    if not wanted.any() or not drawn.any():
        return float(wanted.any() == drawn.any())  # one of them empty: precision or recall is 0
    near_truth, near_guess = (cv2.dilate(edge.astype(np.uint8), disk) > 0 for edge in (wanted, drawn))
    precision, recall = (drawn & near_truth).sum() / drawn.sum(), (wanted & near_guess).sum() / wanted.sum()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def objects(truth: np.ndarray, guess: np.ndarray) -> np.ndarray:
    """J and F of each object of the first frame in each scored frame: [objects, 2, T - 2]; label maps [T, H, W]."""
    scores = []
    for label in range(1, int(truth[0][truth[0] < IGNORE_LABEL].max()) + 1):
        pairs = [(t == label, g == label, t == IGNORE_LABEL) for t, g in zip(truth[1:-1], guess[1:-1], strict=True)]
        scores.append([[region(*pair) for pair in pairs], [boundary(*pair) for pair in pairs]])
    return np.array(scores)


def statistics(values: np.ndarray) -> dict[str, float]:
    """Of an object's J or F over the frames [T - 2]: mean, recall (share above FOUND) and decay (first less last quarter)."""
    at = (np.round(np.linspace(1, len(values), BINS + 1) + 1e-10) - 1).astype(int)
    first, last = values[at[0] : at[1] + 1], values[at[-2] : at[-1] + 1]
    return {
        "mean": float(values.mean()),
        "recall": float((values > FOUND).mean()),
        "decay": float(first.mean() - last.mean()),
    }


def summary(scores: list[np.ndarray]) -> dict[str, dict[str, float] | float]:
    """Means over all objects of all sequences; scores as `objects` gives them. J&F is the mean of both means."""
    every = [each for sequence in scores for each in sequence]  # [2, T - 2]
    found: dict[str, dict[str, float] | float] = {}
    for i, name in enumerate(("J", "F")):
        rows = [statistics(each[i]) for each in every]
        found[name] = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
    found["J&F"] = float(np.mean([each.mean(1) for each in every]))
    return found
