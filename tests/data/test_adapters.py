import pytest

from rlhf_jax.data.adapters import ADAPTERS, Rejected
from rlhf_jax.data.adapters.comparisons import parse_hh_dialogue
from rlhf_jax.data.readers import DataError
from rlhf_jax.data.readers.lines import read_jsonl
from rlhf_jax.data.schema import Comparison, Demonstration, Labelled, LabelledReply, Provenance, Turn
from rlhf_jax.data.sources import load_source
from rlhf_jax.data.tokens.templates import TEMPLATES

HERE = Provenance("test", "MIT", "file.json:7")


def parse(adapter, **row):
    (found,) = ADAPTERS[adapter].records(row, HERE)
    return found


def test_alpaca_joins_instruction_and_input_by_a_blank_line_only_when_there_is_one():
    with_input = parse("alpaca", instruction="Add.", input="1 and 2", output="3")
    without = parse("alpaca", instruction="Smile.", input="", output=":)")
    assert isinstance(with_input, Demonstration)
    assert with_input.prompt.turns == (Turn("user", "Add.\n\n1 and 2"),)
    assert with_input.reply == "3"
    assert with_input.prompt.provenance == HERE
    assert isinstance(without, Demonstration)
    assert without.prompt.turns == (Turn("user", "Smile."),)


def test_an_alpaca_row_without_an_answer_is_rejected_with_its_place():
    assert parse("alpaca", instruction="Add.", input="", output=" ") == Rejected("file.json:7", "the output is empty")


def test_hh_keeps_every_character_but_the_blank_after_the_colon():
    turns = parse_hh_dialogue("\n\nHuman:  Hi \n\nyou\n\nAssistant: \n\nHuman: Bye\n\nAssistant: No. ", HERE)
    assert turns == (
        Turn("user", " Hi \n\nyou"),
        Turn("assistant", ""),
        Turn("user", "Bye"),
        Turn("assistant", "No. "),
    )


def test_hh_pairs_share_the_prompt_and_keep_the_direction():
    pair = parse("hh", chosen="\n\nHuman: Q\n\nAssistant: good", rejected="\n\nHuman: Q\n\nAssistant: bad")
    assert isinstance(pair, Comparison)
    assert (pair.prompt.turns, pair.chosen, pair.rejected) == ((Turn("user", "Q"),), "good", "bad")


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        ("\n\nHuman: Q\n\nAssistant: a", "\n\nHuman: Q\n\nAssistant: a", "identical"),
        ("\n\nHuman: Q\n\nAssistant: a", "\n\nHuman: R\n\nAssistant: b", "differ before the last"),
        ("\n\nHuman: Q\n\nAssistant: a", "\n\nHuman: Q\n\nAssistant: a\n\nHuman: S", "differ before the last"),
        ("\n\nHuman: Q\n\nHuman: a", "\n\nHuman: Q\n\nHuman: b", "does not end with a reply"),
        ("\n\nAssistant: a", "\n\nAssistant: b", "does not end with a reply"),
        ("\n\nAssistant: x\n\nAssistant: a", "\n\nAssistant: x\n\nAssistant: b", "no turn of a user"),
    ],
)
def test_hh_pairs_without_a_comparison_of_two_replies_are_rejected(chosen, rejected, reason):
    outcome = parse("hh", chosen=chosen, rejected=rejected)
    assert isinstance(outcome, Rejected)
    assert reason in outcome.reason


def test_text_that_is_no_dialogue_is_an_error():
    with pytest.raises(DataError, match=r"file\.json:7: a dialogue starts with 'Hello"):
        parse("hh", chosen="Hello", rejected="\n\nHuman: Q\n\nAssistant: a")


def test_sentiment_labels_come_from_the_column_and_from_the_folder():
    assert parse("sst2", sentence="a fine film ", label="1") == Labelled("a fine film", 1, HERE)
    assert parse("imdb", member="train/pos/1_7.txt", text="Yes") == Labelled("Yes", 1, HERE)
    assert parse("imdb", member="train/neg/1_2.txt", text="No") == Labelled("No", 0, HERE)
    assert isinstance(parse("imdb", member="train/unsup/1_0.txt", text="?"), Rejected)
    with pytest.raises(DataError, match="'label' is 'positive'; expected 0 or 1"):
        parse("sst2", sentence="x", label="positive")


