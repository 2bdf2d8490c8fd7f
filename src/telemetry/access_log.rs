//! One JSON line per request. No prompt, no answer, no credential, no query string.
//!
//! `time` is when the request arrived, so that a log can be replayed as a workload; lines are in the
//! order in which requests ended.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;

use crate::policy::units::Tokens;
use crate::telemetry::Record;
use crate::telemetry::record::Spans;

/// The bytes of a name that came from outside which a line shows.
const MAX_NAME: usize = 256;

/// Writes one object. Every request pays for its line, and this takes a third of the time of a derived
/// serialiser: keys are literals, and only text from outside is searched for characters to escape.
struct Json<'a>(&'a mut Vec<u8>);

impl Json<'_> {
    /// Our own text, as it is.
    fn raw(&mut self, text: &str) -> &mut Self {
        self.0.extend_from_slice(text.as_bytes());
        self
    }

    /// Text from outside, quoted and escaped.
    fn text(&mut self, text: Option<&str>) -> &mut Self {
        // Writing to memory cannot fail.
        if serde_json::to_writer(&mut *self.0, &text).is_err() {
            self.raw("null");
        }
        self
    }

    fn quoted(&mut self, name: Option<&'static str>) -> &mut Self {
        match name {
            Some(name) => self.raw("\"").raw(name).raw("\""),
            None => self.raw("null"),
        }
    }

    fn flag(&mut self, flag: bool) -> &mut Self {
        self.raw(if flag { "true" } else { "false" })
    }

    fn number(&mut self, number: impl Into<u64>) -> &mut Self {
        let (mut rest, mut digits, mut at) = (number.into(), [b'0'; 20], 20);
        loop {
            at -= 1;
            digits[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                self.0.extend_from_slice(&digits[at..]);
                return self;
            }
        }
    }

    fn optional(&mut self, number: Option<u64>) -> &mut Self {
        match number {
            Some(number) => self.number(number),
            None => self.raw("null"),
        }
    }

    /// Milliseconds to the microsecond.
    fn ms(&mut self, span: Option<Duration>) -> &mut Self {
        let Some(span) = span else { return self.raw("null") };
        let micros = u64::try_from(span.as_micros()).unwrap_or(u64::MAX);
        let part = micros % 1000;
        self.number(micros / 1000);
        let digits = [part / 100, part / 10 % 10, part % 10].map(|digit| b'0' + digit as u8);
        self.0.push(b'.');
        self.0.extend_from_slice(&digits);
        self
    }

    /// The last `digits` hexadecimal digits of `number`.
    fn hex(&mut self, number: u128, digits: u32) -> &mut Self {
        let nibbles = (0..digits).rev().map(|i| (number >> (4 * i)) as u8 & 15);
        self.0.extend(nibbles.map(|n| if n < 10 { b'0' + n } else { b'a' + n - 10 }));
        self
    }
}

/// The longest beginning of `name` that is at most [`MAX_NAME`] bytes long.
fn cut(name: &str) -> &str {
    (0..=MAX_NAME.min(name.len())).rev().find_map(|end| name.get(..end)).unwrap_or_default()
}

/// Formats lines; one per worker, so that neither the buffers nor the calendar are made anew each time.
#[derive(Debug, Default)]
pub(super) struct Formatter {
    line: Vec<u8>,
    second: Option<i64>,
    time: String,
}

