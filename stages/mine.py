"""One object mask an image, from the affinity graph of ViT keys."""

import json
import math
from collections.abc import Iterator

from unseg import alarms, params
from unseg.backbones import vit
from unseg.console import InputError, run
from unseg.io import photos, records
from unseg.mining import affinity, miner
from unseg.scratch import Results, Scratch


def main(index: str, folder: str, weights: str, out: str) -> None:
    p, backbone = params.group("mine", affinity.Mining), params.group("backbone", vit.Backbone)
    alarm = params.group("alarms.masks", alarms.Masks)
    if backbone.patch > p.resize:
        raise InputError(f"params.yaml: mine.resize is {p.resize}; it must be at least backbone.patch, {backbone.patch}")
    every, model = records.read_images(index), vit.load(backbone)
    shares: list[float] = []  # of its image that each mask covers
    with Scratch("mine", [p, backbone], [index, folder, weights]) as scratch, Results(scratch) as results:
        mined = miner.masks(
            model,
            every,
            lambda i: i.size,
            lambda i: photos.read(folder, i),
            p,
            backbone.patch,
            lambda batches: results.left(batches, lambda i: i.id),
        )
        for image, mask in mined:
            found = records.annotation(image.id, image.id, records.NO_CATEGORY, records.encode(mask))
            results.put(image.id, records.line(found).encode())

        def annotations() -> Iterator[str]:
            for text in results.of(i.id for i in every):
                a = json.loads(text)
                if a["area"]:  # a sliver of a mask can fall between the pixels of a photograph that is smaller than the grid
                    shares.append(a["area"] / math.prod(a["segmentation"]["size"]))
                    yield text.decode()

        if results.complete():
            categories = [{"id": records.NO_CATEGORY, "name": "object"}]
            known = [vars(i) for i in every]
            records.write_json(out, {"images": known, "annotations": records.Lines(annotations()), "categories": categories})
    if results.first:
        alarm.look(out, shares, len(every))


if __name__ == "__main__":
    run(main)
