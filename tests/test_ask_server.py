"""examples/ask_server.py against a server of our own that sees the picture's colour and nothing else."""

import base64
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

import trees
from examples import ask_server
from judge import JUDGE_ERROR
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
        reply = {"choices": [{"message": {"content": SAYS[red]}, "finish_reason": self.server.finish_reason}]}
        if status != 200:
            reply = {"error": "no such model"}
        content = json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[:5] if self.server.short else content)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.bodies = []
    made.status = 200
    made.finish_reason = "stop"
    made.short = False  # whether a reply breaks off
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
    file = tmp_path / "answers.jsonl"
    whole = file.read_bytes()
    arguments_line, *records = [json.loads(line) for line in whole.splitlines()]
    assert arguments_line["arguments"]["model"] == "speciarl"
    assert [record.get("texts") for record in records] == [*[[text] for text in SAYS.values()], None]
    assert [record.get("categories") for record in records][2:] == [["malformed"], None]
    assert len(server.bodies) == 3 and server.bodies[0]["model"] == "speciarl"

    # A line that a kill tore is asked for again, and nothing else.
    assert ask_server.main(arguments) == summary
    assert len(server.bodies) == 3
    third = whole.splitlines(keepends=True)[2]
    file.write_bytes(whole[:whole.index(third) + len(third) // 2])
    assert ask_server.main(arguments) == summary
    assert len(server.bodies) == 5 and file.read_bytes() == whole


@pytest.mark.parametrize("change, message", [
    (["--model", "other"], "model was speciarl, now other"),
    (["--prompt", "specific"], "prompt was base, now specific"),
    (["--max-new-tokens", "9"], "max_new_tokens was 2048, now 9"), (["--workers", "0"], "--workers must be"),
    (["--limit", "2"], "limit was None, now 2")])
def test_another_command_at_the_same_file_ends_in_one_line(arguments, tmp_path, change, message):
    ask_server.main(arguments)
    file = tmp_path / "answers.jsonl"
    whole = file.read_bytes()
    with pytest.raises(SystemExit) as stopped:
        ask_server.main(trees.with_options(arguments, *change))
    assert message in str(stopped.value) and "\n" not in str(stopped.value)
    assert file.read_bytes() == whole


@pytest.mark.parametrize("content", [b"my precious notes", b"{}\n", b"[1]\n", b"\xff\n"])
def test_somebody_elses_file_stays_as_it_is(arguments, tmp_path, content):
    file = tmp_path / "answers.jsonl"
    file.write_bytes(content)
    with pytest.raises(SystemExit) as stopped:
        ask_server.main(arguments)
    assert "\n" not in str(stopped.value) and file.read_bytes() == content


def test_a_judge_that_is_gone_keeps_nothing(arguments, tmp_path, monkeypatch):
    monkeypatch.setattr(ask_server, "judge_groups", lambda judge, truths, _: [[JUDGE_ERROR] for _ in truths])
    with pytest.raises(SystemExit, match="the judge failed on 3 of 3 answers") as stopped:
        ask_server.main(arguments)
    assert "\n" not in str(stopped.value) and not (tmp_path / "answers.jsonl").exists()


def test_a_reply_that_breaks_off_ends_in_one_line(server, arguments):
    server.short = True
    with pytest.raises(SystemExit, match="no answer from .*no chat completion") as stopped:
        ask_server.main(arguments)
    assert "\n" not in str(stopped.value)


def test_an_answer_that_is_cut_off_is_malformed_and_no_error(server, arguments):
    server.finish_reason = "length"
    summary = ask_server.main(arguments)
    assert (summary.n, summary.malformed) == (3, 1)


def test_a_server_that_fails_ends_in_one_line(server, arguments, tmp_path):
    server.status = 404
    with pytest.raises(SystemExit, match="HTTP 404 Not Found no such model") as stopped:
        ask_server.main(arguments)
    assert "\n" not in str(stopped.value)
    assert not (tmp_path / "answers.jsonl").exists()
