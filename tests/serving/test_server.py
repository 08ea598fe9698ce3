"""`unseg serve`: answers, edits, uploads that are refused, other web sites; and the page in Chromium."""

import base64
import io
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import uvicorn
from browser import DESK, NEEDS_CHROMIUM, Browser, chromium
from PIL import Image as Pillow
from starlette.testclient import TestClient

import unseg
from unseg.clustering import naming
from unseg.clustering.naming import ClusterNames
from unseg.core import optional
from unseg.report.page import PERCENT
from unseg.segmentation import segmenter
from unseg.serving import api
from unseg.serving.cli import clusters
from unseg.serving.cli.main import main
from unseg.serving.server import uploads
from unseg.serving.server.app import EDIT_BYTES, Server, create_app

ROOT = Path(__file__).parents[2]
SHAPE: dict[str, Any] = {"arch": "resnet18", "width": 4, "stride": 8, "rates": [1, 2, 4], "labels": 5}
SITE = "http://127.0.0.1:7870"
SEED = 4  # of the model
FILES = ["c.yaml", "s.safetensors"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A segmenter of four clusters whose answers differ from place to place."""
    path = tmp_path_factory.mktemp("model") / "s.safetensors"
    torch.manual_seed(SEED)
    net = segmenter.DeepLab(**SHAPE)
    with torch.no_grad():
        net.head[-1].weight *= 300  # type: ignore[operator]
    segmenter.write_segmenter(path, net, SHAPE, 32, "fp32")
    return path


@pytest.fixture
def folder(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model and its names."""
    monkeypatch.setenv("UNSEG_DEVICE", "cpu")
    shutil.copy(trained, tmp_path)
    (tmp_path / "c.yaml").write_text("clusters: {0: {name: dog}}")
    return tmp_path


@pytest.fixture
def client(folder: Path) -> TestClient:
    model = unseg.load(folder / "s.safetensors", folder / "c.yaml")
    edit = partial(clusters.edit_file, folder / "c.yaml", ClusterNames(4))
    app = create_app(Server(model, edit, {"model": "s.safetensors", "file": "c.yaml"}))
    return TestClient(app, SITE, headers={"origin": SITE})


def pixels(height: int = 96, width: int = 128, seed: int = 0) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def file_of(image: Pillow.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


PHOTO = file_of(Pillow.fromarray(pixels()))


def map_of(answer: dict[str, Any], key: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(answer[key]), np.uint8).reshape(answer["height"], answer["width"])


# ---- answers and edits


def test_the_answer_is_that_of_predict(client: TestClient, folder: Path) -> None:
    model = unseg.load(folder / "s.safetensors", folder / "c.yaml")
    for seed, (height, width) in enumerate([(96, 320), (400, 300), (1000, 1280)]):  # sizes at which nothing is scaled
        content = file_of(Pillow.fromarray(pixels(height, width, seed)))
        answer, want = client.post("/predict", content=content).json(), model.predict(pixels(height, width, seed))
        assert (map_of(answer, "labels") == want.labels).all()
        assert np.abs(map_of(answer, "confidence") / 255 - want.confidence).max() <= 0.5 / 255 + 1e-6
        assert answer["fractions"] == [f._asdict() for f in want.fractions()]
        assert Pillow.open(io.BytesIO(base64.b64decode(answer["photo"]))).size == (width, height)
    assert answer["clusters"][0] == {"label": 1, "title": "dog", "colour": "#e69f00", "edited": True}
    assert sorted(p.name for p in folder.iterdir()) == FILES


def test_a_photograph_is_turned_upright_and_a_large_one_is_drawn_smaller(client: TestClient) -> None:
    exif = Pillow.Exif()
    exif[0x0112] = 6  # the camera was held upright
    turned = file_of(Pillow.fromarray(pixels(1500, 2000)), "JPEG", exif=exif)
    answer = client.post("/predict", content=turned).json()
    assert (answer["width"], answer["height"]) == (960, 1280)


def test_edits_are_saved_and_change_the_next_answer(client: TestClient, folder: Path) -> None:
    before = client.post("/predict", content=PHOTO).json()
    present = sorted({f["label"] for f in before["fractions"]} - {0})
    first, second, third = (label - 1 for label in present[:3])
    edits = [["name", f"{first}=cat"], ["colour", f"{first}=#0072b2"], ["merge", f"{second}={first}"], ["ignore", f"{third}"]]
    said = client.post("/edit", json=edits).json()
    assert said["clusters"][first] == {"label": first + 1, "title": "cat", "colour": "#0072b2", "edited": True}
    assert (said["clusters"][second]["label"], said["clusters"][third]["label"]) == (first + 1, 255)
    after = client.post("/predict", content=PHOTO).json()
    want = unseg.load(folder / "s.safetensors", folder / "c.yaml").predict(pixels())  # as the file now has it
    assert after["fractions"] == [f._asdict() for f in want.fractions()]
    assert after["ignored"] == (want.labels == 255).mean() > 0
    assert after["clusters"] == said["clusters"] == client.get("/clusters").json()["clusters"]
    client.post("/edit", json=[["reset", "all"]])
    assert naming.read(folder / "c.yaml", 4) == ClusterNames(4)
    again = client.post("/predict", content=PHOTO).json()
    assert [f["label"] for f in again["fractions"]] == [f["label"] for f in before["fractions"]]
    assert again["clusters"][0]["title"] == "cluster 0"


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ([["name", "9=x"]], "there is no cluster 9; there are 0 to 3"),
        ([["name", "1=x"], ["name", "2=X"]], "clusters 1 and 2 have the name"),
        ([["merge", "1=2"], ["merge", "2=3"]], "cluster 1 is merged into 2, which is itself merged"),
        ([["colour", "1=red"]], "its colour is 'red'"),
        ([["shape", "1=x"]], "edits must be like"),
        ([["name", "²=x"]], "is not understood"),
        ([["name", "1=" + "x" * 300]], "edits must be like"),
        ([["name", 1]], "edits must be like"),
        ({"name": "1=x"}, "edits must be like"),
        ("x" * (EDIT_BYTES + 1), "more than 0.1 MB"),
    ],
)
def test_a_wrong_edit_is_one_line_and_changes_nothing(client: TestClient, folder: Path, edits: Any, message: str) -> None:
    before = (folder / "c.yaml").read_bytes()
    reply = client.post("/edit", json=edits)
    assert 400 <= reply.status_code < 500
    assert message in reply.json()["error"]
    assert "\n" not in reply.json()["error"]
    assert (folder / "c.yaml").read_bytes() == before
    assert client.get("/clusters").json()["clusters"][1]["title"] == "cluster 1"


