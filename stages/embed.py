"""The CLS token of each masked crop."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from unseg.core import image_index, params, storage
from unseg.core.console import Meter, run
from unseg.data import photos
from unseg.engine import batching, environment
from unseg.engine.checkpoint import Checkpoint, ResultStore
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

    with Checkpoint("embed", [p, backbone], [index, masks, folder, weights]) as checkpoint, ResultStore(checkpoint) as results:

        def left(batches: list[list[Record]]) -> list[list[Record]]:
            return results.left(batches, lambda a: a["id"])

        with torch.inference_mode(), Meter(len(objects), "embed", results.before) as meter:
            for batch, pixels in batching.batches_by_shape(objects, padded, load, PIXELS, left):
                with autocast(device, p.precision):
                    cls = vit.tokens(model, pixels.to(device))[:, 0].float().cpu().numpy()  # [B, D]
                for a, token in zip(batch, cls, strict=True):
                    results.put(a["id"], token.tobytes())
                    meter.step()
        if results.complete():
            ids = np.array(sorted(a["id"] for a in objects), np.int64)
            tokens = np.zeros((len(ids), backbone.width), np.float32)
            for row, content in zip(tokens, results.of(ids.tolist()), strict=True):
                row[:] = np.frombuffer(content, np.float32)
            storage.write_npz(out, ids=ids, tokens=tokens)


if __name__ == "__main__":
    run(main)
