"""Every command of every row composes at both scales, shared models are trained once, and a failure is told."""

import contextlib
import importlib.util
import io
import json
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from paper_table.jobs import Job, composed, jobs, run
from paper_table.tables import SCALES, everything, read_plan

from scorefield.cli.runs import make
from scorefield.cli.train import execute
from scorefield.kernels import Stay
from scorefield.records.rundir import RunDir
from tests.paper_tables.conftest import HOME, write_result

PLAN = read_plan()
TABLES = everything()
MADE = {
    (scale, job.program, job.overrides): job
    for scale in SCALES
    for table in TABLES
    for row in table.own.values()
    for job in jobs(row, scale, 0, PLAN)
    if job.program in ("train", "evaluate")
}
TRAINED = {
    scale: [job for (at, program, _), job in MADE.items() if (at, program) == (scale, "train")] for scale in SCALES
}


@cache
def composed_once(program: str, overrides: tuple[str, ...]) -> dict:
    return composed(program, [*overrides, "run_dir=run"])


def config_of(job: Job) -> dict:
    return composed_once(job.program, job.overrides)


@cache
def parameters_at_full_size(net: str, conditional: bool) -> int:
    """Of a network given by its configuration, after shapes have gone through it; nothing is kept in memory."""
    with torch.device("meta"):
        labels = {"class_labels": torch.zeros(2, 10)} if conditional else {}
        built = make(json.loads(net))
        assert built(torch.zeros(2, 3, 32, 32), torch.zeros(2), **labels).shape == (2, 3, 32, 32)
    return sum(p.numel() for p in built.parameters())


def named(job: Job) -> str:
    return job.run_dir.name


def test_models_are_asked_for_by_some_row():
    """A model that no row needs would never be trained, and nobody would notice."""
    for scale in SCALES:
        made = {named(job).removesuffix("-seed0") for job in TRAINED[scale]}
        wanted = {PLAN.run(model, scale) for model in PLAN.models if PLAN.train(model, scale) is not None}
        assert made == wanted


@pytest.mark.parametrize("job", TRAINED["small"], ids=named)
def test_small_models_are_small_and_told_apart_by_the_method_alone(job):
    config = config_of(job)
    assert config["data"]["dataset"]["_target_"] == "scorefield.data.Digits"
    assert (config["steps"], config["data"]["batch_size"]) == (400, 128)
    assert config["optim"]["optimizer"]["lr"] == 2e-3
    assert config["callbacks"]["quality"]["n_final"] == 500
    assert sum(p.numel() for p in make(config["net"]).parameters()) < 100_000


@pytest.mark.parametrize("job", TRAINED["paper"], ids=named)
def test_paper_models_build_at_full_size(job):
    config = config_of(job)
    assert config["trainer"]["accelerator"] == "gpu"
    assert config["data"]["dataset"]["_target_"] == "scorefield.data.CIFAR10"
    for part in ("objective", "sampler", "times", "schedule", "parametrization"):
        make(config[part])
    assert parameters_at_full_size(json.dumps(config["net"]), config["data"]["conditional"]) > 7_000_000


EVALUATED = [job for (_, program, _), job in MADE.items() if program == "evaluate"]


def test_samplers_of_evaluations_go_with_their_schedules():
    """Each sampler makes a falling grid on the schedule of the model that it samples."""
    for job in EVALUATED:
        asked, stored = config_of(job), composed_once("train", job.trained)
        if "sampler" not in asked:  # a likelihood, which draws nothing
            assert asked["only"] == ["likelihood"]
            continue
        sampler, schedule = make(asked["sampler"]), make(stored["schedule"])
        if hasattr(sampler, "grid"):
            times = sampler.grid(schedule, sampler.steps)
            # a ladder ends at its last level, where a corrector has no way to go
            moving = times.diff()[: -1 if isinstance(sampler.predictor, Stay) else None]
            assert (moving < 0).all(), job.line


def test_score_sde_rows_have_equal_evaluations():
    """P100, PC50 and C100 stand for P2000, PC1000 and C2000: as many network calls, to one."""
    rows = next(table for table in TABLES if table.name == "score_sde_table1").own
    for scale, most in (("small", 100), ("paper", 2000)):
        for key, row in rows.items():
            sampler = make(config_of(jobs(row, scale, 0, PLAN)[-1])["sampler"])
            wanted = most // 2 if key.endswith("_p50") else most
            assert abs(sampler.nfe - wanted) <= 1, (key, sampler.nfe)


def test_a_model_of_two_tables_is_trained_once():
    tables = {table.name: table for table in TABLES}
    one = jobs(tables["ddpm_table1"].own["l_simple"], "small", 0, PLAN)
    other = jobs(tables["score_sde_table2"].own["ddpm"], "small", 0, PLAN)
    assert one[0] == other[0]
    (ddpm,) = jobs(tables["flow_matching_table1"].own["ddpm"], "small", 2, PLAN)
    (same,) = jobs(tables["score_sde_table2"].own["ddpm_vp"], "small", 2, PLAN)
    assert ddpm == same


