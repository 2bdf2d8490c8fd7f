"""What tidegate finds out about a real model server: how many requests it can work on at once.

The server has two slots, and after a restart in the middle of the load six; nobody tells tidegate. The learned limit
has to settle near the slots each time, and to bring as many tokens as the best of some fixed limits, measured in
turns. Part of `llama`; `llama supply-long` tries more fixed limits for longer.
"""

import http.client
import json
import threading
import time
from statistics import mean
from urllib.parse import urlsplit

from stage import Metrics, Tidegate, check, say

CLIENTS, TOKENS = 24, 32
SETTLE, STAY = 60, 20
QUEUE = 'max_requests = 500\ntimeout = "300s"'


class Load:
    """Clients that ask again as soon as they are answered; every other one streams."""

    def __init__(self, gate):
        self.gate = gate
        self.done = threading.Event()
        self.lock = threading.Lock()
        self.answers, self.failed = [], []
        self.threads = [threading.Thread(target=self.client, args=(n,), daemon=True) for n in range(CLIENTS)]
        for thread in self.threads:
            thread.start()

    def client(self, n):
        turn = 0
        while not self.done.is_set():
            turn += 1
            began = time.monotonic()
            try:
                tokens, waited = self.one(n, turn)
            except (OSError, ValueError, KeyError, http.client.HTTPException) as e:
                with self.lock:
                    self.failed.append(repr(e))
                time.sleep(0.2)
                continue
            with self.lock:
                self.answers.append((began, time.monotonic(), tokens, waited))

    def one(self, n, turn):
        to = urlsplit(self.gate.base_url)
        connection = http.client.HTTPConnection(to.hostname, to.port, timeout=300)
        stream = n % 2 == 0
        ask = {"model": "smollm2", "messages": [{"role": "user", "content": f"Count from {n} by {turn}."}],
               "max_tokens": TOKENS, "ignore_eos": True, "stream": stream}
        if stream:
            ask["stream_options"] = {"include_usage": True}
        try:
            connection.request("POST", to.path + "/chat/completions", json.dumps(ask),
                               {"content-type": "application/json", "authorization": f"Bearer team-{n % 4}"})
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        if answer.status != 200:
            raise ValueError(f"{answer.status} {text[:200]}")
        bodies = [line[6:] for line in text.splitlines() if line.startswith("data: {")] if stream else [text]
        usage = [u for u in (json.loads(body).get("usage") for body in bodies) if u]
        return usage[-1]["completion_tokens"], float(answer.headers["x-tidegate-queue-ms"]) / 1000

    def rate(self, began, ended):
        """Tokens per second; an answer counts for the part of it that lies between the two."""
        with self.lock:
            answers = list(self.answers)
        tokens = 0.0
        for a, b, n, waited in answers:
            a = min(a + waited, b)
            tokens += n * max(0.0, min(b, ended) - max(a, began)) / max(b - a, 1e-6)
        return tokens / (ended - began)

    def stop(self):
        self.done.set()
        for thread in self.threads:
            thread.join(300)


def limit(gate):
    return gate.metrics().need("tidegate_upstream_limit")


def settled(gate, slots):
    """Watches the learned limit: it has to come between the slots and twice them + 1 within a minute, and stay.

    After a restart half of that minute is the breaker's: nothing goes to a server that was just away.
    """
    low, high = slots, 2 * slots + 1
    seen, began = [], time.monotonic()
    while time.monotonic() - began < SETTLE + STAY:
        seen.append((time.monotonic() - began, limit(gate)))
        time.sleep(1)
    outside = [at for at, s in seen if not low <= s <= high]
    since = outside[-1] if outside else 0
    say(f"{slots} slots: the learned limit was {', '.join(f'{s:.0f}' for _, s in seen[::4])} every 4 s; "
        f"within [{low}, {high}] from {since:.0f} s on")
    check(since <= SETTLE, f"the learned limit was outside [{low}, {high}] after {since:.0f} s, and later")


def one_turn(gate, seconds):
    """Tokens per second through this gate alone."""
    load = Load(gate)
    # the clients come at once: the first answers are not typical
    time.sleep(min(4, seconds / 3))
    began = time.monotonic()
    time.sleep(seconds)
    ended = time.monotonic()
    load.stop()
    check(not load.failed, f"{len(load.failed)} failed: {load.failed[:2]}")
    return load.rate(began, ended)


def compare(work, learned, origin, slots, long):
    """The learned limit against fixed ones, in turns: A B A C A …"""
    fixed = sorted({1, slots // 2, slots, slots + 1, 2 * slots, 3 * slots} - {0}) if long else [slots, 2 * slots]
    # what the machine itself does drifts by a third within minutes: a turn says little, three of each some more
    seconds, passes = (12, 3) if long else (8, 1)
    ours, theirs, beside = [one_turn(learned, seconds)], {n: [] for n in fixed}, {n: [] for n in fixed}
    for _ in range(passes):
        for n in fixed:
            gate = Tidegate(f"fixed-{slots}-{n}", work, origin + "/v1", QUEUE, f'policy = "fixed"\nmax_permits = {n}')
            theirs[n].append(one_turn(gate, seconds))
            gate.program.stop()
            ours.append(one_turn(learned, seconds))
            beside[n].append((ours[-2] + ours[-1]) / 2)
    say(f"{slots} slots, tokens per second: learned {mean(ours):.1f} ({min(ours):.1f} to {max(ours):.1f})")
    for n in fixed:
        turns = ", ".join(f"{rate:.1f}" for rate in theirs[n])
        say(f"  fixed {n}: {mean(theirs[n]):.1f} ({turns}), learned beside it {mean(beside[n]):.1f}")
    # none may be much better, neither beside its own turns nor than the learned limit was all the time
    all_turns = mean(ours) / max(map(mean, theirs.values()))
    least = min(mean(beside[n]) / mean(theirs[n]) for n in fixed)
    say(f"  at least {least:.2f} of each beside it, {all_turns:.2f} of the best with all turns")
    check(min(least, all_turns) >= 0.85, "a fixed limit brings more than the learned one")


def supply(work, start_llama, port, long):
    """`start_llama(slots)` starts the server on `port`."""
    origin = f"http://127.0.0.1:{port}"
    server = start_llama(2)
    # the defaults, apart from the queue: 24 clients ask all the time
    gate = Tidegate("learned", work, origin + "/v1", QUEUE, "max_permits = 64")
    load = Load(gate)
    settled(gate, 2)
    say("restarted in the middle of the load")
    server.stop()
    server = start_llama(6)
    settled(gate, 6)
    load.stop()
    check(len(load.failed) <= CLIENTS, f"{len(load.failed)} failed: {load.failed[:3]}")
    say(f"{len(load.answers)} answered, {len(load.failed)} failed (answers that were cut by the restart)")

    page = Metrics(gate.admin + "/metrics")
    seen, told = sum(a[3] for a in load.answers), page.need("tidegate_queue_wait_seconds_sum")
    say(f"waited in the queue: {seen:.1f} s say the clients, {told:.1f} s say the metrics")
    # those that were cut waited too, and say nothing
    check(seen <= 1.01 * told and told - seen <= 0.1 * told, "the queue's wait is not what the clients saw")
    check(page.need("tidegate_in_flight") == 0 and page.need("tidegate_queue_requests") == 0, "something is held")

    compare(work, gate, origin, 6, long)
    server.stop()
    server = start_llama(2)
    warm = Load(gate)
    settled(gate, 2)
    warm.stop()
    compare(work, gate, origin, 2, long)
    check(gate.program.stop() == 0, "tidegate did not end with 0")
    server.stop()
