"""Two or more runs on one page: the params and numbers that differ, and the same pictures side by side.

`unseg compare RUN RUN [RUN ...] -o PAGE.html`. A run is a folder as `dvc repro` leaves it (a clone, or a work
tree of Git, see docs/evaluation.md). The others are compared with the first. Clusters have the colours of their classes;
without truth, of the clusters of the first run that they share most pixels with.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from unseg.core import params
from unseg.core.console import InputError, track
from unseg.core.image_index import ImageRecord, eval_images
from unseg.core.label_maps import LabelMaps, class_names
from unseg.core.storage import read_json
from unseg.data import photos
from unseg.evaluation import metrics
from unseg.report import pictures, sheets
from unseg.report.page import DASH, Section, percent, plain, render, scalars
from unseg.report.sheets import Row, Tile

Record = dict[str, Any]
Values = tuple[str, list[str], list[str]]  # key, a value for each run, their differences to the first run
Source = Literal["params", "numbers", "class_iou"]  # fields of ComparedRun
PICTURES = 24  # images on the page, at most
HEADLINE = ("miou", "pixel_accuracy", "AP50", "mean_iou")  # last parts of the numbers that are shown first


@dataclass(frozen=True)
class ComparedRun:
    """A finished run."""

    name: str
    params: Record  # by dotted key
    numbers: Record  # by file and dotted key
    root: Path  # of the photographs
    eval_images: dict[str, ImageRecord]  # by file name
    predictions: LabelMaps
    truth: LabelMaps
    classes: list[str]  # background first; empty without truth
    matched: dict[int, int]  # cluster to class
    class_iou: dict[str, float | None]
    image_iou: dict[str, float | None]

    def prediction(self, file_name: str) -> np.ndarray:
        """The final label map of an evaluation image, [H, W] uint8."""
        return self.predictions[self.eval_images[file_name]]


def read(folder: Path, name: str, round: str | None = None) -> ComparedRun:
    """Read a finished run. Raises InputError if the folder holds none.

    Args:
        round: of the segmenter, in place of the final one; then the numbers are its mIoUs alone.
    """
    file, details = folder / "params.yaml", folder / "results/details"
    if not file.exists():
        raise InputError(f"{file}: no such file; name a folder in which `dvc repro` ran")
    if round and round not in (known := params.value("rounds", list[str], file)):
        raise InputError(f"{folder} has no round {round!r}; {file} has {', '.join(known)}")
    final = round or params.value("final", str, file)
    clustering = details / "clustering" / final
    if not (missing := clustering / "image_iou.json").exists():
        raise InputError(f"{folder} holds no finished run of this version of unseg ({missing}); run `dvc repro` there")
    if round:
        scores = {"clustering": read_json(clustering / "scores.json")}
    else:
        files = sorted([*details.glob("*.json"), *details.glob("clustering/*/scores.json")])
        scores = {f.relative_to(details).as_posix(): read_json(f) for f in files}
    ious, image_ious = read_json(clustering / "class_iou.json"), read_json(clustering / "image_iou.json")
    return ComparedRun(
        name=name,
        params={key: str(x) if isinstance(x, list) else x for key, x in params.flatten(params.read(file)).items()},
        numbers={f"{file}: {key}": x for file, content in scores.items() for key, x in scalars(content)},
        root=folder / params.value("data.images", str, file),
        eval_images={image.file_name: image for image in eval_images(folder / "data/images.json")},
        predictions=LabelMaps(folder / f"data/predictions/{final}.zip"),
        truth=LabelMaps(folder / "data/truth.zip", "semantic/"),
        classes=class_names(folder / "data/truth.zip"),
        matched={row["cluster"]: c for c, row in enumerate(ious) if row["cluster"] is not None},
        class_iou={row["class"]: row["iou"] for row in ious},
        image_iou={row["file_name"]: row["iou"] for row in image_ious},
    )


def read_runs(folders: Sequence[Path]) -> list[ComparedRun]:
    """Runs by the names of their folders, or by whole paths if two have the same name. Raises InputError as `read`."""
    names = [folder.resolve().name for folder in folders]
    unique = names if len(set(names)) == len(names) else [str(folder) for folder in folders]
    return [read(folder, name) for folder, name in zip(folders, unique, strict=True)]


def common_images(runs: Sequence[ComparedRun]) -> list[str]:
    """The file names of the evaluation images that all runs have, at the same size. Raises InputError if there are none."""
    first = runs[0].eval_images
    names = [n for n in first if all(n in r.eval_images and r.eval_images[n].size == first[n].size for r in runs)]
    if not names:
        raise InputError(f"{', '.join(r.name for r in runs)} have no evaluation image in common; compare runs on the same images")
    return names


def image_changes(runs: Sequence[ComparedRun], names: Sequence[str]) -> dict[str, float]:
    """The change of each image: the difference to its mIoU in the first run, of the run where it is largest; negative if worse.

    Without truth, the largest fraction of pixels that have another cluster, after the clusters are matched.
    """
    if all(run.image_iou.get(names[0]) is not None for run in runs):
        gains = {}
        for n in names:
            first, *others = (run.image_iou.get(n) for run in runs)
            gains[n] = max((x - first for x in others if x is not None and first is not None), key=abs, default=0.0)
        return gains
    return changed_pixels(runs, names)


def changed_pixels(runs: Sequence[ComparedRun], names: Sequence[str]) -> dict[str, float]:
    """The largest fraction of an image's pixels that have another label than in the first run, after labels are matched."""
    luts, fractions = match_labels(runs, names), {}
    for n in names:
        first_map, *maps = (lut[run.prediction(n)] for run, lut in zip(runs, luts, strict=True))
        fractions[n] = max(float((other != first_map).mean()) for other in maps)
    return fractions