def test_a_rows_own_choice_of_evaluations_replaces_the_common_one():
    tables = {table.name: table for table in TABLES}
    common = jobs(tables["score_sde_table2"].own["ddpm"], "small", 0, PLAN)[-1]
    own = jobs(tables["scoreflow_headline"].own["best"], "small", 0, PLAN)[-1]
    assert common.overrides[0] == "only=[quality]"
    assert own.overrides == ("only=[likelihood]", "dequantisation=variational")


def test_models_of_the_same_configuration_share_a_run(table, plan, tmp_path):
    (long,) = jobs(table.own["long"], "small", 0, plan, tmp_path)
    trained, _ = jobs(table.own["sampled"], "small", 0, plan, tmp_path)
    assert long == trained
    assert plan.run("twin", "small") == "first"
    assert plan.run("twin", "paper") == "twin"
    assert jobs(table.own["large"], "small", 0, plan, tmp_path) == []


@pytest.fixture
def script(tmp_path):
    """A script that leaves a record, or fails where it is told to."""
    path = tmp_path / "script.py"
    path.write_text(
        "import json, pathlib, sys\n"
        "said = dict(a.removeprefix('--').split('=') for a in sys.argv[1:])\n"
        "if said['fail'] == 'yes':\n    sys.exit('it went wrong')\n"
        "out = pathlib.Path(said['out'])\nout.mkdir(parents=True)\n"
        "(out / 'result.json').write_text(json.dumps({'schema': 'scorefield-result/1', 'experiment': 'e', 'seed': 0,\n"
        "    'config_hash': '', 'command': None, 'metrics': {}, 'cost': {}, 'versions': {}, 'git': None}))\n"
    )
    return lambda name, fail: Job(str(path), (f"--fail={fail}",), 0, tmp_path / "runs" / name)


def test_a_failure_leaves_its_log_and_does_not_stop_the_others(script, tmp_path):
    chains = [[script("a", "yes"), script("b", "no")], [script("c", "no")]]
    done = {each.job.run_dir.name: each for each in run(chains, 2)}
    assert "it went wrong" in done["a"].error
    assert str(tmp_path / "runs" / "logs" / "a.log") in done["a"].error
    assert done["b"].error.startswith("not run, since")
    assert not done["b"].job.run_dir.exists()
    assert done["c"].error == ""
    assert done["c"].seconds > 0


def test_what_is_finished_is_not_run_again(script, tmp_path):
    job = script("a", "yes")
    write_result(job.place / "result.json", {}, "")
    (done,) = run([[job]], 1)
    assert (done.seconds, done.error) == (None, "")


def test_a_run_of_another_configuration_is_left_alone(table, plan, tmp_path):
    (job,) = jobs(table.own["long"], "small", 0, plan, tmp_path)
    write_result(job.place / "result.json", {}, "00000000")
    before = (job.place / "result.json").read_bytes()
    (done,) = run([[job]], 1)
    assert "move the directory away" in done.error
    assert (job.place / "result.json").read_bytes() == before


def main(*arguments: str) -> tuple[int, str, str]:
    sys.path.insert(0, str(HOME))
    # By its file: another experiment has a run.py, too.
    spec = importlib.util.spec_from_file_location("paper_tables_run", HOME / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    command = module.main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = command(list(arguments))
    return code, out.getvalue(), err.getvalue()


def test_print_shows_each_command_once_and_runs_nothing(home, tmp_path):
    code, out, _ = main("--print", "--seeds", "0", "1", "--outputs", str(tmp_path / "out"))
    lines = [line for line in out.splitlines() if line.startswith("scorefield ")]
    assert code == 0
    assert len(lines) == len(set(lines)) == 4  # one model and one evaluation of it, two seeds each
    assert sum(line.startswith("scorefield train") for line in lines) == 2
    assert "# not made: too large" in out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "near"), [("made_pu", "made_up"), ("made_up:lnog", "long")])
def test_a_wrong_name_is_told_the_nearest(home, name, near):
    code, _, err = main(name, "--print")
    assert code == 2
    assert f"did you mean {near}?" in err


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("job", TRAINED["small"], ids=named)
def test_every_small_model_survives_one_batch(job, tmp_path):
    sampler = config_of(job)["sampler"]
    few = ["sampler.steps=2"] if "steps" in sampler and "ladder" not in named(job) else []
    if sampler.get("grid", {}).get("_target_", "").endswith("Ladder"):
        few = []
    config = composed("train", [*job.overrides, "debug=one_batch", *few, f"run_dir={tmp_path}"])
    execute(config, RunDir(Path(tmp_path)))
    assert RunDir(tmp_path).report.is_file()
