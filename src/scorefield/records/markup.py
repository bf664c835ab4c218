"""Values in reading form and pieces of HTML. Whatever comes from a run is escaped here."""

import base64
import json
from collections.abc import Iterable, Mapping
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def plain(value: Any) -> str:
    """A value in reading form: four significant digits, thousands apart, lists without quotes."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def number(value: float) -> str:
    """A number in reading form that carries its full digits along."""
    return f'<data value="{value!r}" title="{value!r}">{escape(plain(value))}</data>'


def duration(seconds: float) -> str:
    """Seconds in reading form."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def words(name: str) -> str:
    """A name as a reader says it, escaped."""
    return escape(name.replace("_", " "))


def fields(protocol: Mapping[str, Any]) -> list[str]:
    """The fields of a protocol, each name with its value, escaped."""
    return [f"{words(key)} <b>{escape(plain(value))}</b>" for key, value in protocol.items()]


def section(title: str, *parts: str) -> str:
    """A headed part of the page; empty where all its parts are."""
    inside = "\n".join(part for part in parts if part)
    return f"<section>\n<h2>{escape(title)}</h2>\n{inside}\n</section>" if inside else ""


def row(kind: str, parts: Iterable[str]) -> str:
    """Parts side by side as far as the width allows; empty where there are none."""
    parts = filter(None, parts)
    inside = "\n".join(parts)
    return f'<div class="row {kind}">\n{inside}\n</div>' if inside else ""


def picture(path: Path, caption: str, kind: str) -> str:
    """A picture with its caption, embedded; empty where there is no such file."""
    if not path.exists():
        return ""
    data = base64.b64encode(path.read_bytes()).decode()
    source = f"data:image/{path.suffix[1:]};base64,{data}"
    text = escape(caption)
    return f'<figure class="{kind}"><img src="{source}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def document(title: str, parts: Iterable[str]) -> str:
    """A whole page in the one style of all pages, self-contained: nothing is fetched and nothing runs."""
    style = resources.files("scorefield.records").joinpath("report.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(filter(None, parts))
        + "\n</main>\n</body>\n</html>\n"
    )
