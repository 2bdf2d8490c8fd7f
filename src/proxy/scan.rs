//! Reads the few fields of a request's JSON that admission needs, and skips the rest without keeping it.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use serde::Deserializer;
use serde::de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// What a request's JSON says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// The model it names.
    pub model: Option<String>,
    /// Where in the body that name stands, in JSON with its quotes.
    pub model_span: Option<Range<usize>>,
    /// It was not JSON but a form.
    pub form: bool,
    /// It has more than one `model`: whoever reads it may see another one than we do.
    pub ambiguous: bool,
    /// It asks for a stream.
    pub stream: bool,
    /// The most tokens it wants back.
    pub max_tokens: Option<u64>,
    /// It leaves something behind at the upstream: a background job, or a stored answer.
    pub lasting: bool,
}

/// Scans a body; `None` if it is not a JSON object. A field of a type it should not have counts as absent.
#[must_use]
pub fn scan(body: &[u8]) -> Option<Head> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let head = json.deserialize_map(HeadVisitor { body }).ok()?;
    json.end().ok()?;
    Some(head)
}

struct HeadVisitor<'b> {
    /// What is being read, to tell where in it something stands.
    body: &'b [u8],
}

impl<'de> Visitor<'de> for HeadVisitor<'_> {
    type Value = Head;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Head, A::Error> {
        let mut head = Head::default();
        let mut seen_model = false;
        while let Some(key) = map.next_key_seed(Text)? {
            match key.as_deref() {
                Some("model") => {
                    let raw = map.next_value::<&'de RawValue>()?.get();
                    let mut json = serde_json::Deserializer::from_str(raw);
                    let value = AnyScalar.deserialize(&mut json).map_err(A::Error::custom)?;
                    head.ambiguous |= seen_model;
                    seen_model = true;
                    // as most readers have it, the last one counts
                    (head.model, head.model_span) = match value {
                        Scalar::Text(model) => (Some(model.into_owned()), span(self.body, raw)),
                        _ => (None, None),
                    };
                }
                Some("stream") => head.stream = matches!(map.next_value_seed(AnyScalar)?, Scalar::Bool(true)),
                Some("background" | "store") => {
                    head.lasting |= matches!(map.next_value_seed(AnyScalar)?, Scalar::Bool(true));
                }
                Some("max_tokens" | "max_completion_tokens" | "max_output_tokens") => {
                    if let Scalar::Number(n) = map.next_value_seed(AnyScalar)? {
                        head.max_tokens = Some(n);
                    }
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(head)
    }
}

/// Where `part`, which is borrowed from `whole`, stands in it.
fn span(whole: &[u8], part: &str) -> Option<Range<usize>> {
    let start = part.as_ptr().addr().checked_sub(whole.as_ptr().addr())?;
    let span = start..start.checked_add(part.len())?;
    (whole.get(span.clone())? == part.as_bytes()).then_some(span)
}

/// A string, borrowed from the body where it has no escapes.
struct Text;

impl<'de> DeserializeSeed<'de> for Text {
    type Value = Option<Cow<'de, str>>;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Self::Value, D::Error> {
        Ok(match AnyScalar.deserialize(d)? {
            Scalar::Text(text) => Some(text),
            _ => None,
        })
    }
}

enum Scalar<'de> {
    Text(Cow<'de, str>),
    Number(u64),
    Bool(bool),
    Other,
}

struct AnyScalar;

impl<'de> DeserializeSeed<'de> for AnyScalar {
    type Value = Scalar<'de>;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Self::Value, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for AnyScalar {
    type Value = Scalar<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_borrowed_str<E: Error>(self, s: &'de str) -> Result<Self::Value, E> {
        Ok(Scalar::Text(Cow::Borrowed(s)))
    }

    fn visit_str<E: Error>(self, s: &str) -> Result<Self::Value, E> {
        Ok(Scalar::Text(Cow::Owned(s.to_owned())))
    }

    fn visit_bool<E: Error>(self, b: bool) -> Result<Self::Value, E> {
        Ok(Scalar::Bool(b))
    }

    fn visit_u64<E: Error>(self, n: u64) -> Result<Self::Value, E> {
        Ok(Scalar::Number(n))
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Self::Value, E> {
        Ok(Scalar::Other)
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Self::Value, E> {
        Ok(Scalar::Other)
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(Scalar::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Scalar::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Scalar::Other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(model: Option<&str>, stream: bool, max_tokens: Option<u64>) -> Option<Head> {
        let model = model.map(str::to_owned);
        Some(Head { model, stream, max_tokens, ..Head::default() })
    }

    /// Without where things stand.
    fn read(body: &[u8]) -> Option<Head> {
        scan(body).map(|head| Head { model_span: None, ..head })
    }

    #[test]
    fn the_model_s_place_is_its_string_with_its_quotes() {
        for (body, text) in [
            (&br#"{"model":"gpt-4o","x":1}"#[..], "\"gpt-4o\""),
            (br#" { "x" : {"model":"no"}, "mod\u0065l" : "a\n\"b" } "#, r#""a\n\"b""#),
            ("{\"a\":\"é\",\"model\":\"ü\"}".as_bytes(), "\"ü\""),
            (br#"{"model":""}"#, "\"\""),
        ] {
            let head = scan(body).unwrap();
            assert_eq!(&body[head.model_span.unwrap()], text.as_bytes());
            assert!(!head.ambiguous);
        }
        for body in [&b"{}"[..], br#"{"model":1}"#, br#"{"model":["a"]}"#, br#"{"model":null}"#] {
            assert_eq!(scan(body).unwrap().model_span, None);
        }
    }

    #[test]
    fn a_second_model_is_told() {
        let head = scan(br#"{"model":"a","model":"b"}"#).unwrap();
        assert_eq!((head.model.as_deref(), head.model_span, head.ambiguous), (Some("b"), Some(21..24), true));
        assert!(scan(br#"{"model":1,"model":"b"}"#).unwrap().ambiguous);
        assert!(scan(br#"{"model":"b","model":null}"#).unwrap().ambiguous);
        assert_eq!(read(br#"{"model":"\ud800"}"#), None, "half a sign is no text");
    }

    #[test]
    fn finds_its_fields_among_others() {
        let body =
            br#" {"messages":[{"role":"user","content":"\"model\":\"x\""}],"model":"gpt-4o","stream":true,
            "max_tokens":null,"max_completion_tokens":12,"tools":[{"stream":false}]} "#;
        assert_eq!(read(body), head(Some("gpt-4o"), true, Some(12)));
        assert_eq!(read(br#"{"mod\u0065l":"a\nb"}"#), head(Some("a\nb"), false, None));
        assert_eq!(read(b"{}"), head(None, false, None));
        assert!(scan(br#"{"store":false,"background":true}"#).unwrap().lasting);
        assert!(!scan(br#"{"store":false,"background":null}"#).unwrap().lasting);
    }

    #[test]
    fn a_field_of_the_wrong_type_is_absent_and_anything_but_an_object_is_nothing() {
        assert_eq!(read(br#"{"model":{"a":[1]},"stream":"yes","max_tokens":-1}"#), head(None, false, None));
        for body in [&b""[..], b"[]", b"\"model\"", b"{\"model\":\"x\"", b"{} {}", b"\xff"] {
            assert_eq!(scan(body), None, "{body:?}");
        }
        let deep = format!("{{\"a\":{}1{},\"model\":\"m\"}}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(scan(deep.as_bytes()).and_then(|h| h.model).as_deref(), Some("m"), "no stack to overflow");
    }
}
