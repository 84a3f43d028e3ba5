"""A judge behind servers in the shapes of real ones: the matrix in docs/judge.md."""

import json

import pytest

from judge import parse_category
from judges.endpoint import Endpoint, chat_address
from judges.server import CONSTRAINTS, UNCONSTRAINED, ServerJudge, is_held
from reward import Category
from stand_ins import (StandIn, cloudflare, cloudflare_in_trouble, completion, llama_cpp,
                       llama_cpp_without_grammar, older_vllm, ollama, openai, vllm)

# A true label says which verdict is right.
PAIRS = [(f"label {category.label}", f"answer {number}") for number, category in enumerate(Category)]
RIGHT = list(Category)
# What each server honours.
SHAPES = {vllm: "structured_outputs", older_vllm: "guided_choice", llama_cpp: "response_format",
          ollama: "response_format", openai: "response_format", llama_cpp_without_grammar: UNCONSTRAINED}


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    monkeypatch.delenv("JUDGE_API_KEY", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def judge_at(server, **settings) -> ServerJudge:
    return ServerJudge(server.url, "m", **{"timeout": 20.0, "retries": 1, "workers": 4, "pause": 0.001} | settings)


@pytest.fixture(params=SHAPES, ids=lambda shape: shape.__name__)
def shape(request):
    return request.param


@pytest.mark.parametrize("thinks", [False, True])
def test_verdicts_are_right_under_the_constraint_that_is_honoured(shape, thinks):
    with StandIn(shape, thinks) as server:
        judge = judge_at(server)
        assert judge(PAIRS) == RIGHT and judge.last_error == ""
        assert judge.constraint == SHAPES[shape]
        # One exchange for each that is ignored or refused, then nothing but pairs.
        before = len(server.bodies)
        assert judge([(truth, answer + "!") for truth, answer in PAIRS]) == RIGHT
        assert len(server.bodies) == before + len(PAIRS)
        fields = CONSTRAINTS.get(judge.constraint, {}).keys()
        unwanted = {name for constraint in CONSTRAINTS.values() for name in constraint} - fields
        for body in server.bodies[before:]:
            assert fields <= body.keys() and not unwanted & body.keys()


def test_a_reply_that_is_cut_off_is_never_a_verdict(shape):
    """Not even where the thoughts so far name a category."""
    with StandIn(shape, thinks=True) as server:
        judge = judge_at(server, tokens=5)
        assert judge(PAIRS) == [None] * 6
        assert judge.last_error == "the reply was cut off after 5 tokens (--judge-tokens)"
        judge = judge_at(server, tokens=50)
        assert judge(PAIRS) == RIGHT


def test_cut_off_in_the_middle_of_a_verdict():
    """"less" of "less specific", and a sentence whose verdict would have been taken back."""
    def cut(server, body):
        return completion({"content": "It is wrong"}, "length")
    with StandIn(cut) as server:
        judge = judge_at(server)
        assert judge(PAIRS[:1]) == [None] and "cut off" in judge.last_error


@pytest.mark.parametrize("shape", [llama_cpp, ollama, vllm], ids=lambda shape: shape.__name__)
def test_a_server_with_one_slot_is_asked_fewer_at_a_time_and_no_pair_is_lost(shape, capfd):
    pairs = [(truth, f"{answer} {n}") for n in range(5) for truth, answer in PAIRS]
    with StandIn(shape, one_slot=True, seconds=0.05) as server:
        # Sixteen would wait .8 s.
        judge = judge_at(server, workers=16, timeout=0.4, retries=0)
        judge.constraint = SHAPES[shape]
        assert judge(pairs) == RIGHT * 5 and judge.last_error == ""
        assert judge.workers < 16
        assert len(server.bodies) == len(pairs)  # none was given up and sent again
    said = capfd.readouterr().err
    assert f"{judge.workers} requests at a time from now on (--judge-workers)" in said


def test_a_thinking_model_that_refuses_the_old_fields_gets_the_new_ones_from_then_on():
    with StandIn(openai, thinks=True) as server:
        judge = judge_at(server)
        assert judge(PAIRS) == RIGHT
        last = server.bodies[-1]
        assert last["max_completion_tokens"] == 1024 and not {"max_tokens", "temperature"} & last.keys()
        refused = [body for body in server.bodies if {"max_tokens", "temperature"} & body.keys()]
        assert all("category" not in json.dumps(body["messages"]) for body in refused)  # none about a pair


FILTERED = completion({"content": None}, "content_filter")
REFUSED = completion({"content": None, "refusal": "I can't help with that."}, "stop")
IN_A_CHOICE = completion({"content": ""}, "error", error={"code": 502, "message": "Provider returned error"})
THOUGHTS_ALONE = completion({"content": "", "reasoning": "Generic? Or wrong."}, "stop")


@pytest.mark.parametrize("reply, words", [
    ({"error": {"message": "model is overloaded", "code": 503}}, "model is overloaded"),
    ({"error": "model 'm' not found, try pulling it first"}, "model 'm' not found, try pulling it first"),
    ({"object": "error", "message": "too long", "code": 400}, "too long"),
    ({"detail": "busy"}, "busy"),
    ({"error": {"code": 7}}, '{"code": 7}'),
    (IN_A_CHOICE, "Provider returned error"),
    (REFUSED, "the model refuses: I can't help with that."),
    (FILTERED, "the server stopped the reply: content_filter"),
    (THOUGHTS_ALONE, "the reply holds thoughts and nothing else"),
    ({"error": None} | completion({"content": "wrong"}, "stop"), None),
])
def test_what_the_server_says_under_status_200_is_the_reason(reply, words):
    with StandIn(vllm, fails=reply) as server:
        judge = judge_at(server)
        verdict = [Category.WRONG] if words is None else [None]
        assert judge(PAIRS[:1]) == verdict and judge.last_error == (words or "")


def test_an_edge_that_wants_a_name_gets_ours():
    with StandIn(vllm, edge=cloudflare) as server:
        assert judge_at(server)(PAIRS) == RIGHT


def test_of_an_error_page_the_title_is_the_reason():
    with StandIn(vllm, edge=cloudflare_in_trouble) as server:
        judge = judge_at(server)
        assert judge(PAIRS) == [None] * 6
        assert judge.last_error.startswith("HTTP 524 ")
        assert judge.last_error.endswith("api.example | 524: A timeout occurred")


def test_a_server_that_is_gone_at_the_first_exchange_leaves_nothing_found_out():
    with StandIn(vllm, edge=cloudflare_in_trouble) as server:
        judge = judge_at(server)
        assert judge(PAIRS) == [None] * 6 and judge.constraint is None
        server.edge = None
        assert judge(PAIRS) == RIGHT and judge.constraint == "structured_outputs"


def test_the_whole_length_of_a_cut_answer_is_an_endpoints_to_give():
    """A policy's answer that was cut off is malformed, which its reader finds out."""
    with StandIn(vllm) as server:
        reply = Endpoint(server.url, "m", tokens=1).chat([{"role": "user", "content": "True label: a b"}])
        assert reply == ("It", True)
        assert Endpoint(chat_address(server.url), "m").url == chat_address(server.url)


@pytest.mark.parametrize("words, held", [
    ("wrong", True), (" more specific\n", True), ('{"category": "less specific"}', True),
    ("<think>\n\n</think>\n\nwrong", True), ("hello", False), ("Wrong.", False), ("", False),
    ('{"category": "hello"}', False), ('{"category": "wrong"', False), ('"wrong"', False), ("[]", False),
    ("<think> wrong", False), ('{"category": ["wrong"]}', False),
])
def test_only_a_category_alone_shows_that_the_constraint_holds(words, held):
    assert is_held(words) is held


@pytest.mark.parametrize("thought", [
    "<think>generic?</think>", "<thinking>it may be generic</thinking>", "[THINK]generic[/THINK]",
    "<mm:think>generic</mm:think>", "<|START_THINKING|>generic<|END_THINKING|>",
    "<|begin_of_thought|>generic<|end_of_thought|>", "<|channel>thought\ngeneric<channel|>",
    "<unused94>thought\ngeneric<unused95>", "<reasoning>generic</reasoning>",
    "Here is my thought process: generic? Here is my response:",
    "<|channel|>analysis<|message|>generic<|end|><|start|>assistant<|channel|>final<|message|>",
])
def test_thoughts_in_the_words_are_set_aside_and_open_ones_hold_no_verdict(thought):
    assert parse_category(thought + " wrong") is Category.WRONG
    opening = thought.lower().split("generic")[0]
    assert parse_category(opening + "generic") is None
