"""The descriptor of each mask: of its crop the CLS token, the mean patch token, or both."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from unseg.core import image_index, instances, params, storage
from unseg.core.console import run
from unseg.core.instances import Instance
from unseg.data import photos
from unseg.engine import batching, environment
from unseg.engine.batching import Batches
from unseg.engine.map_batches import map_batches
from unseg.engine.precision import autocast
from unseg.mining import crops, descriptors
from unseg.models import facets, vit

PIXELS = 3_000_000  # of a batch


def main(index: str, masks: str, images: str, weights: str, output: str) -> None:
    p, backbone = params.group("embed", crops.Embedding), params.group("embedder", vit.Backbone)
    model, device = vit.load(backbone).to(environment.device()), environment.device()
    patch, (mean, std) = vit.patch_size(model), vit.normalisation(model)
    red, green, blue = (round(255 * x) for x in mean)  # the mean colour: zero after normalisation
    facets.check_layer(model, p.layer, "embed.layer")
    image_by_id = {i.id: i for i in image_index.read_images(index)}
    objects = instances.read(masks, Instance, image_by_id.values())

    def padded_size(x: Instance) -> tuple[int, int]:
        h, w = crops.crop_size(x.mask, p)
        return h + -h % patch, w + -w % patch

    def load(x: Instance) -> Tensor:
        crop = crops.crop(photos.read(images, image_by_id[x.image_id]), x.mask, p, (red, green, blue))
        pixels = batching.to_tensor(crop, mean, std)  # [3, H, W]
        if p.descriptor != "cls":
            pixels = torch.cat([pixels, torch.from_numpy(crops.mask_in_crop(x.mask, p))[None]])  # [4, H, W]
        return batching.pad_to(pixels, patch)

    @torch.inference_mode()
    def embed(batches: Batches[Instance]) -> Iterator[tuple[Instance, bytes]]:
        for batch, pixels in batches:
            with autocast(device, p.precision):
                pixels = pixels.to(device)
                inside = pixels[:, 3:] if p.descriptor != "cls" else None
                rows = descriptors.describe(model, pixels[:, :3], inside, p).cpu().numpy()  # [B, D]
            yield from ((x, row.tobytes()) for x, row in zip(batch, rows, strict=True))

    batches = batching.batches_by_shape(objects, padded_size, load, PIXELS)
    inputs = [index, masks, images, weights]
    with map_batches("embed", [p, backbone], inputs, batches, embed, lambda x: x.id) as results:
        if results:
            ids = np.array(sorted(x.id for x in objects), np.int64)
            tokens = np.zeros((len(ids), descriptors.width(model, p)), np.float32)
            for row, content in zip(tokens, results(ids.tolist()), strict=True):
                row[:] = np.frombuffer(content, np.float32)
            storage.write_npz(output, ids=ids, tokens=tokens)


if __name__ == "__main__":
    run(main)
