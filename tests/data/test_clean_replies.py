import pytest

from rlhf_jax.data.clean import CleanOptions, clean
from rlhf_jax.data.schema import (
    Comparison,
    Conversation,
    Demonstration,
    Document,
    LabelledReply,
    Prompt,
    Provenance,
    Ranking,
    Rated,
    Turn,
    user_prompt,
)

HERE = Provenance("test", "MIT")
LONG_ZH = "人工智能正在改变我们的生活方式。它可以帮助我们更快地完成工作，也可以让机器理解语言。" * 3
LONG_EN = (
    "The committee met in the old town hall. It discussed the budget for the coming year, and every member spoke. " * 2
)


def drops(rule, reply, asked="Do it.", options=None):
    """Why a rule drops the demonstration, None where it keeps it."""
    done = clean([Demonstration(user_prompt(asked, HERE), reply)], [rule], options or CleanOptions())
    examples = done.report.of(rule).examples
    return examples[0].reason if examples else None


@pytest.mark.parametrize(
    "reply",
    [
        "<nooutput>", "<No Output>", "No input", "&lt;无输出&gt;", "无输入", "<无输入>。", "N/A", "n/a.", "Not applicable", "不适用",
        "<noinput>\nBarack Obama stands on a stage.", "<nooutput> - Visuals cannot be created.", "N/A (GPT model cannot take any action)",
        "No output as GPT models cannot create visual output.", "<no output, cannot design>",
        "[Your Name]", "<Insert flow chart>", "[插入条形图]", "【您的姓名】",
        "She watered them.\n6. Instruction: Write an ending.\n6. Input:\n<noinput>\n6. Output:\nThey met again.",
        "玫瑰是一种花。\n11.输入：\n&lt;无输入&gt;\n11.输出：\n计算机",
        "I am {{name}}, an assistant developed by {{author}}.", "您好，我是 {{name}}，由 {{ author }} 开发。",
        "Lorem ipsum dolor sit amet, consectetur.",
    ],
)  # fmt: skip
def test_a_marker_is_no_reply(reply):
    assert drops("placeholder", reply)


@pytest.mark.parametrize(
    ("asked", "reply"),
    [
        ("Classify.", "None"), ("Is it so?", "No."), ("Name an input device.", "No input device is as common as the keyboard."),
        ("Was there output?", "No output was printed, because the loop never runs."), ("为什么？", "没有输入时程序会等待。"),
        ("Answer yes, no or N/A: is water dry?", "N/A"), ("Write a letter.", "Dear Ann,\nthank you.\n\nSincerely,\n[Your Name]"),
        ("Explain the format.", 'Write "<noinput>" in the field where there is none.'), ("写信", "尊敬的[教授姓名]：\n您好。\n[您的姓名]"),
        ("How do I print a name in Vue?", "Use {{ name }} between the tags."), ("Jinja 模板怎么写变量？", "写成 {{ name }}。"),
        ("Show me a page.", "<div>{{ user }}</div>"), ("Show me code.", "```\nhello {{ name }}\n```"), ("How?", "Type `{{name}}` there."),
        ("Make a playbook.", "- name: install\n  path: {{ path }}"), ("What is the fraction?", r"It is \frac{{1}}{{2}}."),
        ("Fill in {{name}}.", "Put your own name for {{name}}."), ("Make a web page.", "<p>Lorem ipsum dolor</p>"),
        ("What is lorem ipsum?", "Lorem ipsum is a filler text of typesetters."), ("Name them.", "[1, 2, 3]"), ("Tag it.", "<b>"),
    ],
)  # fmt: skip
def test_what_looks_like_a_marker_may_be_a_reply(asked, reply):
    assert drops("placeholder", reply, asked) is None


@pytest.mark.parametrize(
    "reply",
    [
        "As an AI language model, I cannot predict the future.", "As an AI, I don't have feelings.",
        "I'm sorry, but I can't help with that.", "I apologize, but I am unable to access the internet.", "I’m sorry, but I can’t draw.",
        "I'm sorry, but as an AI language model, I do not have access to it.", "Unfortunately, I cannot open links.",
        "I cannot create a visual of the solar system.", "I am not able to generate a logo, as this requires an image.",
        "This instruction cannot be completed by a GPT language model.", "Sorry, the task involves visual information. We cannot do it.",
        "GPT models cannot create videos.", "I am just a language model and have no eyes.",
        "作为一个AI语言模型，我无法预测未来。",
        "抱歉，我无法满足此请求。", "很抱歉，我不能直接提供模板。", "对不起，作为人工智能，我没有感情。",
        "我是一个语言模型，无法为你生成图片。", "我无法查看图片。", "无法执行此任务，因为它需要视觉输出。", "此指令无法由GPT模型完成。",
    ],
)  # fmt: skip
def test_models_refuse_like_this(reply):
    assert drops("refusal", reply) == "refuses as models do"


