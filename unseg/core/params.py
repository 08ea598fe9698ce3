"""params.yaml, read group by group into frozen dataclasses without defaults.

The type of a field declares its range: a type below, `Literal["mask", "box"]`, or `Annotated[int, Interval(ge=2, le=254)]`.
A rule about several fields stays in the dataclass's `__post_init__`, which raises ValueError.
"""

import contextlib
import operator
import re
import typing
from collections.abc import Iterable, Mapping
from dataclasses import astuple, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar

import yaml
from annotated_types import Ge, GroupedMetadata, Gt, Interval, Le, Lt, MaxLen, MinLen

from unseg.core.console import InputError

PositiveInt = Annotated[int, Ge(1)]
NonNegativeInt = Annotated[int, Ge(0)]
PositiveFloat = Annotated[float, Gt(0)]
NonNegativeFloat = Annotated[float, Ge(0)]
Fraction = Annotated[float, Interval(ge=0, le=1)]
PositiveFraction = Annotated[float, Interval(gt=0, le=1)]
Precision = Literal["auto", "fp32", "bf16"]

T = TypeVar("T")
FILE = "params.yaml"
LIMITS: dict[type, tuple[Any, str]] = {
    Ge: (operator.ge, "at least"),
    Gt: (operator.gt, "above"),
    Le: (operator.le, "at most"),
    Lt: (operator.lt, "below"),
    MinLen: (operator.ge, "at least"),
    MaxLen: (operator.le, "at most"),
}
RENAMED = {  # earlier keys ([] is any place in a list), and the new last part
    "adopt": "self_train",
    "sets[].share": "fraction",
    "alarms.masks.least": "min_images",
    "alarms.masks.missing": "max_missing",
    "alarms.masks.smallest": "min_area",
    "alarms.masks.largest": "max_area",
    "alarms.clusters.least": "min_masks",
    "alarms.clusters.largest": "max_fraction",
    "alarms.labels.least": "min_images",
    "alarms.labels.empty": "max_empty",
    "alarms.segmentation.least": "min_images",
    "alarms.segmentation.clusters": "min_clusters",
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
    node, parent = read(file), ""
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            refuse_renamed([f"{parent}{name}" for name in node] if isinstance(node, dict) else [], file)
            raise InputError(f"{file}: {key} is missing; profiles/base.yaml has every key")
        node, parent = node[part], f"{parent}{part}."
    checked: T = check(key, kind, node, file)
    return checked


def group(key: str, kind: type[T], file: str | Path = FILE) -> T:
    """A whole group as the dataclass `kind`, e.g. `group("mine", Mining)`.

    Raises:
        InputError: a key is missing, unknown, of another type or out of range.
    """
    return value(key, kind, file)


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


def check(key: str, kind: Any, x: Any, file: str | Path) -> Any:
    """x as a value of type kind: a number, str, bool, X | None, X | Literal, list[X], Literal, Annotated, or a dataclass."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if is_dataclass(kind) and isinstance(x, dict):
        return build(key, kind, x, file)
    if origin is Annotated:
        checked = check(key, args[0], x, file)
        if rule := broken_rule(checked, args[1:]):
            raise InputError(f"{file}: {key} is {x!r}; it must {rule}")
        return checked
    if origin is Literal:
        if not any(x == option and type(x) is type(option) for option in args):
            raise InputError(f"{file}: {key} is {x!r}; it must be one of {', '.join(map(str, args))}")
        return x
    if origin is list and isinstance(x, list):
        return [check(f"{key}[{i}]", args[0], item, file) for i, item in enumerate(x)]
    if type(None) in args:
        (inner,) = (arg for arg in args if arg is not type(None))
        return None if x is None else check(key, inner, x, file)
    if origin is UnionType or origin is typing.Union:
        other, words = args  # X | Literal
        with contextlib.suppress(InputError):
            return check(key, other, x, file)
        *first, last = (other.__name__, *typing.get_args(words))
        if x not in typing.get_args(words):
            raise InputError(f"{file}: {key} is {x!r}; it must be {', '.join(first)} or {last}")
        return x
    if kind is float and isinstance(x, str) and YAML12_FLOAT.fullmatch(x):
        return float(x)
    if kind is float and isinstance(x, int) and not isinstance(x, bool):
        return float(x)
    if not isinstance(kind, type) or not isinstance(x, kind) or (isinstance(x, bool) and kind is not bool):
        raise InputError(f"{file}: {key} is {x!r}; it must be {kind.__name__ if isinstance(kind, type) else kind}")
    return x


def broken_rule(x: Any, metadata: Iterable[Any]) -> str:
    """All limits of a number or a list, e.g. "be at least 0 and at most 1", if x breaks one; else ""."""
    limits: list[Any] = [limit for m in metadata for limit in (m if isinstance(m, GroupedMetadata) else (m,))]
    rules = [(*LIMITS[type(limit)], *astuple(limit)) for limit in limits]
    size = len(x) if isinstance(x, list) else x
    if all(holds(size, bound) for holds, _, bound in rules):
        return ""
    text = " and ".join(f"{words} {bound}" for _, words, bound in rules)
    return f"have {text} values" if isinstance(x, list) else f"be {text}"


def build(key: str, kind: Any, values: dict[str, Any], file: str | Path) -> Any:
    """The dataclass `kind` from a mapping with exactly its fields."""
    types = typing.get_type_hints(kind, include_extras=True)
    names = [f.name for f in fields(kind)]
    for name in values:
        if name not in names:
            refuse_renamed([f"{key}.{name}"], file)
            raise InputError(f"{file}: {key}.{name} is not a parameter; {key} has {', '.join(names)}")
    for name in names:
        if name not in values:
            raise InputError(f"{file}: {key}.{name} is missing; profiles/base.yaml has every key")
    checked = {name: check(f"{key}.{name}", types[name], values[name], file) for name in names}
    try:
        return kind(**checked)
    except ValueError as error:
        raise InputError(f"{file}: {error}") from None


def refuse_renamed(keys: Iterable[str], file: str | Path) -> None:
    """Raises InputError if one of these dotted keys is the earlier name of a parameter."""
    for key in keys:
        if new := RENAMED.get(re.sub(r"\[\d+\]", "[]", key)):
            parent = key[: key.rfind(".") + 1]
            raise InputError(f"{file}: {key} is now called {parent}{new}; rename it")
