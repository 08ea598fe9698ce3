"""One photograph with its labels drawn over it, and a legend below: the picture that `unseg predict` writes.

Shapes: H rows, W columns; label maps are uint8 with 0 background, 255 void; colours [256, 3] uint8 by label.
"""

import cv2
import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from unseg.clustering.naming import ClusterNames
from unseg.core.label_maps import IGNORE_LABEL
from unseg.report import pictures

MIN_SIDE, MAX_SIDE = 320, 1280  # pixels of the longer side: smaller photographs are enlarged, larger ones reduced
ROW, PAD, MAX_LETTERS = 22, 8, 40  # pixels of a legend's row and around its entries; letters of a name
GROUND, GREY = (24, 24, 24), (110, 110, 110)  # colours of the legend, and of background in it


def colour_table(clusters: ClusterNames) -> np.ndarray:
    """[256, 3]: each cluster's colour from clusters.yaml, or the one that the report gives it without truth; void white."""
    table = np.zeros((256, 3), np.uint8)
    scheme = pictures.apply_names(pictures.scheme(clusters.count, [], {}), clusters)
    table[1 : clusters.count + 1] = scheme.clusters
    table[IGNORE_LABEL] = 255
    return table


def palette_image(labels: np.ndarray, table: np.ndarray) -> Pillow.Image:
    """A label map as a palette picture: its values are the labels, its colours those of the table."""
    image = Pillow.fromarray(labels).convert("P")  # of mode L: values stay
    image.putpalette(table.tobytes())
    return image


def resize(pixels: np.ndarray) -> np.ndarray:
    """A photograph at the size at which it is drawn."""
    return pictures.tile(Pillow.fromarray(pixels), min(max(max(pixels.shape[:2]), MIN_SIDE), MAX_SIDE))


def draw(pixels: np.ndarray, labels: np.ndarray, table: np.ndarray, names: dict[int, str], fixed: bool = False) -> np.ndarray:
    """[H, W, 3] uint8: the labels over the photograph, and a legend of the labels present, each with its fraction.

    Args:
        pixels: [H, W, 3] uint8 RGB.
        names: of the labels; one without a name is drawn but not listed.
        fixed: list all names instead, without fractions: the same for every frame of a video.
    """
    photo = resize(pixels)
    with_void = {**names, IGNORE_LABEL: "void"}
    painted = pictures.paint(photo, pictures.resize_labels(labels, photo), table, np.zeros(256, bool), with_void)
    texts = {k: name[:MAX_LETTERS] for k, name in sorted(names.items())}
    if not fixed:
        counts = np.bincount(labels.ravel(), minlength=256)
        present = [k for k in np.argsort(-counts, kind="stable").tolist() if counts[k] and k in with_void]
        percents = {k: 100 * counts[k] / labels.size for k in present}
        texts = {k: f"{with_void[k][:MAX_LETTERS]}: {f'{x:.0f} %' if x >= 0.5 else '< 1 %'}" for k, x in percents.items()}
    colours = [GREY if k == 0 else tuple(table[k].tolist()) for k in texts]
    below = legend(list(zip(colours, texts.values(), strict=True)), max(painted.shape[1], MIN_SIDE))
    painted = cv2.copyMakeBorder(painted, 0, 0, 0, below.shape[1] - painted.shape[1], cv2.BORDER_CONSTANT, value=GROUND)
    return np.concatenate([painted, below])


def legend(entries: list[tuple[tuple[int, ...], str]], width: int) -> np.ndarray:
    """Swatches and texts in as many rows as they need: [h, width, 3]."""
    font = ImageFont.load_default(14)
    places, x, y = [], PAD, PAD // 2
    for colour, text in entries:
        line = text.encode("utf-8", "replace").decode()
        length = 20 + int(font.getlength(line)) + 2 * PAD
        if x > PAD and x + length > width:
            x, y = PAD, y + ROW
        places.append((x, y, colour, line))
        x += length
    image = Pillow.new("RGB", (width, y + ROW + PAD // 2), GROUND)
    canvas = ImageDraw.Draw(image)
    for x, y, colour, line in places:
        canvas.rectangle((x, y + 4, x + 13, y + 17), colour, "white")
        canvas.text((x + 20, y + 2), line, "white", font)
    return np.asarray(image)