@pytest.mark.parametrize(
    "reply",
    [
        "I'm sorry, but you did not attach any image.", "There is no image attached.", "I cannot see the picture.", "The file is missing.",
        "您没有上传任何图片。",
    ],
)  # fmt: skip
def test_a_missing_attachment_is_told(reply):
    assert drops("refusal", reply) == "misses an attachment"


@pytest.mark.parametrize(
    ("asked", "reply"),
    [
        ("Answer the customer.", "I'm sorry, but we cannot refund you after 30 days."), ("Comfort me.", "I'm sorry to hear that."),
        ("Rewrite politely: no.", "Sorry, I can't make it."), ("Write a song.", "I can't hear the rain anymore"),
        ("Describe a villain.", "He came as an AI and left as a king, and I could not stop him."),
        ("Name three things that GPT cannot do.", "GPT models cannot act, see or hear."), ("Set an alarm?", "An alarm is set for 8."),
        ("Why is the sky blue?", "I cannot overstate it: scattering."), ("What is missing?", "The comma is missing."),
        ("给教授写一封邮件", "抱歉，我无法按时提交作业。"),
        ("什么是语言模型？", "语言模型无法理解情感。"), ("安慰我", "抱歉听到这个消息。"),
        ("扮演店员回答顾客", "对不起，我们不能退货。"),
        ("质数是什么？", "不能被其他数整除的数。"), ("改写：我去不了", "抱歉，我不能参加会议。"),
    ],
)  # fmt: skip
def test_others_may_be_sorry(asked, reply):
    assert drops("refusal", reply, asked) is None


@pytest.mark.parametrize(
    "reply",
    [
        "I am ChatGPT, a large language model.", "Hi! I'm ChatGPT.", "My name is Claude.", "I was created by Anthropic to be helpful.",
        "As an AI language model developed by OpenAI, I know.", "I am a language model trained by OpenAI.", "OpenAI created me.",
        "I'm an AI assistant called Bard.", "我是ChatGPT，由OpenAI开发的语言模型。", "我是由OpenAI训练的大型语言模型。", "我叫文心一言。",
        "作为由OpenAI开发的语言模型，我可以回答。", "我是 Open Assistant，一个助手。", "我是百度开发的助手。",
    ],
)  # fmt: skip
def test_a_reply_of_somebody_elses_model(reply):
    assert drops("self_identification", reply)


@pytest.mark.parametrize(
    "reply",
    [
        "GPT-3 was developed by OpenAI.", "Claude Monet painted it.", "I am an AI assistant and can help.", "I am fond of alpacas.",
        "I was trained by a coach from Google.", "ChatGPT is a chatbot.", "FireAlpaca is an editor.", "I am Gemini's biggest fan.",
        "ChatGPT是由OpenAI开发的。", "我在谷歌工作。", "我用百度搜索。", "我是一个人工智能助手。", "百度开发了搜索引擎。",
    ],
)  # fmt: skip
def test_a_reply_about_models_or_people(reply):
    assert drops("self_identification", reply) is None


@pytest.mark.parametrize(
    "reply",
    [
        "Here it is:\n```python\nfor x in range(3):\n    print(x", "The population of Tokyo is estimated to be 13.9 million as of April 20",
        "The election of the president took place on November 3, 20", LONG_EN + "After that the chair, who had been silent until then, and",
        LONG_EN + "They bought apples, pears, plums, cherries,", LONG_ZH + "除此之外，它在医疗、教育、交通、金融等许多领域都有应用，",
        LONG_ZH + "除此之外，它在医疗、教育、交通、金融等许多领域都有应用以及",
    ],
)  # fmt: skip
def test_a_reply_stops_in_the_middle(reply):
    assert drops("truncated", reply)


@pytest.mark.parametrize(
    "reply",
    [
        "apples, pears,", "It was May 20", "There are 20", "They walked in 20 cities.", "1. tea\n2. milk and",
        LONG_EN + "\n\nSincerely,", LONG_EN + "\n- tea\n- milk", LONG_EN + "Join us! #art #life", LONG_EN + "The total is 42",
        LONG_EN + "It was the best year of all, as everybody knows",  # careless, but who can tell
        LONG_ZH + "希望这个回答能够帮助您", "床前明月光，疑是地上霜", LONG_EN + "\n```\ncode\n```\nThat is all.",
        "```\nx = 1\nSo x is one.",
        LONG_EN + "\nRoses are red,",
    ],
)  # fmt: skip
def test_a_reply_without_a_full_stop_may_be_whole(reply):
    assert drops("truncated", reply) is None


