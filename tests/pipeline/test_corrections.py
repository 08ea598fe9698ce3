"""The loop of docs/labels.md at toy size: export, correct, import, a round that has seen human labels, and what says so."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import Pipeline
from dvc.repo import Repo

from unseg.core import image_index
from unseg.core.label_maps import LabelMaps
from unseg.report import comparison
from unseg.serving.cli.main import main

ROUND = {"correct@0", "train_segmenter@h1", "predict@h1"}
SHOWN = {"evaluate_clustering", "evaluate_linear", "evaluate_quality", "report"}


def test_corrected_labels_are_a_round_that_says_so(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(pipe.root)
    main(["export-labels", ".", "--format", "coco", "-o", "for-coco"])
    content = json.loads(Path("for-coco/semantic.json").read_text())
    train = image_index.train_images("data/images.json")
    image = train[0]
    content["images"] = [i for i in content["images"] if i["file_name"] == image.file_name]
    square = {"image_id": image.id, "category_id": 3, "segmentation": [[4, 4, 20, 4, 20, 20, 4, 20]]}
    Path("done.json").write_text(json.dumps(content | {"annotations": [square]}))
    main(["import-labels", "done.json", "--format", "coco", "-o", "corrected.zip"])

    pipe.update(
        {"corrections": [{"from": "r1", "file": "corrected.zip", "to": "h1"}], "rounds": ["r0", "r1", "h1"], "final": "h1"}
    )
    assert set(pipe.repro()) == ROUND | SHOWN
    before, after = LabelMaps("data/labels-r1.zip"), LabelMaps("data/labels-h1.zip")
    assert (after[image] == 3).sum() == 16 * 16
    assert all(np.array_equal(before[i], after[i]) for i in train[1:])
    assert only_this_model_has_seen_them(pipe) == {"models/segmenter-h1.safetensors"}

    scores = {name: json.loads(Path(f"results/clustering/{name}.json").read_text()) for name in ("r1", "h1")}
    assert [s.get("human_labels") for s in scores.values()] == [None, 1]
    assert json.loads(Path("results/linear.json").read_text())["human_labels"] == 1
    assert "human_labels" in pipe.sh("dvc", "metrics", "show").stdout
    report = Path("results/report.html").read_text()
    assert "The final segmenter (h1) was trained on labels that people corrected:" in report
    assert "+ CRF round (r1)" in report
    assert "+ corrected labels (h1)" in report

    capsys.readouterr()
    main(["compare", ".", "--round", "r1", "-o", "before.html"])
    assert "r1 | h1" in capsys.readouterr().out
    assert "Of 4 images" in Path("before.html").read_text()
    runs = [comparison.read(Path(), name, name) for name in ("r1", "h1")]
    assert [run.numbers["clustering: miou"] for run in runs] == [s["miou"] for s in scores.values()]
    for words, message in ((["--round", "r9"], "has no round 'r9'"), ([".", "--round", "r1"], "name one run")):
        with pytest.raises(SystemExit, match=message):
            main(["compare", ".", *words])


def only_this_model_has_seen_them(pipe: Pipeline) -> set[str]:
    """The models that depend on corrected.zip, by the graph."""
    with Repo(str(pipe.root)) as repo:
        deps = {}
        for stage in (s for s in repo.index.stages if getattr(s, "cmd", None)):
            names = [Path(d.fs_path).relative_to(pipe.root).as_posix() for d in stage.deps if d.hash_name != "params"]
            deps |= {Path(out.fs_path).relative_to(pipe.root).as_posix(): names for out in stage.outs}
    seen, fresh = {"corrected.zip"}, True
    while fresh:
        fresh = {out for out, names in deps.items() if seen & set(names)} - seen
        seen |= fresh
    return {name for name in seen if name.startswith("models/")}
