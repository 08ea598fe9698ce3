"""One object mask an image, from the affinity graph of ViT keys."""

import numpy as np
import torch
from torch import Tensor

from unseg import params
from unseg.backbones import vit
from unseg.console import InputError, Meter, run
from unseg.io import images, photos, records
from unseg.io.records import Image
from unseg.mining import affinity

PIXELS = 3_000_000  # of a batch


def main(index: str, folder: str, weights: str, out: str) -> None:
    p, backbone = params.group("mine", affinity.Mining), params.group("backbone", vit.Backbone)
    if backbone.patch > p.resize:
        raise InputError(f"params.yaml: mine.resize is {p.resize}; it must be at least backbone.patch, {backbone.patch}")
    model, device = vit.load(backbone).to(images.device()), images.device()
    every = records.read_images(index)

    def padded(image: Image) -> tuple[int, int]:
        h, w = photos.short_side(image.size, p.resize)
        return h + -h % backbone.patch, w + -w % backbone.patch

    def load(image: Image) -> Tensor:
        small = photos.resize(photos.read(folder, image), photos.short_side(image.size, p.resize))
        return images.pad_to(images.to_tensor(small), backbone.patch)

    found: dict[int, records.Rle] = {}
    with torch.inference_mode(), Meter(len(every), "mine") as meter:
        for batch, pixels in images.batches_by_shape(every, padded, load, PIXELS):
            with images.autocast(device, p.precision):
                query, keys = vit.last_block(model, pixels.to(device))
            mined = affinity.mine(query.float(), keys.float(), p.keep, p.center, p.rank)
            grid = (pixels.shape[2] // backbone.patch, pixels.shape[3] // backbone.patch)
            for image, mask, source in zip(batch, mined.masks.cpu().numpy(), mined.source.tolist(), strict=True):
                patches = affinity.region_of(mask.reshape(grid), source) if p.component else mask.reshape(grid)
                found[image.id] = records.encode(to_original(patches, image, p.resize, backbone.patch))
                meter.step()
    annotations = [records.annotation(i.id, i.id, records.NO_CATEGORY, found[i.id]) for i in every]
    categories = [{"id": records.NO_CATEGORY, "name": "object"}]
    # A sliver of a mask can fall between the pixels of a photograph that is smaller than the grid.
    annotations = [a for a in annotations if a["area"]]
    records.write_json(out, {"images": [vars(i) for i in every], "annotations": annotations, "categories": categories})


def to_original(patches: np.ndarray, image: Image, resize: int, patch: int) -> np.ndarray:
    return affinity.to_pixels(patches, photos.short_side(image.size, resize), image.size, patch)


if __name__ == "__main__":
    run(main)
