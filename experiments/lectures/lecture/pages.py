"""The parts of the pages that repeat the configurations: written from them, never by hand."""

import re
from pathlib import Path

from lecture.claims import HOME, Check, Claim, everything, name_of
from scorefield.records.markup import plain

BEGIN = "<!-- from config.yaml, by `python experiments/lectures/run.py --pages` -->"
END = "<!-- end -->"


def expected(check: Check) -> str:
    """The expected value in reading form; small numbers keep all their digits."""
    if check.expected is None:
        return "–"
    return plain(check.expected) if isinstance(check.expected, int) else f"{check.expected:.10g}"


def numbers(claim: Claim) -> str:
    """The closing part of a claim's page: what counts as success, how to run it, where the figure is."""
    rows = [
        f"| {check.quantity.replace('|', chr(92) + '|')} | {expected(check)} | {check.tolerance} | {check.kind} |"
        for check in claim.checks
    ]
    lines = [
        "## What counts as success",
        "",
        "| quantity | expected | met when | kind |",
        "|---|---|---|---|",
        *rows,
        "",
        f"Lecture {claim.lecture} at {claim.time}. Statement: {claim.source}.",
        "",
        *(f"- {reference}" for reference in claim.references),
        "",
        f"Run it with `python experiments/lectures/run.py {claim.name}`; the figure is then "
        f"`outputs/lectures/figures/{claim.name}.png`.",
    ]
    return "\n".join(lines)


def index() -> str:
    """The table of all claims."""
    rows = [
        f"| [{claim.name}]({claim.folder.name}/README.md) | {claim.title} | {_first(claim)} |" for claim in everything()
    ]
    return "\n".join(["| claim | what it says | the number |", "|---|---|---|", *rows])


def _first(claim: Claim) -> str:
    check = claim.checks[0]
    quantity = check.quantity.replace("|", r"\|")
    rule = str(check.tolerance)
    return f"{quantity}: {rule}" if check.expected is None else f"{quantity}: {expected(check)} ({rule})"


def prose(claim: Claim) -> str:
    """A claim's page without heading and repetitions of the configuration; links to other claims lead down the page."""
    text = claim.page.split(BEGIN)[0].split("\n", 1)[1].strip()
    return re.sub(r"\]\(\.\./(\w+)/README\.md\)", lambda link: f"](#{name_of(link[1])})", text)


def rewritten(page: Path, heading: str | None, part: str) -> str:
    """The page with its heading and its part from the configuration as they should be."""
    text = page.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise ValueError(f"{page} lacks the lines '{BEGIN}' and '{END}', between which its numbers are written")
    text = re.sub(f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: f"{BEGIN}\n{part}\n{END}", text, flags=re.DOTALL)
    return text if heading is None else re.sub(r"\A# .*", lambda _: f"# {heading}", text)


def all_pages() -> dict[Path, str]:
    """Every page as it should be, by path."""
    wanted = {
        claim.folder / "README.md": rewritten(claim.folder / "README.md", f"{claim.name} {claim.title}", numbers(claim))
        for claim in everything()
    }
    return wanted | {HOME / "README.md": rewritten(HOME / "README.md", None, index())}
