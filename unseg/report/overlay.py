"""One photograph with its labels laid over it, and a legend below: the picture that `unseg predict` writes.

Shapes: H rows, W columns; label maps are uint8 with 0 background, 255 void; colours [256, 3] uint8 by label.
"""

import cv2
import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from unseg.clustering.naming import ClusterNames
from unseg.report import pictures

LEAST, MOST = 320, 1280  # pixels of the longer side: smaller photographs are enlarged, larger ones reduced
ROW, PAD, LETTERS = 22, 8, 40  # pixels of a legend's row and around its entries; letters of a name


def colours(clusters: ClusterNames) -> np.ndarray:
    """[256, 3]: each cluster's own colour, or the one that the report gives it without truth; void white."""
    table = np.zeros((256, 3), np.uint8)
    table[1 : clusters.count + 1] = pictures.palette(clusters.count)
    for k, entry in clusters.entries.items():
        if entry.colour is not None:
            table[k + 1] = entry.colour
    table[255] = 255
    return table


def indexed(labels: np.ndarray, table: np.ndarray) -> Pillow.Image:
    """A label map as a palette picture: its values are the labels, its colours those of the table."""
    image = Pillow.fromarray(labels).convert("P")  # of mode L: values stay
    image.putpalette(table.tobytes())
    return image


def reduced(pixels: np.ndarray) -> np.ndarray:
    """A photograph at the size at which it is drawn."""
    return pictures.tile(Pillow.fromarray(pixels), min(max(max(pixels.shape[:2]), LEAST), MOST))


def drawn(pixels: np.ndarray, labels: np.ndarray, table: np.ndarray, names: dict[int, str], fixed: bool = False) -> np.ndarray:
    """[H, W, 3] uint8: the labels over the photograph, and a legend of those that it has, each with its share.

    Args:
        pixels: [H, W, 3] uint8 RGB.
        names: of the labels; one without a name is drawn but not listed.
        fixed: list all names instead, without shares: the same for every frame of a video.
    """
    photo = reduced(pixels)
    painted = pictures.paint(photo, pictures.fit(labels, photo), table, np.zeros(256, bool), {**names, 255: "void"})
    counts = np.bincount(labels.ravel(), minlength=256)
    listed = [k for k in np.argsort(-counts, kind="stable").tolist() if counts[k] and (k in names or k == 255)]
    shares = [f"{100 * counts[k] / labels.size:.0f} %" if 200 * counts[k] >= labels.size else "< 1 %" for k in listed]
    said = [f"{names.get(k, 'void')[:LETTERS]}: {share}" for k, share in zip(listed, shares, strict=True)]
    entries = [(table[k], words, k == 0) for k, words in zip(listed, said, strict=True)]
    if fixed:
        entries = [(table[k], name[:LETTERS], k == 0) for k, name in sorted(names.items())]
    below = legend(entries, max(painted.shape[1], LEAST))
    painted = cv2.copyMakeBorder(painted, 0, 0, 0, below.shape[1] - painted.shape[1], cv2.BORDER_CONSTANT, value=(24, 24, 24))
    return np.concatenate([painted, below])


def legend(entries: list[tuple[np.ndarray, str, bool]], width: int) -> np.ndarray:
    """Swatches and words in as many rows as they need: [h, width, 3]; of background, the swatch is grey."""
    font = ImageFont.load_default(14)
    places, x, y = [], PAD, PAD // 2
    for colour, text, grey in entries:
        line = text.encode("utf-8", "replace").decode()
        long = 20 + int(font.getlength(line)) + 2 * PAD
        if x > PAD and x + long > width:
            x, y = PAD, y + ROW
        places.append((x, y, (110, 110, 110) if grey else tuple(colour.tolist()), line))
        x += long
    image = Pillow.new("RGB", (width, y + ROW + PAD // 2), (24, 24, 24))
    draw = ImageDraw.Draw(image)
    for x, y, fill, line in places:
        draw.rectangle((x, y + 4, x + 13, y + 17), fill, "white")
        draw.text((x + 20, y + 2), line, "white", font)
    return np.asarray(image)
