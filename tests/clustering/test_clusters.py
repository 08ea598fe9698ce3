"""clusters.yaml: its entries, its errors, and the label maps that stages/regroup.py makes with it."""

import argparse
from pathlib import Path

import numpy as np
import pytest
import yaml

from stages import regroup
from unseg.clustering import naming
from unseg.clustering.naming import ClusterEntry, ClusterNames
from unseg.core import label_maps, storage
from unseg.core.console import InputError
from unseg.core.image_index import ImageRecord
from unseg.core.label_maps import IGNORE_LABEL, LabelMaps
from unseg.report import pictures, sections
from unseg.serving.cli import clusters as verb
from unseg.serving.run import Run

CONTENT = """
clusters:
  0: {name: dog, colour: '#ff0080'}
  2: {merge: 0, name: old}
  3: {merge: background}
  4: {ignore: true}
"""


def write_file(folder: Path, text: str) -> Path:
    file = folder / "clusters.yaml"
    file.write_text(text, "utf-8")
    return file


def test_entries_and_the_labels_that_they_change(tmp_path: Path) -> None:
    names = naming.read(write_file(tmp_path, CONTENT), 6)
    assert names.entries[0] == ClusterEntry("dog", (255, 0, 128))
    assert names.label_lut()[[0, 1, 2, 3, 4, 5, 6, 7, 255]].tolist() == [0, 1, 2, 1, 0, IGNORE_LABEL, 6, 7, 255]
    assert names.names() == {0: "background", 1: "dog", 2: "cluster 1", 6: "cluster 5"}


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    for text in ("clusters: {}", "", "# nothing"):
        names = naming.read(write_file(tmp_path, text), 3)
        assert names == ClusterNames(3)
        assert (names.label_lut() == np.arange(256)).all()


def test_written_and_read_again(tmp_path: Path) -> None:
    names = naming.read(write_file(tmp_path, CONTENT), 6, "abc")
    naming.write(tmp_path / "again.yaml", names)
    assert naming.read(tmp_path / "again.yaml", 6, "abc") == names
    assert yaml.safe_load((tmp_path / "again.yaml").read_text())["clustering"] == "abc"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clusters: {6: {name: a}}", "there is no cluster 6; there are 0 to 5"),
        ("clusters: {-1: {name: a}}", "there is no cluster -1"),
        ("clusters: {x: {name: a}}", "there is no cluster 'x'"),
        ("clusters: {1: {name: Dog}, 2: {name: ' dog'}}", "clusters 1 and 2 have the name 'dog'; merge one into the other"),
        ("clusters: {1: {name: cluster 2}}", "clusters 1 and 2 have the name 'cluster 2'"),
        ("clusters: {1: {name: background}}", "its name is 'background'"),
        ("clusters: {1: {name: 3}}", "its name is 3; it must be a text"),
        ("clusters: {1: {colour: red}}", "its colour is 'red'; it must be like '#e69f00'"),
        ("clusters: {1: {merge: 1}}", "cannot be merged into 1"),
        ("clusters: {1: {merge: 9}}", "cannot be merged into 9"),
        ("clusters: {1: {merge: true}}", "cannot be merged into True"),
        ("clusters: {1: {merge: 2}, 2: {merge: 3}}", "cluster 1 is merged into 2, which is itself merged"),
        ("clusters: {1: {merge: 2}, 2: {ignore: true}}", "cluster 1 is merged into 2, which is ignored"),
        ("clusters: {1: {merge: 2, ignore: true}}", "both ignored and merged"),
        ("clusters: {1: {ignore: 1}}", "ignore is 1; it must be true or false"),
        ("clusters: {1: {title: a}}", "it can have name, colour, merge, ignore"),
        ("clusters: [1]", "it must have `clusters:`"),
        ("- 1", "it must have `clusters:`"),
        ("clusters: {1: {", "is not YAML"),
        ("clustering: other\nclusters: {1: {name: a}}", "is for another clustering"),
    ],
)
def test_invalid_files_are_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        naming.read(write_file(tmp_path, text), 6, "this")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file; `unseg clusters` writes one"):
        naming.read(tmp_path / "clusters.yaml", 3)


