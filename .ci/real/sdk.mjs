// openai-node against tidegate in front of a real llama-server. Started by `llama` with BASE_URL, ADMIN, LLAMA,
// TINY_URL, DEAD_URL and NODE_PACKAGES (the folder the SDK was installed into) in the environment.

import { createRequire } from 'node:module';

const { BASE_URL, ADMIN, LLAMA, TINY_URL, TINY_ADMIN, DEAD_URL, EMBED_URL, NODE_PACKAGES } = process.env;
const require = createRequire(NODE_PACKAGES + '/');
const OpenAI = require('openai').OpenAI;
const { VERSION } = require('openai/version');

const model = 'smollm2';
const messages = [{ role: 'user', content: 'Write a long story about the sea.' }];
const endless = { ignore_eos: true }; // the answer lasts as long as the test needs it to

const client = (baseURL = BASE_URL, options = {}) =>
  new OpenAI({ baseURL, apiKey: 'sk-no-key-required', maxRetries: 0, timeout: 60_000, ...options });

const check = (truth, message) => {
  if (!truth) throw new Error(message);
};

const raised = async (kind, call) => {
  try {
    await call();
  } catch (e) {
    if (e instanceof kind) return e;
    throw new Error(`expected ${kind.name}, got ${e?.constructor?.name}: ${e?.message}`);
  }
  throw new Error(`expected ${kind.name}, got an answer`);
};

const busySlots = async () => (await (await fetch(LLAMA + '/slots')).json()).filter((s) => s.is_processing).length;

