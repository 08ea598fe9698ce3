"""What each stage imports before it knows its work: torch takes seconds, torchvision and timm as much again.

A stage is in the first of GROUPS that it may be in; what it imports later, where it is used, is its own affair.
"""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SLOW = ("torch", "torchvision", "timm", "torch._dynamo", "sklearn", "scipy")
BACKBONES = ("evaluate_backbone_kmeans", "evaluate_backbone_linear", "evaluate_backbone_video")
GROUPS: dict[str, tuple[list[str], set[str]]] = {  # stages, and which of SLOW they may import
    "no network": (
        [
            "self_train",
            "aggregate",
            "correct",
            "draw_demo",
            "evaluate_clustering",
            "evaluate_instances",
            "prepare",
            "regroup",
            "report",
        ],
        set(),
    ),
    "K-means": (["choose_k", "cluster"], {"sklearn", "scipy"}),
    "a ResNet": (["detect", "evaluate_linear", "predict", "relabel", "train_detector", "train_segmenter"], {"torch"}),
    "a ViT": (["embed", *BACKBONES, "evaluate_quality", "fetch", "mine", "pretrain", "train_foreground"], set(SLOW)),
}


def test_every_stage_is_in_a_group() -> None:
    known = sorted(name for names, _ in GROUPS.values() for name in names)
    assert known == sorted(p.stem for p in (ROOT / "stages").glob("[!_]*.py"))


@pytest.mark.parametrize("group", [name for name, (_, may) in GROUPS.items() if may != set(SLOW)])
def test_a_stage_imports_no_more_than_it_needs(group: str) -> None:
    names, may = GROUPS[group]
    code = f"import sys; from stages import {', '.join(names)}; print(*[m for m in {SLOW} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) <= may
