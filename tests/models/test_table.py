"""A pattern read in both directions: parts of a parameter, boxes of the tensor that it is stored in."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from checkpoints import FAMILY, SMALL

from rlhf_jax.models.convert.save import lost_fields
from rlhf_jax.models.convert.table import Layout, Tensor, sizes_of

# No two alike, so that no axis can stand for another.
SIZES = {"v": 11, "d": 7, "h": 4, "g": 2, "k": 6, "m": 5, "p": 9, "b": 8, "e": 7, "t": 2, "c": 3}


def every_tensor() -> list[Tensor]:
    """Each different line of the families' tables, reward heads and output layers included."""
    found = {}
    for name, config in SMALL.items():
        for head in ("lm", "scalar") if config.causal else ("lm", "scalar", "classes"):
            settings = {"head": head, "tied": False, "classes": 3 if head == "classes" else None}
            for tensor in FAMILY[name].tensors(dataclasses.replace(config, **settings)).values():
                found.setdefault((tensor.pattern, tensor.part, tensor.skip), tensor)
    return list(found.values())


def stored(layout: Layout) -> np.ndarray:
    return np.arange(math.prod(layout.shape)).reshape(layout.shape)


def random_slices(shape: tuple[int, ...], noise: np.random.Generator) -> list[slice]:
    """Each axis whole, one number of it, or any run."""
    slices = []
    for size in shape:
        start = int(noise.integers(0, size))
        stop = int(noise.integers(start + 1, size + 1))
        slices.append([slice(None), slice(start, start + 1), slice(start, stop)][noise.integers(0, 3)])
    return slices


@pytest.mark.parametrize("tensor", every_tensor(), ids=lambda t: f"{t.pattern}, part {t.part}, skip {t.skip}")
def test_any_part_that_is_read_is_that_part_of_the_whole(tensor):
    layout, noise = Layout(tensor, SIZES), np.random.default_rng(0)
    whole = stored(layout)
    view = layout.view(whole)
    assert view.shape == layout.own_shape
    assert np.shares_memory(view, whole)
    for _ in range(200):
        wanted = random_slices(layout.own_shape, noise)
        found = layout.read(lambda box: whole[tuple(slice(*ends) for ends in box)], wanted)
        np.testing.assert_array_equal(found, view[tuple(wanted)])


@pytest.mark.parametrize("tensor", every_tensor(), ids=lambda t: f"{t.pattern}, part {t.part}, skip {t.skip}")
def test_the_parameters_in_a_tensor_fill_it_once(tensor):
    count = max(
        (int(name) for name in tensor.pattern.split("->")[0].replace("(", " ").split() if name.isdigit()), default=1
    )
    whole = np.zeros(Layout(tensor, SIZES).shape, int)
    for part in range(count):
        Layout(dataclasses.replace(tensor, part=part), SIZES).view(whole)[...] += 1
    assert (whole[: tensor.skip] == 0).all()
    assert (whole[tensor.skip :] == 1).all()


@pytest.mark.parametrize(
    ("tensor", "wanted", "box"),
    [
        (Tensor("", "v d -> v d"), {"v": slice(2, 4)}, ((2, 4), (0, 7))),
        (Tensor("", "v d -> d v"), {"d": slice(2, 4)}, ((0, 11), (2, 4))),
        (Tensor("", "p d -> p d", skip=2), {"p": slice(3, 5)}, ((5, 7), (0, 7))),
        (Tensor("", "1 d -> d"), {"d": slice(3, 5)}, ((0, 1), (3, 5))),
        (Tensor("", "(h k) d -> d h k"), {"h": slice(1, 3)}, ((6, 18), (0, 7))),
        (Tensor("", "(h k) d -> d h k"), {"h": slice(1, 2), "k": slice(2, 5)}, ((8, 11), (0, 7))),
        (Tensor("", "d (h k) -> h k d"), {"h": slice(3, 4), "d": slice(0, 2)}, ((0, 2), (18, 24))),
        # Queries stand side by side in GPT-2's tensor; in GPT-NeoX's those of a head stand beside its keys and values.
        (Tensor("", "d (3 h k) -> d h k", 1), {"h": slice(1, 3)}, ((0, 7), (30, 42))),
        (Tensor("", "(3 h k) -> h k", 2), {}, ((48, 72),)),
        (Tensor("", "(h 3 k) d -> d h k", 2), {"h": slice(1, 3)}, ((18, 54), (0, 7))),
        (Tensor("", "(h 3 k) -> h k", 2), {"h": slice(1, 2)}, ((30, 36),)),
    ],
)
def test_no_more_is_read_than_the_run_around_what_is_wanted(tensor, wanted, box):
    layout, asked = Layout(tensor, SIZES), []

    def get(ranges):
        asked.append(ranges)
        return stored(layout)[tuple(slice(*ends) for ends in ranges)]

    layout.read(get, [wanted.get(name, slice(None)) for name in tensor.pattern.split("->")[1].split()])
    assert asked == [box]


def test_a_model_has_a_size_for_every_letter():
    config = SMALL["gemma2"]
    assert sizes_of(config) == {
        "v": 24,
        "d": 16,
        "e": 16,
        "h": 4,
        "g": 2,
        "k": 6,
        "m": 12,
        "p": 10,
        "b": 32,
        "t": 0,
        "c": 1,
    }
    letters = {letter for tensor in every_tensor() for letter in tensor.pattern if letter.isalpha()}
    assert letters == sizes_of(config).keys()


@pytest.mark.parametrize("name", SMALL)
def test_every_small_model_is_one_of_its_family(name):
    assert lost_fields(SMALL[name], FAMILY[name]) == []


def test_there_is_a_small_model_of_every_family():
    assert SMALL.keys() == FAMILY.keys()
