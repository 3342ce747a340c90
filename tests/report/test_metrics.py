from __future__ import annotations

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.report.metrics import MetricsWriter, read_metrics


@pytest.fixture
def lines(tmp_path):
    return lambda: [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]


def test_numbers_come_back_with_all_their_digits(tmp_path):
    values = [0.1, 1 / 3, 1e-300, math.pi * 1e17, -0.0, float(np.float32(0.7))]
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        for step, value in enumerate(values):
            writer.write("sft", step, {"loss": value})
    steps, read = read_metrics(tmp_path)["sft"]["loss"]
    assert [value.hex() for value in read.tolist()] == [value.hex() for value in values]
    assert steps.tolist() == list(range(len(values)))


def test_nan_and_infinities_survive_and_the_file_is_still_json(tmp_path, lines):
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.write("sft", 0, {"a": float("nan"), "b": float("inf"), "c": jnp.float32(-jnp.inf)})
    json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert lines() == [{"step": 0, "stage": "sft", "a": "nan", "b": "inf", "c": "-inf"}]
    read = read_metrics(tmp_path)["sft"]
    assert math.isnan(read["a"].values[0])
    assert (read["b"].values[0], read["c"].values[0]) == (math.inf, -math.inf)


def test_arrays_are_read_one_step_late_so_that_no_step_waits_for_its_own(tmp_path, lines):
    class Loss:
        """An array that says when it is read."""

        shape, read = (), False

        def __array__(self, dtype=None, copy=None):
            self.read = True
            return np.array(2.0)

    first, second = Loss(), Loss()
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.write("sft", 0, {"loss": first})
        assert (first.read, lines()) == (False, [])
        writer.write("sft", 1, {"loss": second})
        assert (first.read, second.read, len(lines())) == (True, False, 1)
        assert writer.latest == {"loss": 2.0}
        writer.flush()
        assert (second.read, len(lines())) == (True, 2)


def test_metrics_that_need_the_host_are_asked_for_when_the_line_is_written(tmp_path, lines):
    asked = []

    def later():
        asked.append(True)
        return {"gold": 0.5}

    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.write("ppo", 0, {"reward": 1.0}, later=later)
        assert asked == []
    assert lines() == [{"step": 0, "stage": "ppo", "reward": 1.0, "gold": 0.5}]
    with pytest.raises(ValueError, match="'gold' has shape"), MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.write("ppo", 1, {}, later=lambda: {"gold": np.zeros(2)})


def test_a_second_writer_of_the_directory_loses_no_line_of_the_first(tmp_path, lines):
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.write("sft/held_out", 9, {"loss": 9})
    with (
        MetricsWriter(tmp_path, "sft", resume_step=0, tensorboard=False) as first,
        MetricsWriter(tmp_path, "sft/held_out", resume_step=5, tensorboard=False) as second,
    ):
        first.write("sft", 0, {"loss": 0})
        second.write("sft/held_out", 5, {"loss": 5})
    assert sorted((line["stage"], line["step"]) for line in lines()) == [("sft", 0), ("sft/held_out", 5)]


def test_arrays_spread_over_devices_are_written_as_one_number(tmp_path):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    replicated = jax.device_put(jnp.float32(1.5), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.write("sft", 0, {"loss": replicated, "tokens": np.ones((1,), np.int32)})
    assert {name: s.values.tolist() for name, s in read_metrics(tmp_path)["sft"].items()} == {
        "loss": [1.5],
        "tokens": [1.0],
    }


def test_resuming_drops_what_the_checkpoint_does_not_know_and_nothing_else(tmp_path, lines):
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        for step in range(4):
            writer.write("sft", step, {"loss": step})
            writer.write("ppo", step, {"reward": step})
    with MetricsWriter(tmp_path, "ppo", resume_step=2, tensorboard=False) as writer:
        writer.write("ppo", 2, {"reward": 20})
    read = read_metrics(tmp_path)
    assert read["sft"]["loss"].steps.tolist() == [0, 1, 2, 3]
    assert read["ppo"]["reward"].steps.tolist() == [0, 1, 2]
    assert read["ppo"]["reward"].values.tolist() == [0, 1, 20]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_writer_that_is_closed_twice_writes_once(tmp_path, lines):
    writer = MetricsWriter(tmp_path)
    writer.write("sft", 0, {"loss": 1.0})
    writer.close()
    writer.close()
    assert len(lines()) == 1


def test_the_torn_last_line_of_a_killed_run_is_left_out_and_then_removed(tmp_path, lines):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 0, "stage": "sft", "loss": 1.0}\n{"step": 1, "stage": "sft", "na\xc3')
    assert read_metrics(path)["sft"]["loss"].steps.tolist() == [0]
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.write("sft", 1, {"loss": 2.0})
    assert [line["step"] for line in lines()] == [0, 1]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"step": 1, "stage": "sft"', "not JSON"),
        ("[1, 2]", "a list"),
        ('{"stage": "sft", "loss": 1.0}', "'step'"),
        ('{"step": 1.5, "stage": "sft"}', "'step'"),
        ('{"step": 1, "stage": 3}', "'stage'"),
        ('{"step": 1, "stage": "sft", "loss": "high"}', "'loss' is 'high'"),
        ('{"step": 1, "stage": "sft", "loss": true}', "'loss' is True"),
    ],
)
def test_a_malformed_line_is_named_by_file_and_line(tmp_path, line, reason):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "stage": "sft"}\n' + line + "\n")
    with pytest.raises(ValueError, match=rf"metrics\.jsonl:2: .*{reason}"):
        read_metrics(path)


def test_metrics_that_are_not_one_number_are_refused_at_the_call_that_gives_them(tmp_path):
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        with pytest.raises(ValueError, match=r"'kl' has shape \(3,\)"):
            writer.write("ppo", 0, {"kl": jnp.zeros(3)})
        with pytest.raises(ValueError, match="'step'"):
            writer.write("ppo", 0, {"step": 1.0})
    with pytest.raises(ValueError, match="needs the stage"):
        MetricsWriter(tmp_path, resume_step=3)


def test_metrics_given_before_an_error_are_on_disk_after_it(tmp_path, lines):
    with pytest.raises(KeyboardInterrupt), MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.write("sft", 7, {"loss": 1.0})
        raise KeyboardInterrupt
    assert lines() == [{"step": 7, "stage": "sft", "loss": 1.0}]


def test_tensorboard_gets_the_same_numbers_in_a_folder_per_stage(tmp_path):
    from tensorboardX.proto import event_pb2

    with MetricsWriter(tmp_path, "sft", resume_step=5) as writer:
        writer.write("sft", 5, {"loss": 0.5, "accuracy": 0.75})
        writer.write("sft", 6, {"loss": float("inf")})
        writer.write("ppo", 2, {"reward": 0.25})

    def scalars(stage):
        (path,) = (tmp_path / "tensorboard" / stage).iterdir()
        data, found = path.read_bytes(), []
        while data:  # length (8 bytes), its checksum (4), an event, its checksum (4)
            length = int.from_bytes(data[:8], "little")
            event = event_pb2.Event.FromString(data[12 : 12 + length])  # pyright: ignore[reportAttributeAccessIssue] (protobuf makes it)
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            data = data[16 + length :]
        return found

    assert scalars("sft") == [("loss", 5, 0.5), ("accuracy", 5, 0.75), ("loss", 6, float("inf"))]
    assert scalars("ppo") == [("reward", 2, 0.25)]
