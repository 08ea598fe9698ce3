"""The papers' tables from `dvc exp show`: which run belongs to which cell, and what is not measured."""

import copy
from pathlib import Path
from typing import Any

import pytest

from benchmarks import tables

PARAMS = {
    "seed": 0,
    "data": {"root": "voc"},
    "backbone": {"weights": "w"},
    "mine": {"keep": 0.4, "method": "maskdistill"},
    "cluster": {"k": 20},
    "aggregate": {"shape": "mask", "threshold": 0.9},
    "segmenter": {"hard_pixel_ratio": 0.2},
    "linear": {"lr": 0.1},
    "rounds": ["r0", "r1"],
    "final": "r1",
    "report": {"pictures": 1},
}


DETAILS: dict[str, dict[str, Any]] = {}  # by revision, then file


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """DETAILS stands for Git and DVC's cache."""
    monkeypatch.setattr(tables, "details", DETAILS.__getitem__)


def entry(name: str, miou: float, **changed: Any) -> dict[str, Any]:
    params = copy.deepcopy(PARAMS)
    for key, x in changed.items():
        *head, last = key.split("__")
        node: Any = params
        for part in head:
            node = node[part]
        node[last] = x
    plus = {"masks": 0.0, "detector": 0.1, "r0": 0.2, "r1": 0.3}
    contents: dict[str, Any] = {
        f"results/details/clustering/{n}/scores.json": {"miou": miou + x, "miou_majority": miou} for n, x in plus.items()
    }
    ap = {"AP50": miou, "AP": miou / 2, "AP75": None}
    contents["results/details/instances.json"] = {
        "detector": {"multi": {"agnostic": ap, "aware": ap}},
        "masks": {"mean_iou": miou, "multi": {"agnostic": ap}},
    }
    contents["results/details/linear.json"] = {"miou": miou, "class_iou": {"cat": miou}}
    DETAILS[name] = contents
    return {"rev": name, "name": name, "data": {"params": {"params.yaml": {"data": params}}}}


def exp_show() -> list[dict[str, Any]]:
    others = [
        entry("s1", 0.32, seed=1, report__pictures=9),
        entry("box", 0.2, aggregate__shape="box"),
        entry("other", 0.9, mine__keep=0.1),
        entry("probe", 0.5, linear__lr=1.0),
        {"rev": "failed", "name": "failed", "data": None, "error": {"msg": "it failed"}},
    ]
    experiments = [{"name": e["name"], "revs": [e]} for e in others]
    return [entry("workspace", 0.3), {**entry("main", 0.3), "experiments": experiments}]


def table_rows(capsys: pytest.CaptureFixture[str]) -> dict[str, list[str]]:
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    return {row[0]: row[1:] for row in rows}


def test_a_cell_is_the_mean_over_seeds_of_its_runs(capsys: pytest.CaptureFixture[str]) -> None:
    runs = tables.read(exp_show())
    assert [run.name for run in runs] == ["workspace", "main", "s1", "box", "other", "probe"]
    tables.show_rows("s1", runs)
    rows = table_rows(capsys)
    assert rows["ViT masks"] == ["31.0 ± 1.4 (n = 2)", "39.0"]  # box, which comes later, and main are seed 0 again
    assert rows["+ Mask R-CNN (bbox)"] == ["30.0", "31.8"]
    assert rows["+ GrabCut"] == ["not measured here", "38.2"]
    assert rows["+ segmentation model"] == ["51.0 ± 1.4 (n = 2)", "45.8"]
    assert rows["+ CRF rounds (S1, Table 2)"] == ["61.0 ± 1.4 (n = 2)", "48.9"]


def test_every_table_of_rows_prints(capsys: pytest.CaptureFixture[str]) -> None:
    runs = tables.read(exp_show())
    for name in tables.ROWS:
        tables.show_rows(name, runs)
    out = capsys.readouterr().out
    assert "CRF gain: +10.0; paper +3.1" in out
    assert "linear probe + CRF | not measured here | 62.8" in out
    alone = [entry("workspace", 0.3, rounds=["r0"], final="r0")]
    tables.show_rows("table1", tables.read(alone))
    assert table_rows(capsys)["+ CRF rounds (S1, Table 2)"][0] == "not measured here"