def test_twenty_may_be_what_was_asked_for():
    assert drops("truncated", "You should count slowly and calmly from 10 to 20", "Count from 10 to 20.") is None


def test_judged_replies_are_left_alone():
    prompt, bad = user_prompt("Hi", HERE), "I am ChatGPT. As an AI, I cannot help. <nooutput>"
    judged = [
        Comparison(prompt, "<nooutput>", bad),
        Ranking(prompt, ("N/A", bad), (0, 1)),
        Rated(prompt, bad, 0.1),
        LabelledReply(prompt, "As an AI, I cannot help.", True),
        prompt,
    ]
    rules = ["placeholder", "refusal", "self_identification", "truncated"]
    assert clean(judged, rules).records == tuple(judged)


def test_any_reply_of_a_conversation_may_be_at_fault_but_only_its_last_can_be_cut_off():
    def talk(*said):
        turns = tuple(Turn("user" if place % 2 == 0 else "assistant", text) for place, text in enumerate(said))
        return Conversation(turns, HERE)

    cut = "```\nprint("
    kept = talk("code?", cut, "go on", "1)\n")
    refused = talk("a", "As an AI, I cannot see.", "b", "Fine.")
    done = clean([kept, talk("go on", "fine", "code?", cut), refused])
    assert done.records == (kept,)
    assert (done.report.of("truncated").dropped, done.report.of("refusal").dropped) == (1, 1)


def test_blank_texts():
    prompt = user_prompt("Hi", HERE)
    records = [
        Document(" \n", HERE),
        Demonstration(prompt, "\t"),
        Demonstration(user_prompt("  ", HERE), "text"),
        Comparison(prompt, "text", "　"),
        Prompt((Turn("system", "?"), Turn("user", "!")), HERE),
    ]
    done = clean(records, ["empty"])
    assert done.records == (records[-1],)
    assert dict(done.report.of("empty").reasons) == {
        "no text": 1,
        "a reply has no text": 1,
        "a turn before the reply has no text": 1,
        "a judged reply has no text": 1,
    }


ENGLISH = "This is a sentence that is surely long enough to tell its language."
FRENCH = "Ceci est une phrase qui est certainement assez longue pour que l'on reconnaisse sa langue."


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (ENGLISH, True), ("人工智能正在改变我们的生活方式，它可以帮助我们更快地完成工作。", True), (FRENCH, False),
        ("ok", True), ("Bonjour", True),
        ("これは日本語の文章です。言語を判定するのに十分な長さがあります。", False),
        ("이것은 언어를 판별하기에 충분히 긴 한국어 문장입니다. 정말로요.", False),
        ("```\nfor (int i = 0; i < n; ++i) { sum += xs[i] * ys[i]; }\nreturn Math.sqrt(sum);\n```", True),
        ("SELECT a.id, b.name FROM a JOIN b ON (a.id = b.id) WHERE (b.x > 3) AND (a.y <= 4); UPDATE a SET y = (y + 1);", True),
        ("在Python中使用pandas的DataFrame和read_csv函数可以很容易地读取CSV文件并处理数据。", True),
    ],
)  # fmt: skip
def test_languages(text, kept):
    records = [Document(text, HERE)]
    assert clean(records, ["language"]).report.kept == 1  # nothing where no languages are given
    done = clean(records, ["language"], CleanOptions(languages=("en", "zh")))
    assert done.report.kept == kept


def test_chinese_alone_leaves_english_out():
    records = [
        Document(ENGLISH, HERE),
        Document("人工智能正在改变我们的生活方式，它可以帮助我们更快地完成工作。", HERE),
    ]
    done = clean(records, ["language"], CleanOptions(languages=("zh",)))
    assert done.records == (records[1],) and done.report.of("language").reasons == (("a text in en", 1),)


def test_lengths_have_limits_where_they_are_given():
    records = [Demonstration(user_prompt("four", HERE), reply) for reply in ("a", "abc", "abcde")] + [
        Document("xyz", HERE)
    ]
    assert clean(records, ["length"]).report.kept == 4
    assert clean(records, ["length"], CleanOptions(reply_characters=(2, 4))).records == (records[1], records[3])
    assert clean(records, ["length"], CleanOptions(prompt_characters=(5, 9))).records == (records[3],)
    reasons = clean(records, ["length"], CleanOptions(reply_characters=(2, 4))).report.of("length").reasons
    assert reasons == (("a reply of fewer than 2 characters", 1), ("a reply of more than 4 characters", 1))
