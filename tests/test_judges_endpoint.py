"""A judge behind servers in the shapes of real ones: the matrix in docs/judge.md."""

import json

import pytest

from judge import parse_category
from judges.endpoint import Endpoint
from judges.server import CONSTRAINTS, OTHER_WORD, UNCONSTRAINED, Call, ServerJudge, is_held
from reward import Category
from stand_ins import (Refused, StandIn, cloudflare, cloudflare_in_trouble, completion, llama_cpp,
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
    usual = {"timeout": 20.0, "retries": 1, "workers": 4, "pause": 0.001}
    return ServerJudge(server.url, "m", **usual | settings)


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
        for body in server.bodies[before:]:
            assert body.keys() & CONSTRAINTS.keys() == {judge.constraint} - {UNCONSTRAINED}


def test_a_reply_that_is_cut_off_is_never_a_verdict(shape):
    """Not even where the thoughts so far name a category."""
    with StandIn(shape, thinks=True) as server:
        judge = judge_at(server, tokens=5)
        assert judge(PAIRS) == [None] * 6
        assert judge.last_error == "the reply was cut off after 5 tokens (--judge-tokens)"
        judge = judge_at(server, tokens=50)
        assert judge(PAIRS) == RIGHT


@pytest.mark.parametrize("reason, verdict", [
    (None, Category.WRONG), ("stop", Category.WRONG), ("STOP", Category.WRONG), ("eos_token", Category.WRONG),
    ("length", None), ("max_tokens", None), ("model_length", None), ("abort", None), ("tool_calls", None),
    ("content_filter", None), ("insufficient_system_resource", None), ("error", None)])
def test_a_reply_that_ended_in_any_other_way_than_by_itself_is_no_verdict(reason, verdict):
    """"It is wrong" may have gone on: "if one is strict, but ..."."""
    with StandIn(vllm, fails=completion({"content": "It is wrong"}, reason)) as server:
        judge = judge_at(server)
        assert judge(PAIRS[:1]) == [verdict]
        if verdict is None:
            assert "cut off" in judge.last_error or f"stopped the reply: {reason}" in judge.last_error


@pytest.mark.parametrize("shape", [llama_cpp, ollama], ids=lambda shape: shape.__name__)
def test_a_server_with_one_slot_is_asked_fewer_at_a_time_and_no_pair_is_lost(shape, capfd):
    pairs = [(truth, f"{answer} {n}") for n in range(4) for truth, answer in PAIRS]
    with StandIn(shape, one_slot=True, seconds=0.15) as server:
        # Sixteen would wait 2.4 s.
        judge = judge_at(server, workers=16, timeout=1.5)
        judge.constraint = SHAPES[shape]
        assert judge(pairs) == RIGHT * 4 and judge.last_error == ""
        assert len(server.bodies) == len(pairs)  # none was given up and sent again
        assert judge.workers < 16
        # After a call without a late reply, more again.
        fewer = judge.workers
        assert judge(PAIRS[:1]) == RIGHT[:1] and judge.workers == min(16, 2 * fewer)
    assert "fewer requests at a time from now on (--judge-workers)" in capfd.readouterr().err


def hiccup(server, body):
    """vLLM, which fails twice before it is well."""
    server.hiccups = getattr(server, "hiccups", 0) + 1
    if server.hiccups <= 2:
        raise Refused(500, {"error": {"message": "EngineCore died", "code": 500}})
    return vllm(server, body)


def test_a_hiccup_in_the_first_exchange_costs_no_constraint():
    with StandIn(hiccup) as server:
        judge = judge_at(server, retries=2)
        assert judge(PAIRS) == RIGHT and judge.constraint == "structured_outputs"
    with StandIn(hiccup) as server:  # one try fewer than hiccups
        judge = judge_at(server, retries=1)
        assert judge(PAIRS) == RIGHT and judge.constraint == "structured_outputs"


def test_a_late_first_exchange_takes_away_nothing_that_was_found_since():
    with StandIn(vllm) as server:
        judge = judge_at(server)
        call = Call(PAIRS, patience=60)
        # It comes to nothing, and meanwhile another call has found the constraint.
        judge.find_constraint = lambda call: setattr(judge, "constraint", "structured_outputs")
        judge.work(call)
        assert judge.constraint == "structured_outputs" and call.verdicts == RIGHT


@pytest.mark.parametrize("said", [
    'invalid: {"temperature": 0, "messages": []}', "the pair 'temperature gauge' was filtered",
    "'max_tokens' or 'max_completion_tokens' is too large: 1024"])
def test_a_refusal_about_something_else_changes_no_field(said):
    def refuses_once(server, body):
        if not server.fails and body["messages"] != OTHER_WORD:
            server.fails = vllm(server, body)
            raise Refused(400, {"error": {"message": said}})
        return vllm(server, body)

    with StandIn(refuses_once) as server:
        judge = judge_at(server, workers=1)
        judge(PAIRS)
        assert server.bodies[-1]["temperature"] == 0 and server.bodies[-1]["max_tokens"] == 1024


def test_a_thinking_model_that_refuses_the_old_fields_gets_the_new_ones_from_then_on(capfd):
    with StandIn(openai, thinks=True) as server:
        judge = judge_at(server)
        assert judge(PAIRS) == RIGHT
        assert capfd.readouterr().err == "m takes no temperature 0: its replies are sampled\n"
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
    ({"message": "Rate limit exceeded"}, "Rate limit exceeded"),
    ({"success": False, "errors": ["no such account"]}, "['no such account']"),
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


def test_an_endpoint_gives_also_what_was_cut_off():
    """A policy's answer is malformed then, which its reader finds out."""
    with StandIn(vllm) as server:
        reply = Endpoint(server.url, "m", tokens=1).chat([{"role": "user", "content": "True label: a b"}])
        assert reply == ("It", True)


def test_a_host_that_is_none_has_a_reason():
    judge = ServerJudge("http://a..b", "m", retries=0)
    assert judge(PAIRS) == [None] * 6 and "Unicode" in judge.last_error


@pytest.mark.parametrize("words, held", [
    ("wrong", True), (" more specific\n", True), ('{"category": "less specific"}', True),
    ("<think>\n\n</think>\n\nwrong", True), ("[THINK]no[/THINK]wrong", True), ("hello", False),
    ("Wrong.", False), ("", False),
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
    "Here's my thought process: generic? Here's my response:",
    "<|channel|>analysis<|message|>generic<|end|><|start|>assistant<|channel|>final<|message|>",
])
def test_thoughts_in_the_words_are_set_aside_and_open_ones_hold_no_verdict(thought):
    assert parse_category(thought + " wrong") is Category.WRONG
    opening = thought.lower().split("generic")[0]
    assert parse_category(opening + "generic") is None


@pytest.mark.parametrize("reply", [
    "<think>The label is generic. Here is my response: wrong. Hmm, let me reconsider",
    "<think>It may be generic <|channel|>final is wrong maybe"])
def test_no_family_ends_anothers_thought(reply):
    assert parse_category(reply) is None
