"""The report's section that compares backbones: results/backbones/<evaluation>-<set>-<backbone>.json.

The evaluations are CrOC's (arXiv:2303.13245; docs/spec/croc.md, section 9): evaluations/dvc.yaml runs them.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unseg.core.storage import read_json
from unseg.report.page import DASH, percent, sentence

Record = dict[str, Any]
MEASURES = {"linear": "linear mIoU", "kmeans": "K-means mIoU", "video": "J&F"}  # by evaluation


def read(folder: Path, backbones: Sequence[Record], sets: Sequence[Record], videos: Sequence[Record]) -> list[tuple[str, Record]]:
    """`<evaluation>-<set>` and content of each score whose evaluation, set and backbone is in params.yaml, in that order.

    Other files, which an earlier run has left, are ignored.
    """
    data = {"linear": sets, "kmeans": sets, "video": videos}
    columns = [f"{kind}-{each['name']}" for kind in MEASURES for each in data[kind]]
    files = {(c, b["name"]): folder / f"{c}-{b['name']}.json" for c in columns for b in backbones}
    return [(column, read_json(file)) for (column, _), file in files.items() if file.exists()]


def table(scores: Sequence[tuple[str, Record]], names: Sequence[str]) -> dict[str, Any]:
    """A row for each backbone, a column for each evaluation; notes give its protocol and number of images."""
    cells = {(content["backbone"], column): content for column, content in scores}
    columns = dict(scores)  # each with one of its contents
    heads, protocols, counts = [], {}, defaultdict(list)
    for column, content in columns.items():
        kind, _, data_set = column.partition("-")
        heads.append(f"{MEASURES[kind]}, {data_set}")
        protocols[kind] = sentence(content["protocols"][0]["protocol"])
        counts[kind].append(f"{data_set} {content.get('images', content.get('sequences'))}")
    notes = [f"{MEASURES[kind]}: {text} Evaluated on: {', '.join(counts[kind])}." for kind, text in protocols.items()]
    rows = [(name, [cell(cells.get((name, column))) for column in columns]) for name in names]
    return {"heads": heads, "rows": rows, "notes": notes}


def cell(content: Record | None) -> str:
    if content is None:
        return DASH
    score = percent(content.get("miou", content.get("J&F")))
    return f"{score} ± {percent(content['miou_std'])}" if "miou_std" in content else score
