"""The CLS token of each masked crop."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unseg.core import image_index, params, storage
from unseg.core.console import run
from unseg.data import photos
from unseg.engine import batching, environment
from unseg.engine.batching import Batches
from unseg.engine.map_batches import map_batches
from unseg.engine.precision import autocast
from unseg.mining import crops
from unseg.models import vit

PIXELS = 3_000_000  # of a batch
GREY = (124, 116, 104)  # ImageNet's mean colour: zero after normalisation
Record = dict[str, Any]


def main(index: str, masks: str, folder: str, weights: str, out: str) -> None:
    p, backbone = params.group("embed", crops.Embedding), params.group("embedder", vit.Backbone)
    model, device = vit.load(backbone).to(environment.device()), environment.device()
    by_id = {i.id: i for i in image_index.read_images(index)}
    objects: list[Record] = storage.read_json(masks)["annotations"]

    def padded(a: Record) -> tuple[int, int]:
        h, w = crops.size_of(a["segmentation"], p)
        return h + -h % backbone.patch, w + -w % backbone.patch

    def load(a: Record) -> Tensor:
        photo = photos.read(folder, by_id[a["image_id"]])
        return batching.pad_to(batching.to_tensor(crops.cut(photo, a["segmentation"], p, GREY)), backbone.patch)

    @torch.inference_mode()
    def embed(batches: Batches[Record]) -> Iterator[tuple[Record, bytes]]:
        for annotations, pixels in batches:
            with autocast(device, p.precision):
                cls = vit.tokens(model, pixels.to(device))[:, 0].float().cpu().numpy()  # [B, D]
            yield from ((a, token.tobytes()) for a, token in zip(annotations, cls, strict=True))

    batches = batching.batches_by_shape(objects, padded, load, PIXELS)
    inputs = [index, masks, folder, weights]
    with map_batches("embed", [p, backbone], inputs, batches, embed, lambda a: int(a["id"])) as results:
        if results:
            ids = np.array(sorted(a["id"] for a in objects), np.int64)
            tokens = np.zeros((len(ids), backbone.width), np.float32)
            for row, content in zip(tokens, results(ids.tolist()), strict=True):
                row[:] = np.frombuffer(content, np.float32)
            storage.write_npz(out, ids=ids, tokens=tokens)


if __name__ == "__main__":
    run(main)