impl Formatter {
    /// The line of `record`, which arrived at `arrived`, with its line feed.
    pub(super) fn line(&mut self, arrived: SystemTime, record: &Record, spans: &Spans) -> &[u8] {
        self.set_time(arrived);
        let r = record;
        let upstream_id = r.upstream_request_id.as_ref().map(|id| String::from_utf8_lossy(id.as_bytes()));
        self.line.clear();
        let mut json = Json(&mut self.line);
        json.raw(r#"{"time":""#).raw(&self.time);
        json.raw(r#"","request_id":""#).hex(r.request_id.0, 32);
        json.raw(r#"","upstream_request_id":"#).text(upstream_id.as_deref().map(cut));
        json.raw(r#","tenant":""#).hex(r.tenant.0.into(), 16);
        json.raw(r#"","endpoint":"#).quoted(Some(r.endpoint.as_str()));
        json.raw(r#","model":"#).text(r.model.as_deref().map(cut));
        json.raw(r#","group":"#).text(Some(&r.group));
        json.raw(r#","upstream":"#).text(r.upstream.as_deref());
        json.raw(r#","status":"#).optional(r.status.map(u64::from));
        json.raw(r#","reason":"#).quoted(r.reason);
        json.raw(r#","outcome":"#).quoted(Some(r.ended.as_str()));
        json.raw(r#","stream":"#).flag(r.stream);
        json.raw(r#","queued":"#).flag(r.queued);
        json.raw(r#","priority":"#).quoted(Some(r.priority.as_str()));
        let (usage, count) = (r.cost.usage, |tokens: Option<Tokens>| tokens.map(|tokens| tokens.0));
        json.raw(r#","prompt_tokens":"#).optional(count(usage.prompt));
        json.raw(r#","cached_tokens":"#).optional(count(usage.cached));
        json.raw(r#","output_tokens":"#).optional(count(usage.output));
        json.raw(r#","reasoning_tokens":"#).optional(count(usage.reasoning));
        json.raw(r#","queue_ms":"#).ms(spans.queue);
        json.raw(r#","connect_ms":"#).ms(spans.connect);
        json.raw(r#","ttft_ms":"#).ms(spans.ttft);
        json.raw(r#","upstream_ms":"#).ms(spans.upstream);
        json.raw(r#","total_ms":"#).ms(Some(spans.total));
        json.raw(r#","attempts":"#).number(r.attempts);
        json.raw(r#","permits":"#).number(r.permits);
        json.raw(r#","in_flight":"#).number(r.in_flight);
        json.raw(r#","request_bytes":"#).number(r.request_bytes);
        json.raw(r#","response_bytes":"#).number(r.response_bytes).raw("}\n");
        &self.line
    }

    fn set_time(&mut self, at: SystemTime) {
        const TO_THE_SECOND: usize = "2026-01-01T00:00:00".len();
        let at = Timestamp::try_from(at).unwrap_or(Timestamp::UNIX_EPOCH);
        if self.second != Some(at.as_second()) {
            self.second = Some(at.as_second());
            self.time.clear();
            let _ = write!(self.time, "{}", at.strftime("%Y-%m-%dT%H:%M:%S"));
        }
        self.time.truncate(TO_THE_SECOND);
        self.time.push('.');
        let ms = at.subsec_millisecond();
        for digit in [ms / 100, ms / 10 % 10, ms % 10] {
            self.time.push(char::from(b'0' + digit.unsigned_abs() as u8));
        }
        self.time.push('Z');
    }
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;
    use serde_json::Value;

    use super::*;
    use crate::policy::units::{MonoTime, TenantId};
    use crate::telemetry::{Ended, Endpoint, RequestId};

    fn written(f: &mut Formatter, at: SystemTime, r: &Record, end: MonoTime) -> Value {
        let line = f.line(at, r, &r.spans(end));
        assert_eq!(line.iter().filter(|b| **b == b'\n').count(), 1, "one line");
        assert_eq!(line.last(), Some(&b'\n'));
        serde_json::from_slice(line).unwrap()
    }

    #[test]
    fn every_field_of_a_request_is_there_in_its_unit() {
        let s = MonoTime::from_secs;
        let mut r = Record::new(RequestId(0xab), Endpoint::Chat, "default", s(1));
        r.upstream_request_id = Some(HeaderValue::from_static("req_1"));
        (r.tenant, r.model, r.upstream) = (TenantId(0xbeef), Some("gpt".into()), Some("openai".into()));
        (r.status, r.ended, r.stream, r.queued) = (Some(200), Ended::Success, true, true);
        (r.asked, r.admitted, r.dispatched) = (Some(s(1)), Some(s(2)), Some(s(2)));
        r.connected = Some(s(2) + Duration::from_micros(1500));
        r.first_byte = Some(s(3));
        r.cost.usage.prompt = Some(Tokens(7));
        (r.cost.usage.output, r.cost.usage.reasoning) = (Some(Tokens(0)), Some(Tokens(3)));
        (r.attempts, r.permits, r.in_flight, r.request_bytes, r.response_bytes) = (1, 20, 5, 100, 2000);
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(1_767_225_600_007);
        let v = written(&mut Formatter::default(), at, &r, s(4));
        let want = serde_json::json!({
            "time": "2026-01-01T00:00:00.007Z", "request_id": "000000000000000000000000000000ab",
            "upstream_request_id": "req_1", "tenant": "000000000000beef", "endpoint": "chat",
            "model": "gpt", "group": "default", "upstream": "openai", "status": 200, "reason": null,
            "outcome": "success", "stream": true, "queued": true, "priority": "normal",
            "prompt_tokens": 7, "cached_tokens": null, "output_tokens": 0, "reasoning_tokens": 3,
            "queue_ms": 1000.0, "connect_ms": 1.5,
            "ttft_ms": 2000.0, "upstream_ms": 2000.0, "total_ms": 3000.0, "attempts": 1, "permits": 20,
            "in_flight": 5, "request_bytes": 100, "response_bytes": 2000
        });
        assert_eq!(v, want);
    }

    #[test]
    fn odd_names_stay_one_line_of_json_and_long_ones_are_cut() {
        let mut r = Record::new(RequestId(1), Endpoint::Other, "default", MonoTime::ZERO);
        let odd = "a\"b\\c\n\r\t\0\u{1b}\u{2028}é日本🦀";
        r.model = Some(odd.into());
        r.upstream_request_id = Some(HeaderValue::from_bytes(b"x\xff\"y").unwrap());
        let mut f = Formatter::default();
        let v = written(&mut f, SystemTime::UNIX_EPOCH, &r, MonoTime::ZERO);
        assert_eq!(v["model"], odd);
        assert_eq!(v["upstream_request_id"], "x\u{fffd}\"y");
        r.model = Some("é".repeat(1000).into());
        let v = written(&mut f, SystemTime::UNIX_EPOCH, &r, MonoTime::ZERO);
        assert_eq!(v["model"], "é".repeat(128));
    }

    #[test]
    fn numbers_are_written_as_the_standard_library_does() {
        let mut out = Vec::new();
        for n in [0, 1, 9, 10, 999, 1000, 1_000_000_007, u64::MAX] {
            out.clear();
            Json(&mut out).number(n);
            assert_eq!(out, n.to_string().as_bytes());
            out.clear();
            Json(&mut out).hex(n.into(), 16);
            assert_eq!(out, format!("{n:016x}").as_bytes());
        }
        out.clear();
        Json(&mut out).hex(u128::MAX - 5, 32).raw(" ").ms(Some(Duration::from_micros(12_034_005)));
        assert_eq!(out, format!("{:032x} 12034.005", u128::MAX - 5).as_bytes());
    }

    #[test]
    fn the_time_follows_the_clock_across_seconds_and_backwards() {
        let r = Record::new(RequestId(1), Endpoint::Other, "default", MonoTime::ZERO);
        let mut f = Formatter::default();
        for (millis, want) in [
            (1_767_225_599_999, "2025-12-31T23:59:59.999Z"),
            (1_767_225_600_000, "2026-01-01T00:00:00.000Z"),
            (1_767_225_600_120, "2026-01-01T00:00:00.120Z"),
            (1_767_225_599_001, "2025-12-31T23:59:59.001Z"),
        ] {
            let at = SystemTime::UNIX_EPOCH + Duration::from_millis(millis);
            assert_eq!(written(&mut f, at, &r, MonoTime::ZERO)["time"], want);
        }
    }
}
