"""unseg view: what it shows of a run, without FiftyOne; and, where that is installed, the dataset in it."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import factories
import numpy as np
import pytest
import yaml
from PIL import Image as Pillow

from unseg.core import storage
from unseg.core.console import InputError
from unseg.core.image_index import ImageRecord
from unseg.core.label_maps import write_label_maps
from unseg.report import comparison
from unseg.serving.cli import clusters
from unseg.serving.cli.main import main
from unseg.serving.fiftyone_view import fields
from unseg.serving.run import Run

SIZE = (8, 10)
IMAGES = [
    ImageRecord(1, "a.png", *SIZE, "both"),
    ImageRecord(2, "sub/b.png", *SIZE, "train"),
    ImageRecord(3, "c.png", *SIZE, "val"),
]


def square(rows: slice, cols: slice) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[rows, cols] = True
    return mask


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """K = 3, cluster 1 merged into 0; 22 masks, all of cluster 0 but the last two; rounds r0 and r1."""
    root = tmp_path / "run"
    for image in IMAGES:
        (root / "photos" / image.file_name).parent.mkdir(parents=True, exist_ok=True)
        Pillow.new("RGB", SIZE[::-1]).save(root / "photos" / image.file_name)
    storage.write_json(root / "data/images.json", {"images": [vars(i) for i in IMAGES]})
    values = {key: factories.demo_params()[key] for key in ("cluster", "detections")}
    values |= {"data": {"images": "photos"}, "rounds": ["r0", "r1"], "final": "r1"}
    values["cluster"] = values["cluster"] | {"k": 3, "whiten": "none", "components": None}
    (root / "params.yaml").write_text(yaml.safe_dump(values))
    (root / "clusters.yaml").write_text("clusters: {0: {name: dog, colour: '#e69f00'}, 1: {merge: 0}}\n")
    mask = square(slice(2, 4), slice(5, 10))
    masks = [factories.instance(mask, 1 + (n % 2), 0 if n < 20 else 1 if n < 21 else 2, n + 1) for n in range(22)]
    categories = {"categories": [{"id": k} for k in range(3)]}
    records = [x.to_coco() for x in sorted(masks, key=lambda x: x.image_id)]
    storage.write_json(root / "data/instances.json", categories | {"annotations": records})
    loose = factories.instance(square(slice(0, 1), slice(0, 1)), 3, 0, 99).to_coco()
    storage.write_json(root / "data/masks.json", {"annotations": [*records, loose]})
    tokens = np.zeros((22, 4), np.float32)
    tokens[:, 0] = 1
    tokens[7] = [0.1, 1, 0, 0]  # of cluster 0: the odd one
    tokens[20:] = [[0, 0, 1, 0], [0, 0, 0, 1]]
    storage.write_npz(root / "data/cls_tokens.npz", ids=np.arange(1, 23), tokens=tokens)
    found = [factories.detection(mask, s, 1, 1).to_coco() for s in (0.9, 0.7, 0.3)]
    storage.write_json(root / "data/detections.json", found)
    first, last = np.zeros(SIZE, np.uint8), np.zeros(SIZE, np.uint8)
    first[:4], last[:2] = 1, 2  # 2 is merged into 1: of 80 pixels 20 differ
    for name, labels in (("labels-r0", first), ("labels-r1", last)):
        write_label_maps(root / f"data/{name}.zip", [(i.file_name, labels) for i in IMAGES[:2]])
    for name, labels in (("masks", first), ("detector", last * 0 + 1), ("r0", first), ("r1", last)):
        write_label_maps(root / f"data/predictions/{name}.zip", [(i.file_name, labels) for i in IMAGES[::2]])
    return Run(root)


def test_what_is_shown(run: Run) -> None:
    view = fields.read(run, clusters.read(run))
    a, b, c = view.photographs(0.5)
    assert [p.path for p in (a, b, c)] == [run / "photos" / i.file_name for i in IMAGES]
    assert a.labels is not None
    assert np.unique(a.labels).tolist() == [0, 1]
    assert [(s.label, s.score, s.cluster) for s in a.detections] == [("dog", 0.9, 1), ("dog", 0.7, 1)]
    assert a.confidence == pytest.approx(0.8)
    assert a.detections[0].box == (0.5, 0.25, 0.5, 0.25)
    assert a.detections[0].mask.shape == (2, 5)
    assert a.detections[0].mask.all()
    assert (b.detections, b.confidence) == ([], None)
    assert [p.uncertainty for p in (a, b, c)] == [60 / 80, 20 / 80, 60 / 80]
    assert view.before == "the round r0"
    assert [p.changed for p in (a, b, c)] == [16 / 80 + 4 / 80] * 3
    assert [s.label for s in c.masks] == ["unclustered"]
    masks = [*a.masks, *b.masks]
    assert [s.label for s in masks].count("cluster 2") == 1
    assert [s.cluster for s in masks if s.odd] == [0]
    assert sum(s.odd for s in b.masks) == 1  # the eighth mask is of b
    assert min(masks, key=lambda s: s.similarity or 0).odd


def test_the_segmenters_own_uncertainty(run: Run) -> None:
    view = fields.read(run, clusters.read(run))
    labels, confidence = np.full(SIZE, 3, np.uint8), np.full(SIZE, 0.75, np.float32)
    for photo in view.photographs(0.5, lambda path: (labels, confidence)):
        assert photo.uncertainty == 0.25
        assert photo.labels is labels


def test_odd_ones_are_a_fraction_of_each_cluster() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [100, 40, 19])
    tokens = rng.normal(size=(159, 5)) + 3 * np.eye(5)[labels]
    cosines, odd = fields.odd_ones(tokens / np.linalg.norm(tokens, axis=1, keepdims=True), labels, 4)
    assert [int(odd[labels == k].sum()) for k in range(3)] == [5, 2, 0]
    for k in (0, 1):
        assert cosines[(labels == k) & odd].max() < cosines[(labels == k) & ~odd].min()


def test_a_photograph_that_is_gone_is_left_out(run: Run) -> None:
    (run / "photos/c.png").unlink()
    assert [p.image.file_name for p in fields.read(run, clusters.read(run)).photographs(0.5)] == ["a.png", "sub/b.png"]
    for image in IMAGES[:2]:
        (run / "photos" / image.file_name).unlink()
    with pytest.raises(InputError, match="has none of the photographs"):
        fields.read(run, clusters.read(run))


def test_without_an_earlier_round_nothing_is_changed(run: Run) -> None:
    values = yaml.safe_load(run.params.read_text()) | {"rounds": ["r1"]}
    run.params.write_text(yaml.safe_dump(values))
    view = fields.read(run, clusters.read(run))
    assert (view.before, view.changes) == ("", {})


def test_changed_against_another_run(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "read_runs", lambda folders: [str(f) for f in folders])
    monkeypatch.setattr(comparison, "common_images", lambda runs: ["a.png"])
    monkeypatch.setattr(comparison, "changed_pixels", lambda runs, names: dict.fromkeys(names, 0.5))
    view = fields.read(run, clusters.read(run), Run(Path("old")))
    assert (view.before, view.changes) == ("the run old", {"a.png": 0.5})


def test_without_fiftyone_one_line_says_what_to_install(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unseg.core.optional.find_spec", lambda _: None)
    with pytest.raises(SystemExit) as error:
        main(["view", str(run.root)])
    assert str(error.value) == "error: fiftyone is not installed; install it with `pip install '.[view]'` in a clone of unseg"


LOOK = """
import json
import fiftyone as fo
d = fo.load_dataset("unseg-run")
a = d.first()
views = {n: [s.filename for s in d.load_saved_view(n)] for n in d.list_saved_views()}
print(json.dumps({"count": len(d), "views": views, "labels": a.labels.mask.tolist(), "targets": d.default_mask_targets,
    "detections": [[x.label, x.confidence, x.bounding_box, x.mask.tolist()] for x in a.detections.detections],
    "uncertainty": a.uncertainty, "changed": a.changed, "tags": a.tags, "persistent": d.persistent,
    "odd": len(d.load_saved_view("odd one out of its cluster").first().masks.detections),
    "colours": d.app_config.color_scheme.fields[0]["valueColors"], "names": fo.list_datasets()}))
