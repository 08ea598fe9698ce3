"""Self-training rounds of the detector (unseg/detection/self_training.py, stages/adopt.py)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages import adopt as stage
from unseg.core.rle import coco_annotation, decode, encode
from unseg.core.storage import write_json
from unseg.detection.self_training import SelfTraining, self_train

P = SelfTraining(threshold=0.7, overlap=0.5)


def strip(first: int, last: int, category: int, score: float | None = None, image: int = 1) -> dict[str, Any]:
    """Columns first..last of an image of 1 x 20 pixels: IoUs can be counted on fingers."""
    mask = np.zeros((1, 20), bool)
    mask[0, first : last + 1] = True
    record = coco_annotation(7, image, category, encode(mask))
    return record | ({} if score is None else {"score": score})


def columns(record: dict[str, Any]) -> tuple[int, int, int]:
    there = np.flatnonzero(decode(record["segmentation"])[0])
    return int(there[0]), int(there[-1]), record["category_id"]


def test_sure_detections_then_what_is_left_of_the_former_instances() -> None:
    found = [strip(0, 3, 0, 0.7), strip(10, 13, 1, 0.9), strip(16, 19, 2, 0.69)]
    former = [strip(1, 4, 5), strip(6, 8, 6)]  # the first is 3 of 5 pixels with 0..3
    assert [columns(r) for r in self_train(found, former, P)] == [(10, 13, 1), (0, 3, 0), (6, 8, 6)]


def test_of_two_on_one_object_the_surer_one() -> None:
    found = [strip(0, 3, 0, 0.8), strip(1, 3, 1, 0.95), strip(2, 5, 2, 0.75)]  # with 1..3: IoU 3/4, and 2/5
    assert [columns(r) for r in self_train(found, [], P)] == [(1, 3, 1), (2, 5, 2)]
    half = [strip(0, 3, 0, 0.9), strip(0, 1, 1, 0.8)]  # IoU 1/2 is there already
    assert [columns(r) for r in self_train(half, [], P)] == [(0, 3, 0)]


def test_nothing() -> None:
    assert self_train([], [], P) == []
    assert self_train([strip(0, 3, 0, 0.1)], [], P) == []
    assert [columns(r) for r in self_train([], [strip(2, 3, 1)], P)] == [(2, 3, 1)]


@pytest.mark.parametrize(("key", "value"), [("threshold", -0.1), ("threshold", 1.1), ("overlap", 0.0), ("overlap", 1.1)])
def test_settings_out_of_range(key: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"adopt\.{key} is"):
        SelfTraining(**(vars(P) | {key: value}))


def test_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("adopt: {threshold: 0.7, overlap: 0.5}\n")
    images = [{"id": n, "file_name": f"{n}.png", "height": 1, "width": 20, "split": "train"} for n in (1, 2, 3)]
    categories = [{"id": 0, "name": "cluster 0"}]
    write_json(
        "i.json", {"images": images, "annotations": [strip(0, 3, 0, image=1), strip(0, 3, 0, image=2)], "categories": categories}
    )
    write_json("d.json", [strip(0, 2, 1, 0.9, image=2), strip(5, 9, 1, 0.8, image=2)])
    stage.main("i.json", "d.json", "out.json")
    out = json.loads(Path("out.json").read_text())
    assert (out["images"], out["categories"]) == (images, categories)
    assert [(a["id"], a["image_id"], *columns(a)) for a in out["annotations"]] == [
        (1, 1, 0, 3, 0),
        (2, 2, 0, 2, 1),
        (3, 2, 5, 9, 1),
    ]
    assert out["annotations"][1]["bbox"] == [0.0, 0.0, 3.0, 1.0]
    assert out["annotations"][1].keys() == out["annotations"][0].keys()  # no score
    assert "3 instances, 2 of them detections" in capsys.readouterr().out
