"""What people say of clusters: a name, a colour, which belong together, which to leave out (clusters.yaml).

    clusters:
      0: {name: dog, colour: '#e69f00'}
      3: {merge: 0}             # these pixels are cluster 0's
      4: {merge: background}
      5: {ignore: true}         # void: no answer here

Clusters are numbered from 0, as on the report's cards; in a label map 0 is background, cluster + 1 an object, 255 void.
Numbers stay what they are whatever is merged. Needs no torch.

Shapes: K clusters; label maps are [H, W] uint8.
"""

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from unseg.core.console import InputError
from unseg.core.label_maps import IGNORE_LABEL
from unseg.core.storage import atomic_write

FILE = "clusters.yaml"
BACKGROUND = "background"
RESERVED = (BACKGROUND, "void")
KEYS = ("name", "colour", "merge", "ignore")
HEAD = """\
# What the clusters are, in your words: used by `unseg predict`, by the report, and, where params.yaml lists a `regroup`,
# before the segmenter is trained. Empty: clusters keep their numbers. See docs/folder.md; `unseg clusters` edits this file.
#   3: {name: dog, colour: '#e69f00'}    4: {merge: 3}    5: {merge: background}    6: {ignore: true}
"""


@dataclass(frozen=True)
class ClusterEntry:
    """What is said of one cluster; nothing by default."""

    name: str | None = None
    colour: tuple[int, int, int] | None = None  # RGB
    merge: int | None = None  # the label, not the cluster, that its pixels get: 0 background, cluster + 1
    ignore: bool = False


@dataclass(frozen=True)
class ClusterNames:
    """K clusters and what is said of them."""

    count: int  # K
    entries: dict[int, ClusterEntry] = field(default_factory=dict)
    clustering: str | None = None  # fingerprint of the clustering that the numbers are of; None: not noted

    def entry(self, cluster: int) -> ClusterEntry:
        return self.entries.get(cluster, ClusterEntry())

    def label_lut(self) -> np.ndarray:
        """[256] uint8: the label that each label turns into; merged ones their target, ignored ones void."""
        table = np.arange(256, dtype=np.uint8)
        for k, entry in self.entries.items():
            table[k + 1] = IGNORE_LABEL if entry.ignore else k + 1 if entry.merge is None else entry.merge
        return table

    def title(self, cluster: int) -> str:
        """Its own name, whatever it is merged into."""
        return self.entry(cluster).name or f"cluster {cluster}"

    def names(self) -> dict[int, str]:
        """The labels that a map can hold, background first, and their names; void has none."""
        shown = [k for k in range(self.count) if not self.entry(k).ignore and self.entry(k).merge is None]
        return {0: BACKGROUND, **{k + 1: self.title(k) for k in shown}}


def fingerprint(instances: str | Path) -> str:
    """Of a clustering: its data/instances.json."""
    try:
        return hashlib.blake2b(Path(instances).read_bytes(), digest_size=6).hexdigest()
    except OSError as error:
        raise InputError(f"{instances} cannot be read ({error.strerror}); make it with `dvc repro cluster`") from None


def read(path: str | Path, count: int, clustering: str | None = None) -> ClusterNames:
    """What clusters.yaml says of K = count clusters.

    Args:
        clustering: fingerprint of the clustering at hand; a file that notes another one is refused.

    Raises:
        InputError: no such file, not of the form above, a cluster that there is not, two names alike, a merge in a chain.
    """
    try:
        tree = yaml.safe_load(Path(path).read_text("utf-8")) or {}
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; `unseg clusters` writes one") from None
    except (OSError, yaml.YAMLError, ValueError, RecursionError, TypeError) as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    rows = (tree.get("clusters") or {}) if isinstance(tree, dict) else None
    if not isinstance(rows, dict) or set(tree) - {"clusters", "clustering"}:
        raise InputError(f"{path}: it must hold `clusters:` with a line for each cluster, e.g. 3: {{name: dog}}")
    noted = tree.get("clustering")
    if clustering and noted and rows and noted != clustering:
        raise InputError(f"{path} is of another clustering, whose numbers mean other things: `unseg clusters --reset all`")
    entries = {}
    for k, row in rows.items():
        if not isinstance(k, int) or isinstance(k, bool) or not 0 <= k < count:
            raise InputError(f"{path}: there is no cluster {k!r}; there are 0 to {count - 1}")
        entries[k] = parse(path, k, row or {}, count)
    built = ClusterNames(count, entries, str(noted) if noted else clustering)
    check(path, built)
    return built