@pytest.mark.parametrize("adapter", sorted(ADAPTERS))
def test_a_row_of_another_kind_is_named_by_place_and_field(adapter):
    with pytest.raises(DataError, match=r"file\.json:7: no field '\w+'; the row has 'other'"):
        parse(adapter, other=1)


def test_fields_of_a_wrong_type_and_half_surrogates_are_errors():
    with pytest.raises(DataError, match="field 'output' is a int; expected text"):
        parse("alpaca", instruction="Add.", input="", output=3)
    with pytest.raises(DataError, match="half a surrogate pair at character 2"):
        parse("alpaca", instruction="A\ud83d", input="", output="3")


def test_all_hh_pairs_are_accounted_for_and_write_back_to_the_released_text(data_root):
    folder = "preferences/hh-rlhf"
    loaded = load_source(f"hh:{folder}/*/test.jsonl.gz", data_root)
    reasons = [reason for _, reason in loaded.rejected]
    assert reasons.count("both replies are identical") == 34
    assert reasons.count("the dialogues differ before the last assistant turn") == 17
    assert len(loaded.records) + len(loaded.rejected) == 7415
    assert len(loaded.rejected) == 34 + 17

    paths = data_root.glob(f"{folder}/*/test.jsonl.gz")
    rows = {place: row for path in paths for place, row in read_jsonl(path)}
    hh = TEMPLATES["hh"]
    for record in loaded.records:
        assert isinstance(record, Comparison)
        row = rows[str(data_root / record.prompt.provenance.place)]
        assert hh.prompt(record.prompt) + hh.reply(record.chosen) == row["chosen"]
        assert hh.prompt(record.prompt) + hh.reply(record.rejected) == row["rejected"]


@pytest.mark.parametrize(
    ("source", "rows"),
    [
        ("alpaca:instructions/alpaca-en/*.json.gz", 42_148),
        ("sst2:rl/sst2/train.tsv.gz", 60_614),
        ("unpaired_messages:preferences/llamafactory/kto_en_demo.json.gz", 300),
        ("imdb:rl/imdb/*.tar.gz", 3_001),  # and the archive's README, which is no review
    ],
)
def test_every_row_of_a_real_set_is_loaded_or_rejected(data_root, source, rows):
    loaded = load_source(source, data_root)
    assert len(loaded.records) + len(loaded.rejected) == rows


def test_real_labels_are_balanced_as_stated(data_root):
    reviews = load_source("imdb:rl/imdb/*.tar.gz", data_root)
    assert len(reviews.records) == 3000
    assert sum(review.label for review in reviews.records if isinstance(review, Labelled)) == 1500
    assert [reason for _, reason in reviews.rejected] == ["in folder 'aclImdb', not in pos or neg"]


def test_an_unpaired_row_is_a_reply_that_was_wanted_or_not():
    wanted = parse("unpaired", prompt="The sky is", completion=" blue.", label=True)
    assert isinstance(wanted, LabelledReply)
    assert (wanted.prompt.turns, wanted.reply, wanted.desirable) == ((Turn("user", "The sky is"),), " blue.", True)
    assert wanted.prompt.provenance == HERE
    assert parse("unpaired", prompt="Q", completion="a", label=False).desirable is False
    assert parse("unpaired", prompt="Q", completion=" ", label=True) == Rejected("file.json:7", "the reply is empty")
    with pytest.raises(DataError, match="'label' is a int; expected true or false"):
        parse("unpaired", prompt="Q", completion="a", label=1)
    messages = [{"role": "user", "content": "Q"}]
    assert parse("unpaired", prompt=messages, completion="a", label=True).prompt.turns == (Turn("user", "Q"),)


def test_of_a_rated_dialogue_the_last_turn_is_the_reply():
    said = [("system", "S"), ("user", "Q"), ("assistant", "a"), ("user", "R"), ("assistant", "b")]
    messages = [{"role": role, "content": text} for role, text in said]
    found = parse("unpaired_messages", messages=messages, label=False)
    assert isinstance(found, LabelledReply)
    assert found.prompt.turns == tuple(Turn(role, text) for role, text in said[:-1])
    assert (found.reply, found.desirable) == ("b", False)
    reasons = [parse("unpaired_messages", messages=cut, label=True).reason for cut in (messages[:-1], messages[-1:])]
    assert "does not end with a reply of the assistant" in reasons[0]
    assert "do not alternate" in reasons[1]
    with pytest.raises(DataError, match="'role' is 'critic'; expected one of assistant, bot"):
        parse("unpaired_messages", messages=[{"role": "critic", "content": "Q"}], label=True)
    with pytest.raises(DataError, match="a message is a str; expected an object with 'role' and 'content'"):
        parse("unpaired_messages", messages=["Q"], label=True)
    with pytest.raises(DataError, match="'messages' is a str; expected an array of messages"):
        parse("unpaired_messages", messages="Q", label=True)


