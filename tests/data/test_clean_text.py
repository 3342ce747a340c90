import sys

import pytest

from rlhf_jax.data.clean import CleanOptions, clean
from rlhf_jax.data.schema import Document, Provenance, texts_of

HERE = Provenance("test", "MIT")


def cleaned(rule, text):
    return texts_of(clean([Document(text, HERE)], [rule]).records[0])[0].text


@pytest.mark.parametrize(
    ("broken", "right"),
    [
        ("cafÃ© au lait", "café au lait"),
        ("312 â€“ 506 Ã— 4", "312 – 506 × 4"),
        ("a good movie\x97just imagine", "a good movie—just imagine"),
        ("ä½\xa0å¥½ï¼Œä¸–ç•Œ", "你好，世界"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("$\x0crac{1}{2} \x08eta \theta 2 \times 3$", r"$\frac{1}{2} \beta \theta 2 \times 3$"),
    ],
)
def test_wrong_decoding_is_undone(broken, right):
    assert cleaned("repair", broken) == right


@pytest.mark.parametrize(
    "text",
    [
        "他说：“你好，世界！”（真的？）【注】《红楼梦》；１２３ＡＢＣ　ｶﾅ～",  # ftfy's defaults make ASCII of these
        "“It’s fine,” she said — ‘really’…",
        "Escape it: &lt;div&gt; and &amp; become < and &.",
        "&lt;html&gt; &nbsp; &quot;a&quot; 你好",
        "&lt;无输入&gt;",
        r"print('\033[31mred\x1b[0m'); \frac{1}{2}，\theta",
        "ﬁne ligatures, 10³ m², ½, ①, ™",
        "naïve café, Ångström, Größe, ça va, señor, 10 €",
        "def f(x):\n\treturn x\r\n",
        "\talso\n\tindented: the, text",
        "Français : Ã is a letter of Portuguese, as in SÃO PAULO",
    ],
)
def test_repair_leaves_right_text_alone(text):
    assert cleaned("repair", text) == text


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("one\r\ntwo\rthree\u2028four\x0bfive\x85six", "one\ntwo\nthree\nfour\nfive\nsix"),
        ("\ufeff书\u200b\u200b，地上", "书，地上"),
        ("soft\u00adhyphen\x00 bell\x07 \x1f", "softhyphen bell "),
        ("four\u00a0no-break\u202fspaces", "four no-break spaces"),
        ("cafe\u0301", "café"),
        ("a\u200db 字\u200d\u200d字", "ab 字字"),
        ("left\u200eto right", "leftto right"),
    ],
)
def test_unseen_characters_go(text, right):
    assert cleaned("normalise", text) == right


@pytest.mark.parametrize(
    "text",
    [
        "，。！？：；（）“”　１２ＡＢ①½ﬁ²…",  # NFKC changes each of these
        "tab\tand\nnewline",
        "👨‍👩‍👧 ❤️‍🔥 🏳️‍🌈",
        "می‌خواهم",
        "क्‍ष",
        "שלום\u200f!",
        "İstanbul, 한국어, ﷺ",
    ],
)
def test_normalise_leaves_what_is_seen_alone(text):
    assert cleaned("normalise", text) == text


def test_nfc_composes_hangul():
    assert cleaned("normalise", "\u1112\u1161\u11ab") == "한"


NASTY = [
    "Ã\xa0 la carte\xa0",
    "Ã©\u200bÃ©",
    "â€\x9c\u00ad",
    "\x0crac\x0crac{1}",
    "å\x8f\xa5\r\r\n",
    "\x1b[1m\x1b[0m\x1b",
    "e\u200b\u0301",
    "\u2028\ufeff\r",
]


@pytest.mark.parametrize("text", NASTY)
def test_cleaning_texts_twice_changes_nothing_more(text):
    once = clean([Document(text, HERE)], ["repair", "normalise"]).records
    again = clean(once, ["repair", "normalise"])
    assert again.records == once and sum(rule.changed for rule in again.report.rules) == 0


@pytest.mark.parametrize(
    ("package", "rule", "options"),
    [
        ("ftfy", "repair", CleanOptions()),
        ("datasketch", "near_duplicates", CleanOptions()),
        ("py3langid", "language", CleanOptions(languages=("en",))),
    ],
)
def test_a_missing_package_says_what_to_install(monkeypatch, package, rule, options):
    from rlhf_jax.data.clean import language

    language._identifier.cache_clear()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf"{rule} needs {package}.*pip install 'rlhf_jax\[data\]'"):
        clean([Document("café, and a text that is long enough to tell its language", HERE)], [rule], options)
    assert clean([Document("café", HERE)], ["empty", "normalise"]).report.kept == 1
