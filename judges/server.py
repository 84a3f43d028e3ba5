"""A judge behind an OpenAI-compatible endpoint: vLLM, llama.cpp, Ollama, a hosted one.

    python judge.py --judge http://localhost:8000 --judge-model NAME --ask robin bird

Needs only the standard library, and tqdm for the line that says how long it waits.
"""

import json
import os
import re
import time
import urllib.request
from collections.abc import Sequence
from threading import Thread

from tqdm import tqdm

from judge import BY_LABEL, BaseJudge, Pair, chat, load_prompt, parse_category, read_file
from reward import Category

ADDRESS = re.compile(r"""
    https?://
    (?: [\w.-]+ | \[[\da-f:.]+\] )      # "localhost", "127.0.0.1", "[::1]"; no "user:password@"
    (?: :[1-6]?\d{1,4} )?               # ":8000"
    (?: /[^?#@\s]* )?                   # "/v1/chat/completions"
    """, re.VERBOSE)
LONGEST_REPLY = 1_000_000  # bytes
LONGEST_WAIT = 30  # seconds before a retry, whatever the server asks for
LONGEST_PATIENCE = 86_400  # seconds, a day
SAID_AFTER = 3  # seconds of waiting
REASON = 200  # characters


def endpoint(url: str) -> str:
    """The address that chats are posted to: "http://host" -> "http://host/v1/chat/completions". Raises
    ValueError for an address that is no http(s) URL or holds a password."""
    if not ADDRESS.fullmatch(url):
        raise ValueError("the judge's address must be http(s)://host[:port][/path], no password in it")
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
        key = read_file(key_file).decode().strip()
    else:
        key = os.environ.get("JUDGE_API_KEY", "").strip()
    is_missing = bool(key_file) and not key
    # Other characters would be escaped in an error message, where the key could then not be found and hidden.
    if is_missing or re.search(r"[^!-~]|[\\'\"]", key):
        raise ValueError("the judge's key must be one word of ASCII characters without quotes")
    return key


def make_opener() -> urllib.request.OpenerDirector:
    """http, https and proxies; no redirects, which would take the key along."""
    opener = urllib.request.OpenerDirector()
    opener.add_handler(urllib.request.ProxyHandler())
    opener.add_handler(urllib.request.HTTPHandler())
    opener.add_handler(urllib.request.HTTPSHandler())
    return opener


class BadStatus(OSError):
    """A reply with another status than 200; wait: the seconds that the server wants to be left alone."""

    def __init__(self, response, reply: bytes):
        super().__init__(f"HTTP {response.status} {response.reason} {reply.decode(errors='replace')}")
        self.wait = 0
        retry_after = response.headers.get("Retry-After", "")
        if retry_after.isdecimal():  # it may be a date, which is not read
            self.wait = min(int(retry_after), LONGEST_WAIT)


def verdict_in(reply: bytes) -> Category:
    """The verdict in a chat completion; raises OSError for words without one."""
    words = json.loads(reply)["choices"][0]["message"]["content"]
    # Some servers reply in parts, of which thoughts are no reply.
    if isinstance(words, list):
        words = " ".join(part["text"] for part in words if part["type"] == "text")
    verdict = parse_category(str(words))
    if verdict is None:
        raise OSError(f"no verdict in the reply {words!r}")
    return verdict


class Call:
    """Pairs that are asked about in one go, what has come of them, and how long they may take."""

    def __init__(self, pairs: Sequence[Pair], patience: float):
        self.pairs = pairs
        self.numbers = iter(range(len(pairs)))  # which threads share: each takes the next
        self.verdicts: list[Category | None] = [None] * len(pairs)
        self.ended = 0
        self.end = time.monotonic() + patience

    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()


