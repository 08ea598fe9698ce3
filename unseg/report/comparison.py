"""Two or more runs on one page: what differs in their params and numbers, and the same pictures side by side.

`unseg compare RUN RUN [RUN ...] -o PAGE.html`. A run is a folder as `dvc repro` leaves it (a clone, or a work
tree of Git, see docs/evaluation.md). The first is what the others are compared with. Clusters have the colours of their classes;
without truth, of the clusters of the first run that they share most pixels with.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unseg.core import params
from unseg.core.console import InputError, track
from unseg.core.image_index import ImageRecord, eval_images
from unseg.core.label_maps import LabelMaps, class_names
from unseg.core.storage import read_json
from unseg.data import photos
from unseg.evaluation import metrics
from unseg.report import pictures, sheets
from unseg.report.page import DASH, Html, Section, document, fold, html, join, note, percent, table
from unseg.report.sections import contact, plain, scalars
from unseg.report.sheets import Row, Tile

Record = dict[str, Any]
PICTURES = 24  # on the page, at the most
LEADING = ("miou", "pixel_accuracy", "AP50", "mean_iou")  # last parts of the numbers that are shown first


@dataclass(frozen=True)
class ComparedRun:
    """A finished run."""

    name: str
    params: Record  # by dotted key
    numbers: Record  # by file and dotted key
    root: Path  # of the photographs
    judged: dict[str, ImageRecord]  # by file name
    predictions: LabelMaps
    truth: LabelMaps
    classes: list[str]  # background first; empty without truth
    matched: dict[int, int]  # cluster to class
    class_iou: dict[str, float | None]
    image_iou: dict[str, float | None]


def read(folder: Path, name: str) -> ComparedRun:
    """Raises: InputError, where the folder holds no finished run."""
    file, details = folder / "params.yaml", folder / "results/details"
    if not file.exists():
        raise InputError(f"{file}: no such file; name a folder in which `dvc repro` ran")
    final = params.value("final", str, file)
    files = sorted([*details.glob("*.json"), *details.glob("clustering/*/scores.json")])
    found = {f.relative_to(details).as_posix(): read_json(f) for f in files}
    own = details / "clustering" / final
    if not (own / "image_iou.json").exists():
        raise InputError(f"{folder} holds no finished run of this version of unseg ({own}/image_iou.json); run `dvc repro` there")
    ious, single = read_json(own / "class_iou.json"), read_json(own / "image_iou.json")
    return ComparedRun(
        name=name,
        params={key: str(x) if isinstance(x, list) else x for key, x in params.flatten(params.read(file)).items()},
        numbers={f"{file}: {key}": x for file, content in found.items() for key, x in scalars(content)},
        root=folder / params.value("data.images", str, file),
        judged={image.file_name: image for image in eval_images(folder / "data/images.json")},
        predictions=LabelMaps(folder / f"data/predictions/{final}.zip"),
        truth=LabelMaps(folder / "data/truth.zip", "semantic/"),
        classes=class_names(folder / "data/truth.zip"),
        matched={row["cluster"]: c for c, row in enumerate(ious) if row["cluster"] is not None},
        class_iou={row["class"]: row["iou"] for row in ious},
        image_iou={row["file_name"]: row["iou"] for row in single},
    )


def shared(runs: Sequence[ComparedRun]) -> list[str]:
    """The file names of the images that all runs judged, at one size.

    Raises:
        InputError: there is none.
    """
    first = runs[0].judged
    names = [n for n in first if all(n in r.judged and r.judged[n].size == first[n].size for r in runs)]
    if not names:
        raise InputError(f"{', '.join(r.name for r in runs)}: no judged image is in all of them; compare runs on the same images")
    return names


def changes(runs: Sequence[ComparedRun], names: Sequence[str]) -> dict[str, float]:
    """How much each image changed: the largest difference of its mIoU to the first run's; without truth, of its labels: the
    share of pixels that have another cluster, clusters renamed. Larger is more; below 0: worse than in the first run."""
    if all(run.image_iou.get(n) is not None for run in runs for n in names[:1]):
        found = {}
        for n in names:
            known = [run.image_iou.get(n) for run in runs]
            gains = [x - known[0] for x in known[1:] if x is not None and known[0] is not None]
            found[n] = max(gains, key=abs) if gains else 0.0
        return found
    likes = [np.arange(256), *(equal(runs[0], other, names) for other in runs[1:])]
    parts = {}
    for n in names:
        maps = [like[run.predictions[run.judged[n]]] for run, like in zip(runs, likes, strict=True)]
        parts[n] = max(float((other != maps[0]).mean()) for other in maps[1:])
    return parts


def equal(first: ComparedRun, other: ComparedRun, names: Sequence[str]) -> np.ndarray:
    """Of each label of the other run the first run's label that it shares most with, one to one: [256]; 254 for none."""
    counts = np.zeros((255, 255), np.int64)
    for n in track(names, "compare"):
        counts += metrics.confusion(first.predictions[first.judged[n]], other.predictions[other.judged[n]], 255, 255)
    found = metrics.match(counts, by="iou", fixed_background=True)
    return np.append(np.where(found < 0, 254, found), 255)


