"""Profiles: params.yaml is written from profiles/base.yaml and what profiles/NAME.yaml changes.

base.yaml has every key on a line of its own, with a comment and the paper's value. Every other file has only the values that
differ, and may name another profile that it starts from (`extends: folder`).
"""

import re
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar

import yaml

from unseg.core import params
from unseg.core.console import InputError

T = TypeVar("T")
FOLDER = Path("profiles")
BASE = "base"
COMMENT = 34  # column of the comments
LINE = re.compile(r"( *)([a-z_0-9]+):(?: +([^#\s][^#]*?))?(?: +# (.*))?$")


def names(folder: Path = FOLDER) -> list[str]:
    """The profiles there are, without base."""
    return sorted(file.stem for file in folder.glob("*.yaml") if file.stem != BASE)


def render(name: str, changes: Mapping[str, Any] | None = None, folder: Path = FOLDER) -> str:
    """The text of params.yaml for a profile.

    Args:
        changes: further values by dotted key, e.g. {"croc.epochs": 3}.

    Returns:
        base.yaml with the profile's header and values; a comment of a changed number ends in base's value.

    Raises:
        InputError: no such profile, it is not YAML, or it has a key that base.yaml has not.
    """
    base = read(BASE, folder)
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}  # key to the place that sets it, for messages
    for profile, content in lineage(name, folder).items():
        found = params.flatten({key: value for key, value in content.items() if key != "extends"})
        values |= found
        origin |= dict.fromkeys(found, f"{folder / profile}.yaml")
    values |= changes or {}
    defaults = params.flatten(base)
    for key in values:
        if key not in defaults:
            raise InputError(f"{origin.get(key, f'--set {key}')}: {key} is not a parameter; {folder / BASE}.yaml lists them all")
    header = list(takewhile(lambda line: line.startswith("#"), (folder / f"{name}.yaml").read_text("utf-8").splitlines()))
    lines = [*header, "#", f"# `unseg profile {name}` wrote this file; (base: X) is base.yaml's value of a changed number."]
    path: list[str] = []
    body = (folder / f"{BASE}.yaml").read_text("utf-8").splitlines()
    start = next(i for i, line in enumerate(body) if not line.startswith("#"))
    for line in body[start:]:
        if match := LINE.match(line):
            indent, key, text, comment = match.groups()
            path = [*path[: len(indent) // 2], key]
            dotted = ".".join(path)
            if dotted in values and values[dotted] != defaults[dotted]:
                if type(defaults[dotted]) in (int, float):
                    comment = f"{comment} (base: {text})" if comment else f"(base: {text})"
                line = f"{indent}{key}: {dump(values[dotted])}"
                line = f"{line.ljust(COMMENT - 1)} # {comment}" if comment else line
        lines.append(line)
    return "\n".join(lines) + "\n"


def group(name: str, key: str, kind: type[T], folder: Path = FOLDER) -> T:
    """A group of a profile as the dataclass `kind`, as `params.group` reads it from params.yaml."""
    built: T = params.check(key, kind, yaml.safe_load(render(name, folder=folder))[key], folder / f"{name}.yaml")
    return built


def lineage(name: str, folder: Path) -> dict[str, dict[str, Any]]:
    """The contents of the profile and of those that it extends, the outermost first.

    Raises:
        InputError: one of them cannot be read, or they extend each other.
    """
    chain: dict[str, dict[str, Any]] = {}
    following: str | None = name
    while following is not None and following != BASE:
        if following in chain:
            raise InputError(f"{folder / name}.yaml: {' extends '.join([*chain, following])}; remove one `extends`")
        chain[following] = read(following, folder)
        following = chain[following].get("extends")
    return dict(reversed(chain.items()))


def read(name: str, folder: Path) -> dict[str, Any]:
    file = folder / f"{name}.yaml"
    if not re.fullmatch(r"\w+", name) or not file.exists():
        raise InputError(f"{file}: no such profile; there are {', '.join(names(folder)) or 'none: run this in a clone of unseg'}")
    content = params.read(file) or {}
    if not isinstance(content, dict):
        raise InputError(f"{file} holds no parameters; write them as in {folder / BASE}.yaml")
    return content


def dump(value: Any) -> str:
    """A value on one line of YAML."""
    return yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False).removesuffix("...\n").strip()
