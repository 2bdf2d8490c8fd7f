"""openai-python against tidegate in front of a real llama-server: what an application does, and what it sees.

Started by `llama` with BASE_URL, ADMIN, LLAMA, TINY_URL, TINY_ADMIN, DEAD_URL, EMBED_URL in the environment.
Every check reads what the SDK, the model server and /metrics say; none of them knows tidegate's insides.
"""

import asyncio
import json
import os
import sys
import time

import openai
from openai import AsyncOpenAI, OpenAI

from stage import Failed, Metrics, check, get, say, wait_for

BASE, ADMIN, LLAMA = os.environ["BASE_URL"], os.environ["ADMIN"], os.environ["LLAMA"]
MODEL = "smollm2"
ASK = [{"role": "user", "content": "Write a long story about the sea."}]
# Without an end the answer lasts as long as the test needs it to.
ENDLESS = {"ignore_eos": True}


def client(url=BASE, **options):
    return OpenAI(base_url=url, api_key="sk-no-key-required", **{"max_retries": 0, "timeout": 60, **options})


# Tokens of an answer that is meant to be left before its end.
LONG = 1500


def busy_slots():
    return sum(slot["is_processing"] for slot in json.loads(get(LLAMA + "/slots")[2]))


# How long the model server may take to notice that it works for nobody, and how often it may be asked. With a stream
# it notices at the next token. Without one it looks after each second in which it made no result for anybody, and
# /slots counts as one: asked more often, it never looks.
STREAM, NO_STREAM = (2.0, 0.01), (12.0, 2.5)


def settled(what, began, patience, admin=ADMIN):
    """Waits until the gate and the model server are idle; says how long each took since `began`."""
    slots_limit, slots_every = patience
    gate = slots = None
    asked, decoded = began, 0

    def idle():
        nonlocal gate, slots, asked, decoded
        if gate is None and Metrics(admin + "/metrics").need("tidegate_in_flight") == 0:
            gate = time.monotonic() - began
        if slots is None and time.monotonic() - asked >= slots_every:
            asked = time.monotonic()
            busy = [s for s in json.loads(get(LLAMA + "/slots")[2]) if s["is_processing"]]
            decoded = max([decoded, *(t["n_decoded"] for s in busy for t in s.get("next_token") or [])])
            if not busy:
                slots = time.monotonic() - began
        return gate is not None and slots is not None

    wait_for(f"end of work after {what}", idle, slots_limit + 5, every=0.01)
    check(gate <= 1.0, f"after {what} in_flight was 0 only after {gate:.2f} s")
    check(slots <= slots_limit, f"after {what} the model server worked for {slots:.2f} s, at most {slots_limit} s is fine")
    check(decoded < 0.9 * LONG, f"after {what} the model server still finished the answer ({decoded} tokens)")
    return f"in_flight 0 after {gate * 1000:.0f} ms, slots idle after {slots * 1000:.0f} ms"


def raised(kind, call):
    """The exception of type `kind` that `call` has to raise."""
    try:
        call()
    except kind as e:
        return e
    except Exception as e:
        raise Failed(f"expected {kind.__name__}, got {type(e).__name__}: {e}")
    raise Failed(f"expected {kind.__name__}, got an answer")


def code(e):
    return (e.body or {}).get("code") if isinstance(e.body, dict) else None


# ---------------------------------------------------------------- answers


def sync_chat():
    r = client().chat.completions.create(model=MODEL, messages=ASK, max_tokens=12, extra_body=ENDLESS)
    check(r.choices[0].message.content and r.usage.completion_tokens == 12, f"odd answer: {r}")
    return f"{r.usage.prompt_tokens} + {r.usage.completion_tokens} tokens"


def async_chat():
    async def go():
        async with AsyncOpenAI(base_url=BASE, api_key="x", max_retries=0, timeout=60) as c:
            return await asyncio.gather(*(
                c.chat.completions.create(model=MODEL, messages=ASK, max_tokens=8, extra_body=ENDLESS)
                for _ in range(3)
            ))

    answers = asyncio.run(go())
    check(all(a.usage.completion_tokens == 8 for a in answers), f"odd answers: {answers}")
    return "3 at once"


