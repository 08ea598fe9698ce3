"""The report's section that sets backbones side by side: results/backbones/<evaluation>-<set>-<backbone>.json.

The evaluations are CrOC's (arXiv:2303.13245; specification croc.md, section 9): evaluations/dvc.yaml runs them.
"""

from collections.abc import Sequence
from pathlib import Path

from unseg.io.records import read_json
from unseg.report.page import DASH, Html, join, note, percent, sentence, table
from unseg.report.sheets import Record

MEASURES = {"linear": "linear mIoU", "kmeans": "K-means mIoU", "video": "J&F"}  # by evaluation


def read(folder: Path) -> list[tuple[str, Record]]:
    """Each score's `<evaluation>-<set>` and content, in the order of the evaluations, sets and backbones; none: empty."""
    found = []
    for file in sorted(folder.glob("*.json")):
        content = read_json(file)
        column = file.stem.removesuffix(f"-{content['backbone']}")
        if column.partition("-")[0] in MEASURES:
            found.append((column, content))
    return sorted(found, key=lambda f: (list(MEASURES).index(f[0].partition("-")[0]), f[0], f[1]["backbone"]))


def section(scores: Sequence[tuple[str, Record]]) -> Html:
    """A row a backbone, a column an evaluation; the protocols below."""
    columns = list(dict.fromkeys(column for column, _ in scores))
    cells = {(content["backbone"], column): content for column, content in scores}
    rows = [
        (name, *(cell(cells.get((name, column))) for column in columns)) for name in dict.fromkeys(sorted(b for b, _ in cells))
    ]
    heads = [f"{MEASURES[kind]}, {where}" for kind, _, where in (column.partition("-") for column in columns)]
    protocols = {
        MEASURES[column.partition("-")[0]]: f"{content.get('images', content.get('sequences'))} judged. {content['protocol']}"
        for column, content in scores
    }
    words = [note(f"{measure}: {sentence(protocol)}") for measure, protocol in protocols.items()]
    return join([table("backbones", ("backbone", *heads), rows), *words])


def cell(content: Record | None) -> str:
    if content is None:
        return DASH
    score = percent(content.get("miou", content.get("J&F")))
    return f"{score} ± {percent(content['miou_std'])}" if "miou_std" in content else score
