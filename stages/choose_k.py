"""A sweep over the number of clusters and a recommendation, without truth. `cluster.k` does not change."""

from typing import Any, get_type_hints

import numpy as np

from unseg.clustering import choice
from unseg.clustering.algorithms import Clustering
from unseg.core import image_index, instances, params
from unseg.core.console import run
from unseg.core.instances import Instance
from unseg.core.storage import write_json


def main(index: str, tokens: str, masks: str, output: str) -> None:
    q, seed = params.group("choose", choice.Choosing), params.value("seed", int)
    types = get_type_hints(Clustering, include_extras=True)
    names = ("whiten", "components", "algorithm", "iterations", "neighbors", "overclusters", "uncertain")
    values: dict[str, Any] = {name: params.value(f"cluster.{name}", types[name]) for name in names}
    p = Clustering(k=2, starts=q.starts, support=None, **values)
    train_ids, stored = {i.id for i in image_index.train_images(index)}, np.load(tokens)
    in_train = {x.id: x.image_id in train_ids for x in instances.read(masks, Instance, image_index.read_images(index))}
    train_tokens = stored["tokens"][np.array([in_train[i] for i in stored["ids"].tolist()], bool)]
    trial = choice.sweep(train_tokens, p, q, seed)
    if not trial.ks:
        needs = f"choose.ks in params.yaml: of {q.ks}, none is possible with {len(train_tokens)} masks"
        return write_json(output, {"needs": needs})
    advice = choice.recommend(trial)
    print(f"K {advice.best} fits best; as good within two standard errors: {', '.join(map(str, advice.as_good))}")
    about = {"objects": min(len(train_tokens), q.objects), "repeats": q.repeats, "seeds": [seed]}
    tried = choice.to_records(trial, advice.win_fractions)
    write_json(output, about | {"best": advice.best, "as_good": advice.as_good, "tried": tried})


if __name__ == "__main__":
    run(main)
