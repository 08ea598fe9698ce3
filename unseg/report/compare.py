"""What changed between two runs: params, scores, and how far their final label maps agree.

Clusters of two runs have numbers that mean nothing to each other: they are matched one to one so that as many pixels as can be
agree (Hungarian), background with background.

Shapes: H rows, W columns; K clusters of the first run, L of the second.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from scipy.optimize import linear_sum_assignment

from unseg.console import InputError, track
from unseg.io import photos, records
from unseg.io.records import Image, Labels
from unseg.report import page, pictures
from unseg.report.page import Html, Section, html, join, named
from unseg.report.sections import plain, scalars
from unseg.report.sheets import TILE, spread


class Change(NamedTuple):
    """Of a number or a setting: its name, and what either run has; None: it has it not."""

    key: str
    one: Any
    two: Any


@dataclass(frozen=True)
class Finished:
    """A run's folder, read."""

    root: Path
    params: dict[str, Any]
    scores: dict[str, Any]
    images: dict[str, Image]  # judged ones, by file name
    maps: Labels
    folder: Path  # of the photographs


def finished(root: Path) -> Finished:
    """Raises: InputError, where something of a finished run is missing."""
    file = root / "params.yaml"
    try:
        params = yaml.safe_load(file.read_text("utf-8"))
        final, folder = str(params["final"]), Path(params["data"]["images"])
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise InputError(f"{file} cannot be read as a run's params ({type(error).__name__}); name the folder of a run") from None
    scores: dict[str, Any] = {}
    for path in sorted((root / "results").rglob("*.json")):
        if path.name in ("metrics.json", "linear.json", "instances.json"):
            name = path.relative_to(root / "results").as_posix().removesuffix("/metrics.json").removesuffix(".json")
            scores |= {f"{name}.{key}": x for key, x in scalars(records.read_json(path)) if isinstance(x, int | float)}
    judged = {i.file_name: i for i in records.to_judge(root / "data/images.json")}
    return Finished(root, params, scores, judged, Labels(root / f"data/predictions-{final}.zip"), root / folder)


def changes(one: dict[str, Any], two: dict[str, Any]) -> list[Change]:
    """What differs between two trees of settings or scores, by dotted keys."""

    def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, x in tree.items():
            out |= flat(x, f"{prefix}{key}.") if isinstance(x, dict) else {f"{prefix}{key}": x}
        return out

    a, b = flat(one), flat(two)
    return [Change(key, a.get(key), b.get(key)) for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)]


def matching(counts: np.ndarray) -> np.ndarray:
    """[256] uint8: the first run's label for each label of the second, from pixels [256, 256] that have both labels.

    Background stays background; clusters of the second without a partner get labels that the first does not use.
    """
    table = np.arange(256, dtype=np.uint8)
    ones = np.flatnonzero(counts[1:255].sum(1)) + 1
    twos = np.flatnonzero(counts[:, 1:255].sum(0)) + 1
    rows, cols = linear_sum_assignment(-counts[np.ix_(ones, twos)])
    matched = {int(twos[c]): int(ones[r]) for r, c in zip(rows, cols, strict=True)}
    spare = iter(sorted(set(range(1, 255)) - set(ones.tolist())))
    for label in twos.tolist():
        table[label] = matched[label] if label in matched else next(spare)
    return table


def contingency(one: Finished, two: Finished, names: Sequence[str]) -> np.ndarray:
    """Pixels [256, 256] with each pair of labels."""
    counts = np.zeros(65536, np.int64)
    for name in track(names, "compare label maps", len(names)):
        a, b = one.maps[one.images[name]], two.maps[two.images[name]]
        if a.shape != b.shape:
            raise InputError(f"{name} has {a.shape} pixels in {one.root} and {b.shape} in {two.root}; they are not one data set")
        counts += np.bincount(a.ravel().astype(np.int64) * 256 + b.ravel(), minlength=65536)
    return counts.reshape(256, 256)


def compare(one: Finished, two: Finished, shown: int) -> tuple[str, bytes]:
    """What changed, as text for a terminal and as a page; `shown` images at most."""
    names = sorted(n for n in one.images.keys() & two.images.keys() if one.images[n] in one.maps and two.images[n] in two.maps)
    counts = contingency(one, two, names)
    table = matching(counts)
    agree = sum(int(counts[table[label], label]) for label in range(256)) / max(1, int(counts.sum()))
    settings, scores = changes(one.params, two.params), changes(one.scores, two.scores)
    said = f"{100 * agree:.1f} % of the pixels of {len(names)} images agree" if names else "no image is judged by both"
    lines = [f"one: {one.root}", f"two: {two.root}", *listed("settings", settings), *listed("scores", scores), said]
    rows = [strip(one, two, name, table) for name in spread(names, shown)]
    sections = [
        Section("settings", "Settings", changed("settings", settings)),
        Section("scores", "Scores", changed("scores", scores)),
        Section("pictures", "Pictures", join(rows) if rows else page.note("No image is judged by both.")),
    ]
    roots = f"One: {named(str(one.root))}. Two: {named(str(two.root))}."
    lead = Html(f'<p class="lead">{roots} {html(said)}, clusters matched.</p>')
    return "\n".join(lines), page.document("unseg compare", lead, sections)


def listed(title: str, rows: Sequence[Change]) -> list[str]:
    lines = [f"  {r.key}: {plain(r.one)} -> {plain(r.two)}{gain(r)}" for r in rows]
    return [title, *lines] if rows else [f"{title}: no difference"]


def gain(row: Change) -> str:
    numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in (row.one, row.two))
    return f" ({row.two - row.one:+.4g})" if numbers else ""


def changed(label: str, rows: Sequence[Change]) -> Html:
    cells = [(r.key, plain(r.one), plain(r.two), gain(r).strip(" ()")) for r in rows]
    return page.table(label, ("key", "one", "two", "difference"), cells) if rows else page.note("No difference.")


def strip(one: Finished, two: Finished, name: str, table: np.ndarray) -> Html:
    """A photograph, both maps in the first run's colours, and where they differ."""
    image = one.images[name]
    photo = pictures.tile(photos.read(one.folder, image), TILE)
    a, b = (pictures.fit(x, photo) for x in (one.maps[image], table[two.maps[two.images[name]]]))
    colours = np.zeros((256, 3), np.uint8)
    colours[1:255] = pictures.palette(254)
    plain_table = colours, np.zeros(256, bool)
    differ = np.where(a != b, np.uint8(1), np.uint8(0))
    drawn = {
        "photograph": photo,
        "one": pictures.paint(photo, a, *plain_table),
        "two": pictures.paint(photo, b, *plain_table),
        "difference": pictures.paint(photo, differ, np.full((256, 3), 255, np.uint8), np.zeros(256, bool)),
    }
    figures = [
        Html(f"<figure>{page.picture(pixels, f'{name}: {head}')}<figcaption><b>{head}</b></figcaption></figure>")
        for head, pixels in drawn.items()
    ]
    return Html(f'<article><h4>{named(name)}</h4><div class="strip" style="--n:4">{join(figures)}</div></article>')
