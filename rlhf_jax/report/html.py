"""A report: sections of blocks, made into one HTML page that needs nothing but itself.

    page = report("PPO", "seed 0, 3 min 05 s on 2 CPUs", [Section("Learning", [Plot(svg, "Reward per step")])])
    write_report(run / "report.html", page)

Every text is escaped; only the SVG of `Plot` goes in as it is. Styles are inside, scripts there are none, and a content
policy forbids the page to load anything.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import count
from pathlib import Path
from typing import Any, Literal

from rlhf_jax.files import write_atomic

Tone = Literal["good", "bad", "open"]


@dataclass(frozen=True)
class Badge:
    """A table cell to be seen from afar, e.g. Badge("holds", "good")."""

    text: str
    tone: Tone


Cell = str | int | float | bool | None | Badge


@dataclass(frozen=True)
class Text:
    """Paragraphs, separated by empty lines."""

    text: str


@dataclass(frozen=True)
class Figures:
    """The few numbers that a reader should see first: label -> number or word."""

    values: Mapping[str, Cell]


@dataclass(frozen=True)
class Plot:
    """An SVG element; plots that follow each other stand side by side."""

    svg: str
    caption: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of cells; numbers are rounded to four digits and stand at the right."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""

    def __post_init__(self) -> None:
        for index, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(f"row {index} has {len(row)} cells for {len(self.columns)} columns: {list(row)}")


@dataclass(frozen=True)
class Reply:
    """What was said to a prompt, and the numbers that say how good it was."""

    text: str
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Samples:
    """Prompts with the replies to each side by side: a row is a prompt and one reply per speaker."""

    speakers: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Reply]]]

    def __post_init__(self) -> None:
        for prompt, replies in self.rows:
            if len(replies) != len(self.speakers):
                raise ValueError(f"{len(replies)} replies of {len(self.speakers)} speakers to {prompt!r}")


@dataclass(frozen=True)
class Details:
    """Something for JSON (a config, an environment), folded away under its name."""

    name: str
    value: Any


Block = Text | Figures | Plot | Table | Samples | Details


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    title: str
    blocks: Sequence[Block]


def report(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The page as HTML text; the same sections give the same text."""
    numbers = count(1)
    body = "\n".join(_section(section, numbers) for section in sections)
    return PAGE.format(title=escape(title), subtitle=escape(subtitle), style=STYLE, body=body)


def write_report(path: Path | str, html: str) -> None:
    """Writes the page; a reader sees the old page or the new one, never half of it."""
    write_atomic(Path(path), html)


def _section(section: Section, numbers: Iterator[int]) -> str:
    parts, plots = [], []
    for block in section.blocks:
        if isinstance(block, Plot):
            plots.append(_plot(block, next(numbers)))
            continue
        parts += _row(plots)
        plots = []
        parts.append(_block(block))
    return "\n".join([f"<section><h2>{escape(section.title)}</h2>", *parts, *_row(plots), "</section>"])


def _row(plots: Sequence[str]) -> list[str]:
    return [f'<div class="plots">{"".join(plots)}</div>'] if plots else []


def _block(block: Block) -> str:
    match block:
        case Text(text):
            return "".join(
                f"<p>{escape(paragraph.strip())}</p>" for paragraph in re.split(r"\n\s*\n", text) if paragraph.strip()
            )
        case Figures(values):
            cards = (f"<div><b>{_cell(value)}</b><span>{escape(label)}</span></div>" for label, value in values.items())
            return f'<div class="figures">{"".join(cards)}</div>'
        case Table(columns, rows, caption):
            numeric = [any(map(_is_number, cells)) for cells in zip(*rows, strict=True)] or [False] * len(columns)
            head = [
                f"<th{right}>{escape(name)}</th>" for name, right in zip(columns, map(_align, numeric), strict=True)
            ]
            body = [[f"<td{_align(_is_number(cell))}>{_cell(cell)}</td>" for cell in row] for row in rows]
            return _table(head, body, caption)
        case Samples():
            return _samples(block)
        case Details(name, value):
            text = json.dumps(value, indent=2, ensure_ascii=False, default=str)
            return f"<details><summary>{escape(name)}</summary><pre>{escape(text)}</pre></details>"
        case _:
            raise TypeError(f"no block of a report: {type(block).__name__}")


def _plot(plot: Plot, number: int) -> str:
    # Every SVG counts its ids from the start, so they would clash on one page.
    prefix = f"f{number}-"
    svg = re.sub(r'\bid="', f'id="{prefix}', plot.svg)
    svg = re.sub(r'((?:xlink:)?href="#|url\(#)', rf"\g<1>{prefix}", svg)
    caption = f"<figcaption>{escape(plot.caption)}</figcaption>" if plot.caption else ""
    return f"<figure>{svg}{caption}</figure>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "", kind: str = "") -> str:
    body = "\n".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    table = f"{title}<thead><tr>{''.join(head)}</tr></thead>\n<tbody>{body}</tbody>"
    return f'<div class="scroll"><table class="{kind}">{table}</table></div>'


