"""The one page with every figure, number and verdict."""

import platform
from collections.abc import Sequence
from html import escape
from pathlib import Path

import torch
import yaml
from markdown_it import MarkdownIt
from PIL import Image

from lecture import pages
from lecture.verdicts import Outcome, Verdict, figure_of
from scorefield.records.files import write_atomically
from scorefield.records.markup import document, duration, picture, plain, section

# Raw HTML in a page is escaped, not passed on.
_MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table")


def write_page(outcomes: Sequence[Outcome], seconds: float, output: Path) -> Path:
    """Write ``index.html`` into the output folder, self-contained, and return its path."""
    path = output / "index.html"
    body = [_head(outcomes, seconds), _contents(outcomes), *(_claim(outcome, output) for outcome in outcomes)]
    write_atomically(path, document("Claims of the lectures", body).encode())
    return path


def _badge(met: bool) -> str:
    return '<span class="badge">met</span>' if met else '<span class="badge open">missed</span>'


def _head(outcomes: Sequence[Outcome], seconds: float) -> str:
    verdicts = [verdict for outcome in outcomes for verdict in outcome.verdicts]
    met, claims = sum(verdict.met for verdict in verdicts), sum(outcome.met for outcome in outcomes)
    facts = [
        f"<span>claims met <b>{claims} of {len(outcomes)}</b></span>",
        f"<span>numbers met <b>{met} of {len(verdicts)}</b></span>",
        f"<span>time <b>{duration(seconds)}</b></span>",
        f"<span>torch <b>{escape(torch.__version__)}</b>, {escape(platform.machine())}</span>",
    ]
    return f'<header>\n<h1>Claims of the lectures</h1>\n<p class="byline">{" ".join(facts)}</p>\n</header>'


def _contents(outcomes: Sequence[Outcome]) -> str:
    rows = "\n".join(
        f'<tr><td class="value"><a href="#{outcome.claim.name}">{outcome.claim.name}</a></td>'
        f"<td>{escape(outcome.claim.title)}</td>"
        f'<td class="value">{sum(v.met for v in outcome.verdicts)} of {len(outcome.verdicts)}</td>'
        f'<td class="value">{duration(outcome.seconds)}</td><td>{_badge(outcome.met)}</td></tr>'
        for outcome in outcomes
    )
    head = "<thead><tr><th>claim</th><th>what it says</th><th>numbers met</th><th>time</th><th></th></tr></thead>"
    return section("All claims", f'<div class="panel scroll"><table>{head}<tbody>\n{rows}\n</tbody></table></div>')


def _claim(outcome: Outcome, output: Path) -> str:
    claim = outcome.claim
    facts = [
        _badge(outcome.met),
        f"<span>lecture <b>{claim.lecture}</b> at <b>{escape(claim.time)}</b></span>",
        f"<span>{escape(claim.source)}</span>",
        f"<span>time <b>{duration(outcome.seconds)}</b></span>",
    ]
    parts = [
        f'<p class="byline">{" ".join(facts)}</p>',
        f"<div>{_MARKDOWN.render(pages.prose(claim))}</div>",
        _figure(outcome, output),
        _error(outcome),
        _numbers(outcome),
        f'<details class="panel"><summary>Settings</summary><pre>{escape(_settings(outcome))}</pre></details>',
    ]
    inside = "\n".join(filter(None, parts))
    return f'<section id="{claim.name}">\n<h2>{claim.name} {escape(claim.title)}</h2>\n{inside}\n</section>'


def _figure(outcome: Outcome, output: Path) -> str:
    """The figure, embedded and no larger than it was drawn."""
    path = figure_of(outcome.claim, output)
    if not path.exists():
        return ""
    with Image.open(path) as image:
        width = image.width
    return f'<div style="max-width: {width}px">{picture(path, outcome.claim.title, "panel plot")}</div>'


def _error(outcome: Outcome) -> str:
    return f'<div class="missing"><pre>{escape(outcome.error.strip())}</pre></div>' if outcome.error else ""


def _numbers(outcome: Outcome) -> str:
    rows = [_row(verdict) for verdict in outcome.verdicts]
    rows += [
        f'<tr><th scope="row">{escape(name)}</th><td class="value">{_value(value)}</td>'
        f'<td class="value">–</td><td class="value">–</td><td class="fields">not judged</td><td></td></tr>'
        for name, value in outcome.also.items()
    ]
    names = ("quantity", "measured", "expected", "met when", "kind", "")
    head = f"<thead><tr>{''.join(f'<th>{name}</th>' for name in names)}</tr></thead>"
    body = "\n".join(rows)
    return f'<div class="panel scroll"><table>{head}<tbody>\n{body}\n</tbody></table></div>'


def _value(value: float) -> str:
    """A measured value with the digits that tolerances here ask for, and all of them in its title."""
    return f'<data value="{value!r}" title="{value!r}">{value:.7g}</data>'


def _row(verdict: Verdict) -> str:
    check = verdict.check
    value = "nothing" if verdict.value is None else _value(verdict.value)
    return (
        f'<tr><th scope="row">{escape(check.quantity)}</th><td class="value">{value}</td>'
        f'<td class="value">{escape(pages.expected(check))}</td><td class="value">{escape(str(check.tolerance))}</td>'
        f'<td class="fields">{escape(plain(check.kind))}</td><td>{_badge(verdict.met)}</td></tr>'
    )


def _settings(outcome: Outcome) -> str:
    text: str = yaml.safe_dump(outcome.claim.settings, sort_keys=False, allow_unicode=True)
    return text
