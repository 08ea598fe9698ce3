"""The report: one page that needs nothing but itself, whatever the files are called and whatever is missing."""

import json
import os
import re
import shutil
import subprocess
import sys
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import factories
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from stages import evaluate_clustering, evaluate_instances, report
from unseg.core.console import InputError
from unseg.core.image_index import eval_images
from unseg.core.instances import instance
from unseg.core.label_maps import LabelMaps, write_label_maps
from unseg.core.storage import encode_png, read_json, to_json, write_json, write_zip
from unseg.data import demo
from unseg.report import backbones, charts, comparison, label_free, page, pictures, sections
from unseg.serving.cli.main import main

K = 7
SERIES = ("stability", "silhouette", "chance_stability", "chance_silhouette", "score")
HOSTILE = '<img src=x onerror="alert(1)">&amp;.png'
CLASSES = ["background", *demo.CLASSES[:-1], "<b>cres'cent</b>"]
EMPTY = {"meta", "img", "br"}  # tags that are never closed
STYLE = (Path(page.__file__).parent / "templates/style.css").read_text()


def project(
    root: Path, train: int = 2, val: int = 3, size: int = 64, truth: bool = True, names: dict[int, str] | None = None
) -> None:
    """A finished run of K = 7 clusters, the last of which is no class; drawn scenes, masks and maps a little off."""
    (root / "photos").mkdir(parents=True)
    (root / "clusters.yaml").write_text("clusters: {}\n")
    (root / "params.yaml").write_text(
        "seed: 0\ncluster: {k: 7}\nrounds: [r0, r1]\nfinal: r1\nreport: {pictures: 12, exemplars: 8}\n"
        "backbones: []\nsets: []\nvideos: []\ncorrections: []\nrefine: []\nregroup: []\n"
    )
    index, masks, detections, objects = [], [], [], []
    semantic, pseudo, predicted = {}, {}, {}
    for i in range(train + val):
        rng = np.random.default_rng(i)
        pixels, drawn = demo.scene(rng, size)
        name = (names or {}).get(i, f"{'train' if i < train else 'val'}_{i:05d}.png")
        Pillow.fromarray(pixels).save(root / "photos" / name, "PNG")
        split = "train" if i < train else "val"
        image = {"id": i + 1, "file_name": name, "height": size, "width": size, "split": split}
        index.append(image)
        labels, guess = np.zeros((size, size), np.uint8), np.zeros((size, size), np.uint8)
        for c, mask in drawn:
            labels[mask] = c
            cluster = (c + 1) % 6 if rng.random() < 0.8 else 6
            guess[np.roll(mask, 3, 1)] = cluster + 1
            objects.append(factories.instance(mask, i + 1, c, len(objects) + 1).to_coco())
            score = round(float(rng.uniform(0.3, 1)), 3)
            detections.append(factories.detection(np.roll(mask, 2, 0), score, i + 1, cluster))
        semantic[name], predicted[name] = labels, guess
        pseudo[name] = np.where(np.arange(size)[:, None] < 4, 255, guess).astype(np.uint8)
        if i != 1:
            last = detections[-1]
            masks.append(instance(len(masks) + 1, i + 1, last.category_id, last.mask).to_coco())
    detections.sort(key=lambda d: (d.image_id, -d.score))
    clusters = [{"id": k, "name": f"cluster {k}"} for k in range(K)]
    write_json(root / "data/images.json", {"images": index})
    write_json(root / "data/rejected.json", {"rejected": [{"file_name": "a.txt", "reason": "no image"}]})
    objects_only = {"annotations": [{**m, "category_id": 0} for m in masks], "categories": [{"id": 0, "name": "object"}]}
    write_json(root / "data/masks.json", {"images": index} | objects_only)
    write_json(root / "data/instances.json", {"images": index, "annotations": masks, "categories": clusters})
    write_json(root / "data/detections.json", [d.to_coco() for d in detections])
    train_names, eval_names = ([r["file_name"] for r in part] for part in (index[:train], index[train:]))
    write_label_maps(root / "data/labels-r0.zip", [(name, pseudo[name]) for name in train_names])
    write_label_maps(root / "data/predictions/r1.zip", [(name, predicted[name]) for name in eval_names])
    members = [("classes.json", json.dumps({"classes": CLASSES if truth else []}).encode())]
    if truth:
        members += [(f"semantic/{name}.png", encode_png(labels)) for name, labels in semantic.items()]
        categories = [{"id": c, "name": name} for c, name in enumerate(CLASSES) if c]
        coco = {"images": index, "annotations": objects, "categories": categories}
        members += [("instances.json", to_json(coco).encode())]
    write_zip(root / "data/truth.zip", members)
    steps = range(1, 60)
    for name in ("results/detector.tsv", "results/segmenter-r1.tsv"):
        rows = [f"{10 * s}\t{3 / s**0.5 + 0.1 * np.sin(s):.4f}\t{0.01 * (60 - s):.4f}" for s in steps]
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("\n".join(["step\tloss\tlr", *rows]) + "\n")


