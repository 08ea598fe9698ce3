"""Drawing for the report: colours, label maps laid over photographs, sheets of tiles.

Colours are those of `colours.palette`. Regions also have outlines and tags, and clusters without a class stripes.

Shapes: H rows, W columns of a tile; N colours; pixels are uint8 RGB unless said otherwise.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import cv2
import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from unseg.clustering.naming import ClusterNames
from unseg.core.colours import palette
from unseg.core.label_maps import IGNORE_LABEL

BACKGROUND_BRIGHTNESS = 0.6  # of the photograph, where no region is
REGION_OPACITY = 0.6  # of a region's colour over the photograph
QUALITY = 80  # of JPEGs
MAX_BYTES = 500_000  # of a sheet
MAX_LETTERS = 24  # of a tag
GAP, HEAD = 6, 22  # pixels between the tiles of a sheet, and above them


@dataclass(frozen=True)
class Scheme:
    """The colours and names of clusters and classes; a cluster that is matched to a class has the colour of the class."""

    clusters: np.ndarray  # [K, 3] uint8
    classes: np.ndarray  # [C, 3] uint8, background (drawn as the dimmed photograph) included
    names: tuple[str | None, ...]  # [K], of the matched classes; None: no class
    user_names: tuple[str | None, ...]  # [K], from clusters.yaml
    label_lut: np.ndarray = field(default_factory=lambda: np.arange(256, dtype=np.uint8))  # [256], merges of clusters.yaml

    def table(self) -> tuple[np.ndarray, np.ndarray]:
        """For a map of clusters (0 background, k + 1): colours [256, 3] and stripes [256] bool."""
        table, striped = np.zeros((256, 3), np.uint8), np.zeros(256, bool)
        table[1 : len(self.clusters) + 1] = self.clusters
        if len(self.classes):
            striped[1 : len(self.clusters) + 1] = [name is None for name in self.names]
        return table, striped

    def truth_table(self) -> tuple[np.ndarray, np.ndarray]:
        """As `table`, for a map of classes; nothing is striped."""
        table = np.pad(self.classes, ((0, 256 - len(self.classes)), (0, 0)))
        return table, np.zeros(256, bool)

    def title(self, cluster: int) -> str:
        """The user's name, or else the class, or else the number."""
        return self.user_names[cluster] or self.names[cluster] or f"cluster {cluster}"

    def merge_note(self, cluster: int) -> str:
        """What clusters.yaml does with it: "merged into dog", "ignored", or ""."""
        label = int(self.label_lut[cluster + 1])
        if label == cluster + 1:
            return ""
        return "ignored" if label == IGNORE_LABEL else f"merged into {self.title(label - 1) if label else 'background'}"

    def remarks(self, cluster: int) -> str:
        """The user's name and the merge, to follow the number: ", dog (merged into cat)" or ""."""
        name, merged = self.user_names[cluster], self.merge_note(cluster)
        return (f", {name}" if name else "") + (f" ({merged})" if merged else "")


def scheme(clusters: int, classes: Sequence[str], matched: dict[int, int]) -> Scheme:
    """Colours for clusters 0..K-1 and classes (background first, empty without truth); matched: cluster to class.

    A cluster that is matched to background counts as one without a class, so that it differs from unpainted background.
    """
    objects = max(len(classes) - 1, 0)
    colours = palette(objects + clusters)
    unused = iter(range(objects, objects + clusters))
    class_of = {k: c for k, c in matched.items() if c > 0}
    indices = [class_of[k] - 1 if k in class_of else next(unused) for k in range(clusters)]
    class_colours = np.concatenate([np.full((1, 3), 128, np.uint8), colours[:objects]])[: len(classes)]
    names = tuple(classes[class_of[k]] if k in class_of else None for k in range(clusters))
    return Scheme(colours[indices], class_colours, names, (None,) * clusters)


def apply_names(scheme: Scheme, clusters: ClusterNames) -> Scheme:
    """The scheme with the names, colours and merges of clusters.yaml."""
    colours = scheme.clusters.copy()
    for k, entry in clusters.entries.items():
        colours[k] = entry.colour or colours[k]
    names = tuple(clusters.entry(k).name for k in range(clusters.count))
    return replace(scheme, clusters=colours, user_names=names, label_lut=clusters.label_lut())


