"""CrOC pre-training. It runs only if params.yaml's backbone.weights is models/croc.safetensors."""

from dataclasses import asdict
from typing import Any

from unseg.core import image_index, params
from unseg.core.console import run
from unseg.engine import training
from unseg.engine.checkpoint import Checkpoint
from unseg.models import vit, vit_files
from unseg.pretraining import croc_training


def main(index: str, images: str, weights: str, history: str) -> None:
    p, seed = params.group("croc", croc_training.Croc), params.value("seed", int)
    optional: Any = int | None  # null: as in the file of croc.init
    shape = {name: params.value(f"backbone.{name}", optional) for name in ("patch", "width", "depth", "heads")}
    start = croc_training.starting_point(params.check("backbone", vit.Backbone, {"weights": p.init, **shape}, params.FILE))
    about = vit_files.read_metadata(p.init)  # name, source and licence of what it starts from, if unseg wrote the file
    origin = {"init": {key: x for key, x in about.items() if key not in ("backbone", "format")}} if about else {}
    with Checkpoint("croc", [p, shape, seed], [index, images, p.init]) as checkpoint:
        model, values = croc_training.train(p, start, images, image_index.train_images(index), seed, checkpoint)
        training.write_weights(weights, model, {"kind": "vit", "backbone": asdict(vit.describe(model)), **origin})
        training.write_history(history, values)


if __name__ == "__main__":
    run(main)
