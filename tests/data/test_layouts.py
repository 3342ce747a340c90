"""Each layout of rows, by a row of it and by what is wrong with others."""

import pytest

from rlhf_jax.data.adapters import ADAPTERS, Rejected, Unusable, adapter
from rlhf_jax.data.adapters.instructions import final_answer
from rlhf_jax.data.readers import DataError
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

HERE = Provenance("test", "MIT", "file.json:7")


def records(layout, **row):
    return ADAPTERS[layout].records(row, HERE)


def only(layout, **row):
    (found,) = records(layout, **row)
    return found


def said(prompt):
    return [(turn.role[0], turn.text) for turn in prompt.turns]


def user(text):
    return user_prompt(text, HERE)


MESSAGES = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
SHARED = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]


@pytest.mark.parametrize(
    ("layout", "row", "expected"),
    [
        ("alpaca", {"instruction": "Q", "output": "A"}, Demonstration(user("Q"), "A")),
        ("alpaca", {"instruction": "Q", "input": None, "output": "A", "history": ""}, Demonstration(user("Q"), "A")),
        ("alpaca", {"instruction": "Q", "output": ["A", "B"]}, Ranking(user("Q"), ("A", "B"), (0, 1))),
        ("instructions", {"instruction": "Q", "input": "x"}, user("Q\n\nx")),
        ("completions", {"prompt": "Q", "completion": " A"}, Demonstration(user("Q"), " A")),
        ("completions", {"prompt": MESSAGES[:1], "completion": MESSAGES[1:]}, Demonstration(user("Q"), "A")),
        ("flan", {"inputs": "Q", "targets": "A"}, Demonstration(user("Q"), "A")),
        (
            "cot",
            {"question": "Q\\n(A) 1", "answer": "(A)", "rationale": "as x"},
            Demonstration(user("Q\n(A) 1"), "as x\nSo the answer is (A)."),
        ),
        ("questions", {"question": "Q", "answer": 9}, Demonstration(user("Q"), "9")),
        ("problems", {"input": "Q", "target": 43.0}, Demonstration(user("Q"), "43")),
        ("problems", {"input": "Q", "target": 0.5}, Demonstration(user("Q"), "0.5")),
        (
            "gsm8k",
            {"question": "Q", "answer": "48/2 = <<48/2=24>>24\n#### 24"},
            Demonstration(user("Q"), "48/2 = 24\n#### 24"),
        ),
        ("messages", {"messages": MESSAGES}, Conversation((Turn("user", "Q"), Turn("assistant", "A")), HERE)),
        ("sharegpt", {"conversations": SHARED}, Conversation((Turn("user", "Q"), Turn("assistant", "A")), HERE)),
        ("pairs", {"prompt": "Q", "chosen": "A", "rejected": ""}, Comparison(user("Q"), "A", "")),
        (
            "pairs",
            {"prompt": "Q", "chosen": MESSAGES, "rejected": [MESSAGES[0], {"role": "assistant", "content": "B"}]},
            Comparison(user("Q"), "A", "B"),
        ),
        (
            "sharegpt_pairs",
            {"conversations": SHARED[:1], "chosen": SHARED[1], "rejected": {"from": "gpt", "value": "B"}},
            Comparison(user("Q"), "A", "B"),
        ),
        ("alpaca_pairs", {"instruction": "Q", "chosen": "A", "rejected": "B"}, Comparison(user("Q"), "A", "B")),
        (
            "dove",
            {"i_chosen": "Q", "r_chosen": "A", "i_reject": "Q", "r_reject": "B"},
            Comparison(user("Q"), "A", "B"),
        ),
        (
            "alpaca_eval",
            {"instruction": "Q", "output_1": "A", "output_2": "B", "preference": 1.25},
            Comparison(user("Q"), "A", "B", weight=0.5),
        ),
        (
            "alpaca_eval",
            {"instruction": "Q", "output_1": "A", "output_2": "B", "preference": 2},
            Comparison(user("Q"), "B", "A"),
        ),
        ("llmbar", {"input": "Q", "output_1": "A", "output_2": "B", "label": 2}, Comparison(user("Q"), "B", "A")),
        (
            "pandalm",
            {"instruction": "Q", "response1": "A", "response2": "B"} | {f"annotator{n}": n // 2 + 1 for n in (1, 2, 3)},
            Comparison(user("Q"), "B", "A", weight=2 / 3),
        ),
        (
            "tulu_eval",
            {"prompt": "Q", "completion_a": "A", "completion_b": "B", "preference": "b-is-slightly-better"},
            Comparison(user("Q"), "B", "A", margin=0.5),
        ),
        (
            "choices",
            {"instruction": "Q", "input": "nan", "answer_a": "A", "answer_b": "B", "choice": "(b)"},
            Comparison(user("Q"), "B", "A"),
        ),
        ("rankings", {"prompt": "Q", "replies": ["A", "B"]}, Ranking(user("Q"), ("A", "B"), (0, 1))),
        (
            "stack_exchange",
            {"question": "Q", "answers": [{"text": t, "pm_score": s} for t, s in (("A", 1), ("B", 5), ("C", 1))]},
            Ranking(user("Q"), ("A", "B", "C"), (1, 0, 1)),
        ),
        ("ratings", {"instruction": "Q", "output": "A", "rating": "6"}, Rated(user("Q"), "A", 6.0)),
        ("unpaired", {"prompt": "Q", "completion": "A", "label": True}, LabelledReply(user("Q"), "A", True)),
        (
            "graded_solutions",
            {"question": "Q", "ground_truth": "", "6b": {"solution": "A", "is_correct": False}},
            LabelledReply(user("Q"), "A", False),
        ),
        ("documents", {"text": "T"}, Document("T", HERE)),
        ("poems", {"title": "T", "author": "W", "paragraphs": ["a", "b"]}, Document("T\nW\na\nb", HERE)),
        ("prompts", {"prompt": "Q"}, user("Q")),
    ],
)
def test_a_row_becomes_its_record(layout, row, expected):
    assert only(layout, **row) == expected


@pytest.mark.parametrize(
    ("layout", "row", "reason"),
    [
        ("alpaca", {"instruction": " ", "output": "A"}, "the instruction is empty"),
        ("alpaca", {"instruction": "Q", "output": ["A"]}, "fewer than two replies that differ"),
        ("messages", {"messages": MESSAGES[:1]}, "the dialogue does not end with a reply of the assistant"),
        ("messages", {"messages": MESSAGES[1:]}, "the turns do not alternate between user and assistant"),
        ("messages", {"messages": [{"role": "tool", "content": "x"}]}, "a turn of a tool"),
        ("messages", {"messages": [{**MESSAGES[0], "content": " "}, MESSAGES[1]]}, "the turn of the user is empty"),
        ("pairs", {"prompt": "Q", "chosen": "A", "rejected": "A"}, "both replies are identical"),
        ("pairs", {"prompt": "Q", "chosen": " ", "rejected": "A"}, "the chosen reply is empty"),
        (
            "dove",
            {"i_chosen": "Q", "r_chosen": "A", "i_reject": "R", "r_reject": "B"},
            "the replies are to different prompts",
        ),
        ("alpaca_eval", {"instruction": "Q", "output_1": "A", "output_2": "B", "preference": 1.5}, "a tie"),
        ("alpaca_eval", {"instruction": "Q", "output_1": "A", "output_2": "B", "preference": None}, "no verdict"),
        (
            "pandalm",
            {"instruction": "Q", "response1": "A", "response2": "B", "annotator1": 1, "annotator2": 2},
            "the annotators do not agree",
        ),
        (
            "pandalm",
            {"instruction": "Q", "response1": "A", "response2": "B", "annotator1": 0},
            "most annotators saw a tie",
        ),
        ("rankings", {"prompt": "Q", "replies": ["A", "B"], "places": [1, 1]}, "all replies stand in one place"),
        (
            "sharegpt_pairs",
            {"conversations": SHARED, "chosen": "A", "rejected": "B"},
            "no turn of a user before the reply",
        ),
        ("poems", {"title": "T", "paragraphs": []}, "the poem has no lines"),
        ("openings", {"text": "one two"}, "a paragraph of fewer than 12 words"),
    ],
)
def test_a_row_of_no_use_is_left_out_with_its_reason(layout, row, reason):
    assert only(layout, **row) == Rejected("file.json:7", reason)


@pytest.mark.parametrize(
    ("layout", "row", "reason"),
    [
        ("alpaca", {"instruction": "Q", "output": "A", "history": [["x"]]}, "'history' has an element that is no pair"),
        ("seed_tasks", {"instruction": "Q", "instances": [3]}, "an instance is no object"),
        ("gsm8k", {"question": "Q", "answer": "24"}, "'answer' has no line '#### NUMBER'"),
        ("questions", {"question": "Q", "answer": True}, "'answer' is a bool; expected a text or a number"),
        ("completions", {"prompt": "Q", "completion": MESSAGES}, "'completion' has 2 messages, of user, assistant"),
        ("alpaca_eval", {"instruction": "Q", "output_1": "A", "output_2": "B", "preference": 3}, "'preference' is 3.0"),
        ("llmbar", {"input": "Q", "output_1": "A", "output_2": "B", "label": 0}, "'label' is 0; expected 1 or 2"),
        ("pandalm", {"instruction": "Q", "response1": "A", "response2": "B", "annotator1": 5}, r"chose \[5.0\]"),
        (
            "tulu_eval",
            {"prompt": "Q", "completion_a": "A", "completion_b": "B", "preference": "x"},
            "'preference' is 'x'",
        ),
        ("choices", {"instruction": "Q", "answer_a": "A", "answer_b": "B", "choice": "c"}, "'choice' is 'c'"),
        ("rankings", {"prompt": "Q", "replies": ["A", "B"], "places": [1]}, r"'places' is \[1\], for 2 replies"),
        ("rankings", {"prompt": "Q", "replies": ["A", 2]}, "'replies' has an element that is no text"),
        ("stack_exchange", {"question": "Q", "answers": ["A"]}, "an answer is no object"),
        ("ratings", {"instruction": "Q", "output": "A", "rating": "high"}, "'rating' is 'high'; expected a number"),
        ("graded_solutions", {"question": "Q", "ground_truth": ""}, "no field holds a solution"),
    ],
)
def test_a_row_that_breaks_its_layout_is_an_error_with_its_place(layout, row, reason):
    with pytest.raises(DataError, match=rf"^file\.json:7: .*{reason}"):
        records(layout, **row)


def test_what_was_said_before_an_instruction_stands_before_it():
    found = only("alpaca", instruction="R", input="", output="B", history=[["Q", "A"]], system="Be kind.")
    assert said(found.prompt) == [("s", "Be kind."), ("u", "Q"), ("a", "A"), ("u", "R")]
    assert found.prompt.key == "Be kind.\n\nQ\n\nA\n\nR"


def test_a_seed_task_gives_a_demonstration_for_each_instance():
    instances = [{"input": "x", "output": "A"}, {"input": "", "output": " "}]
    assert records("seed_tasks", instruction="Q", instances=instances) == [
        Demonstration(user("Q\n\nx"), "A"),
        Rejected("file.json:7", "the output is empty"),
    ]


def test_the_final_answer_of_a_worked_one():
    assert final_answer("so\n#### 1,234 ") == "1234"
    assert final_answer("#### 1\nno more\n#### -2.5") == "-2.5"
    assert final_answer("so 7") is None


def test_every_reply_of_a_conversation_is_a_demonstration():
    messages = [
        {"role": "system", "content": "S"},
        *MESSAGES,
        {"role": "user", "content": "R"},
        {"role": "assistant", "content": "B"},
    ]
    found = only("messages", messages=messages)
    assert isinstance(found, Conversation)
    assert said(found.prompt) == [("s", "S"), ("u", "Q")]
    parts = [(said(part.prompt), part.reply) for part in found.demonstrations()]
    assert parts == [([("s", "S"), ("u", "Q")], "A"), ([("s", "S"), ("u", "Q"), ("a", "A"), ("u", "R")], "B")]


def test_a_ranking_is_all_pairs_that_are_no_ties_and_counts_as_one():
    pairs = Ranking(user("Q"), ("a", "b", "c", "b"), (1, 0, 1, 2)).comparisons()
    assert [(pair.chosen, pair.rejected) for pair in pairs] == [("a", "b"), ("b", "a"), ("b", "c"), ("c", "b")]
    assert {pair.weight for pair in pairs} == {1 / 4}


def label_studio(results, data, **annotation):
    given = {"id": 5, "completed_by": 3, "updated_at": "2026-01-01", "result": results, **annotation}
    return records("labelstudio", id=9, data=data, annotations=[given])


PAIR = {"prompt": "Q", "response_a": "A", "response_b": "B"}
ITEMS = {"prompt": "Q", "responses": [{"id": f"r{n}", "body": text} for n, text in enumerate("ABC")]}


def pairwise(selected, *choices):
    results = [{"type": "pairwise", "value": {"selected": selected}}]
    return [*results, {"type": "choices", "value": {"choices": list(choices)}}] if choices else results


def ranker(value):
    return [{"type": "ranker", "value": {"ranker": value}}]


def test_answers_of_people_are_comparisons_rankings_and_ratings_with_a_pseudonym():
    (found,) = label_studio(pairwise("right", "better"), PAIR)
    assert (found.chosen, found.rejected, found.margin) == ("B", "A", 2 / 3)
    where = found.prompt.provenance
    assert (where.place, where.method) == ("file.json:7 (task 9, annotation 5)", "human")
    assert where.annotator is not None
    assert where.annotator.startswith("annotator-")
    assert where.annotator.removeprefix("annotator-") != "3"
    (swapped,) = label_studio(pairwise("left"), {"prompt": "Q", "answer1": "A", "answer2": "B"})
    assert (swapped.chosen, swapped.margin) == ("A", 0.0)
    (rated,) = label_studio(
        [{"type": "rating", "value": {"rating": n}} for n in (4, 5)], {"prompt": "Q", "response": "A"}
    )
    assert (rated.reply, rated.reward) == ("A", 4.5)


@pytest.mark.parametrize(
    ("value", "replies", "places"),
    [
        (["r2", "r0", "r1"], ("C", "A", "B"), (0, 1, 2)),
        ({"rank": ["r2", "r0", "r1"]}, ("C", "A", "B"), (0, 1, 2)),
        ({"good": ["r2"], "ok": ["r0", "r1"], "bad": []}, ("C", "A", "B"), (0, 1, 1)),
        ({"_": ["r1"], "good": [], "bad": ["r2"], "worse": ["r0"]}, ("C", "A"), (1, 2)),
    ],
)
def test_rankings_come_as_lists_by_name_and_in_buckets(value, replies, places):
    (found,) = label_studio(ranker(value), ITEMS)
    assert (found.replies, found.places) == (replies, places)


def test_of_an_annotator_the_latest_answer_counts_and_no_answer_is_no_tie():
    task = [
        {"id": 1, "completed_by": 1, "updated_at": "2026-01-02", "result": pairwise("left")},
        {"id": 2, "completed_by": 1, "updated_at": "2026-01-01", "result": pairwise("right")},
        {"id": 3, "completed_by": 2, "updated_at": "2026-01-01", "result": pairwise("right"), "was_cancelled": True},
        {"id": 4, "completed_by": 3, "updated_at": "2026-01-01", "result": []},
        {"id": 5, "completed_by": 4, "updated_at": "2026-01-01", "result": pairwise("right")},
        {"id": 6, "completed_by": 4, "updated_at": "2026-01-03", "result": pairwise("left")},
    ]
    found = records("labelstudio", id=9, data=PAIR, annotations=task)
    assert [record.chosen for record in found if isinstance(record, Comparison)] == ["A", "A"]
    assert len({record.prompt.provenance.annotator for record in found if isinstance(record, Comparison)}) == 2
    reasons = {one.place[-2]: one.reason for one in found if isinstance(one, Rejected)}
    again = "the annotator answered again later"
    assert reasons == {"2": again, "3": "skipped by the annotator", "4": "no answer", "5": again}


@pytest.mark.parametrize(
    ("results", "data", "reason"),
    [
        (pairwise("banana"), PAIR, r"\(task 9, annotation 5\): selected is 'banana'; expected left or right"),
        ([{"foo": 1}], PAIR, "a result has no 'value'"),
        (pairwise("left"), {"prompt": "Q", "a": "A", "b": "B"}, "the task has no two replies"),
        (pairwise("left"), {"response_a": "A", "response_b": "B"}, "no field 'prompt'"),
        (ranker(["r9"]), ITEMS, r"ranks \['r9'\]; expected ids of r0, r1, r2"),
        (ranker("r1"), ITEMS, "a ranking is 'r1'"),
        (
            [{"type": "rating", "value": {"rating": "good"}}],
            {"prompt": "Q", "response": "A"},
            r"a rating is \['good'\]",
        ),
    ],
)
def test_what_the_annotation_server_does_not_check_is_checked(results, data, reason):
    with pytest.raises(DataError, match=reason):
        label_studio(results, data)


def test_a_layout_of_ones_own_is_one_decorated_function(monkeypatch):
    monkeypatch.setattr("rlhf_jax.data.adapters.registry.ADAPTERS", {"prompts": ADAPTERS["prompts"]})
    from rlhf_jax.data.adapters import registry

    @adapter("mine", "frage")
    def parse_mine(row, provenance) -> Prompt:
        if not row["frage"]:
            raise Unusable("nothing asked")
        return user_prompt(row["frage"], provenance)

    assert registry.recognise({"frage": "x"}, "a:1").name == "mine"
    assert registry.get_adapter("mine").records({"frage": ""}, HERE) == [Rejected("file.json:7", "nothing asked")]
    with pytest.raises(ValueError, match="there is an adapter 'prompts' already"):
        adapter("prompts", "x")(parse_mine)


def test_translations_go_both_ways():
    found = records("translations", translation={"en": "Hi", "zh": "你好"})
    assert found == [
        Demonstration(user("Translate to Chinese:\n\nHi"), "你好"),
        Demonstration(user("Translate to English:\n\n你好"), "Hi"),
    ]
    assert only("translations", translation={"en": "Hi", "zh": " "}).reason == "a side of the translation is empty"
    same = only("translations", translation={"en": "Hi", "zh": "Hi"})
    assert same.reason == "two sides of the translation are the same text"
    with pytest.raises(DataError, match="'translation' has 1 languages; expected two or more"):
        records("translations", translation={"en": "Hi"})
