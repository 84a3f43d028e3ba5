"""An OpenAI-compatible chat endpoint: vLLM, llama.cpp, Ollama, a hosted one. One question, one reply.

    endpoint = Endpoint("http://localhost:8000", model="NAME")
    reply = endpoint.chat([{"role": "user", "content": "Hello"}])     # Reply(words, is_cut_off)

Servers differ in how they refuse, fail and think; what is read here was seen of them (docs/judge.md). Needs
only the standard library, and judge.py for reading the key's file.
"""

import html
import http.client
import json
import os
import re
import selectors
import sys
import time
import urllib.parse
import urllib.request
from typing import NamedTuple

from judge import read_file

ADDRESS = re.compile(r"""
    https?://
    (?: [\w.-]+ | \[[\da-f:.]+\] )      # "localhost", "127.0.0.1", "[::1]"; no "user:password@"
    (?: :[1-6]?\d{1,4} )?               # ":8000"
    (?: /[^?#@\s]* )?                   # "/v1/chat/completions"
    """, re.VERBOSE)
USER_AGENT = "SpeciaRL/1.0"  # some edges turn urllib's own away
LONGEST_REPLY = 1_000_000  # bytes
LONGEST_WAIT = 30  # seconds before a retry, whatever the server asks for
REASON = 200  # characters

# A refusal of a field, and of the temperature: "Unsupported value: 'temperature' does not support 0".
UNSUPPORTED = re.compile(r"unsupported|not support|deprecated", re.IGNORECASE)
TEMPERATURE = re.compile(r"['\"`]temperature['\"`]")


class Reply(NamedTuple):
    words: str
    is_cut_off: bool  # by the limit of tokens


class NoWords(OSError):
    """The model was asked and said nothing: it refuses, a filter stopped it, or it only thought."""


class ServerError(OSError):
    """A reply with another status than 200. said: the server's own words; wait: the seconds that it wants to
    be left alone."""

    def __init__(self, status: int, reason: str, said: str, wait: int):
        super().__init__(f"HTTP {status} {reason} {said}".strip())
        self.status = status
        self.said = said
        self.wait = wait


# ------------------------------------------------------------------------------------------------------------
# Where the server is, and the key


def chat_address(url: str) -> str:
    """The address that chats are posted to: "http://host" -> "http://host/v1/chat/completions". Raises
    ValueError for an address that is no http(s) URL or holds a password."""
    if not ADDRESS.fullmatch(url):
        raise ValueError("a server's address must be http(s)://host[:port][/path], no password in it")
    url = url.rstrip("/")
    if url.endswith("/chat/completions"):
        return url
    # A version in the address is kept, whichever it is.
    if not re.search(r"/v\d+$", url):
        url += "/v1"
    return url + "/chat/completions"


def read_key(key_file: str | None) -> str:
    """The server's key from a file or from JUDGE_API_KEY in the environment; "" where there is none."""
    if key_file:
        try:
            key = read_file(key_file).decode().strip()
        except OSError as error:
            # The name is not repeated: by mistake it may be the key itself.
            why = error.strerror or "no plain file"
            raise OSError(f"{why}: --judge-key-file, or key= in a judge's name, must name a file that holds "
                          "the key") from None
    else:
        key = os.environ.get("JUDGE_API_KEY", "").strip()
    is_missing = bool(key_file) and not key
    # Others would tear the key apart in an error message, where it could then not be found and hidden.
    if is_missing or re.search(r"[^!-~]|[\\'\"]", key):
        raise ValueError("the judge's key must be one word of ASCII characters without quotes")
    return key


class PatientConnection(http.client.HTTPConnection):
    """Waits for a reply's first byte as long as `wait(socket)` does, not by the socket's own time limit."""

    def __init__(self, *args, wait, **kwargs):
        super().__init__(*args, **kwargs)
        self.wait = wait

    def getresponse(self):
        self.wait(self.sock)
        start = time.monotonic()
        response = super().getresponse()
        # Headers that drip reset the socket's own clock, but not this one.
        if time.monotonic() - start > self.timeout:
            raise TimeoutError("the reply did not end in time")
        return response


