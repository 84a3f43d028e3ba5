"""examples/ask_server.py against a server of our own that sees the picture's colour and nothing else."""

import base64
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from examples import ask_server
from reward import Category

# The picture's first pixel -> what the server says of it.
SAYS = {10: "<answer> red finch </answer>", 20: "<answer> finch </answer>", 30: "red finch"}


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        picture, question = body["messages"][0]["content"]
        assert question["text"] == ask_server.PROMPTS["base"]
        png = base64.b64decode(picture["image_url"]["url"].removeprefix("data:image/png;base64,"))
        red = Image.open(io.BytesIO(png)).getpixel((0, 0))[0]
        status = self.server.status
        reply = {"choices": [{"message": {"content": SAYS[red]}}]}
        if status != 200:
            reply = {"error": "no such model"}
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(reply).encode())

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.bodies = []
    made.status = 200
    threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture
def arguments(server, tmp_path):
    """Three pictures of one bird, one that can't be read, and a tree."""
    lines = []
    for red in (10, 20, 30):
        Image.new("RGB", (28, 28), (red, 0, 0)).save(tmp_path / f"{red}.png")
        lines.append({"image": f"{red}.png", "label": "red finch", "split": "test"})
    (tmp_path / "broken.png").write_bytes(b"no picture")
    lines.append({"image": "broken.png", "label": "red finch", "split": "test"})
    (tmp_path / "own.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    (tmp_path / "tree.json").write_text(json.dumps({"parents": {"red finch": "finch", "finch": None}}))
    return ["--server", f"http://127.0.0.1:{server.server_address[1]}", "--model", "speciarl",
            "--data", str(tmp_path / "own.jsonl"), "--judge", str(tmp_path / "tree.json"),
            "--out", str(tmp_path / "answers.jsonl"), "--workers", "2"]


def test_answers_are_judged_and_the_same_command_asks_nothing_twice(server, arguments, tmp_path):
    summary = ask_server.main(arguments)
    assert summary.counts[Category.SPECIFIC] == 1
    assert (summary.n, summary.malformed, summary.unreadable) == (3, 1, 1)
    records = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [record["text"] for record in records] == [*SAYS.values(), None]
    assert [record.get("category") for record in records][2:] == ["malformed", None]
    assert len(server.bodies) == 3 and server.bodies[0]["model"] == "speciarl"

    # A line that a kill tore is asked for again, and nothing else.
    file = tmp_path / "answers.jsonl"
    whole = file.read_text()
    assert ask_server.main(arguments) == summary
    assert len(server.bodies) == 3
    file.write_text(whole[:whole.index("red finch", whole.index("\n"))])
    assert ask_server.main(arguments) == summary
    assert len(server.bodies) == 5 and file.read_text() == whole

    with pytest.raises(SystemExit, match="holds the answers of speciarl to 'base': give another --out"):
        ask_server.main(arguments + ["--model", "base"])


def test_a_server_that_fails_ends_in_one_line(server, arguments, tmp_path):
    server.status = 404
    with pytest.raises(SystemExit, match="answers 404: .*no such model") as stopped:
        ask_server.main(arguments)
    assert "\n" not in str(stopped.value)
    assert not (tmp_path / "answers.jsonl").exists()
