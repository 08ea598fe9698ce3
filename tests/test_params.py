"""params.yaml and the profiles, and how they are read (unseg/core/params.py)."""

import re
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

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
from unseg.mining import affinity, crops
from unseg.models import vit
from unseg.pretraining import croc, croc_training, views
from unseg.report import page
from unseg.segmentation import crf, pseudo_labels, segmenter

ROOT = Path(__file__).parents[1]
PROFILES = profiles.names(ROOT / "profiles")
GROUPS: dict[str, type] = {
    "data": readers.Data,
    "demo": demo.Demo,
    "backbone": vit.Backbone,
    "embedder": vit.Backbone,
    "croc": croc_training.Croc,
    "mine": affinity.Mining,
    "embed": crops.Embedding,
    "cluster": algorithms.Clustering,
    "detector": settings.Detector,
    "detect": settings.Detect,
    "adopt": self_training.SelfTraining,
    "aggregate": pseudo_labels.Aggregation,
    "segmenter": segmenter.Segmenter,
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
VALUES: dict[str, type] = {"seed": int, "fetch": list, "regroup": list, "rounds": list, "refine": list, "final": str}
VALUES |= {"retrain": list, "detections": str, "backbones": list, "sets": list, "videos": list}


@dataclass(frozen=True)
class Inner:
    size: int
    share: float

    def __post_init__(self) -> None:
        if self.share > 1:
            raise ValueError(f"outer.inner.share is {self.share}; it must be at most 1")


@dataclass(frozen=True)
class Outer:
    name: str
    on: bool
    rate: float
    sizes: list[int]
    init: str | None
    inner: Inner


GOOD: dict[str, Any] = {"name": "a", "on": True, "rate": 0.5, "sizes": [1, 2], "init": None, "inner": {"size": 3, "share": 1}}


def written(folder: Path, content: Any) -> Path:
    file = folder / "params.yaml"
    file.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return file


def refused(folder: Path, key: str, kind: type, content: Any) -> str:
    """The message, without the file's name, of reading content's `key` as kind."""
    file = written(folder, content)
    with pytest.raises(InputError) as error:
        params.group(key, kind, file) if hasattr(kind, "__dataclass_fields__") else params.value(key, kind, file)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"{file}")
    return str(error.value).removeprefix(f"{file}").removeprefix(": ")


# ---- the files that are shipped


