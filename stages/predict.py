"""The segmenter's label maps of the images on which it is judged: 0 background, 1..K clusters."""

import torch

from unseg.core import image_index, params, storage
from unseg.core.console import run, track
from unseg.engine.checkpoint import Checkpoint, ResultStore
from unseg.segmentation import segmenter


def main(index: str, folder: str, weights: str, out: str) -> None:
    q, net = params.group("predict", segmenter.Predict), segmenter.load(weights)
    judged = image_index.eval_images(index)
    with Checkpoint("predict", [q], [index, folder, weights]) as checkpoint, ResultStore(checkpoint) as results:
        maps = segmenter.every_probability(net, folder, judged, q, lambda b: results.left(b, lambda i: i.id))
        for image, p in track(maps, "predict", len(judged), results.before):
            results.put(image.id, storage.encode_png(p.argmax(0).to(torch.uint8).cpu().numpy()))
        if results.complete():
            names = (f"{i.file_name}.png" for i in judged)
            storage.write_zip(out, zip(names, results.of(i.id for i in judged), strict=True))


if __name__ == "__main__":
    run(main)
