"""Each stage, alone in a folder that holds what dvc.yaml says it needs and no more, makes what it says it makes."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from dvc.repo import Repo
from ruamel.yaml import YAML


def plant(tree: dict, dotted: str, source: dict) -> None:
    *head, last = dotted.split(".")
    for part in head:
        tree, source = tree.setdefault(part, {}), source[part]
    tree[last] = source[last]


def resolved(root: Path) -> Iterator[tuple[str, str, list, list[str]]]:
    with Repo(str(root)) as repo:
        for stage in repo.index.stages:
            if getattr(stage, "cmd", None):
                yield stage.addressing, stage.cmd, list(stage.deps), [o.fs_path for o in stage.outs]


def test_every_stage_is_hermetic(warm, tmp_path):
    params = YAML(typ="safe").load((warm.root / "params.yaml").read_text())
    broken = {}
    for i, (name, command, deps, outs) in enumerate(resolved(warm.root)):
        box = tmp_path / str(i)
        box.mkdir()
        kept: dict = {}
        for dep in deps:
            if dep.hash_name == "params":
                for key in dep.params:
                    plant(kept, key, params)
                continue
            source = Path(dep.fs_path)
            target = box / source.relative_to(warm.root)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(source, target, dirs_exist_ok=True) if source.is_dir() else shutil.copy(source, target)
        with (box / "params.yaml").open("w") as file:
            YAML().dump(kept, file)
        before = {p for p in box.rglob("*") if p.is_file()}
        done = subprocess.run(command, shell=True, cwd=box, capture_output=True, text=True, env=warm.env)
        made = {p for p in box.rglob("*") if p.is_file()} - before
        allowed = [box / Path(o).relative_to(warm.root) for o in outs]
        stray = {p for p in made if not any(p == a or a in p.parents for a in allowed)}
        missing = [a for a in allowed if not a.exists()]
        if done.returncode or stray or missing:
            broken[name] = (done.stderr[-300:], stray, missing)
    assert not broken
    assert os.listdir(tmp_path)
