"""What the project asks of W&B beside a run: uploads of offline runs, and the report of a sweep.

The report is written with the public package wandb-workspaces; what stands in for the server here is the one function
through which that package reaches it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scorefield.cli import wandb as command
from scorefield.errors import UserError
from scorefield.training import wandb_runs
from scorefield.training.wandb_runs import offline_runs, require_login, upload
from tests.records.test_comparison import make_run


@pytest.fixture
def no_login(monkeypatch, tmp_path):
    """Nobody has logged in on this machine, whoever runs the tests."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def offline(run: Path, name: str = "offline-run-20260101_000000-abcd", synced: bool = False) -> Path:
    folder = run / "wandb" / name
    folder.mkdir(parents=True)
    (folder / "run-abcd.wandb").write_bytes(b"")
    if synced:
        (folder / "run-abcd.wandb.synced").write_bytes(b"")
    return folder


def test_offline_runs_are_found_unless_they_have_been_sent(tmp_path):
    late = offline(tmp_path / "sweep" / "a", "offline-run-20260102_000000-aaaa")
    early = offline(tmp_path / "sweep" / "b", "offline-run-20260101_000000-bbbb")
    offline(tmp_path / "sweep" / "c", "offline-run-20260103_000000-cccc", synced=True)
    (tmp_path / "sweep" / "a" / "wandb" / "run-20260101_000000-dddd").mkdir()
    assert offline_runs(tmp_path) == [early, late]
    with pytest.raises(UserError, match="is no folder"):
        offline_runs(tmp_path / "nowhere")


def test_without_a_login_nothing_is_sent_and_the_answer_says_what_to_do(tmp_path, no_login, capsys, monkeypatch):
    pytest.importorskip("wandb")
    offline(tmp_path / "a")
    monkeypatch.setattr(command, "upload", lambda run: pytest.fail("it was sent"))
    with pytest.raises(SystemExit) as end:
        command.main(["upload", str(tmp_path)])
    assert end.value.code == 2
    assert "W&B has no key here; run `wandb login`" in capsys.readouterr().err


def test_runs_that_fail_are_named_and_the_others_are_sent(tmp_path, monkeypatch, capsys):
    good, bad = offline(tmp_path / "a", "offline-run-1-a"), offline(tmp_path / "b", "offline-run-2-b")
    monkeypatch.setattr(command, "require_login", lambda: None)
    monkeypatch.setattr(command, "upload", lambda run: "no such project" if run == bad else "")
    with pytest.raises(SystemExit) as end:
        command.main(["upload", str(tmp_path)])
    assert end.value.code == 1
    assert f"[1/2] {good}: uploaded\n[2/2] {bad}: no such project" in capsys.readouterr().out


def test_nothing_to_send_is_no_mistake_and_needs_no_login(tmp_path, no_login, capsys):
    with pytest.raises(SystemExit) as end:
        command.main(["upload", str(tmp_path)])
    assert end.value.code == 0
    assert "no offline run" in capsys.readouterr().out


def test_an_upload_counts_when_the_package_has_marked_it(tmp_path, monkeypatch):
    """Its exit code alone says nothing: it is 0 for a file that it has skipped, too."""
    run = offline(tmp_path)

    def sync(code: int, marks: bool):
        def run_it(words, env, **_):
            assert words[-1] == str(run)
            assert "WANDB_MODE" not in env
            if marks:
                (run / "run-abcd.wandb.synced").touch()
            return subprocess.CompletedProcess(words, code, "skipped: empty file\n", "")

        return run_it

    monkeypatch.setenv("WANDB_MODE", "offline")
    for code, marks, expected in ((0, False, "skipped: empty file"), (1, False, "skipped: empty file"), (0, True, "")):
        monkeypatch.setattr(wandb_runs.subprocess, "run", sync(code, marks))
        assert upload(run) == expected