def test_instances_and_classes(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runs = tables.read([*exp_show(), entry("dino", 0.07, mine__method="attention", aggregate__threshold=0.1)])
    more = {f"instances {source}.multi.agnostic.AP75": 0.1 for source in ("masks", "detector")}
    runs = [run._replace(metrics=run.metrics | more) for run in runs if run.name in ("workspace", "dino")]
    tables.show_instances(runs)
    lines = capsys.readouterr().out.splitlines()
    assert "| multi-object, detector | agnostic | 30.0 / 15.0 / 10.0 | 24.3 / 9.9 / 6.9 | 6.8 / 2.9 / 2.1 |" in lines
    assert any(line.startswith("| single-object, masks | aware | not measured here |") for line in lines)
    assert "| multi-object, masks | agnostic | 30.0 / 15.0 / 10.0 | 12.8 / 4.8 / 0.3 | 3.1 / 1.3 / 0.5 |" in lines
    assert "| multi-object, DINO | agnostic | 7.0 / 3.5 / 10.0 | 6.7 / 1.9 / 0.6 | 1.7 / 0.3 / 0.1 |" in lines
    assert any(line.startswith("| multi-object, LOST | agnostic | not measured here |") for line in lines)
    tables.show_classes(runs)
    rows = table_rows(capsys)
    assert rows["cat"] == ["not measured here", "72.4", "not measured here", "75.7", "30.0", "82.7"]
    assert rows["mean"][-1] == "58.7"


def test_the_metrics_of_a_sweep_have_different_names() -> None:
    for _, _, metrics, _ in tables.SWEEPS.values():
        for names in zip(*map(tables.titles, metrics), strict=True):
            assert len(set(names)) == len(metrics)
            assert not any("{" in name for name in names)
    assert tables.titles("clustering/{final} miou_majority") == ("clustering/final miou_majority", "final majority")


def test_a_sweep_is_a_table_and_a_plot(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    runs = tables.read([*exp_show(), entry("k40", 0.4, cluster__k=40), entry("k40s1", 0.5, cluster__k=40, seed=1)])
    assert tables.grid("figure3", runs) == [10, 15, 20, 30, 40, 60]
    tables.show_sweep("figure3", runs, tmp_path)
    rows = table_rows(capsys)
    assert rows["40"][0] == "45.0 ± 7.1 (n = 2)"
    assert rows["20"] == ["31.0 ± 1.4 (n = 2)", "61.0 ± 1.4 (n = 2)", "31.0 ± 1.4 (n = 2)"]
    assert rows["10"] == ["not measured here"] * 3
    text = (tmp_path / "figure3.html").read_text()
    assert "<svg" in text
    assert "http" not in text


def test_commands_that_fill_a_table() -> None:
    runs = tables.read(exp_show())
    commands = [" ".join(c) for c in tables.experiments("s1", runs, [])]
    assert commands == [f"dvc exp run --queue -S aggregate.shape={shape}" for shape in ("box", "grabcut")]
    assert tables.experiments("figure5", runs, [0, 1])[0][4:] == [
        *("-S", "aggregate.threshold=0.3,0.5,0.6,0.7,0.75,0.8,0.9,0.95"),
        *("-S", "seed=0,1"),
    ]
    commands = [" ".join(c) for c in tables.experiments("table3", runs, [])]
    assert commands == [f"dvc exp run --queue -S mine.method={method}" for method in ("attention", "lost")]


def test_published_means_are_those_of_their_classes() -> None:
    for numbers in tables.S2.values():
        *classes, mean = map(float, numbers.split())
        assert len(classes) == 21
        assert sum(classes) / 21 == pytest.approx(mean, abs=0.1)  # the paper's 45.8 is 45.9 by its own row