def tile(photo: Pillow.Image, side: int) -> np.ndarray:
    """The photograph with its longer side at `side` pixels, [H, W, 3]; no side becomes 0."""
    scale = side / max(photo.size)
    width, height = (max(1, round(n * scale)) for n in photo.size)
    return np.asarray(photo.resize((width, height), Pillow.Resampling.LANCZOS))


def resize_labels(labels: np.ndarray, photo: np.ndarray) -> np.ndarray:
    """A map or mask at the size of a tile, nearest neighbour: [H, W]."""
    rows, cols = photo.shape[:2]
    return cv2.resize(labels.astype(np.uint8), (cols, rows), interpolation=cv2.INTER_NEAREST_EXACT).astype(labels.dtype)


def grey(photo: np.ndarray) -> np.ndarray:
    """[H, W, 3] float, all three channels alike."""
    return np.repeat((photo @ np.array([0.299, 0.587, 0.114]))[..., None], 3, 2)


def outline(labels: np.ndarray) -> np.ndarray:
    """Pixels with a neighbour (4) of another label, [H, W] bool."""
    padded = np.pad(labels, 1, mode="edge")
    neighbours = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    return np.asarray(np.logical_or.reduce([labels != n for n in neighbours]))


def paint(
    photo: np.ndarray, labels: np.ndarray, table: np.ndarray, striped: np.ndarray, tags: dict[int, str] | None = None
) -> np.ndarray:
    """A label map [H, W] uint8 over its photograph: background dimmed, void in white stripes, tags inside the regions."""
    base, lines = grey(photo)[..., :1], stripes(labels.shape)
    in_region = (labels > 0) & (labels != IGNORE_LABEL)
    regions = (1 - REGION_OPACITY) * base + (REGION_OPACITY * table)[labels]
    out = np.where(in_region[..., None], regions, BACKGROUND_BRIGHTNESS * base)
    if striped.any():
        out[striped[labels] & lines & in_region] *= 0.4
    out[(labels == IGNORE_LABEL) & lines] = 255
    rim = outline(labels) & in_region
    out[rim] = table[labels[rim]]
    picture = out.clip(0, 255, out).astype(np.uint8)
    present = np.flatnonzero(np.bincount(labels[in_region], minlength=1)).tolist()
    places = [(xy, tags[k]) for k in present if tags and k in tags and (xy := tag_position(labels == k))]
    return draw_text(picture, places, "mm")


def stripes(shape: tuple[int, ...]) -> np.ndarray:
    """Diagonals, [H, W] bool."""
    rows, cols = np.indices(shape)
    return np.asarray((rows + cols) % 8 < 3)


