"""J, F and J&F of the objects of videos, propagated from their first frame by a ViT's patch tokens."""

from typing import Any

from unseg.core import params, storage
from unseg.core.console import InputError, run, track
from unseg.engine import environment
from unseg.evaluation import metrics, protocols
from unseg.evaluation.backbones import davis, sets, video
from unseg.evaluation.backbones.video import BackboneVideo
from unseg.models import vit

PROTOCOL = (
    "labels of the first frame propagated by similarity of frozen patch tokens; DAVIS's J and F, means over objects, "
    "the first and the last frame left out"
)


def main(weights: str, root: str, sequences: str, name: str, results: str) -> None:
    p = params.group("backbone_video", BackboneVideo)
    model = sets.load_backbone(weights, "backbone_video", p.size).to(environment.device())
    patch = vit.patch_size(model)
    if p.multiple % patch:
        raise InputError(f"params.yaml: backbone_video.multiple is {p.multiple}; it must be a multiple of the patch, {patch}")
    scores = {}
    for sequence in track(davis.find_sequences(root, sequences.removeprefix(f"{root}/")), "videos"):
        truth = davis.read_masks(sequence)
        scores[sequence.name] = davis.score_objects(truth, video.segment(p, model, sequence, truth[0]))
    about = {"backbone": name, "sequences": len(scores), "objects": sum(map(len, scores.values()))}
    lists = {
        "per_sequence": [{"sequence": key} | rounded(davis.summary([x])) for key, x in scores.items()],
        "protocols": protocols.to_records({"J&F": PROTOCOL}),
    }
    storage.write_json(results, about | rounded(davis.summary(list(scores.values()))) | lists)


def rounded(tree: Any) -> Any:
    return {key: rounded(x) for key, x in tree.items()} if isinstance(tree, dict) else metrics.rounded(tree)


if __name__ == "__main__":
    run(main)
