"""CrOC pre-training. It runs only if params.yaml's backbone.weights is models/croc.safetensors."""

from unseg.core import image_index, params
from unseg.core.console import run
from unseg.engine import training
from unseg.engine.checkpoint import Checkpoint
from unseg.models import vit
from unseg.pretraining import croc_training


def main(index: str, images: str, weights: str, history: str) -> None:
    p, seed = params.group("croc", croc_training.Croc), params.value("seed", int)
    shape = vit.Shape(*(params.value(f"backbone.{name}", int) for name in ("patch", "width", "depth", "heads")))
    with Checkpoint("croc", [p, vars(shape), seed], [index, images, p.init]) as checkpoint:
        model, values = croc_training.train(p, shape, images, image_index.train_images(index), seed, checkpoint)
        training.write_weights(weights, model, {"kind": "vit", "backbone": vars(shape)})
        training.write_history(history, values)


if __name__ == "__main__":
    run(main)
