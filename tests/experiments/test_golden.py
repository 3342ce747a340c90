from __future__ import annotations

import json

import pytest

from experiments.golden import FOLDER, golden_texts, write_golden
from experiments.registry import entries


@pytest.mark.parametrize("name", golden_texts())
def test_a_changed_hyper_parameter_shows_in_its_golden_file(name):
    path = FOLDER / name
    assert path.is_file(), "a new experiment: python -m experiments.run golden"
    assert json.loads(path.read_text()) == json.loads(golden_texts()[name]), (
        "if meant: python -m experiments.run golden"
    )


def test_every_experiment_and_scale_has_a_file_of_its_own_and_no_file_is_left_over():
    assert len(golden_texts()) == sum(len(entry.costs) for entry in entries().values())
    assert {path.name for path in FOLDER.iterdir()} == set(golden_texts())


def test_rewriting_mends_what_differs_removes_what_is_stale_and_leaves_the_rest(tmp_path):
    assert write_golden(tmp_path) == sorted(golden_texts())
    changed, gone = tmp_path / "smoke-sft.cpu.json", tmp_path / "gone.cpu.json"
    changed.write_text("{}")
    gone.write_text("{}")
    assert write_golden(tmp_path) == ["gone.cpu.json", "smoke-sft.cpu.json"]
    assert not gone.exists()
    assert changed.read_text() == golden_texts()["smoke-sft.cpu.json"]
