from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from rlhf_jax.report.plots import _wilson, bar_plot, calibration_plot, histogram_plot, line_plot

SVG = "{http://www.w3.org/2000/svg}"


def words(svg):
    return [text.text for text in ET.fromstring(svg).iter(f"{SVG}text")]


def heights(svg, colour):
    """y of the points of the first line of a colour, in units of the SVG, which count downwards."""
    for path in ET.fromstring(svg).iter(f"{SVG}path"):
        style = path.get("style", "")
        # Bars of errors have butted ends, and what stands in the legend is not clipped to the axes.
        if f"stroke: {colour}" in style and "linecap: square" in style and "clip-path" in path.attrib:
            return [float(y) for y in re.findall(r"[ML] \S+ (\S+)", path.get("d", ""))]
    raise AssertionError(f"no line of colour {colour}")


def plots():
    x, rng = np.arange(20), np.random.default_rng(0)
    p = rng.uniform(size=200)
    return {
        "line": line_plot({"a": (x, x**2.0), "b": (x, rng.normal(size=(3, 20)))}, title="T", xlabel="X", ylabel="Y"),
        "calibration": calibration_plot(p, rng.uniform(size=200) < p, title="T", ceiling=0.8),
        "bar": bar_plot({"SFT": 0.1, "PPO": -0.4}, errors={"SFT": 0.05}, title="T", xlabel="X"),
        "histogram": histogram_plot({"a": p, "b": p + 1}, title="T", xlabel="X"),
    }


def test_every_plot_is_an_svg_that_scales_loads_nothing_and_takes_the_colour_of_the_page():
    for name, svg in plots().items():
        root = ET.fromstring(svg)
        assert root.tag == f"{SVG}svg", name
        assert "viewBox" in root.attrib, name
        assert not {"width", "height"} & set(root.attrib), name
        assert "currentColor" in svg, name
        assert "#010203" not in svg, name
        assert not re.search(r"""(href|src)=["'](?!#)|url\((?!#)|<script|<image""", svg), name
        assert "T" in words(svg), name


def test_the_same_figures_give_the_same_text():
    assert plots() == plots()


def test_plots_leave_the_readers_matplotlib_alone():
    import matplotlib

    before = dict(matplotlib.rcParams)
    plots()
    assert dict(matplotlib.rcParams) == before


def test_several_seeds_are_drawn_as_their_mean_with_a_band():
    x, y = np.arange(3), np.array([[0.0, 2.0, 0.0], [0.0, 4.0, 8.0]])
    seeds, mean = line_plot({"a": (x, y)}), line_plot({"a": (x, y.mean(axis=0)), "z": (x, [0.0, 5.0, 8.0])})
    assert "fill-opacity: 0.2" in seeds
    assert "fill-opacity: 0.2" not in mean
    # The mean (0, 3, 4) goes up by 3 and then by 1; the band (+- 1, +- 4) sets the scale.
    low, middle, high = heights(seeds, "#3b82c4")
    assert (low - middle) / (middle - high) == pytest.approx(3.0, rel=1e-3)


def test_values_that_are_not_finite_leave_a_gap_instead_of_a_lie():
    svg = line_plot({"a": (np.arange(12), [0, 1, 2, np.nan, 4, 5, np.inf, 7, 8, 9, 10, 11])})
    line = max(re.findall(r'd="(M[^"]*)"[^>]*stroke: #3b82c4', svg), key=len)
    assert line.count("M") == 3


def test_levels_and_series_are_named_and_labels_are_escaped():
    svg = line_plot({"a < b & c": ([0, 1], [0, 1]), "d": ([0, 1], [1, 2])}, hlines={"best possible": 1.5})
    assert {"a < b & c", "d", "best possible"} <= set(words(svg))


@pytest.mark.parametrize(("x", "y"), [([0, 1], [1, 2, 3]), ([[0, 1]], [1, 2]), ([0, 1], np.zeros((2, 3, 2)))])
def test_series_that_do_not_fit_are_named(x, y):
    with pytest.raises(ValueError, match="'reward'"):
        line_plot({"reward": (x, y)})


def test_wilson_intervals_equal_published_numbers():
    # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3.
    low, share, high = _wilson(np.array([81.0, 15.0, 0.0, 1.0]), np.array([263.0, 148.0, 20.0, 29.0]))
    np.testing.assert_allclose(low, [0.2553, 0.0624, 0.0, 0.0061], atol=6e-5)
    np.testing.assert_allclose(high, [0.3662, 0.1605, 0.1611, 0.1718], atol=6e-5)
    np.testing.assert_allclose(share[1], 15 / 148)


def test_calibration_counts_by_hand_and_states_accuracy_and_ceiling():
    predicted, outcomes = [0.1, 0.15, 0.9, 1.0, 0.95, 0.0], [0, 1, 1, 1, 0, 0]
    shown = words(calibration_plot(predicted, outcomes, bins=2, ceiling=0.9))
    assert "accuracy 0.667" in shown  # 4 of 6
    assert "Bayes ceiling 0.900" in shown
    assert not any("ceiling" in word for word in words(calibration_plot(predicted, outcomes)) if word)


def test_calibration_points_stand_where_the_outcomes_put_them():
    never, always = calibration_plot([0.25], [0], bins=2), calibration_plot([0.25], [1], bins=2)
    half = calibration_plot([0.25, 0.25], [0, 1], bins=2)
    (bottom,), (middle,), (top,) = (heights(svg, "#3b82c4") for svg in (never, half, always))
    assert bottom > top
    assert middle == pytest.approx((bottom + top) / 2)


@pytest.mark.parametrize(
    ("predicted", "outcomes"), [([], []), ([0.5], [0, 1]), ([1.2], [1]), ([0.5], [0.5]), ([np.nan], [1])]
)
def test_calibration_refuses_what_is_no_probability_or_outcome(predicted, outcomes):
    with pytest.raises(ValueError, match="outcome"):
        calibration_plot(predicted, outcomes)


def test_bars_carry_their_numbers_and_errors_need_a_bar():
    assert {"0.125", "-0.4", "SFT"} <= set(words(bar_plot({"SFT": 0.125, "PPO": -0.4})))
    with pytest.raises(ValueError, match="DPO"):
        bar_plot({"SFT": 0.1}, errors={"DPO": 0.1})


def test_histograms_share_their_bins_and_need_a_finite_value():
    histogram_plot({"constant": [1.0, 1.0], "with nan": [np.nan, 2.0], "empty": []})
    with pytest.raises(ValueError, match="no finite value"):
        histogram_plot({"a": [np.nan]})


def test_an_axis_of_steps_has_no_half_steps():
    assert "1.5" not in words(line_plot({"a": ([0, 1, 2, 3], [0.0, 1.0, 2.0, 1.0])}, ylabel="y"))
    assert "0.2" in words(line_plot({"a": ([0.0, 0.5, 1.0], [0.0, 100.0, 200.0])}))


def test_names_of_close_levels_do_not_cover_each_other():
    svg = line_plot({"a": ([0, 1, 2], [0.0, 1.0, 0.5])}, hlines={"high": 0.51, "low": 0.5})
    places = {text.text: float(text.get("y", "nan")) for text in ET.fromstring(svg).iter(f"{SVG}text")}
    assert places["low"] - places["high"] > 8  # the height of their letters
