"""A judge behind an OpenAI-compatible endpoint: vLLM, llama.cpp, Ollama, a hosted one.

    python judge.py --judge http://localhost:8000 --judge-model NAME --ask robin bird

From top to bottom: how a reply is held to the six categories; one call's pairs, and who asks about them; the
judge. judges/endpoint.py asks one question. Needs tqdm besides, for the line that says how long it waits.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from threading import Condition, Lock, Thread

from tqdm import tqdm

from judge import BY_LABEL, BaseJudge, Pair, chat, cut_thoughts, load_prompt, parse_category
from judges.endpoint import Endpoint, ServerError, read_key
from reward import Category

LONGEST_PATIENCE = 86_400  # seconds, a day
MOST_WORKERS = 1_000  # each is a thread
MOST_TOKENS = 100_000
SAID_AFTER = 3  # seconds of waiting
GONE_AFTER = 8  # pairs in a row without a verdict, at least

# ------------------------------------------------------------------------------------------------------------
# How a reply is held to the six categories
#
# Servers have different fields for it, and many ignore those that they don't know. So the judge finds out: it
# asks for another word than the six. Only a server that honours the constraint can't say it.

NAMES = list(BY_LABEL)
SCHEMA = {"type": "object", "properties": {"category": {"type": "string", "enum": NAMES}},
          "required": ["category"], "additionalProperties": False}
CONSTRAINTS = {
    "structured_outputs": {"structured_outputs": {"choice": NAMES}},  # vLLM
    "guided_choice": {"guided_choice": NAMES},                        # vLLM before 0.12
    "response_format": {"response_format": {                          # OpenAI, llama.cpp, Ollama
        "type": "json_schema", "json_schema": {"name": "verdict", "strict": True, "schema": SCHEMA}}},
}
UNCONSTRAINED = "none"
OTHER_WORD = [{"role": "user", "content": "Reply with the one word \"hello\"."}]

REFUSALS = (400, 422, 500, 501)  # statuses that may be the constraint's fault
HOPELESS = (401, 403, 404)  # a wrong key or address, which no retry mends


def is_held(words: str) -> bool:
    """Whether a reply is one of the six, as a constraint writes it: 'wrong' or '{"category": "wrong"}'."""
    said = (cut_thoughts(words.lower()) or "").strip()
    try:
        said = json.loads(said)["category"]
    except (ValueError, LookupError, TypeError, RecursionError):
        pass
    return said in NAMES


# ------------------------------------------------------------------------------------------------------------


class Call:
    """Pairs that are asked about in one go, what has come of them, how long they may take, and how many
    requests are under way."""

    def __init__(self, pairs: Sequence[Pair], patience: float):
        self.pairs = pairs
        self.numbers = iter(range(len(pairs)))  # which threads share: each takes the next
        self.verdicts: list[Category | None] = [None] * len(pairs)
        self.ended = 0
        self.end = time.monotonic() + patience
        self.first_exchange = Lock()
        self.turn = Condition()
        self.under_way = 0
        self.was_late = False  # whether a reply was, for others were under way
        self.failures_in_a_row = 0  # of pairs, not of tries

    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()

    def begin_turn(self, may_begin: Callable[[], bool]) -> None:
        """Waits until a further request may be under way, or until the time is over."""
        with self.turn:
            self.turn.wait_for(may_begin, max(0.0, self.left()))
            self.under_way += 1

    def end_turn(self) -> None:
        with self.turn:
            self.under_way -= 1
            self.turn.notify_all()


class ServerJudge(BaseJudge):
    """A chat model behind an OpenAI-compatible endpoint, `workers` requests at a time.

    The key comes from key_file or from JUDGE_API_KEY in the environment and is kept nowhere else. Before the
    first verdict a short exchange finds which constraint to the six categories the server honours, if any.

    A reply has about `timeout` seconds, `tokens` tokens (thoughts among them; one that is cut off is no
    verdict) and `retries` more tries after growing pauses (or the server's Retry-After, 30 s at most); then
    there is no verdict, and last_error says why. Where replies come late, fewer requests are sent at a time.
    As many failures in a row as there are workers (8 at least), or a refused key, end a call. Raises
    ValueError for an address that is no http(s) URL or holds a password."""

    def __init__(self, url: str, model: str, key_file: str | None = None, prompt: str = "detailed",
                 timeout: float = 30.0, retries: int = 2, workers: int = 16, pause: float = 0.5,
                 patience: float = 300.0, tokens: int = 1024):
        if not model:
            raise ValueError("a judge behind a server needs the model's name there: --judge-model NAME, or "
                             "http://host#model=NAME")
        for seconds in (timeout, patience):
            if not 0 < seconds <= LONGEST_PATIENCE:
                raise ValueError("--judge-timeout and --judge-patience must be above 0, at most "
                                 f"{LONGEST_PATIENCE:,}, got {seconds}")
        if not 1 <= workers <= MOST_WORKERS:
            raise ValueError(f"--judge-workers must be 1 to {MOST_WORKERS:,}, got {workers}")
        if not 1 <= tokens <= MOST_TOKENS:
            raise ValueError(f"--judge-tokens must be 1 to {MOST_TOKENS:,}, got {tokens}")
        self.endpoint = Endpoint(url, model, read_key(key_file), timeout, tokens)
        self.prompt = load_prompt(prompt)
        self.patience = patience
        self.retries = retries
        self.workers = workers
        self.most_workers = workers
        self.has_said = False  # that it asks fewer at a time
        self.pause = pause
        self.most_failures = max(workers, GONE_AFTER)
        self.constraint: str | None = None  # its name, found in the first exchange
        self.key = repr(["server", model, self.prompt])

    def ask(self, pairs: Sequence[Pair]) -> list[Category | None]:
        call = Call(pairs, self.patience)

        # Daemons: one that hangs in its request keeps neither this call nor the end of the program waiting.
        threads = []
        for _ in range(min(self.workers, len(pairs))):
            threads.append(Thread(target=self.work, args=(call,), daemon=True))
        for thread in threads:
            thread.start()
        self.wait_for(threads, call)

        # Where none was late, more at a time again.
        if not call.was_late:
            self.workers = min(2 * self.workers, self.most_workers)
        return list(call.verdicts)  # what comes later comes too late

    def wait_for(self, threads: list[Thread], call: Call) -> None:
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

    def work(self, call: Call) -> None:
        """Asks about one pair after the other, as long as there are any."""
        # One thread finds the constraint, the others wait for what it finds.
        with call.first_exchange:
            if self.constraint is None and not self.is_gone(call):
                found = self.find_constraint(call)
                if found is not None:  # or a later call may have found it meanwhile
                    self.constraint = found
                    self.last_error = ""
        for number in call.numbers:
            call.verdicts[number] = self.persist(call, lambda: self.ask_about(call.pairs[number]))
            call.ended += 1

    def find_constraint(self, call: Call) -> str | None:
        """The first constraint that the server honours, by what it replies; None where the server is gone."""
        def plain():
            return self.endpoint.chat(OTHER_WORD)

        for name in CONSTRAINTS:
            def honours():
                return self.honours(name)

            is_honoured = self.persist(call, honours)
            if is_honoured is None:
                # It fails again and again: under this constraint, or always?
                if self.persist(call, plain) is None:
                    self.give_up(call)
                    return None
                # It may only have been loading its model.
                is_honoured = self.persist(call, honours)
            if is_honoured:
                return name

        # It ignores or refuses them all, but it must reply.
        if self.persist(call, plain) is None:
            self.give_up(call)
            return None
        return UNCONSTRAINED

    def honours(self, name: str) -> bool:
        try:
            reply = self.endpoint.chat(OTHER_WORD, CONSTRAINTS[name])
        except ServerError as error:
            if error.status in (400, 422):
                return False
            raise
        return not reply.is_cut_off and is_held(reply.words)

    def ask_about(self, pair: Pair) -> Category:
        """The server's verdict on a pair; raises OSError where its reply holds none."""
        turns = chat(self.prompt, pair)
        constraint = CONSTRAINTS.get(self.constraint)
        try:
            reply = self.endpoint.chat(turns, constraint)
        except ServerError as error:
            # It may be this pair under the constraint that it can't do.
            if constraint is None or error.status not in REFUSALS:
                raise
            reply = self.endpoint.chat(turns)
        if reply.is_cut_off:
            raise OSError(f"the reply was cut off after {self.endpoint.tokens} tokens (--judge-tokens)")
        verdict = parse_category(reply.words)
        if verdict is None:
            raise OSError(f"no verdict in the reply {reply.words!r}")
        return verdict

    def persist(self, call: Call, ask_once: Callable):
        """What ask_once() returns; None after the last try, or where the call is given up."""
        tries = 0
        wait = 0  # seconds that the server wants to be left alone
        while tries <= self.retries and not self.is_gone(call):
            if tries > 0:
                growing = self.pause * 2 ** (tries - 1)
                time.sleep(max(wait, growing))
            call.begin_turn(lambda: call.under_way < self.workers)
            together = call.under_way
            sent = time.monotonic()
            try:
                # Others may have failed meanwhile, too many of them.
                if self.is_gone(call) or call.left() <= 0:
                    return None
                result = ask_once()
                call.failures_in_a_row = 0
                return result
            except OSError as error:
                if call.left() <= 0:  # nobody waits for it any more
                    return None
                why = self.endpoint.one_line(error)
                is_late = isinstance(getattr(error, "reason", error), TimeoutError)
                self.last_error = f"{why} (--judge-timeout)" if is_late else why
                wait = getattr(error, "wait", 0)
                if getattr(error, "status", None) in HOPELESS:
                    self.give_up(call)
                tries += 1
            finally:
                if together > 1 and time.monotonic() - sent > self.endpoint.timeout:
                    self.ask_fewer(call, together)
                call.end_turn()
        call.failures_in_a_row += 1
        return None

    def is_gone(self, call: Call) -> bool:
        return call.failures_in_a_row >= self.most_failures

    def give_up(self, call: Call) -> None:
        call.failures_in_a_row = self.most_failures

    def ask_fewer(self, call: Call, together: int) -> None:
        """Half as many requests at a time, where `together` were too many: one of them was late."""
        call.was_late = True
        fewer = max(1, together // 2)
        # Others of that time are late for the same reason.
        if fewer < self.workers:
            self.workers = fewer
            if not self.has_said:
                tqdm.write(f"judge: a reply took more than {self.endpoint.timeout:g} s; fewer requests at a "
                           "time from now on (--judge-workers)", file=sys.stderr)
                self.has_said = True
