"""unseg fit and unseg profile: what they write, and what they refuse; that DVC then runs is shown by the pipeline's tests."""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image as Pillow
from safetensors.torch import save_file

from unseg.core import params, profiles
from unseg.models import timm_weights, vit
from unseg.models.vit import Shape
from unseg.serving import estimate
from unseg.serving.cli import fit
from unseg.serving.cli.main import main

ROOT = Path(__file__).parents[2]
SHAPE = Shape(patch=14, width=16, depth=2, heads=2)


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `unseg fit` looks at in a clone, and a folder of three photographs beside it."""
    root = tmp_path / "clone"
    (root / "profiles").mkdir(parents=True)
    names = ("base", "folder", "photos", "photos_gpu")
    for name in ("dvc.yaml", "params.yaml", *(f"profiles/{name}.yaml" for name in names)):
        (root / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    subprocess.run(["git", "add", "-A"], cwd=root, check=True)
    who = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    subprocess.run(["git", *who, "commit", "-q", "-m", "all"], cwd=root, check=True)
    (tmp_path / "my photos/sub").mkdir(parents=True)
    for name in ("a.jpg", "sub/b.png", "c d.webp"):
        Pillow.fromarray(np.zeros((20, 20, 3), np.uint8)).save(tmp_path / "my photos" / name)
    monkeypatch.chdir(root)
    monkeypatch.setattr(timm_weights, "is_available", lambda _: False)
    return root


def test_fit_writes_what_one_would_by_hand(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["fit", str(clone.parent / "my photos"), "--no-run", "--set", "croc.epochs=1"]
    main(words)
    assert Path("data/raw/photos").resolve() == clone.parent / "my photos"
    got, profile = yaml.safe_load(Path("params.yaml").read_text()), yaml.safe_load(profiles.render("folder"))
    before, after = params.flatten(profile), params.flatten(got)
    assert {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)} == {
        *("cluster.k", "croc.epochs", "segmenter.epochs", "segmenter.lr_milestone"),
    }
    assert (got["croc"]["epochs"], got["cluster"]["k"]) == (1, 2)
    assert "# " in Path("params.yaml").read_text()  # comments stay
    out = capsys.readouterr().out
    assert "is not on this machine and cannot be fetched, so a small ViT is pre-trained on your photographs" in out
    assert "3 photographs" in out
    main(words)  # again: what it wrote itself is no edit of yours
    Path("params.yaml").write_text(Path("params.yaml").read_text().replace("seed: 0", "seed: 7"))
    with pytest.raises(SystemExit, match=r"params\.yaml has edits of yours"):
        main(words)
    main([*words, "--force"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none"], "none: no such folder"),
        ([".."], r"\.\. holds data/raw/photos; go to a folder outside, or name one that has photographs only"),
        (["profiles"], "profiles has 0 photographs .4 .yaml.; give a folder with more"),
        (["../my photos", "--profile", "none"], "profiles/none.yaml: no such profile; there are folder"),
        (["../my photos", "--weights", "none.pth"], "--weights none.pth: no such file; name a ViT's weights"),
        (["../my photos", "--weights", "dvc.yaml"], "dvc.yaml"),
        (["../my photos", "--set", "croc.nothing=1"], "--set: croc.nothing is not a parameter"),
        (["../my photos", "--set", "croc"], "write it like --set croc.epochs=3"),
    ],
)
def test_fit_refuses_in_one_line(clone: Path, words: list[str], message: str) -> None:
    before = Path("params.yaml").read_bytes()
    with pytest.raises(SystemExit, match=message) as error:
        main(["fit", *words, "--no-run"])
    assert "\n" not in str(error.value)
    assert Path("params.yaml").read_bytes() == before


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A small ViT in DINO's layout."""
    path = tmp_path / "vit.safetensors"
    save_file(vit.build(SHAPE, 28).state_dict(), path)
    return path


def test_fit_takes_the_weights_that_it_is_given(clone: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "has_accelerator", lambda: False)
    main(["fit", "../my photos", "--no-run", "--weights", str(weights)])
    got = yaml.safe_load(Path("params.yaml").read_text())
    assert (got["backbone"]["weights"], got["embedder"]["weights"], got["fetch"]) == (str(weights), str(weights), [])
    assert got["segmenter"]["arch"] == "vit"  # of the profile photos


