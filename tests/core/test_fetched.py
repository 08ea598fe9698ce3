"""Official weights that are named but not fetched (unseg/core/fetched.py)."""

from pathlib import Path

import pytest

from unseg.core import fetched
from unseg.core.console import InputError

TIMM = "timm/vit_small_patch14_reg4_dinov2.lvd142m"


@pytest.mark.parametrize("name", [TIMM, "dino_vits16", "moco_resnet50"])
@pytest.mark.parametrize("key", ["backbone.weights", "embedder.weights", "segmenter.init"])
def test_weights_that_fetch_does_not_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    file = f"models/{name}.safetensors"
    with pytest.raises(InputError) as raised:
        fetched.check_listed({"detector.init": "models/fresh", key: file}, ["dino_vits8"])
    said = f"params.yaml: {key} is {file}: no such file; add {name} to fetch, and `dvc repro` makes it"
    assert str(raised.value) == said
    fetched.check_listed({key: file}, ["dino_vits8", name])
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).touch()  # put there by hand
    fetched.check_listed({key: file}, [])


def test_other_files_are_not_official(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for file in ("models/fresh", "models/croc.safetensors", "models/mine.safetensors", "/data/timm/x.safetensors", "x.pth"):
        fetched.check_listed({"backbone.weights": file}, [])


def test_the_start_of_croc_counts_where_croc_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    init = {"croc.init": "models/dino_vits16.safetensors"}
    fetched.check_listed({"backbone.weights": "models/fresh", **init}, [])
    with pytest.raises(InputError, match=r"croc\.init is models/dino_vits16\.safetensors: .* add dino_vits16 to fetch"):
        fetched.check_listed({"embedder.weights": "models/croc.safetensors", **init}, [])