def evaluate() -> None:
    """The metrics, by the real stages, of the project in the working directory."""
    for step in ("masks", "detector", "r0"):
        shutil.copy("data/predictions/r1.zip", f"data/predictions/{step}.zip")
    files = ("data/images.json", "data/truth.zip", "data/instances.json", "data/predictions")
    evaluate_clustering.main(*files, "results/clustering", "results/details/clustering")
    objects = ("data/masks.json", "data/instances.json", "data/detections.json")
    results = ("results/instances", "results/details/instances.json", "results/precision_recall.json")
    evaluate_instances.main("data/images.json", "data/truth.zip", *objects, *results)
    has_truth = bool(json.loads(Path("results/details/instances.json").read_text())["images"])
    missing = {"images": 0, "needs": "ground truth: data/truth.zip has no semantic map of an image to learn from"}
    quality = {key: 0.25 for key, _, _ in label_free.QUALITY} | {"images": 5, "clusters": K, "clusters_used": 6.0, "seeds": [0]}
    write_json("results/details/quality.json", quality | {"mask_flip": None})
    tried = [{"k": k, "wins": k == 6} | {f"{n}{s}": k / 20 for n in SERIES for s in ("", "_std")} for k in (4, 6, 8)]
    write_json("results/choose_k.json", {"best": 6, "as_good": [6, 8], "tried": tried, "repeats": 5, "objects": 4, "seeds": [0]})
    write_json("results/details/linear.json", {"miou": 0.512, "pixel_accuracy": 0.9, "images": 3} if has_truth else missing)


def write_report(output: str = "results/report.html", folder: str = "results/pictures") -> str:
    artefacts = (
        "data/masks.json",
        "data/instances.json",
        "data/detections.json",
        "data/labels-r0.zip",
        "data/predictions/r1.zip",
    )
    report.main("data/images.json", "photos", "data/truth.zip", *artefacts, "clusters.yaml", "results", output, folder)
    return Path(output).read_text()


