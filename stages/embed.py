"""The CLS token of each masked crop."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from unseg import params
from unseg.backbones import vit
from unseg.console import Meter, run
from unseg.io import images, photos, records
from unseg.mining import crops

PIXELS = 3_000_000  # of a batch
GREY = (124, 116, 104)  # ImageNet's mean colour: zero after normalisation


def main(index: str, masks: str, folder: str, weights: str, out: str) -> None:
    p, backbone = params.group("embed", crops.Embedding), params.group("embedder", vit.Backbone)
    model, device = vit.load(backbone).to(images.device()), images.device()
    by_id = {i.id: i for i in records.read_images(index)}
    objects: list[dict[str, Any]] = records.read_json(masks)["annotations"]

    def padded(a: dict[str, Any]) -> tuple[int, int]:
        h, w = crops.size_of(a["segmentation"], p)
        return h + -h % backbone.patch, w + -w % backbone.patch

    def load(a: dict[str, Any]) -> Tensor:
        photo = photos.read(folder, by_id[a["image_id"]])
        return images.pad_to(images.to_tensor(crops.cut(photo, a["segmentation"], p, GREY)), backbone.patch)

    tokens: dict[int, np.ndarray] = {}
    with torch.inference_mode(), Meter(len(objects), "embed") as meter:
        for batch, pixels in images.batches_by_shape(objects, padded, load, PIXELS):
            cls = vit.tokens(model, pixels.to(device))[:, 0].float().cpu().numpy()  # [B, D]
            for a, token in zip(batch, cls, strict=True):
                tokens[a["id"]] = token
                meter.step()
    ids = np.array(sorted(tokens), np.int64)
    stacked = np.stack([tokens[i] for i in ids.tolist()]) if tokens else np.zeros((0, backbone.width), np.float32)
    records.write_arrays(out, ids=ids, tokens=stacked)


if __name__ == "__main__":
    run(main)
