"""MaskDistill's tables and sweeps: numbers measured here beside the published ones.

    python benchmarks/tables.py table1            # numbers of the working tree and its DVC experiments
    python benchmarks/tables.py s1 --run          # run the experiments of the table first
    python benchmarks/tables.py figure3 --run --seeds 0 1 2

Tables: table1, s1, s2, table2, table3; sweeps, with a plot in results/sweeps/: figure3 (K), figure4 (top-k), figure5 (tau).
The runs are those of `dvc exp show`. A cell is the mean (± standard deviation) over the runs that have the values of its row,
and the other values of params.yaml, except the seed and groups that cannot change the number.
Published numbers: arXiv:2206.06363, on PASCAL VOC 2012 val unless the table says otherwise.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from unseg.core import params
from unseg.data import truth
from unseg.report import charts, page

MISSING = "not measured here"
UNRELATED = ("seed", "quality", "choose", "alarms", "report")  # the runs of a cell may differ in these groups
LINEAR_ONLY, SEGMENTER_ONLY = ("linear",), ("linear", "segmenter", "crf", "rounds", "refine", "final", "predict", "relabel")
MASKS_ONLY = ("detector", "detect", "self_train", "retrain", "detections", "aggregate", *SEGMENTER_ONLY)  # later than masks
S2 = {  # published IoU of the classes of truth.VOC_CLASSES, then their mean
    "segmentation model": (
        "84.4 74.7 27.9 70.9 47.5 0.0 72.8 33.2 72.4 0.0 70.0 29.6 38.1 67.5 58.1 28.1 9.2 65.8 20.4 65.5 27.7 45.8"
    ),
    "+ CRF": "85.4 80.3 28.8 74.7 50.4 0.0 72.5 52.1 75.7 0.0 76.5 28.6 38.7 71.3 63.8 32.0 11.2 67.0 20.5 67.7 28.7 48.9",
    "linear probe": (
        "88.1 80.5 30.9 76.7 58.2 52.2 75.7 70.1 82.7 12.9 73.3 35.4 78.8 72.2 62.1 52.4 27.9 73.0 19.7 70.5 39.0 58.7"
    ),
}
TABLE_3 = {  # AP50, AP, AP75 by mode and source: VOC 2012, COCO20k
    ("multi", "DINO"): ("6.7 / 1.9 / 0.6", "1.7 / 0.3 / 0.1"),
    ("multi", "LOST"): ("9.6 / 2.9 / 0.9", "2.4 / 1.1 / 1.0"),
    ("multi", "masks"): ("12.8 / 4.8 / 0.3", "3.1 / 1.3 / 0.5"),
    ("multi", "detector"): ("24.3 / 9.9 / 6.9", "6.8 / 2.9 / 2.1"),
    ("single", "DINO"): ("13.9 / 4.8 / 2.2", "4.8 / 1.6 / 0.7"),
    ("single", "LOST"): ("18.8 / 6.0 / 2.6", "8.3 / 2.9 / 1.5"),
    ("single", "masks"): ("24.0 / 9.5 / 6.4", "9.9 / 4.1 / 3.1"),
    ("single", "detector"): ("32.8 / 14.7 / 11.8", "14.6 / 6.6 / 5.5"),
}
BASELINES: dict[str, dict[str, Any]] = {"DINO": {"mine.method": "attention"}, "LOST": {"mine.method": "lost"}}


class Run(NamedTuple):
    name: str
    params: dict[str, Any]  # by dotted key
    metrics: dict[str, float]  # by "file key", the file below results/details


class Row(NamedTuple):
    label: str
    where: dict[str, Any]  # values of the row that differ from params.yaml
    metric: str  # "file key"; {first} and {final} stand for rounds
    published: str
    free: tuple[str, ...] = ()  # groups of params that cannot change the number


TABLE_1 = [
    Row("ViT masks", {}, "clustering/masks miou", "39.0", MASKS_ONLY),
    Row("+ Mask R-CNN", {"aggregate.shape": "mask"}, "clustering/detector miou", "42.0", SEGMENTER_ONLY),
    Row("+ segmentation model", {"aggregate.shape": "mask"}, "clustering/{first} miou", "45.8", LINEAR_ONLY),
    Row("  without hard-pixel mining", {"segmenter.hard_pixel_ratio": 1.0}, "clustering/{first} miou", "45.5", LINEAR_ONLY),
    Row("+ CRF rounds (S1, Table 2)", {"aggregate.shape": "mask"}, "clustering/{final} miou", "48.9", LINEAR_ONLY),
]
TABLE_S1 = [
    TABLE_1[0],
    Row("+ Mask R-CNN (bbox)", {"aggregate.shape": "box"}, "clustering/detector miou", "31.8", SEGMENTER_ONLY),
    Row("+ GrabCut", {"aggregate.shape": "grabcut"}, "clustering/detector miou", "38.2", SEGMENTER_ONLY),
    Row("+ Mask R-CNN (mask)", {"aggregate.shape": "mask"}, "clustering/detector miou", "42.0", SEGMENTER_ONLY),
    TABLE_1[2],
    TABLE_1[4],
]
TABLE_2 = [
    Row("clustering", {}, "clustering/{first} miou", "45.8", LINEAR_ONLY),
    Row("clustering + CRF rounds", {}, "clustering/{final} miou", "48.9", LINEAR_ONLY),
    Row("linear probe (of the final round)", {}, "linear miou", "58.7"),
    Row("linear probe + CRF", {}, "linear miou_crf", "62.8"),
]
ROWS = {"table1": TABLE_1, "s1": TABLE_S1, "table2": TABLE_2}
SWEEPS: dict[str, tuple[str, list[Any], list[str], str]] = {  # key, values (for K: factors of cluster.k), metrics, paper
    "figure3": (
        "cluster.k",
        [0.5, 0.75, 1, 1.5, 2, 3],
        ["instances detector.multi.aware.AP50", "clustering/{final} miou", "clustering/{final} miou_majority"],
        "Figure 3, a plot: mask AP rises with the number of clusters",
    ),
    "figure4": (
        "mine.keep",
        [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8],
        ["instances masks.mean_iou", "instances masks.multi.agnostic.AP50", "clustering/masks miou"],
        "Figure 4, a plot: 40 % strikes the balance",
    ),
    "figure5": (
        "aggregate.threshold",
        [0.3, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 0.95],
        ["clustering/{first} miou", "clustering/detector miou"],
        "Figure 5, a plot: mIoU plateaus around tau 0.75",
    ),
}


def details(revision: str) -> dict[str, Any]:
    """The content of results/details by file, in a Git revision or the "workspace", without files that DVC's cache lacks."""
    from dvc.api import DVCFileSystem

    fs = DVCFileSystem(rev=None if revision == "workspace" else revision)
    contents = {}
    for file in fs.find("results/details") if fs.exists("results/details") else []:
        if Path(file).name in ("scores.json", "instances.json", "linear.json"):
            with contextlib.suppress(FileNotFoundError):
                contents[file] = json.loads(fs.read_text(file))
    return contents


