//! Finds the model that a form names (`multipart/form-data`, RFC 7578): audio and images come so.
//!
//! Only the part `model` is looked at. Everything else is passed over with long steps, since most of it is sound. A form
//! that cannot be read names no model: the upstream judges it.

use std::ops::Range;

use crate::policy::usage::LONGEST_NAME;
use crate::proxy::scan::Head;

/// The longest boundary there is (RFC 2046 §5.1.1).
const BOUNDARY: usize = 70;

/// What a form's `Content-Type` says stands between its parts.
pub(super) fn boundary(content_type: &str) -> Option<&str> {
    let mut parameters = content_type.split(';');
    if !parameters.next()?.trim().eq_ignore_ascii_case("multipart/form-data") {
        return None;
    }
    let value = parameters.find_map(|p| value_of(p, "boundary"))?;
    (1..=BOUNDARY).contains(&value.len()).then_some(value)
}

/// What the form says of itself: its model, where that stands, and whether it can be read in two ways.
pub(super) fn scan(body: &[u8], boundary: &str) -> Head {
    let mut head = Head { form: true, ..Head::default() };
    let line = format!("\r\n--{boundary}");
    let finder = Finder::new(line.as_bytes());
    // the first boundary may be the first thing there is
    let first = line.get(2..).unwrap_or_default().as_bytes();
    let mut at = match body.starts_with(first) {
        true => Some(first.len()),
        false => finder.find(body, 0).map(|start| start + line.len()),
    };
    let mut named = false;
    while let Some(start) = at {
        let end = finder.find(body, start);
        let part = start..end.unwrap_or(body.len());
        // whose head is longer may be anything's, the model's too
        head.ambiguous |= has_long_head(body, part.clone());
        if let Some(value) = model(body, part) {
            let short = body.get(value.clone()).filter(|text| text.len() <= LONGEST_NAME);
            let text = short.and_then(|text| std::str::from_utf8(text).ok());
            head.ambiguous |= named || text.is_none();
            named = true;
            (head.model, head.model_span) = (text.map(str::to_owned), Some(value));
        }
        at = end.map(|end| end + line.len());
    }
    head
}

/// More than any part's head has that names a model.
const HEAD: usize = 1024;

/// Where a part's head ends, if it does in time.
fn blank(begin: &[u8]) -> Option<usize> {
    begin.windows(4).position(|four| four == b"\r\n\r\n")
}

/// Whether the part's head goes on for longer than is read of it.
fn has_long_head(body: &[u8], part: Range<usize>) -> bool {
    body.get(part).and_then(|text| text.get(..HEAD)).is_some_and(|begin| blank(begin).is_none())
}

/// Where in the body the value of this part stands, if it is `model`.
fn model(body: &[u8], part: Range<usize>) -> Option<Range<usize>> {
    let text = body.get(part.clone())?;
    let begin = text.get(..text.len().min(HEAD))?;
    let blank = blank(begin)?;
    let fields = std::str::from_utf8(begin.get(..blank)?).ok()?;
    let disposition = fields.split("\r\n").find_map(|field| {
        let (name, value) = field.split_once(':')?;
        name.trim().eq_ignore_ascii_case("content-disposition").then_some(value)
    })?;
    let is_model = disposition.split(';').find_map(|p| value_of(p, "name")) == Some("model");
    is_model.then_some(part.start + blank + 4..part.end)
}

/// The value of `name=value` or `name="value"`.
fn value_of<'a>(parameter: &'a str, name: &str) -> Option<&'a str> {
    let (found, value) = parameter.split_once('=')?;
    let value = value.trim();
    let bare = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value);
    found.trim().eq_ignore_ascii_case(name).then_some(bare)
}

/// Looks for bytes with steps of their length where it can (Horspool 1980).
struct Finder<'n> {
    needle: &'n [u8],
    /// How far it is from a byte's last place before the end to the end.
    steps: [usize; 256],
}

impl<'n> Finder<'n> {
    fn new(needle: &'n [u8]) -> Self {
        let mut steps = [needle.len(); 256];
        for (at, byte) in needle.iter().enumerate().take(needle.len().saturating_sub(1)) {
            steps[usize::from(*byte)] = needle.len() - 1 - at;
        }
        Self { needle, steps }
    }