PET = {"subreddit": "pets", "title": "My cat", "post": " It sleeps.\n"}
PET_TURNS = (Turn("system", "SUBREDDIT: r/pets\n\nTITLE: My cat"), Turn("user", "It sleeps."))


@pytest.mark.parametrize(("post", "summary"), [("post", "summary"), ("instruction", "gold_response")])
def test_a_post_and_its_summary_whatever_the_fields_are_called(post, summary):
    row = {"subreddit": "pets", "title": "My cat", post: " It sleeps.\n", summary: " Cat sleeps."}
    record = parse("tldr", **row)
    assert isinstance(record, Demonstration)
    assert (record.prompt.turns, record.reply) == (PET_TURNS, "Cat sleeps.")
    written = TEMPLATES["tldr"].prompt(record.prompt) + TEMPLATES["tldr"].reply(record.reply)
    assert written == "SUBREDDIT: r/pets\n\nTITLE: My cat\n\nPOST: It sleeps.\n\nTL;DR: Cat sleeps."


def test_posts_without_text_are_rejected_and_without_a_field_refused():
    assert parse("tldr", **PET | {"summary": " "}) == Rejected("file.json:7", "the post or its summary is empty")
    with pytest.raises(DataError, match=r"file.json:7: no field 'summary'"):
        parse("tldr", **PET)


@pytest.mark.parametrize("choice", [0, 1])
def test_compared_summaries_keep_the_direction_of_the_choice(choice):
    pair = parse("tldr_comparisons", info=PET, summaries=[{"text": " a"}, {"text": " b"}], choice=choice)
    assert isinstance(pair, Comparison)
    assert (pair.prompt.turns, pair.chosen, pair.rejected) == (PET_TURNS, "ab"[choice], "ba"[choice])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"summaries": [{"text": "a"}]}, r"'summaries' is not two objects"),
        ({"summaries": ["a", "b"]}, r"'summaries' is not two objects"),
        ({"choice": 2}, r"field 'choice' is 2; expected 0 or 1"),
        ({"info": "x"}, r"field 'info' is a str"),
    ],
)
def test_a_broken_comparison_of_summaries_is_refused_with_its_place(change, reason):
    row = {"info": PET, "summaries": [{"text": "a"}, {"text": "b"}], "choice": 0} | change
    with pytest.raises(DataError, match=rf"file.json:7: .*{reason}"):
        parse("tldr_comparisons", **row)


def test_comparisons_of_articles_and_of_equal_summaries_are_rejected():
    article = {"info": {"article": "x", "post": None}, "summaries": [{"text": "a"}, {"text": "b"}], "choice": 0}
    assert parse("tldr_comparisons", **article) == Rejected("file.json:7", "of an article, not of a post")
    equal = {"info": PET, "summaries": [{"text": "a"}, {"text": "a "}], "choice": 0}
    assert parse("tldr_comparisons", **equal) == Rejected("file.json:7", "both replies are identical")


def test_the_published_posts_have_their_form(data_root):
    loaded = load_source("tldr:rl/tldr/test.json.gz", data_root)
    assert len(loaded.records) + len(loaded.rejected) == 500
    assert len(loaded.records) > 490
    for record in loaded.records:
        text = TEMPLATES["tldr"].prompt(record.prompt)
        assert text.startswith("SUBREDDIT: r/")
        assert text.endswith("\n\nTL;DR:")


def test_texts_with_a_class():
    assert parse("classified", text="which one?", label="ask").label == "ask"
    found = parse("cvalues", id_=1, prompt="二氧化碳有害吗？", domain_en="law", domain_zh="法律")
    assert (found.text, found.label) == ("二氧化碳有害吗？", "law")
    with pytest.raises(DataError, match="field 'label' is a int; expected text"):
        parse("classified", text="which one?", label=3)