def test_without_a_file_the_clusters_cannot_be_edited(folder: Path) -> None:
    app = create_app(Server(unseg.load(folder / "s.safetensors"), None, {"model": "s.safetensors"}))
    reply = TestClient(app, SITE, headers={"origin": SITE}).post("/edit", json=[["name", "1=x"]])
    assert (reply.status_code, "--clusters FILE" in reply.json()["error"]) == (400, True)


def test_a_file_that_cannot_be_written_is_one_line(folder: Path) -> None:
    def full(_: object) -> ClusterNames:
        raise OSError(28, "No space left on device", str(folder / "c.yaml"))

    app = create_app(Server(unseg.load(folder / "s.safetensors"), full, {"model": "s", "file": "c.yaml"}))
    reply = TestClient(app, SITE, headers={"origin": SITE}).post("/edit", json=[["name", "1=x"]])
    assert (reply.status_code, reply.json()) == (400, {"error": "c.yaml cannot be written (No space left on device)"})


def test_names_of_the_models_own_classes_stay(folder: Path) -> None:
    net = segmenter.load(folder / "s.safetensors")
    names = ("background", "sky", "sea", "land", "sun")
    segmenter.write_segmenter(folder / "mine.safetensors", net.model, SHAPE, 32, "fp32", names)
    model = unseg.load(folder / "mine.safetensors")
    assert model.rename(ClusterNames(4, {0: naming.ClusterEntry("heaven")})).names == dict(
        enumerate(["background", "heaven", "sea", "land", "sun"])
    )


