"""Pieces of the page as HTML: tables, commands, pictures, and frames behind a slider."""

import html
import re
from collections.abc import Iterable, Sequence
from typing import Any

from ddpm_jax.reporting import charts
from ddpm_jax.reporting.embedding import Embedded

_ENLARGED = 360  # Pixels that small pictures are shown with at least.


def section(anchor: str, title: str, *parts: str) -> str:
    """A part of the page with a heading; parts that are "" are left out."""
    return (
        f'<section id="{html.escape(anchor)}"><h2>{html.escape(title)}</h2>'
        f"{''.join(parts)}</section>\n"
    )


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph; "" for no text."""
    of_kind = f' class="{kind}"' if kind else ""
    return f"<p{of_kind}>{html.escape(text)}</p>" if text else ""


def command(text: str) -> str:
    """A command line; "" for none."""
    if not text:
        return ""
    # Lines break between flags, not inside.
    flags = (f"<span>{html.escape(flag)}</span>" for flag in re.split(r" (?=--)", text))
    return f'<pre class="command"><code>{" ".join(flags)}</code></pre>'


def missing(sentence: str, line: str) -> str:
    """A part that the workdir does not have, and the command that would make it."""
    return paragraph(sentence, "missing") + command(line)


def shown(value: Any) -> str:
    """A value of a config or of a protocol as text."""
    if isinstance(value, float):
        return charts.number(value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {shown(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return "(" + ", ".join(map(shown, value)) + ")"
    return '""' if value == "" else str(value)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """A table that scrolls sideways where it is too wide; cells are HTML."""
    header = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows
    )
    return (
        f'<div class="wide" tabindex="0" role="group" aria-label="table"><table class="{kind}">'
        f"<thead><tr>{header}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """A list of names and values, text."""
    items = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>"
        for name, value in pairs
    )
    return f'<dl class="facts">{items}</dl>'


def details(summary: str, *parts: str) -> str:
    """Parts that open on a click."""
    return f"<details><summary>{html.escape(summary)}</summary>{''.join(parts)}</details>"


def picture(embedded: Embedded, alt: str, caption: str = "") -> str:
    """A picture with its pixels sharp."""
    image = _image(embedded, alt)
    below = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return f'<figure class="picture">{below}{image}</figure>'


def slides(
    name: str, frames: Sequence[Sequence[tuple[str, Embedded]]], labels: Sequence[str], anchor: str
) -> str:
    """Frames of which a slider shows one, the last at first.

    Args:
        name: what the slider moves along.
        frames: each some pictures with their captions.
        labels: one a frame.
        anchor: an id that no other slider of the page has.
    """
    last = len(frames) - 1
    shown_frames = "".join(
        f'<div class="frame" data-label="{html.escape(label)}"{"" if i == last else " hidden"}>'
        + "".join(picture(each, f"{caption}, {label}", caption) for caption, each in frame)
        + "</div>"
        for i, (frame, label) in enumerate(zip(frames, labels))
    )
    if last < 1:
        return f"<div>{shown_frames}</div>" + paragraph(labels[0], "note")
    return (
        f'<div class="slides"><div class="bar"><label for="{anchor}">{html.escape(name)}</label>'
        f'<input type="range" id="{anchor}" min="0" max="{last}" step="1" value="{last}" '
        f'aria-valuetext="{html.escape(labels[-1])}">'
        f'<output for="{anchor}">{html.escape(labels[-1])}</output>'
        f'<button type="button" aria-pressed="false">Play</button></div>{shown_frames}</div>'
    )


def _image(embedded, alt):
    side = max(embedded.width, embedded.height)
    factor = max(1, -(-_ENLARGED // side)) if side < _ENLARGED else 1
    width, height = embedded.width * factor, embedded.height * factor
    return (
        f'<img src="{embedded.uri}" alt="{html.escape(alt)}" width="{width}" height="{height}">'
    )
