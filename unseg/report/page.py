"""HTML of which the report is built: pure functions from text, numbers and pictures to HTML. No script, no network, no clock.

Whatever comes from outside (file names, class names, words of metrics files) is escaped by `html`; what is already HTML
is of type Html. Shares and IoUs of 0..1 are shown in per cent, as the papers do.
"""

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

import numpy as np

from unseg.report import pictures

DASH, PERCENT = "\N{EN DASH}", "\N{NO-BREAK SPACE}%"


@dataclass(frozen=True)
class Report:
    """The `report` group of params.yaml."""

    pictures: int  # images on each contact sheet
    exemplars: int  # masks on each cluster's card

    def __post_init__(self) -> None:
        for name in ("pictures", "exemplars"):
            if getattr(self, name) < 1:
                raise ValueError(f"report.{name} is {getattr(self, name)}; it must be at least 1")


class Html(str):
    """Text that is HTML already."""


class Section(NamedTuple):
    id: str
    title: str
    body: Html


def html(x: object) -> Html:
    """x as it can stand in HTML, in text and in attributes."""
    return x if isinstance(x, Html) else Html(escape(str(x)))


def join(parts: Iterable[object]) -> Html:
    return Html("".join(map(html, parts)))


def percent(x: float | None) -> str:
    """0.458 as "45.8"; a dash for what is not known."""
    return DASH if x is None else f"{100 * x:.1f}"


def named(name: str) -> Html:
    """A name of any script, kept from turning its surroundings."""
    return Html(f"<bdi>{html(name)}</bdi>")


def note(text: object) -> Html:
    return Html(f'<p class="note">{html(text)}</p>')


def sentence(words: object) -> str:
    text = str(words).strip().rstrip(".")
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def scroll(body: object, label: str, kind: str = "scroll") -> Html:
    """A region that scrolls sideways on a phone, and by the arrow keys."""
    return Html(f'<div class="{kind}" role="region" aria-label="{html(label)}" tabindex="0">{html(body)}</div>')


