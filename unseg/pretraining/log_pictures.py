"""Pictures of a pre-training, for TensorBoard: photographs (left) and what their patch tokens have in common (right).

The three channels are the first principal components of the teacher's patch tokens of all pictures together, as DINOv2
(arXiv:2304.07193, figure 1) shows them: patches of one colour have similar tokens. A ViT that has collapsed shows noise.

Shapes: B images, h x w patches, N = B h w, D channels of a token, S pixels a side.
"""

from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from unseg.core.image_index import ImageRecord, evenly_spaced
from unseg.core.params import Precision
from unseg.data.photos import read, resize
from unseg.engine import batching, environment
from unseg.engine.event_log import IMAGES, SIDE, Draw
from unseg.engine.precision import autocast
from unseg.models import vit
from unseg.models.vit import ViT


def drawing(model: ViT, size: int, precision: Precision, root: str, images: list[ImageRecord]) -> Draw:
    """A function that draws IMAGES of the images, always the same, at SIDE x SIDE. size: S of the views."""
    device, chosen, grid = environment.device(), evenly_spaced(images, IMAGES), size // vit.patch_size(model)

    @cache
    def loaded() -> tuple[list[np.ndarray], Tensor]:
        photos = [read(root, image) for image in chosen]
        x = torch.stack([batching.to_tensor(resize(photo, (size, size)), *vit.normalisation(model)) for photo in photos])
        return [np.asarray(resize(photo, (SIDE, SIDE))) for photo in photos], x.to(device)

    def draw() -> dict[str, np.ndarray]:
        photos, x = loaded()
        with autocast(device, precision):
            tokens = vit.tokens(model, x)[:, model.num_prefix_tokens :].float()  # [B, h w, D]
        colours = components(tokens.flatten(0, 1)).T.unflatten(1, (len(x), grid, grid)).transpose(0, 1)  # [B, 3, h, w]
        large = F.interpolate(colours, (SIDE, SIDE)).mul(255).byte().permute(0, 2, 3, 1).cpu().numpy()  # [B, SIDE, SIDE, 3]
        return {i.file_name: np.concatenate(pair, 1) for i, *pair in zip(chosen, photos, large, strict=True)}

    return draw


def components(tokens: Tensor) -> Tensor:
    """The first three principal components of tokens [N, D], each from 0 to 1 over all tokens: [N, 3] float32.

    A component's sign is the one with which its largest weight is positive, so that colours change little from time to time.
    If all tokens are equal, or there are fewer than three components, the rest is 0.
    """
    centred = (tokens - tokens.mean(0)).double().cpu()
    _, _, basis = torch.linalg.svd(centred, full_matrices=False)  # [min(N, D), D]
    basis = basis[:3] * basis[:3].gather(1, basis[:3].abs().argmax(1, keepdim=True)).sign()
    scores = F.pad(centred @ basis.T, (0, 3 - len(basis)))  # [N, 3]
    low, high = scores.amin(0), scores.amax(0)
    return ((scores - low) / (high - low).clamp_min(1e-6)).float()