def read(commits: list[dict[str, Any]]) -> list[Run]:
    """The runs of `dvc exp show --json`, without failed ones: the working tree, then commits, then experiments."""
    entries = list(commits)
    for commit in commits:
        entries += [e["revs"][0] for e in commit.get("experiments") or [] if e.get("revs")]
    runs = []
    for entry in entries:
        data = entry.get("data") or {}
        values = params.flatten((data.get("params") or {}).get("params.yaml", {}).get("data") or {})
        metrics: dict[str, float] = {}
        for file, content in details(entry["rev"]).items() if values else []:
            name = file.removeprefix("results/details/").removesuffix(".json").removesuffix("/scores")
            metrics |= {f"{name} {key}": x for key, x in params.flatten(content).items() if isinstance(x, int | float)}
        if values and metrics:
            runs.append(Run(entry.get("name") or entry["rev"], values, metrics))
    return runs


def in_cell(run: Run, first: Run, where: dict[str, Any], free: Sequence[str]) -> bool:
    """Whether a run belongs to a cell: it has the values of `where`, and the first run's values of all other keys."""
    want = first.params | where
    keys = {k for k in run.params.keys() | want.keys() if k.split(".")[0] not in (*UNRELATED, *free) or k in where}
    return all(run.params.get(k) == want.get(k) for k in keys)


