"""Instructions from instructions: what is asked, what is kept, and a model behind an address."""

import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rlhf_jax.data.__main__ import main
from rlhf_jax.data.generate import Bootstrap, generate, read_instance, read_list
from rlhf_jax.data.schema import provenance_of
from rlhf_jax.data.sources import load_source
from rlhf_jax.endpoint import Endpoint

THINGS = {"sun": "light", "moon": "face", "sea": "waves", "cat": "tail", "dog": "nose", "tree": "leaves"}
SEEDS = [f"Write a short poem about the {thing} and its {part}." for thing, part in THINGS.items()]
TOPICS = (
    *("history of bread", "prices of houses in the north", "rules of chess for children"),
    *("ways to save water at home", "names of rivers in Asia"),
)


class Model:
    """A language model that proposes one topic after the other, one twice, and answers every task."""

    def __init__(self):
        self.asked = []
        self.topics = iter([t for t in TOPICS for _ in range(2)])

    def __call__(self, prompts):
        self.asked += prompts
        return [self.reply(prompt) for prompt in prompts]

    def reply(self, prompt):
        if not prompt.startswith("Come up"):
            return f"Output: an answer of {len(prompt)} letters"
        topic = next(self.topics, "nothing else at all")
        return f" Explain the {topic} to a friend.\n8. Draw a picture of a bird.\n9. Go.\n10. Summarise what is known of the {topic}."


def test_new_instructions_are_kept_and_old_ones_left_out_with_their_reasons():
    model = Model()
    made = generate(SEEDS, model, Bootstrap(count=6, at_once=2))
    assert len(made.records) == 6
    assert made.records[0].prompt.turns[0].text == "Explain the history of bread to a friend."
    assert made.records[0].reply.startswith("an answer of")
    where = made.records[0].prompt.provenance
    assert (where.method, where.source) == ("generated", "self-instruct")
    assert made.dropped["too short"] == made.dropped["about what a text cannot hold"]
    assert made.dropped["ROUGE-L above 0.7 with one that is there"] >= 4
    assert made.proposed == sum(made.dropped.values()) + 6
    assert max(made.novelty) <= 0.7
    assert f"6 records of {made.proposed} proposed instructions" in made.markdown()
    assert generate(SEEDS, Model(), Bootstrap(count=6, at_once=2)) == made


def test_six_seeds_and_two_generated_ones_are_shown():
    model = Model()
    generate(SEEDS, model, Bootstrap(count=4, at_once=1))
    first, *_, last = [prompt for prompt in model.asked if prompt.startswith("Come up")]
    assert [sum(seed in prompt for seed in SEEDS) for prompt in (first, last)] == [6, 6]
    assert first.endswith("\n7.") and last.endswith("\n9.")
    assert "up to number 16" in last


def test_a_stricter_likeness_keeps_less():
    loose, strict = (
        generate(SEEDS, Model(), Bootstrap(count=9, at_once=2, rounds=4, similarity=s)) for s in (0.9, 0.3)
    )
    assert len(strict.records) < len(loose.records)


def test_chinese_instructions_are_told_apart_by_characters():
    seeds = [
        "写一首关于春天的诗。",
        "把下面的句子翻译成英文。",
        "解释什么是光合作用。",
        "列出三种水果。",
        "给朋友写一封信。",
        "总结这篇文章。",
    ]
    said = ["写一首关于春天的诗歌。\n8. 比较两种编程语言的优缺点。\n9. 画一只猫的图片。", "Output: 好"]
    model = iter([said[:1], said[1:]])
    made = generate(seeds, lambda prompts: next(model), Bootstrap(count=1, at_once=1, rounds=1))
    assert [record.prompt.turns[0].text for record in made.records] == ["比较两种编程语言的优缺点。"]
    assert made.dropped == {"ROUGE-L above 0.7 with one that is there": 1, "about what a text cannot hold": 1}


def test_a_model_that_says_nothing_ends_with_the_rounds():
    made = generate(SEEDS, lambda prompts: [None] * len(prompts), Bootstrap(count=2, at_once=3, rounds=5))
    assert (made.records, made.prompts, made.dropped) == ((), 15, {"no reply of the model": 15})
    assert made.yielded == 0.0


