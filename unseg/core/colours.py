"""Colours of clusters, which people with any colour vision can tell apart.

Seven of Okabe and Ito's (without black: the background is the dimmed photograph), then colours of the golden angle, each as far
as possible from those before it in normal, deuteranope and protanope vision (OKLab, Ottosson 2020; dichromacy after Machado et
al. 2009). colorcet's glasbey_light has 256 colours where a report may need 334, and among the first 20 of them a colour-blind
reader sees two 0.004 apart (here 0.06; 0.02 is just noticeable).

Shapes: N colours, uint8 RGB; H rows, W columns of a picture.
"""

import numpy as np

OKABE_ITO = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))
CANDIDATES = 2048  # further colours to choose from

RGB_TO_LMS = np.array([[0.4122, 0.5363, 0.0514], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.6300]])
LMS_TO_LAB = np.array([[0.2105, 0.7936, -0.0041], [1.9780, -2.4286, 0.4506], [0.0259, 0.7828, -0.8087]])
VISION = np.array(
    [
        np.eye(3),
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],  # deuteranope
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],  # protanope
    ]
)


def palette(count: int) -> np.ndarray:
    """The first `count` colours, [N, 3] uint8; a longer palette begins with the shorter one. At most CANDIDATES."""
    i = np.arange(1, CANDIDATES + 1)
    light, chroma, hue = 0.48 + 0.44 * (i * 0.7549 % 1), 0.04 + 0.14 * (i * 0.5698 % 1), np.deg2rad(i * 137.50776)
    lab = np.stack([light, chroma * np.cos(hue), chroma * np.sin(hue)], 1)  # [CANDIDATES, 3]
    linear = (lab @ np.linalg.inv(LMS_TO_LAB).T) ** 3 @ np.linalg.inv(RGB_TO_LMS).T
    candidates = (255 * linear.clip(0, 1) ** (1 / 2.2)).round().astype(np.uint8)
    pool = np.concatenate([np.array(OKABE_ITO, np.uint8), candidates])
    lab_by_vision = oklab(pool)  # [visions, N, 3]
    distance = np.full(len(pool), np.inf)  # to the nearest chosen colour
    chosen = list(range(min(count, len(OKABE_ITO))))
    for k in range(count):
        if k == len(chosen):
            chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(lab_by_vision - lab_by_vision[:, [chosen[k]]], axis=2).min(0))
    return pool[chosen]


def oklab(colours: np.ndarray) -> np.ndarray:
    """OKLab coordinates of [N, 3] uint8 in each kind of VISION, [visions, N, 3]; a distance of 0.02 is just noticeable."""
    linear = np.einsum("eij,nj->eni", VISION, (colours / 255.0) ** 2.2).clip(0, 1)
    return np.asarray(np.cbrt(linear @ RGB_TO_LMS.T) @ LMS_TO_LAB.T)


def overlay(photo: np.ndarray, labels: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Labels over a photograph, half and half; 0 shows the photograph, 255 white: [H, W, 3] uint8.

    Args:
        photo: [H, W, 3] uint8.
        labels: [H, W] uint8: 0, 1..N or 255.
        table: [N, 3] uint8; label 1 has the first colour.
    """
    colours = np.full((256, 3), 255, np.uint8)
    colours[1 : len(table) + 1] = table
    blend = ((photo.astype(np.uint16) + colours[labels]) // 2).astype(np.uint8)
    return np.where(labels[..., None] > 0, blend, photo)