@pytest.fixture
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The shipped params.yaml, or the one that a profile makes."""
    if request.param == "shipped":
        return ROOT / "params.yaml"
    return written(tmp_path, profiles.render(request.param, folder=ROOT / "profiles"))


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


def small_profiles(folder: Path, **files: str) -> Path:
    (folder / "base.yaml").write_text(
        "# Base.\n\nseed: 0\n\ngroup:               # a group\n  rate: 0.5   # of what\n  names: [a, b]\n"
    )
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


def test_a_profile_by_hand(tmp_path: Path) -> None:
    folder = small_profiles(
        tmp_path, one="# One.\n\ngroup: {rate: 2}  # fast\n", two="# Two.\nextends: one\ngroup: {names: [c]}\n"
    )
    wrote = "#\n# `unseg profile {}` wrote this file; (base: X) is base.yaml's value of a changed number.\n"
    body = "\nseed: 0\n\ngroup:               # a group\n  rate: 2                         # of what (base: 0.5)\n  names: "
    assert profiles.render("one", folder=folder) == f"# One.\n{wrote.format('one')}{body}[a, b]\n"
    assert profiles.render("two", folder=folder) == f"# Two.\n{wrote.format('two')}{body}[c]\n"
    assert yaml.safe_load(profiles.render("two", {"seed": 3}, folder))["seed"] == 3


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("none", {}, r"none.yaml: no such profile; there are bad, knot, other, text"),
        ("../one", {}, r"no such profile"),
        ("bad", {}, r"bad.yaml: group.rat is not a parameter; .*base.yaml lists them all"),
        ("knot", {}, r"knot.yaml: knot extends other extends knot; remove one `extends`"),
        ("text", {}, r"text.yaml holds no parameters"),
        ("other", {"group.x": 1}, r"knot extends"),
    ],
)
def test_profiles_that_cannot_be_used(tmp_path: Path, name: str, changes: dict[str, Any], message: str) -> None:
    texts = {"bad": "group: {rat: 1}", "knot": "extends: other", "other": "extends: knot", "text": "just text"}
    with pytest.raises(InputError, match=message):
        profiles.render(name, changes, small_profiles(tmp_path, **texts))


@pytest.mark.parametrize(("old", "new"), params.RENAMED.items())
def test_an_earlier_name_is_answered_by_the_new_one(tmp_path: Path, old: str, new: str) -> None:
    group, *path = old.split(".")
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    node = content[group]
    for part in path[:-1]:
        node = node[part]
    node[path[-1]] = node.pop(new)
    kind = GROUPS[group]
    assert refused(tmp_path, group, kind, content) == f"{old} is now called {old.rsplit('.', 1)[0]}.{new}; rename it"


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
    assert all(r.keys() == {"from", "to"} and rounds.index(r["from"]) < rounds.index(r["to"]) for r in content["refine"])
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


# ---- reading


def test_a_group_with_all_that_a_group_can_hold(tmp_path: Path) -> None:
    file = written(tmp_path, {"outer": GOOD})
    group = params.group("outer", Outer, file)
    assert group == Outer("a", True, 0.5, [1, 2], None, Inner(3, 1.0))
    assert isinstance(group.inner.share, float)  # an int is a float too
    assert params.group("outer", Outer, written(tmp_path, {"outer": GOOD | {"init": "x"}})).init == "x"
    assert params.value("outer.inner.size", int, file) == 3
    assert params.group("outer.inner", Inner, file) == Inner(3, 1.0)


def test_the_default_file_is_the_one_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"params\.yaml: no such file; run from the root of the repository"):
        params.value("seed", int)
    written(tmp_path, {"seed": 3})
    assert params.value("seed", int) == 3


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"name": 3}, "outer.name is 3; it must be str"),
        ({"on": 1}, "outer.on is 1; it must be bool"),
        ({"on": "yes"}, "outer.on is 'yes'; it must be bool"),
        ({"rate": True}, "outer.rate is True; it must be float"),
        ({"rate": "0.5"}, "outer.rate is '0.5'; it must be float"),
        ({"rate": None}, "outer.rate is None; it must be float"),
        ({"sizes": 3}, "outer.sizes is 3; it must be list[int]"),
        ({"sizes": [1, 2.5]}, "outer.sizes[1] is 2.5; it must be int"),
        ({"sizes": [True]}, "outer.sizes[0] is True; it must be int"),
        ({"init": 3}, "outer.init is 3; it must be str"),
        ({"inner": 3}, "outer.inner is 3; it must be Inner"),
        ({"inner": {"size": 3}}, "outer.inner.share is missing; profiles/base.yaml has every key"),
        ({"inner": {"size": 3, "share": 1, "x": 0}}, "outer.inner.x is not a parameter; outer.inner has size, share"),
        ({"inner": {"size": 3, "share": 2.5}}, "outer.inner.share is 2.5; it must be at most 1"),
        ({"inner": {"size": 3.0, "share": 1}}, "outer.inner.size is 3.0; it must be int"),
        ({"more": 1}, "outer.more is not a parameter; outer has name, on, rate, sizes, init, inner"),
    ],
)
def test_what_a_group_refuses(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    assert refused(tmp_path, "outer", Outer, {"outer": GOOD | changed}) == message


@pytest.mark.parametrize("key", list(GOOD))
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    content = {"outer": {k: v for k, v in GOOD.items() if k != key}}
    assert refused(tmp_path, "outer", Outer, content) == f"outer.{key} is missing; profiles/base.yaml has every key"


@pytest.mark.parametrize("number", ["1e-3", "1.0e-3", "1e-03", "0.001"])
def test_a_number_may_be_written_as_dvc_writes_it(tmp_path: Path, number: str) -> None:
    text = yaml.safe_dump({"outer": GOOD}).replace("rate: 0.5", f"rate: {number}")
    assert params.group("outer", Outer, written(tmp_path, text)).rate == 0.001


@pytest.mark.parametrize(
    ("key", "content", "message"),
    [
        ("cluster.k", {"cluster": {}}, "cluster.k is missing"),
        ("cluster.k", {"cluster": 3}, "cluster.k is missing"),
        ("cluster.k", {}, "cluster.k is missing"),
        ("cluster.k", "", "cluster.k is missing"),
        ("cluster.k", {"cluster": {"k": "8"}}, "cluster.k is '8'; it must be int"),
        ("cluster.k", {"cluster": {"k": False}}, "cluster.k is False; it must be int"),
        ("cluster.k", "cluster: [1", " is not YAML: while parsing a flow sequence"),
        ("cluster.k", "cluster: {k: 1", " is not YAML: "),
    ],
)
def test_what_a_value_refuses(tmp_path: Path, key: str, content: Any, message: str) -> None:
    assert refused(tmp_path, key, int, content).startswith(message)


def test_a_group_that_is_no_group(tmp_path: Path) -> None:
    assert refused(tmp_path, "outer", Outer, {"outer": 3}) == "outer is 3; it must be dict"


def test_a_file_in_another_encoding(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_bytes("name: Ä".encode("latin-1"))
    with pytest.raises(InputError, match="is not YAML"):
        params.value("name", str, file)