class ServerJudge(BaseJudge):
    """A chat model behind an OpenAI-compatible endpoint, `workers` requests at a time.

    The key comes from key_file or from JUDGE_API_KEY in the environment and is kept nowhere else. The six
    categories are offered as a constrained choice (vLLM's fields). A reply has about `timeout` seconds and
    `retries` more tries after growing pauses (or the server's Retry-After, 30 s at most); then there is no
    verdict, and last_error says why. As many failures in a row as there are workers, or a refused key, end a
    call. Raises ValueError for an address that is no http(s) URL or holds a password."""

    def __init__(self, url: str, model: str, key_file: str | None = None, prompt: str = "detailed",
                 timeout: float = 30.0, retries: int = 2, workers: int = 16, pause: float = 0.5,
                 patience: float = 300.0):
        self.url = endpoint(url)
        if not model:
            raise ValueError("a judge behind a server needs the model's name there: --judge-model NAME")
        self.headers = {"Content-Type": "application/json"}
        secret = read_key(key_file)
        if secret:
            self.headers["Authorization"] = f"Bearer {secret}"
        self.model = model
        self.prompt = load_prompt(prompt)
        for seconds in (timeout, patience):
            if not 0 < seconds <= LONGEST_PATIENCE:
                raise ValueError("--judge-timeout and --judge-patience must be above 0, at most "
                                 f"{LONGEST_PATIENCE:,}, got {seconds}")
        self.timeout = timeout
        self.patience = patience
        self.retries = retries
        self.workers = workers
        self.pause = pause
        self.key = repr(["server", model, self.prompt])
        self.opener = make_opener()
        self.constrains = True  # until the server refuses a constrained choice
        self.failures_in_a_row = 0  # of pairs, not of tries

    def ask(self, pairs: Sequence[Pair]) -> list[Category | None]:
        self.failures_in_a_row = 0
        call = Call(pairs, self.patience)

        # Daemons: one that hangs in its request keeps neither this call nor the end of the program waiting.
        threads = []
        for _ in range(min(self.workers, len(pairs))):
            threads.append(Thread(target=self.work, args=(call,), daemon=True))
        for thread in threads:
            thread.start()
        self.wait_for(threads, call)
        return list(call.verdicts)  # what comes later comes too late

    def work(self, call: "Call") -> None:
        """Asks about one pair after the other, as long as there are any."""
        for number in call.numbers:
            call.verdicts[number] = self.ask_about(call.pairs[number], call)
            call.ended += 1

    def wait_for(self, threads: list[Thread], call: "Call") -> None:
        """Until all pairs have ended, but no longer than the call may take. A wait that is long says so on a
        progress line."""
        line = None
        alive = threads
        while alive and call.left() > 0:
            alive[0].join(min(1.0, call.left()))
            alive = [thread for thread in threads if thread.is_alive()]
            waited = self.patience - call.left()
            if line is None and waited > SAID_AFTER:
                line = tqdm(total=len(call.pairs), desc="judge", unit="pair", leave=False)
            if line is not None:
                line.n = call.ended
                line.set_postfix_str(f"waits {waited:.0f} of {self.patience:g} s")
        if line is not None:
            line.close()
        if alive:
            missing = len(call.pairs) - call.ended
            why = f"no verdict on {missing} pairs within {self.patience:g} s (--judge-patience)"
            self.last_error = f"{why}; {self.last_error}" if self.last_error else why

    def ask_about(self, pair: Pair, call: "Call") -> Category | None:
        """One pair's verdict; None after the last try, or where the call is given up."""
        wait = 0  # seconds that the server wants to be left alone
        for attempt in range(self.retries + 1):
            # Other pairs have failed meanwhile, too many of them: the server is gone.
            if self.failures_in_a_row >= self.workers:
                return None
            if attempt > 0:
                growing = self.pause * 2 ** (attempt - 1)
                time.sleep(max(wait, growing))
            if call.left() <= 0:
                return None

            # A failure has a reason and perhaps a wait; what is no OSError is a reply of another kind.
            try:
                verdict = self.request(pair, self.constrains)
                self.failures_in_a_row = 0
                return verdict
            except BadStatus as e:
                why = str(e)
                wait = e.wait
            except OSError as e:
                why = str(e)
                wait = 0
            except Exception as e:
                why = f"the reply is no chat completion: {type(e).__name__}: {e}"
            if call.left() <= 0:  # nobody waits for it any more
                return None
            self.last_error = self.without_key(why)
        self.failures_in_a_row += 1
        return None

    def without_key(self, why: str) -> str:
        """A reason in one line, cut only after the key is out of it: a server may echo its request."""
        authorization = self.headers.get("Authorization")
        if authorization:
            secret = authorization.removeprefix("Bearer ")
            why = why.replace(secret, "***")
        return " ".join(why.split())[:REASON]

    def request(self, pair: Pair, constrain: bool) -> Category:
        """One reply's verdict; raises OSError for another status than 200 and for words without a verdict."""
        response, reply = self.post(self.body(pair, constrain))
        if response.status in (400, 422) and constrain:
            # The constraint may be what it refuses. Only a verdict without one says so: it may be the pair.
            verdict = self.request(pair, constrain=False)
            self.constrains = False
            return verdict
        # No retry mends a wrong key or address: the whole call is given up.
        if response.status in (401, 403, 404):
            self.failures_in_a_row = self.workers
        if response.status != 200:
            raise BadStatus(response, reply)
        return verdict_in(reply)

    def body(self, pair: Pair, constrain: bool) -> dict:
        body = {"model": self.model, "messages": chat(self.prompt, pair), "temperature": 0}
        if not constrain:
            return body | {"max_tokens": 512}  # it may think first
        names = list(BY_LABEL)
        older_vllm = {"guided_choice": names}
        newer_vllm = {"structured_outputs": {"choice": names}}
        return body | {"max_tokens": 16} | older_vllm | newer_vllm

    def post(self, body: dict):
        """(response, its bytes). Raises TimeoutError where they do not end in time, or are too many."""
        request = urllib.request.Request(self.url, json.dumps(body).encode(), self.headers)
        end = time.monotonic() + self.timeout
        reply = b""
        with self.opener.open(request, timeout=self.timeout) as response:
            while chunk := response.read1(65536):
                reply += chunk
                # Bytes that drip reset the socket's own clock, but not this one.
                if time.monotonic() > end or len(reply) > LONGEST_REPLY:
                    raise TimeoutError("the reply did not end in time, or is too long")
        return response, reply
