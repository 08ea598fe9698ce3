"""Label maps in a zip (core/label_maps.py)."""

import os
from pathlib import Path

import numpy as np
import pytest

from unseg.core import label_maps
from unseg.core.image_index import ImageRecord
from unseg.core.label_maps import LabelMaps


def test_a_forked_worker_opens_the_zip_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would move the place in the file that its parent and the other workers read from."""
    image = ImageRecord(1, "a.jpg", 3, 4, "both")
    label_maps.write_label_maps(tmp_path / "maps.zip", [("a.jpg", np.full((3, 4), 7, np.uint8))])
    maps = LabelMaps(tmp_path / "maps.zip")
    assert maps[image][0, 0] == 7
    opened, parent = maps._zip, os.getpid()
    assert maps[image][0, 0] == 7
    assert maps._zip is opened  # once in each process
    monkeypatch.setattr(os, "getpid", lambda: parent + 1)
    assert maps[image][0, 0] == 7
    assert maps._zip is not opened
