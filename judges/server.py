"""A judge behind an OpenAI-compatible endpoint."""

import json
import os
import re
import time
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from judge import _BY_NAME, Pair, _Settled, chat, load_prompt, parse_category
from reward import Category


class ServerJudge(_Settled):
    """A chat model behind an OpenAI-compatible endpoint, `workers` requests at a time, standard library only.

    The key comes from key_file or from JUDGE_API_KEY in the environment and is kept nowhere else. The six
    categories are offered as a constrained choice (vLLM's fields). A reply has about `timeout` seconds and
    `retries` more tries after growing pauses (or the server's Retry-After, 30 s at most); then there is no
    verdict, and last_error says why. As many failures in a row as there are workers, or a refused key, end a
    call. Raises ValueError for an address that is no http(s) URL or holds a password."""
    def __init__(self, url: str, model: str, key_file: str | None = None, prompt: str = "detailed",
                 timeout: float = 30.0, retries: int = 2, workers: int = 16, pause: float = 0.5):
        if not re.fullmatch(r"https?://([\w.-]+|\[[\da-f:.]+\])(:[1-6]?\d{1,4})?(/[^?#@\s]*)?", url):
            raise ValueError("the judge's address must be http(s)://host[:port][/path], no password in it")
        if not model:
            raise ValueError("a judge behind a server needs the model's name there: --judge-model NAME")
        secret = (Path(key_file).read_text() if key_file else os.environ.get("JUDGE_API_KEY", "")).strip()
        if key_file and not secret or re.search(r"[^!-~]|[\\'\"]", secret):  # an error would quote it
            raise ValueError("the judge's key must be one word of ASCII characters without quotes")
        base = url.rstrip("/")
        if not base.endswith("/chat/completions"):
            base += ("" if re.search(r"/v\d+$", base) else "/v1") + "/chat/completions"
        self.url = base
        self.model, self.prompt, self.timeout, self.retries = model, load_prompt(prompt), timeout, retries
        self.workers, self.pause, self._constrain, self._failed = workers, pause, True, 0
        self.key = repr(["server", model, self.prompt])
        self._headers = {"Authorization": f"Bearer {secret}"} if secret else {}
        self._opener = urllib.request.OpenerDirector()  # follows no redirect, which would take the key along
        for handler in ("ProxyHandler", "HTTPHandler", "HTTPSHandler"):
            self._opener.add_handler(getattr(urllib.request, handler)())

    def _ask(self, clean: Sequence[Pair]) -> list[Category | None]:
        self._failed = 0
        with ThreadPoolExecutor(self.workers) as pool:
            return list(pool.map(self._one, clean))

    def _one(self, pair: Pair) -> Category | None:
        asked = 0  # seconds that the server wants to be left alone
        for attempt in range(self.retries + 1):
            if self._failed >= self.workers:
                return None
            time.sleep(max(asked, self.pause * 2 ** (attempt - 1)) if attempt else 0)
            try:
                verdict, self._failed = self._request(pair, self._constrain), 0
                return verdict
            except OSError as e:
                why, asked = str(e), getattr(e, "asked", 0)
            except Exception as e:
                why = f"the reply is no chat completion: {type(e).__name__}: {e}"
            for header in self._headers.values():  # a server may echo its request
                why = why.replace(header[7:], "***")
            self.last_error = " ".join(why.split())[:200]
        self._failed += 1

    def _request(self, pair: Pair, constrain: bool) -> Category:
        """One reply's verdict; raises OSError for another status than 200 and for words without a verdict."""
        body = {"model": self.model, "messages": chat(self.prompt, pair), "temperature": 0,
                "max_tokens": 16 if constrain else 512}  # unconstrained it may think first
        if constrain:
            names = list(_BY_NAME)
            body |= {"guided_choice": names, "structured_outputs": {"choice": names}}  # older and newer vLLM
        headers = self._headers | {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url, json.dumps(body).encode(), headers)
        reply, end = b"", time.monotonic() + self.timeout
        with self._opener.open(request, timeout=self.timeout) as response:
            while chunk := response.read1(65536):
                reply += chunk
                if time.monotonic() > end or len(reply) > 1_000_000:  # dripping bytes reset no clock
                    raise TimeoutError("the reply did not end in time, or is too long")
        if response.status in (400, 422) and constrain:
            verdict = self._request(pair, False)
            self._constrain = False  # it was the constraint, not this pair, that the server refused
            return verdict
        if response.status in (401, 403, 404):  # no retry mends a wrong key or address
            self._failed = self.workers
        if response.status != 200:
            error = OSError(f"HTTP {response.status} {response.reason} {reply.decode(errors='replace')}")
            after = response.headers.get("Retry-After", "")
            error.asked = min(int(after), 30) if after.isdecimal() else 0
            raise error
        words = json.loads(reply)["choices"][0]["message"]["content"]
        if isinstance(words, list):  # parts, of which thoughts are no reply
            words = " ".join(part["text"] for part in words if part["type"] == "text")
        if (verdict := parse_category(str(words))) is None:
            raise OSError(f"no verdict in the reply {words!r}")
        return verdict