def _samples(block: Samples) -> str:
    head = [f"<th>{escape(name)}</th>" for name in ("prompt", *block.speakers)]
    rows = [[_said(Reply(prompt)), *map(_said, replies)] for prompt, replies in block.rows]
    return _table(head, rows, kind="samples")


def _said(reply: Reply) -> str:
    words = escape(reply.text) if reply.text.strip() else '<i class="empty">nothing</i>'
    numbers = ", ".join(f"{escape(name)} {_number(value)}" for name, value in reply.numbers.items())
    return f"<td><div>{words}</div>{f'<small>{numbers}</small>' if numbers else ''}</td>"


def _is_number(cell: Cell) -> bool:
    return isinstance(cell, int | float) and not isinstance(cell, bool)


def _align(number: bool) -> str:
    return ' class="number"' if number else ""


def _cell(cell: Cell) -> str:
    match cell:
        case None:
            return "–"
        case Badge(text, tone):
            return f'<span class="badge {tone}">{escape(text)}</span>'
        case bool():
            return "yes" if cell else "no"
        case int() | float():
            return _number(cell)
        case _:
            return escape(str(cell))


def _number(value: float) -> str:
    """Four significant digits; whole numbers in full, with thousands apart."""
    if isinstance(value, int) or (value.is_integer() and abs(value) < 1e15):
        return f"{int(value):,}"
    return f"{value:.4g}"


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header><h1>{title}</h1><p>{subtitle}</p></header>
<main>
{body}
</main>
</body>
</html>
"""

STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --soft: #667085; --line: #dfe3ea; --page: #f6f7f9; --card: #fff;
  --accent: #3b82c4; --good: #1a7f4f; --bad: #c0392b; --open: #8a6d1a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7ec; --soft: #98a2b3; --line: #313846; --page: #12161d;
  --card: #1a202a; --accent: #6aaae0; --good: #4cc38a; --bad: #ef7b6d; --open: #d9b44a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 2rem 1.25rem 4rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", "Noto Sans CJK SC", "PingFang SC",
  "Microsoft YaHei", sans-serif; }
h1 { font-size: 1.65rem; margin: 0; letter-spacing: -.01em; }
header p { margin: .2rem 0 0; color: var(--soft); }
h2 { font-size: 1.1rem; margin: 0 0 .8rem; }
section { margin-top: 1.25rem; padding: 1.1rem 1.25rem 1.25rem; background: var(--card);
  border: 1px solid var(--line); border-radius: 10px; }
section > :last-child { margin-bottom: 0; }
section p { max-width: 75ch; margin: 0 0 .8rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 1rem 1.5rem;
  margin: .4rem 0 .8rem; }
figure { margin: 0; min-width: 0; max-width: 620px; }
figure svg { display: block; width: 100%; height: auto; }
figure svg text { font-family: inherit !important; }
figcaption, caption { color: var(--soft); font-size: .86rem; text-align: left; caption-side: top; padding: .2rem 0; }
.figures { display: flex; flex-wrap: wrap; gap: .75rem; margin: .2rem 0 1rem; }
.figures div { flex: 1 1 9rem; padding: .6rem .9rem; border: 1px solid var(--line); border-radius: 8px; }
.figures b { display: block; font-size: 1.4rem; font-weight: 650; font-variant-numeric: tabular-nums; }
.figures > div > span { color: var(--soft); font-size: .86rem; }
.figures .badge { font-size: 1rem; }
.scroll { overflow-x: auto; margin: .3rem 0 1rem; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { text-align: left; vertical-align: top; padding: .42rem .7rem; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; font-size: .8rem; }
tbody tr:last-child td { border-bottom: 0; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.samples { table-layout: fixed; min-width: 640px; }
.samples td div { white-space: pre-wrap; overflow-wrap: anywhere; }
.samples td:first-child { color: var(--soft); }
small { display: block; color: var(--soft); margin-top: .15rem; }
.empty { color: var(--soft); }
.badge { display: inline-block; padding: .05rem .55rem; border-radius: 99px; font-size: .82rem; font-weight: 600;
  border: 1px solid currentColor; white-space: nowrap; }
.badge.good { color: var(--good); } .badge.bad { color: var(--bad); } .badge.open { color: var(--open); }
details { margin: .4rem 0; } summary { cursor: pointer; color: var(--accent); font-weight: 600; }
pre { margin: .5rem 0 0; padding: .8rem 1rem; overflow: auto; max-height: 32rem; background: var(--page);
  border: 1px solid var(--line); border-radius: 8px; font-size: .82rem; }
@media print { body { max-width: none; background: none; } section { break-inside: avoid; } }
"""