# ---- uploads


def tiny_png(width: int, height: int) -> bytes:
    """A valid header of any size and few bytes of pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def icon(side: int) -> bytes:
    """An icon whose header says 0 x 0 (256 pixels), and whose PNG inside has `side` pixels."""
    png = tiny_png(side, side)
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 0, 0, 0, 0, 1, 32, len(png), 22) + png


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (b"", 400, "not an image"),
        (b"hello", 400, "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n", 400, "vector drawing"),
        (PHOTO[: len(PHOTO) // 2], 400, "truncated"),
        (tiny_png(300, 300), 400, "cannot be decoded|truncated"),
        (tiny_png(8000, 7500), 413, "8000 x 7500 pixels are more than 50 megapixels"),
        (tiny_png(10_000, 10_000), 413, "more than 50 megapixels"),
        (tiny_png(20_000, 20_000), 413, "more than 50 megapixels"),
        (icon(10_000), 413, "more than 50 megapixels"),
        (tiny_png(2000, 4), 400, "too thin or too small: 4 x 2000"),
        (bytes(uploads.MAX_BYTES + 1), 413, "more than 50 MB"),
    ],
    ids=["empty", "text", "EPS", "truncated", "no pixels", "60 MP", "100 MP", "400 MP", "hidden 100 MP", "strip", "bytes"],
)
def test_a_bad_upload_is_one_line_and_nothing_is_written(
    client: TestClient, folder: Path, content: bytes, status: int, message: str
) -> None:
    before = (folder / "c.yaml").read_bytes()
    reply = client.post("/predict", content=content)
    assert reply.status_code == status
    assert re.search(message, reply.json()["error"]), reply.json()
    assert "\n" not in reply.json()["error"]
    assert sorted(p.name for p in folder.iterdir()) == FILES
    assert (folder / "c.yaml").read_bytes() == before
    assert client.post("/predict", content=PHOTO).status_code == 200  # the next one is answered


def test_a_stream_of_unknown_length_is_cut_off(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = []

    def parts() -> Iterator[bytes]:
        for _ in range(100):
            sent.append(1)
            yield bytes(1 << 20)

    monkeypatch.setattr(uploads.read_body, "__defaults__", (1 << 20,))
    assert client.post("/predict", content=parts()).status_code == 413


def test_an_upload_is_kept_in_memory(client: TestClient) -> None:
    """Neither Starlette nor Pillow opens a file for it, not even a temporary one."""
    opened: list[Any] = []

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if recording and event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            opened.append(arguments)

    recording = True
    sys.addaudithook(hook)
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), np.uint8)  # 7 MB: forms are spooled from 1 MB
    assert client.post("/predict", content=file_of(Pillow.fromarray(noise))).status_code == 200
    recording = False
    assert opened == []


# ---- other web sites


@pytest.mark.parametrize("host", ["evil.example", "evil.example:7870", "127.0.0.1.evil.example", ""])
def test_another_host_is_refused(client: TestClient, host: str) -> None:
    """A name that an attacker's DNS leads to this machine."""
    for path in ("/", "/clusters"):
        assert client.get(path, headers={"host": host}).status_code == 400
    reply = client.post("/predict", content=PHOTO, headers={"host": host, "origin": f"http://{host}"})
    assert reply.status_code == 400