def tag_position(mask: np.ndarray) -> tuple[int, int] | None:
    """xy of the pixel farthest from the outline; None if there is no room for a tag."""
    left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
    within = mask[top : top + height, left : left + width]
    depth = cv2.distanceTransform(np.pad(within, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
    if not depth.size:
        return None
    row, col = np.unravel_index(depth.argmax(), depth.shape)
    return (left + int(col), top + int(row)) if depth[row, col] > 6 else None


def draw_instances(
    photo: np.ndarray,
    masks: Sequence[np.ndarray],
    labels: Sequence[int],
    tags: Sequence[str],
    table: np.ndarray,
    striped: np.ndarray,
) -> np.ndarray:
    """Instances over a photograph, the first on top: masks [H, W] bool, their boxes, and a tag at each box's corner."""
    base, lines = grey(photo), stripes(photo.shape[:2])
    out = BACKGROUND_BRIGHTNESS * base
    for mask, label in reversed(list(zip(masks, labels, strict=True))):
        out[mask] = (1 - REGION_OPACITY) * base[mask] + REGION_OPACITY * table[label]
        out[mask & lines & striped[label]] *= 0.4
        out[mask & outline(mask)] = table[label]
    image = Pillow.fromarray(out.clip(0, 255).astype(np.uint8))
    draw, corners = ImageDraw.Draw(image), []
    for mask, label, text in reversed(list(zip(masks, labels, tags, strict=True))):
        rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if rows.size:
            draw.rectangle((cols[0], rows[0], cols[-1], rows[-1]), outline=tuple(table[label].tolist()), width=2)
            corners.append(((int(cols[0]) + 4, int(rows[0]) + 2), text))
    return draw_text(np.asarray(image), corners, "la")


def draw_text(picture: np.ndarray, places: Sequence[tuple[tuple[int, int], str]], anchor: str) -> np.ndarray:
    """White text with a dark rim at xy places, moved inwards where it would cross the picture's border."""
    image = Pillow.fromarray(picture)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(14)
    for xy, text in places:
        line = " ".join(text.encode("utf-8", "replace").decode().split())[:MAX_LETTERS]
        left, top, right, bottom = draw.textbbox(xy, line, font, anchor, stroke_width=2)
        x = xy[0] - max(0, right - image.width) + max(0, -left)
        y = xy[1] - max(0, bottom - image.height) + max(0, -top)
        draw.text((x, y), line, "white", font, anchor, stroke_width=2, stroke_fill="black")
    return np.asarray(image)


def crop(photo: Pillow.Image, mask: np.ndarray, side: int) -> np.ndarray:
    """A square around the object of a mask [H, W], the rest dimmed, black beyond the photograph: [S, S, 3]."""
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    span = round(1.15 * max(rows[-1] - rows[0] + 1, cols[-1] - cols[0] + 1))
    left, top = (cols[0] + cols[-1] + 1 - span) // 2, (rows[0] + rows[-1] + 1 - span) // 2
    box = (int(left), int(top), int(left) + span, int(top) + span)
    pixels = np.asarray(photo.crop(box).resize((side, side), Pillow.Resampling.BILINEAR))
    inside = np.asarray(Pillow.fromarray(mask).crop(box).resize((side, side), Pillow.Resampling.NEAREST))
    return np.where(inside[..., None], pixels, 0.35 * grey(pixels)).astype(np.uint8)


def sheet(rows: Sequence[Sequence[np.ndarray | None]], heads: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """Tiles as one picture, [H, W, 3]: heads above the columns (may be empty), names above the rows; None is a gap."""
    side = max((max(t.shape[:2]) for row in rows for t in row if t is not None), default=1)
    columns = max([len(heads), 1, *map(len, rows)])
    above = [HEAD if name else 0 for name in names]
    heights = [max((t.shape[0] for t in row if t is not None), default=HEAD) for row in rows]
    top = HEAD if heads else GAP
    canvas = np.full((top + sum(heights) + sum(above) + GAP * len(rows), GAP + columns * (side + GAP), 3), 24, np.uint8)
    texts = [((GAP + j * (side + GAP), 3), head) for j, head in enumerate(heads)]
    for row, name, space, height in zip(rows, names, above, heights, strict=True):
        texts.append(((GAP, top + 3), name))
        top += space
        for j, picture in enumerate(row):
            if picture is not None:
                h, w = picture.shape[:2]
                canvas[top : top + h, GAP + j * (side + GAP) :][:, :w] = picture
        top += height + GAP
    return draw_text(canvas, texts, "la")


def jpeg(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Pillow.fromarray(picture).save(buffer, "JPEG", quality=QUALITY, subsampling=0, optimize=True)
    return buffer.getvalue()


def small_png(picture: np.ndarray, limit: int = MAX_BYTES) -> bytes:
    """A PNG of 256 colours and at most `limit` bytes, made smaller until it fits, down to 64 pixels across."""
    image = Pillow.fromarray(picture)
    while True:
        buffer = io.BytesIO()
        image.quantize(256, Pillow.Quantize.FASTOCTREE, dither=Pillow.Dither.NONE).save(buffer, "PNG", optimize=True)
        if buffer.tell() <= limit or image.width <= 64:
            return buffer.getvalue()
        image = image.resize((image.width * 9 // 10, max(1, image.height * 9 // 10)), Pillow.Resampling.LANCZOS)
