//! The wire formats: one answer, told as OpenAI's chat, completions and responses or Anthropic's messages.
//!
//! Clients' SDKs accumulate these events with checks of their own; an event missing from the order here
//! shows as an exception there. Called by the simulated upstream's body for each token.

use bytes::Bytes;
use serde_json::{Value, json};

use super::ask::Ask;
use crate::chance::hash;

/// The API an answer is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    Chat,
    Completions,
    Responses,
    Messages,
}

const WORDS: [&str; 32] = [
    "tide", "water", "gate", "stone", "river", "slow", "rises", "falls", "the", "and", "under", "over",
    "moon", "harbour", "ship", "waits", "turns", "calm", "before", "after", "morning", "evening", "salt",
    "wind", "rope", "light", "deep", "shore", "with", "toward", "green", "again",
];

/// One answer: everything that its events say.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) dialect: Dialect,
    pub(crate) ask: Ask,
    pub(crate) seed: u64,
    pub(crate) request: u64,
    /// Seconds since 1970, of a simulated calendar.
    pub(crate) created: u64,
    /// What every token's event of this answer ends in.
    tail: String,
}

impl Answer {
    pub(crate) fn new(dialect: Dialect, ask: Ask, seed: u64, request: u64, created: u64) -> Self {
        let mut answer = Self { dialect, ask, seed, request, created, tail: String::new() };
        answer.tail = match dialect {
            Dialect::Chat | Dialect::Completions => format!(
                r#""created":{created},"id":"{}","model":{},"object":"{}"{}}}"#,
                answer.id(answer.chunk_prefix()),
                Value::String(answer.ask.model.clone()),
                answer.chunk_object(),
                if answer.ask.include_usage { r#","usage":null"# } else { "" },
            ),
            Dialect::Responses => {
                format!(r#""item_id":"{}","logprobs":[],"output_index":0"#, answer.id("msg_"))
            }
            Dialect::Messages => String::new(),
        };
        answer
    }

    /// The word that token `k` is, with the space before it.
    fn word(&self, k: u32) -> String {
        let pick = hash(self.seed, self.request, u64::from(k) | 1 << 40) as usize % WORDS.len();
        let space = if k == 0 { "" } else { " " };
        format!("{space}{}", WORDS[pick])
    }

    fn text(&self) -> String {
        (0..self.ask.output_tokens).map(|k| self.word(k)).collect()
    }

    fn id(&self, prefix: &str) -> String {
        format!("{prefix}{:016x}", hash(self.seed, self.request, u64::MAX))
    }

    fn openai_usage(&self) -> Value {
        let (prompt, output) = (self.ask.prompt_tokens, u64::from(self.ask.output_tokens));
        json!({ "prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output })
    }

    fn finish_reason(&self) -> &'static str {
        match (self.dialect, self.ask.cut_by_limit) {
            (Dialect::Messages, true) => "max_tokens",
            (Dialect::Messages, false) => "end_turn",
            (_, true) => "length",
            (_, false) => "stop",
        }
    }

    /// The whole answer as one JSON body.
    pub(crate) fn whole(&self) -> Bytes {
        let value = match self.dialect {
            Dialect::Chat => json!({
                "id": self.id("chatcmpl-"), "object": "chat.completion", "created": self.created,
                "model": self.ask.model, "usage": self.openai_usage(),
                "choices": [{ "index": 0, "finish_reason": self.finish_reason(), "logprobs": null,
                    "message": { "role": "assistant", "content": self.text(), "refusal": null } }],
            }),
            Dialect::Completions => json!({
                "id": self.id("cmpl-"), "object": "text_completion", "created": self.created,
                "model": self.ask.model, "usage": self.openai_usage(),
                "choices": [{ "index": 0, "text": self.text(), "logprobs": null,
                    "finish_reason": self.finish_reason() }],
            }),
            Dialect::Responses => self.response(true),
            Dialect::Messages => json!({
                "id": self.id("msg_"), "type": "message", "role": "assistant", "model": self.ask.model,
                "content": [{ "type": "text", "text": self.text() }],
                "stop_reason": self.finish_reason(), "stop_sequence": null,
                "usage": { "input_tokens": self.ask.prompt_tokens, "output_tokens": self.ask.output_tokens },
            }),
        };
        Bytes::from(value.to_string())
    }

    /// The events before the first token.
    pub(crate) fn opening(&self) -> Vec<Bytes> {
        match self.dialect {
            Dialect::Chat => vec![self.chat_chunk(&json!({ "role": "assistant", "content": "" }), None)],
            Dialect::Completions => Vec::new(),
            Dialect::Responses => vec![
                self.response_event(0, "response.created", json!({ "response": self.response(false) })),
                self.response_event(1, "response.in_progress", json!({ "response": self.response(false) })),
                self.response_event(
                    2,
                    "response.output_item.added",
                    json!({ "output_index": 0, "item": self.output_item(None) }),
                ),
                self.response_event(
                    3,
                    "response.content_part.added",
                    self.in_item(json!({ "part": output_text("") })),
                ),
            ],
            Dialect::Messages => vec![
                named(
                    "message_start",
                    json!({ "message": {
                        "id": self.id("msg_"), "type": "message", "role": "assistant",
                        "model": self.ask.model, "content": [], "stop_reason": null, "stop_sequence": null,
                        "usage": { "input_tokens": self.ask.prompt_tokens, "output_tokens": 0 },
                    } }),
                ),
                named(
                    "content_block_start",
                    json!({ "index": 0, "content_block": { "type": "text", "text": "" } }),
                ),
            ],
        }
    }

    /// The event of token `k`, counted from 0.
    ///
    /// Put together from text: as a JSON tree, tokens would be most of what a replay of a trace costs.
    pub(crate) fn token(&self, k: u32) -> Bytes {
        let (word, tail) = (self.word(k), &self.tail);
        let event = match self.dialect {
            Dialect::Chat => format!(
                "data: {{\"choices\":[{{\"delta\":{{\"content\":\"{word}\"}},\
                 \"finish_reason\":null,\"index\":0,\"logprobs\":null}}],{tail}\n\n",
            ),
            Dialect::Completions => format!(
                "data: {{\"choices\":[{{\"finish_reason\":null,\"index\":0,\
                 \"logprobs\":null,\"text\":\"{word}\"}}],{tail}\n\n",
            ),
            Dialect::Responses => format!(
                "event: response.output_text.delta\n\
                 data: {{\"content_index\":0,\"delta\":\"{word}\",{tail},\
                 \"sequence_number\":{},\"type\":\"response.output_text.delta\"}}\n\n",
                u64::from(k) + 4,
            ),
            Dialect::Messages => format!(
                "event: content_block_delta\n\
                 data: {{\"delta\":{{\"text\":\"{word}\",\"type\":\"text_delta\"}},\
                 \"index\":0,\"type\":\"content_block_delta\"}}\n\n",
            ),
        };
        Bytes::from(event)
    }

    /// The events after the last token.
    pub(crate) fn closing(&self) -> Vec<Bytes> {
        match self.dialect {
            Dialect::Chat | Dialect::Completions => {
                let mut events = vec![if self.dialect == Dialect::Chat {
                    self.chat_chunk(&json!({}), Some(self.finish_reason()))
                } else {
                    self.completions_chunk("", Some(self.finish_reason()))
                }];
                if self.ask.include_usage {
                    events.push(self.chunk(&json!([]), Some(self.openai_usage())));
                }
                events.push(Bytes::from_static(b"data: [DONE]\n\n"));
                events
            }
            Dialect::Responses => {
                let text = self.text();
                let next = u64::from(self.ask.output_tokens) + 4;
                vec![
                    self.response_event(
                        next,
                        "response.output_text.done",
                        self.in_item(json!({ "text": text, "logprobs": [] })),
                    ),
                    self.response_event(
                        next + 1,
                        "response.content_part.done",
                        self.in_item(json!({ "part": output_text(&text) })),
                    ),
                    self.response_event(
                        next + 2,
                        "response.output_item.done",
                        json!({ "output_index": 0, "item": self.output_item(Some(&text)) }),
                    ),
                    self.response_event(
                        next + 3,
                        if self.ask.cut_by_limit { "response.incomplete" } else { "response.completed" },
                        json!({ "response": self.response(true) }),
                    ),
                ]
            }
            Dialect::Messages => vec![
                named("content_block_stop", json!({ "index": 0 })),
                named(
                    "message_delta",
                    json!({
                        "delta": { "stop_reason": self.finish_reason(), "stop_sequence": null },
                        "usage": { "output_tokens": self.ask.output_tokens },
                    }),
                ),
                named("message_stop", json!({})),
            ],
        }
    }

    fn chat_chunk(&self, delta: &Value, finish: Option<&str>) -> Bytes {
        self.chunk(&json!([{ "index": 0, "delta": delta, "logprobs": null, "finish_reason": finish }]), None)
    }

    fn completions_chunk(&self, text: &str, finish: Option<&str>) -> Bytes {
        self.chunk(&json!([{ "index": 0, "text": text, "logprobs": null, "finish_reason": finish }]), None)
    }

    const fn chunk_prefix(&self) -> &'static str {
        if matches!(self.dialect, Dialect::Chat) { "chatcmpl-" } else { "cmpl-" }
    }

    const fn chunk_object(&self) -> &'static str {
        if matches!(self.dialect, Dialect::Chat) { "chat.completion.chunk" } else { "text_completion" }
    }

    fn chunk(&self, choices: &Value, usage: Option<Value>) -> Bytes {
        let mut chunk = json!({
            "id": self.id(self.chunk_prefix()), "object": self.chunk_object(), "created": self.created,
            "model": self.ask.model, "choices": choices,
        });
        if self.ask.include_usage {
            // OpenAI sends the field on every chunk once it was asked for, null on all but the last.
            chunk["usage"] = usage.unwrap_or(Value::Null);
        }
        Bytes::from(format!("data: {chunk}\n\n"))
    }

    fn response_event(&self, sequence: u64, name: &str, mut fields: Value) -> Bytes {
        fields["sequence_number"] = json!(sequence);
        named(name, fields)
    }

    fn in_item(&self, mut fields: Value) -> Value {
        fields["item_id"] = json!(self.id("msg_"));
        fields["output_index"] = json!(0);
        fields["content_index"] = json!(0);
        fields
    }

    fn output_item(&self, text: Option<&str>) -> Value {
        let content: Vec<Value> = text.map(output_text).into_iter().collect();
        let status = match text {
            None => "in_progress",
            Some(_) if self.ask.cut_by_limit => "incomplete",
            Some(_) => "completed",
        };
        json!({ "id": self.id("msg_"), "type": "message", "role": "assistant", "status": status,
            "content": content })
    }

    fn response(&self, done: bool) -> Value {
        let (prompt, output) = (self.ask.prompt_tokens, u64::from(self.ask.output_tokens));
        let (status, why) = match (done, self.ask.cut_by_limit) {
            (false, _) => ("in_progress", Value::Null),
            (true, false) => ("completed", Value::Null),
            (true, true) => ("incomplete", json!({ "reason": "max_output_tokens" })),
        };
        json!({
            "id": self.id("resp_"), "object": "response", "created_at": self.created, "status": status,
            "model": self.ask.model, "error": null, "incomplete_details": why, "instructions": null,
            "metadata": {}, "parallel_tool_calls": true, "temperature": 1.0, "tool_choice": "auto",
            "tools": [], "top_p": 1.0,
            "output": if done { json!([self.output_item(Some(&self.text()))]) } else { json!([]) },
            "usage": if done { json!({
                "input_tokens": prompt, "input_tokens_details": { "cached_tokens": 0 },
                "output_tokens": output, "output_tokens_details": { "reasoning_tokens": 0 },
                "total_tokens": prompt + output,
            }) } else { Value::Null },
        })
    }
}

fn output_text(text: &str) -> Value {
    json!({ "type": "output_text", "text": text, "annotations": [], "logprobs": [] })
}

/// An event with its name both as `event:` and as the `type` inside, as both vendors send it.
fn named(name: &str, mut fields: Value) -> Bytes {
    fields["type"] = json!(name);
    Bytes::from(format!("event: {name}\ndata: {fields}\n\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(dialect: Dialect, output_tokens: u32) -> Answer {
        let ask = Ask {
            model: "m \"quoted\"".into(),
            stream: true,
            include_usage: true,
            output_tokens,
            cut_by_limit: false,
            prompt_tokens: 7,
            inputs: Vec::new(),
            base64: false,
            dimensions: None,
        };
        Answer::new(dialect, ask, 1, 1, 0)
    }

    fn data(event: &Bytes) -> Value {
        let text = std::str::from_utf8(event).unwrap();
        let line = text.lines().find_map(|l| l.strip_prefix("data: ")).unwrap();
        serde_json::from_str(line).unwrap_or(Value::Null)
    }

    #[test]
    fn the_streamed_words_are_the_whole_text() {
        for (dialect, delta, whole) in [
            (Dialect::Chat, "/choices/0/delta/content", "/choices/0/message/content"),
            (Dialect::Completions, "/choices/0/text", "/choices/0/text"),
            (Dialect::Responses, "/delta", "/output/0/content/0/text"),
            (Dialect::Messages, "/delta/text", "/content/0/text"),
        ] {
            let answer = answer(dialect, 5);
            let streamed: String = (0..5)
                .map(|k| data(&answer.token(k)).pointer(delta).unwrap().as_str().unwrap().to_owned())
                .collect();
            let whole_body: Value = serde_json::from_slice(&answer.whole()).unwrap();
            assert_eq!(whole_body.pointer(whole).unwrap(), &json!(streamed));
            assert_eq!(streamed.split(' ').count(), 5);
        }
    }

    #[test]
    fn a_tokens_event_is_what_the_json_tree_would_be() {
        // Not the bytes: another crate in the build may make serde_json keep the order of keys.
        let same = |event: Bytes, tree: Bytes| {
            let name = |e: &Bytes| {
                e.starts_with(b"event: ").then(|| e.split(|b| *b == b'\n').next().map(<[u8]>::to_vec))
            };
            assert_eq!((data(&event), name(&event)), (data(&tree), name(&tree)));
            assert!(event.ends_with(b"}\n\n") && !data(&event).is_null());
        };
        for usage in [false, true] {
            let mut ask = answer(Dialect::Chat, 5).ask;
            ask.include_usage = usage;
            let chat = Answer::new(Dialect::Chat, ask, 1, 1, 0);
            same(chat.token(2), chat.chat_chunk(&json!({ "content": chat.word(2) }), None));
        }
        let text = answer(Dialect::Completions, 5);
        same(text.token(2), text.completions_chunk(&text.word(2), None));
        let responses = answer(Dialect::Responses, 5);
        let fields = responses.in_item(json!({ "delta": responses.word(2), "logprobs": [] }));
        same(responses.token(2), responses.response_event(6, "response.output_text.delta", fields));
        let messages = answer(Dialect::Messages, 5);
        let fields = json!({ "index": 0, "delta": { "type": "text_delta", "text": messages.word(2) } });
        same(messages.token(2), named("content_block_delta", fields));
    }

    #[test]
    fn usage_comes_in_a_chunk_without_choices_and_only_when_asked_for() {
        let chat = answer(Dialect::Chat, 3);
        let closing = chat.closing();
        let usage = data(&closing[1]);
        assert_eq!(usage["choices"], json!([]));
        assert_eq!(usage["usage"], json!({ "prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10 }));
        assert_eq!(data(&closing[0])["usage"], Value::Null);
        let mut ask = chat.ask;
        ask.include_usage = false;
        let chat = Answer::new(Dialect::Chat, ask, 1, 1, 0);
        assert_eq!(chat.closing().len(), 2);
        assert!(data(&chat.token(0)).get("usage").is_none());
    }

    #[test]
    fn responses_are_numbered_without_a_gap() {
        let answer = answer(Dialect::Responses, 3);
        let mut events = answer.opening();
        events.extend((0..3).map(|k| answer.token(k)));
        events.extend(answer.closing());
        let numbers: Vec<u64> = events.iter().map(|e| data(e)["sequence_number"].as_u64().unwrap()).collect();
        assert_eq!(numbers, (0..events.len() as u64).collect::<Vec<_>>());
    }
}
