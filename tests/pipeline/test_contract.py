"""dvc.yaml tells the truth: a stage's code deps are its script and exactly the folders of unseg/ that it can import."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from conftest import clone
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
BACKBONES = {"evaluate_backbone_kmeans", "evaluate_backbone_linear", "evaluate_backbone_video"}
VIT = {"embed", "fetch", "mine", "pretrain", "train_foreground", "evaluate_quality"} | BACKBONES
SEGMENTER = {"train_segmenter", "predict", "relabel", "evaluate_linear"}  # a ResNet or a ViT
RESNET = {"train_detector", "detect"} | SEGMENTER
MAY = {  # which stages may import what, now or later (tests/test_imports.py: at their start)
    "torch": VIT | RESNET | {"prepare"},
    "timm": VIT | SEGMENTER,
    "torchvision": {"train_detector", "detect", "pretrain", "evaluate_backbone_linear"},
}
NAMES = (
    "${item}",
    "${item.to}",
    "${item.backbone.name}",
    "${item.set.kind}",
    "${item.set.fraction}",
)  # words of commands that are no paths


def path_of(module: str) -> Path | None:
    path = ROOT / (module.replace(".", "/") + ".py")
    return path if path.exists() else None


@cache
def names_in(path: Path) -> list[str]:
    """The modules that a file imports, anywhere in it, and what it imports of them."""
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


def imported(path: Path) -> list[Path]:
    """The first-party modules that a file names."""
    return [p for name in names_in(path) if (p := path_of(name))]


def closure(path: Path, seen: set[str] | None = None) -> set[str]:
    seen = set() if seen is None else seen
    relative = path.relative_to(ROOT).as_posix()
    if relative not in seen:
        seen.add(relative)
        for other in imported(path):
            closure(other, seen)
    return seen


def stages() -> Iterator[object]:
    for file in [ROOT / "dvc.yaml", *ROOT.glob("*/dvc.yaml")]:
        for name, stage in YAML(typ="safe").load(file.read_text())["stages"].items():
            yield pytest.param(stage.get("do", stage), id=name)


def folders(modules: set[str]) -> set[str]:
    """Scripts of stages, and the folders of modules; a folder stands for those in it."""
    found = {name if name.startswith("stages/") else str(Path(name).parent) for name in modules}
    return {name for name in found if not any(name.startswith(f"{other}/") for other in found)}


def modules_of(stage: dict) -> list[Path]:
    return [p for word in stage["cmd"].split()[2:4] if (p := path_of(word))]  # python -m launcher? stage


@pytest.mark.parametrize("stage", list(stages()))
def test_code_deps_are_the_script_and_its_folders(stage):
    want = folders(set().union(*(closure(path) for path in modules_of(stage))))
    assert want
    assert {d for d in stage["deps"] if str(d).startswith(("stages/", "unseg/"))} == want


@pytest.mark.parametrize("stage", list(stages()))
def test_every_path_in_the_command_is_declared(stage):
    outs = [o if isinstance(o, str) else next(iter(o)) for key in ("outs", "metrics") for o in stage.get(key, [])]
    declared = set(stage["deps"]) | set(outs)
    for word in stage["cmd"].split():
        if "/" in word or (word.startswith("${") and word not in NAMES):
            assert any(d == word or d.startswith(f"{word}/") or word.startswith(f"{d}/") for d in declared), word


@pytest.mark.parametrize("stage", list(stages()))
def test_the_command_names_every_parameter_of_main(stage):
    *_, script = modules_of(stage)
    (main,) = (n for n in ast.parse(script.read_text()).body if isinstance(n, ast.FunctionDef) and n.name == "main")
    options = [word for word in stage["cmd"].split() if word.startswith("--")]
    assert options == [f"--{a.arg.replace('_', '-')}" for a in main.args.args]


@pytest.mark.parametrize("package", list(MAY))
def test_who_may_import(package):
    found = {p.stem: {n.split(".")[0] for own in closure(p) for n in names_in(ROOT / own)} for p in ROOT.glob("stages/[!_]*.py")}
    assert {stage for stage, names in found.items() if package in names} == MAY[package]


FOLDERS = (  # imports inside unseg go from a line to lines above it
    ("core",),
    ("engine", "data"),
    ("models",),
    ("pretraining", "mining", "clustering", "detection", "segmentation"),
    ("evaluation",),
    ("report",),
    ("serving",),
)


def test_folders_of_unseg_import_one_way():
    level = {name: number for number, names in enumerate(FOLDERS) for name in names}
    assert set(level) == {p.name for p in (ROOT / "unseg").iterdir() if p.is_dir() and p.name != "__pycache__"}
    for file in (ROOT / "unseg").glob("*/**/*.py"):
        own = file.relative_to(ROOT / "unseg").parts[0]
        for other in {p.relative_to(ROOT / "unseg").parts[0] for p in imported(file)} - {own}:
            assert level[other] < level[own], f"{file} imports {other}"


def test_imports_go_one_way():
    for file in (ROOT / "unseg").rglob("*.py"):
        assert "stages" not in {name.split("/")[0] for name in closure(file)}, file
    for file in (ROOT / "stages").glob("*.py"):
        assert {name for name in closure(file) if name.startswith("stages/")} == {f"stages/{file.name}"}


def test_croc_that_starts_from_itself_is_refused(tmp_path: Path):
    pipe = clone(tmp_path / "repo")
    pipe.set("croc.init", "models/croc.safetensors")
    done = pipe.sh("dvc", "repro")
    assert done.returncode != 0
    assert "both a dependency and an output in stage: models/dvc.yaml:croc" in " ".join((done.stdout + done.stderr).split())
    assert "Running stage" not in done.stdout + done.stderr
