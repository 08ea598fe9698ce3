"""Training examples of a detector: photographs with mined objects, random horizontal flips, and copy-paste.

Copy-paste: Ghiasi et al., arXiv:2012.07177, section 3; for mined masks Wang et al. (CutLER), arXiv:2301.11320, section 3.4.

Shapes: H rows, W columns of an image; M objects of an image; labels are 1..K, cluster + 1, 0 is background.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from unseg.core.image_index import ImageRecord
from unseg.core.instances import Instance
from unseg.core.masks import boxes_xyxy, encode_all
from unseg.data.photos import read

Objects = Mapping[int, Sequence[Instance]]  # by image id
Target = dict[str, Tensor]
Example = tuple[Tensor, Target]
PastedScene = tuple[np.ndarray, list[int], np.ndarray]  # pixels [H, W, 3] uint8, labels [M], masks [M, H, W] bool


@dataclass(frozen=True)
class DetectionDataset(Dataset[Any]):
    """Maps (index, seed) to an image [3, H, W] in 0..1 and its boxes [M, 4] xyxy, labels [M] and masks [M, H, W] uint8."""

    root: str
    images: list[ImageRecord]
    objects: Objects
    copy_paste: float = 0.0  # fraction of the examples that get objects of another image
    paste_scale: Sequence[float] = (1.0, 1.0)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, draw: tuple[int, int]) -> Example:
        index, seed = draw
        image, rng = self.images[index], np.random.default_rng(seed)
        pixels, labels, masks = self.load(image)
        boxes = boxes_xyxy([o.mask for o in self.objects.get(image.id, [])])
        if rng.random() < 0.5:
            pixels, masks = pixels[:, ::-1], masks[:, :, ::-1]
            boxes = np.stack([image.width - boxes[:, 2], boxes[:, 1], image.width - boxes[:, 0], boxes[:, 3]], 1)
        if self.copy_paste and rng.random() < self.copy_paste:
            other = self.load(self.images[rng.integers(len(self.images))])
            pixels, labels, masks = pasted((pixels, labels, masks), other, rng, self.paste_scale)
            boxes = boxes_xyxy(encode_all(masks))
        target = {
            "boxes": torch.from_numpy(boxes.astype(np.float32)),  # [M, 4] xyxy
            "labels": torch.tensor(labels, dtype=torch.int64),  # [M]
            "masks": torch.from_numpy(np.ascontiguousarray(masks).view(np.uint8)),  # [M, H, W]
        }
        return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255, target

    def load(self, image: ImageRecord) -> PastedScene:
        """Load a photograph and its objects."""
        objects = self.objects.get(image.id, [])
        masks = np.stack([o.mask.decode() for o in objects]) if objects else np.zeros((0, *image.size), bool)
        return np.asarray(read(self.root, image)), [o.category_id + 1 for o in objects], masks


def pasted(onto: PastedScene, other: PastedScene, rng: np.random.Generator, scales: Sequence[float]) -> PastedScene:
    """Paste a random subset of another scene's objects, at least one, at random scales and positions.

    Pasted objects occlude the masks below them, and fully occluded masks are dropped. An object is not pasted if it
    has no pixel after scaling or is larger than the scene.
    """
    pixels, labels, masks = onto[0].copy(), list(onto[1]), list(onto[2])
    chosen = np.flatnonzero(rng.random(len(other[2])) < 0.5)
    if not chosen.size and len(other[2]):
        chosen = rng.integers(len(other[2]), size=1)
    for i in chosen:
        rows, cols = (np.flatnonzero(other[2][i].any(axis)) for axis in (1, 0))
        patch = np.s_[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
        factor = rng.uniform(scales[0], scales[1])
        h, w = (max(1, round(factor * (r[-1] + 1 - r[0]))) for r in (rows, cols))
        if h > pixels.shape[0] or w > pixels.shape[1]:
            continue
        small = cv2.resize(other[2][i][patch].astype(np.uint8), (w, h), interpolation=cv2.INTER_NEAREST) > 0  # [h, w]
        if not small.any():
            continue
        top, left = rng.integers(pixels.shape[0] - h + 1), rng.integers(pixels.shape[1] - w + 1)
        window = np.s_[top : top + h, left : left + w]
        pixels[window][small] = cv2.resize(other[0][patch], (w, h), interpolation=cv2.INTER_AREA)[small]
        mask = np.zeros(pixels.shape[:2], bool)
        mask[window] = small
        masks = [m & ~mask for m in masks] + [mask]
        labels.append(other[1][i])
    visible = [n for n, m in enumerate(masks) if m.any()]
    kept = np.stack([masks[n] for n in visible]) if visible else np.zeros((0, *pixels.shape[:2]), bool)
    return pixels, [labels[n] for n in visible], kept


def collate(items: list[Example]) -> tuple[list[Tensor], list[Target]]:
    return [pixels for pixels, _ in items], [target for _, target in items]
