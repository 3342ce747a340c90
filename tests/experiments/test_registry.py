from __future__ import annotations

import dataclasses
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import registry
from experiments.registry import SCALES, entries, find, measured, register
from rlhf_jax.overrides import from_dict, to_dict
from rlhf_jax.plan.chips import parse_topology

ROOT = Path(__file__).resolve().parents[2]
EVERY = [(name, scale) for name, entry in entries().items() for scale in entry.costs]


@pytest.mark.parametrize(("name", "scale"), EVERY)
def test_every_experiment_makes_a_valid_config_of_its_own_name_and_scale(name, scale):
    experiment = entries()[name].experiment(scale)
    assert (experiment.name, experiment.scale) == (name, scale)


@pytest.mark.parametrize(("name", "scale"), EVERY)
def test_every_config_survives_being_written_and_read(name, scale):
    experiment = entries()[name].experiment(scale)
    assert from_dict(type(experiment), to_dict(experiment)) == experiment


@pytest.mark.parametrize("name", entries())
def test_every_experiment_says_what_it_is_what_it_claims_and_what_it_costs(name):
    entry = entries()[name]
    assert len(entry.doc) > 40
    assert entry.paper
    assert entry.claim
    assert set(entry.costs) <= set(SCALES)
    assert all(entry.costs.values())


def test_every_file_of_experiments_that_registers_something_is_listed():
    folder = ROOT / "experiments"
    files = [
        ".".join(path.relative_to(folder).with_suffix("").parts)
        for path in folder.rglob("*.py")
        if re.search(r"^@register\(", path.read_text(), re.M)
    ]
    assert sorted(files) == sorted(registry.MODULES)


def test_an_unknown_name_lists_the_closest():
    with pytest.raises(KeyError, match="no experiment 'smok/ppo'; did you mean smoke/ppo"):
        find("smok/ppo")


def test_a_scale_that_an_experiment_lacks_is_refused_with_those_it_has():
    with pytest.raises(ValueError, match="smoke/sft has no scale 'tpu'; it has cpu"):
        find("smoke/sft").experiment("tpu")


def test_a_name_is_registered_once(monkeypatch):
    monkeypatch.setattr(registry, "_ENTRIES", dict(entries()))
    with pytest.raises(ValueError, match="'smoke/sft' is registered twice"):
        register("smoke/sft", paper="-", claim="-", costs={"cpu": "-"})(lambda scale: None)


def test_every_experiment_for_tpus_is_laid_out_on_all_chips_of_its_topology():
    planned = {name: entry for name, entry in entries().items() if "tpu" in entry.costs}
    assert len(planned) >= 3
    for name, entry in planned.items():
        assert entry.topology is not None
        assert entry.experiment("tpu").mesh.devices == parse_topology(entry.topology).chips, name


@pytest.mark.parametrize(
    ("costs", "topology", "said"),
    [
        ({"tpu": "-"}, None, "'new/one' has scales tpu and topology=None; the scale tpu has one, such as 'v5p:4x4x4'"),
        ({"cpu": "-"}, "v5e:2x2", "'new/one' has scales cpu and topology='v5e:2x2'"),
        ({"tpu": "-"}, "h200:8", "'new/one' has topology='h200:8', which is no slice of a TPU"),
        ({"tpu": "-"}, "v5e:4", "a slice of v5e has 2 axes"),
    ],
)
def test_an_experiment_for_tpus_names_its_topology_and_others_have_none(costs, topology, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        register("new/one", paper="-", claim="-", costs=costs, topology=topology)


def test_a_figure_has_its_error_over_seeds_or_with_one_seed_that_over_its_prompts():
    assert measured({"gain": [1.0, 3.0], "gain_error": [9.0, 9.0]}, "gain") == (2.0, 1.0)
    assert measured({"gain": [1.0], "gain_error": [0.25]}, "gain") == (1.0, 0.25)
    mean, error = measured({"gain": [1.0]}, "gain")
    assert mean == 1.0 and math.isnan(error)


def test_an_entry_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        find("smoke/sft").name = "other"


def test_the_registry_loads_nothing_of_jax_so_that_list_and_show_answer_at_once():
    script = "import sys; from experiments.registry import entries; entries(); print('jax' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "False"
