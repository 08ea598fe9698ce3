"""`unseg clusters`: edits clusters.yaml and writes the page of cluster cards."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from unseg.clustering import naming
from unseg.clustering.algorithms import Clustering
from unseg.clustering.naming import BACKGROUND, ClusterEntry, ClusterNames
from unseg.core import image_index, instances, label_maps, storage
from unseg.core.console import InputError
from unseg.core.instances import Instance
from unseg.report import cards, pictures
from unseg.serving.cli.parser import EDITS
from unseg.serving.run import Run


def run(options: argparse.Namespace) -> None:
    clusters = edit(options.run, options.edits)
    if text := listing(clusters):
        print(text)
    if not options.no_page:
        out = options.out or options.run / "results/clusters.html"
        write_page(options.run, clusters, out)
        print(f"{clusters.count} clusters in {out}")


def clusters_file(options: argparse.Namespace) -> Path | None:
    """The file of --clusters; else the run's, if the model is the run's. Raises InputError as `read`."""
    file: Path = options.run / naming.FILE
    if options.clusters or options.model or not file.exists():
        return options.clusters  # type: ignore[no-any-return]
    if (options.run / "data/instances.json").exists():
        read(options.run)
    return file


def read(run: Run, empty: bool = False) -> ClusterNames:
    """The run's clusters.yaml; empty: the run's clusters without names, whatever the file has.

    Raises InputError if there is no clustering yet, or if `naming.read` does, e.g. for a file of another clustering.
    """
    file, clustering = run / naming.FILE, run / "data/instances.json"
    if not clustering.exists():
        raise InputError(f"{clustering}: no such file; make it with `dvc repro`, or name the folder of a run by --run")
    count, mark = len(storage.read_json(clustering)["categories"]), naming.fingerprint(clustering)
    return naming.read(file, count, mark) if file.exists() and not empty else ClusterNames(count, {}, mark)


def edit(run: Run, changes: Sequence[tuple[str, str]]) -> ClusterNames:
    """Apply changes (key, "3=dog") to clusters.yaml in their order. Raises InputError for an invalid change, or as `read`."""
    return edit_file(run / naming.FILE, read(run, empty=True), changes)


def edit_file(file: Path, empty: ClusterNames, changes: Sequence[tuple[str, str]]) -> ClusterNames:
    """As `edit`, for a file of the clusters of `empty`, which has no entries. The file need not exist."""
    is_kept = file.exists() and ("reset", "all") not in changes
    clusters = naming.read(file, empty.count, empty.clustering) if is_kept else empty
    for key, text in changes:
        if (key, text) != ("reset", "all"):
            clusters = change(clusters, key, text)
    if changes:
        naming.write(file, replace(clusters, clustering=empty.clustering or clusters.clustering))
    return clusters


def change(clusters: ClusterNames, key: str, text: str) -> ClusterNames:
    """Apply one change, e.g. ("name", "3=dog") or ("ignore", "3")."""
    number, equals, value = text.partition("=")
    example = EDITS[key][0].split("|")[0]
    if not number.isdecimal() or bool(equals) != ("=" in example):
        raise InputError(f"--{key} {text} is not understood; write it like --{key} {example}")
    k = int(number)
    if not k < clusters.count:
        raise InputError(f"--{key} {text}: there is no cluster {k}; there are 0 to {clusters.count - 1}")
    entry = ClusterEntry() if key == "reset" else clusters.entry(k)
    row: dict[str, Any] = {"name": entry.name, "ignore": entry.ignore, "colour": None, "merge": None}
    if key == "merge":
        row |= {"merge": int(value) if value.isdecimal() else value, "ignore": False}
    elif key == "ignore":
        row["ignore"] = True
    elif key in ("name", "colour"):
        row[key] = value
    parsed = naming.parse("clusters.yaml", k, row, clusters.count)
    merge = parsed.merge if key in ("merge", "ignore") else entry.merge
    parsed = replace(parsed, colour=parsed.colour or entry.colour, merge=merge)
    return replace(clusters, entries={**clusters.entries, k: parsed})


def write_page(run: Run, clusters: ClusterNames, out: Path) -> None:
    """Write the cards of the run's clusters. Raises InputError if a stage up to `cluster` has not run."""
    images = image_index.read_images(run / "data/images.json")
    clustered = instances.read(run / "data/instances.json", Instance, images)
    tokens = cards.read_tokens(run / "data/cls_tokens.npz", clustered, run.group("cluster", Clustering))
    folder = str(run.root / run.value("data.images", str))
    drawn = cards.cluster_cards(folder, images, clustered, tokens, clusters.count)
    scheme = pictures.apply_names(pictures.scheme(clusters.count, [], {}), clusters)
    with storage.atomic_write(out) as part:
        part.write_bytes(cards.document(drawn, clusters, scheme, naming.FILE))


def listing(clusters: ClusterNames) -> str:
    """The entries of clusters.yaml, one line per cluster."""
    lut, lines = clusters.label_lut(), []
    for k in sorted(clusters.entries):
        label = int(lut[k + 1])
        target = BACKGROUND if label == 0 else clusters.title(label - 1) if label <= clusters.count else ""
        state = "ignored" if label == label_maps.IGNORE_LABEL else f"merged into {target}" if label != k + 1 else ""
        lines.append(f"  {k}  {clusters.title(k)}" + (f" ({state})" if state else ""))
    return "\n".join(lines)
