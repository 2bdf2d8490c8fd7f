//! What the scan of answers promises: it finds what each dialect says of its cost, only where the server says it, and
//! the same in any pieces.
//!
//! `usage/` holds an answer of each dialect, with text in it that only looks like usage; the fuzzer starts from them.
//! The scan is also held against a slow, plain reading of parsed JSON. Without this a model that prints
//! `"usage": {…}` could set what it is charged, and a cut between two packets could lose the count.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Map, Value, json};
use tidegate::policy::units::Tokens;
use tidegate::policy::usage::{Form, Scanned, Usage};

#[path = "support/pieces.rs"]
mod pieces;

use pieces::{in_pieces, same_in_any_pieces};

const ANSWERS: [(&str, Form, &[u8]); 12] = [
    ("chat.sse", Form::Events, include_bytes!("usage/chat.sse")),
    ("tools.sse", Form::Events, include_bytes!("usage/tools.sse")),
    ("messages.sse", Form::Events, include_bytes!("usage/messages.sse")),
    ("responses.sse", Form::Events, include_bytes!("usage/responses.sse")),
    ("lines.sse", Form::Events, include_bytes!("usage/lines.sse")),
    ("error.sse", Form::Events, include_bytes!("usage/error.sse")),
    ("chat.json", Form::Json, include_bytes!("usage/chat.json")),
    ("responses.json", Form::Json, include_bytes!("usage/responses.json")),
    ("messages.json", Form::Json, include_bytes!("usage/messages.json")),
    ("embeddings.json", Form::Json, include_bytes!("usage/embeddings.json")),
    ("error.json", Form::Json, include_bytes!("usage/error.json")),
    ("", Form::Json, b""),
];

fn usage(prompt: u64, output: u64) -> Usage {
    Usage { prompt: Some(Tokens(prompt)), output: Some(Tokens(output)), ..Usage::default() }
}

fn over(usage: Usage, events: u64) -> Scanned {
    Scanned { usage: Some(usage), events, error: false, finished: true }
}

fn expected(name: &str) -> Scanned {
    let some = |n| Some(Tokens(n));
    match name {
        "chat.sse" => over(
            Usage {
                cached: some(1024),
                reasoning: some(21),
                audio_in: some(7),
                audio_out: some(3),
                ..usage(1117, 46)
            },
            2,
        ),
        "tools.sse" => Scanned { events: 3, finished: true, ..Scanned::default() },
        "messages.sse" => {
            let beside = Usage { cached: some(20_000), cache_written: some(1000), ..usage(21_472, 89) };
            over(Usage { uncounted: some(20_000), ..beside }, 3)
        }
        "responses.sse" => over(Usage { cached: some(32), reasoning: some(8), ..usage(37, 11) }, 2),
        "lines.sse" => over(usage(6, 2), 1),
        "error.sse" => Scanned { usage: Some(usage(25, 1)), error: true, ..Scanned::default() },
        "chat.json" => over(
            Usage {
                cached: some(0),
                reasoning: some(192),
                audio_in: some(0),
                audio_out: some(0),
                ..usage(19, 210)
            },
            0,
        ),
        "responses.json" => over(Usage { cached: some(64), reasoning: some(1024), ..usage(75, 1186) }, 0),
        "messages.json" => {
            let beside = Usage { cached: some(300), cache_written: some(12), ..usage(2095 + 12 + 300, 503) };
            over(Usage { uncounted: some(300), ..beside }, 0)
        }
        "embeddings.json" => over(Usage { prompt: some(8), ..Usage::default() }, 0),
        "error.json" => Scanned { error: true, finished: true, ..Scanned::default() },
        _ => Scanned::default(),
    }
}

#[test]
fn every_dialect_says_what_it_cost() {
    for (name, form, body) in ANSWERS {
        assert_eq!(in_pieces(form, body, &[]), expected(name), "{name}");
    }
}

#[test]
fn wherever_an_answer_is_cut_in_two_it_says_the_same() {
    for (name, form, body) in ANSWERS {
        for cut in 1..body.len() {
            assert_eq!(in_pieces(form, body, &[cut, body.len()]), expected(name), "{name} cut at {cut}");
        }
        for piece in 1..64 {
            assert_eq!(in_pieces(form, body, &[piece]), expected(name), "{name} in pieces of {piece}");
        }
    }
}

