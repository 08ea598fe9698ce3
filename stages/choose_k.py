"""How many clusters the objects make, without truth: a sweep over K and a recommendation. `cluster.k` stays as it is."""

from typing import Any

import numpy as np

from unseg.clustering import choice
from unseg.clustering.algorithms import Clustering
from unseg.core import params
from unseg.core.console import run
from unseg.core.image_index import train_images
from unseg.core.storage import read_json, write_json


def main(index: str, tokens: str, masks: str, out: str) -> None:
    q, seed = params.group("choose", choice.Choosing), params.value("seed", int)
    kinds: dict[str, Any] = {"whiten": str, "components": int | None, "algorithm": str, "iterations": int, "neighbors": int}
    read = {key: params.value(f"cluster.{key}", kind) for key, kind in kinds.items()}
    p = Clustering(k=2, starts=q.starts, support=None, **read)
    known, stored = {image.id for image in train_images(index)}, np.load(tokens)
    image_of = {a["id"]: a["image_id"] for a in read_json(masks)["annotations"]}
    learned = stored["tokens"][np.array([image_of[i] in known for i in stored["ids"].tolist()], bool)]
    tried = choice.sweep(learned, p, q, seed)
    if not tried.ks:
        return write_json(out, {"needs": f"choose.ks in params.yaml: of {q.ks}, none is possible with {len(learned)} masks"})
    advice = choice.advise(tried)
    print(f"K {advice.best} fits best; not to be told from it: {', '.join(map(str, advice.as_good))}")
    about = {"objects": min(len(learned), q.objects), "repeats": q.repeats, "seeds": [seed]}
    write_json(out, about | {"best": advice.best, "as_good": advice.as_good, "tried": choice.rows(tried, advice.wins)})


if __name__ == "__main__":
    run(main)
