"""Values over seeds, what a run's record gives to a cell, and records that are no longer what a table shows."""

import json

import numpy as np
import pytest
from paper_table import records
from paper_table.jobs import jobs
from paper_table.records import Spread

from scorefield.errors import BadFileError
from tests.paper_tables.conftest import row_records, write_result

FD = {"value": 6.5, "nfe": 50, "n": 500}


def test_mean_and_deviation_are_numpys():
    values = np.random.default_rng(0).normal(5.0, 2.0, 7)
    spread = Spread(dict(enumerate(values.tolist())))
    # float64 sums of seven numbers of size 5, in another order
    assert spread.mean == pytest.approx(np.mean(values), abs=1e-14)
    assert spread.std == pytest.approx(np.std(values, ddof=1), abs=1e-14)
    assert (spread.n, Spread({3: 1.5}).std) == (7, None)


def test_a_cell_reads_the_metric_of_its_scale(table, plan, tmp_path):
    """Samples from the evaluation; what the evaluation did not measure, from the run itself; NFE from the protocol."""
    chain = jobs(table.own["sampled"], "small", 0, plan, tmp_path)
    assert [job.program for job in chain] == ["train", "evaluate"]
    write_result(
        chain[0].place / "result.json",
        {"fd_digits": {"value": 9.0, "nfe": 20}, "inception_score_digits": {"value": 3.5}},
        chain[0].fingerprint,
        train_seconds=12.0,
    )
    assert records.record(table, "small", chain) is None  # not all of it has run
    write_result(chain[1].place / "result.json", {"fd_digits": FD}, chain[1].fingerprint, evaluation_seconds=3.0)
    one = records.record(table, "small", chain)
    assert one["values"] == {"fid": 6.5, "nfe": 50.0, "is": 3.5}
    assert one["protocol"] == {"fd_digits": {"nfe": 50, "n": 500}}
    assert one["commands"] == [job.line for job in chain]
    assert one["cost"] == {"evaluation_seconds": 3.0, "training": {"train_seconds": 12.0}}
    assert one["sha256"] == records.file_hash(chain[1].place / "result.json")


def test_samples_that_an_evaluation_leaves_out_keep_their_evaluations(table, plan, tmp_path):
    """An evaluation of the likelihood alone: distance and NFE are those of the run's own samples."""
    chain = jobs(table.own["sampled"], "small", 0, plan, tmp_path)
    own = {"fd_digits": {"value": 9.0, "nfe": 20}}
    write_result(chain[0].place / "result.json", own, chain[0].fingerprint)
    write_result(chain[1].place / "result.json", {"bits_per_dim": {"value": 2.0, "nfe": 50}}, chain[1].fingerprint)
    assert records.record(table, "small", chain)["values"] == {"fid": 9.0, "nfe": 20.0}


def test_records_come_back(table):
    rows = {"long": row_records({"fid": [3.0, 4.0]})}
    records.save(table, "small", rows)
    assert records.load(table, "small") == rows
    assert records.load(table, "paper") == {}
    assert records.spread(rows, "long", "fid").values == {0: 3.0, 1: 4.0}
    assert records.spread(rows, "long", "is") is None


def test_a_changed_run_is_noticed(table, plan, tmp_path):
    chain = jobs(table.own["long"], "small", 1, plan, tmp_path)
    path = chain[0].place / "result.json"
    write_result(path, {"fd_digits": FD}, chain[0].fingerprint)
    records.save(table, "small", {"long": [records.record(table, "small", chain)]})
    assert records.changed(table, "small") == []
    write_result(path, {"fd_digits": {**FD, "value": 6.4}}, chain[0].fingerprint)
    assert records.changed(table, "small") == [f"made_up:long seed 1: {path} is not the record that the table shows"]
    path.unlink()  # a table is read where its runs are not
    assert records.changed(table, "small") == []


def test_a_run_of_another_configuration_is_no_result(table, plan, tmp_path):
    (job,) = jobs(table.own["long"], "small", 0, plan, tmp_path)
    write_result(job.place / "result.json", {"fd_digits": FD}, "00000000")
    with pytest.raises(ValueError, match=rf"00000000, and this row has {job.fingerprint} now: move the directory"):
        job.result()


@pytest.mark.parametrize("content", ["{", "[]", '{"schema": "other", "scale": "small", "rows": {}}'])
def test_a_damaged_file_of_records_is_refused(table, content):
    records.path_of(table, "small").write_text(content)
    with pytest.raises(BadFileError, match=r"records\.small\.json is"):
        records.load(table, "small")


def test_records_hold_numbers_that_json_has(table):
    with pytest.raises(ValueError, match="not JSON compliant"):
        records.save(table, "small", {"long": row_records({"fid": [float("nan")]})})
    assert not records.path_of(table, "small").exists()
    records.save(table, "small", {"long": row_records({"fid": [1.0]})})
    assert json.loads(records.path_of(table, "small").read_bytes())["schema"] == records.SCHEMA