    fn find(&self, body: &[u8], from: usize) -> Option<usize> {
        let mut at = from;
        loop {
            let window = body.get(at..at.checked_add(self.needle.len())?)?;
            if window == self.needle {
                return Some(at);
            }
            at += self.steps[usize::from(*window.last()?)];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(parts: &[(&str, &[u8])]) -> Vec<u8> {
        let mut body = Vec::new();
        for (head, value) in parts {
            body.extend_from_slice(format!("--xyz\r\n{head}\r\n\r\n").as_bytes());
            body.extend_from_slice(value);
            body.extend_from_slice(b"\r\n");
        }
        body.extend_from_slice(b"--xyz--\r\n");
        body
    }

    const MODEL: &str = "Content-Disposition: form-data; name=\"model\"";
    const FILE: &str =
        "Content-Disposition: form-data; name=\"file\"; filename=\"a.mp3\"\r\nContent-Type: audio/mpeg";

    #[test]
    fn the_model_is_found_among_sound_before_it_or_after_it() {
        let sound: Vec<u8> = (0..300_000_u32).map(|n| (n.wrapping_mul(n) >> 3) as u8).collect();
        let tricky = [&b"\r\n--xy\r\n--xyy\r\n\r\n--xy"[..], &sound].concat();
        for parts in [
            &[(MODEL, &b"whisper-1"[..])][..],
            &[(FILE, &tricky), (MODEL, b"whisper-1")],
            &[
                ("content-type: text/plain\r\ncontent-disposition:form-data;name=model", b"whisper-1"),
                (FILE, &tricky),
            ],
        ] {
            let body = form(parts);
            for body in [body.clone(), [&b"preamble\r\n"[..], &body].concat()] {
                let head = scan(&body, "xyz");
                assert_eq!((head.model.as_deref(), head.ambiguous), (Some("whisper-1"), false));
                assert_eq!(&body[head.model_span.unwrap()], b"whisper-1");
            }
        }
        assert!(scan(&form(&[(MODEL, b"a"), (FILE, &tricky), (MODEL, b"b")]), "xyz").ambiguous);
    }

    #[test]
    fn what_is_no_form_names_nothing() {
        let other = "Content-Disposition: form-data; name=\"model2\"";
        let long = [b'x'; LONGEST_NAME + 1];
        let padded = |by: usize| format!("x: {}\r\n{MODEL}", "y".repeat(by));
        // the head's end is part of what is read of it
        let fits = HEAD - padded(0).len() - "\r\n\r\n\r\n".len();
        assert_eq!(scan(&form(&[(&padded(fits), b"m")]), "xyz").model.as_deref(), Some("m"));
        for (body, ambiguous) in [
            (form(&[]), false),
            (form(&[(other, b"m"), ("x: y", b"m"), (FILE, b"model")]), false),
            (form(&[(MODEL, &long)]), true),
            (form(&[(&padded(fits + 1), b"m")]), true),
            (form(&[(&padded(5000), b"m")]), true),
            (form(&[(MODEL, b"\xff")]), true),
            (b"".to_vec(), false),
            (b"--xyz".to_vec(), false),
            (b"--xyz\r\n\r\n".to_vec(), false),
            (b"--xy\r\n".to_vec(), false),
        ] {
            let head = scan(&body, "xyz");
            assert_eq!(
                (head.model, head.ambiguous),
                (None, ambiguous),
                "{:?}",
                String::from_utf8_lossy(&body)
            );
        }
    }

    #[test]
    fn boundaries() {
        for (said, wanted) in [
            ("multipart/form-data; boundary=xyz", Some("xyz")),
            ("Multipart/Form-Data; charset=utf-8;Boundary=\"a b\"", Some("a b")),
            ("multipart/form-data", None),
            ("multipart/form-data; boundary=", None),
            ("multipart/mixed; boundary=xyz", None),
        ] {
            assert_eq!(boundary(said), wanted, "{said}");
        }
        assert_eq!(boundary(&format!("multipart/form-data; boundary={}", "x".repeat(71))), None);
    }
}
