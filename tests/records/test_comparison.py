"""Tables of runs: only what differs, seeds together, nothing ranked that was measured differently, nothing left out
in silence."""

import csv
import io
import json
import re
import resource
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from markdown_it import MarkdownIt

from scorefield.cli.table import main, selected, written
from scorefield.records.comparison import compare
from scorefield.records.result import Measurement, Result
from scorefield.records.runs import find_runs
from scorefield.records.tables import comma_separated, html, latex, markdown, spread, tabulate

HEUN = {"_target_": "scorefield.samplers.Sampler", "steps": 18, "predictor": {"_target_": "scorefield.kernels.Heun"}}
DDIM = {**HEUN, "predictor": {"_target_": "scorefield.kernels.Ancestral", "eta": 0.0}}
NOISY = {**HEUN, "predictor": {"_target_": "scorefield.kernels.Ancestral", "eta": 1.0}}
PROTOCOL = {"n": 500, "weights": "ema", "nfe": 35, "seconds": 1.5}


def config(path: Path, seed: int, sampler=HEUN, lr: float = 1e-3, name: str = "digits", **more) -> dict:
    return {
        "data": {"dataset": {"_target_": "scorefield.data.Digits"}, "batch_size": 16},
        "optim": {"optimizer": {"_target_": "torch.optim.Adam", "lr": lr}},
        "sampler": sampler,
        "callbacks": {
            "quality": {"sampler": sampler, "seed": seed, "run_dir": str(path)},
            "samples": {"sampler": sampler, "run_dir": str(path)},
        },
        "logger": {"wandb": {"name": f"{name}-seed{seed}"}},
        "name": name,
        "seed": seed,
        "run_dir": str(path),
        **more,
    }


def make_run(path: Path, seed: int = 0, fd: float | None = None, protocol=PROTOCOL, better="less", **settings) -> Path:
    """A run's directory with what a table reads of it; unfinished without a number."""
    (path / "logs").mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump(config(path, seed, **settings), sort_keys=False))
    if fd is not None:
        metrics = {"fd": Measurement(fd, protocol, better), "recall": Measurement(1 / (1 + fd), protocol, "more")}
        cost = {"train_seconds": 100.0 + seed}
        Result("digits", seed, "0" * 8, metrics, cost, {}, None).write(path / "result.json")
    return path


def comparison(folder: Path, *args, **kwargs):
    return compare(find_runs([folder]).runs, *args, **kwargs)


@pytest.fixture
def grid(tmp_path):
    """Three samplers, two of them of one class, with two seeds each."""
    values = {"heun": (HEUN, [1.0, 1.4]), "ddim": (DDIM, [0.9, 1.0]), "noisy": (NOISY, [3.0, 5.0])}
    for name, (sampler, numbers) in values.items():
        for seed, fd in enumerate(numbers):
            make_run(tmp_path / f"{name}-{seed}", seed, fd, sampler=sampler)
    return tmp_path


def test_only_what_differs_is_shown_and_what_is_interpolated_once(grid):
    found = comparison(grid)
    assert [(column.key, column.title) for column in found.columns] == [("sampler.predictor", "predictor")]
    cells = {group.settings["sampler.predictor"] for group in found.groups}
    assert cells == {"Heun", "Ancestral(eta=0)", "Ancestral(eta=1)"}


def test_settings_with_the_same_values_by_chance_are_both_shown(tmp_path):
    """Width and learning rate change together; they are not one setting told twice."""
    for i, lr in enumerate((0.1, 0.2)):
        make_run(tmp_path / str(i), 0, 1.0, lr=lr, width=lr)
    assert [column.key for column in comparison(tmp_path).columns] == ["optim.optimizer.lr", "width"]


def test_titles_are_the_shortest_ends_that_tell_settings_apart(tmp_path):
    """And none of them is n, which is the number of seeds."""
    for i in (1, 2):
        make_run(tmp_path / str(i), 0, 1.0, a={"n": i, "x": i}, b={"x": -i, "y": 10 * i})
    assert [column.title for column in comparison(tmp_path).columns] == ["a.n", "a.x", "b.x", "y"]


