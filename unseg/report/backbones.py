"""The report's section that sets backbones side by side: results/backbones/<evaluation>-<set>-<backbone>.json.

The evaluations are CrOC's (arXiv:2303.13245; docs/spec/croc.md, section 9): evaluations/dvc.yaml runs them.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from unseg.core.storage import read_json
from unseg.report.page import DASH, Html, join, note, percent, sentence, table
from unseg.report.sheets import Record

MEASURES = {"linear": "linear mIoU", "kmeans": "K-means mIoU", "video": "J&F"}  # by evaluation


def read(folder: Path, backbones: Sequence[Record], sets: Sequence[Record], videos: Sequence[Record]) -> list[tuple[str, Record]]:
    """Each score's `<evaluation>-<set>` and content: of the evaluations, sets and backbones listed in params.yaml, in that order.

    Files of others, which an earlier run has left, are passed over.
    """
    data = {"linear": sets, "kmeans": sets, "video": videos}
    columns = [f"{kind}-{each['name']}" for kind in MEASURES for each in data[kind]]
    files = {(c, b["name"]): folder / f"{c}-{b['name']}.json" for c in columns for b in backbones}
    return [(column, read_json(file)) for (column, _), file in files.items() if file.exists()]


def section(scores: Sequence[tuple[str, Record]], names: Sequence[str]) -> Html:
    """A row a backbone (names, in order), a column an evaluation; below, its protocol and how many were judged."""
    cells = {(content["backbone"], column): content for column, content in scores}
    columns = dict(scores)  # each with one of its contents
    rows = [(name, *(cell(cells.get((name, column))) for column in columns)) for name in names]
    heads, protocols, judged = [], {}, defaultdict(list)
    for column, content in columns.items():
        kind, _, where = column.partition("-")
        heads.append(f"{MEASURES[kind]}, {where}")
        protocols[kind] = sentence(content["protocols"][0]["protocol"])
        judged[kind].append(f"{where} {content.get('images', content.get('sequences'))}")
    words = [note(f"{MEASURES[kind]}: {protocol} Judged: {', '.join(judged[kind])}.") for kind, protocol in protocols.items()]
    return join([table("backbones", ("backbone", *heads), rows), *words])


def cell(content: Record | None) -> str:
    if content is None:
        return DASH
    score = percent(content.get("miou", content.get("J&F")))
    return f"{score} ± {percent(content['miou_std'])}" if "miou_std" in content else score
