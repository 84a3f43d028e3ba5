"""Chat servers on loopback in the shapes of real ones: what they honour, ignore and refuse, how they think,
fail and say so. A model of words stands behind them; a word is a token.

    with StandIn(llama_cpp, thinks=True) as server:
        ServerJudge(server.url, "m")(pairs)
"""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from judge import BY_LABEL
from judges.server import OTHER_WORD

THOUGHTS = "is it generic or is it wrong ? the label is narrower , so less specific ; no"


class Refused(Exception):
    """(status, what the server writes)"""


class StandIn(ThreadingHTTPServer):
    """shape(server, body) -> the reply to a request, or raises Refused.
    thinks: the model thinks first. one_slot: requests are served one after the other, `seconds` each.
    edge: what stands before the server, edge(headers), may raise Refused. fails: a reply to every pair."""
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, shape, thinks=False, one_slot=False, seconds=0.0, edge=None, fails=None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.shape = shape
        self.thinks = thinks
        self.one_slot = one_slot
        self.seconds = seconds
        self.edge = edge
        self.fails = fails
        self.slot = threading.Lock()
        self.bodies = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *args):
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address):
        pass  # a client that gave up

    def write(self, body, held_to=None, room=None) -> tuple[str, str, str]:
        """(thoughts, words, why it ended): what the model writes within `room` tokens. It knows the verdict:
        the truth is "label VERDICT". held_to: "choice", "json" or nothing."""
        verdict = "specific"
        words = "hello"
        if body["messages"] != OTHER_WORD:
            asked = body["messages"][-1]["content"].rsplit("True label: ", 1)[1]
            verdict = asked.split("\n")[0].removeprefix("label ")
            words = f"It is {verdict}."
        if held_to == "choice":
            words = verdict
        if held_to == "json":
            words = json.dumps({"category": verdict})
        thoughts = THOUGHTS if self.thinks else ""
        left = room - len(thoughts.split())
        if left < len(words.split()):
            return " ".join(thoughts.split()[:room]), " ".join(words.split()[:max(0, left)]), "length"
        return thoughts, words, "stop"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        server.bodies.append(body)
        status = 200
        try:
            if server.edge:
                server.edge(self.headers)
            if server.fails and body["messages"] != OTHER_WORD:
                said = server.fails
            elif server.one_slot:
                with server.slot:
                    time.sleep(server.seconds)
                    said = server.shape(server, body)
            else:
                said = server.shape(server, body)
        except Refused as refusal:
            status, said = refusal.args
        data = said.encode() if isinstance(said, str) else json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


# ---- shapes


def completion(message: dict, finish_reason: str, **more) -> dict:
    choice = {"index": 0, "message": {"role": "assistant"} | message, "finish_reason": finish_reason}
    return {"id": "chatcmpl-1", "object": "chat.completion", "model": "m", "choices": [choice | more]}


def held_by_format(body) -> str | None:
    """"json" where response_format holds the reply to the six, nothing where there is none."""
    if "response_format" not in body:
        return None
    form = body["response_format"]
    schema = form["json_schema"]["schema"]
    assert form["type"] == "json_schema" and schema["properties"]["category"]["enum"] == list(BY_LABEL)
    assert form["json_schema"]["strict"]
    return "json"


def room_in(body, name="max_tokens") -> int:
    return body.get(name, 10 ** 6)


def vllm(server, body) -> dict:
    """Since 0.12: structured_outputs; knows guided_choice no more, and ignores what it doesn't know. Thoughts
    in `reasoning`, where it is served with a parser for them."""
    held_to = None
    if "structured_outputs" in body:
        assert body["structured_outputs"]["choice"] == list(BY_LABEL)
        held_to = "choice"
    else:
        held_to = held_by_format(body)
    thoughts, words, reason = server.write(body, held_to, room_in(body))
    message = {"content": words or None, "refusal": None, "reasoning": thoughts or None, "tool_calls": []}
    return completion(message, reason, logprobs=None, stop_reason=None)


def older_vllm(server, body) -> dict:
    """guided_choice; thoughts within the words, since it is served without a parser for them."""
    held_to = "choice" if "guided_choice" in body else None
    thoughts, words, reason = server.write(body, held_to, room_in(body))
    if thoughts:
        words = f"<think>\n{thoughts}" + (f"\n</think>\n\n{words}" if words else "")
    return completion({"content": words}, reason)


def llama_cpp(server, body) -> dict:
    """response_format; thoughts in reasoning_content."""
    thoughts, words, reason = server.write(body, held_by_format(body), room_in(body))
    message = {"content": words}
    if thoughts:
        message["reasoning_content"] = thoughts
    return completion(message, reason) | {"timings": {"predicted_n": 3}}


def llama_cpp_without_grammar(server, body) -> dict:
    """A build whose grammar fails: a 500 that is the constraint's fault."""
    if "response_format" in body:
        said = "Failed to initialize samplers: failed to parse grammar"
        raise Refused(500, {"error": {"code": 500, "message": said, "type": "server_error"}})
    return llama_cpp(server, body)


def ollama(server, body) -> dict:
    """response_format; thoughts in `reasoning`, and nothing else where they are cut off."""
    thoughts, words, reason = server.write(body, held_by_format(body), room_in(body))
    return completion({"content": words, "reasoning": thoughts}, reason)


def openai(server, body) -> dict:
    """Refuses each field that it doesn't know; a thinking model refuses max_tokens and temperatures, and
    keeps its thoughts to itself."""
    known = {"model", "messages", "max_tokens", "max_completion_tokens", "temperature", "response_format"}
    for name in body.keys() - known:
        refuse_parameter(f"Unrecognized request argument supplied: {name}", name)
    if server.thinks and "max_tokens" in body:
        refuse_parameter("Unsupported parameter: 'max_tokens' is not supported with this model. Use "
                         "'max_completion_tokens' instead.", "max_tokens")
    if server.thinks and body.get("temperature", 1) != 1:
        refuse_parameter("Unsupported value: 'temperature' does not support 0 with this model. Only the "
                         "default (1) value is supported.", "temperature")
    name = "max_completion_tokens" if server.thinks else "max_tokens"
    _, words, reason = server.write(body, held_by_format(body), room_in(body, name))
    return completion({"content": words, "refusal": None, "annotations": []}, reason)


def refuse_parameter(message: str, name: str) -> None:
    raise Refused(400, {"error": {"message": message, "type": "invalid_request_error", "param": name}})


def cloudflare(headers) -> None:
    """An edge that turns away programs that don't say who they are."""
    if headers.get("User-Agent", "").startswith("Python-urllib"):
        raise Refused(403, "error code: 1010")


def cloudflare_in_trouble(headers) -> None:
    title = "<title>api.example | 524: A timeout occurred</title>"
    page = f"<!DOCTYPE html>\n<html>\n<head>\n{title}\n<style>{'x' * 5000}</style></head><body></body></html>"
    raise Refused(524, page)