def match_labels(runs: Sequence[ComparedRun], names: Sequence[str]) -> list[np.ndarray]:
    """For each run, a table [256]: the first run's label with the largest IoU for each label, one to one; 254 for none."""
    luts = [np.arange(256)]
    for other in runs[1:]:
        counts = np.zeros((255, 255), np.int64)
        for n in track(names, "compare"):
            counts += metrics.confusion(runs[0].prediction(n), other.prediction(n), 255, 255)
        matched = metrics.match(counts, by="iou", fixed_background=True)
        luts.append(np.append(np.where(matched < 0, 254, matched), 255))
    return luts


def schemes(runs: Sequence[ComparedRun], names: Sequence[str]) -> list[pictures.Scheme]:
    """The colours of each run's clusters; matched clusters have the same colour."""
    ks = [int(run.params["cluster.k"]) for run in runs]
    if runs[0].classes and all(run.classes == runs[0].classes for run in runs):
        return [pictures.scheme(k, run.classes, run.matched) for k, run in zip(ks, runs, strict=True)]
    clusters = ["background", *(f"cluster {k}" for k in range(ks[0]))]
    return [
        pictures.scheme(k, clusters, {c: int(lut[c + 1]) for c in range(k) if 0 < lut[c + 1] < len(clusters)})
        for k, lut in zip(ks, match_labels(runs, names), strict=True)
    ]


def contact_rows(runs: Sequence[ComparedRun], names: Sequence[str], scheme_images: Sequence[str]) -> list[Row]:
    """The photograph, each run's final segmentation and the truth; clusters are matched, for colours, on scheme_images."""
    first, rows, colours = runs[0], [], schemes(runs, scheme_images)
    for n in track(names, "draw"):
        image = first.eval_images[n]
        photo = pictures.tile(photos.read(first.root, image), sheets.TILE)
        tiles = [Tile("photograph", photo)]
        for run, scheme in zip(runs, colours, strict=True):
            tags = {k + 1: scheme.title(k) for k in range(len(scheme.clusters))}
            drawn, iou = sheets.draw_labels(run.name, photo, run.prediction(n), scheme.table(), tags), run.image_iou.get(n)
            tiles.append(drawn if iou is None else drawn._replace(note=f"mIoU {percent(iou)}; {drawn.note}"))
        if image in first.truth:
            table, classes = colours[0].truth_table(), dict(enumerate(first.classes))
            tiles.append(sheets.draw_labels("truth", photo, first.truth[image], table, classes))
        rows.append((n, tiles))
    return rows


def side_by_side(runs: Sequence[ComparedRun], source: Source, keys: Iterable[str]) -> list[Values]:
    """The values by key, and the difference to the first run if both are numbers."""
    rows = []
    for key in keys:
        values = [getattr(run, source).get(key) for run in runs]
        gains = [f"{x - values[0]:+.4g}" if is_number(x) and is_number(values[0]) else DASH for x in values[1:]]
        rows.append((key, [*map(plain, values)], gains))
    return rows


def differing(runs: Sequence[ComparedRun], source: Source) -> list[str]:
    """The keys whose values are not the same in all runs, in the order in which they first occur."""
    keys = dict.fromkeys(key for run in runs for key in getattr(run, source))
    return [key for key in keys if len({plain(getattr(run, source).get(key)) for run in runs}) > 1]


def compare(runs: Sequence[ComparedRun]) -> bytes:
    """The page."""
    names = common_images(runs)
    change = image_changes(runs, names)
    ranked = sorted(names, key=lambda n: (-abs(change[n]), n))[:PICTURES]
    ranked.sort(key=lambda n: (change[n], n))
    keys = dict.fromkeys(key for run in runs for key in run.numbers)
    headline = [key for key in keys if key.rpartition(".")[2].rpartition(" ")[2] in HEADLINE]
    others = [key for key in differing(runs, "numbers") if key not in headline]
    run_names = [run.name for run in runs]
    head = ["", *run_names, *(f"{name} − {run_names[0]}" for name in run_names[1:])]

    def section(title: str, source: Source, keys: Iterable[str], others: Iterable[str] = ()) -> Section:
        rows, more = side_by_side(runs, source, keys), side_by_side(runs, source, others)
        return Section(source, title, "differences", {"label": source, "head": head, "rows": rows, "others": more})

    params_section = section("Params that differ", "params", differing(runs, "params"))
    sections = [params_section, section("Numbers", "numbers", headline, others)]
    if classes := dict.fromkeys(c for run in runs for c in run.class_iou):
        sections.append(section("IoU of each class", "class_iou", classes))
    order = "from the largest loss to the largest gain" if runs[0].image_iou else "from the least to the most changed"
    note = f"Of {len(names)} images in all runs the {len(ranked)} that changed most, {order}."
    sections.append(Section("pictures", "Pictures", "contact", {"note": note, "rows": contact_rows(runs, ranked, names)}))
    return render("compare", sections, runs=runs, count=len(names))


def summary(runs: Sequence[ComparedRun]) -> str:
    """The params and numbers that differ, for a terminal: each run's value, and the difference to the first run's."""
    lines = [" | ".join(run.name for run in runs)]
    source: Source
    for source in ("params", "numbers"):
        keys = differing(runs, source)
        lines.append(source if keys else f"{source}: no difference")
        for key, values, gains in side_by_side(runs, source, keys):
            lines.append(f"  {key}: {' | '.join(values)}" + "".join(f" ({gain})" for gain in gains if gain != DASH))
    return "\n".join(lines)


def is_number(x: object) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool)