def stream():
    began = time.monotonic()
    first, pieces, usage = None, 0, None
    for chunk in client().chat.completions.create(
        model=MODEL, messages=ASK, max_tokens=48, stream=True, stream_options={"include_usage": True},
        extra_body=ENDLESS,
    ):
        if chunk.choices and chunk.choices[0].delta.content:
            first = first or time.monotonic() - began
            pieces += 1
        usage = chunk.usage or usage
    total = time.monotonic() - began
    check(usage and usage.completion_tokens == 48, f"the stream's usage is {usage}")
    check(pieces >= 40, f"48 tokens came in {pieces} pieces")
    check(first < 0.7 * total, f"the first piece came after {first:.2f} of {total:.2f} s: the stream was held back")
    return f"{pieces} pieces, first after {first * 1000:.0f} ms, last after {total * 1000:.0f} ms"


def async_stream():
    async def go():
        async with AsyncOpenAI(base_url=BASE, api_key="x", max_retries=0, timeout=60) as c:
            pieces = 0
            async for chunk in await c.chat.completions.create(
                model=MODEL, messages=ASK, max_tokens=16, stream=True, extra_body=ENDLESS
            ):
                pieces += bool(chunk.choices and chunk.choices[0].delta.content)
            return pieces

    pieces = asyncio.run(go())
    check(pieces >= 12, f"16 tokens came in {pieces} pieces")
    return f"{pieces} pieces"


def other_endpoints():
    done = []
    r = client().completions.create(model=MODEL, prompt="The sea is", max_tokens=8, extra_body=ENDLESS)
    check(r.usage.completion_tokens == 8, f"odd completion: {r}")
    done.append("completions")
    r = client().responses.create(model=MODEL, input="Say hello.", max_output_tokens=8)
    check(r.output_text, f"odd response: {r}")
    done.append("responses")
    kinds = [e.type for e in client().responses.create(model=MODEL, input="Hi.", max_output_tokens=8, stream=True)]
    check(kinds[0] == "response.created" and kinds[-1] == "response.completed", f"odd events: {kinds}")
    done.append("responses stream")
    status, _, text = get(
        BASE + "/messages", 60, json.dumps({"model": MODEL, "max_tokens": 8, "messages": ASK}).encode(),
        {"content-type": "application/json", "x-api-key": "x", "anthropic-version": "2023-06-01"},
    )
    check(status == 200 and json.loads(text)["type"] == "message", f"/v1/messages answered {status}: {text}")
    done.append("messages")
    models = [m.id for m in client().models.list()]
    check(models == [MODEL], f"models: {models}")
    done.append("models")
    status, _, text = get(BASE.removesuffix("/v1") + "/health")
    check(status == 200 and json.loads(text)["status"] == "ok", f"/health answered {status}: {text}")
    done.append("a path outside /v1")
    return ", ".join(done)


def embeddings():
    r = client(os.environ["EMBED_URL"]).embeddings.create(model=MODEL, input=["the sea", "the ocean", "a tax form"])
    check(len(r.data) == 3 and all(len(d.embedding) == 576 for d in r.data), "odd embeddings")
    return "3 vectors of 576 numbers"


def raw_headers():
    raw = client().chat.completions.with_raw_response.create(
        model=MODEL, messages=ASK, max_tokens=4, extra_headers={"x-tidegate-priority": "high"}
    )
    h = raw.headers
    for name in ("x-tidegate-request-id", "x-tidegate-queue-ms", "x-tidegate-upstream", "x-request-id"):
        check(h.get(name), f"no header {name} in {dict(h)}")
    check(h["x-tidegate-upstream"] == "llama", f"x-tidegate-upstream is {h['x-tidegate-upstream']}")
    check(float(h["x-tidegate-queue-ms"]) < 50, f"x-tidegate-queue-ms is {h['x-tidegate-queue-ms']} with nobody waiting")
    check("x-tidegate-reason" not in h, "x-tidegate-reason on an answer of the upstream")
    answer = raw.parse()
    # llama-server sets no x-request-id of its own, so tidegate's is there, and the SDK shows it.
    check(answer._request_id == h["x-tidegate-request-id"], f"the SDK says request id {answer._request_id}")
    return f"queue-ms {h['x-tidegate-queue-ms']}"


