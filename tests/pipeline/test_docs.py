"""Every command of docs/ is run, on the toy run.

What takes hours is run as far as it can be in a test: `dvc repro` with --dry, `unseg fit` with --no-run (the other tests of the
pipeline run DVC for real), `pytest` not at all. Everything else is run as it is written.
"""

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, Pipeline
from PIL import Image as Pillow

from unseg.cli.main import main

ELSEWHERE = {"pytest", "git", "pip"}  # run by CI itself


def blocks(page: str, kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def commands(page: str) -> list[str]:
    lines = [line.split("  #")[0].strip() for block in blocks(page, "sh") for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


@pytest.fixture
def home(pipe: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home with the photographs that the docs speak of; the working directory is a finished toy run."""
    home = tmp_path / "home"
    drawn = sorted((pipe.root / "data/raw/demo/images").glob("*.png"))[:3]
    for folder in ("pictures/holiday 1", "new"):
        (home / folder).mkdir(parents=True)
        for photo in drawn:
            Pillow.open(photo).save(home / folder / f"{photo.stem}.jpg")
    shutil.copy(drawn[0], home / "new/photo.jpg")
    few = pipe.root / "few"
    for part in ("photos", "masks"):
        (few / part).mkdir(parents=True)
    for photo in drawn:
        shutil.copy(photo, few / "photos")
        pixels = np.asarray(Pillow.open(photo))
        Pillow.fromarray((pixels.mean(2) > pixels.mean()).astype(np.uint8)).save(few / f"masks/{photo.stem}.png")
    (few / "masks/classes.txt").write_text("background\nbright\n")
    (pipe.root.parent / "another-run").symlink_to(pipe.root)
    shutil.copy(home / "new/photo.jpg", pipe.root)
    for key, value in {**pipe.env, "HOME": str(home), "UNSEG_DEVICE": "cpu"}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.chdir(pipe.root)
    return home


def follow(command: str) -> None:
    """Run a line as it is written, or as the module's docstring says."""
    words = [os.path.expanduser(w) for w in shlex.split(command)]
    if "--onnx" in words:
        return  # test_verbs.py runs it, in ten seconds
    if words[0] == "unseg":
        main([*words[1:], *(["--no-run", "--force"] if words[1] == "fit" else [])])
    elif words[0] == "ln" and (words[-1] == "data/raw/photos" or words[2].startswith("/data")):
        Path(words[-1]).unlink(missing_ok=True)
        os.symlink(words[2], words[-1])
    elif words[:2] == ["dvc", "repro"]:
        done = subprocess.run(["dvc", "repro", "--dry"], capture_output=True, text=True)
        assert done.returncode == 0 or "No such file" in done.stderr, done.stderr  # what a dry run did not make, or VOC
    elif words[:2] == ["dvc", "exp"]:
        pass  # test_share.py runs it
    elif words[0] not in ELSEWHERE:
        done = subprocess.run(words, capture_output=True, text=True)
        assert done.returncode == 0, (command, done.stderr)


@pytest.mark.slow
def test_my_own_folder(home: Path) -> None:
    lines = commands("docs/folder.md")
    assert len(lines) >= 13
    shipped = Path("params.yaml").read_bytes()
    for line in lines:
        follow(line)
        if line in ("dvc repro", "unseg fit ~/pictures"):
            Path("params.yaml").write_bytes(shipped)  # back to the finished toy run
    for made in (
        "results/clusters.html",
        "out/predictions.json",
        "out-mine/summary.tsv",
        "voted.yaml",
        "compare.html",
    ):
        assert Path(made).stat().st_size, made
    assert "dog" in Path("clusters.yaml").read_text()
    (code,) = blocks("docs/folder.md", "python")
    exec(compile(code, "docs/folder.md", "exec"), {})
    assert Path("overlay.png").stat().st_size
    assert Path("labels.png").stat().st_size


@pytest.mark.slow
@pytest.mark.parametrize("page", ["docs/papers.md", "docs/method.md"])
def test_the_other_readers(home: Path, page: str) -> None:
    lines = commands(page)
    assert len(lines) >= 5
    shipped = Path("params.yaml").read_bytes()
    for line in lines:
        follow(line)
        if line == "dvc repro":
            Path("params.yaml").write_bytes(shipped)  # back to the finished toy run
