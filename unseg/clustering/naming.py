"""clusters.yaml: names and colours that users give to clusters, clusters to merge, and clusters to ignore.

    clusters:
      0: {name: dog, colour: '#e69f00'}
      3: {merge: 0}             # the pixels become cluster 0
      4: {merge: background}
      5: {ignore: true}         # the pixels become void

Clusters are numbered from 0, as on the report's cards; merging does not renumber them. In a label map 0 is background, cluster
+ 1 an object, 255 void. Needs no torch.

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
    """The line of one cluster; empty by default."""

    name: str | None = None
    colour: tuple[int, int, int] | None = None  # RGB
    merge: int | None = None  # the label (not the cluster) of its pixels: 0 background, cluster + 1
    ignore: bool = False


@dataclass(frozen=True)
class ClusterNames:
    """The content of clusters.yaml."""

    count: int  # K
    entries: dict[int, ClusterEntry] = field(default_factory=dict)
    clustering: str | None = None  # fingerprint of the clustering that the numbers refer to; None: unknown

    def entry(self, cluster: int) -> ClusterEntry:
        return self.entries.get(cluster, ClusterEntry())

    def label_lut(self) -> np.ndarray:
        """[256] uint8: the new label of each label. Merged clusters get their target, ignored ones void."""
        lut = np.arange(256, dtype=np.uint8)
        for k, entry in self.entries.items():
            lut[k + 1] = IGNORE_LABEL if entry.ignore else k + 1 if entry.merge is None else entry.merge
        return lut

    def title(self, cluster: int) -> str:
        """The name of a cluster, even if it is merged into another."""
        return self.entry(cluster).name or f"cluster {cluster}"

    def names(self) -> dict[int, str]:
        """The names of the labels that a map can have after merging, background first, without void."""
        shown = [k for k in range(self.count) if not self.entry(k).ignore and self.entry(k).merge is None]
        return {0: BACKGROUND, **{k + 1: self.title(k) for k in shown}}


def fingerprint(instances: str | Path) -> str:
    """A hash of a clustering, i.e. of its data/instances.json. Raises InputError if it cannot be read."""
    try:
        return hashlib.blake2b(Path(instances).read_bytes(), digest_size=6).hexdigest()
    except OSError as error:
        raise InputError(f"{instances} cannot be read ({error.strerror}); make it with `dvc repro cluster`") from None


def read(path: str | Path, count: int, clustering: str | None = None) -> ClusterNames:
    """Read clusters.yaml for K = count clusters.

    Args:
        clustering: fingerprint of the current clustering; a file for another one is refused.

    Raises:
        InputError: no such file, another format, an unknown cluster, two equal names, or a merge into a merged cluster.
    """
    try:
        tree = yaml.safe_load(Path(path).read_text("utf-8")) or {}
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; `unseg clusters` writes one") from None
    except (OSError, yaml.YAMLError, ValueError, RecursionError, TypeError) as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    rows = (tree.get("clusters") or {}) if isinstance(tree, dict) else None
    if not isinstance(rows, dict) or set(tree) - {"clusters", "clustering"}:
        raise InputError(f"{path}: it must have `clusters:` with a line for each cluster, e.g. 3: {{name: dog}}")
    stored = tree.get("clustering")
    if clustering and stored and rows and stored != clustering:
        raise InputError(f"{path} is for another clustering, with other cluster numbers: `unseg clusters --reset all`")
    for k in rows:
        if type(k) is not int or not 0 <= k < count:
            raise InputError(f"{path}: there is no cluster {k!r}; there are 0 to {count - 1}")
    entries = {k: parse(path, k, row or {}, count) for k, row in rows.items()}
    names = ClusterNames(count, entries, str(stored) if stored else clustering)
    check(path, names)
    return names


def parse(path: str | Path, k: int, row: Any, count: int) -> ClusterEntry:
    """One line of the file. Raises InputError if it is invalid."""
    prefix = f"{path}: cluster {k}: "
    if not isinstance(row, dict) or set(row) - set(KEYS):
        raise InputError(f"{prefix}{row!r} is not understood; it can have {', '.join(KEYS)}")
    name, colour, merge, ignore = row.get("name"), row.get("colour"), row.get("merge"), row.get("ignore", False)
    if name is not None and (not isinstance(name, str) or not name.strip() or name.strip().casefold() in RESERVED):
        raise InputError(f"{prefix}its name is {name!r}; it must be a text, and not {' or '.join(RESERVED)}")
    if colour is not None and not (isinstance(colour, str) and re.fullmatch("#[0-9a-fA-F]{6}", colour)):
        raise InputError(f"{prefix}its colour is {colour!r}; it must be like '#e69f00', in quotes")
    if not isinstance(ignore, bool):
        raise InputError(f"{prefix}ignore is {ignore!r}; it must be true or false")
    if merge is not None and merge != BACKGROUND and not (type(merge) is int and 0 <= merge < count and merge != k):
        raise InputError(f"{prefix}it cannot be merged into {merge!r}; it must be another of 0 to {count - 1}, or {BACKGROUND}")
    if ignore and merge is not None:
        raise InputError(f"{prefix}it is both ignored and merged; remove one")
    label = None if merge is None else 0 if merge == BACKGROUND else merge + 1
    rgb = (int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)) if colour else None
    return ClusterEntry(name.strip() if name else None, rgb, label, ignore)


def check(path: str | Path, clusters: ClusterNames) -> None:
    """Raises InputError if a cluster is merged into a merged or ignored one, or two labels have the same name."""
    for k, entry in clusters.entries.items():
        if entry.merge:
            target = clusters.entry(entry.merge - 1)
            if target.ignore or target.merge is not None:
                state = "ignored" if target.ignore else "itself merged"
                raise InputError(f"{path}: cluster {k} is merged into {entry.merge - 1}, which is {state}; name the last of them")
    labels: dict[str, int] = {}
    for label, name in clusters.names().items():
        first = labels.setdefault(name.casefold(), label)
        if first != label:
            raise InputError(f"{path}: clusters {first - 1} and {label - 1} have the name {name!r}; merge one into the other")


def write(path: str | Path, clusters: ClusterNames) -> None:
    """Write the file for `read`, without empty lines of clusters. Raises InputError as `check` does."""
    check(path, clusters)
    rows: dict[int, dict[str, Any]] = {}
    for k, entry in sorted(clusters.entries.items()):
        colour = "#{:02x}{:02x}{:02x}".format(*entry.colour) if entry.colour else None
        merge = None if entry.merge is None else BACKGROUND if entry.merge == 0 else entry.merge - 1
        row = dict(zip(KEYS, (entry.name, colour, merge, entry.ignore or None), strict=True))
        rows[k] = {key: value for key, value in row.items() if value is not None}
    rows = {k: row for k, row in rows.items() if row}
    has_mark = clusters.clustering and rows
    text = yaml.safe_dump({"clustering": clusters.clustering}, allow_unicode=True) if has_mark else ""
    body = yaml.safe_dump({"clusters": rows}, default_flow_style=None, sort_keys=False, allow_unicode=True, width=1000)
    with atomic_write(path) as part:
        part.write_text(f"{HEAD}{text}{body}", "utf-8")
