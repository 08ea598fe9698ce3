"""A foreground head: a 1x1 convolution on frozen tokens that tells objects from background, trained without labels.

In the manner of FOUND (Simeoni et al. 2023, arXiv:2212.07834). Step 1, an image at a time: the patch with the least attention
of the CLS token is background, what resembles it is background, the rest is the coarse foreground mask. Step 2, over all
images: the head learns these masks, and later also its own binarised output, by binary cross-entropy. The paper refines both
by a bilateral solver (opencv-contrib, which is no dependency); here the output is averaged over 3 x 3 patches instead, and the
coarse masks stay as they are. Without them in the loss the head would end at "all" or "nothing", which agree with themselves.

`foreground.corners` is the corner prior of UnionCut ("Ensemble foreground management", ICCV 2025, arXiv:2507.20860), in our
reading: a coarse mask with three or four of the image's corners is inverted. Their minimum cuts are not implemented.

Shapes: B images, N train images, H heads, P patches (row-major over a grid of rows x cols), d channels of a head, D of a token.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from unseg.core.colours import overlay, palette
from unseg.core.console import InputError
from unseg.core.image_index import ImageRecord, evenly_spaced
from unseg.core.params import Fraction, NonNegativeFloat, PositiveFloat, PositiveInt, Precision
from unseg.data import photos
from unseg.engine import batching, distributed, environment, event_log, training
from unseg.engine.checkpoint import Checkpoint
from unseg.mining.affinity import affinity_rows, otsu
from unseg.models import facets, frozen_tokens, vit
from unseg.models.vit import ViT

KIND = "foreground head"  # of the file
DECAY, DECAY_STEPS = 0.95, 50  # of the learning rate


@dataclass(frozen=True)
class Foreground:
    """The `foreground` group of params.yaml."""

    heads: list[str]  # names of the heads to train: models/NAME.safetensors
    size: PositiveInt  # pixels, both sides, rounded up to whole patches
    facet: Literal["keys", "tokens"]  # of the last block, whose cosines make the coarse masks
    center: bool  # subtract the image's mean of the facet first
    threshold: float | Literal["otsu"]  # cosine with the background patch above which a patch is background; otsu: of each image
    corners: bool  # invert coarse masks that hold most of the image's corners
    iterations: PositiveInt
    coarse: Fraction  # fraction of the iterations that learn the coarse masks alone; the others the own output too
    batch: PositiveInt
    lr: PositiveFloat
    weight_decay: NonNegativeFloat
    precision: Precision  # of the ViT


def coarse_masks(
    query: Tensor, keys: Tensor, features: Tensor, grid: tuple[int, int], center: bool, threshold: float | str, corners: bool
) -> Tensor:
    """Foreground of each image, [B, P] bool: all patches but those that resemble the least attended one.

    Args:
        query, keys, features: [B, H, d], [B, H, P, d], [B, H', P, d'] as `facets.read` gives them.
        grid: rows and columns of the P patches.
        center, threshold, corners: as in `Foreground`.
    """
    attention = (torch.einsum("bhd,bhpd->bhp", query, keys) / keys.shape[3] ** 0.5).softmax(2)
    spread = (attention > 1 / keys.shape[2]).sum(2).clamp_min(1).to(attention)  # [B, H], attended patches: few in a sparse head
    weights = (spread.sum(1, keepdim=True) / spread).log()  # [B, H]
    if keys.shape[1] == 1:
        weights = torch.ones_like(weights)
    seed = (weights[..., None] * attention).sum(1).argmin(1)  # [B]
    rows = affinity_rows(features, center, normalize=True)  # [B, P, D]
    cosines = (rows @ rows[torch.arange(len(rows), device=rows.device), seed, :, None]).squeeze(2)  # [B, P]
    masks = cosines <= (otsu(cosines)[:, None] if isinstance(threshold, str) else threshold)
    if corners:
        cells = masks.unflatten(1, grid)
        held = sum(cells[:, r, c].int() for r in (0, -1) for c in (0, -1))  # [B], 0 to 4
        masks = masks ^ (held > 2)[:, None]
    return masks


@dataclass(frozen=True)
class MaskedTokens(Dataset[Any]):
    """Maps (index, seed) to tokens [D, rows, cols] float32 and coarse mask [rows, cols], both mirrored for every other seed."""

    tokens: Tensor  # [N, 2, D, rows, cols] float16: of each image and of its mirror image
    masks: Tensor  # [N, 2, rows, cols] bool

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, draw: tuple[int, int]) -> tuple[Tensor, Tensor]:
        index, seed = draw
        mirrored = int(np.random.default_rng(seed).random() < 0.5)
        return self.tokens[index, mirrored].float(), self.masks[index, mirrored].float()


def read_tokens(model: ViT, p: Foreground, root: str, images: list[ImageRecord]) -> MaskedTokens:
    """Tokens and coarse masks of all images; every process computes all. Raises InputError if memory cannot hold them."""
    patch, (mean, std) = vit.patch_size(model), vit.normalisation(model)
    side = -(-p.size // patch)
    shape = (len(images), 2, model.embed_dim, side, side)
    frozen_tokens.check_memory(shape, "foreground.size", p.size, "lower it, or use fewer photographs")
    tokens, masks = torch.empty(shape, dtype=torch.float16), torch.empty(len(images), 2, side, side, dtype=torch.bool)

    def load(index: int) -> Tensor:
        return batching.to_tensor(photos.resize(photos.read(root, images[index]), (side * patch, side * patch)), mean, std)

    def keep(indices: list[int], mirrored: int, x: Tensor) -> None:
        query, keys, out = (t.float() for t in facets.read(model, x, "tokens"))
        features = out if p.facet == "tokens" else keys
        found = coarse_masks(query, keys, features, (side, side), p.center, p.threshold, p.corners)
        tokens[indices, mirrored] = out.squeeze(1).mT.unflatten(2, (side, side)).half().cpu()
        masks[indices, mirrored] = found.unflatten(1, (side, side)).cpu()

    model.to(environment.device()).eval()
    frozen_tokens.for_each_view(len(images), side * patch, load, keep, p.precision)
    return MaskedTokens(tokens, masks)


def own_masks(scores: Tensor) -> Tensor:
    """Logits [B, rows, cols] to targets of 0 and 1: where the mean probability of 3 x 3 patches is above 0.5."""
    smooth = F.avg_pool2d(scores.sigmoid()[:, None], 3, stride=1, padding=1, count_include_pad=False)
    return (smooth.squeeze(1) > 0.5).to(scores)


def train(
    p: Foreground, model: ViT, root: str, images: list[ImageRecord], seed: int, checkpoint: Checkpoint
) -> tuple[nn.Conv2d, list[dict[str, float]]]:
    """The head, and the metrics of each step. Raises InputError without images, or if the loss is not finite."""
    if not images:
        raise InputError("the foreground head has no training image; add photographs")
    dataset, device = read_tokens(model, p, root, images), environment.device()
    torch.manual_seed(seed)
    head = nn.Conv2d(model.embed_dim, 1, 1).to(device)
    optimizer = torch.optim.AdamW(head.parameters(), lr=p.lr, weight_decay=p.weight_decay)
    ddp = distributed.wrap_ddp(head)

    def step(number: int, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        training.set_lr(optimizer, p.lr * DECAY ** (number // DECAY_STEPS))
        tokens, coarse = (x.to(device) for x in batch)
        scores = ddp(tokens).squeeze(1)  # [B, rows, cols]
        loss = F.binary_cross_entropy_with_logits(scores, coarse)
        if number >= p.coarse * p.iterations:
            loss = (loss + F.binary_cross_entropy_with_logits(scores, own_masks(scores.detach()))) / 2
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        metrics = {"loss": loss, "foreground": (scores > 0).float().mean(), "coarse_foreground": coarse.mean()}
        return {key: distributed.all_reduce_mean(value) for key, value in metrics.items()}

    def draw() -> dict[str, np.ndarray]:
        """Photographs with their coarse masks (left) and the head's (right)."""
        pictures: dict[str, np.ndarray] = {}
        side = event_log.SIDE
        for i in evenly_spaced(range(len(images)), event_log.IMAGES):
            photo = np.asarray(photos.resize(photos.read(root, images[i]), (side, side)))
            own = (head(dataset.tokens[i, :1].float().to(device))[0, 0] > 0).cpu()
            grids = [x.numpy().astype(np.uint8) for x in (dataset.masks[i, 0], own)]
            maps = [cv2.resize(x, (side, side), interpolation=cv2.INTER_NEAREST_EXACT) for x in grids]
            pictures[images[i].file_name] = np.concatenate([overlay(photo, x, palette(1)) for x in maps], 1)
        return pictures

    state = {"head": head, "optimizer": optimizer}
    values = training.fit("foreground", checkpoint, state, dataset, p.batch, p.iterations, seed, step, draw=draw)
    return head, values