# ---------------------------------------------------------------- endings


def cancel_stream():
    c = client()
    s = c.chat.completions.create(model=MODEL, messages=ASK, max_tokens=LONG, stream=True, extra_body=ENDLESS)
    for n, _ in enumerate(s):
        if n == 5:
            break
    check(busy_slots() == 1, "no slot is busy during a stream")
    check(Metrics(ADMIN + "/metrics").need("tidegate_in_flight") == 1, "in_flight is not 1 during a stream")
    began = time.monotonic()
    s.close()
    return settled("a closed stream", began, STREAM)


def cancel_async_task():
    async def go():
        async with AsyncOpenAI(base_url=BASE, api_key="x", max_retries=0, timeout=60) as c:
            task = asyncio.create_task(
                c.chat.completions.create(model=MODEL, messages=ASK, max_tokens=LONG, extra_body=ENDLESS)
            )
            while busy_slots() == 0:
                await asyncio.sleep(0.02)
            task.cancel()
            try:
                await task
            except asyncio.CancelledError:
                return time.monotonic()
            raise Failed("the cancelled task had an answer")

    return settled("a cancelled task", asyncio.run(go()), NO_STREAM)


def client_timeout():
    c = client(timeout=1.0)
    raised(openai.APITimeoutError, lambda: c.chat.completions.create(
        model=MODEL, messages=ASK, max_tokens=LONG, extra_body=ENDLESS))
    return settled("a client's timeout", time.monotonic(), NO_STREAM)


# ---------------------------------------------------------------- refusals


def refused_by_queue():
    url, admin = os.environ["TINY_URL"], os.environ["TINY_ADMIN"]
    held = client(url).chat.completions.create(
        model=MODEL, messages=ASK, max_tokens=LONG, stream=True, extra_body=ENDLESS)
    next(iter(held))
    e = raised(openai.RateLimitError, lambda: client(url).chat.completions.create(model=MODEL, messages=ASK))
    check(code(e) == "queue_full", f"code {code(e)} in {e}")
    check(e.response.headers.get("x-tidegate-reason") == "queue_full", f"headers {dict(e.response.headers)}")
    after = e.response.headers.get("retry-after", "")
    check(after.isdigit() and int(after) >= 1, f"retry-after is {after!r}")
    check(e.response.headers.get("x-should-retry") == "true", "x-should-retry is not true")
    check(e.request_id, "the SDK has no request id of the refusal")
    # What takes no permit is not refused while the one permit is taken.
    check([m.id for m in client(url).models.list()] == [MODEL], "models are refused while the permit is taken")
    held.close()
    return f"RateLimitError queue_full, retry-after {after}; " + settled("the held stream", time.monotonic(), STREAM, admin)


def sdk_retries_succeed():
    url = os.environ["TINY_URL"]
    held = client(url).chat.completions.create(
        model=MODEL, messages=ASK, max_tokens=20, stream=True, extra_body=ENDLESS)
    pieces = iter(held)
    next(pieces)
    raised(openai.RateLimitError, lambda: client(url).chat.completions.create(model=MODEL, messages=ASK))

    async def go():
        async with AsyncOpenAI(base_url=url, api_key="x", max_retries=6, timeout=60) as c:
            later = asyncio.create_task(
                c.chat.completions.with_raw_response.create(model=MODEL, messages=ASK, max_tokens=4))
            await asyncio.to_thread(lambda: sum(1 for _ in pieces))
            return await later

    raw = asyncio.run(go())
    check(raw.parse().choices, "the retried request has no answer")
    check(raw.retries_taken >= 1, "the SDK did not need to retry: the permit was free")
    return f"served after {raw.retries_taken} retries of the SDK"


