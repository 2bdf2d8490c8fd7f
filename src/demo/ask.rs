//! What a request asks of the simulated upstream: the few fields of its JSON that change the answer.

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::HeaderMap;
use serde_json::Value;

use super::model::Law;

/// Sets the length of the answer exactly; the load driver replays traces with it.
pub(crate) const OUTPUT_TOKENS: &str = "x-sim-output-tokens";

/// The largest request body taken, as a real API has one.
const BODY_LIMIT: usize = 64 << 20;

/// The fields of any of the APIs that this upstream heeds.
#[derive(Debug)]
pub(crate) struct Ask {
    pub(crate) model: String,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
    pub(crate) output_tokens: u32,
    /// The answer is shorter than it would be because the request limits it.
    pub(crate) cut_by_limit: bool,
    /// About a quarter of the text's bytes, as usual for English.
    pub(crate) prompt_tokens: u64,
    /// Tokens of each input of an embeddings call.
    pub(crate) inputs: Vec<u64>,
    pub(crate) base64: bool,
    pub(crate) dimensions: Option<usize>,
}

/// Why a request cannot be answered.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unreadable {
    #[error("the request body did not arrive whole")]
    Broken,
    #[error("the request body is not a JSON object: {0}")]
    NotJson(String),
    #[error("{0} must be a whole number above 0")]
    Number(&'static str),
}

/// The whole body, up to the limit.
pub(crate) async fn read<B>(body: B) -> Result<Bytes, Unreadable>
where
    B: hyper::body::Body,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let whole = http_body_util::Limited::new(body, BODY_LIMIT).collect().await;
    whole.map(http_body_util::Collected::to_bytes).map_err(|_| Unreadable::Broken)
}

impl Ask {
    pub(crate) fn parse(headers: &HeaderMap, body: &[u8], law: &Law) -> Result<Self, Unreadable> {
        let value: Value = serde_json::from_slice(body).map_err(|e| Unreadable::NotJson(e.to_string()))?;
        if !value.is_object() {
            return Err(Unreadable::NotJson("it is another JSON value".into()));
        }
        let mut limit = None;
        for key in ["max_tokens", "max_completion_tokens", "max_output_tokens"] {
            limit = match &value[key] {
                Value::Null => limit,
                given => Some(whole(given).ok_or(Unreadable::Number(key))?),
            };
        }
        let dimensions = match &value["dimensions"] {
            Value::Null => None,
            given => Some(whole(given).ok_or(Unreadable::Number("dimensions"))? as usize),
        };
        let exact = match headers.get(OUTPUT_TOKENS) {
            None => None,
            Some(text) => {
                let number = text.to_str().ok().and_then(|t| t.parse::<u32>().ok());
                Some(number.ok_or(Unreadable::Number(OUTPUT_TOKENS))?)
            }
        };
        let natural = law.output_tokens;
        let output_tokens = exact.unwrap_or_else(|| limit.map_or(natural, |l| l.min(natural)));
        let parts =
            ["system", "instructions", "messages", "prompt", "input"].map(|key| text_tokens(&value[key]));
        Ok(Self {
            model: value["model"].as_str().unwrap_or("tide-1").to_owned(),
            stream: value["stream"].as_bool().unwrap_or(false),
            include_usage: value["stream_options"]["include_usage"].as_bool().unwrap_or(false),
            output_tokens,
            cut_by_limit: exact.is_none() && output_tokens < natural,
            prompt_tokens: parts.iter().sum::<u64>().max(1),
            inputs: inputs(&value["input"]),
            base64: value["encoding_format"] == "base64",
            dimensions,
        })
    }
}

fn whole(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0)
}

/// Bytes of text over four; a token given as a number is one.
fn text_tokens(value: &Value) -> u64 {
    quarters(value).div_ceil(4)
}

fn quarters(value: &Value) -> u64 {
    match value {
        Value::String(text) => text.len() as u64,
        Value::Number(_) => 4,
        Value::Array(items) => items.iter().map(quarters).sum(),
        // A message's or a part's role and type are not text; its content may nest.
        Value::Object(fields) => {
            ["content", "text"].iter().filter_map(|k| fields.get(*k)).map(quarters).sum()
        }
        Value::Null | Value::Bool(_) => 0,
    }
}

/// An embeddings input is a text, a list of texts, a list of tokens, or a list of lists of tokens.
fn inputs(value: &Value) -> Vec<u64> {
    match value {
        Value::Array(items) if !items.iter().all(Value::is_number) => items.iter().map(text_tokens).collect(),
        Value::Null => Vec::new(),
        one => vec![text_tokens(one)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn ask(body: &Value) -> Result<Ask, Unreadable> {
        Ask::parse(
            &HeaderMap::new(),
            body.to_string().as_bytes(),
            &Law { output_tokens: 50, ..Law::default() },
        )
    }

    #[test]
    fn the_shortest_limit_wins_and_the_header_is_exact() {
        assert_eq!(ask(&json!({})).unwrap().output_tokens, 50);
        let short = ask(&json!({ "max_completion_tokens": 9 })).unwrap();
        assert_eq!((short.output_tokens, short.cut_by_limit), (9, true));
        let long = ask(&json!({ "max_output_tokens": 900 })).unwrap();
        assert_eq!((long.output_tokens, long.cut_by_limit), (50, false));
        let mut headers = HeaderMap::new();
        headers.insert(OUTPUT_TOKENS, "77".parse().unwrap());
        let exact = Ask::parse(&headers, br#"{"max_tokens": 5}"#, &Law::default()).unwrap();
        assert_eq!((exact.output_tokens, exact.cut_by_limit), (77, false));
    }

    #[test]
    fn what_cannot_be_read_says_why() {
        assert_eq!(ask(&json!({ "max_tokens": -1 })).unwrap_err(), Unreadable::Number("max_tokens"));
        assert!(matches!(ask(&json!([])).unwrap_err(), Unreadable::NotJson(_)));
        assert!(matches!(Ask::parse(&HeaderMap::new(), b"{", &Law::default()), Err(Unreadable::NotJson(_))));
    }

    #[test]
    fn prompts_are_counted_by_their_text_in_every_shape() {
        let (text, half) = ("x".repeat(400), "x".repeat(200));
        for body in [
            json!({ "messages": [{ "role": "user", "content": text }] }),
            json!({ "messages": [{ "role": "user", "content": [{ "type": "text", "text": text }] }] }),
            json!({ "prompt": text }),
            json!({ "input": text }),
            json!({ "input": [{ "role": "user", "content": [{ "type": "input_text", "text": text }] }] }),
            json!({ "system": half, "messages": [{ "role": "user", "content": half }] }),
        ] {
            assert_eq!(ask(&body).unwrap().prompt_tokens, 100, "{body}");
        }
        assert_eq!(ask(&json!({ "input": ["abcd", "abcdefgh"] })).unwrap().inputs, [1, 2]);
        assert_eq!(ask(&json!({ "input": [5, 6, 7] })).unwrap().inputs, [3]);
        assert_eq!(ask(&json!({ "input": [[5, 6], [7]] })).unwrap().inputs, [2, 1]);
    }
}