@pytest.mark.parametrize("origin", [None, "null", "http://evil.example", "http://127.0.0.1:8000", "https://127.0.0.1:7870"])
def test_a_post_of_another_page_is_refused(client: TestClient, folder: Path, origin: str | None) -> None:
    del client.headers["origin"]
    headers = {} if origin is None else {"origin": origin}
    for path, body in (("/predict", PHOTO), ("/edit", b'[["name", "0=cat"]]')):
        reply = client.post(path, content=body, headers=headers)
        assert reply.status_code == 403
        assert "does not come from the page" in reply.json()["error"]
    assert "dog" in (folder / "c.yaml").read_text()


def test_the_page_may_load_nothing_from_elsewhere(client: TestClient) -> None:
    for path in ("/", "/page.js", "/page.css", "/clusters"):
        reply = client.get(path)
        assert reply.status_code == 200
        assert reply.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self';")
        assert not re.search(r"https?://|//cdn|\beval\b|innerHTML", reply.text)
    for path in ("/c.yaml", "/../c.yaml", "/static/c.yaml", "/predict"):
        assert client.get(path).status_code in (404, 405)


# ---- the command


def test_serve_without_its_packages(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optional, "find_spec", lambda name: None if name == "uvicorn" else name)
    with pytest.raises(SystemExit, match=r"uvicorn is not installed; install it with `pip install '\.\[serve\]'` in a clone"):
        main(["serve", "--model", str(folder / "s.safetensors")])


