"""Corrected labels as a round: which rounds have seen human labels, the zip of corrections, stages/correct.py."""

from pathlib import Path

import numpy as np
import pytest

from stages import correct
from unseg.clustering import naming
from unseg.core import label_maps, rounds, storage
from unseg.core.console import InputError
from unseg.core.image_index import ImageRecord
from unseg.core.label_maps import LabelMaps

MAP = np.array([[0, 1, 2, 255]], np.uint8)


def test_what_is_made_from_a_corrected_round_has_seen_human_labels(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(
        "corrections: [{from: r1, file: a.zip, to: h1}]\nregroup: [{from: h2, to: g2}]\n"
        "refine: [{from: r0, to: r1}, {from: h1, to: h2}, {from: g2, to: h3}]\n"
    )
    assert rounds.human_rounds(file) == {"h1", "h2", "g2", "h3"}
    file.write_text("corrections: []\nregroup: [{from: r0, to: g0}]\nrefine: [{from: g0, to: r1}]\n")
    assert rounds.human_rounds(file) == set()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[ImageRecord]:
    """K = 3; a.png and b.png for training, c.png for evaluation; corrected: a.png and c.png."""
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text("cluster: {k: 3}\n")
    Path("clusters.yaml").write_text("clusters: {1: {merge: 0}}\n")
    storage.write_json("instances.json", {"categories": [{"id": k} for k in range(3)], "annotations": []})
    images = [
        ImageRecord(i, f"{name}.png", 1, 4, split)
        for i, (name, split) in enumerate(zip("abc", ("train", "both", "val"), strict=True))
    ]
    storage.write_json("images.json", {"images": [vars(i) for i in images]})
    label_maps.write_label_maps("labels-r1.zip", [(i.file_name, MAP) for i in images[:2]])
    rounds.write_corrections(
        Path("c.zip"), [(i.file_name, MAP * 0 + 3) for i in images[::2]], naming.fingerprint("instances.json")
    )
    return images


def stage() -> None:
    correct.main("images.json", "instances.json", "labels-r1.zip", "c.zip", "clusters.yaml", "labels-h1.zip")


def test_corrected_label_maps_replace_those_of_the_run(run: list[ImageRecord], capsys: pytest.CaptureFixture[str]) -> None:
    stage()
    made = LabelMaps("labels-h1.zip")
    assert made.names == {"a.png.png", "b.png.png"}  # as the others of the run: c.png is for evaluation
    assert made[run[0]].tolist() == [[3, 3, 3, 3]]
    assert made[run[1]].tolist() == [[0, 1, 1, 255]]  # cluster 1 is merged, as in the corrected map
    assert "1 of 2 training photographs have corrected labels" in capsys.readouterr().out


def test_corrections_that_do_not_fit_the_run(run: list[ImageRecord]) -> None:
    def refused(message: str) -> None:
        with pytest.raises(InputError, match=message) as error:
            stage()
        assert "\n" not in str(error.value)
        assert not Path("labels-h1.zip").exists()

    rounds.write_corrections(Path("c.zip"), [("other.png", MAP)], naming.fingerprint("instances.json"))
    refused("no photograph 'other.png'; import the labels again")
    rounds.write_corrections(Path("c.zip"), [("../a.png", MAP)], naming.fingerprint("instances.json"))
    refused("no photograph '../a.png'")
    rounds.write_corrections(Path("c.zip"), [("a.png", MAP[:, :2])], naming.fingerprint("instances.json"))
    refused("its image \\(1, 4\\)")
    rounds.write_corrections(Path("c.zip"), [("a.png", MAP)], "0123")
    refused("c.zip is for another clustering, with other cluster numbers")
    label_maps.write_label_maps("c.zip", [("a.png", MAP)])
    refused("is not what `unseg import-labels -o` writes")
    Path("c.zip").write_bytes(b"PK")
    refused("c.zip is not a zip file")