def measured(runs: Sequence[Run], row: Row) -> list[float]:
    """The metric of a cell's runs, one value per seed."""
    rounds = runs[0].params.get("rounds") or ["r0"]
    metric = row.metric.format(first=rounds[0], final=runs[0].params.get("final", rounds[-1]))
    if "{final}" in row.metric and "CRF" in row.label and len(rounds) == 1:
        return []  # there is no CRF round
    by_seed: dict[Any, float] = {}
    for run in runs:
        if in_cell(run, runs[0], row.where, row.free) and metric in run.metrics:
            by_seed.setdefault(run.params.get("seed"), run.metrics[metric])
    return list(by_seed.values())


def cell(scores: Sequence[float]) -> str:
    """Mean and standard deviation, in per cent."""
    if not scores:
        return MISSING
    mean = f"{100 * statistics.mean(scores):.1f}"
    return mean if len(scores) == 1 else f"{mean} ± {100 * statistics.stdev(scores):.1f} (n = {len(scores)})"


def show(head: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
    """Print a Markdown table."""
    for line in (head, ["---"] * len(head), *lines):
        print("|", " | ".join(map(str, line)), "|")


def show_rows(name: str, runs: Sequence[Run]) -> None:
    show(("setup", "measured", "paper"), [(row.label, cell(measured(runs, row)), row.published) for row in ROWS[name]])
    if name in ("table1", "s1"):
        before, after = (measured(runs, row) for row in (TABLE_1[2], TABLE_1[4]))
        gain = f"{100 * (statistics.mean(after) - statistics.mean(before)):+.1f}" if before and after else MISSING
        print(f"\nCRF gain: {gain}; paper +3.1")


def show_classes(runs: Sequence[Run]) -> None:
    """Table S2, of the working tree."""
    rounds, final = runs[0].params["rounds"], runs[0].params["final"]
    scores: dict[str, dict[str, float | None]] = {
        "segmentation model": class_iou(rounds[0]),
        "+ CRF": class_iou(final) if len(rounds) > 1 else {},
        "linear probe": {k.split("class_iou.")[1]: x for k, x in runs[0].metrics.items() if k.startswith("linear class_iou.")},
    }
    names = list(dict.fromkeys(name for by_name in scores.values() for name in by_name)) or list(truth.VOC_CLASSES)
    lines = []
    for name in [*names, "mean"]:
        line = [name]
        for method, numbers in S2.items():
            measured_classes = [x for x in scores[method].values() if x is not None]
            mean = statistics.mean(measured_classes) if measured_classes else None
            x = mean if name == "mean" else scores[method].get(name)
            published = dict(zip([*truth.VOC_CLASSES, "mean"], numbers.split(), strict=True))
            line += [MISSING if x is None else f"{100 * x:.1f}", published.get(name, "no such class")]
        lines.append(line)
    show(("class", *(f"{method}{what}" for method in S2 for what in ("", ", paper"))), lines)


def class_iou(name: str) -> dict[str, float | None]:
    file = Path(f"results/details/clustering/{name}/class_iou.json")
    return {row["class"]: row["iou"] for row in json.loads(file.read_text())} if file.exists() else {}


def show_instances(runs: Sequence[Run]) -> None:
    """Table 3."""
    lines = []
    for (mode, source), papers in TABLE_3.items():
        for setting in ("agnostic", "aware"):
            where, part = BASELINES.get(source, {}), "detector" if source == "detector" else "masks"
            free = SEGMENTER_ONLY if part == "detector" else MASKS_ONLY
            rows = [Row("", where, f"instances {part}.{mode}.{setting}.{n}", "", free) for n in ("AP50", "AP", "AP75")]
            scores = [measured(runs, row) for row in rows]
            text = " / ".join(map(cell, scores)) if all(scores) else MISSING
            lines.append((f"{mode}-object, {source}", setting, text, *papers))
    show(("mask AP50 / AP / AP75", "classes", "measured", "paper, VOC2012", "paper, COCO20k"), lines)
    print("\nThe paper does not name the class setting of these numbers; for the other one it gives 8.6 / 2.9 / 1.1 (DINO),")
    print("12.1 / 3.8 / 1.5 (LOST), 15.7 / 6.1 / 4.0 (masks) and 24.8 / 10.7 / 8.0 (detector) on VOC2012, and")
    print("2.0 / 0.7 / 0.4, 3.3 / 1.2 / 0.6, 4.1 / 1.7 / 1.4 and 7.7 / 3.5 / 2.9 on COCO20k.")


def grid(name: str, runs: Sequence[Run]) -> list[Any]:
    """The values of a sweep."""
    key, values, *_ = SWEEPS[name]
    return sorted({max(2, round(x * runs[0].params[key])) for x in values}) if key == "cluster.k" else values


def titles(metric: str) -> tuple[str, str]:
    """A metric's name in a table, and a short one in a plot. In a sweep all names differ."""
    long = metric.format(first="segmenter", final="final")
    file, key = long.split(" ")
    source, kind = file.removeprefix("clustering/"), key.removeprefix("miou").strip("_")
    return long, key.split(".")[-1] if file == "instances" else f"{source} {kind}".strip()


def show_sweep(name: str, runs: Sequence[Run], out: Path) -> None:
    key, _, metrics, published = SWEEPS[name]
    values = grid(name, runs)
    scores = {m: {x: measured(runs, Row("", {key: x}, m, "", LINEAR_ONLY)) for x in values} for m in metrics}
    show((key, *(titles(m)[0] for m in metrics)), [(str(x), *(cell(scores[m][x]) for m in metrics)) for x in values])
    print(f"\npaper: {published}")
    xs = [x for x in values if all(scores[m][x] for m in metrics)]
    if len(xs) < 2:
        return print("no plot: fewer than two values were measured")
    series = []
    for m in metrics:
        deviations = [statistics.stdev(scores[m][x]) if len(scores[m][x]) > 1 else 0.0 for x in xs]
        series.append(charts.Series([statistics.mean(scores[m][x]) for x in xs], deviations, titles(m)[1]))
    data = {"chart": charts.lines(xs, series, key), "published": published}
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.html").write_bytes(page.render("sweep", [page.Section("sweep", key, "sweep", data)], name=name))
    print(f"plot: {out / name}.html")


def experiments(name: str, runs: Sequence[Run], seeds: Sequence[int]) -> list[list[str]]:
    """The commands that queue the experiments of a table; none for s2, which shows the working tree."""
    if name == "s2":
        return []
    if name in SWEEPS:
        changes = [f"{SWEEPS[name][0]}={','.join(map(str, grid(name, runs)))}"]
    else:
        wheres = {tuple(row.where.items()) for row in ROWS.get(name, [])} | {()}
        wheres |= {tuple(where.items()) for where in BASELINES.values()} if name == "table3" else set()
        changes = [
            " ".join(f"{k}={v}" for k, v in where)
            for where in sorted(wheres, key=lambda where: str(dict(where)))
            if any(runs[0].params.get(k) != v for k, v in where)
        ]
        changes += [""] if len(seeds) > 1 else []
    commands = []
    for change in changes:
        settings = [*change.split(), *([f"seed={','.join(map(str, seeds))}"] if seeds else [])]
        commands.append(["dvc", "exp", "run", "--queue", *(word for s in settings for word in ("-S", s))])
    return commands


def exp_show() -> list[Run]:
    done = subprocess.run(["dvc", "exp", "show", "--json"], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"dvc exp show failed; run from the root of the repository: {done.stderr.strip()[-300:]}")
    runs = read(json.loads(done.stdout))
    if not runs:
        sys.exit("no run has results yet: run `dvc repro` first")
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=[*ROWS, "s2", "table3", *SWEEPS])
    parser.add_argument("--run", action="store_true", help="queue the experiments of the table and run them first")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[], help="seeds of the experiments (default: seed of params.yaml)"
    )
    options = parser.parse_args()
    runs = exp_show()
    commands = experiments(options.table, runs, options.seeds)
    if options.run and commands:
        for command in [*commands, ["dvc", "exp", "run", "--run-all"]]:
            print("$", " ".join(command), flush=True)
            if subprocess.run(command).returncode:
                sys.exit(f"{' '.join(command)} failed")
        runs = exp_show()
    first = runs[0].params
    print(f"\n{options.table}: data.root {first.get('data.root')}, backbone {first.get('backbone.weights')}, in per cent\n")
    if options.table in ROWS:
        show_rows(options.table, runs)
    elif options.table == "s2":
        show_classes(runs)
    elif options.table == "table3":
        show_instances(runs)
    else:
        show_sweep(options.table, runs, Path("results/sweeps"))
    if commands and not options.run:
        print("\nexperiments that fill the gaps (--run queues and runs them):", *(" ".join(c) for c in commands), sep="\n  ")


if __name__ == "__main__":
    main()
