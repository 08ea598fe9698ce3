"""The sections of the report that need no truth: quality without labels, the choice of K, and what is missing for the rest.

numbers: content of results/details/quality.json; chosen: of results/choose_k.json.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from unseg.report import charts
from unseg.report.page import DASH, PERCENT, Html, html, join, note, table

Record = dict[str, Any]


class Fact(NamedTuple):
    """A number with its name and what it says."""

    name: str
    value: str
    meaning: str


QUALITY = (  # key in results/details/quality.json, name, meaning; shares and indices of at most 1 are shown in per cent
    ("mask_missing", "images without a mined mask", "they teach the detector nothing"),
    ("mask_area", "area of a mined mask", "mean share of its image; near 0 or 100 %, mining has failed"),
    ("mask_border", "border under a mined mask", "mean share of the image's rim; high where background was taken"),
    (
        "mask_flip",
        "same mask when mirrored",
        "IoU above chance with the mask mined on the mirror image; 0: as other photographs' masks",
    ),
    ("mask_crop", "same mask when cropped", "the same of the middle of the photograph, mined alone"),
    ("cluster_balance", "balance of clusters", "entropy of their sizes; 100 %: all of one size"),
    ("cluster_largest", "largest cluster", "share of all masks"),
    ("cluster_silhouette", "silhouette of clusters", "100 %: far apart; 0: they touch; below: mixed"),
    ("cluster_stability", "stability of clusters", "adjusted Rand index of K-means from other seeds; 100 %: always the same"),
    ("foreground_masks_detector", "mined mask against detections", "mean IoU of foregrounds, over judged images"),
    ("cluster_masks_detector", "same cluster, mined mask and detections", "share of the pixels that are foreground in both"),
    ("foreground_masks_final", "mined mask against final segmentation", "mean IoU of foregrounds, over judged images"),
    ("cluster_masks_final", "same cluster, mined mask and final segmentation", "share of the pixels that are foreground in both"),
    ("foreground_detector_final", "detections against final segmentation", "mean IoU of foregrounds, over judged images"),
    (
        "cluster_detector_final",
        "same cluster, detections and final segmentation",
        "share of the pixels that are foreground in both",
    ),
    ("label_painted", "pixels with a pseudo-label", "mean share of an image that is not background"),
    ("label_void", "pixels left out of training", "mean share of an image whose pseudo-label is void"),
    ("label_kept", "pseudo-label against final segmentation", "mean IoU of foregrounds, over images that have both"),
)
FAINT = 0.1  # of choose_k's score: below it K-means finds hardly more than in noise
TELLING = ("mask_missing", "mask_area", "mask_flip", "cluster_balance", "cluster_stability", "foreground_masks_final")


def share(x: float | None) -> str:
    """0.458 as "45.8 %"; a dash for what is not known."""
    return DASH if x is None else f"{100 * x:.1f}{PERCENT}"


def quality(numbers: Record) -> list[Fact]:
    """What can be said of the run without truth, in the order in which data flows."""
    found = [Fact(name, share(numbers.get(key)), meaning) for key, name, meaning in QUALITY]
    used = f"{numbers['clusters_used']:.0f} of {numbers['clusters']}"
    return [*found, Fact("clusters in the final segmentation", used, "if few, the segmenter has collapsed")]


def telling(numbers: Record) -> list[Fact]:
    """The few that lead the page where there is no truth."""
    return [Fact(name, share(numbers[key]), m) for key, name, m in QUALITY if key in TELLING and numbers.get(key) is not None]


def facts(rows: Sequence[Fact]) -> Html:
    return table("quality without labels", ("quantity", "value", "what it says"), rows)


def missing(files: dict[str, Record]) -> Html:
    """Which numbers are not there, by their files, and what they need."""
    groups: dict[str, list[Html]] = {}
    for name, content in files.items():
        if "needs" in content:
            groups.setdefault(str(content["needs"]), []).append(Html(f"<li><code>{html(name)}</code></li>"))
    rows = [(need, Html(f"<ul>{join(names)}</ul>")) for need, names in groups.items()]
    return (
        join([Html("<h3>Not measured here</h3>"), table("not measured", ("what it needs", "numbers"), rows)]) if rows else Html()
    )


def choice(chosen: Record, k: int) -> Html:
    """The sweep over K: a plot, a table, the recommendation and its uncertainty; k is the K of the run."""
    if "needs" in chosen:
        return note(f"Not tried: {chosen['needs']}.")
    tried = chosen["tried"]
    close = ", ".join(str(n) for n in chosen["as_good"] if n != chosen["best"])
    best = max(row["score"] for row in tried)
    doubt = "But none is far above chance: there may be no clusters. " if best < FAINT else ""
    unsure = f"It cannot be told from {close} (within two standard errors)." if close else "No other K tried comes near it."
    wins = next(row["wins"] for row in tried if row["k"] == chosen["best"])
    words = (
        f"K {chosen['best']} fits best: it has the highest score in {100 * wins:.0f}{PERCENT} of {chosen['repeats']} repeats. "
        f"{unsure} {doubt}This run has cluster.k {k}; the choice is yours: more clusters than classes are often of use."
    )
    ks = [float(row["k"]) for row in tried]
    names = ("stability", "silhouette", "score")
    series = {name: ([row[name] for row in tried], [row[f"{name}_std"] for row in tried]) for name in names}
    drawn = Html(f"<figure>{charts.lines(ks, series, 'K, number of clusters')}</figure>")

    def told(row: Record, name: str) -> str:
        return f"{row[name]:.3f} ± {row[f'{name}_std']:.3f}"

    columns = ("stability", "chance_stability", "silhouette", "chance_silhouette", "score")
    cells = [(row["k"], *(told(row, name) for name in columns), share(row["wins"])) for row in tried]
    head = ("K", "stability", "by chance", "silhouette", "by chance", "score", "best in")
    how = (
        "Stability: adjusted Rand index of the clusters that two random halves of the objects give. Silhouette: how far clusters "
        "are apart. By chance: the same of normal noise with the objects' mean and covariance, which has no clusters. Score: "
        "geometric mean of how much both are above chance. Mean ± standard deviation over the repeats, of "
        f"{chosen['objects']} masks."
    )
    return join([Html(f"<p>{html(words)}</p>"), drawn, table("choice of K", head, cells), note(how)])