def schemes(runs: Sequence[ComparedRun], names: Sequence[str]) -> list[pictures.Scheme]:
    """Colours of each run's clusters, alike for what is alike."""
    ks = [int(run.params["cluster.k"]) for run in runs]
    if all(run.classes == runs[0].classes and run.classes for run in runs):
        return [pictures.scheme(k, run.classes, run.matched) for k, run in zip(ks, runs, strict=True)]
    own = ["background", *(f"cluster {k}" for k in range(ks[0]))]
    likes = [np.arange(256), *(equal(runs[0], other, names) for other in runs[1:])]
    return [
        pictures.scheme(k, own, {c: int(like[c + 1]) for c in range(k) if 0 < like[c + 1] < len(own)})
        for k, like in zip(ks, likes, strict=True)
    ]


def rows(runs: Sequence[ComparedRun], names: Sequence[str], among: Sequence[str]) -> list[Row]:
    """A row of pictures for each name: the photograph, each run's final segmentation, the truth."""
    colours, made = schemes(runs, among), []
    first = runs[0]
    for n in track(names, "draw"):
        image = first.judged[n]
        photo = pictures.tile(photos.read(first.root, image), sheets.TILE)
        tiles = [Tile("photograph", photo)]
        for run, colour in zip(runs, colours, strict=True):
            tags = {k + 1: name or f"cluster {k}" for k, name in enumerate(colour.names)}
            labels, iou = run.predictions[run.judged[n]], run.image_iou.get(n)
            words = f"mIoU {percent(iou)}; " if iou is not None else ""
            drawn = pictures.paint(photo, pictures.fit(labels, photo), *colour.table(), tags)
            tiles.append(Tile(run.name, drawn, words + sheets.shares(labels, tags)))
        if image in first.truth:
            labels, tags = first.truth[image], dict(enumerate(first.classes))
            drawn = pictures.paint(photo, pictures.fit(labels, photo), *colours[0].truth_table(), tags)
            tiles.append(Tile("truth", drawn, sheets.shares(labels, tags)))
        made.append((n, tiles))
    return made


def side_by_side(runs: Sequence[ComparedRun], which: str, keys: Iterable[str]) -> Html:
    """A table of values by key, with the difference to the first run where there are two numbers."""
    lines = []
    for key in keys:
        values = [getattr(run, which).get(key) for run in runs]
        gains = [f"{b - values[0]:+.4g}" if number(b) and number(values[0]) else DASH for b in values[1:]]
        lines.append((key, *map(plain, values), *gains))
    head = ("", *(run.name for run in runs), *(f"{run.name} − {runs[0].name}" for run in runs[1:]))
    return table(which, head, lines)


def differing(runs: Sequence[ComparedRun], which: str) -> list[str]:
    """The keys whose values are not the same in all runs, in the order in which they first occur."""
    keys = dict.fromkeys(key for run in runs for key in getattr(run, which))
    return [key for key in keys if len({plain(getattr(run, which).get(key)) for run in runs}) > 1]


def compare(runs: Sequence[ComparedRun]) -> bytes:
    """The page."""
    names = shared(runs)
    change = changes(runs, names)
    ranked = sorted(names, key=lambda n: (-abs(change[n]), n))[:PICTURES]
    ranked.sort(key=lambda n: (change[n], n))
    known = dict.fromkeys(key for run in runs for key in run.numbers)
    leading = [key for key in known if key.rpartition(".")[2].rpartition(" ")[2] in LEADING]
    rest = [key for key in differing(runs, "numbers") if key not in leading]
    changed = differing(runs, "params")
    body = side_by_side(runs, "params", changed) if changed else note("All params are the same.")
    parts = [Section("params", "Params that differ", body)]
    more = fold(f"{len(rest)} more numbers that differ", side_by_side(runs, "numbers", rest)) if rest else ""
    parts.append(Section("numbers", "Numbers", join([side_by_side(runs, "numbers", leading), more])))
    if classes := dict.fromkeys(c for run in runs for c in run.class_iou):
        parts.append(Section("classes", "IoU of each class", side_by_side(runs, "class_iou", classes)))
    how = "from the most that was lost to the most that was gained" if runs[0].image_iou else "from the least to the most changed"
    words = note(f"Of {len(names)} images in all runs the {len(ranked)} that changed most, {how}.")
    parts.append(Section("pictures", "Pictures", join([words, contact(rows(runs, ranked, names))])))
    lead = Html(f'<p class="lead">{html(" · ".join(run.name for run in runs))}: {len(names)} judged images in common.</p>')
    return document("unseg comparison", lead, parts)


def opened(folders: Sequence[Path]) -> list[ComparedRun]:
    """Runs by the names of their folders, or by whole paths where two have one name. Raises: InputError."""
    names = [folder.resolve().name for folder in folders]
    named = names if len(set(names)) == len(names) else [str(folder) for folder in folders]
    return [read(folder, name) for folder, name in zip(folders, named, strict=True)]


def spoken(runs: Sequence[ComparedRun]) -> str:
    """Params and leading numbers that differ, for a terminal: each run's value, and the difference to the first run's."""
    lines = [" | ".join(run.name for run in runs)]
    for which in ("params", "numbers"):
        keys = differing(runs, which)
        lines.append(which if keys else f"{which}: no difference")
        for key in keys:
            values = [getattr(run, which).get(key) for run in runs]
            gains = [b - values[0] for b in values[1:] if number(b) and number(values[0])]
            lines.append(f"  {key}: {' | '.join(map(plain, values))}" + "".join(f" ({gain:+.4g})" for gain in gains))
    return "\n".join(lines)


def number(x: object) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool)
