import errno
import json
import math

import numpy as np
import pytest
import torch

from scorefield.records import Journal


def refuse(token):
    raise AssertionError(f"{token} is not JSON")


def test_what_is_written_is_read_back(tmp_path):
    values = {
        "loss": 0.1 + 0.2,
        "up": math.inf,
        "down": -math.inf,
        "naïve_σ": "Größe → ∞\n\u2028 line",
        "nested": {"levels": [1e-300, math.nan, 3], "none": None, "flag": True},
    }
    journal = Journal(tmp_path / "metrics.jsonl")
    journal.write(10, 1280, "train", **values)
    journal.write(20, 2560, "validation", tensor=torch.tensor(0.5), count=np.int64(3), single=np.float32(0.25))

    first, second = journal.read()
    assert first["nested"]["levels"].pop(1) != first["nested"]["levels"]  # NaN, compared apart
    values["nested"]["levels"].pop(1)
    assert {name: first[name] for name in values} == values
    assert (first["step"], first["images"], first["phase"]) == (10, 1280, "train")
    assert (second["tensor"], second["count"], second["single"]) == (0.5, 3, 0.25)
    assert list(second)[:4] == ["step", "images", "time", "phase"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_numbers_are_valid_json_and_come_back(tmp_path, value):
    journal = Journal(tmp_path / "metrics.jsonl")
    journal.write(1, 1, "train", loss=value, inner=[torch.tensor(value)])
    json.loads(journal.path.read_text(), parse_constant=refuse)
    (record,) = journal.read()
    for read in (record["loss"], record["inner"][0]):
        assert read == value or (math.isnan(read) and math.isnan(value))


def test_every_line_stands_alone_and_is_there_at_once(tmp_path):
    journal = Journal(tmp_path / "metrics.jsonl")
    for step in range(5):
        journal.write(step, step, "train", text="two\nlines")
        lines = journal.path.read_text(encoding="utf-8").split("\n")
        assert [json.loads(line)["step"] for line in lines[:-1]] == list(range(step + 1))
        assert lines[-1] == ""


def killed_at(path, step, cut):
    """A journal of steps 1 to ``step``, two lines each, whose last line lost its final ``cut`` bytes."""
    journal = Journal(path)
    for i in range(1, step + 1):
        journal.write(i, 8 * i, "train", loss=1 / i)
        journal.write(i, 8 * i, "validation", loss=2 / i)
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    return whole.splitlines(keepends=True)


@pytest.mark.parametrize("cut", [1, 2, 20])
@pytest.mark.parametrize("resumed_at", [0, 4, 7, 99])
def test_truncating_after_a_kill_leaves_exactly_the_lines_up_to_the_step(tmp_path, cut, resumed_at):
    path = tmp_path / "metrics.jsonl"
    lines = killed_at(path, 7, cut)
    journal = Journal(path)
    journal.truncate_after(resumed_at)
    assert path.read_bytes() == b"".join(line for line in lines[:-1] if json.loads(line)["step"] <= resumed_at)

    for step in range(min(resumed_at, 7) + 1, 9):
        journal.write(step, 8 * step, "train", loss=0.0)
    steps = [record["step"] for record in journal.read() if record["phase"] == "train"]
    assert steps == list(range(1, 9))
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_half_line_is_neither_read_nor_glued_to_the_next(tmp_path):
    path = tmp_path / "metrics.jsonl"
    killed_at(path, 2, 3)
    journal = Journal(path)
    assert len(journal.read()) == 3
    journal.write(3, 24, "train", loss=0.5)
    assert [record["step"] for record in journal.read()] == [1, 1, 2, 3]


def test_a_failed_truncation_leaves_the_old_journal(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    killed_at(path, 3, 1)
    before = path.read_bytes()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "no space left")))
    with pytest.raises(OSError, match="no space"):
        Journal(path).truncate_after(1)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_time_goes_on_over_a_resume(tmp_path):
    now = [100.0]
    first = Journal(tmp_path / "metrics.jsonl", clock=lambda: now[0])
    now[0] += 5
    first.write(1, 1, "train")
    now[0] += 5
    first.write(2, 2, "train")

    now[0] = 7000.0  # another process, whose clock has nothing to do with the first one's
    second = Journal(tmp_path / "metrics.jsonl", clock=lambda: now[0])
    now[0] += 3  # spent before the state of the earlier step stands again
    second.truncate_after(1)
    now[0] += 2
    second.write(2, 2, "train")
    assert [record["time"] for record in second.read()] == [5.0, 7.0]


def test_refusals_name_what_is_wrong(tmp_path):
    journal = Journal(tmp_path / "metrics.jsonl")
    with pytest.raises(ValueError, match=r"phase must be one of .*'test'"):
        journal.write(1, 1, "test", loss=1.0)
    with pytest.raises(ValueError, match="'time' is filled in"):
        journal.write(1, 1, "train", time=3.0)
    with pytest.raises(ValueError, match="'inf' would be read back as a number"):
        journal.write(1, 1, "train", note=["inf"])
    with pytest.raises(TypeError, match="set"):
        journal.write(1, 1, "train", note={1, 2})
    assert journal.read() == []
    journal.path.write_text('{"step": 1, "images": 1, "time": 0, "phase": "train"}\n{"step": \n')
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        journal.read()
