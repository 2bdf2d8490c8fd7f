"""Forty clients at once against four slots.

The point of tidegate in one test: all are served, none is refused, the model server never sees more than the permits
at once (it says so itself), and the queue's metrics are what the clients measured. Started by `llama`.
"""

import asyncio
import json
import os
import sys
import threading
import time

from openai import AsyncOpenAI

from stage import Failed, Metrics, check, get, say, wait_for

BASE, ADMIN, LLAMA = os.environ["BASE_URL"], os.environ["ADMIN"], os.environ["LLAMA"]
CLIENTS, PERMITS, TOKENS = 40, 4, 24


class Sampler(threading.Thread):
    """Asks the model server how many requests it works on, and the gate how many it has let through."""

    def __init__(self):
        super().__init__(daemon=True)
        self.done = threading.Event()
        self.slots, self.processing, self.deferred, self.gate, self.queued = [], [], [], [], []
        self.error = None

    def run(self):
        try:
            while not self.done.wait(0.02):
                self.slots.append(sum(s["is_processing"] for s in json.loads(get(LLAMA + "/slots", 30)[2])))
                theirs = Metrics(LLAMA + "/metrics")
                self.processing.append(theirs.need("llamacpp:requests_processing"))
                self.deferred.append(theirs.need("llamacpp:requests_deferred"))
                ours = Metrics(ADMIN + "/metrics")
                self.gate.append(ours.need("tidegate_in_flight"))
                self.queued.append(ours.need("tidegate_queue_requests"))
        except (Failed, OSError, ValueError, KeyError) as e:
            self.error = e


async def one(n):
    """One client with a connection of its own; every other one streams."""
    async with AsyncOpenAI(base_url=BASE, api_key=f"team-{n % 4}", max_retries=0, timeout=300) as c:
        began = time.monotonic()
        raw = await c.chat.completions.with_raw_response.create(
            model="smollm2", messages=[{"role": "user", "content": f"Count from {n}."}], max_tokens=TOKENS,
            stream=n % 2 == 0, stream_options={"include_usage": True} if n % 2 == 0 else None,
            extra_body={"ignore_eos": True},
        )
        answer = raw.parse()
        if n % 2 == 0:
            usage = None
            async for chunk in answer:
                usage = chunk.usage or usage
        else:
            usage = answer.usage
        check(usage and usage.completion_tokens == TOKENS, f"client {n} got {usage}")
        return float(raw.headers["x-tidegate-queue-ms"]), time.monotonic() - began


async def all_at_once():
    return await asyncio.gather(*(one(n) for n in range(CLIENTS)), return_exceptions=True)


def main():
    before = Metrics(ADMIN + "/metrics")
    check(before.need("tidegate_in_flight") == 0, "in_flight is not 0 before the burst")
    check(before.need("tidegate_permits", kind="limit") == PERMITS, "the permits are not 4")
    lines_before = len(open(os.environ["ACCESS_LOG"]).readlines())
    sampler = Sampler()
    sampler.start()
    began = time.monotonic()
    results = asyncio.run(all_at_once())
    took = time.monotonic() - began
    sampler.done.set()
    sampler.join()
    check(sampler.error is None, f"the sampler failed: {sampler.error}")
    refused = [r for r in results if isinstance(r, BaseException)]
    check(not refused, f"{len(refused)} of {CLIENTS} were not served, the first: {refused and refused[0]!r}")

    waits = sorted(r[0] for r in results)
    totals = sorted(r[1] for r in results)
    say(f"{CLIENTS} of {CLIENTS} served in {took:.1f} s; queue wait p50 {waits[CLIENTS // 2] / 1000:.2f} s, "
        f"max {waits[-1] / 1000:.2f} s; slowest client {totals[-1]:.2f} s")

    say(f"{len(sampler.slots)} samples: busy slots max {max(sampler.slots)}, requests_processing max "
        f"{max(sampler.processing):.0f}, requests_deferred max {max(sampler.deferred):.0f}, tidegate in_flight max "
        f"{max(sampler.gate):.0f}, queued max {max(sampler.queued):.0f}")
    check(len(sampler.slots) >= 20, "too few samples to say anything")
    for name, values in (("busy slots", sampler.slots), ("requests_processing", sampler.processing),
                         ("in_flight", sampler.gate)):
        check(max(values) <= PERMITS, f"{name} reached {max(values):.0f} with {PERMITS} permits")
    # The model server queues what exceeds its slots: anything there was let through too early. A slot is set free a
    # moment after its last byte left, so one successor per slot may stand there for that moment.
    standing = sum(1 for d in sampler.deferred if d > 0) / len(sampler.deferred)
    check(standing <= 0.1, f"requests stood in the model server's own queue in {standing:.0%} of the samples")
    check(max(sampler.slots) == PERMITS and max(sampler.queued) >= CLIENTS / 2, "the burst never filled the permits")

    wait_for("in_flight 0", lambda: Metrics(ADMIN + "/metrics").need("tidegate_in_flight") == 0, 5)
    after = Metrics(ADMIN + "/metrics")

    def grown(name):
        return after.need(name) - (before.sum(name) or 0)

    count, total = grown("tidegate_queue_wait_seconds_count"), grown("tidegate_queue_wait_seconds_sum")
    seen = sum(waits) / 1000
    say(f"queue_wait_seconds: count +{count:.0f}, sum +{total:.2f} s; the clients saw {seen:.2f} s")
    check(count == CLIENTS, f"queue_wait_seconds_count grew by {count}, not {CLIENTS}")
    check(abs(total - seen) <= 0.05 * seen, f"queue_wait_seconds_sum grew by {total}, the clients saw {seen}")
    served = grown("tidegate_requests_total")
    check(served == CLIENTS, f"requests_total grew by {served}, not {CLIENTS}")
    check(after.need("tidegate_queue_requests") == 0, "the queue is not empty")

    def written():
        return len(open(os.environ["ACCESS_LOG"]).readlines()) - lines_before >= CLIENTS

    wait_for(f"{CLIENTS} access log lines", written, 5)
    new = [json.loads(line) for line in open(os.environ["ACCESS_LOG"]).readlines()[lines_before:]]
    check(len(new) == CLIENTS, f"{len(new)} access log lines for {CLIENTS} requests")
    check(all(line["status"] == 200 for line in new), "a log line without status 200")
    check("Count from" not in open(os.environ["ACCESS_LOG"]).read(), "the access log has text of a prompt")
    say(f"{len(new)} access log lines, JSON, no prompt text")


try:
    main()
except Failed as e:
    say(f"FAIL {e}")
    sys.exit(1)
