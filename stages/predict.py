"""The segmenter's label maps of the images on which it is judged: 0 background, 1..K clusters."""

import torch

from unseg import params
from unseg.console import run, track
from unseg.io import records
from unseg.segmentation import segmenter


def main(index: str, folder: str, weights: str, out: str) -> None:
    q, net = params.group("predict", segmenter.Predict), segmenter.load(weights)
    judged = records.to_judge(index)
    maps = segmenter.every_probability(net, folder, judged, q)
    records.write_labels(
        out, ((i.file_name, p.argmax(0).to(torch.uint8).cpu().numpy()) for i, p in track(maps, "predict", len(judged)))
    )


if __name__ == "__main__":
    run(main)