def test_label_maps_regrouped_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_file(tmp_path, CONTENT)
    (tmp_path / "params.yaml").write_text("cluster: {k: 6}\n")
    image = {"id": 1, "file_name": "a.png", "height": 1, "width": 8, "split": "train"}
    storage.write_json("images.json", {"images": [image, {**image, "id": 2, "file_name": "held.png", "split": "val"}]})
    label_maps.write_label_maps("labels-r0.zip", [("a.png", np.array([[0, 1, 2, 3, 4, 5, 6, 255]], np.uint8))])
    regroup.main("images.json", "labels-r0.zip", "clusters.yaml", "labels-g0.zip")
    maps = LabelMaps("labels-g0.zip")
    assert maps.names == {"a.png.png"}
    assert maps[ImageRecord(**image)].tolist() == [[0, 1, 2, 1, 0, 255, 6, 255]]


def run(folder: Path) -> Run:
    storage.write_json(folder / "data/instances.json", {"categories": [{"id": k} for k in range(6)], "annotations": []})
    return Run(folder)


def test_edits_by_the_command_line(tmp_path: Path) -> None:
    here = run(tmp_path)
    verb.edit(here, [("name", "0=dog"), ("colour", "0=#ff0080"), ("merge", "2=0"), ("ignore", "4"), ("merge", "3=background")])
    names = naming.read(tmp_path / "clusters.yaml", 6)
    assert names.label_lut()[:7].tolist() == [0, 1, 2, 1, 0, IGNORE_LABEL, 6]
    assert names.entries[0] == ClusterEntry("dog", (255, 0, 128))
    again = verb.edit(here, [("name", "0=cat"), ("merge", "4=1"), ("reset", "2")])
    assert again.entry(0) == ClusterEntry("cat", (255, 0, 128))
    assert again.label_lut()[[3, 5]].tolist() == [3, 2]
    assert "merged into cluster 1" in verb.listing(again)
    before = (tmp_path / "clusters.yaml").read_bytes()
    for change in (("name", "1=CAT"), ("name", "9=x"), ("name", "1"), ("ignore", "1=2"), ("merge", "1=4"), ("colour", "1=red")):
        with pytest.raises(InputError):
            verb.edit(here, [change])
        assert (tmp_path / "clusters.yaml").read_bytes() == before
    assert verb.edit(here, [("reset", "all")]).entries == {}


def test_a_file_of_another_clustering_is_refused_until_it_is_reset(tmp_path: Path) -> None:
    here = run(tmp_path)
    verb.edit(here, [("name", "0=dog")])
    storage.write_json(tmp_path / "data/instances.json", {"categories": [{"id": k} for k in range(6)], "annotations": [{}]})
    with pytest.raises(InputError, match="for another clustering"):
        verb.edit(here, [("name", "1=cat")])
    with pytest.raises(InputError, match="for another clustering"):  # `unseg predict` does not use it either
        verb.clusters_file(argparse.Namespace(run=here, model=None, clusters=None))
    assert verb.clusters_file(argparse.Namespace(run=here, model=Path("other"), clusters=None)) is None
    assert verb.edit(here, [("reset", "all"), ("name", "1=cat")]).entries == {1: ClusterEntry("cat")}


def test_the_reports_scheme_takes_names_colours_and_merges(tmp_path: Path) -> None:
    bare = pictures.scheme(6, ["background", "disc"], {0: 1})
    scheme = pictures.apply_names(bare, naming.read(write_file(tmp_path, CONTENT), 6))
    assert scheme.title(0) == "dog"
    assert scheme.clusters[0].tolist() == [255, 0, 128]
    assert (scheme.clusters[1:] == bare.clusters[1:]).all()
    assert [scheme.merge_note(k) for k in range(6)] == ["", "", "merged into dog", "merged into background", "ignored", ""]
    assert [bare.title(k) for k in (0, 1)] == ["disc", "cluster 1"]
    assert not any(bare.merge_note(k) for k in range(6))


def test_the_legend_shows_the_colour_that_users_chose(tmp_path: Path) -> None:
    bare = pictures.scheme(6, ["background", "disc"], {0: 1})
    scheme = pictures.apply_names(bare, naming.read(write_file(tmp_path, CONTENT), 6))
    for drawn, chosen in ((scheme, [255, 0, 128]), (bare, None)):
        colour = sections.legend(drawn, ["background", "disc"])[0].cluster_colour
        assert (None if colour is None else colour.tolist()) == chosen