class PatientHandler(urllib.request.HTTPHandler):
    """What urllib needs to open such connections."""

    def __init__(self, wait):
        super().__init__()
        self.wait = wait

    def http_open(self, request):
        return self.do_open(PatientConnection, request, wait=self.wait)


def make_opener(wait) -> urllib.request.OpenerDirector:
    """http, https and proxies; no redirects, which would take the key along."""
    opener = urllib.request.OpenerDirector()
    opener.add_handler(urllib.request.ProxyHandler())
    opener.add_handler(PatientHandler(wait))
    opener.add_handler(urllib.request.HTTPSHandler())
    return opener


# ------------------------------------------------------------------------------------------------------------
# What a reply says

TITLE = re.compile(r"<title>(.{0,300}?)</title>", re.IGNORECASE | re.DOTALL)

# Why a reply ended, in lower case. Any other reason is a failure: "content_filter", "abort", "error", ...
DONE = ("", "stop", "eos", "eos_token", "stop_sequence", "end_turn")
CUT_OFF = ("length", "max_tokens", "model_length")


def error_words(error) -> str | None:
    """What an error says; None where there is none."""
    if isinstance(error, dict):
        error = error.get("message") or json.dumps(error)
    return str(error) if error else None


def complaint_in(reply) -> str | None:
    """The server's own words on what went wrong, wherever servers put them; None where nothing did.

    {"error": {"message": "..."}} (OpenAI, llama.cpp), {"error": "..."} (Ollama), {"object": "error",
    "message": "..."} (older vLLM), {"detail": "..."} (FastAPI), {"errors": [...]} (Cloudflare)."""
    if not isinstance(reply, dict):
        return None
    complaint = error_words(reply.get("error") or reply.get("detail"))
    if complaint is None and "choices" not in reply:
        complaint = error_words(reply.get("message") or reply.get("errors"))
    return complaint


def servers_words(reply: bytes) -> str:
    """What a reply with a bad status says: its complaint, the title of a page, or all of it."""
    text = reply.decode(errors="replace")
    title = TITLE.search(text)
    if title:
        return title[1].strip()
    try:
        return complaint_in(json.loads(text)) or text
    except (ValueError, RecursionError):
        return text


def seconds_to_wait(headers) -> int:
    retry_after = headers.get("Retry-After", "")
    is_number = re.fullmatch(r"[0-9]{1,6}", retry_after)  # it may be a date, which is not read
    return min(int(retry_after), LONGEST_WAIT) if is_number else 0


def read_reply(reply) -> Reply:
    """A chat completion's words, without the thoughts that some servers put in fields of their own.

    Raises OSError with the server's words where it complains under status 200, NoWords where the model said
    nothing, and any exception where `reply` is no chat completion."""
    complaint = complaint_in(reply)
    if complaint:
        raise OSError(complaint)
    choice = reply["choices"][0]
    complaint = error_words(choice.get("error"))
    if complaint:
        raise OSError(complaint)

    message = choice["message"]
    if message.get("refusal"):
        raise NoWords(f"the model refuses: {message['refusal']}")
    reason = (choice.get("finish_reason") or "").lower()
    is_cut_off = reason in CUT_OFF
    if reason == "content_filter":
        raise NoWords("the server stopped the reply: content_filter")
    if reason not in DONE and not is_cut_off:
        raise OSError(f"the server stopped the reply: {reason}")

    # Some servers reply in parts, of which thoughts are no reply.
    words = message.get("content")
    if isinstance(words, list):
        words = " ".join(part["text"] for part in words if part["type"] == "text")
    thoughts = message.get("reasoning_content") or message.get("reasoning") or message.get("thinking")
    if thoughts and not words and not is_cut_off:
        raise NoWords("the reply holds thoughts and nothing else")
    return Reply("" if words is None else str(words), is_cut_off)


# ------------------------------------------------------------------------------------------------------------


