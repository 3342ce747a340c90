from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from rlhf_jax.report.html import (
    Badge,
    Details,
    Figures,
    Plot,
    Reply,
    Samples,
    Section,
    Table,
    Text,
    report,
    write_report,
)
from rlhf_jax.report.plots import bar_plot

VOID = {"meta", "br", "link", "img"}


class Page(HTMLParser):
    """The tags, attributes and texts of a page; fails on a tag that is not closed where it should be."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.attributes, self.texts = [], [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append(data.strip())


def full_report():
    svg = bar_plot({"SFT": 0.1, "PPO": 0.4})
    sample = ("把下面的词倒过来写：猫、树。", [Reply("", {"score": 0.0}), Reply("树、猫", {"score": 1.0, "gold": 1.0})])
    verdicts = Table(["claim", "value", "verdict"], [["PPO helps", 0.25, Badge("holds", "good")]], "Verdicts")
    return report(
        "Quickstart",
        "seed 0",
        [
            Section("In short", [Figures({"gold reward": 0.87123}), Text("One.\n\nTwo.")]),
            Section("Plots", [Plot(svg, "left"), Plot(svg, "right"), verdicts, Plot(svg)]),
            Section("Samples", [Samples(["SFT", "PPO"], [sample])]),
            Section("Run", [Details("Config", {"ppo": {"kl_coef": 0.05}})]),
        ],
    )


def test_the_page_needs_nothing_but_itself():
    html = full_report()
    page = Page(html)
    assert not {"script", "link", "img", "iframe", "object", "base"} & set(page.tags)
    references = [value for _, name, value in page.attributes if name in ("src", "href", "xlink:href", "action")]
    assert references
    assert all(value.startswith("#") for value in references)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))
    assert "@import" not in html
    assert "default-src 'none'" in html


def test_ids_of_many_plots_do_not_clash_and_every_reference_finds_its_own():
    page = Page(full_report())
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {value[1:] for _, name, value in page.attributes if name in ("href", "xlink:href")} <= set(ids)
    clips = re.findall(r"url\(#([^)]*)\)", full_report())
    assert clips
    assert set(clips) <= set(ids)


def test_plots_in_a_row_stand_side_by_side_and_a_table_between_them_ends_the_row():
    html = full_report()
    assert html.count('<div class="plots">') == 2
    assert [row.count("<svg") for row in html.split('<div class="plots">')[1:]] == [2, 1]


def test_whatever_a_model_says_is_shown_and_never_executed():
    evil = '</td></table><script>alert("x")</script> & <b onclick=y>'
    blocks = [
        Text(evil),
        Figures({evil: evil}),
        Table([evil], [[evil], [Badge(evil, "bad")]], evil),
        Samples([evil, evil], [(evil, [Reply(evil, {evil: 1.0}), Reply(evil)])]),
        Details(evil, {evil: [evil]}),
        Plot(bar_plot({evil: 1.0}), evil),
    ]
    page = Page(report(evil, evil, [Section(evil, blocks)]))
    assert "script" not in page.tags
    assert "onclick" not in [name for _, name, _ in page.attributes]
    assert page.texts.count(evil) >= 14


def test_chinese_and_white_space_of_samples_are_kept_and_an_empty_reply_is_visible():
    samples = Samples(["SFT", "PPO"], [("猫、树", [Reply(" "), Reply("a\n  b", {"score": 0.3, "gold": 1.0})])])
    page = Page(report("t", "s", [Section("x", [samples])]))
    assert {"猫、树", "nothing", "a\n  b", "score 0.3, gold 1"} <= set(page.texts)


def test_a_sample_needs_a_reply_of_every_speaker():
    with pytest.raises(ValueError, match="1 replies of 2 speakers to 'hello'"):
        Samples(["SFT", "PPO"], [("hello", [Reply("hi")])])


def test_numbers_are_rounded_for_reading_and_words_stay():
    cells = [0.123456, 1234567, 3.0, 1e-9, float("nan"), float("inf"), True, None, "0.123456"]
    page = Page(report("t", "s", [Section("x", [Table(["c"], [[cell] for cell in cells])])]))
    shown = page.texts[page.texts.index("c") + 1 :]
    assert shown == ["0.1235", "1,234,567", "3", "1e-09", "nan", "inf", "yes", "–", "0.123456"]


def test_a_row_of_another_length_is_refused_with_its_number():
    with pytest.raises(ValueError, match="row 1 has 1 cells for 2 columns"):
        Table(["a", "b"], [[1, 2], [3]])


def test_a_table_without_rows_is_a_head():
    assert "lonely" in Page(report("t", "s", [Section("x", [Table(["lonely"], [])])])).texts


def test_the_same_sections_give_the_same_page_and_the_file_holds_it(tmp_path):
    assert full_report() == full_report()
    write_report(tmp_path / "runs" / "report.html", full_report())
    assert (tmp_path / "runs" / "report.html").read_text(encoding="utf-8") == full_report()