def parse(path: str | Path, k: int, row: Any, count: int) -> ClusterEntry:
    """One line of the file."""

    def wrong(what: str) -> InputError:
        return InputError(f"{path}: cluster {k}: {what}")

    if not isinstance(row, dict) or set(row) - set(KEYS):
        raise wrong(f"{row!r} is not understood; it can have {', '.join(KEYS)}")
    name, merge, ignore = row.get("name"), row.get("merge"), row.get("ignore", False)
    if name is not None and (not isinstance(name, str) or not name.strip() or name.strip().casefold() in RESERVED):
        raise wrong(f"its name is {name!r}; it must be a text, and not {' or '.join(RESERVED)}")
    if not isinstance(ignore, bool):
        raise wrong(f"ignore is {ignore!r}; it must be true or false")
    if merge is not None and merge != BACKGROUND and not (type(merge) is int and 0 <= merge < count and merge != k):
        raise wrong(f"it cannot be merged into {merge!r}; it must be another of 0 to {count - 1}, or {BACKGROUND}")
    if ignore and merge is not None:
        raise wrong("it is both ignored and merged; remove one")
    label = None if merge is None else 0 if merge == BACKGROUND else merge + 1
    try:
        return ClusterEntry(name.strip() if name else None, parse_colour(row.get("colour")), label, ignore)
    except ValueError as error:
        raise wrong(str(error)) from None


def parse_colour(text: Any) -> tuple[int, int, int] | None:
    """'#e69f00' to (230, 159, 0). Raises: ValueError."""
    if text is None:
        return None
    if not isinstance(text, str) or not re.fullmatch("#[0-9a-fA-F]{6}", text):
        raise ValueError(f"its colour is {text!r}; it must be like '#e69f00', in quotes")
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)


def check(path: str | Path, clusters: ClusterNames) -> None:
    """What only the whole can tell. Raises: InputError."""
    for k, entry in clusters.entries.items():
        if entry.merge:
            target = clusters.entry(entry.merge - 1)
            if target.ignore or target.merge is not None:
                state = "ignored" if target.ignore else "itself merged"
                raise InputError(f"{path}: cluster {k} is merged into {entry.merge - 1}, which is {state}; name the last of them")
    seen: dict[str, int] = {}
    for label, name in clusters.names().items():
        twin = seen.setdefault(name.casefold(), label)
        if twin != label:
            raise InputError(f"{path}: clusters {twin - 1} and {label - 1} have the name {name!r}; merge one into the other")


def write(path: str | Path, clusters: ClusterNames) -> None:
    """The file that `read` reads; clusters of which nothing is said are left out."""
    rows: dict[int, dict[str, Any]] = {}
    for k, entry in sorted(clusters.entries.items()):
        row: dict[str, Any] = {"name": entry.name, "ignore": entry.ignore or None}
        row["colour"] = "#{:02x}{:02x}{:02x}".format(*entry.colour) if entry.colour else None
        row["merge"] = None if entry.merge is None else BACKGROUND if entry.merge == 0 else entry.merge - 1
        if kept := {key: row[key] for key in KEYS if row[key] is not None}:
            rows[k] = kept
    tree = {"clustering": clusters.clustering} if clusters.clustering and rows else {}
    text = yaml.safe_dump(tree, allow_unicode=True) if tree else ""
    body = yaml.safe_dump({"clusters": rows}, default_flow_style=None, sort_keys=False, allow_unicode=True, width=1000)
    check(path, clusters)
    with atomic_write(path) as part:
        part.write_text(f"{HEAD}{text}{body}", "utf-8")
