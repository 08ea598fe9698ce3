"""params.yaml, read group by group into frozen dataclasses that have no defaults."""

import re
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from unseg.core.console import InputError

T = TypeVar("T")
FILE = "params.yaml"
RENAMED = {  # earlier names of parameters
    "croc.views.smallest": "crop_min_scale",
    "croc.views.jitter_chance": "jitter_prob",
    "croc.views.grey_chance": "grey_prob",
    "croc.views.blur_chances": "blur_probs",
    "croc.views.solarise_chances": "solarise_probs",
    "segmenter.hard_share": "hard_pixel_ratio",
    "segmenter.drop_epoch": "lr_milestone",
    "linear.drop_epoch": "lr_milestone",
    "backbone_linear.smallest": "crop_min_scale",
    "backbone_linear.head.drop_epoch": "lr_milestone",
}
YAML12_FLOAT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")  # 1e-05, as DVC writes it: a number in YAML 1.2, text in 1.1


def value(key: str, kind: type[T], file: str | Path = FILE) -> T:
    """One value by its dotted key, e.g. `value("cluster.k", int)`.

    Raises:
        InputError: no such file or key, or a value of another type.
    """
    node = read(file)
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            raise InputError(f"{file}: {key} is missing; profiles/base.yaml has every key")
        node = node[part]
    checked: T = check(key, kind, node, file)
    return checked


def read(file: str | Path = FILE) -> Any:
    """The content of a YAML file. Raises InputError if there is no such file or it is not YAML."""
    try:
        return yaml.safe_load(Path(file).read_text("utf-8"))
    except FileNotFoundError:
        raise InputError(f"{file}: no such file; run from the root of the repository") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{file} is not YAML: {' '.join(str(error).split())}") from None


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by dotted key; a list is one value."""
    flat: dict[str, Any] = {}
    for key, x in tree.items():
        flat |= flatten(x, f"{prefix}{key}.") if isinstance(x, Mapping) else {f"{prefix}{key}": x}
    return flat


def group(key: str, kind: type[T], file: str | Path = FILE) -> T:
    """A whole group as the dataclass `kind`, e.g. `group("mine", Mining)`.

    Raises:
        InputError: a key that is missing, unknown, of another type, or out of range (the dataclass's own
            `__post_init__` raises ValueError for that).
    """
    built: T = check(key, kind, value(key, dict, file), file)
    return built


def check(key: str, kind: Any, got: Any, file: str | Path) -> Any:
    """got as a value of type kind: numbers, str, bool, X | None, list[X], or a dataclass from a mapping."""
    if is_dataclass(kind) and isinstance(got, dict):
        return build(key, kind, got, file)
    if typing.get_origin(kind) is list and isinstance(got, list):
        (item,) = typing.get_args(kind)
        return [check(f"{key}[{i}]", item, x, file) for i, x in enumerate(got)]
    options = typing.get_args(kind) if typing.get_origin(kind) is not list else ()
    if type(None) in options:
        (inner,) = (o for o in options if o is not type(None))
        return None if got is None else check(key, inner, got, file)
    if kind is float and isinstance(got, str) and YAML12_FLOAT.fullmatch(got):
        return float(got)
    if kind is float and isinstance(got, int) and not isinstance(got, bool):
        return float(got)
    if not isinstance(kind, type) or not isinstance(got, kind) or (isinstance(got, bool) and kind is not bool):
        raise InputError(f"{file}: {key} is {got!r}; it must be {kind.__name__ if isinstance(kind, type) else kind}")
    return got


def build(key: str, kind: Any, got: dict[str, Any], file: str | Path) -> Any:
    types = typing.get_type_hints(kind)
    known = [f.name for f in fields(kind)]
    for name in got:
        if name not in known and (new := RENAMED.get(f"{key}.{name}")):
            raise InputError(f"{file}: {key}.{name} is now called {key}.{new}; rename it")
        if name not in known:
            raise InputError(f"{file}: {key}.{name} is not a parameter; {key} has {', '.join(known)}")
    for name in known:
        if name not in got:
            raise InputError(f"{file}: {key}.{name} is missing; profiles/base.yaml has every key")
    parts = {name: check(f"{key}.{name}", types[name], got[name], file) for name in known}
    try:
        return kind(**parts)
    except ValueError as error:
        raise InputError(f"{file}: {error}") from None
