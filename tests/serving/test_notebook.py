"""docs/tour.ipynb: its form, and (slow) a run of all its cells at a small size."""

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image as Pillow

from unseg.data import demo
from unseg.serving.cli.parser import parser

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docs/tour.ipynb"
SMALL = (
    *("rounds=[r0]", "refine=[]", "final=r0", "backbone.width=32", "backbone.depth=2", "backbone.heads=2", "croc.epochs=1"),
    *("croc.batch=4", "croc.outputs=16", "croc.outputs_centroid=16", "croc.hidden=32", "croc.bottleneck=16"),
    *("croc.views.size=32", "croc.clustering.tokens=6", "mine.resize=64", "embed.resize=32", "embed.longest=64"),
    *(
        "cluster.k=3",
        "cluster.whiten=pca",
        "cluster.starts=1",
        "cluster.components=4",
        "choose.ks=[2]",
        "choose.repeats=2",
        "linear.epochs=1",
    ),
    *("detector.width=8", "detector.fpn=16", "detector.hidden=16", "detector.short_sides=[64]", "detector.long_side=64"),
    *("detector.rois=8", "detector.proposals=10", "detector.iterations=2", "detector.batch=2", "detector.lr_steps=[1]"),
    *("detect.short_side=64", "detect.max_detections=3", "segmenter.width=8", "segmenter.size=64", "segmenter.epochs=1"),
    *("segmenter.lr_milestone=0", "segmenter.batch=4", "report.pictures=2", "report.exemplars=2", "quality.images=4"),
)


def notebook() -> Any:
    return nbformat.read(FILE, nbformat.NO_CONVERT)


def test_fifteen_cells_without_outputs() -> None:
    assert FILE.stat().st_size < 100_000
    nbformat.validate(notebook())
    assert len(notebook().cells) <= 15
    for cell in notebook().cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
        assert "widgets" not in cell.metadata
    assert set(json.loads(FILE.read_text())["metadata"]) == {"kernelspec", "language_info"}  # of no one's machine


def test_its_commands_are_commands_of_unseg() -> None:
    """Each is read by the parser, with a number in the place of each variable."""
    lines = [x.strip() for c in notebook().cells if c.cell_type == "code" for x in c.source.splitlines() if "!{unseg" in x]
    names = []
    for line in lines:
        words = line.split(" 2>&1")[0].replace("{FIT}", "--profile folder").replace("{edits}", "--name 0=first")
        while "{" in words:
            words = words[: words.index("{")] + "1" + words[words.index("}") + 1 :]
        names.append(parser().parse_args(shlex.split(words)[1:]).command)
    want = ["fit", "clusters", "clusters", "predict", "probe", "export-labels", "export"]
    assert [name for name in names if name != "init"] == want


@pytest.mark.slow
def test_the_tour_from_photographs_to_an_exported_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All cells in a kernel: no error, pictures where there are to be some, and nothing written into the repository."""
    (tmp_path / "photos/deep er").mkdir(parents=True)
    for i in range(10):
        pixels, _ = demo.scene(np.random.default_rng(i), 64)
        Pillow.fromarray(pixels).save(tmp_path / f"photos/{'deep er/' * (i % 2)}{i}.png")
    before = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    monkeypatch.setenv("UNSEG_TOUR_PHOTOS", str(tmp_path / "photos"))
    monkeypatch.setenv("UNSEG_TOUR_WORK", str(tmp_path / "work"))
    monkeypatch.setenv("UNSEG_TOUR_FIT", "--profile folder" + "".join(f" --set {x}" for x in SMALL))
    monkeypatch.setenv("UNSEG_DEVICE", "cpu")
    monkeypatch.setenv("UNSEG_WORKERS", "0")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "jupyter"))
    done = notebook()
    NotebookClient(done, timeout=1800, resources={"metadata": {"path": str(tmp_path)}}).execute()
    text = ["".join(o.get("text", "") for o in cell.get("outputs", [])) for cell in done.cells]
    assert not re.search(r"^(error|Traceback)", "\n".join(text), re.MULTILINE | re.IGNORECASE), text
    pictures = [i for i, c in enumerate(done.cells, 1) for o in c.get("outputs", []) if "image/png" in o.get("data", {})]
    assert pictures == [3, 6, 7, 9, 10, 11]
    work = tmp_path / "work"
    assert "first" in (work / "project/clusters.yaml").read_text()
    assert len(list((work / "out/overlays").iterdir())) == 3
    assert {"first", "second"} <= {c["name"] for c in json.loads((work / "coco/semantic.json").read_text())["categories"]}
    assert (work / "mine.safetensors").stat().st_size
    assert (work / "model.onnx").stat().st_size
    assert list((work / "logs").rglob("events.*"))
    after = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert after == before