def table(label: str, head: Sequence[object], rows: Sequence[Sequence[object]]) -> Html:
    """Rows of cells, the first of each being its heading; cells are escaped unless they are Html."""
    top = join(Html(f'<th scope="col">{html(h)}</th>') for h in head)
    body = join(
        Html(f'<tr><th scope="row">{html(first)}</th>{join(Html(f"<td>{html(x)}</td>") for x in rest)}</tr>')
        for first, *rest in rows
    )
    return scroll(Html(f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"), label)


def picture(pixels: np.ndarray, alt: str) -> Html:
    """[H, W, 3] uint8 as a JPEG within the page."""
    data = base64.b64encode(pictures.jpeg(pixels)).decode()
    rows, cols = pixels.shape[:2]
    return Html(f'<img width="{cols}" height="{rows}" alt="{html(alt)}" src="data:image/jpeg;base64,{data}">')


def fold(summary: object, body: object, opened: bool = False) -> Html:
    return Html(f"<details{' open' if opened else ''}><summary>{html(summary)}</summary>{html(body)}</details>")


def swatch(colour: np.ndarray, striped: bool = False) -> Html:
    kind = "swatch striped" if striped else "swatch"
    return Html(f'<span class="{kind}" style="background-color:rgb{tuple(map(int, colour))}"></span>')


def document(title: str, lead: object, sections: Sequence[Section]) -> bytes:
    """The page in UTF-8; half characters, which odd file names may have, become question marks."""
    links = join(Html(f'<a href="#{s.id}">{html(s.title)}</a>') for s in sections)
    body = join(Html(f'<section id="{s.id}"><h2>{html(s.title)}</h2>{s.body}</section>\n') for s in sections)
    text = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        f'<title>{html(title)}</title><style>{STYLE}</style></head>\n<body><a class="skip" href="#main">Skip to the numbers</a>'
        f'<header><h1>{html(title)}</h1>{html(lead)}</header><nav aria-label="sections">{links}</nav>\n'
        f'<main id="main">{body}</main></body></html>\n'
    )
    return text.encode("utf-8", "replace")


STYLE = """
:root{--paper:#fff;--panel:#f5f6f8;--ink:#16191d;--soft:#565e68;--rule:#d5d9df;--accent:#0072b2;--warn:#8a4b00}
@media (prefers-color-scheme:dark){
:root{--paper:#14171b;--panel:#1d2228;--ink:#e9ecef;--soft:#a5adb7;--rule:#39414a;--accent:#56b4e9;--warn:#f0b45a}}
*{box-sizing:border-box}
html{scroll-padding-top:4rem}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
header,main{max-width:1280px;margin:auto;padding:0 1.25rem}
header{padding-top:2rem}
h1{font-size:1.9rem;line-height:1.2;margin:0 0 .5rem}
h2{font-size:1.35rem;margin:2.75rem 0 .75rem;padding-bottom:.3rem;border-bottom:2px solid var(--rule)}
h3{font-size:1.05rem;margin:1.25rem 0 .5rem}
h4{font-size:.95rem;margin:0 0 .35rem;overflow-wrap:anywhere}
p{max-width:75ch}
.lead{font-size:1.05rem;color:var(--soft);margin:.25rem 0 1.25rem}
.note{color:var(--soft);font-size:.9rem;margin:.5rem 0}
.needs{border-left:4px solid var(--warn);padding:.35rem .75rem;background:var(--panel);font-size:.9rem}
nav{position:sticky;top:0;z-index:2;display:flex;gap:.25rem;overflow-x:auto;margin-top:1.5rem;padding:.4rem 1.25rem;
background:var(--paper);border-block:1px solid var(--rule)}
nav a{white-space:nowrap;color:var(--ink);text-decoration:none;padding:.3rem .6rem;border-radius:.4rem;font-size:.92rem}
nav a:hover{background:var(--panel)}
.skip{position:absolute;left:-99rem}
.skip:focus{left:1rem;top:1rem;z-index:3;background:var(--paper);color:var(--ink);padding:.5rem}
:focus-visible{outline:3px solid var(--accent);outline-offset:2px}
.headline{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:.75rem;margin:0}
.headline>div{background:var(--panel);border:1px solid var(--rule);border-radius:.6rem;padding:.75rem .9rem}
.headline dt{font-size:.85rem;color:var(--soft)}
.headline dd{margin:0}
.headline b{display:block;font-size:1.6rem;line-height:1.25;font-variant-numeric:tabular-nums}
.headline span{display:block;font-size:.8rem;color:var(--soft)}
.scroll{overflow-x:auto;max-width:100%;margin:.5rem 0}
table{border-collapse:collapse;font-size:.94rem;font-variant-numeric:tabular-nums}
th,td{padding:.4rem .8rem .4rem 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--rule)}
thead th{color:var(--soft);font-weight:600;font-size:.85rem;vertical-align:bottom}
tbody th{font-weight:600}
td ul{list-style:none;margin:0;padding:0}
.bar{display:block;width:10rem;height:.8rem;margin-top:.35rem}
.rail{fill:var(--rule)}
article{margin:0 0 1.25rem}
.strip{display:grid;grid-template-columns:repeat(var(--n),minmax(0,240px));gap:.5rem}
figure{margin:0}
figcaption{font-size:.82rem;line-height:1.35;color:var(--soft);margin-top:.2rem}
figcaption b{color:var(--ink)}
.strip img{display:block;width:100%;height:auto;border-radius:.25rem}
.none{display:grid;place-items:center;aspect-ratio:1;background:var(--panel);border-radius:.25rem;color:var(--soft)}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:.3rem 1.1rem;padding:0;margin:.5rem 0;font-size:.9rem}
.swatch{display:inline-block;width:1em;height:1em;margin-right:.4em;vertical-align:-.12em;
border:1px solid var(--soft);border-radius:.2em}
.striped{background-image:repeating-linear-gradient(135deg,transparent 0 3px,rgba(0,0,0,.6) 3px 5px)}
.dim{background:#555}
.void{background:repeating-linear-gradient(135deg,#777 0 3px,#fff 3px 5px)}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(270px,1fr));gap:.75rem}
.card{background:var(--panel);border:1px solid var(--rule);border-radius:.6rem;padding:.75rem .9rem;margin:0}
.card p{margin:0 0 .5rem;font-size:.88rem;color:var(--soft);overflow-wrap:anywhere}
.crops{display:grid;grid-template-columns:repeat(4,1fr);gap:.3rem}
.crops img{display:block;width:100%;height:auto;border-radius:.2rem}
.curves{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,380px),1fr));gap:1rem 1.5rem}
.curve{display:block;width:100%;max-width:520px;height:auto}
svg text{fill:var(--soft);font:14px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
.grid{stroke:var(--rule);stroke-width:1;fill:none}
.line{stroke:var(--accent);stroke-width:2.5;fill:none;stroke-linejoin:round}
.s1{stroke:var(--warn);stroke-dasharray:7 4}
.s2{stroke:var(--ink);stroke-dasharray:2 3}
.frame{fill:none;stroke:var(--rule)}
details{margin:.5rem 0}
summary{cursor:pointer;font-weight:600;padding:.25rem 0}
code{font-size:.92em}
@media (max-width:900px){.strip{grid-template-columns:repeat(3,minmax(0,1fr))}}
@media (max-width:520px){
header,main{padding-inline:.85rem}nav{padding-inline:.6rem}h1{font-size:1.45rem}
.strip{grid-template-columns:repeat(2,minmax(0,1fr))}.headline{grid-template-columns:repeat(2,minmax(0,1fr))}.bar{width:6rem}
tbody th{min-width:6.5rem;max-width:11rem;overflow-wrap:break-word}}
"""