@pytest.mark.parametrize(("accelerator", "profile"), [(False, "photos"), (True, "photos_gpu")])
def test_fit_fetches_weights_that_can_be_had(
    clone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], accelerator: bool, profile: str
) -> None:
    monkeypatch.setattr(timm_weights, "is_available", lambda _: True)
    monkeypatch.setattr(fit, "has_accelerator", lambda: accelerator)
    main(["fit", "../my photos", "--no-run"])
    assert f"params.yaml is the profile {profile}" in capsys.readouterr().out
    got = yaml.safe_load(Path("params.yaml").read_text())
    assert got["backbone"]["weights"] == f"models/{got['fetch'][0]}.safetensors"


def test_fit_says_how_long_it_takes_before_it_starts(
    clone: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(estimate, "seconds", lambda *_: 130.0)
    monkeypatch.setattr(fit, "repro", lambda: print("repro"))
    main(["fit", "../my photos", "--device", "cpu", "--weights", str(weights)])
    *_, last, repro, _ = capsys.readouterr().out.splitlines()
    assert (last, repro) == ("this will take about 2 minutes on this machine", "repro")


def test_the_estimate_follows_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "speed", lambda: 1e11)
    photos, folder = (yaml.safe_load(profiles.render(name, folder=ROOT / "profiles")) for name in ("photos", "folder"))
    small, large = Shape(14, 384, 12, 6), Shape(14, 768, 12, 12)
    base = estimate.seconds(photos, 100, small)
    assert estimate.seconds(photos, 200, small) > base
    assert 2.5 < estimate.operations(photos, 1000, large) / estimate.operations(photos, 1000, small) < 4  # twice as wide
    assert estimate.operations(folder, 100, small) > estimate.operations(folder | {"backbone": {"weights": "x"}}, 100, small)


def test_the_shape_of_a_vit_that_is_not_there_yet(weights: Path) -> None:
    def shape(file: str) -> Shape:
        return estimate.shape_of(vit.Backbone(file, None, None, None, None))

    assert shape("models/timm/vit_small_patch14_reg4_dinov2.lvd142m.safetensors") == Shape(14, 384, 12, 6)
    assert shape(str(weights)) == Shape(14, 16, 2, 1)  # such a file does not say its heads
    assert estimate.shape_of(vit.Backbone("models/croc.safetensors", 8, 192, 4, 3)) == Shape(8, 192, 4, 3)


def test_speed_is_that_of_a_matrix_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNSEG_DEVICE", "cpu")
    assert 1e8 < estimate.speed() < 1e14
    assert torch.get_default_dtype() == torch.float32


