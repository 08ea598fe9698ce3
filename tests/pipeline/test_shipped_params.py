"""The shipped params.yaml and profiles, read as the stages read them."""

import re
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
import yaml

from stages import prepare
from unseg.clustering import algorithms, choice
from unseg.core import alarms, params, profiles
from unseg.core.console import InputError
from unseg.data import demo, readers
from unseg.detection import self_training, settings
from unseg.evaluation import linear_probe
from unseg.evaluation.backbones import kmeans, linear, video
from unseg.evaluation.label_free import quality
from unseg.mining import affinity, crops, foreground
from unseg.models import vit
from unseg.pretraining import croc, croc_training, views
from unseg.report import page
from unseg.segmentation import crf, pseudo_labels, segmenter, teacher

ROOT = Path(__file__).parents[2]
PROFILES = profiles.names(ROOT / "profiles")
GROUPS: dict[str, type] = {
    "data": readers.Data,
    "demo": demo.Demo,
    "backbone": vit.Backbone,
    "embedder": vit.Backbone,
    "croc": croc_training.Croc,
    "mine": affinity.Mining,
    "foreground": foreground.Foreground,
    "embed": crops.Embedding,
    "cluster": algorithms.Clustering,
    "detector": settings.Detector,
    "detect": settings.Detect,
    "self_train": self_training.SelfTraining,
    "aggregate": pseudo_labels.Aggregation,
    "segmenter": segmenter.Segmenter,
    "relabel": teacher.Relabel,
    "predict": segmenter.Predict,
    "crf": crf.Crf,
    "linear": linear_probe.Linear,
    "backbone_linear": linear.BackboneLinear,
    "backbone_kmeans": kmeans.BackboneKmeans,
    "backbone_video": video.BackboneVideo,
    "quality": quality.Quality,
    "choose": choice.Choosing,
    "alarms.masks": alarms.MaskAlarm,
    "alarms.clusters": alarms.ClusterAlarm,
    "alarms.labels": alarms.LabelAlarm,
    "alarms.segmentation": alarms.SegmentationAlarm,
    "report": page.Report,
}
VALUES: dict[str, type] = {
    "seed": int,
    "fetch": list,
    "regroup": list,
    "corrections": list,
    "rounds": list,
    "refine": list,
    "final": str,
}
VALUES |= {"retrain": list, "detections": str, "backbones": list, "sets": list, "videos": list}


@pytest.fixture
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The shipped params.yaml, or the one that a profile makes."""
    if request.param == "shipped":
        return ROOT / "params.yaml"
    file = tmp_path / "params.yaml"
    file.write_text(profiles.render(request.param, folder=ROOT / "profiles"))
    return file


def test_the_shipped_file_is_the_demo_profile() -> None:
    assert (ROOT / "params.yaml").read_text() == profiles.render("demo", folder=ROOT / "profiles")


def test_profiles_hold_only_what_differs() -> None:
    base = yaml.safe_load((ROOT / "profiles/base.yaml").read_text())
    for name in PROFILES:
        *_, parent = [profiles.BASE, *list(profiles.lineage(name, ROOT / "profiles"))[:-1]]
        content = {k: v for k, v in profiles.read(name, ROOT / "profiles").items() if k != "extends"}
        values = base if parent == profiles.BASE else yaml.safe_load(profiles.render(parent, folder=ROOT / "profiles"))
        inherited = params.flatten(values)
        assert [key for key, value in params.flatten(content).items() if inherited[key] == value] == [], name


@pytest.mark.parametrize(("old", "new"), params.RENAMED.items())
def test_an_earlier_name_is_answered_by_the_new_one(tmp_path: Path, old: str, new: str) -> None:
    parent, _, name = old.rpartition(".")
    if parent.endswith("[]"):
        pytest.skip("the shipped lists are empty; tests/core/test_params.py reads others")
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    node = content
    for part in filter(None, parent.split(".")):
        node = node[part]
    node[name] = node.pop(new)
    (group,) = (g for g in GROUPS if f"{parent}.{new}".strip(".").startswith(f"{g}.") or g == new)
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(InputError) as error:
        params.group(group, GROUPS[group], file)
    renamed = f"{parent}.{new}" if parent else new
    assert str(error.value) == f"{file}: {old} is now called {renamed}; rename it"


@pytest.mark.parametrize("file", [*PROFILES, "shipped"], indirect=True)
def test_every_group_of_every_file_is_read(file: Path) -> None:
    content = yaml.safe_load(file.read_text())
    assert content.keys() == {key.split(".")[0] for key in GROUPS} | VALUES.keys()
    for key, kind in GROUPS.items():
        params.group(key, kind, file)  # refuses what is missing, unknown, of another type, or out of range
    for key, value in VALUES.items():
        params.value(key, value, file)


@pytest.mark.parametrize("file", [*PROFILES, "shipped"], indirect=True)
def test_no_shipped_file_asks_for_bf16(file: Path) -> None:
    """Most CPUs emulate bfloat16, some 60 times slower than float32; `auto` takes it where it is fast."""
    content = yaml.safe_load(file.read_text())
    precisions = {name: group["precision"] for name, group in content.items() if isinstance(group, dict) and "precision" in group}
    assert {f"{name}.precision" for name in precisions} == set(prepare.PRECISION_KEYS)
    assert set(precisions.values()) <= {"auto", "fp32"}


@pytest.mark.parametrize("file", [*PROFILES, "shipped"], indirect=True)
def test_rounds_and_refinements_fit(file: Path) -> None:
    content = yaml.safe_load(file.read_text())
    rounds = content["rounds"]
    assert rounds[0] == "r0"
    assert rounds[1:] == [r["to"] for r in content["refine"]]
    assert all(rounds.index(r["from"]) < rounds.index(r["to"]) for r in content["refine"])
    for r in content["refine"]:
        teacher.of_round(params.group("relabel", teacher.Relabel, file), content["refine"], r["to"])
    assert content["final"] == rounds[-1]
    assert content["linear"]["batch"] > 0


def test_the_table_is_what_the_stages_read() -> None:
    read = {}
    for stage in (ROOT / "stages").glob("*.py"):
        for key, kind in re.findall(r'params\.group\("([^"]+)", ([\w.]+)\)', stage.read_text()):
            read[key] = kind.split(".")[-1]
    assert read == {key: kind.__name__ for key, kind in GROUPS.items()}


def test_groups_have_no_defaults() -> None:
    for kind in {*GROUPS.values(), views.Augmentation, croc.CrocClustering}:
        assert all(f.default is MISSING and f.default_factory is MISSING for f in fields(kind))  # type: ignore[arg-type]
        assert kind.__dataclass_params__.frozen  # type: ignore[union-attr]