def queue_deadline():
    held = [client().chat.completions.create(model=MODEL, messages=ASK, max_tokens=LONG, stream=True,
                                             extra_body=ENDLESS) for _ in range(4)]
    for h in held:
        next(iter(h))
    began = time.monotonic()
    e = raised(openai.RateLimitError, lambda: client().chat.completions.create(
        model=MODEL, messages=ASK, max_tokens=4, extra_headers={"x-tidegate-deadline-ms": "700"}))
    took = time.monotonic() - began
    check(code(e) in ("queue_timeout", "deadline_unreachable"), f"code {code(e)}")
    check(took < 1.5, f"refused after {took:.2f} s, the deadline was 0.7 s")
    # The same deadline, announced the way the SDK does: either side may notice first.
    raised((openai.APITimeoutError, openai.RateLimitError), lambda: client(timeout=0.5).chat.completions.create(
        model=MODEL, messages=ASK, max_tokens=4))
    wait_for("an empty queue", lambda: Metrics(ADMIN + "/metrics").need("tidegate_queue_requests") == 0, 2)
    for h in held:
        h.close()
    return f"{code(e)} after {took * 1000:.0f} ms; " + settled("four closed streams", time.monotonic(), STREAM)


def upstream_says_no():
    e = raised(openai.BadRequestError, lambda: client().chat.completions.create(model=MODEL, messages="no list"))
    check("x-tidegate-reason" not in e.response.headers, "a refusal of the upstream carries tidegate's reason")
    e = raised(openai.NotFoundError, lambda: client().get("/nothing-here", cast_to=object))
    check("x-tidegate-reason" not in e.response.headers, "a refusal of the upstream carries tidegate's reason")
    return "400 and 404 untouched"


def dead_upstream():
    c = client(os.environ["DEAD_URL"])

    def ask():
        return c.chat.completions.create(model=MODEL, messages=ASK)

    seen = []
    for _ in range(8):
        e = raised(openai.InternalServerError, ask)
        seen.append(f"{e.status_code} {code(e)}")
        check(e.response.headers.get("x-tidegate-reason") == code(e), f"headers {dict(e.response.headers)}")
        if e.status_code == 503:
            after = e.response.headers.get("retry-after", "")
            check(after.isdigit() and 1 <= int(after) <= 30, f"retry-after of an open breaker is {after!r}")
    # each request is tried again until the breaker has its five failures: no more than those five ever go there
    failed = seen.count("502 upstream_error")
    check(1 <= failed <= 5, f"a dead upstream showed {seen}")
    check(seen == ["502 upstream_error"] * failed + ["503 upstream_unavailable"] * (8 - failed),
          f"a dead upstream showed {seen}")
    tried = Metrics(os.environ["DEAD_ADMIN"] + "/metrics").sum("tidegate_upstream_connect_failures_total")
    check(tried == 5, f"a dead upstream was asked for {tried} connections before its breaker opened")
    ready = get(os.environ["DEAD_ADMIN"] + "/readyz")[0]
    check(ready == 503, f"/readyz answers {ready} with the only breaker open")
    check(get(os.environ["DEAD_ADMIN"] + "/healthz")[0] == 200, "/healthz is not 200")
    return f"{failed} x 502, then the breaker's 503, retry-after {after}"


def no_leftovers():
    return settled("everything", time.monotonic(), STREAM) + f", {len(open(os.environ['ACCESS_LOG']).readlines())} log lines"


CASES = [sync_chat, async_chat, stream, async_stream, other_endpoints, embeddings, raw_headers, cancel_stream,
         cancel_async_task, client_timeout, refused_by_queue, sdk_retries_succeed, queue_deadline, upstream_says_no,
         dead_upstream, no_leftovers]

failed = 0
wanted = sys.argv[1:]
for case in CASES:
    if wanted and case.__name__ not in wanted:
        continue
    began = time.monotonic()
    try:
        result = case()
        say(f"ok   {case.__name__:20} {time.monotonic() - began:5.1f} s  {result}")
    except Exception as e:
        failed += 1
        say(f"FAIL {case.__name__:20} {time.monotonic() - began:5.1f} s  {type(e).__name__}: {e}")
say(f"openai-python {openai.__version__}: {len(wanted or CASES) - failed} passed, {failed} failed")
sys.exit(1 if failed else 0)
