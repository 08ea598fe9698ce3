"""The HTML pages: the Jinja2 environment of `templates/`, with its filters. No script, no network, no clock.

Templates escape all text. Fractions and IoUs of 0..1 are shown in per cent, as in the papers.
"""

import base64
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from unseg.core.params import PositiveInt
from unseg.report import pictures

DASH, PERCENT = "\N{EN DASH}", "\N{NO-BREAK SPACE}%"


@dataclass(frozen=True)
class Report:
    """The `report` group of params.yaml."""

    pictures: PositiveInt  # images on each contact sheet
    exemplars: PositiveInt  # masks on each cluster's card


class Section(NamedTuple):
    """A section of a page: the data that a template of `templates/sections/` draws."""

    id: str
    title: str
    template: str
    data: Any


def render(template: str, sections: Sequence[Section], **values: Any) -> bytes:
    """A page in UTF-8; lone surrogates, which odd file names may have, become question marks."""
    return TEMPLATES.get_template(f"{template}.html.j2").render(sections=sections, **values).encode("utf-8", "replace")


def percent(x: float | None, sign: str = "") -> str:
    """0.458 as "45.8"; a dash for None."""
    return DASH if x is None else f"{100 * x:.1f}{sign}"


def plain(x: Any) -> str:
    return DASH if x is None else f"{x:.6g}" if isinstance(x, float) else str(x)


def sentence(words: object) -> str:
    """The text with a capital letter and a full stop."""
    text = str(words).strip().rstrip(".")
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def protocol(metrics: dict[str, Any], number: str) -> str:
    """The protocol of a number of a metrics file, as a sentence; empty if the file has none."""
    return sentence(next((p["protocol"] for p in metrics.get("protocols", []) if p["number"] == number), ""))


def scalars(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values; a list is described by its length."""
    for key, x in tree.items():
        if isinstance(x, dict):
            yield from scalars(x, f"{prefix}{key}.")
        else:
            yield prefix + key, f"list of {len(x)}" if isinstance(x, list) else x


def rgb(colour: Iterable[float]) -> str:
    return f"rgb{tuple(map(int, colour))}"


def jpeg_base64(pixels: np.ndarray) -> str:
    return base64.b64encode(pictures.jpeg(pixels)).decode()


TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters |= {f.__name__: f for f in (percent, plain, sentence, protocol, scalars, rgb, jpeg_base64)}
TEMPLATES.globals |= {"DASH": DASH, "PERCENT": PERCENT}