def test_a_part_that_is_left_out_is_one_column(tmp_path):
    make_run(tmp_path / "a", 0, 1.0, ema={"_target_": "scorefield.training.ema.EMA", "decay": 0.9})
    make_run(tmp_path / "b", 0, 1.0, ema=None)
    (column,) = comparison(tmp_path).columns
    assert (column.key, column.values) == ("ema", ("EMA", "none"))


def test_seeds_are_put_together(grid):
    """Mean and standard deviation with n - 1, against numpy; and no column for what follows the seed."""
    values = {"Heun": [1.0, 1.4], "Ancestral(eta=0)": [0.9, 1.0], "Ancestral(eta=1)": [3.0, 5.0]}
    for group in comparison(grid).groups:
        expected = values[group.settings["sampler.predictor"]]
        assert len(group.runs) == group.metrics["fd"].n == 2
        assert group.metrics["fd"].mean == pytest.approx(np.mean(expected), rel=1e-15)
        assert group.metrics["fd"].std == pytest.approx(np.std(expected, ddof=1), rel=1e-12)
        assert group.metrics["recall"].mean == pytest.approx(np.mean([1 / (1 + v) for v in expected]), rel=1e-15)


def test_seeds_are_put_together_though_other_runs_lack_the_part(grid):
    """The others' seeds are their own still."""
    make_run(grid / "bare-0", 0, 2.0)
    for path in grid.glob("*/config.yaml"):
        content = yaml.safe_load(path.read_text())
        content["callbacks"]["quality"]["_target_"] = "scorefield.training.callbacks.SampleQuality"
        if path.parent.name == "bare-0":
            del content["callbacks"]["quality"]
        path.write_text(yaml.safe_dump(content))
    groups = comparison(grid).groups
    assert sorted(len(group.runs) for group in groups) == [1, 2, 2, 2]
    assert not any("seed" in str(value) for group in groups for value in group.settings.values())


def test_a_single_seed_has_no_deviation(tmp_path):
    make_run(tmp_path / "a", 0, 1.0)
    (group,) = comparison(tmp_path).groups
    assert group.metrics["fd"].std is None


def test_the_same_run_twice_counts_once_and_is_told(grid):
    make_run(grid / "heun-copy", 0, 1.0, sampler=HEUN)
    found = comparison(grid)
    assert sorted(len(group.runs) for group in found.groups) == [2, 2, 2]
    assert any("heun-copy repeats a run that is counted already" in remark for remark in found.remarks())


def test_the_best_is_marked_by_what_each_metric_says_of_itself(grid):
    found = comparison(grid)
    fd, recall = found.metrics
    best = {
        metric.name: {found.groups[i].settings["sampler.predictor"] for i in found.best(metric)}
        for metric in (fd, recall)
    }
    assert best == {"fd": {"Ancestral(eta=0)"}, "recall": {"Ancestral(eta=0)"}}
    order = [group.settings["sampler.predictor"] for group in found.sorted("fd").groups]
    assert order == ["Ancestral(eta=0)", "Heun", "Ancestral(eta=1)"]
    assert [g.settings["sampler.predictor"] for g in found.sorted("recall").groups] == order
    assert [g.settings["sampler.predictor"] for g in found.sorted("fd", reverse=True).groups] == order[::-1]


def test_a_metric_that_does_not_say_which_way_is_better_is_not_ranked(tmp_path):
    for i in range(2):
        make_run(tmp_path / str(i), 0, 1.0 + i, better=None, lr=float(i))
    found = comparison(tmp_path)
    assert found.best(found.metrics[0]) == set()


def test_where_all_are_equal_none_is_the_best(tmp_path):
    for i in range(2):
        make_run(tmp_path / str(i), 0, 1.0, lr=float(i))
    found = comparison(tmp_path)
    assert found.best(found.metrics[0]) == set()


def test_different_protocols_are_never_ranked_together(grid):
    """One run with fewer samples has the smallest distance; nothing is marked, and the table says why."""
    make_run(grid / "few", 0, 0.1, {**PROTOCOL, "n": 50}, sampler={**HEUN, "steps": 3})
    found = comparison(grid)
    assert found.best(found.metrics[0]) == set()
    (remark,) = [remark for remark in found.remarks() if remark.startswith("fd ")]
    assert "was measured by different protocols and is not ranked" in remark
    assert "n=50" in remark
    assert "n=500" in remark
    assert "weights" not in remark  # it is the same in all
    text = markdown(tabulate(found))
    assert "**" not in text
    assert "0.1 (" in text
    order = [group.metrics["fd"].protocols for group in found.sorted("fd").groups]
    assert order == sorted(order), "one protocol after the other"
    allowed = comparison(grid, ignore=["n"])
    assert len(allowed.best(allowed.metrics[0])) == 1


