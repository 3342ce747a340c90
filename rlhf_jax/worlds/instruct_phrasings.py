"""How each family of the instruction world is put into words: format strings over the fields that the family fills in.

Four phrasings per family and language are for training. The last one is held out: a new way to say it in words that the
trained ones use too, as no one can follow an instruction in words never met.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_jax.worlds.lexicon import Language


@dataclass(frozen=True)
class Phrasings:
    """The ways to ask for one thing in one language."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]

    @property
    def all(self) -> tuple[str, ...]:
        return self.train + self.held_out


def _phrasings(*texts: str) -> Phrasings:
    return Phrasings(train=texts[:-1], held_out=texts[-1:])


PHRASINGS: dict[str, dict[Language, Phrasings]] = {
    "reverse": {
        "en": _phrasings(
            "Put these words in reverse order: {items}.",
            "Write this list backwards: {items}.",
            "Reverse the order of {items}.",
            "Say these words from last to first: {items}.",
            "Put this list in reverse order: {items}.",
        ),
        "zh": _phrasings(
            "把下面的词倒过来写：{items}。",
            "请把这些词按相反的顺序写出来：{items}。",
            "倒序写出：{items}。",
            "从后往前写这些词：{items}。",
            "请倒过来写：{items}。",
        ),
    },
    "sort_words": {
        "en": _phrasings(
            "Sort these words alphabetically: {items}.",
            "Put these words in alphabetical order: {items}.",
            "Arrange from A to Z: {items}.",
            "Order these words by the alphabet: {items}.",
            "Put this list in alphabetical order: {items}.",
        ),
    },
    "sort_ascending": {
        "en": _phrasings(
            "Sort these numbers from small to large: {items}.",
            "Put these numbers in ascending order: {items}.",
            "Order from smallest to largest: {items}.",
            "Arrange these numbers, smallest first: {items}.",
            "Put these numbers in order, smallest first: {items}.",
        ),
        "zh": _phrasings(
            "把这些数字从小到大排列：{items}。",
            "请按升序排列：{items}。",
            "从最小到最大排序：{items}。",
            "把下面的数由小到大写出来：{items}。",
            "请把数字由小到大排列：{items}。",
        ),
    },
    "sort_descending": {
        "en": _phrasings(
            "Sort these numbers from large to small: {items}.",
            "Put these numbers in descending order: {items}.",
            "Order from largest to smallest: {items}.",
            "Arrange these numbers, largest first: {items}.",
            "Put these numbers in order, largest first: {items}.",
        ),
        "zh": _phrasings(
            "把这些数字从大到小排列：{items}。",
            "请按降序排列：{items}。",
            "从最大到最小排序：{items}。",
            "把下面的数由大到小写出来：{items}。",
            "请把数字由大到小排列：{items}。",
        ),
    },
    "count": {
        "en": _phrasings(
            "How many words are in this list: {items}?",
            "Count the words: {items}.",
            "How many items do you see: {items}?",
            "Give the number of words in {items}.",
            "How many words do you see: {items}?",
        ),
        "zh": _phrasings(
            "下面有几个词：{items}？",
            "数一数有多少个词：{items}。",
            "这里一共有几个词：{items}？",
            "请数出词的个数：{items}。",
            "请数一数有几个词：{items}。",
        ),
    },
    "largest": {
        "en": _phrasings(
            "What is the largest number: {items}?",
            "Pick the biggest number from {items}.",
            "Which of these numbers is the largest: {items}?",
            "Find the maximum of {items}.",
            "Which number is the largest: {items}?",
        ),
        "zh": _phrasings(
            "最大的数是哪个：{items}？",
            "选出最大的数字：{items}。",
            "这些数里哪个最大：{items}？",
            "找出{items}中的最大值。",
            "哪个数字最大：{items}？",
        ),
    },
    "smallest": {
        "en": _phrasings(
            "What is the smallest number: {items}?",
            "Pick the smallest number from {items}.",
            "Which of these numbers is the smallest: {items}?",
            "Find the minimum of {items}.",
            "Which number is the smallest: {items}?",
        ),
        "zh": _phrasings(
            "最小的数是哪个：{items}？",
            "选出最小的数字：{items}。",
            "这些数里哪个最小：{items}？",
            "找出{items}中的最小值。",
            "哪个数字最小：{items}？",
        ),
    },
    "add": {
        "en": _phrasings(
            "What is {a} plus {b}?",
            "Add {a} and {b}.",
            "{a} + {b} = ?",
            "Work out the sum of {a} and {b}.",
            "What is the sum of {a} and {b}?",
        ),
        "zh": _phrasings(
            "{a}加{b}等于多少？",
            "求{a}与{b}的和。",
            "算一算：{a}+{b}。",
            "请计算{a}加上{b}。",
            "计算{a}与{b}的和。",
        ),
    },
    "subtract": {
        "en": _phrasings(
            "What is {a} minus {b}?",
            "Subtract {b} from {a}.",
            "{a} - {b} = ?",
            "Take {b} away from {a}.",
            "Work out {a} minus {b}.",
        ),
        "zh": _phrasings(
            "{a}减{b}等于多少？",
            "求{a}与{b}的差。",
            "算一算：{a}-{b}。",
            "请计算{a}减去{b}。",
            "计算{a}与{b}的差。",
        ),
    },
    "uppercase": {
        "en": _phrasings(
            "Write in capital letters: {items}.",
            "Turn into upper case: {items}.",
            "Put these words in capitals: {items}.",
            "Use only capital letters: {items}.",
            "Write these words in capitals: {items}.",
        ),
    },
    "lowercase": {
        "en": _phrasings(
            "Write in small letters: {items}.",
            "Turn into lower case: {items}.",
            "Put these words in lower case: {items}.",
            "Use only small letters: {items}.",
            "Write these words in lower case: {items}.",
        ),
    },
    "repeat": {
        "en": _phrasings(
            'Repeat "{words}" {n} times.',
            "Write {words} {n} times.",
            "Say {words} {n} times in a row.",
            "Give me {words}, {n} times over.",
            'Say "{words}" {n} times.',
        ),
        "zh": _phrasings(
            "把“{words}”重复{n}遍。",
            "请写{n}次：{words}。",
            "说{n}遍{words}。",
            "连写{n}次{words}。",
            "请把“{words}”写{n}遍。",
        ),
    },
    "delete": {
        "en": _phrasings(
            "Remove {word} from this list: {items}.",
            "Delete {word}: {items}.",
            "Take {word} out of {items}.",
            "Write this list without {word}: {items}.",
            "Take {word} out of this list: {items}.",
        ),
        "zh": _phrasings(
            "从下面的列表中删掉{word}：{items}。",
            "去掉{word}：{items}。",
            "把{word}从{items}里拿走。",
            "不要{word}，写出其余的词：{items}。",
            "把{word}去掉：{items}。",
        ),
    },
    "replace": {
        "en": _phrasings(
            "Replace {word} with {other}: {items}.",
            "Swap {word} for {other}: {items}.",
            "Change {word} to {other} in this list: {items}.",
            "Turn {word} into {other}: {items}.",
            "Change {word} into {other}: {items}.",
        ),
        "zh": _phrasings(
            "把{word}换成{other}：{items}。",
            "请把{word}改成{other}：{items}。",
            "将列表中的{word}改为{other}：{items}。",
            "将{word}替换为{other}：{items}。",
            "请将{word}换成{other}：{items}。",
        ),
    },
    "to_chinese": {
        "en": _phrasings(
            "Translate into Chinese: {items}.",
            "What is the Chinese for {items}?",
            "Say in Chinese: {items}.",
            "Give the Chinese words for {items}.",
            "What is {items} in Chinese?",
        ),
        "zh": _phrasings(
            "翻译成中文：{items}。",
            "{items}用中文怎么说？",
            "请把这些英文词译成中文：{items}。",
            "写出对应的中文：{items}。",
            "{items}的中文是什么？",
        ),
    },
    "to_english": {
        "en": _phrasings(
            "Translate into English: {items}.",
            "What is the English for {items}?",
            "Say in English: {items}.",
            "Give the English words for {items}.",
            "What is {items} in English?",
        ),
        "zh": _phrasings(
            "翻译成英文：{items}。",
            "{items}用英文怎么说？",
            "请把这些中文词译成英文：{items}。",
            "写出对应的英文：{items}。",
            "{items}的英文是什么？",
        ),
    },
    "compare": {
        "en": _phrasings(
            "Is {a} {relation} than {b}?",
            "Answer yes or no: is {a} {relation} than {b}?",
            "Is the number {a} {relation} than {b}?",
            "Would you say that {a} is {relation} than {b}?",
            "Yes or no: is {a} {relation} than {b}?",
        ),
        "zh": _phrasings(
            "{a}比{b}{relation}，对不对？",
            "请回答对或不对：{a}比{b}{relation}。",
            "判断一下：{a}比{b}{relation}。",
            "有人说{a}比{b}{relation}，对吗？",
            "你说{a}比{b}{relation}，对吗？",
        ),
    },
    "sentiment": {
        "en": _phrasings(
            "Positive or negative: {sentence}",
            "Is the mood positive or negative? {sentence}",
            "Classify the sentiment: {sentence}",
            "{sentence} Is this positive or negative?",
            "Is this positive or negative: {sentence}",
        ),
        "zh": _phrasings(
            "正面还是负面：{sentence}",
            "判断情感是正面还是负面：{sentence}",
            "给这句话的情感分类：{sentence}",
            "{sentence}这是正面还是负面？",
            "这句话是正面还是负面：{sentence}",
        ),
    },
    "nth": {
        "en": _phrasings(
            "What is the {nth} word of {items}?",
            "Give the {nth} word: {items}.",
            "Which word comes {nth} in this list: {items}?",
            "Pick the {nth} item of {items}.",
            "What is the {nth} word in this list: {items}?",
        ),
        "zh": _phrasings(
            "{items}中第{nth}个词是什么？",
            "写出第{nth}个词：{items}。",
            "列表里的第{nth}个词是哪个：{items}？",
            "取第{nth}个：{items}。",
            "请写出列表里的第{nth}个词：{items}。",
        ),
    },
    "last": {
        "en": _phrasings(
            "What is the last word of {items}?",
            "Give the last word: {items}.",
            "Which word comes last in this list: {items}?",
            "Pick the last item of {items}.",
            "What is the last word in this list: {items}?",
        ),
        "zh": _phrasings(
            "{items}中最后一个词是什么？",
            "写出最后一个词：{items}。",
            "列表里的最后一个词是哪个：{items}？",
            "取最后一个：{items}。",
            "请写出列表里的最后一个词：{items}。",
        ),
    },
    "pick_category": {
        "en": _phrasings(
            "Which of these is {a_category}: {items}?",
            "Find the {category} in this list: {items}.",
            "Pick the {category}: {items}.",
            "Which word names {a_category}: {items}?",
            "Which word is {a_category}: {items}?",
        ),
        "zh": _phrasings(
            "下面哪个是{category}：{items}？",
            "找出{category}：{items}。",
            "选出属于{category}的词：{items}。",
            "哪个词表示{category}：{items}？",
            "哪个词是{category}：{items}？",
        ),
    },
    "odd_one_out": {
        "en": _phrasings(
            "Which word does not belong: {items}?",
            "Find the odd one out: {items}.",
            "Which of these is not like the others: {items}?",
            "One word does not fit: {items}.",
            "Which of these does not belong: {items}?",
        ),
        "zh": _phrasings(
            "哪个词不属于同一类：{items}？",
            "找出不同类的词：{items}。",
            "下面哪个和其他的不一样：{items}？",
            "有一个词不合群：{items}。",
            "找出和其他不一样的词：{items}。",
        ),
    },
    "contains": {
        "en": _phrasings(
            "Is {word} in this list: {items}?",
            "Answer yes or no: is {word} one of {items}?",
            "Does this list contain {word}: {items}?",
            "Would you say that {word} is among {items}?",
            "Yes or no: is {word} in this list: {items}?",
        ),
        "zh": _phrasings(
            "列表里有{word}，对不对：{items}。",
            "请回答对或不对：{items}里有{word}。",
            "判断一下：{word}在{items}里。",
            "有人说{items}里有{word}，对吗？",
            "你说{items}里有{word}，对吗？",
        ),
    },
}
