"""params.yaml, read group by group into frozen dataclasses that have no defaults.

The type of a field declares what it may hold: a type below, `Literal["mask", "box"]` for a choice, or
`Annotated[int, Interval(ge=2, le=254)]` for a range. What depends on several fields stays in the `__post_init__` of the
dataclass, which raises ValueError.
"""

import re
import typing
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from annotated_types import Ge, GroupedMetadata, Gt, Interval, Le, Lt, MaxLen, MinLen

from unseg.core.console import InputError

PositiveInt = Annotated[int, Ge(1)]
PositiveFloat = Annotated[float, Gt(0)]
NonNegativeFloat = Annotated[float, Ge(0)]
Fraction = Annotated[float, Interval(ge=0, le=1)]
PositiveFraction = Annotated[float, Interval(gt=0, le=1)]
Precision = Literal["auto", "fp32", "bf16"]

T = TypeVar("T")
FILE = "params.yaml"
BOUNDS = {Ge: "at least", Gt: "above", Le: "at most", Lt: "below"}
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
        InputError: a key that is missing, unknown, of another type, or out of range.
    """
    built: T = check(key, kind, value(key, dict, file), file)
    return built


def check(key: str, kind: Any, got: Any, file: str | Path) -> Any:
    """got as a value of type kind: a number, str, bool, X | None, list[X], Literal, Annotated, or a dataclass from a mapping."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if is_dataclass(kind) and isinstance(got, dict):
        return build(key, kind, got, file)
    if origin is Annotated:
        checked = check(key, args[0], got, file)
        if allowed := broken(checked, args[1:]):
            raise InputError(f"{file}: {key} is {got!r}; it must {allowed}")
        return checked
    if origin is Literal:
        if not any(got == option and type(got) is type(option) for option in args):
            raise InputError(f"{file}: {key} is {got!r}; it must be one of {', '.join(map(str, args))}")
        return got
    if origin is list and isinstance(got, list):
        return [check(f"{key}[{i}]", args[0], x, file) for i, x in enumerate(got)]
    if type(None) in args:
        (inner,) = (arg for arg in args if arg is not type(None))
        return None if got is None else check(key, inner, got, file)
    if kind is float and isinstance(got, str) and YAML12_FLOAT.fullmatch(got):
        return float(got)
    if kind is float and isinstance(got, int) and not isinstance(got, bool):
        return float(got)
    if not isinstance(kind, type) or not isinstance(got, kind) or (isinstance(got, bool) and kind is not bool):
        raise InputError(f"{file}: {key} is {got!r}; it must be {kind.__name__ if isinstance(kind, type) else kind}")
    return got


def broken(x: Any, metadata: Iterable[Any]) -> str:
    """What a value must satisfy, e.g. "be at least 0 and at most 1", if it breaks one of the declared limits; else ""."""
    limits = [limit for m in metadata for limit in (m if isinstance(m, GroupedMetadata) else (m,))]
    kept, words = True, list[str]()
    for limit in limits:
        match limit:
            case Ge(bound) | Gt(bound) | Le(bound) | Lt(bound):
                ok = {Ge: x >= bound, Gt: x > bound, Le: x <= bound, Lt: x < bound}[type(limit)]
                words.append(f"be {BOUNDS[type(limit)]} {bound}" if not words else f"{BOUNDS[type(limit)]} {bound}")
            case MinLen(bound):
                ok = len(x) >= bound
                words.append(f"have at least {bound} values")
            case MaxLen(bound):
                ok = len(x) <= bound
                words.append(f"have at most {bound} values")
            case _:
                raise TypeError(f"{limit!r} cannot be checked")
        kept = kept and ok
    return "" if kept else " and ".join(words)


def build(key: str, kind: Any, got: dict[str, Any], file: str | Path) -> Any:
    types = typing.get_type_hints(kind, include_extras=True)
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