def test_other_data_are_another_protocol(grid):
    other = {"dataset": {"_target_": "scorefield.data.Cifar10"}, "batch_size": 16}
    make_run(grid / "other", 0, 0.1, data=other)
    found = comparison(grid)
    assert found.best(found.metrics[0]) == set()
    assert any("data=Cifar10" in remark for remark in found.remarks())


def test_what_was_found_is_no_protocol(tmp_path):
    for i in range(2):
        make_run(tmp_path / str(i), 0, 1.0 + i, {**PROTOCOL, "nfe": 10 + i, "seconds": float(i)}, lr=float(i))
    found = comparison(tmp_path)
    assert found.best(found.metrics[0]) == {0}


def test_findings_and_what_was_evaluated_are_no_protocol_either(tmp_path):
    """Agreement by class, the guidance, the images: two runs that differ in these are still ranked."""
    for i, (fd, guidance) in enumerate([(2.0, "Guided(scale=1)"), (1.0, "Guided(scale=2)")]):
        found = {"by_class": [0.9, 0.1 * i], "kid_by_class": [0.0, i], "guidance": guidance, "images": f"{i}.zip"}
        make_run(tmp_path / str(i), fd=fd, protocol={**PROTOCOL, **found}, lr=1e-3 * (i + 1))
    found = comparison(tmp_path)
    (metric,) = (m for m in found.metrics if m.name == "fd")
    assert metric.comparable
    assert [found.groups[i].metrics["fd"].mean for i in found.best(metric)] == [1.0]


def test_runs_without_a_result_are_named_with_the_reason(tmp_path):
    make_run(tmp_path / "good", 0, 1.0)
    make_run(tmp_path / "open")
    (tmp_path / "open" / "metrics.jsonl").write_text('{"step": 7, "images": 1, "time": 0.1, "phase": "train"}\n{"st')
    for name, code in (("failed", 70), ("told", 75)):
        make_run(tmp_path / name)
        (tmp_path / name / "logs" / "job.json").write_text(json.dumps({"exit_code": code}))
    (make_run(tmp_path / "torn", 0, 1.0) / "result.json").write_text("{")
    (make_run(tmp_path / "odd", 0, 1.0) / "config.yaml").write_text("name: [")
    (make_run(tmp_path / "bare", 0, 1.0) / "config.yaml").unlink()
    make_run(tmp_path / "good.old1", 0, 1.0)
    (tmp_path / "early" / "logs").mkdir(parents=True)
    (tmp_path / "early" / "logs" / "job.log").write_text("")
    found = find_runs([tmp_path])
    assert [run.path.name for run in found.runs] == ["good"]
    why = {one.path.name: one.why for one in found.unread}
    assert why.keys() == {"open", "failed", "told", "torn", "odd", "bare", "good.old1", "early"}
    assert why["open"] == "unfinished, last heard at step 7"
    assert why["failed"].startswith("ended with code 70")
    assert why["told"].startswith("interrupted")
    assert "result.json is damaged" in why["torn"]
    assert "config.yaml is damaged" in why["odd"]
    assert why["good.old1"] == "set aside by fresh=true"
    for text in (markdown, latex, html):
        page = text(tabulate(compare(found.runs), found.unread))
        assert all(name in page for name in why)
    assert all(name in comma_separated(compare(found.runs), found.unread) for name in why)


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "text",
    [
        BOMB,
        "!!python/object/apply:os.system ['true']\n",
        "- 1\n",
        "a: 1\n" + "#" * (1 << 20),
        "\0",
        "",
        "x: " + "[" * 5000,
    ],
)
def test_a_hostile_configuration_is_named_and_passed_over(tmp_path, text):
    (make_run(tmp_path / "a", 0, 1.0) / "config.yaml").write_text(text)
    make_run(tmp_path / "b", 0, 1.0)
    found = find_runs([tmp_path])
    assert [run.path.name for run in found.runs] == ["b"]
    assert "config.yaml" in found.unread[0].why


