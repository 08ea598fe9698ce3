"""J, F and J&F of the objects of videos, carried on from their first frame by a ViT's patch tokens."""

from typing import Any

from unseg.core import params, storage
from unseg.core.console import InputError, run, track
from unseg.engine import environment
from unseg.evaluation import metrics, protocols
from unseg.evaluation.backbones import davis, sets, video
from unseg.evaluation.backbones.video import BackboneVideo
from unseg.models import vit

PROTOCOL = (
    "labels of the first frame carried on by similarity of frozen patch tokens; DAVIS's J and F, means over objects, "
    "the first and the last frame left out"
)


def main(weights: str, root: str, sequences: str, name: str, out: str) -> None:
    p = params.group("backbone_video", BackboneVideo)
    fresh = vit.Backbone(weights, **{key: params.value(f"backbone.{key}", int) for key in ("patch", "width", "depth", "heads")})
    shape = vit.shape_of(weights, fresh)
    sets.check_size("backbone_video", p.size, shape.patch, weights)
    if p.multiple % shape.patch:
        raise InputError(f"params.yaml: backbone_video.multiple is {p.multiple}; it must be one of the patch, {shape.patch}")
    model = vit.load(shape).to(environment.device())
    scores = {}
    for sequence in track(davis.find(root, sequences.removeprefix(f"{root}/")), "videos"):
        truth = davis.read_masks(sequence)
        scores[sequence.name] = davis.objects(truth, video.follow(p, model, sequence, truth[0]))
    about = {"backbone": name, "sequences": len(scores), "objects": sum(map(len, scores.values()))}
    lists = {
        "each": [{"sequence": key} | rounded(davis.summary([value])) for key, value in scores.items()],
        "protocols": protocols.described({"J&F": PROTOCOL}),
    }
    storage.write_json(out, about | rounded(davis.summary(list(scores.values()))) | lists)


def rounded(tree: Any) -> Any:
    return {key: rounded(x) for key, x in tree.items()} if isinstance(tree, dict) else metrics.rounded(tree)


if __name__ == "__main__":
    run(main)