def save(path: str | Path, head: nn.Conv2d) -> None:
    training.write_weights(path, head, {"kind": KIND, "width": head.in_channels})


def load(path: str | Path, model: ViT) -> nn.Conv2d:
    """The head of a file, on the CPU. Raises InputError if it is none, or one for another ViT's tokens."""
    state, _ = training.read_weights(path, KIND)
    head = nn.Conv2d(model.embed_dim, 1, 1)
    try:
        head.load_state_dict(state)
    except RuntimeError:
        shape = tuple(state["weight"].shape) if "weight" in state else "nothing"
        raise InputError(
            f"{path}: its weights are {shape}, and the ViT of backbone has tokens of {model.embed_dim} channels; "
            "train the head again with `dvc repro`, or name another in mine.head"
        ) from None
    return head.requires_grad_(False)


def logits(head: nn.Module, tokens: Tensor) -> Tensor:
    """Tokens [B, P, D] to scores [B, P]; foreground is above 0, i.e. a sigmoid above 0.5."""
    out: Tensor = head(tokens.mT[..., None])  # [B, 1, P, 1]
    return out[:, 0, :, 0]


def masks(scores: np.ndarray, objects: int, component: bool) -> list[np.ndarray]:
    """The foreground of scores [rows, cols], as disjoint masks of patches, at least one.

    One object without `component` is all of it. Otherwise its 4-connected regions, at most `objects`, the largest first (of
    equal ones the upper). If nothing is foreground, the patch of the highest score is.
    """
    mask = scores > 0
    if not mask.any():
        mask.flat[scores.argmax()] = True
    if objects == 1 and not component:
        return [mask]
    labels, _ = ndimage.label(mask)
    order = np.argsort(-np.bincount(labels.ravel())[1:], kind="stable")[:objects]  # label 0 is background
    return [labels == 1 + label for label in order]