def test_pieces_that_refer_to_each_other_are_read_as_a_whole(tmp_path):
    path = make_run(tmp_path / "a", 0, 1.0)
    (path / "config.yaml").write_text("sampler: &s\n  steps: 3\ncopy: *s\nseed: 0\n")
    (run,) = find_runs([tmp_path]).runs
    assert run.config == {"sampler.steps": 3, "copy.steps": 3, "seed": 0}


def test_what_is_read_is_what_yaml_reads(grid):
    """Against the plain loader, whose result is flattened by hand here."""

    def leaves(node, path=()):
        return (
            {k: v for key, value in node.items() for k, v in leaves(value, (*path, key)).items()}
            if isinstance(node, dict)
            else {".".join(path): node}
        )

    for run in find_runs([grid]).runs:
        whole = leaves(yaml.safe_load((run.path / "config.yaml").read_text()))
        assert run.config.keys() == whole.keys()
        assert all(value == run.config[key] for key, value in whole.items() if value != str(run.path))


def test_evaluations_are_rows_where_they_are_asked_for(tmp_path):
    """Seeds of the runs and of the evaluations: four of the same evaluation are four, not two."""
    for seed in (0, 1):
        run = make_run(tmp_path / f"run-{seed}", seed, 1.0)
        for own in (0, 1):
            make_run(run / "evaluations" / f"e-{own}", own, 2.0 + own, sampler=DDIM)
    assert len(find_runs([tmp_path]).runs) == 2
    found = compare(find_runs([tmp_path], evaluations=True).runs)
    assert sorted(len(group.runs) for group in found.groups) == [2, 4]
    assert found.repeated == ()


def cells_of_markdown(text: str) -> list[list[str]]:
    tokens = MarkdownIt().enable("table").parse(text)
    inline = [token for token in tokens if token.type == "inline" and token.level == 4]
    width = sum(token.type == "th_open" for token in tokens)
    flat = [token.content for token in inline if token.level == 4]
    return [flat[i : i + width] for i in range(0, len(flat), width)]


def test_markdown_is_read_back_as_the_same_table(grid):
    rows = cells_of_markdown(markdown(tabulate(comparison(grid).sorted("fd"))))
    assert rows[0] == ["predictor", "n", "fd ↓", "recall ↑"]
    assert [row[0] for row in rows[1:]] == ["Ancestral(eta=0)", "Heun", "Ancestral(eta=1)"]
    assert rows[1][2] == "**0.950 ± 0.071**"
    assert sum("**" in cell for row in rows for cell in row) == 2


def test_csv_holds_the_numbers_in_full(grid):
    found = comparison(grid)
    for row, group in zip(csv.DictReader(io.StringIO(comma_separated(found))), found.groups, strict=True):
        assert float(row["fd"]) == group.metrics["fd"].mean
        assert float(row["fd_std"]) == group.metrics["fd"].std
        assert row["runs"].split() == [str(run.path) for run in group.runs]


def test_latex_escapes_and_has_as_many_columns_in_every_row(tmp_path):
    for i, name in enumerate(("50%_&x", "a#b{c}~^\\")):
        make_run(tmp_path / str(i), 0, 1.0 + i, name=name)
    lines = latex(tabulate(comparison(tmp_path))).splitlines()
    assert lines[0] == r"\begin{tabular}{llrr}"
    rows = [line for line in lines if line.endswith(r"\\")]
    assert len(rows) == 3
    for row in rows:
        assert row.replace(r"\&", "").count("&") == 3
    assert r"50\%\_\&x" in rows[1]
    assert r"\textbf{1}" in rows[1]


def test_html_escapes(tmp_path):
    for i, name in enumerate(("<script>alert(1)</script>", "b")):
        make_run(tmp_path / str(i), 0, 1.0 + i, name=name)
    page = html(tabulate(comparison(tmp_path)))
    tags = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: tags.append(tag)
    parser.feed(page)
    assert "script" not in tags
    assert tags.count("tr") == 3
    assert tags.count("strong") == 2


