import pytest

from scorefield.records import RunDir, step_of


def test_layout(tmp_path):
    run = RunDir(tmp_path / "run").create().create()
    assert sorted(path.name for path in run.path.iterdir()) == ["checkpoints", "figures", "logs", "samples"]
    paths = {
        run.config: "config.yaml",
        run.metrics: "metrics.jsonl",
        run.result: "result.json",
        run.report: "report.html",
        run.checkpoint(4000): "checkpoints/step-00004000.ckpt",
        run.samples_at(4000): "samples/step-00004000.png",
        run.final_samples: "samples/final.png",
        run.real_samples: "samples/real.png",
        run.trajectory: "samples/trajectory.gif",
        run.figure("loss_by_noise"): "figures/loss_by_noise.png",
    }
    assert {str(path.relative_to(run.path)) for path in paths} == set(paths.values())
    assert all(str(path.relative_to(run.path)) == name for path, name in paths.items())


def test_files_are_found_in_the_order_of_their_steps(tmp_path):
    run = RunDir(tmp_path).create()
    # beyond eight digits names no longer sort like numbers
    steps = [3, 99_999_999, 100_000_000, 20, 1_234_567_890]
    for step in steps:
        run.checkpoint(step).touch()
        run.samples_at(step).touch()
    for name in ("last.ckpt", "step-12.ckpt", "step-00000001.ckpt.partial", "step-0000000x.ckpt"):
        (run.checkpoint_folder / name).touch()
    run.final_samples.touch()
    assert [step_of(path) for path in run.checkpoints()] == sorted(steps)
    assert run.checkpoints() == [run.checkpoint(step) for step in sorted(steps)]
    assert run.sample_grids() == [run.samples_at(step) for step in sorted(steps)]


def test_an_absent_directory_holds_nothing(tmp_path):
    run = RunDir(str(tmp_path / "nowhere"))
    assert run.checkpoints() == run.sample_grids() == run.figures() == []
    assert not run.path.exists()


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match="step must be at least 0, got -1"):
        RunDir(tmp_path).checkpoint(-1)
    with pytest.raises(ValueError, match=r"got 'final\.png'"):
        step_of(tmp_path / "final.png")
