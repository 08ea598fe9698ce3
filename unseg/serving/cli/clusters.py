"""`unseg clusters`: the page of cluster cards, and edits of clusters.yaml."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from unseg.clustering import naming
from unseg.clustering.algorithms import Clustering, normalise
from unseg.clustering.naming import BACKGROUND, ClusterEntry, ClusterNames
from unseg.core import image_index, label_maps, storage
from unseg.core.console import InputError
from unseg.report import cards, pictures
from unseg.serving.run import Run

NAMES, COLOURS, MERGES, IGNORES, RESETS = "name", "colour", "merge", "ignore", "reset"


def current(run: Run, fresh: bool = False) -> ClusterNames:
    """What the run's clusters.yaml says of its clusters; fresh: nothing, whatever it says.

    Raises:
        InputError: no clustering yet, or what `naming.read` refuses: a file that was written for another clustering, too.
    """
    file, instances = run / naming.FILE, run / "data/instances.json"
    if not instances.exists():
        raise InputError(f"{instances}: no such file; make it with `dvc repro`, or name the folder of a run by --run")
    count, mark = len(storage.read_json(instances)["categories"]), naming.fingerprint(instances)
    return naming.read(file, count, mark) if file.exists() and not fresh else ClusterNames(count, {}, mark)


def edit(run: Run, changes: Sequence[tuple[str, str]]) -> ClusterNames:
    """clusters.yaml with changes (key, "3=dog") applied in their order; written only if there are any.

    Raises:
        InputError: a change that is not understood, or what `current` refuses; nothing is written.
    """
    clusters = current(run, fresh=(RESETS, "all") in changes)
    for key, text in changes:
        if (key, text) != (RESETS, "all"):
            clusters = changed(clusters, key, text)
    if changes:
        mark = naming.fingerprint(run / "data/instances.json")
        naming.write(run / naming.FILE, replace(clusters, clustering=mark))
    return clusters


def changed(clusters: ClusterNames, key: str, text: str) -> ClusterNames:
    """One change: of key name, colour or merge "3=dog", of ignore and reset "3"."""
    number, equals, value = text.partition("=")
    if not number.isdigit() or bool(equals) != (key in (NAMES, COLOURS, MERGES)):
        form = f"--{key} 3" if key in (IGNORES, RESETS) else f"--{key} 3=" + {NAMES: "dog", COLOURS: "#e69f00", MERGES: "5"}[key]
        raise InputError(f"--{key} {text} is not understood; write it like {form}")
    k = int(number)
    if not k < clusters.count:
        raise InputError(f"--{key} {text}: there is no cluster {k}; there are 0 to {clusters.count - 1}")
    entry = ClusterEntry() if key == RESETS else clusters.entry(k)
    row: dict[str, Any] = {"name": entry.name, "ignore": entry.ignore, "colour": None, "merge": None}
    if key == NAMES:
        row["name"] = value
    elif key == COLOURS:
        row["colour"] = value
    elif key == MERGES:
        row |= {"merge": int(value) if value.isdigit() else value, "ignore": False}
    elif key == IGNORES:
        row["ignore"] = True
    parsed = naming.parse("clusters.yaml", k, row, clusters.count)
    keeps = key not in (MERGES, IGNORES)
    parsed = replace(parsed, colour=parsed.colour or entry.colour, merge=entry.merge if keeps else parsed.merge)
    return replace(clusters, entries={**clusters.entries, k: parsed})


def write_page(run: Run, clusters: ClusterNames, out: Path) -> None:
    """The cards of the run's clusters. Raises: InputError, where a stage up to `cluster` has not run."""
    images = image_index.read_images(run / "data/images.json")
    annotations = storage.read_json(run / "data/instances.json")["annotations"]
    try:
        stored = np.load(file := run / "data/cls_tokens.npz")
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}); make it with `dvc repro embed`") from None
    place = {int(i): n for n, i in enumerate(stored["ids"])}
    tokens = stored["tokens"]
    p = run.group("cluster", Clustering)
    unit = normalise(tokens, tokens, p.whiten, p.components)[[place[a["id"]] for a in annotations]]
    unit = cards.centred(unit)
    root = Path(run.value("data.images", str))
    made = cards.cards(str(root if root.is_absolute() else run.root / root), images, annotations, unit, clusters.count)
    scheme = pictures.renamed(pictures.scheme(clusters.count, [], {}), clusters)
    with storage.atomic_write(out) as part:
        part.write_bytes(cards.document(made, clusters, scheme, naming.FILE))


def listed(clusters: ClusterNames) -> str:
    """What clusters.yaml says, a line a cluster."""
    becomes, lines = clusters.label_lut(), []
    for k in sorted(clusters.entries):
        label = int(becomes[k + 1])
        into = BACKGROUND if label == 0 else clusters.title(label - 1) if label <= clusters.count else ""
        fate = "ignored" if label == label_maps.IGNORE_LABEL else f"merged into {into}" if label != k + 1 else ""
        lines.append(f"  {k}  {clusters.title(k)}" + (f" ({fate})" if fate else ""))
    return "\n".join(lines)
