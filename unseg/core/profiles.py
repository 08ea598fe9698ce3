"""Profiles: params.yaml is profiles/base.yaml with the values that profiles/NAME.yaml changes.

base.yaml has every key on its own line, with a comment and the paper's value. The other files have only the values that
differ, and may start from another profile (`extends: folder`).
"""

import re
from collections.abc import Mapping
from itertools import accumulate, dropwhile, takewhile
from pathlib import Path
from typing import Any, TypeVar

import yaml

from unseg.core import params
from unseg.core.console import InputError

T = TypeVar("T")
FOLDER = Path("profiles")
BASE = "base"
COMMENT_COLUMN = 34
# ruamel.yaml keeps comments, too, but changes them only by its private tokens
LINE = re.compile(r"( *)([a-z_0-9]+):(?: +([^#\s][^#]*?))?(?: +# (.*))?$")


def names(folder: Path = FOLDER) -> list[str]:
    """The names of all profiles but base."""
    return sorted(file.stem for file in folder.glob("*.yaml") if file.stem != BASE)


def render(name: str, changes: Mapping[str, Any] | None = None, folder: Path = FOLDER) -> str:
    """The text of params.yaml for a profile.

    Args:
        changes: further values by dotted key, e.g. {"croc.epochs": 3}.

    Returns:
        base.yaml with the profile's header and values; the comment of a changed number ends in base's value.

    Raises:
        InputError: no such profile, it is not YAML, or it has a key that base.yaml does not have.
    """
    defaults = params.flatten(read(BASE, folder))
    values: dict[str, Any] = {}
    for source, content in [*lineage(name, folder).items(), ("--set", changes or {})]:
        flat = params.flatten({key: x for key, x in content.items() if key != "extends"})
        check_keys(flat, defaults, source if source == "--set" else f"{folder / source}.yaml", folder)
        values |= flat
    header = takewhile(is_comment, (folder / f"{name}.yaml").read_text("utf-8").splitlines())
    lines = [*header, "#", f"# `unseg profile {name}` wrote this file; (base: X) is base.yaml's value of a changed number."]
    path: list[str] = []
    for line in dropwhile(is_comment, (folder / f"{BASE}.yaml").read_text("utf-8").splitlines()):
        if match := LINE.match(line):
            indent, last, text, comment = match.groups()
            path = [*path[: len(indent) // 2], last]
            key = ".".join(path)
            if key in values and values[key] != defaults[key]:
                if type(defaults[key]) in (int, float):
                    comment = f"{comment} (base: {text})" if comment else f"(base: {text})"
                line = f"{indent}{last}: {dump(values[key])}"
                line = f"{line.ljust(COMMENT_COLUMN - 1)} # {comment}" if comment else line
        lines.append(line)
    return "\n".join(lines) + "\n"


def is_comment(line: str) -> bool:
    return line.startswith("#")


def check_keys(keys: Mapping[str, Any], defaults: Mapping[str, Any], source: str, folder: Path) -> None:
    for key in keys:
        if key not in defaults:
            params.refuse_renamed(accumulate(key.split("."), "{}.{}".format), source)
            raise InputError(f"{source}: {key} is not a parameter; {folder / BASE}.yaml lists them all")


def group(name: str, key: str, kind: type[T], folder: Path = FOLDER) -> T:
    """A group of a profile as the dataclass `kind`, as `params.group` reads it from params.yaml."""
    built: T = params.check(key, kind, yaml.safe_load(render(name, folder=folder))[key], folder / f"{name}.yaml")
    return built


def lineage(name: str, folder: Path) -> dict[str, dict[str, Any]]:
    """The contents of the profile and of those that it extends, the outermost first.

    Raises:
        InputError: one cannot be read, or they extend each other.
    """
    chain: dict[str, dict[str, Any]] = {}
    parent: str | None = name
    while parent is not None and parent != BASE:
        if parent in chain:
            raise InputError(f"{folder / name}.yaml: {' extends '.join([*chain, parent])}; remove one `extends`")
        chain[parent] = read(parent, folder)
        parent = chain[parent].get("extends")
    return dict(reversed(chain.items()))


def read(name: str, folder: Path) -> dict[str, Any]:
    file = folder / f"{name}.yaml"
    if not re.fullmatch(r"\w+", name) or not file.exists():
        known = ", ".join(names(folder)) or "none: run this in a project (`unseg init`) or a clone of unseg"
        raise InputError(f"{file}: no such profile; there are {known}")
    content = params.read(file) or {}
    if not isinstance(content, dict):
        raise InputError(f"{file} holds no parameters; write them as in {folder / BASE}.yaml")
    return content


def dump(value: Any) -> str:
    """A value on one line of YAML."""
    return yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False).removesuffix("...\n").strip()
