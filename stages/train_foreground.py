"""Train a foreground head on the frozen ViT. It runs only if params.yaml's foreground.heads names it."""

from unseg.core import image_index, params
from unseg.core.console import run
from unseg.engine import training
from unseg.engine.checkpoint import Checkpoint
from unseg.mining import foreground
from unseg.models import vit


def main(index: str, images: str, backbone: str, weights: str, history: str) -> None:
    p, seed = params.group("foreground", foreground.Foreground), params.value("seed", int)
    shape = params.group("backbone", vit.Backbone)
    with Checkpoint("foreground", [p, shape, seed], [index, images, backbone]) as checkpoint:
        records = image_index.train_images(index)
        head, values = foreground.train(p, vit.load(shape), images, records, seed, checkpoint)
        foreground.save(weights, head)
        training.write_history(history, values)


if __name__ == "__main__":
    run(main)
