"""The alarms for collapsed outputs (unseg/core/alarms.py)."""

from dataclasses import replace

import factories
import numpy as np
import pytest

from unseg.core import alarms
from unseg.core.console import InputError

MASKS = alarms.MaskAlarm(min_images=4, max_missing=0.5, min_area=0.1, max_area=0.9)


@pytest.mark.parametrize(
    ("areas", "message"),
    [
        ([0.5], r"m.json: collapse: 75% of 4 images have no mask; lower mine.resize, or raise alarms.masks.max_missing \(0.5\)"),
        (
            [0.05] * 4,
            r"covers 5.00% of its image on average; try .*, or lower alarms.masks.min_area \(0.1\)",
        ),
        ([0.95] * 4, r"covers 95.0% of its image on average; try mine.center: true, or raise alarms.masks.max_area \(0.9\)"),
    ],
)
def test_mask_alarm(areas: list[float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        MASKS.check("m.json", areas, 4)
    MASKS.check("m.json", areas, 3)  # too few images
    for at_the_limit in ([0.5] * 2, [0.125] * 4, [0.875] * 4):
        replace(MASKS, min_area=0.125, max_area=0.875).check("m.json", at_the_limit, 4)


def test_cluster_alarm() -> None:
    alarm = alarms.ClusterAlarm(min_masks=10, max_fraction=0.9)
    for sizes in ([9, 1], [9, 0], [20]):  # at the limit, too few masks, K = 1
        alarm.check("c", np.array(sizes))
    message = r"c: collapse: one cluster holds 95.0% of 20 masks; raise .*, or raise alarms.clusters.max_fraction \(0.9\)"
    with pytest.raises(InputError, match=message):
        alarm.check("c", np.array([19, 1]))


def test_label_alarm() -> None:
    alarm = alarms.LabelAlarm(min_images=4, max_empty=0.5)
    alarm.check("l", [True, True, False, False])
    alarm.check("l", [False] * 3)
    with pytest.raises(InputError, match="75% of 4 pseudo-labels are all background"):
        alarm.check("l", [True, False, False, False])


def test_segmentation_alarm() -> None:
    alarm = alarms.SegmentationAlarm(min_images=4, min_clusters=2)
    alarm.check("s", 2, 8, 4)
    alarm.check("s", 1, 1, 4)
    alarm.check("s", 0, 8, 3)
    with pytest.raises(InputError, match="1 of 8 clusters occur in the final segmentation of 4 images"):
        alarm.check("s", 1, 8, 4)


@pytest.mark.parametrize("key", ["max_missing", "min_area", "max_area"])
def test_limits_are_fractions(key: str) -> None:
    with pytest.raises(InputError, match=rf"alarms.masks.{key} is 1.5; it must be at least 0 and at most 1"):
        factories.group("alarms.masks", alarms.MaskAlarm, **{key: 1.5})
