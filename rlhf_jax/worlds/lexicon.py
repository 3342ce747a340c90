"""A small English-Chinese lexicon, one word for one word in both directions.

Every concept is named by its English word; `say` gives its word in a language. No word has two meanings or stands in
two categories ("orange" is left out), so that every task built on the lexicon has one right answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

Language = Literal["en", "zh"]

ANIMALS = {
    "cat": "猫",
    "dog": "狗",
    "cow": "牛",
    "bird": "鸟",
    "fish": "鱼",
    "rabbit": "兔子",
}
FRUITS = {
    "apple": "苹果",
    "pear": "梨",
    "grape": "葡萄",
    "peach": "桃子",
    "banana": "香蕉",
}
COLOURS = {
    "red": "红色",
    "blue": "蓝色",
    "green": "绿色",
    "yellow": "黄色",
    "black": "黑色",
}
GARMENTS = {
    "hat": "帽子",
    "coat": "外套",
    "shoe": "鞋子",
    "shirt": "衬衫",
}
VEHICLES = {
    "car": "汽车",
    "bus": "公交车",
    "train": "火车",
    "bike": "自行车",
}
CATEGORIES = {"animal": ANIMALS, "fruit": FRUITS, "colour": COLOURS, "garment": GARMENTS, "vehicle": VEHICLES}
CATEGORY_NAMES = {"animal": "动物", "fruit": "水果", "colour": "颜色", "garment": "服装", "vehicle": "交通工具"}

NOUNS = {word: chinese for category in CATEGORIES.values() for word, chinese in category.items()}

POSITIVE = {
    "great": "棒",
    "lovely": "可爱",
    "nice": "不错",
    "perfect": "完美",
    "pretty": "漂亮",
    "good": "好",
    "excellent": "出色",
    "charming": "迷人",
}
NEGATIVE = {
    "awful": "糟糕",
    "ugly": "难看",
    "terrible": "可怕",
    "boring": "无聊",
    "dirty": "脏",
    "poor": "差劲",
    "nasty": "讨厌",
    "annoying": "烦人",
}

LABELS = {"yes": "对", "no": "不对", "positive": "正面", "negative": "负面"}
RELATIONS = {"larger": "大", "smaller": "小"}
ORDINALS = {"first": "一", "second": "二", "third": "三", "fourth": "四"}

CHINESE = NOUNS | CATEGORY_NAMES | POSITIVE | NEGATIVE | LABELS | RELATIONS | ORDINALS
"""Every English word of the lexicon with its Chinese word."""

SEPARATORS: dict[Language, str] = {"en": ", ", "zh": "、"}


def say(word: str, language: Language) -> str:
    """The word for a concept, given by its English word."""
    return word if language == "en" else CHINESE[word]


def listed(items: Iterable[str | int], language: Language) -> str:
    """Words and numbers as a list in a language: "cat, 3" or "猫、3"."""
    return SEPARATORS[language].join(str(item) if isinstance(item, int) else say(item, language) for item in items)
