"""Self-training rounds of the detector (unseg/detection/self_training.py, stages/self_train.py)."""

import json
from pathlib import Path

import factories
import numpy as np
import pytest

from stages import self_train as stage
from unseg.core.console import InputError
from unseg.core.instances import Detection, Instance
from unseg.core.storage import write_json
from unseg.detection.self_training import SelfTraining, self_train

P = SelfTraining(threshold=0.7, overlap=0.5)


def columns(first: int, last: int) -> np.ndarray:
    """Columns first..last of an image of 1 x 20 pixels, so that an IoU can be counted by hand."""
    mask = np.zeros((1, 20), bool)
    mask[0, first : last + 1] = True
    return mask


def detection(first: int, last: int, category: int, score: float, image_id: int = 1) -> Detection:
    return factories.detection(columns(first, last), score, image_id, category)


def instance(first: int, last: int, category: int, image_id: int = 1) -> Instance:
    return factories.instance(columns(first, last), image_id, category, id=7)


def summary(x: Detection | Instance) -> tuple[int, int, int]:
    at = np.flatnonzero(x.mask.decode()[0])
    return int(at[0]), int(at[-1]), x.category_id


def test_confident_detections_come_first_then_previous_instances() -> None:
    detections = [detection(0, 3, 0, 0.7), detection(10, 13, 1, 0.9), detection(16, 19, 2, 0.69)]
    previous = [instance(1, 4, 5), instance(6, 8, 6)]  # the first shares 3 of 5 pixels with 0..3
    assert [summary(x) for x in self_train(detections, previous, P)] == [(10, 13, 1), (0, 3, 0), (6, 8, 6)]


def test_the_higher_score_wins_where_two_detections_overlap() -> None:
    detections = [detection(0, 3, 0, 0.8), detection(1, 3, 1, 0.95), detection(2, 5, 2, 0.75)]  # with 1..3: IoU 3/4, and 2/5
    assert [summary(x) for x in self_train(detections, [], P)] == [(1, 3, 1), (2, 5, 2)]
    half = [detection(0, 3, 0, 0.9), detection(0, 1, 1, 0.8)]  # an IoU of exactly 1/2 is a duplicate
    assert [summary(x) for x in self_train(half, [], P)] == [(0, 3, 0)]


def test_nothing() -> None:
    assert self_train([], [], P) == []
    assert self_train([detection(0, 3, 0, 0.1)], [], P) == []
    assert [summary(x) for x in self_train([], [instance(2, 3, 1)], P)] == [(2, 3, 1)]


@pytest.mark.parametrize(("key", "value"), [("threshold", -0.1), ("threshold", 1.1), ("overlap", 0.0), ("overlap", 1.1)])
def test_settings_out_of_range(key: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"self_train\.{key} is"):
        factories.group("self_train", SelfTraining, **{key: value})


def test_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("self_train: {threshold: 0.7, overlap: 0.5}\n")
    images = [vars(factories.image(n, (1, 20), "train")) for n in (1, 2, 3)]
    categories = [{"id": 0, "name": "cluster 0"}]
    annotations = [instance(0, 3, 0, image_id).to_coco() for image_id in (1, 2)]
    write_json("i.json", {"images": images, "annotations": annotations, "categories": categories})
    write_json("d.json", [detection(0, 2, 1, 0.9, 2).to_coco(), detection(5, 9, 1, 0.8, 2).to_coco()])
    stage.main("i.json", "d.json", "out.json")
    out = json.loads(Path("out.json").read_text())
    assert (out["images"], out["categories"]) == (images, categories)
    objects = [Instance.from_coco(a) for a in out["annotations"]]
    assert [(x.id, x.image_id, *summary(x)) for x in objects] == [(1, 1, 0, 3, 0), (2, 2, 0, 2, 1), (3, 2, 5, 9, 1)]
    assert out["annotations"][1]["bbox"] == [0.0, 0.0, 3.0, 1.0]
    assert out["annotations"][1].keys() == out["annotations"][0].keys()  # no score
    assert "3 instances, 2 of them detections" in capsys.readouterr().out
    write_json("d.json", [detection(0, 2, 1, 0.9, image_id=77).to_coco()])
    with pytest.raises(InputError, match=r"d\.json: no image has the id 77"):
        stage.main("i.json", "d.json", "out.json")