class Reader(HTMLParser):
    """Reads a page: its text, its tags' attributes, and whether each tag that opens is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data.replace("\n", " ") if self.open[-1:] != ["style"] and not re.fullmatch(r"\s*\n\s*", data) else ""

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A project with truth and an odd file name, and its page."""
    root = tmp_path_factory.mktemp("full")
    project(root / "run", names={1: "sub folder,ä.png", 3: HOSTILE})
    before = os.getcwd()
    os.chdir(root / "run")
    evaluate()
    text = write_report()
    os.chdir(before)
    return root / "run", text


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project without truth, to be the working directory."""
    project(tmp_path / "run", truth=False)
    monkeypatch.chdir(tmp_path / "run")
    evaluate()
    return tmp_path / "run"


def test_the_page_needs_nothing_but_itself(full: tuple[Path, str]) -> None:
    text = re.sub(r"data:image/jpeg;base64,[A-Za-z0-9+/=]+", "data:", full[1])
    reader = Reader(full[1])
    assert reader.open == []
    for word in ("http", "<script", "@import", "url(", "<link", "<iframe", "<object"):
        assert word not in text
    sources = [str(a[key]) for _, a in reader.tags for key in ("src", "href", "srcset", "xlink:href", "data") if key in a]
    assert all(s.startswith(("data:image/jpeg;base64,", "#")) for s in sources)
    assert not [name for _, a in reader.tags for name in a if name.startswith("on")]
    assert len(full[1]) < 5_000_000


def test_the_page_can_be_used_by_keyboard_and_by_ear(full: tuple[Path, str]) -> None:
    reader = Reader(full[1])
    places = {a["id"] for _, a in reader.tags if "id" in a}
    links = [str(a["href"]) for a in reader.all("a")]
    assert links[0] == "#main"
    assert all(link[1:] in places for link in links)
    assert all(a["alt"] for a in reader.all("img"))
    assert all(a.get("aria-label") or a.get("aria-hidden") == "true" for a in reader.all("svg"))
    regions = [a for a in reader.all("div") if a.get("role") == "region"]
    assert len(regions) >= len(reader.all("table"))
    assert all(a["tabindex"] == "0" and a["aria-label"] for a in regions)
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in reader.all("meta")
    assert ":focus-visible" in full[1]
    assert "prefers-color-scheme:dark" in full[1]


def test_text_can_be_told_from_its_ground_in_both_schemes() -> None:
    def light(colour: str) -> float:
        parts = [int(c, 16) / 255 for c in (re.findall("..", colour) if len(colour) == 6 else [c * 2 for c in colour])]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for block in re.findall(r":root\{(.*?)\}", STYLE):
        colours = {name: light(value) for name, value in re.findall(r"--(\w+):#(\w+)", block)}
        for ground in ("paper", "panel"):
            for ink, least in {"ink": 7, "soft": 4.5, "warn": 4.5, "accent": 3}.items():
                dark, bright = sorted((colours[ground], colours[ink]))
                assert (bright + 0.05) / (dark + 0.05) >= least, (ground, ink)


def test_hostile_names_are_only_text(full: tuple[Path, str]) -> None:
    reader = Reader(full[1])
    assert HOSTILE in reader.text
    assert "<b>cres'cent</b>" in reader.text
    assert HOSTILE not in full[1]
    assert "<b>cres" not in full[1]
    assert any(HOSTILE in str(a["alt"]) for a in reader.all("img"))
    assert {a["src"] for a in reader.all("img")}.isdisjoint({"x"})


def test_every_scalar_of_every_metrics_file_is_there(full: tuple[Path, str]) -> None:
    text = Reader(full[1]).text
    details = full[0] / "results/details"
    files = [*details.glob("clustering/*/scores.json"), *details.glob("*.json")]
    assert len(files) == 4 + 3
    for file in files:
        for key, x in page.scalars(read_json(file)):
            assert f"{key}{page.plain(x)}" in text  # cells of a row follow each other


def test_quality_without_labels_and_the_choice_of_k_are_there(full: tuple[Path, str]) -> None:
    reader = Reader(full[1])
    space = "\N{NO-BREAK SPACE}"
    assert f"same mask when cropped25.0{space}%" in reader.text
    assert "same mask when mirrored\N{EN DASH}" in reader.text
    assert "clusters in the final segmentation6 of 7" in reader.text
    assert f"K 6 fits best: it has the highest score in 100{space}% of 5 repeats. It cannot be told from 8" in reader.text
    assert "This run has cluster.k 7" in reader.text
    assert f"8{'0.400 ± 0.400' * 5}0.0{space}%" in reader.text
    assert any("K, number of clusters" in str(a.get("aria-label")) for a in reader.all("svg"))
    by_protocol = f"miou_majority{100 * read_json(full[0] / 'results/details/clustering/masks/scores.json')['miou_majority']:.1f}"
    assert by_protocol in reader.text
    assert "matched on no pixel" in reader.text


def test_failures_are_the_worst_images_the_worst_first(full: tuple[Path, str]) -> None:
    ious = read_json(full[0] / "results/details/clustering/r1/image_iou.json")
    assert len(ious) == 3
    text = Reader(full[1]).text
    part = text[text.index("Failure cases", text.index("Training images", 500)) :]
    titles = [f"{r['file_name']}: mIoU {100 * r['iou']:.1f}" for r in sorted(ious, key=lambda r: r["iou"])]
    assert sorted(titles, key=part.index) == titles


def test_what_a_class_is_taken_for() -> None:
    ious = [
        {"class": "a", "iou": 0.5, "cluster": 0},
        {"class": "b", "iou": 0.0, "cluster": None},
        {"class": "c", "iou": None, "cluster": None},
    ]
    counts, names = np.array([[6, 0, 0, 2], [3, 0, 0, 1], [0, 0, 0, 0]]), ["a", "b", "c", "(no class)"]
    scheme = pictures.scheme(1, ["a", "b", "c"], {0: 1})
    dash, space = "\N{EN DASH}", "\N{NO-BREAK SPACE}"
    cells = [{"pixels": n, "prediction": name} for row in counts.tolist() for n, name in zip(row, names, strict=True)]
    text = Reader(factories.section_html("classes", sections.classes(ious, cells, {}, scheme, {}))).text
    assert f"a50.075.066.7(no class) 25{space}%0" in text
    assert f"b0.00.0{dash}a 75{space}%none" in text
    assert f"cabsent{dash}{dash}{dash}{dash}none" in text


def test_lines_stay_apart_from_each_other() -> None:
    assert charts.spaced([10, 10, 5], 4) == [10, 14, 5]
    chart = charts.lines([2, 3], [charts.Series([0.5, 0.5], [0, 0.1], "<a>"), charts.Series([-0.1, 0.5], [0.2, 0], "b")], "<x>")
    assert chart.y_ticks[0] <= -0.3
    assert abs(chart.series[0].name_y - chart.series[1].name_y) > 0.06
    drawn = factories.section_html("sweep", {"chart": chart, "published": "1"})
    assert Reader(drawn).open == []
    assert "<a>" not in drawn


def test_the_component_table_is_the_papers(full: tuple[Path, str]) -> None:
    miou = f"{100 * read_json(full[0] / 'results/details/clustering/r1/scores.json')['miou']:.1f}"
    text = Reader(full[1]).text
    assert f"ViT masks{miou}39.0" in text
    assert f"+ detector{miou}42.0+0.0" in text
    assert f"+ segmentation model (r0){miou}45.8+0.0" in text
    assert f"+ CRF round (r1){miou}48.9+0.0" in text
    scores = {str(i): {"miou": i / 10, "images": 1, "protocols": [{"number": "miou", "protocol": "p"}]} for i in range(4)}
    assert "330.048.9+10.0" in Reader(factories.section_html("components", sections.components(scores))).text


@pytest.mark.parametrize(("rounds", "rows"), [(["r1"], ["(r1)45.8"]), (["r0", "rx", "r1"], ["(r0)45.8", "(r1)48.9"])])
def test_of_the_rounds_the_first_and_the_final_one_are_reported(bare: Path, rounds: list[str], rows: list[str]) -> None:
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace("[r0, r1]", f"[{', '.join(rounds)}]"))
    reader = Reader(write_report().replace("not measured here", ""))
    assert re.findall(r"\(r\w\)4[58]\.[89]", reader.text) == rows
    assert ("clustering/r0/scores.json" in reader.text) == ("r0" in rounds)
    assert "Segmenter r1" in reader.text
    assert "Segmenter r0" not in reader.text


def test_a_final_round_with_human_labels_is_marked(bare: Path) -> None:
    assert "people corrected" not in write_report()
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace("corrections: []", "corrections: [{from: r0, file: c.zip, to: r1}]"))
    said = Reader(write_report()).text
    assert "The final segmenter (r1) was trained on labels that people corrected:" in said
    assert "+ corrected labels (r1)" in said
    assert "+ CRF round" not in said
    assert re.findall(r"\(r\w\)4[58]\.[89]", said.replace("not measured here", "")) == ["(r0)45.8"]  # no number of the paper


def test_sheets_are_small_and_bytes_stay(full: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    root, text = full
    monkeypatch.chdir(root)
    names = ["clusters.png", "contact-eval.png", "contact-train.png"]
    before = {name: (root / "results/pictures" / name).read_bytes() for name in names}
    assert write_report("again.html", "again") == text
    assert {p.name: p.read_bytes() for p in Path("again").iterdir()} == before
    assert sorted(p.name for p in (root / "results/pictures").iterdir()) == names
    assert max(map(len, before.values())) <= pictures.MAX_BYTES


def test_without_truth_the_page_says_what_needs_it(bare: Path) -> None:
    text = Reader(write_report()).text
    assert "There is no ground truth" in text
    assert "What it needs".lower() in text
    for step in ("masks", "detector", "r0", "r1"):
        assert f"clustering/{step}/scores.json" in text
    assert text.count("not measured here") >= 8
    assert text.index("Quality without labels") < text.index("Components")
    assert "truth cluster" not in text
    assert "striped" not in text
    assert "clustering mIoU70" not in text


@pytest.mark.parametrize(
    "name",
    [
        "data/rejected.json",
        *(f"results/details/clustering/{step}/scores.json" for step in ("masks", "detector", "r0", "r1")),
        "results/details/clustering/r1/confusion.json",
        "results/details/clustering/r1/image_iou.json",
        "results/details/clustering/masks/class_iou.json",
        "results/details/clustering/r1/class_iou.json",
        "results/details/quality.json",
        "results/choose_k.json",
        "results/details/linear.json",
        "results/details/instances.json",
        "results/precision_recall.json",
        "results/detector.tsv",
        "results/segmenter-r1.tsv",
    ],
)
def test_a_missing_input_is_an_error(bare: Path, name: str) -> None:
    Path(name).unlink()
    with pytest.raises(InputError, match=rf"{re.escape(name)}.*[Nn]o such file"):
        write_report()
    assert not Path("results/report.html").exists()


def test_a_history_must_hold_numbers(bare: Path) -> None:
    Path("results/segmenter-r1.tsv").write_text("step\tloss\n1\tlow\n")
    with pytest.raises(InputError, match=r"results/segmenter-r1\.tsv is not a table of numbers"):
        write_report()


def test_an_image_one_pixel_wide_without_masks(bare: Path) -> None:
    index = read_json("data/images.json")
    for image in index["images"]:
        Pillow.new("RGB", (1, 300)).save(Path("photos", image["file_name"]))
    index["images"] = [{**r, "width": 1, "height": 300, "split": "both"} for r in index["images"]]
    write_json("data/images.json", index)
    for name in ("masks", "instances"):
        write_json(f"data/{name}.json", {"images": [], "annotations": [], "categories": []})
    write_json("data/detections.json", [])
    for name in ("labels-r0", "predictions/r1"):
        blank = np.zeros((300, 1), np.uint8)
        write_label_maps(f"data/{name}.zip", [(r["file_name"], blank) for r in index["images"]])
    text = Reader(write_report()).text
    assert "all background" in text
    assert "no mask" not in text  # no column at all
    assert "Training images" not in text  # they are all evaluation images


def test_half_characters_in_names_do_not_stop_the_page() -> None:
    text = page.render("sweep", [], name="a\udcffb")
    assert b"<h1>a?b</h1>" in text
    picture = np.zeros((40, 90, 3), np.uint8)
    assert pictures.draw_text(picture, [((5, 5), "a\udcffb\n" + "x" * 500)], "la").shape == picture.shape


def test_all_text_is_escaped() -> None:
    folder = Path(page.__file__).parent
    files = [p for p in (folder / "templates").rglob("*") if p.is_file()]
    assert len(files) > 15
    assert not any(re.search(r"\|\s*safe|Markup|autoescape", p.read_text()) for p in files)
    assert page.TEMPLATES.from_string("{{ x }}").render(x="<b>") == "&lt;b&gt;"


def test_a_report_needs_pictures() -> None:
    with pytest.raises(InputError, match=r"report\.pictures is 0"):
        factories.group("report", page.Report, pictures=0)


def test_the_stage_does_not_import_torch() -> None:
    words = "import sys, stages.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", words], cwd=factories.ROOT, check=False).returncode == 0


@given(st.floats(-1e6, 0, allow_subnormal=False), st.floats(1e-6, 1e6))
@settings(max_examples=50, deadline=None)
def test_ticks_hold_the_range(low: float, high: float) -> None:
    marks = charts.ticks(low, high)
    assert marks[0] <= low
    assert marks[-1] >= high - 1e-6 * (high - low)
    assert 4 <= len(marks) <= 13


def test_curves_and_grids_are_whole_svg() -> None:
    macros = page.TEMPLATES.get_template("charts.html.j2").module
    for drawn in (
        macros.figure(charts.curve([5.0], [5.0], "<x>", "<y>")),
        macros.figure(charts.curve([1, 2, 3], [-1, 0, 0.5], "step", "loss")),
        macros.heat(np.array([[0.5, 0.5], [np.nan, np.nan]]), ["<a>", "b" * 99], ["<a>", "b"]),
        macros.heat(np.eye(81), [str(i) for i in range(81)], [str(i) for i in range(81)]),
        macros.bar(2.0),
    ):
        assert Reader(drawn).open == []
        assert "nan" not in drawn
        assert not re.search("<[xya]>", drawn.replace("<a>b", ""))
        assert "b" * 15 not in re.sub("<title>.*?</title>", "", drawn)


LISTED = ([{"name": "my-dino"}, {"name": "croc"}], [{"name": "voc"}, {"name": "my-voc"}], [{"name": "davis"}])


def score(backbone: str, miou: float, images: int, protocol: str = "1x1", **more: float) -> dict[str, Any]:
    return {"backbone": backbone, "miou": miou, "images": images, "protocols": [{"number": "miou", "protocol": protocol}]} | more


def test_backbones_side_by_side(tmp_path: Path) -> None:
    assert backbones.read(tmp_path / "absent", *LISTED) == []
    protocols = [{"number": "J&F", "protocol": "carried on."}]
    files = {
        "video-davis-croc": {"backbone": "croc", "J&F": 0.474, "sequences": 3, "protocols": protocols},
        "linear-my-voc-my-dino": score("my-dino", 0.5, 381),
        "linear-my-voc-croc": score("croc", 0.25, 381),
        "linear-voc-croc": score("croc", 0.125, 1449),
        "kmeans-voc-croc": score("croc", 0.1, 1449, HOSTILE, miou_std=0.012),
        "linear-voc-left": score("left", 0.9, 1449),  # no longer in params.yaml
        "linear-old-croc": score("croc", 0.9, 7),
    }
    for name, content in files.items():
        write_json(tmp_path / f"{name}.json", content)
    (tmp_path / "README").write_text("no score")
    scores = backbones.read(tmp_path, *LISTED)
    assert [column for column, _ in scores] == ["linear-voc", "linear-my-voc", "linear-my-voc", "kmeans-voc", "video-davis"]
    drawn = factories.section_html("backbones", backbones.table(scores, ["my-dino", "croc"]))
    cells = re.findall(r"<t[hd]\b[^>]*>(.*?)</t[hd]>", drawn)
    assert cells[:5] == ["backbone", "linear mIoU, voc", "linear mIoU, my-voc", "K-means mIoU, voc", "J&amp;F, davis"]
    assert cells[5:10] == ["my-dino", page.DASH, "50.0", page.DASH, page.DASH]
    assert cells[10:] == ["croc", "12.5", "25.0", "10.0 ± 1.2", "47.4"]
    assert "<img" not in drawn
    assert "linear mIoU: 1x1. Evaluated on: voc 1449, my-voc 381." in drawn
    assert "J&amp;F: Carried on. Evaluated on: davis 3." in drawn


def test_the_page_shows_backbones_where_there_are_scores(full: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    root, before = full
    assert 'id="backbones"' not in before
    monkeypatch.chdir(root)
    file, settings = Path("results/backbones/linear-voc-random.json"), Path("params.yaml")
    write_json(file, score("random", 0.031, 3))
    text, plain = write_report("results/with.html", "results/with"), settings.read_text()
    assert 'id="backbones"' not in text  # it is not listed
    settings.write_text(plain.replace("backbones: []", "backbones: [{name: random}]").replace("sets: []", "sets: [{name: voc}]"))
    text = write_report("results/with.html", "results/with")
    settings.write_text(plain)
    file.unlink()
    assert 'id="backbones"' in text
    assert "linear mIoU, voc" in text


# ---- comparison of runs


def other_run(root: Path, truth: bool = True) -> Path:
    """The same images as `full`, predicted worse: everything is shifted, clusters are renamed, cluster.k is another."""
    project(root, truth=truth, names={1: "sub folder,ä.png", 3: HOSTILE})
    text = (root / "params.yaml").read_text()
    (root / "params.yaml").write_text(text.replace("k: 7", "k: 9").replace("report: {", "data: {images: photos}\nreport: {"))
    maps = LabelMaps(root / "data/predictions/r1.zip")
    moved = {i: np.roll(maps[i], 12 * (n == 0), 0) for n, i in enumerate(eval_images(root / "data/images.json"))}
    renamed = {i.file_name: np.where(m > 0, m % 7 + 1, 0).astype(np.uint8) for i, m in moved.items()}
    write_label_maps(root / "data/predictions/r1.zip", renamed.items())
    return root


def compared(*roots: Path) -> str:
    main(["compare", *map(str, roots), "-o", "compared.html", "--force"])
    return Path("compared.html").read_text()


def test_two_runs_side_by_side(
    full: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(full[0], tmp_path / "first")
    first, second = tmp_path / "first", other_run(tmp_path / "second")
    params = (first / "params.yaml").read_text()
    (first / "params.yaml").write_text(params.replace("report: {", "data: {images: photos}\nreport: {"))
    monkeypatch.chdir(second)
    evaluate()
    monkeypatch.chdir(tmp_path)
    text = compared(first, second)
    summary = capsys.readouterr().out
    assert "cluster.k: 7 | 9 (+2)" in summary
    assert "clustering/r1/scores.json: miou: " in summary
    reader = Reader(text)
    assert reader.open == []
    assert "http" not in re.sub(r"data:image/jpeg;base64,[A-Za-z0-9+/=]+", "", text)
    assert "cluster.k79+2" in reader.text
    assert "seed0" not in reader.text  # it is the same
    values = [read_json(r / "results/details/clustering/r1/scores.json")["miou"] for r in (first, second)]
    row = f"clustering/r1/scores.json: miou{values[0]:.6g}{values[1]:.6g}{values[1] - values[0]:+.4g}"
    assert values[1] < values[0]
    assert row in reader.text
    moved = eval_images(first / "data/images.json")[0].file_name
    heads = re.findall(r"<h4><bdi>(.*?)</bdi></h4>", text)
    assert len(heads) == 3
    assert heads[0] == escape(moved)  # lost most
    assert "3 evaluation images in common" in reader.text
    again = compared(first, first)
    assert "All params are the same" in again
    assert "params: no difference" in capsys.readouterr().out
    first_bytes = Path("compared.html").read_bytes()
    compared(first, first)
    assert Path("compared.html").read_bytes() == first_bytes


def test_without_truth_runs_are_compared_by_their_predictions(bare: Path, tmp_path: Path) -> None:
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace("report: {", "data: {images: photos}\nreport: {"))
    second = other_run(tmp_path / "second", truth=False)
    shutil.copytree("results", second / "results", dirs_exist_ok=True)
    runs = [comparison.read(bare, "one"), comparison.read(second, "two")]
    names = comparison.common_images(runs)
    assert len(names) == 2  # the third has another name there
    likes = comparison.match_labels(runs, names)[1]
    assert likes[0] == 0
    change = comparison.image_changes(runs, names)
    assert change[names[0]] > 0.05  # moved
    assert change[names[1]] == 0  # renamed only
    assert "from the least to the most changed" in comparison.compare(runs).decode()


def test_what_cannot_be_compared(bare: Path, tmp_path: Path) -> None:
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace("report: {", "data: {images: photos}\nreport: {"))
    with pytest.raises(SystemExit, match="name two runs or more"):
        main(["compare", str(bare)])
    with pytest.raises(SystemExit, match=r"params.yaml: no such file"):
        main(["compare", str(bare), str(tmp_path / "nothing")])
    shutil.copytree(bare, tmp_path / "other")
    index = read_json(tmp_path / "other/data/images.json")
    index["images"] = [{**r, "width": 65} for r in index["images"]]
    write_json(tmp_path / "other/data/images.json", index)
    with pytest.raises(SystemExit, match="no evaluation image in common"):
        main(["compare", str(bare), str(tmp_path / "other"), "-o", "x.html"])