def test_serve_says_what_is_wrong(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        with pytest.raises(SystemExit, match=f"port {port} cannot be used .*; give another one by --port"):
            main(["serve", "--model", str(folder / "s.safetensors"), "--port", port])
    with pytest.raises(SystemExit, match="no such file; name the folder of a run, or a model by --model"):
        main(["serve", str(folder), "--port", "0"])
    with pytest.raises(SystemExit, match="no such file"):
        main(["serve", "--model", str(folder / "none.safetensors"), "--port", "0"])
    with pytest.raises(SystemExit, match="2"):
        main(["serve", "--port", "65536"])
    assert "give a number from 0 to 65535" in capsys.readouterr().err


def test_a_folder_of_unseg_push_is_served(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "config.json").write_text("{}")
    (folder / "c.yaml").rename(folder / "clusters.yaml")
    asked, model = [], unseg.load(folder / "s.safetensors")
    monkeypatch.setattr(api, "load", lambda *words, **_: asked.append(words) or model)
    monkeypatch.setattr(uvicorn.Server, "run", lambda *_: None)
    main(["serve", str(folder), "--port", "0"])
    assert asked == [(folder, folder / "clusters.yaml")]


@pytest.fixture
def run(folder: Path) -> Path:
    """A run's folder: its model, params.yaml and clustering; no clusters.yaml yet."""
    (folder / "models").mkdir()
    (folder / "data").mkdir()
    (folder / "s.safetensors").rename(folder / "models/segmenter-r1.safetensors")
    shutil.copy(ROOT / "params.yaml", folder)
    (folder / "data/instances.json").write_text('{"categories": [{}, {}, {}, {}]}')
    (folder / "c.yaml").unlink()
    return folder


@pytest.fixture
def site(run: Path) -> Iterator[str]:
    """The address of `unseg serve` in a process of its own; Ctrl-C ends it in order."""
    words = [sys.executable, "-m", "unseg", "serve", str(run), "--port", "0"]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        address = re.match(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
        assert address, process.communicate(timeout=60)
        yield address[0]
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)  # a busy machine takes its time
        assert (process.returncode, out, err) == (0, "", "")
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as it:
        yield it


@NEEDS_CHROMIUM
def test_the_page(browser: Browser, site: str, run: Path) -> None:
    browser.open(site, DESK)
    rows = "[...document.querySelectorAll('#here li')]"
    titles = f"{rows}.map(e => e.querySelector('[type=text]')?.value ?? e.querySelector('.title').textContent)"
    browser.wait("document.querySelector('#about').textContent.includes('4 clusters')")
    Pillow.fromarray(pixels(300, 400)).save(run / "photo.png")
    browser.drop((run / "photo.png").read_bytes(), "photo.png")
    browser.wait(f"{rows}.length > 2")
    model = unseg.load(run / "models/segmenter-r1.safetensors")
    want = model.predict(pixels(300, 400))
    assert browser.value(titles) == [f.name for f in want.fractions()]
    # rename
    objects = [f.label - 1 for f in want.fractions() if f.label]
    first, second = objects[:2]
    find = f"{rows}.find(e => e.dataset.label == {first + 1}).querySelector"
    browser.value(f"{find}('[type=text]').focus()")
    browser.value(f"{find}('[type=text]').select()")
    browser.call("Input.insertText", text="a <b>dog</b>")
    browser.press("Enter", 13)
    browser.wait("document.querySelector('#reset').checkVisibility()")
    assert "a <b>dog</b>" in browser.value(titles)
    # merge
    menu = f"{rows}.find(e => e.dataset.label == {second + 1}).querySelector('select')"
    browser.value(f"(() => {{ const m = {menu}; m.value = '{first}'; m.dispatchEvent(new Event('change')); }})()")
    browser.wait("document.querySelectorAll('#gone li').length == 1")
    names = naming.read(run / "clusters.yaml", 4, naming.fingerprint(run / "data/instances.json"))
    assert names.entries == {first: naming.ClusterEntry("a <b>dog</b>"), second: naming.ClusterEntry(merge=first + 1)}
    merged = model.rename(names).predict(pixels(300, 400))
    assert len(merged.fractions()) < len(want.fractions())
    browser.wait(f"{titles}.join() == {json.dumps(','.join(f.name for f in merged.fractions()))}")
    areas = [f"{int(100 * f.fraction + 0.5) if f.fraction >= 0.005 else '< 1'}{PERCENT}" for f in merged.fractions()]
    assert browser.value(f"{rows}.map(e => e.querySelector('.area').textContent)") == areas
    # point at a pixel
    centre = "[b.x + b.width / 2, b.y + b.height / 2, Math.min(b.width / 400, b.height / 300)]"
    x, y, scale = browser.value(f"(b => {centre})(document.querySelector('#overlay').getBoundingClientRect())")
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=x + scale / 2, y=y + scale / 2)
    label, confidence = merged.labels[150, 200], merged.confidence[150, 200]
    tag = browser.value("document.querySelector('#tag').textContent")
    assert tag == f"{merged.names[label]}, confidence {round(100 * round(255 * float(confidence)) / 255)}{PERCENT}"
    # a bad file is a message, and the photograph stays
    browser.drop(b"hello", "notes.txt")
    browser.wait("document.querySelector('#message').checkVisibility()")
    said = browser.value("document.querySelector('#message').textContent")
    assert said == "notes.txt: not an image; choose a photograph that Pillow reads"
    assert browser.value(titles) == [f.name for f in merged.fractions()]
    # the next photograph
    browser.drop(file_of(Pillow.fromarray(pixels(200, 200, 5))), "b.png")
    browser.wait("document.querySelectorAll('#recent button').length == 2")
    for width in (1280, 500):
        for scheme in ("light", "dark"):
            media = [{"name": "prefers-color-scheme", "value": scheme}]
            browser.call("Emulation.setEmulatedMedia", features=media)
            browser.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
            assert browser.value("document.documentElement.scrollWidth") <= width
            browser.screenshot(run / f"page-{width}-{scheme}.png", whole=True)
            assert (run / f"page-{width}-{scheme}.png").stat().st_size > 10_000
    urls = [e["params"]["request"]["url"] for e in browser.events if e.get("method") == "Network.requestWillBeSent"]
    assert all(u.startswith((f"{site}/", "data:")) for u in urls)
    errors = [e for e in browser.events if e.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded")]
    assert [e["params"]["entry"]["text"] for e in errors] == [
        "Failed to load resource: the server responded with a status of 400 (Bad Request)"
    ]