"""


@pytest.mark.skipif(find_spec("fiftyone") is None, reason="fiftyone is not installed (the extra `view`)")
def test_the_dataset_in_fiftyone(run: Run, tmp_path: Path) -> None:
    """Written twice: the second time it takes the place of the first."""
    env = {**os.environ, "FIFTYONE_DATABASE_DIR": str(tmp_path / "db"), "FIFTYONE_DO_NOT_TRACK": "true", "HOME": str(tmp_path)}
    for _ in range(2):
        words = [sys.executable, "-m", "unseg", "view", str(run.root), "--no-app"]
        done = subprocess.run(words, cwd=factories.ROOT, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "3 photographs in the dataset unseg-run" in done.stdout
        assert "changed: compared with the round r0" in done.stdout
    done = subprocess.run([sys.executable, "-c", LOOK], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout.splitlines()[-1])
    assert got["names"] == ["unseg-run"]
    assert (got["count"], got["persistent"], got["tags"]) == (3, True, ["both"])
    assert got["views"] == {
        "uncertain": ["a.png", "c.png", "b.png"],
        "odd one out of its cluster": ["b.png"],
        "changed since the last run": ["a.png", "b.png", "c.png"],
    }
    assert got["odd"] == 1
    assert got["detections"] == [["dog", s, [0.5, 0.25, 0.5, 0.25], [[True] * 5] * 2] for s in (0.9, 0.7)]
    assert np.unique(got["labels"]).tolist() == [0, 1]
    assert got["targets"] == {"1": "dog", "3": "cluster 2", "255": "void"}
    assert (got["uncertainty"], got["changed"]) == (0.75, 0.25)
    assert {"value": "dog", "color": "#e69f00"} in got["colours"]
