"""Profiles written as params.yaml (unseg/core/profiles.py). The shipped ones: tests/pipeline/test_shipped_params.py."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from unseg.core import profiles
from unseg.core.console import InputError


def small_profiles(folder: Path, **files: str) -> Path:
    (folder / "base.yaml").write_text(
        "# Base.\n\nseed: 0\n\ngroup:               # a group\n  rate: 0.5   # of what\n  names: [a, b]\n"
    )
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


def test_a_profile_by_hand(tmp_path: Path) -> None:
    folder = small_profiles(
        tmp_path, one="# One.\n\ngroup: {rate: 2}  # fast\n", two="# Two.\nextends: one\ngroup: {names: [c]}\n"
    )
    wrote = "#\n# `unseg profile {}` wrote this file; (base: X) is base.yaml's value of a changed number.\n"
    body = "\nseed: 0\n\ngroup:               # a group\n  rate: 2                         # of what (base: 0.5)\n  names: "
    assert profiles.render("one", folder=folder) == f"# One.\n{wrote.format('one')}{body}[a, b]\n"
    assert profiles.render("two", folder=folder) == f"# Two.\n{wrote.format('two')}{body}[c]\n"
    assert yaml.safe_load(profiles.render("two", {"seed": 3}, folder))["seed"] == 3


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("none", {}, r"none.yaml: no such profile; there are bad, good, knot, old, other, text"),
        ("../one", {}, r"no such profile"),
        ("bad", {}, r"bad.yaml: group.rat is not a parameter; .*base.yaml lists them all"),
        ("knot", {}, r"knot.yaml: knot extends other extends knot; remove one `extends`"),
        ("text", {}, r"text.yaml holds no parameters"),
        ("other", {"group.x": 1}, r"knot extends"),
        ("good", {"group.x": 1}, r"--set: group.x is not a parameter"),
        ("good", {"adopt.threshold": 1}, r"--set: adopt is now called self_train; rename it"),
        ("old", {}, r"old.yaml: alarms.labels.empty is now called alarms.labels.max_empty; rename it"),
    ],
)
def test_profiles_that_cannot_be_used(tmp_path: Path, name: str, changes: dict[str, Any], message: str) -> None:
    texts = {"bad": "group: {rat: 1}", "knot": "extends: other", "other": "extends: knot", "text": "just text"}
    texts |= {"good": "group: {rate: 1}", "old": "alarms: {labels: {empty: 1}}"}
    with pytest.raises(InputError, match=message):
        profiles.render(name, changes, small_profiles(tmp_path, **texts))