const inFlight = async (admin) => {
  const text = await (await fetch(admin + '/metrics')).text();
  const lines = text.split('\n').filter((l) => /^tidegate_in_flight[{ ]/.test(l));
  check(lines.length > 0, 'no metric tidegate_in_flight');
  return lines.reduce((sum, l) => sum + Number(l.split(' ').at(-1)), 0);
};

// How long the model server may take to notice that it works for nobody, and how often it may be asked. With a stream
// it notices at the next token. Without one it looks after each second in which it made no result for anybody, and
// /slots counts as one: asked more often, it never looks.
const STREAM = { limit: 2000, every: 10 };
const NO_STREAM = { limit: 12_000, every: 2500 };

const settled = async (what, { limit, every }, admin = ADMIN) => {
  const began = performance.now();
  let gate, slots;
  let asked = began;
  while (gate === undefined || slots === undefined) {
    check(performance.now() - began < limit + 5000, `still busy long after ${what}`);
    if (gate === undefined && (await inFlight(admin)) === 0) gate = performance.now() - began;
    if (slots === undefined && performance.now() - asked >= every) {
      asked = performance.now();
      if ((await busySlots()) === 0) slots = performance.now() - began;
    }
    await new Promise((done) => setTimeout(done, 10));
  }
  check(gate <= 1000, `after ${what} in_flight was 0 only after ${gate.toFixed(0)} ms`);
  check(slots <= limit, `after ${what} the model server worked for ${slots.toFixed(0)} ms`);
  return `in_flight 0 after ${gate.toFixed(0)} ms, slots idle after ${slots.toFixed(0)} ms`;
};

const cases = {
  async chat() {
    const r = await client().chat.completions.create({ model, messages, max_tokens: 12, ...endless });
    check(r.choices[0].message.content && r.usage.completion_tokens === 12, `odd answer ${JSON.stringify(r)}`);
    return `${r.usage.prompt_tokens} + ${r.usage.completion_tokens} tokens`;
  },

  async stream() {
    const began = performance.now();
    let first, pieces = 0, usage;
    for await (const chunk of await client().chat.completions.create({
      model, messages, max_tokens: 48, stream: true, stream_options: { include_usage: true }, ...endless,
    })) {
      if (chunk.choices[0]?.delta?.content) {
        first ??= performance.now() - began;
        pieces += 1;
      }
      usage = chunk.usage ?? usage;
    }
    const total = performance.now() - began;
    check(usage?.completion_tokens === 48, `the stream's usage is ${JSON.stringify(usage)}`);
    check(pieces >= 40, `48 tokens came in ${pieces} pieces`);
    check(first < 0.7 * total, `the first piece came after ${first} of ${total} ms: the stream was held back`);
    return `${pieces} pieces, first after ${first.toFixed(0)} ms, last after ${total.toFixed(0)} ms`;
  },

  async rawHeaders() {
    const { data, response, request_id } = await client()
      .chat.completions.create({ model, messages, max_tokens: 4 })
      .withResponse();
    const h = response.headers;
    for (const name of ['x-tidegate-request-id', 'x-tidegate-queue-ms', 'x-tidegate-upstream', 'x-request-id']) {
      check(h.get(name), `no header ${name}`);
    }
    check(h.get('x-tidegate-upstream') === 'llama', `x-tidegate-upstream is ${h.get('x-tidegate-upstream')}`);
    check(request_id === h.get('x-tidegate-request-id'), `the SDK says request id ${request_id}`);
    check(data.choices.length === 1, 'no answer');
    return `queue-ms ${h.get('x-tidegate-queue-ms')}`;
  },

  async models() {
    const ids = [];
    for await (const m of await client().models.list()) ids.push(m.id);
    check(ids.length === 1 && ids[0] === model, `models: ${ids}`);
    return ids.join();
  },

  async embeddings() {
    const r = await client(EMBED_URL).embeddings.create({ model, input: ['the sea', 'a tax form'] });
    check(r.data.length === 2 && r.data.every((d) => d.embedding.length === 576), 'odd embeddings');
    return '2 vectors of 576 numbers';
  },

  async abortStream() {
    const s = await client().chat.completions.create({ model, messages, max_tokens: 1500, stream: true, ...endless });
    let n = 0;
    for await (const _ of s) {
      if (++n === 6) {
        check((await busySlots()) === 1, 'no slot is busy during a stream');
        check((await inFlight(ADMIN)) === 1, 'in_flight is not 1 during a stream');
        s.controller.abort();
      }
    }
    return settled('an aborted stream', STREAM);
  },

  async abortBySignal() {
    const controller = new AbortController();
    const answer = client().chat.completions.create(
      { model, messages, max_tokens: 1500, ...endless },
      { signal: controller.signal },
    );
    answer.catch(() => {});
    while ((await busySlots()) === 0) await new Promise((done) => setTimeout(done, 20));
    controller.abort();
    await raised(OpenAI.APIUserAbortError, () => answer);
    return settled('an aborted request', NO_STREAM);
  },

  async timeout() {
    await raised(OpenAI.APIConnectionTimeoutError, () =>
      client(BASE_URL, { timeout: 1000 }).chat.completions.create({ model, messages, max_tokens: 1500, ...endless }),
    );
    return settled("a client's timeout", NO_STREAM);
  },

  async queueFull() {
    const held = await client(TINY_URL).chat.completions.create({
      model, messages, max_tokens: 1500, stream: true, ...endless,
    });
    await held[Symbol.asyncIterator]().next();
    const e = await raised(OpenAI.RateLimitError, () => client(TINY_URL).chat.completions.create({ model, messages }));
    check(e.status === 429 && e.code === 'queue_full', `status ${e.status}, code ${e.code}`);
    check(e.headers.get('x-tidegate-reason') === 'queue_full', 'no x-tidegate-reason');
    check(/^[1-9]\d*$/.test(e.headers.get('retry-after')), `retry-after is ${e.headers.get('retry-after')}`);
    check(e.headers.get('x-should-retry') === 'true', 'x-should-retry is not true');
    check(e.requestID, 'the SDK has no request id of the refusal');
    held.controller.abort();
    return `RateLimitError queue_full; ${await settled('the held stream', STREAM, TINY_ADMIN)}`;
  },

  async deadUpstream() {
    const e = await raised(OpenAI.InternalServerError, () =>
      client(DEAD_URL).chat.completions.create({ model, messages }),
    );
    const known = { 502: 'upstream_error', 503: 'upstream_unavailable' }; // 503 once the breaker has opened
    check(known[e.status] && known[e.status] === e.code, `status ${e.status}, code ${e.code}`);
    return `InternalServerError ${e.status} ${e.code}`;
  },

  async badRequest() {
    const e = await raised(OpenAI.BadRequestError, () =>
      client().chat.completions.create({ model, messages: 'no list' }),
    );
    check(!e.headers.get('x-tidegate-reason'), "a refusal of the upstream carries tidegate's reason");
    return '400 untouched';
  },
};

let failed = 0;
for (const [name, run] of Object.entries(cases)) {
  const began = performance.now();
  const seconds = () => ((performance.now() - began) / 1000).toFixed(1).padStart(5);
  try {
    const result = await run();
    console.log(`  ok   ${name.padEnd(20)} ${seconds()} s  ${result}`);
  } catch (e) {
    failed += 1;
    console.log(`  FAIL ${name.padEnd(20)} ${seconds()} s  ${e.message}`);
  }
}
console.log(`  openai-node ${VERSION}: ${Object.keys(cases).length - failed} passed, ${failed} failed`);
process.exit(failed ? 1 : 0);
