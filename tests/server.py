"""A small OpenAI-compatible chat server on loopback whose behaviour is scripted, a failure at a time."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from judges.server import OTHER_WORD


def message(content) -> bytes:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]}).encode()


# What a lying server replies, with status 200.
LIES = {
    "wrong json": b'{"choices": [{"mess', "no json": b"<html>busy</html>", "bytes": b"\xff\xfe\x00",
    "no choices": b'{"error": "busy"}', "empty choices": b'{"choices": []}', "a list": b"[]",
    "a number": b"7", "null": b"null", "deep": b"[" * 100_000, "no content": message(None),
    "unknown": message("excellent"),
    "two verdicts": message("specific or wrong"), "negated": message("not wrong"), "nothing": b"",
}
STATUS = {"500": 500, "429": 429, "401": 401, "403": 403, "404": 404, "400": 400, "422": 422}


class Server(ThreadingHTTPServer):
    """script(number of the request from 0, (truth, answer)) -> a behaviour: "right", a name in LIES or
    STATUS, "half", "half chunk", "silent", "drip", "redirect", "echo".
    verdict(truth, answer) -> the right category's label. Where `secret` is set, another key gets a 401.
    The judge's first exchange, kept in `probes` and in nothing else, finds that the server honours one field
    (`honours`, or none), unless `first` says another behaviour.
    """
    daemon_threads, allow_reuse_address, request_queue_size = True, True, 64
    block_on_close = False  # silent requests are not waited for

    def __init__(self, verdict=lambda truth, answer: "generic", port=0, secret=None, silence=2.0):
        super().__init__(("127.0.0.1", port), Handler)
        self.verdict, self.secret, self.silence, self.target = verdict, secret, silence, ""
        self.script, self.headers = lambda number, pair: "right", {}  # headers: of a bad status
        self.honours, self.first, self.probes = "structured_outputs", "right", []
        self.lock, self.requests = threading.Lock(), []  # dicts of path, headers, body, pair
        self.port = self.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def pairs(self) -> list:
        return [r["pair"] for r in self.requests]

    def always(self, behaviour: str) -> None:
        self.script = lambda number, pair: behaviour

    def close(self) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address):
        pass  # a client that gave up

    def __enter__(self):
        return self

    def __exit__(self, *args):
        self.close()


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        self.server.requests.append({"path": self.path, "headers": dict(self.headers), "body": None,
                                     "pair": None})
        self.reply(405, b"{}")

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        request = {"path": self.path, "headers": dict(self.headers), "body": body, "pair": None}
        if body["messages"] == OTHER_WORD:
            server.probes.append(request)
            how = server.first
            right = message("wrong" if server.honours in body else "hello")
        else:
            asked = body["messages"][-1]["content"].rsplit("True label: ", 1)[1]
            pair = tuple(asked.split("\nAnswer: "))
            request["pair"] = pair
            with server.lock:
                number = len(server.requests)
                server.requests.append(request)
            how = server.script(number, pair)
            right = message(server.verdict(*pair))
        key = self.headers.get("Authorization")
        if server.secret and key != f"Bearer {server.secret}":
            how = "401"
        if how == "right":
            self.reply(200 if self.path == "/v1/chat/completions" else 404, right)
        elif how == "echo":  # a proxy that shows what it was sent
            self.reply(200, message(str(key)))
        elif how in LIES:
            self.reply(200, LIES[how])
        elif how in STATUS:
            self.reply(STATUS[how], b'{"error": {"message": "no"}}', **server.headers)
        elif how == "redirect":
            self.reply(302, b"", Location=server.target + self.path)
        elif how == "half":
            self.reply(200, right[:len(right) // 2], **{"Content-Length": str(len(right))})
        elif how == "half chunk":
            self.reply(200, b"40\r\n" + right[:20], **{"Transfer-Encoding": "chunked"})
        elif how == "silent":
            time.sleep(server.silence)
        elif how == "drip":  # a byte at a time: each one in time, the whole never
            self.reply(200, b"", **{"Content-Length": str(200 + len(right))})
            for byte in b" " * 200 + right:
                self.wfile.write(bytes([byte]))
                time.sleep(server.silence / 100)
        else:
            raise AssertionError(how)

    def reply(self, status: int, data: bytes, **headers) -> None:
        self.send_response(status)
        headers = {"Content-Type": "application/json", "Connection": "close"} | headers
        if "Transfer-Encoding" not in headers:
            headers.setdefault("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)
        self.close_connection = True
