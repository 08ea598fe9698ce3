"""CrOC pre-training. (Runs only when params.yaml's backbone.weights is models/croc.safetensors.)"""

from unseg import params, training
from unseg.backbones import pretraining, vit
from unseg.console import run
from unseg.io import records


def main(index: str, folder: str, weights: str, history: str) -> None:
    p, seed = params.group("croc", pretraining.Croc), params.value("seed", int)
    shape = {name: params.value(f"backbone.{name}", int) for name in ("patch", "width", "depth", "heads")}
    backbone = vit.Backbone(weights, **shape)
    with training.Scratch("croc", [p, shape, seed], [index, folder, p.init]) as scratch:
        model, values = pretraining.train(p, backbone, folder, records.to_learn(index), seed, scratch)
        training.write_weights(weights, model, {"kind": "vit", "backbone": shape})
        training.write_history(history, values)


if __name__ == "__main__":
    run(main)
