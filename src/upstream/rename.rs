//! A model under another name: what clients ask for is what the upstream calls something else.
//!
//! Only the name's own bytes in the body change, so that whatever else stands there reaches the upstream as the
//! client wrote it: numbers, order, white space, fields nobody here knows.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use hyper::Uri;

use crate::upstream::Upstream;

/// `body` with the JSON string at `span`, quotes and all, in place of which `name` stands; `None`: no string
/// stands there.
#[must_use]
pub fn rename_model(body: &Bytes, span: Range<usize>, name: &str) -> Option<Bytes> {
    let old = body.get(span.clone())?;
    if old.len() < 2 || !old.starts_with(b"\"") || !old.ends_with(b"\"") {
        return None;
    }
    replace(body, span, &serde_json::to_string(name).ok()?)
}

/// The same with a form's value at `span`, which has no quotes.
#[must_use]
pub fn rename_in_form(body: &Bytes, span: Range<usize>, name: &str) -> Option<Bytes> {
    replace(body, span, name)
}

/// The path that asks for one model, with `name` in place of the one it asks for.
#[must_use]
pub fn rename_in_path(uri: &Uri, name: &str) -> Option<Uri> {
    let (before, _) = uri.path().split_once("/models/")?;
    let mut path = format!("{before}/models/");
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => path.push(byte.into()),
            _ => path.push_str(&format!("%{byte:02X}")),
        }
    }
    if let Some(query) = uri.query() {
        path.push('?');
        path.push_str(query);
    }
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(path.parse().ok()?);
    Uri::from_parts(parts).ok()
}

fn replace(body: &Bytes, span: Range<usize>, name: &str) -> Option<Bytes> {
    let (before, after) = (body.get(..span.start)?, body.get(span.end..)?);
    let mut renamed = BytesMut::with_capacity(before.len() + name.len() + after.len());
    renamed.extend_from_slice(before);
    renamed.extend_from_slice(name.as_bytes());
    renamed.extend_from_slice(after);
    Some(renamed.freeze())
}

impl Upstream {
    /// What it calls this model, where that is another name.
    #[must_use]
    pub fn renamed(&self, model: &str) -> Option<&str> {
        self.params.rename.get(model).map(String::as_str).filter(|name| *name != model)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_name_changes_and_it_stays_json() {
        let body = Bytes::from_static(br#"{ "a" : 1.0e0, "model" : "x\u0041" , "b":[] }"#);
        let at = |text: &str| {
            let start = body.windows(text.len()).position(|w| w == text.as_bytes()).unwrap();
            start..start + text.len()
        };
        let span = at(r#""x\u0041""#);
        for name in ["llama-3", "", "a\"b\\c\n\u{1}", "é\u{2028}😀", &"long".repeat(1000)] {
            let renamed = rename_model(&body, span.clone(), name).unwrap();
            let json: serde_json::Value = serde_json::from_slice(&renamed).unwrap();
            assert_eq!(json["model"], name);
            assert!(
                renamed.starts_with(br#"{ "a" : 1.0e0, "model" : "#) && renamed.ends_with(br#" , "b":[] }"#)
            );
        }
    }

    #[test]
    fn a_name_in_a_path_is_one_part_of_it() {
        let renamed =
            |uri: &'static str, name| rename_in_path(&Uri::from_static(uri), name).map(|u| u.to_string());
        assert_eq!(renamed("/v1/models/a?x=1", "org/B 2").as_deref(), Some("/v1/models/org%2FB%202?x=1"));
        assert_eq!(renamed("http://h/v1/models/a%2Fb", "c").as_deref(), Some("http://h/v1/models/c"));
        assert_eq!(renamed("/v1/realtime?model=a", "c"), None);
    }

    #[test]
    fn what_is_no_string_is_left_alone() {
        let body = Bytes::from_static(b"{\"model\":\"x\"}");
        for span in [0..0, 0..1, 9..10, 5..100, 100..200, 0..12, 9..13] {
            assert_eq!(rename_model(&body, span.clone(), "y"), None, "{span:?}");
        }
        #[expect(clippy::reversed_empty_ranges, reason = "what a caller got wrong")]
        let backwards = 12..9;
        assert_eq!(rename_model(&body, backwards, "y"), None);
        assert_eq!(rename_model(&body, 9..12, "y").unwrap(), "{\"model\":\"y\"}");
    }

    #[test]
    fn a_name_that_stays_the_same_is_no_rename() {
        let rename = [("a", "b"), ("c", "c")].map(|(x, y)| (x.to_owned(), y.to_owned())).into();
        let base_url = "http://up/v1".parse().unwrap();
        let params = crate::upstream::Params { rename, base_url, ..Default::default() };
        let upstream = Upstream::new(params, 1, crate::clock::Clock::start()).unwrap();
        assert_eq!(
            (upstream.renamed("a"), upstream.renamed("c"), upstream.renamed("d")),
            (Some("b"), None, None)
        );
    }
}