@pytest.mark.parametrize(
    ("mean", "std", "text"),
    [
        (0.95, 0.0707, "0.950 ± 0.071"),
        (12.345, 3.21, "12.3 ± 3.2"),
        (1234.5, 99.7, "1234 ± 100"),
        (1.8234567, None, "1.823"),
        (2.0, 0.0, "2 ± 0"),
        (3e8, 1e7, "3e+08 ± 1e+07"),
        (1.0, 1e-12, "1 ± 1e-12"),
    ],
)
def test_as_many_digits_as_the_deviation_leaves(mean, std, text):
    assert spread(mean, std) == text


@pytest.mark.parametrize(
    ("conditions", "names"),
    [
        (["sampler.predictor=Heun"], {"heun-0", "heun-1"}),
        (["sampler.predictor!=Heun", "seed=1"], {"ddim-1", "noisy-1"}),
        (["fd<1.0"], {"ddim-0"}),
        (["fd>=1.4", "recall>0.2"], {"heun-1", "noisy-0"}),
        (["cost.train_seconds>100.5", "sampler.predictor.eta=0"], {"ddim-1"}),
    ],
)
def test_runs_are_filtered(grid, conditions, names):
    assert {run.path.name for run in selected(find_runs([grid]).runs, conditions)} == names


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nowhere"], "nowhere is no folder"),
        (["{}", "--where", "lr"], "--where 'lr' cannot be read"),
        (["{}", "--where", "colour=red"], "no run has colour"),
        (["{}", "--where", "fd<0"], "no finished run that is asked for"),
        (["{}", "--metrics", "fid"], "no run has fid; there is fd, recall, cost.train_seconds"),
        (["{}", "--sort", "fid"], "--sort fid is no column; there is predictor, fd, recall"),
        (["{}", "--out", "table.txt"], "--out table.txt must end in .md, .tex, .csv, .html"),
    ],
)
def test_mistakes_are_named_and_end_with_code_2(grid, capsys, arguments, expected):
    with pytest.raises(SystemExit) as end:
        main([argument.format(grid) for argument in arguments])
    assert end.value.code == 2
    assert expected in capsys.readouterr().err


def test_the_command_writes_each_kind_of_file(grid, tmp_path, capsys):
    for suffix, start in ((".md", "| "), (".tex", r"\begin"), (".csv", "sampler"), (".html", "<!doctype")):
        main(
            [
                str(grid),
                "--out",
                str(tmp_path / f"t{suffix}"),
                "--sort",
                "fd",
                "--metrics",
                "fd,fd.nfe,cost.train_seconds",
            ]
        )
        assert (tmp_path / f"t{suffix}").read_text().startswith(start)
    assert "3 rows of 6 runs" in capsys.readouterr().out
    assert written(comparison(grid), [], "terminal") == markdown(tabulate(comparison(grid)))  # not on a terminal


def test_the_python_of_the_page_runs(grid, monkeypatch, capsys):
    page = (Path(__file__).parents[2] / "docs" / "sweeps.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(grid)
    exec(code.replace('"outputs"', '"."').replace("fd_digits", "fd"), {})
    assert capsys.readouterr().out.splitlines()[0] == "{'sampler.predictor': 'Ancestral(eta=0)'} 0.95 2"


def test_a_thousand_runs_are_compared_in_three_seconds_without_torch(tmp_path):
    """The command's own processor time, its start included; measured: 0.9 s."""
    first = make_run(tmp_path / "first", 0, 1.0)
    text, record = (first / "config.yaml").read_text(), json.loads((first / "result.json").read_text())
    for i in range(999):
        path = tmp_path / f"run-{i}"
        path.mkdir()
        own = (
            text.replace(str(first), str(path))
            .replace("seed: 0", f"seed: {i % 10}")
            .replace("0.001", f"0.{i // 10:03}1")
        )
        (path / "config.yaml").write_text(own)
        (path / "result.json").write_text(json.dumps({**record, "seed": i % 10}))
    code = (
        "import sys; from scorefield.cli.table import main\n"
        f"main([{str(tmp_path)!r}, '--format', 'csv'])\n"
        "assert not {'torch', 'pytorch_lightning', 'matplotlib', 'hydra'} & set(sys.modules)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1 + 101
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3