class Endpoint:
    """A model behind a server, asked greedily where it takes a temperature. A reply has `tokens` tokens, the
    model's thoughts among them, and about `timeout` seconds. These don't run while the server answers others:
    it may serve one request after the other, and the work on one that is given up would be lost. (Over https
    they always run.) Raises ValueError for an address that won't do.

    A server that refuses max_tokens for max_completion_tokens, or a temperature, is asked so from then on."""

    def __init__(self, url: str, model: str, key: str = "", timeout: float = 30.0, tokens: int = 1024):
        self.url = chat_address(url)
        self.model = model
        self.timeout = timeout
        self.tokens = tokens
        self.headers = {"Content-Type": "application/json", "User-Agent": USER_AGENT}
        if key:
            self.headers["Authorization"] = f"Bearer {key}"
        self.opener = make_opener(self.wait_for_byte)
        self.last_reply = 0.0  # when somebody was answered, in time.monotonic()'s seconds
        self.limit = "max_tokens"
        self.sampling = {"temperature": 0}

    def chat(self, turns: list[dict], constraint: dict | None = None) -> Reply:
        """The reply to a conversation. constraint: further fields of the request. Raises ServerError for
        another status than 200, and OSError for any other failure."""
        body = {"model": self.model, "messages": turns, self.limit: self.tokens}
        body |= self.sampling | (constraint or {})
        try:
            reply = self.post(body)
        except ServerError as error:
            if error.status in (400, 422) and self.adapts_to(error.said, body):
                return self.chat(turns, constraint)
            raise
        try:
            return read_reply(json.loads(reply))
        except OSError:
            raise
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            raise OSError(f"the reply is no chat completion: {why}") from None

    def adapts_to(self, said: str, body: dict) -> bool:
        """Whether a refusal of this request is about a field that can be changed. It is, from now on."""
        if not UNSUPPORTED.search(said):
            return False
        if "max_completion_tokens" in said and "max_tokens" in body:
            self.limit = "max_completion_tokens"
            return True
        if TEMPERATURE.search(said) and "temperature" in body:
            if self.sampling:  # or another thread has learnt the same
                print(f"{self.model} takes no temperature 0: its replies are sampled", file=sys.stderr)
            self.sampling = {}
            return True
        return False

    def post(self, body: dict) -> bytes:
        """A reply's bytes. Raises ServerError for another status than 200, TimeoutError where the reply
        doesn't end in time, OSError where it breaks off or doesn't end at all."""
        request = urllib.request.Request(self.url, json.dumps(body).encode(), self.headers)
        reply = b""
        try:
            with self.opener.open(request, timeout=self.timeout) as response:
                end = time.monotonic() + self.timeout
                while chunk := response.read1(65536):
                    reply += chunk
                    # Bytes that drip reset the socket's own clock, but not this one.
                    if time.monotonic() > end:
                        raise TimeoutError("the reply did not end in time")
                    if len(reply) > LONGEST_REPLY:
                        raise OSError(f"the reply is longer than {LONGEST_REPLY:,} bytes")
        except (http.client.HTTPException, ValueError) as error:  # breaks off; a host that is none
            raise OSError(f"{type(error).__name__}: {error}") from None
        if response.status != 200:
            wait = seconds_to_wait(response.headers)
            raise ServerError(response.status, response.reason, servers_words(reply), wait)
        self.last_reply = time.monotonic()
        return reply

    def wait_for_byte(self, connection) -> None:
        """Until a reply's first byte is there. Raises TimeoutError where nobody was answered for too long."""
        sent = time.monotonic()
        with selectors.DefaultSelector() as selector:
            selector.register(connection, selectors.EVENT_READ)
            while True:
                left = max(sent, self.last_reply) + self.timeout - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"no reply within {self.timeout:g} s")
                if selector.select(left):
                    return

    def one_line(self, error: OSError) -> str:
        """What an error says, in one line, cut only after the key is out of it: a server may echo its
        request, escaped or not."""
        why = str(error)
        secret = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if secret and secret in unescaped(why):
            why = unescaped(why).replace(secret, "***")
        return " ".join(why.split())[:REASON]


def unescaped(text: str) -> str:
    """JSON's, HTML's and addresses' escapes undone, nested ones too."""
    for _ in range(2):
        text = re.sub(r"\\u([0-9a-fA-F]{4})", lambda match: chr(int(match[1], 16)), text)
        text = urllib.parse.unquote(html.unescape(text.replace("\\", "")))
    return text