#[test]
fn an_answer_that_breaks_off_has_no_wrong_numbers() {
    for (name, form, body) in ANSWERS {
        let whole = expected(name);
        let sorted = |usage: Option<Usage>| {
            let u = usage.unwrap_or_default();
            [u.prompt, u.cached, u.cache_written, u.output, u.reasoning, u.audio_in, u.audio_out]
        };
        for end in 0..body.len() {
            let part = in_pieces(form, &body[..end], &[]);
            // Anthropic's prompt is a sum, and its count of the answer goes up
            if !name.starts_with("messages") {
                let pairs = sorted(part.usage).into_iter().zip(sorted(whole.usage));
                assert!(pairs.into_iter().all(|(p, w)| p.is_none() || p == w), "{name} to {end}: {part:?}");
            }
            assert!(part.events <= whole.events && part.finished <= whole.finished, "{name} to {end}");
        }
    }
}

fn scan(form: Form, body: &str) -> Scanned {
    same_in_any_pieces(body.as_bytes(), &[3, 1, 7]);
    in_pieces(form, body.as_bytes(), &[])
}

fn prompt(body: &str) -> Option<u64> {
    Some(scan(Form::Json, body).usage?.prompt?.0)
}

#[test]
fn only_whole_numbers_count() {
    let most = u64::from(u32::MAX);
    for (number, counted) in [
        ("0", Some(0)),
        ("17", Some(17)),
        ("4294967296", Some(most)),
        ("99999999999999999999999999999999", Some(most)),
        ("-1", None),
        ("1.5", None),
        ("17e2", None),
        ("NaN", None),
        ("Infinity", None),
        ("null", None),
        ("true", None),
        ("\"17\"", None),
        ("[17]", None),
        ("{\"prompt_tokens\":17}", None),
        ("", None),
    ] {
        assert_eq!(prompt(&format!(r#"{{"usage":{{"prompt_tokens":{number}}}}}"#)), counted, "{number}");
        assert_eq!(
            prompt(&format!("{{\"usage\" :\t{{\"x\":1,\r\n\"prompt_tokens\" : {number} \n}} }}")),
            counted
        );
    }
    assert_eq!(prompt(r#"{"usage":{"prompt_tokens":12"#), None, "a number that is cut off");
}

#[test]
fn of_keys_that_come_twice_the_last_counts() {
    assert_eq!(prompt(r#"{"usage":{"prompt_tokens":1,"prompt_tokens":2}}"#), Some(2));
    assert_eq!(prompt(r#"{"usage":{"prompt_tokens":1},"usage":{"prompt_tokens":2}}"#), Some(2));
    assert_eq!(prompt(r#"{"usage":{"prompt_tokens":1},"usage":null}"#), Some(1), "null is nothing");
    let events = "data: {\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":1}}\n\ndata: {\"usage\":{\"completion_tokens\":2}}\n\n";
    assert_eq!(scan(Form::Events, events).usage, Some(usage(1, 2)));
}

#[test]
fn an_error_is_an_object_or_a_text_that_is_not_empty() {
    for (body, error) in [
        (r#"{"error":{"code":1}}"#, true),
        (r#"{"error": "no"}"#, true),
        (r#"{"error": null}"#, false),
        (r#"{"error": ""}"#, false),
        (r#"{"error": { } }"#, false),
        (r#"{"error": false}"#, false),
        (r#"{"data":{"error":{"code":1}}}"#, false),
        (r#"["error",{"error":{"code":1}}]"#, false),
    ] {
        assert_eq!(scan(Form::Json, body).error, error, "{body}");
        assert_eq!(scan(Form::Events, &format!("data:{body}\n\n")).error, error, "{body}");
    }
    let failed =
        "data: {\"type\":\"response.failed\",\"response\":{\"error\":{\"code\":\"server_error\"}}}\n\n";
    assert!(scan(Form::Events, failed).error);
}

#[test]
fn what_is_not_json_is_no_harm() {
    let deep = "[".repeat(100_000);
    for body in [
        "\u{feff}{\"usage\":{\"prompt_tokens\":1}}",
        &format!("{{\"a\":{deep}{},\"usage\":{{\"prompt_tokens\":1}}}}", "]".repeat(100_000)),
        "{\"a\":\"\\\\\",\"b\":\"\\\"\",\"\\u0075sage\":1,\"usage\":{\"prompt_tokens\":1}} trailing {",
    ] {
        assert_eq!(prompt(body), Some(1), "{}", &body[..20.min(body.len())]);
    }
    for body in [
        "{\"a\" \"usage\":{\"prompt_tokens\":1}}",
        "{usage:{\"prompt_tokens\":1}}",
        "[{\"usage\":{\"prompt_tokens\":1}}]",
        "\"usage\":{\"prompt_tokens\":1}",
        "<html>{\"usage\":{\"prompt_tokens\":1}}",
        "{\"usage\":[{\"prompt_tokens\":1}]}",
        "{\"usage\":{\"usage\":{\"prompt_tokens\":1}}}",
        "{\"\\u0075sage\":{\"prompt_tokens\":1}}",
        "\u{feff}\u{feff}{\"usage\":{\"prompt_tokens\":1}}",
        &deep,
    ] {
        assert_eq!(prompt(body), None, "{}", &body[..20.min(body.len())]);
    }
}

/// Any bytes, more often than chance would have them the ones that mean something.
fn garbage() -> impl Strategy<Value = Vec<u8>> {
    let words: Vec<&[u8]> = vec![
        b"\n",
        b"\r",
        b"\r\n",
        b"data:",
        b" ",
        b"[DONE]",
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b"\"",
        b"\\",
        b"\"usage\"",
        b"\"choices\"",
        b"\"delta\"",
        b"\"error\"",
        b"\"content\"",
        b"\"prompt_tokens\":1",
        b"12",
        b"\xef\xbb\xbf",
        b"\xff",
        b"\"type\"",
        b"\"message_stop\"",
        b"null",
    ];
    let word = prop_oneof![4 => select(words).prop_map(<[u8]>::to_vec), 1 => vec(any::<u8>(), 1..80)];
    vec(word, 0..60).prop_map(|words| words.concat())
}

const KEYS: [&str; 22] = [
    "usage",
    "response",
    "message",
    "error",
    "choices",
    "delta",
    "content",
    "text",
    "type",
    "tool_calls",
    "prompt_tokens",
    "input_tokens",
    "completion_tokens",
    "output_tokens",
    "total_tokens",
    "cached_tokens",
    "prompt_tokens_details",
    "output_tokens_details",
    "reasoning_tokens",
    "cache_read_input_tokens",
    "a",
    "\"\\",
];

fn document() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (0..100_u64).prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        (-10.0..10.0).prop_map(Value::from),
        Just(json!("")),
        Just(json!("response.completed")),
        select(&KEYS[..]).prop_map(|key| json!(format!("\"{key}\": {{\"{key}\": 1}}"))),
        ".{0,40}".prop_map(Value::from),
    ];
    let value = leaf.prop_recursive(6, 60, 6, |inner| {
        prop_oneof![
            1 => vec(inner.clone(), 0..4).prop_map(Value::from),
            3 => object(inner),
        ]
    });
    object(value)
}

fn object(value: impl Strategy<Value = Value>) -> impl Strategy<Value = Value> {
    vec((select(&KEYS[..]), value), 0..6).prop_map(|members| {
        Value::Object(members.into_iter().map(|(k, v)| (k.to_owned(), v)).collect::<Map<_, _>>())
    })
}

/// What documents say, read slowly. Members are in the order in which they are written.
#[derive(Default)]
struct Plain {
    numbers: Map<String, Value>,
    error: bool,
    finished: bool,
    events: u64,
}

impl Plain {
    fn read(&mut self, form: Form, document: &Value) {
        let filled = |value: &Value| match value {
            Value::String(text) => !text.is_empty(),
            Value::Array(values) => !values.is_empty(),
            Value::Object(members) => !members.is_empty(),
            _ => false,
        };
        for (key, value) in document.as_object().unwrap() {
            match key.as_str() {
                "usage" => self.usage("", value),
                "error" => self.error |= filled(value),
                "response" | "message" if form == Form::Events => {
                    self.usage("", &value["usage"]);
                    self.error |= filled(&value["error"]);
                }
                "type" if form == Form::Events => self.finished |= value == "response.completed",
                _ => {}
            }
        }
        if form == Form::Events {
            let piece =
                |delta: &Value| ["content", "text", "tool_calls"].iter().any(|key| filled(&delta[*key]));
            let delta = |value: &Value| (value.is_string() && filled(value)) || piece(value);
            let choice = |c: &Value| delta(&c["delta"]) || filled(&c["text"]);
            let choices = document["choices"].as_array();
            self.events += u64::from(
                delta(&document["delta"]) || choices.is_some_and(|choices| choices.iter().any(choice)),
            );
        } else {
            self.finished = true;
        }
    }

    fn usage(&mut self, under: &str, usage: &Value) {
        for (key, value) in usage.as_object().into_iter().flatten() {
            match key.as_str() {
                "prompt_tokens_details" | "output_tokens_details" if under.is_empty() => {
                    self.usage(key, value)
                }
                _ if value.is_u64() => {
                    let path = match (under, key.as_str()) {
                        ("", "completion_tokens") => "output_tokens".to_owned(),
                        ("prompt_tokens_details", "cached_tokens") => key.clone(),
                        ("output_tokens_details", "reasoning_tokens") => key.clone(),
                        _ => format!("{under}{key}"),
                    };
                    let most = value.as_u64().unwrap().min(u64::from(u32::MAX));
                    self.numbers.insert(path, most.into());
                }
                _ => {}
            }
        }
    }

    fn result(&self) -> Scanned {
        let get = |key: &str| self.numbers.get(key).and_then(Value::as_u64);
        let read = get("cache_read_input_tokens");
        let total = get("total_tokens");
        let input = get("input_tokens").map(|n| n + read.unwrap_or(0));
        let mut output = get("output_tokens");
        let mut prompt = get("prompt_tokens").or(input);
        match (prompt, output, total) {
            (Some(p), None, Some(t)) if t > p => output = Some(t - p),
            (None, o, Some(t)) => prompt = Some(t.saturating_sub(o.unwrap_or(0))),
            _ => {}
        }
        let usage = Usage {
            prompt: prompt.map(Tokens),
            output: output.map(Tokens),
            cached: get("cached_tokens").or(read).map(Tokens),
            uncounted: read.filter(|_| get("prompt_tokens").is_none()).map(Tokens),
            reasoning: get("reasoning_tokens").map(Tokens),
            ..Usage::default()
        };
        Scanned {
            usage: (prompt.is_some() || output.is_some()).then_some(usage),
            events: self.events,
            error: self.error,
            finished: self.finished,
        }
    }
}

/// An event of the document, over several lines where it is printed so.
fn event(document: &Value, pretty: bool, end: &str) -> String {
    let text = if pretty { serde_json::to_string_pretty(document) } else { serde_json::to_string(document) };
    let lines: String = text.unwrap().lines().map(|line| format!("data: {line}{end}")).collect();
    format!(": a comment{end}event: x{end}{lines}{end}")
}

fn cases(cases: u32) -> ProptestConfig {
    let from_environment = ProptestConfig::default().cases;
    ProptestConfig {
        cases: cases.max(from_environment),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn any_bytes_say_the_same_in_any_pieces(body in garbage(), lengths in vec(1..40_usize, 1..20)) {
        same_in_any_pieces(&body, &lengths);
    }

    #[test]
    fn an_answer_with_a_byte_changed_says_the_same_in_any_pieces(
        answer in select(&ANSWERS[..11]), at in any::<prop::sample::Index>(), byte in any::<u8>(),
        lengths in vec(1..200_usize, 1..20),
    ) {
        let mut body = answer.2.to_vec();
        let at = at.index(body.len());
        body[at] = byte;
        same_in_any_pieces(&body, &lengths);
    }

    #[test]
    fn an_object_says_what_a_plain_reading_finds(document in document(), pretty in any::<bool>()) {
        let text = if pretty { serde_json::to_string_pretty(&document) } else { serde_json::to_string(&document) };
        let mut plain = Plain::default();
        plain.read(Form::Json, &document);
        prop_assert_eq!(in_pieces(Form::Json, text.unwrap().as_bytes(), &[]), plain.result());
    }

    #[test]
    fn a_stream_says_what_a_plain_reading_finds(
        documents in vec((document(), any::<bool>(), select(&["\n", "\r", "\r\n"][..])), 0..4),
        lengths in vec(1..200_usize, 1..20),
    ) {
        let mut plain = Plain::default();
        let mut body = String::new();
        for (document, pretty, end) in &documents {
            body += &event(document, *pretty, end);
            plain.read(Form::Events, document);
        }
        prop_assert_eq!(in_pieces(Form::Events, body.as_bytes(), &lengths), plain.result());
    }
}
