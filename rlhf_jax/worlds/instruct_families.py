"""The task families of the instruction world: what can be asked, what the right answer is, and how people get it wrong.

A family draws a *content* (its arguments, the same in every language) and turns it, in a language, into a case: the
fields of its phrasings, the one right answer, and some plausible mistakes. The wording is in `instruct_phrasings.py`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rlhf_jax.worlds.instruct_phrasings import PHRASINGS, Phrasings
from rlhf_jax.worlds.lexicon import (
    CATEGORIES,
    COLOURS,
    NEGATIVE,
    NOUNS,
    ORDINALS,
    POSITIVE,
    RELATIONS,
    SEPARATORS,
    Language,
    listed,
    say,
)

Content = tuple[str | int, ...]
"""The arguments of a task: concepts by their English word, and numbers."""

LARGEST_NUMBER = 20
"""Of sums, differences and comparisons."""

LARGEST_IN_LIST = 9
"""Of numbers in lists: one digit, so that a small model sees each number as one token."""

LENGTHS = (2, 2, 2, 2, 3, 3, 4)
"""Of lists, as often as they occur: short ones more often, so that a small model learns the task before the length."""

_NOUNS = tuple(NOUNS)
_COLOURS = tuple(COLOURS)
_OBJECTS = tuple(word for word in NOUNS if word not in COLOURS)
_ADJECTIVES = tuple(POSITIVE | NEGATIVE)
_CATEGORY_OF = {word: category for category, words in CATEGORIES.items() for word in words}
_MEMBERS = {category: tuple(words) for category, words in CATEGORIES.items()}
_OTHERS = {category: tuple(word for word in NOUNS if _CATEGORY_OF[word] != category) for category in CATEGORIES}


@dataclass(frozen=True)
class Case:
    """One content in one language. `mistakes` are whole replies of a careless person; some may equal the answer."""

    fields: Mapping[str, str | int]
    answer: str
    mistakes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    """One kind of task. A held-out family never occurs in training."""

    name: str
    draw: Callable[[random.Random], Content]
    case: Callable[[Content, Language], Case]
    phrasings: Mapping[Language, Phrasings]
    held_out: bool = False

    @property
    def languages(self) -> tuple[Language, ...]:
        return tuple(self.phrasings)


# --- contents -------------------------------------------------------------------------------------------------------


def _nouns(fewest: int, most: int) -> Callable[[random.Random], Content]:
    return lambda rng: tuple(rng.sample(_NOUNS, rng.randint(fewest, most)))


def _list(rng: random.Random) -> Content:
    return tuple(rng.sample(_NOUNS, rng.choice(LENGTHS)))


def _number(rng: random.Random) -> int:
    return rng.randint(0, LARGEST_NUMBER)


def _numbers(rng: random.Random) -> Content:
    return tuple(rng.sample(range(LARGEST_IN_LIST + 1), rng.choice(LENGTHS)))


def _two_numbers(rng: random.Random) -> Content:
    return _number(rng), _number(rng)


def _falling_numbers(rng: random.Random) -> Content:
    a, b = _number(rng), _number(rng)
    return max(a, b), min(a, b)


def _comparison(rng: random.Random) -> Content:
    a, b = rng.sample(range(LARGEST_NUMBER + 1), 2)
    return a, rng.choice(tuple(RELATIONS)), b


def _word_of_list(rng: random.Random) -> Content:
    items = rng.sample(_NOUNS, rng.choice(LENGTHS))
    return rng.choice(items), *items


def _word_and_list(rng: random.Random) -> Content:
    word, *items = rng.sample(_NOUNS, 1 + rng.choice(LENGTHS))
    return rng.choice(items) if rng.random() < 0.5 else word, *items


def _word_and_substitute(rng: random.Random) -> Content:
    other, *items = rng.sample(_NOUNS, 1 + rng.choice(LENGTHS))
    return rng.choice(items), other, *items


def _place_in_list(rng: random.Random) -> Content:
    items = rng.sample(_NOUNS, rng.choice(LENGTHS))
    return rng.randrange(len(items)), *items


def _colour_and_object(rng: random.Random) -> Content:
    return rng.choice(_COLOURS), rng.choice(_OBJECTS), rng.randint(2, 4)


def _colour_object_adjective(rng: random.Random) -> Content:
    return rng.choice(_COLOURS), rng.choice(_OBJECTS), rng.choice(_ADJECTIVES)


def _member_among_others(rng: random.Random) -> Content:
    category = rng.choice(tuple(CATEGORIES))
    items = [rng.choice(_MEMBERS[category]), *rng.sample(_OTHERS[category], rng.choice(LENGTHS) - 1)]
    rng.shuffle(items)
    return category, *items


def _other_among_members(rng: random.Random) -> Content:
    category = rng.choice(tuple(CATEGORIES))
    odd = rng.choice(_OTHERS[category])
    items = [odd, *rng.sample(_MEMBERS[category], rng.randint(2, 3))]
    rng.shuffle(items)
    return odd, *items


# --- cases ----------------------------------------------------------------------------------------------------------


def _list_case(content: Content, answer: Content, language: Language, *mistakes: Content) -> Case:
    """A list goes in and a list of the same language comes out; the list as given is always a plausible mistake."""
    items = listed(content, language)
    return Case({"items": items}, listed(answer, language), (items, *(listed(m, language) for m in mistakes)))


def _reverse(content: Content, language: Language) -> Case:
    return _list_case(content, content[::-1], language)


def _sort_ascending(content: Content, language: Language) -> Case:
    ordered = tuple(sorted(content, key=lambda item: item))
    return _list_case(content, ordered, language, ordered[::-1])


def _sort_descending(content: Content, language: Language) -> Case:
    ordered = tuple(sorted(content, key=lambda item: item, reverse=True))
    return _list_case(content, ordered, language, ordered[::-1])


def _neighbours(number: int) -> tuple[str, ...]:
    return tuple(str(near) for near in (number - 1, number + 1) if near >= 0)


def _count(content: Content, language: Language) -> Case:
    return Case({"items": listed(content, language)}, str(len(content)), _neighbours(len(content)))


def _extreme(choose: Callable[[Content], str | int]) -> Callable[[Content, Language], Case]:
    def case(content: Content, language: Language) -> Case:
        return Case({"items": listed(content, language)}, str(choose(content)), tuple(map(str, content)))

    return case


def _arithmetic(sign: int) -> Callable[[Content, Language], Case]:
    def case(content: Content, language: Language) -> Case:
        a, b = map(int, content)
        return Case({"a": a, "b": b}, str(a + sign * b), _neighbours(a + sign * b))

    return case


def _uppercase(content: Content, language: Language) -> Case:
    items = listed(content, language)
    return Case({"items": items}, items.upper(), (items, items.title()))


def _lowercase(content: Content, language: Language) -> Case:
    items = listed(content, language)
    return Case({"items": items.upper()}, items, (items.upper(), items.title()))


def _repeat(content: Content, language: Language) -> Case:
    colour, noun, times = str(content[0]), str(content[1]), int(content[2])
    words = f"{say(colour, language)}{' ' if language == 'en' else '的'}{say(noun, language)}"
    once_more, answer, once_less = (SEPARATORS[language].join([words] * n) for n in (times + 1, times, times - 1))
    return Case({"words": words, "n": times}, answer, (once_more, once_less))


def _delete(content: Content, language: Language) -> Case:
    word, *items = content
    rest = [item for item in items if item != word]
    fields = {"word": say(str(word), language), "items": listed(items, language)}
    return Case(fields, listed(rest, language), (fields["items"], fields["word"], listed(items[:-1], language)))


def _replace(content: Content, language: Language) -> Case:
    word, other, *items = content
    fields = {
        "word": say(str(word), language),
        "other": say(str(other), language),
        "items": listed(items, language),
    }
    answer = listed([other if item == word else item for item in items], language)
    return Case(fields, answer, (fields["items"], listed([*items, other], language)))


def _translate(source: Language, target: Language) -> Callable[[Content, Language], Case]:
    def case(content: Content, language: Language) -> Case:
        # The words to translate and the answer have their own languages, whichever one the request is in.
        one_wrong = (_NOUNS[(_NOUNS.index(str(content[0])) + 1) % len(_NOUNS)], *content[1:])
        answer, mistake, items = listed(content, target), listed(one_wrong, target), listed(content, source)
        return Case({"items": items}, answer, (items, mistake))

    return case


def _label(label: str, opposite: str, language: Language, fields: Mapping[str, str | int]) -> Case:
    return Case(fields, say(label, language), (say(opposite, language),))


def _yes_no(truth: bool, language: Language, fields: Mapping[str, str | int]) -> Case:
    label, opposite = ("yes", "no") if truth else ("no", "yes")
    return _label(label, opposite, language, fields)


def _compare(content: Content, language: Language) -> Case:
    a, relation, b = int(content[0]), str(content[1]), int(content[2])
    truth = a > b if relation == "larger" else a < b
    return _yes_no(truth, language, {"a": a, "b": b, "relation": say(relation, language)})


def _contains(content: Content, language: Language) -> Case:
    word, *items = content
    return _yes_no(word in items, language, {"word": say(str(word), language), "items": listed(items, language)})


def _sentiment(content: Content, language: Language) -> Case:
    colour, noun, adjective = (say(str(word), language) for word in content)
    sentence = f"The {colour} {noun} is {adjective}." if language == "en" else f"{colour}的{noun}真{adjective}。"
    label, opposite = ("positive", "negative") if content[2] in POSITIVE else ("negative", "positive")
    return _label(label, opposite, language, {"sentence": sentence})


def _item_case(answer: str, items: list[str | int], language: Language, **fields: str) -> Case:
    """One item of the list is the answer; every other one is a plausible mistake."""
    wrong = tuple(listed([item], language) for item in items if item != answer)
    return Case({"items": listed(items, language), **fields}, say(answer, language), wrong)


def _nth(content: Content, language: Language) -> Case:
    place, *items = content
    ordinal = say(tuple(ORDINALS)[int(place)], language)
    return _item_case(str(items[int(place)]), items, language, nth=ordinal)


def _last(content: Content, language: Language) -> Case:
    return _item_case(str(content[-1]), list(content), language)


def _pick_category(content: Content, language: Language) -> Case:
    category, *items = map(str, content)
    answer = next(item for item in items if _CATEGORY_OF[item] == category)
    article = "an" if category[0] in "aeiou" else "a"
    fields = {"category": say(category, language), "a_category": f"{article} {category}"}
    return _item_case(answer, list(items), language, **fields)


def _odd_one_out(content: Content, language: Language) -> Case:
    odd, *items = content
    return _item_case(str(odd), items, language)


def _family(
    name: str,
    draw: Callable[[random.Random], Content],
    case: Callable[[Content, Language], Case],
    *,
    held_out: bool = False,
) -> Family:
    return Family(name, draw, case, PHRASINGS[name], held_out)


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        _family("reverse", _list, _reverse),
        _family("sort_words", _list, _sort_ascending),
        _family("sort_ascending", _numbers, _sort_ascending),
        _family("sort_descending", _numbers, _sort_descending, held_out=True),
        _family("count", _nouns(2, 5), _count),
        _family("largest", _numbers, _extreme(max)),
        _family("smallest", _numbers, _extreme(min)),
        _family("add", _two_numbers, _arithmetic(1)),
        _family("subtract", _falling_numbers, _arithmetic(-1)),
        _family("uppercase", _nouns(1, 3), _uppercase),
        _family("lowercase", _nouns(1, 3), _lowercase),
        _family("repeat", _colour_and_object, _repeat),
        _family("delete", _word_of_list, _delete),
        _family("replace", _word_and_substitute, _replace),
        _family("to_chinese", _nouns(2, 3), _translate("en", "zh")),
        _family("to_english", _nouns(2, 3), _translate("zh", "en")),
        _family("compare", _comparison, _compare),
        _family("sentiment", _colour_object_adjective, _sentiment),
        _family("nth", _place_in_list, _nth),
        _family("last", _list, _last, held_out=True),
        _family("pick_category", _member_among_others, _pick_category),
        _family("odd_one_out", _other_among_members, _odd_one_out),
        _family("contains", _word_and_list, _contains, held_out=True),
    )
}
"""Every family by its name."""
