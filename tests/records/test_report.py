import base64
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from scorefield.records import RunDir, write_report
from tests.records.fabricated import CONFIG, METRICS, fabricate, write_journal

VOID = {"meta", "img", "br", "link"}


class Page(HTMLParser):
    """What a browser would make of the page: tags, attributes and text; fails where tags do not match."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text, self.attributes = [], [], "", []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data

    def sources(self):
        return [value for tag, name, value in self.attributes if tag == "img" and name == "src"]


def page_of(run):
    return Page(write_report(run).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fabricate(tmp_path_factory.mktemp("runs") / "run")


def test_every_metric_is_there_with_all_digits_and_its_protocol(run):
    page = page_of(run)
    values = [value for tag, name, value in page.attributes if (tag, name) == ("data", "value")]
    for name, measurement in METRICS.items():
        assert name in page.text
        assert repr(measurement.value) in values
        for field, inner in measurement.protocol.items():
            assert field.replace("_", " ") in page.text
            if isinstance(inner, str):
                assert inner in page.text
    assert "0.75 × the floor of 0.553" in page.text  # 0.41237 / 0.5530


def test_config_command_cost_and_commit_are_there(run):
    page = page_of(run)
    assert CONFIG in page.text
    assert "scorefield train experiment=digits seed=7" in page.text
    assert "c0ffee" in page.text
    assert "1 min 58 s" in page.text
    assert "Not here yet" not in page.text


def test_every_picture_of_the_run_is_embedded_byte_for_byte(run):
    embedded = {base64.b64decode(source.partition("base64,")[2]) for source in page_of(run).sources()}
    expected = [run.final_samples, run.real_samples, run.trajectory, *run.figures()]
    expected += [run.sample_grids()[0], run.sample_grids()[-1]]
    assert {path.read_bytes() for path in expected} <= embedded


def test_one_chart_for_each_recorded_name(run):
    page = page_of(run)
    assert page.tags.count("svg") == 4  # loss, learning_rate, fd_digits, bits_per_dim
    assert "Non-finite records left out: 1." in page.text


def test_the_page_needs_nothing_but_itself(run):
    text = write_report(run).read_text(encoding="utf-8")
    assert not re.search(r"https?:|url\(|@import", text.replace("url(#", ""))
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "base"} & set(page.tags)
    for tag, name, value in page.attributes:
        if name in ("src", "href", "srcset", "data", "action", "poster"):
            assert value.startswith(("data:image/", "#")), (tag, name, value[:60])


def test_the_same_run_gives_the_same_page(run):
    assert write_report(run).read_bytes() == write_report(run.path).read_bytes()


HOSTILE = '</title><script>alert(\'x\')</script><img src=x onerror="alert(1)"> & "it\'s"'


def test_hostile_text_stays_text(tmp_path):
    run = fabricate(tmp_path, experiment=HOSTILE)
    run.config.write_text(f"note: {json.dumps(HOSTILE)}\n")
    with run.metrics.open("a") as file:
        for step in (5000, 6000):
            record = {"step": step, "images": 1, "time": 1, "phase": "train", HOSTILE: step, HOSTILE + "2": HOSTILE}
            file.write(json.dumps(record) + "\n")
    record = json.loads(run.result.read_text())
    record["metrics"] = {HOSTILE: {"value": 1.5, "floor": 1.0, HOSTILE: HOSTILE, "list": [HOSTILE]}}
    record["cost"], record["versions"] = {HOSTILE: 1}, {HOSTILE: HOSTILE}
    record["git"], record["command"] = {"commit": HOSTILE, "dirty": True}, HOSTILE
    run.result.write_text(json.dumps(record))
    run.figure("loss_by_noise").rename(run.figure("a<b>&c"))

    page = page_of(run)
    assert "script" not in page.tags
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert all(source.startswith("data:image/") for source in page.sources())
    # title, heading, card, chart, metric table (name, field, value), cost, versions (2), commit, command
    assert page.text.count("<script>alert('x')</script>") >= 10


def test_a_hostile_folder_name_and_config_stay_text(tmp_path):
    run = RunDir(tmp_path / "<script>alert(1)&").create()
    run.metrics.write_text("{\n")
    assert "script" not in page_of(run).tags  # in the title, the heading and the line on what is missing
    run.config.write_text("experiment: {name: '<script>', seed: 3}\nseed: ['<script>']\n")
    assert "script" not in page_of(run).tags


def test_an_empty_or_absent_directory_has_a_page(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        page = page_of(RunDir(folder))
        for name in ("config.yaml", "metrics.jsonl", "result.json", "samples"):
            assert f"{name}:" in page.text
        assert page.sources() == []


def test_a_run_that_is_still_going_shows_its_last_numbers(tmp_path):
    run = RunDir(tmp_path).create()
    write_journal(run, steps=1000)
    run.config.write_text(CONFIG)
    page = page_of(run)
    assert "unfinished, last heard at step 1\N{NARROW NO-BREAK SPACE}000" in page.text
    assert "result.json: the run has not finished" in page.text
    assert "digits, seed 7" in page.text
    assert "1.892" in page.text  # bits_per_dim at step 1000: 1.81 + exp(-2.5)


@pytest.mark.parametrize("name", ["config", "metrics", "result"])
@pytest.mark.parametrize(
    "content", [b"{", b"\xff\xfe: [\n", b"[1, 2]\n", b"null\n", b'{"schema": "scorefield-result/1"}\n']
)
def test_a_broken_file_costs_its_own_part_only(run, tmp_path, name, content):
    run = RunDir(shutil.copytree(run.path, tmp_path / "run"))
    getattr(run, name).write_bytes(content)
    page = page_of(run)
    assert ("0.4124" in page.text) == (name != "result")
    assert "Samples of the finished model" in page.text
    assert (page.tags.count("svg") == 4) == (name != "metrics")


def test_the_package_loads_matplotlib_only_to_draw():
    code = "import sys, scorefield.records; print('matplotlib' in sys.modules)"
    answer = subprocess.run((sys.executable, "-c", code), capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"
