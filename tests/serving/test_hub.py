"""unseg push and unseg.load("hf://..."): against a hub on this machine, and by a folder; what is refused writes nothing."""

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import factories
import fake_hub
import huggingface_hub
import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard, constants
from PIL import Image as Pillow
from safetensors.torch import save_file

import unseg
from unseg.core import storage
from unseg.core.console import InputError
from unseg.core.image_index import ImageRecord
from unseg.detection import detector
from unseg.detection.settings import Detector
from unseg.segmentation import segmenter
from unseg.serving.cli.main import main
from unseg.serving.hub import card, repository
from unseg.serving.hub.card import UNKNOWN, Weights

SHAPE: dict[str, Any] = {"arch": "resnet18", "width": 4, "stride": 8, "rates": [1, 2, 4], "labels": 5}
WEIGHTS = "models/timm/vit_tiny.a.safetensors"
CONTENT = {"README.md", "clusters.yaml", "config.json", "model.safetensors"}
SHEETS = {"pictures/contact-eval.png", "pictures/clusters.png"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command reads of a finished run of K = 4, with photographs and weights whose names are nobody's business."""
    root = tmp_path_factory.mktemp("finished")
    values = factories.demo_params()
    values = {**values, "data": {**values["data"], "kind": "folder", "root": "/home/jane/secret"}}
    values |= {"backbone": {**values["backbone"], "weights": WEIGHTS}}
    values |= {"embedder": {**values["embedder"], "weights": "/home/jane/secret.pth"}, "final": "r1"}
    values |= {"segmenter": {**values["segmenter"], "init": "secret"}, "predict": {**values["predict"], "input": "square"}}
    (root / "params.yaml").write_text(yaml.safe_dump(values))
    (root / "clusters.yaml").write_text("# secret\nclusters: {0: {name: 'dog | <b>'}, 1: {merge: 0}, 3: {ignore: true}}\n")
    torch.manual_seed(3)
    net = segmenter.DeepLab(**SHAPE)
    with torch.no_grad():
        net.head[-1].weight *= 30  # type: ignore[operator]
    (root / "models/timm").mkdir(parents=True)
    segmenter.write_segmenter(root / "models/segmenter-r1.safetensors", net, SHAPE, 32, "fp32")
    p = factories.group("detector", Detector, width=8, fpn=16, hidden=16)
    detector.save(root / "models/detector.safetensors", detector.backend(p).build(p, 4), p, 4)
    about = {
        "kind": "vit",
        "name": "timm/vit_tiny.a",
        "license": "cc-by-nc-4.0",
        "source": "https://huggingface.co/timm/vit_tiny.a",
    }
    save_file({"x": torch.zeros(1)}, root / WEIGHTS, {"unseg": json.dumps(about)})
    records = [ImageRecord(i, f"secret {i}.jpg", 40, 50, split) for i, split in enumerate(("both", "train", "val"), 1)]
    storage.write_json(root / "data/images.json", {"images": [vars(i) for i in records]})
    storage.write_json(root / "data/instances.json", {"categories": [{"id": k} for k in range(4)], "annotations": []})
    storage.write_zip(root / "data/predictions/r1.zip", [])
    storage.write_zip(root / "data/predictions/masks.zip", [])
    protocol = {"number": "miou", "protocol": "mean IoU over toys"}
    scores = {"miou": 0.4321, "pixel_accuracy": 0.75, "images": 2, "classes": 3, "protocols": [protocol]}
    storage.write_json(root / "results/details/clustering/r1/scores.json", scores)
    storage.write_json(root / "results/quality.json", {"mask_flip": 0.875, "mask_missing": 0.0})
    for name in SHEETS:
        (root / "results/pictures").mkdir(exist_ok=True)
        Pillow.new("RGB", (8, 8)).save(root / "results" / name)
    lock(root)
    return root


def lock(root: Path) -> None:
    """dvc.lock, as far as `card.check_finished` reads it."""

    def paths(*names: str) -> list[dict[str, str]]:
        return [{"path": name, "md5": card.dvc_md5(root / name)} for name in names]

    predictions = "data/predictions/r1.zip"
    stages = {
        "predict@r1": {"deps": paths("models/segmenter-r1.safetensors"), "outs": paths(predictions)},
        "evaluate_clustering": {"deps": paths("data/predictions"), "outs": paths("results/details/clustering")},
        "evaluate_quality": {"deps": paths(predictions), "outs": paths("results/quality.json")},
    }
    (root / "dvc.lock").write_text(yaml.safe_dump({"stages": stages}))


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[fake_hub.FakeHub]:
    """huggingface_hub speaks to a hub on this machine, logged in as jane, with an empty cache."""
    with fake_hub.serve() as server:
        monkeypatch.setenv("UNSEG_DEVICE", "cpu")
        monkeypatch.setenv("HF_TOKEN", fake_hub.TOKEN)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        speak_to(server.url, monkeypatch)
        yield server
        huggingface_hub.utils.close_session()


def speak_to(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT does, which is read on import."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}")


def push(run: Path, *words: str) -> None:
    main(["push", "jane/toys", "--run", str(run), *words])


def refused(words: list[Any], message: str) -> None:
    with pytest.raises(SystemExit) as error:
        main([str(w) for w in words])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def written(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def photo() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)


def same(model: unseg.Predictor, run: Path) -> None:
    """The model answers as the run's own with the run's clusters.yaml."""
    own = unseg.load(run / "models/segmenter-r1.safetensors", run / "clusters.yaml")
    assert (model.names, model.input_size) == (own.names, own.input_size)
    assert model.input_size == "square"
    np.testing.assert_array_equal(model.colours, own.colours)
    got, want = model.predict(photo()), own.predict(photo())
    assert len(np.unique(want.labels)) > 1
    np.testing.assert_array_equal(got.labels, want.labels)


# ---- the card


def test_the_card_has_the_runs_numbers_and_none_of_its_paths(run: Path, tmp_path: Path) -> None:
    push(run, "--to", str(tmp_path / "out"))
    text = (tmp_path / "out/README.md").read_text()
    read = ModelCard.load(tmp_path / "out/README.md")  # the hub's own parser, without ignored errors
    assert (read.data.library_name, read.data.pipeline_tag) == ("unseg", "image-segmentation")
    assert read.data.license == ["cc-by-nc-4.0", UNKNOWN]
    assert [(e.metric_type, e.metric_value) for e in read.data.eval_results] == [("mean_iou", 0.4321), ("accuracy", 0.75)]
    for part in ("| mIoU | 43.2 % |", "| pixel accuracy | 75.0 % |", "Mean IoU over toys.", "same mask when mirrored | 87.5 %",
                 "2 photographs for training, 2 for evaluation, 1 of them for both", r"| 1 | dog \| \<b\> | `#", "K = 6",
                 "merges 1 into others and ignores 1", r"timm/vit\_tiny.a", 'unseg.load("hf://jane/toys")',
                 "![Masks of each cluster](pictures/clusters.png)"):  # fmt: skip
        assert part in text, part
    everything = b"".join((tmp_path / "out" / name).read_bytes() for name in CONTENT)
    for private in (b"secret", b"/home", str(run).encode()):
        assert private not in everything
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["params"]["backbone"]["weights"] == WEIGHTS
    assert config["params"]["embedder"]["weights"] is None
    assert config["params"]["segmenter"]["init"] is None
    assert "data" not in config["params"]


def test_a_model_of_corrected_labels_says_so(run: Path, tmp_path: Path) -> None:
    values = yaml.safe_load((run / "params.yaml").read_text()) | {"corrections": [{"from": "r0", "file": "c.zip", "to": "r1"}]}
    push(run, "--to", str(tmp_path / "before"))
    (run / "params.yaml").write_text(yaml.safe_dump(values))
    push(run, "--to", str(tmp_path / "after"))
    before, after = ((tmp_path / name / "README.md").read_text() for name in ("before", "after"))
    assert "without labels, by" in before
    assert "labels that people corrected, by" in after
    assert ("- unsupervised" in before, "- unsupervised" in after) == (True, False)


def test_other_parameters_than_the_run_had_are_refused(run: Path, tmp_path: Path) -> None:
    values = yaml.safe_load((run / "params.yaml").read_text())
    content = yaml.safe_load((run / "dvc.lock").read_text())
    ran = {"params.yaml": {"segmenter": values["segmenter"], "cluster.k": values["cluster"]["k"]}}
    content["stages"]["train_segmenter@r1"] = {"params": ran}
    (run / "dvc.lock").write_text(yaml.safe_dump(content))
    push(run, "--to", str(tmp_path / "same"))
    values["segmenter"]["epochs"] += 1
    (run / "params.yaml").write_text(yaml.safe_dump(values))
    words = ["push", "jane/toys", "--run", run, "--to", tmp_path / "other"]
    refused(words, "segmenter is not what the stage train_segmenter@r1 ran with (dvc.lock)")
    assert not (tmp_path / "other").exists()


def test_without_truth_there_is_no_score(run: Path, tmp_path: Path) -> None:
    storage.write_json(run / "results/details/clustering/r1/scores.json", {"images": 0, "needs": "ground truth"})
    lock(run)
    push(run, "--to", str(tmp_path / "out"), "--no-pictures")
    text = (tmp_path / "out/README.md").read_text()
    assert "the run had no ground truth" in text
    assert "mIoU" not in text
    assert "## Pictures" not in text
    assert ModelCard(text).data.eval_results is None
    assert written(tmp_path / "out") == CONTENT


@pytest.mark.parametrize(
    ("licences", "given", "fields"),
    [
        ([], None, {}),
        ([None], None, {}),
        ([None], "mit", {"license": "mit"}),
        (["apache-2.0", None], None, {"license": "apache-2.0"}),
        (["apache-2.0", "mit"], None, {"license": ["apache-2.0", "mit"]}),
        ([UNKNOWN], None, {"license": UNKNOWN}),
        ([UNKNOWN, "cc-by-nc-4.0"], "mit", {"license": ["cc-by-nc-4.0", "mit"]}),
        (["dinov3-license"], None, {"license": "other", "license_name": "dinov3-license"}),
    ],
)
def test_the_licence_is_that_of_the_weights(licences: list[str | None], given: str | None, fields: dict[str, Any]) -> None:
    weights = [Weights("w", "backbone", "s", licence) for licence in licences]
    assert card.licence_fields(card.licences(weights, given)) == fields


def test_a_licence_is_not_replaced() -> None:
    with pytest.raises(InputError, match=r"--license mit: .* weights under cc-by-nc-4\.0; leave it out"):
        card.licences([Weights("w", "backbone", "s", "cc-by-nc-4.0")], "mit")


# ---- folder


def test_a_folder_is_loaded_as_the_run_is(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    push(run, "--to", str(out), "--detector")
    assert "pictures/clusters.png show photographs of the run; --no-pictures leaves them out" in capsys.readouterr().err
    assert written(out) == CONTENT | SHEETS | {"detector.safetensors"}
    assert (out / "model.safetensors").read_bytes() == (run / "models/segmenter-r1.safetensors").read_bytes()
    same(unseg.load(out), run)
    assert unseg.load(out).detector is None
    found = unseg.load(str(out), detector_path=True).detector
    assert found is not None
    assert (found.k, found.q.short_side) == (4, factories.demo_params()["detect"]["short_side"])
    Pillow.fromarray(photo()).save(tmp_path / "a.png")
    main(["predict", str(tmp_path / "a.png"), "-o", str(tmp_path / "p"), "--model", str(out), "--instances"])
    assert (tmp_path / "p/instances.json").is_file()


# ---- hub


def test_what_is_pushed_is_loaded_and_stays_in_the_cache(
    run: Path, hub: fake_hub.FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    push(run, "--pictures", "--detector")
    first, files = next(iter(hub.repos["jane/toys"].commits.items()))
    assert set(files) == CONTENT | SHEETS | {"detector.safetensors"}
    assert f"{hub.url}/jane/toys/commit/{first}" in capsys.readouterr().out
    same(unseg.load("hf://jane/toys"), run)
    assert not any("detector" in line or "README" in line or "png" in line for line in hub.requests if "resolve" in line)
    # the next push takes pictures and detector away, and the first revision still has its own names
    (run / "clusters.yaml").write_text("clusters: {0: {name: cat}}\n")
    push(run, "--no-pictures")
    assert set(list(hub.repos["jane/toys"].commits.values())[1]) == CONTENT
    assert unseg.load("hf://jane/toys").names[1] == "cat"
    assert unseg.load(f"hf://jane/toys@{first}").names[1] == "dog | <b>"
    with pytest.raises(InputError, match=r"hf://jane/toys has no detector; .* push it again with --detector"):
        unseg.load("hf://jane/toys", detector_path=True)
    Pillow.fromarray(photo()).save(tmp_path / "a.png")
    asked = len(hub.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.utils.close_session()
    main(["predict", str(tmp_path / "a.png"), "-o", str(tmp_path / "p"), "--model", "hf://jane/toys"])
    assert len(hub.requests) == asked
    refused(["predict", tmp_path / "a.png", "-o", tmp_path / "q", "--model", "hf://jane/others"],
            "jane/others is not in the hub's cache, and HF_HUB_OFFLINE is set; unset it")  # fmt: skip
    assert not (tmp_path / "q").exists()


def test_a_private_repository_stays_private(run: Path, hub: fake_hub.FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    push(run, "--private", "--license", "mit")
    assert hub.repos["jane/toys"].private
    assert set(hub.repos["jane/toys"].commits.popitem()[1]) == CONTENT | SHEETS
    hub.repos["jane/toys"].private = False
    refused(["push", "jane/toys", "--run", run, "--private"], "jane/toys is public; make it private in its settings")
    assert not hub.repos["jane/toys"].commits


def test_the_hubs_errors_are_one_line(run: Path, hub: fake_hub.FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["push", "jane/toys", "--run", run, "--no-pictures"]
    refused([*words[:1], "joe/toys", *words[2:]], "refuses access to joe/toys (403); log in with `hf auth login` with a token")
    monkeypatch.setenv("HF_TOKEN", "hf_bad")
    refused(words, "(401); log in with `hf auth login` with a token that may write, or write the files into a folder by --to")
    assert not hub.repos
    with pytest.raises(InputError, match=r"has no repository jane/toys that you may see; .*`hf auth login` if it is private"):
        unseg.load("hf://jane/toys")
    hub.repos["jane/toys"] = fake_hub.Repo(False)
    hub.repos["jane/toys"].commit({"config.json": b"{}"})
    with pytest.raises(InputError, match="jane/toys has no such revision"):
        unseg.load("hf://jane/toys@v9")
    speak_to("http://127.0.0.1:9", monkeypatch)
    with pytest.raises(InputError, match=r"^http://127.0.0.1:9 cannot be reached .*; check the network") as error:
        unseg.load("hf://jane/others")
    assert "\n" not in str(error.value)
    refused(words, "http://127.0.0.1:9 failed for jane/toys")


def test_a_hostile_repository_runs_nothing_and_escapes_nowhere(run: Path, hub: fake_hub.FakeHub, tmp_path: Path) -> None:
    push(run, "--to", str(tmp_path / "good"), "--no-pictures")
    good = {name: (tmp_path / "good" / name).read_bytes() for name in CONTENT}
    repo = hub.repos["jane/toys"] = fake_hub.Repo(False)
    repo.commit(good | {"../../../escaped.safetensors": b"x", "pytorch_model.bin": b"pickle", "sub/config.json": b"{}"})
    unseg.load("hf://jane/toys")
    got = [line.rpartition("/")[2] for line in hub.requests if "/resolve/" in line]
    assert set(got) == {"model.safetensors", "config.json", "clusters.yaml"}
    assert not list(tmp_path.rglob("escaped*"))
    torch.save({"x": 1}, pickled := io.BytesIO())
    for name, content, message in (
        ("clusters.yaml", b"clusters: !!python/object/apply:os.getcwd []", "is not YAML"),
        ("config.json", b"[1]", "is not a model of unseg"),
        ("config.json", b'{"library_name": "timm"}', "is not a model of unseg"),
        ("config.json", b'{"library_name": "unseg", "format": 2}', "of another version of unseg"),
        ("config.json", good["config.json"].replace(b'"square"', b'["../x"]'), "the input size is"),
        ("model.safetensors", pickled.getvalue(), "cannot be read"),
    ):
        repo.commit(good | {name: content})
        with pytest.raises(InputError, match=message):
            unseg.load("hf://jane/toys")
    repo.commit({"README.md": b"hello"})
    with pytest.raises(InputError, match=r"hf://jane/toys has no config.json: `unseg push` did not write it"):
        unseg.load("hf://jane/toys")


# ---- what is refused


def test_what_cannot_be_pushed_writes_nothing(run: Path, hub: fake_hub.FakeHub, tmp_path: Path) -> None:
    out = tmp_path / "out"
    to = ["--run", run, "--to", out]
    refused(["push", "toys", *to], "toys is no name of a repository; write it like owner/name")
    refused(["push", "jane/../toys", *to], "is no name of a repository")
    refused(["push", "jane/toys", *to, "--private"], "--private is for an upload")
    refused(["push", "jane/toys", "--run", run], "publish photographs of the run; give --pictures, --no-pictures or --private")
    refused(["push", "jane/toys", "--to", out, "--run", tmp_path], "params.yaml: no such file")
    (run / "results/quality.json").rename(tmp_path / "quality.json")
    refused(["push", "jane/toys", *to], "results/quality.json: no such file; a model card needs a finished run: `dvc repro`")
    (tmp_path / "quality.json").rename(run / "results/quality.json")
    storage.write_json(run / "results/details/clustering/r1/scores.json", {"miou": 1.0})
    refused(["push", "jane/toys", *to], "results/details/clustering is not what the stage evaluate_clustering had")
    shutil.rmtree(run / "results/pictures")
    lock(run)
    refused(["push", "jane/toys", *to], "has no pictures; make them with `dvc repro report`, or give --no-pictures")
    (run / "models/segmenter-r1.safetensors").write_bytes(b"another")
    refused(["push", "jane/toys", *to], "segmenter-r1.safetensors is not what the stage predict@r1 had in its last run")
    (run / "models/detector.safetensors").unlink()
    assert not out.exists()
    assert not hub.repos
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine").touch()
    refused(["push", "jane/toys", "--run", run, "--to", tmp_path / "full"], "exists already; give a new or an empty folder")


@pytest.mark.parametrize("address", ["hf://", "hf://toys", "hf://jane/toys/models", "hf://jane/toys@", "hf://jane/..@main"])
def test_an_address_that_is_not_understood(address: str) -> None:
    with pytest.raises(InputError, match=r"write it like|is no name"):
        unseg.load(address)


def test_names_of_files_are_left_out_of_the_params() -> None:
    tree = {"mine": {"head": "/home/me/h.safetensors", "facet": "keys"}, "croc": {"init": "models/dino_vits16.safetensors"}}
    content = json.loads(repository.config({}, "square", None, tree | {"data": {"root": "x"}, "embed": {"a": ["b/c", 1]}}))
    assert content["params"] == {
        "mine": {"head": None, "facet": "keys"},
        "croc": {"init": "models/dino_vits16.safetensors"},
        "embed": {"a": [None, 1]},
    }