@pytest.mark.parametrize(
    ("said", "found"),
    [
        (" One task.\n8. Another\n   one.\n9) A third.", ["One task.", "Another one.", "A third."]),
        ("Task 9: One.\nTask 10: Two.", ["One.", "Two."]),
        ("9、甲乙\n10．丙丁", ["甲乙", "丙丁"]),
        ("", []),
    ],
)
def test_lists_are_read_as_models_write_them(said, found):
    assert read_list(said) == found


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("Input: 1 and 2\nOutput: 3", ("1 and 2", "3")),
        ("Output: 3\nand more", ("", "3\nand more")),
        ("Input: <noinput>\nOutput: 3", ("", "3")),
        ("输入：一\n输出：二", ("一", "二")),
        ("Just this.", ("", "Just this.")),
        ("Input: and no more", ("", "")),
    ],
)
def test_instances_are_read_as_models_write_them(said, found):
    assert read_instance(said) == found


def test_settings_that_mean_nothing_are_refused():
    with pytest.raises(ValueError, match="3 seed instructions; expected at least the 6"):
        generate(SEEDS[:3], Model(), Bootstrap(count=1))
    with pytest.raises(ValueError, match="count is 0"):
        Bootstrap(count=0)
    with pytest.raises(ValueError, match=r"similarity is 1\.5"):
        Bootstrap(count=1, similarity=1.5)


LATE = 5.0  # seconds


@pytest.fixture
def server():
    """A server of the chat protocol that fails in the ways of real ones: (its address, requests so far)."""
    asked, model = [], Model()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(body)
            said = body["messages"][0]["content"]
            if said == "late":
                time.sleep(LATE)
            status = {"unknown model": 404, "busy": 503}.get(said, 200)
            told = model.reply(said) if said.startswith(("Come up", "Do the")) else said.upper()
            choices = [{"index": 0, "message": {"role": "assistant", "content": told}}][: said != "nothing"]
            error = {"error": {"message": "no such model"}}
            answer = json.dumps({"choices": choices} if status == 200 else error).encode()
            with contextlib.suppress(ConnectionError):  # nobody waits for a late answer any more
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}/v1", asked
        running.shutdown()
        thread.join()


def test_an_endpoint_answers_in_order_and_says_where_it_does_not(server):
    url, asked = server
    endpoint = Endpoint(url, "tiny", temperature=0.5, max_tokens=7, retries=0)
    assert endpoint(["one", "nothing", "busy", "two"]) == ["ONE", None, None, "TWO"]
    assert {(body["model"], body["temperature"], body["max_tokens"]) for body in asked} == {("tiny", 0.5, 7)}
    with pytest.raises(ValueError, match=r"refused the request for 'tiny' \(404\).*no such model"):
        endpoint(["unknown model"])
    with pytest.raises(ValueError, match=r"no server answers at http://127\.0\.0\.1:9/v1"):
        Endpoint("http://127.0.0.1:9/v1", "tiny", retries=0)(["one"])


def test_an_answer_that_comes_too_late_is_asked_for_again_and_then_none(server):
    url, asked = server
    assert Endpoint(url, "tiny", timeout=LATE / 5, retries=1)(["late", "two"]) == [None, "TWO"]
    assert [body["messages"][0]["content"] for body in asked].count("late") == 2


def test_the_command_writes_records_and_the_report(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RLHF_JAX_DATA", str(tmp_path))
    rows = "".join(json.dumps({"instruction": seed, "output": "x"}) + "\n" for seed in SEEDS)
    (tmp_path / "seeds.jsonl").write_text(rows)
    how = ["generate", "alpaca:seeds.jsonl", "--url", server[0], "--model", "tiny", "--count", "4"]
    assert main([*how, "--out", str(tmp_path / "new.jsonl")]) == 0
    records = load_source("records:new.jsonl", tmp_path).records
    assert len(records) == 4
    assert {provenance_of(record).method for record in records} == {"generated"}
    assert {provenance_of(record).source for record in records} == {"self-instruct, by tiny, from alpaca:seeds.jsonl"}
    out, err = capsys.readouterr()
    assert "4 records of" in out and "ROUGE-L above 0.7" in out
    assert "4 of 4" in err
    assert main([*how, "--out", str(tmp_path / "new.jsonl")]) == 2
    assert "is there already" in capsys.readouterr().err