@pytest.mark.slow
def test_the_real_package_answers_for_a_server_that_is_not_there(tmp_path):
    """A run made offline by the package itself."""
    pytest.importorskip("wandb")
    env = {**os.environ, "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    code = f"import wandb; run = wandb.init(project='p', dir={str(tmp_path)!r}); run.log({{'a': 1}}); run.finish()"
    subprocess.run([sys.executable, "-c", code], env=env, check=True, timeout=120, capture_output=True)
    (run,) = offline_runs(tmp_path)
    os.environ.update(WANDB_BASE_URL="http://127.0.0.1:9", WANDB_API_KEY="a" * 40)
    try:
        wandb_runs._PATIENCE, before = 20.0, wandb_runs._PATIENCE
        assert upload(run) != ""
    finally:
        wandb_runs._PATIENCE = before
        del os.environ["WANDB_BASE_URL"], os.environ["WANDB_API_KEY"]
    assert offline_runs(tmp_path) == [run]


class Server:
    """What reports ask of W&B's server."""

    default_entity = "somebody"

    def __init__(self) -> None:
        self.sent: list[dict] = []

    def projects(self, entity):
        return []

    def create_project(self, name, entity) -> None:
        self.sent.append({"project": name, "entity": entity})


@pytest.fixture
def server(monkeypatch):
    """Stands in for the server; keeps what is sent to it."""
    pytest.importorskip("wandb_workspaces")
    from wandb_workspaces.reports.v2 import interface

    server = Server()
    server.client = type("Client", (), {"app_url": "https://wandb.example/"})()

    def execute(api, query, variables):
        server.sent.append(variables)
        view = {
            "id": "view1",
            "name": "n",
            "displayName": variables["displayName"],
            "description": "",
            "spec": json.loads(variables["spec"]),
            "project": {"name": variables["projectName"], "entityName": variables["entityName"]},
        }
        return {"upsertView": {"view": view}}

    monkeypatch.setattr(interface, "_get_api", lambda: server)
    monkeypatch.setattr(interface, "execute_graphql", execute)
    monkeypatch.setattr(interface.Report, "url", property(lambda report: f"https://wandb.example/{report.id}"))
    monkeypatch.setattr(command, "require_login", lambda: None)
    return server


def test_the_report_of_a_sweep_has_its_table_curves_over_images_and_the_same_noise(tmp_path, server, capsys):
    for seed in (0, 1):
        logger = {"wandb": {"project": "mine"}}
        make_run(tmp_path / "sweep" / f"seed-{seed}", seed, 1.0 + seed, logger=logger)
    command.main(["report", str(tmp_path / "sweep")])
    assert capsys.readouterr().out.splitlines()[-1] == "report: https://wandb.example/view1"
    (sent,) = [one for one in server.sent if "spec" in one]
    assert (sent["projectName"], sent["entityName"], sent["displayName"]) == ("mine", "somebody", "sweep")
    assert "1.50 ± 0.71" in sent["spec"]
    spec = json.loads(sent["spec"])
    (grid,) = [block for block in spec["blocks"] if block["type"] == "panel-grid"]
    panels = grid["metadata"]["panelBankSectionConfig"]["panels"]
    lines = [panel["config"] for panel in panels if panel["viewType"] == "Run History Line Plot"]
    assert [line["metrics"] for line in lines] == [["train/loss"], ["validation/fd"], ["validation/recall"]]
    assert {line["xAxis"] for line in lines} == {"images"}
    assert [p["config"]["mediaKeys"] for p in panels if p["viewType"] == "Media Browser"] == [["samples"]]
    assert "sweep" in json.dumps(grid["metadata"]["runSets"][0]["filters"])


def test_runs_that_were_never_mirrored_have_no_report(tmp_path, capsys):
    make_run(tmp_path / "a", 0, 1.0, logger={"journal": {"_target_": "x"}})
    for folder, expected in ((tmp_path, "are in 0 W&B projects; name one"), (tmp_path / "b", "is no folder")):
        with pytest.raises(SystemExit) as end:
            command.main(["report", str(folder)])
        assert end.value.code == 2
        assert expected in capsys.readouterr().err


def test_without_the_package_for_reports_the_answer_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    with pytest.raises(UserError, match=r"pip install 'scorefield\[reports\]'"):
        wandb_runs.write_report("p", None, "g", "", [], [])


def test_a_login_is_a_key(no_login, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setattr(type(wandb.api), "api_key", property(lambda self: "k"), raising=False)
    require_login()