def test_fit_hands_the_device_to_the_stages(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNSEG_DEVICE", "cpu")
    seen = []
    monkeypatch.setattr(fit, "has_accelerator", lambda: seen.append(os.environ["UNSEG_DEVICE"]) or False)
    monkeypatch.setattr(estimate, "speed", lambda: 1e11)  # there is no such device here
    main(["fit", "../my photos", "--no-run", "--device", "mps"])
    assert seen == ["mps"]


def test_profile_writes_params(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["profile", "folder"])
    assert Path("params.yaml").read_text() == profiles.render("folder")
    assert "next: dvc repro" in capsys.readouterr().out
    Path("params.yaml").write_text(Path("params.yaml").read_text().replace("seed: 0", "seed: 7"))
    with pytest.raises(SystemExit, match=r"params\.yaml has edits of yours; commit or copy it, then use --force"):
        main(["profile", "folder"])
    assert "seed: 7" in Path("params.yaml").read_text()
    main(["profile", "folder", "--force"])
    assert "seed: 0" in Path("params.yaml").read_text()
    with pytest.raises(SystemExit, match="no such profile; there are folder"):
        main(["profile", "../folder"])


def test_sizes_follow_the_photographs_and_the_machine() -> None:
    profile = yaml.safe_load(profiles.render("folder", folder=ROOT / "profiles"))
    few, many = fit.sizes(profile, 120, False), fit.sizes(profile, 20000, False)
    assert few["croc.epochs"] > profile["croc"]["epochs"] > many["croc.epochs"] >= 1
    assert "cluster.k" not in many
    assert fit.sizes(profile, 40, True) == {"cluster.k": 5}
    photos = yaml.safe_load(profiles.render("photos", folder=ROOT / "profiles"))
    few = fit.sizes(photos, 24, False)
    assert few["cluster.neighbors"] == 12
    assert few["segmenter.epochs"] > fit.sizes(photos, 2000, False)["segmenter.epochs"]
    assert not any(key.startswith("croc") for key in few)
    assert "cluster.neighbors" not in fit.sizes(photos, 31, True)


@pytest.fixture
def elsewhere(clone: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory beside the photographs."""
    (clone.parent / "elsewhere").mkdir()
    monkeypatch.chdir(clone.parent / "elsewhere")
    return clone.parent / "elsewhere"


def fitted(root: Path) -> dict[str, object]:
    """params.yaml of a project on the photographs beside it."""
    assert (root / "data/raw/photos").resolve() == root.parents[root.parent.name == "elsewhere"].resolve() / "my photos"
    assert (root / ".unseg/core").exists()
    content: dict[str, object] = yaml.safe_load((root / "params.yaml").read_text())
    return content


def test_fit_makes_a_project_of_an_empty_folder(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", "../my photos", "--no-run"])
    assert f"project in {elsewhere}" in capsys.readouterr().out
    assert fitted(elsewhere)["seed"] == 0
    (elsewhere / "notes.txt").touch()
    main(["fit", "../my photos", "--no-run", "--set", "seed=3"])  # again: the same project
    assert fitted(elsewhere)["seed"] == 3
    assert "project in" not in capsys.readouterr().out


def test_fit_makes_a_project_beside_other_files(
    elsewhere: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (elsewhere / "notes.txt").touch()
    monkeypatch.setattr(fit, "has_accelerator", lambda: False)
    monkeypatch.setattr(fit, "repro", lambda: print(f"repro in {Path.cwd().name}"))
    words = ["fit", "../my photos", "--weights", f"../{weights.name}"]
    main(words)
    out = capsys.readouterr().out
    assert "repro in unseg-my photos" in out
    assert "next: cd 'unseg-my photos', unseg clusters" in out
    assert fitted(elsewhere / "unseg-my photos")["backbone"]["weights"] == str(weights.resolve())  # type: ignore[index]
    assert Path.cwd() == elsewhere
    main(words)
    assert sorted(p.name for p in elsewhere.iterdir()) == ["notes.txt", "unseg-my photos"]


def test_fit_says_what_an_upgrade_changed(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", "../my photos", "--no-run"])
    Path(".unseg/mining").write_text("of an older unseg\n")
    assert "has changed" not in capsys.readouterr().out
    main(["fit", "../my photos", "--no-run"])
    assert "unseg has changed in mining: the stages that use it will run again\n" in capsys.readouterr().out
    Path(".unseg/files").write_text(Path(".unseg/files").read_text().split("\n", 1)[1])
    main(["fit", "../my photos", "--no-run"])
    out = capsys.readouterr().out
    assert "are not those of the installed unseg; `unseg init --upgrade` renews them" in out
    assert "has changed" not in out


@pytest.mark.parametrize(
    ("at", "words", "message"),
    [
        ("my photos", ["."], r"\. holds unseg-my photos/data/raw/photos; go to a folder outside"),
        ("my photos/empty", [".."], r"\.\. holds data/raw/photos; go to a folder outside"),
        ("full", ["../my photos"], "unseg-my photos is not empty; name a new folder"),
        ("full", ["../none"], "none: no such folder"),
        ("empty", ["../my photos", "--profile", "none"], "none.yaml: no such profile; there are coco20k"),
        ("empty", ["../my photos", "--set", "croc.nothing=1"], "--set: croc.nothing is not a parameter"),
        ("empty", ["../my photos", "--weights", "none.pth"], "--weights none.pth: no such file"),
    ],
)
def test_fit_lays_nothing_out_for_bad_input(
    clone: Path, monkeypatch: pytest.MonkeyPatch, at: str, words: list[str], message: str
) -> None:
    around = clone.parent
    for folder in ("my photos/empty", "empty", "full/unseg-my photos"):
        (around / folder).mkdir(parents=True)
    (around / "full/unseg-my photos/notes.txt").touch()
    before = sorted(around.rglob("*"))
    monkeypatch.chdir(around / at)
    with pytest.raises(SystemExit, match=message) as error:
        main(["fit", *words, "--no-run"])
    assert "\n" not in str(error.value)
    assert sorted(around.rglob("*")) == before


def test_fit_takes_no_project_of_other_photographs(elsewhere: Path) -> None:
    (elsewhere / "notes.txt").touch()
    shutil.copytree("../my photos", "../other/my photos")
    main(["fit", "../my photos", "--no-run"])
    with pytest.raises(SystemExit, match=r"unseg-my photos is the project of .*; run `unseg fit` in it, or in an empty folder"):
        main(["fit", "../other/my photos", "--no-run"])
    fitted(elsewhere / "unseg-my photos")


def test_fit_needs_no_git(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    main(["fit", "../my photos", "--no-run"])
    main(["fit", "../my photos", "--no-run"])
    fitted(elsewhere)
