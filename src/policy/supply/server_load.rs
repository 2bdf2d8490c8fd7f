//! What an inference server says of itself: its Prometheus page, as far as the limit can use it.
//!
//! Optional: the limit is learnt from the responses anyway, but a queue inside the server shows here before it shows in
//! anyone's first token. Read by the fleet's timer where the upstream has such a page; anything else on it,
//! or instead of it, is passed over.

/// Gauges of an inference server; `None` where it does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ServerLoad {
    /// Requests that run.
    pub running: Option<f64>,
    /// Requests that wait inside.
    pub waiting: Option<f64>,
    /// Share of the key-value cache in use, 0 to 1.
    pub kv_use: Option<f64>,
}

#[derive(Clone, Copy)]
enum Gauge {
    Running,
    Waiting,
    KvUse,
}

/// vLLM, llama.cpp, SGLang, Text Generation Inference. Several engines or models on one page add up.
const NAMES: [(&str, Gauge); 11] = [
    ("vllm:num_requests_running", Gauge::Running),
    ("vllm:num_requests_waiting", Gauge::Waiting),
    ("vllm:kv_cache_usage_perc", Gauge::KvUse),
    ("vllm:gpu_cache_usage_perc", Gauge::KvUse),
    ("llamacpp:requests_processing", Gauge::Running),
    ("llamacpp:requests_deferred", Gauge::Waiting),
    ("llamacpp:kv_cache_usage_ratio", Gauge::KvUse),
    ("sglang:num_running_reqs", Gauge::Running),
    ("sglang:num_queue_reqs", Gauge::Waiting),
    ("sglang:token_usage", Gauge::KvUse),
    ("tgi_queue_size", Gauge::Waiting),
];

/// A page longer than this is read no further, in bytes.
const MOST_BYTES: usize = 1 << 20;
const MOST_REQUESTS: f64 = 1e6;

impl ServerLoad {
    /// Reads a page in the Prometheus text format. Never fails: what is not understood says nothing.
    #[must_use]
    pub fn parse(page: &[u8]) -> Self {
        let mut load = Self::default();
        for line in page[..page.len().min(MOST_BYTES)].split(|b| *b == b'\n') {
            if let Some((gauge, value)) = std::str::from_utf8(line).ok().and_then(series) {
                load.add(gauge, value);
            }
        }
        load
    }

    /// Whether the page said anything of use.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.running.is_none() && self.waiting.is_none() && self.kv_use.is_none()
    }

    fn add(&mut self, gauge: Gauge, value: f64) {
        match gauge {
            Gauge::Running => self.running = Some((self.running.unwrap_or(0.0) + value).min(MOST_REQUESTS)),
            Gauge::Waiting => self.waiting = Some((self.waiting.unwrap_or(0.0) + value).min(MOST_REQUESTS)),
            Gauge::KvUse => self.kv_use = Some(self.kv_use.unwrap_or(0.0).max(value.min(1.0))),
        }
    }
}

/// `name{labels} value [timestamp]`, if the name is one of ours and the value a count or share.
fn series(line: &str) -> Option<(Gauge, f64)> {
    let line = line.trim();
    let end = line.find(['{', ' ', '\t'])?;
    let (name, rest) = line.split_at(end);
    let (_, gauge) = NAMES.iter().find(|(known, _)| *known == name)?;
    let rest = if rest.starts_with('{') { after_labels(rest)? } else { rest };
    let value: f64 = rest.split_ascii_whitespace().next()?.parse().ok()?;
    (value.is_finite() && value >= 0.0).then_some((*gauge, value))
}

/// What follows `{…}`; a closing brace within a quoted label value does not close it.
fn after_labels(text: &str) -> Option<&str> {
    let (mut quoted, mut escaped) = (false, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = quoted,
            b'"' => quoted = !quoted,
            b'}' if !quoted => return text.get(at + 1..),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pages_of_the_servers_there_are() {
        let vllm =
            b"# HELP vllm:num_requests_running Number of requests\n# TYPE vllm:num_requests_running gauge\n\
            vllm:num_requests_running{engine=\"0\",model_name=\"a}b\\\"\"} 12.0\n\
            vllm:num_requests_running{engine=\"1\",model_name=\"a\"} 3.0\n\
            vllm:num_requests_waiting{engine=\"0\"} 2.0\nvllm:kv_cache_usage_perc{engine=\"0\"} 0.5\n";
        let want = ServerLoad { running: Some(15.0), waiting: Some(2.0), kv_use: Some(0.5) };
        assert_eq!(ServerLoad::parse(vllm), want);
        let llama = b"llamacpp:requests_processing 2\r\nllamacpp:requests_deferred 5 1700000000000\r\n";
        let want = ServerLoad { running: Some(2.0), waiting: Some(5.0), kv_use: None };
        assert_eq!(ServerLoad::parse(llama), want);
    }

    #[test]
    fn anything_else_says_nothing() {
        for page in [
            &b""[..],
            b"{\"object\":\"error\"}",
            b"\xff\xfe\n\n",
            b"vllm:num_requests_running",
            b"vllm:num_requests_running{ 3",
            b"vllm:num_requests_running NaN\nvllm:num_requests_waiting +Inf\nvllm:kv_cache_usage_perc -1",
            b"vllm:num_requests_running_total 3",
            b"<html>llamacpp:requests_processing 3</html>",
        ] {
            assert!(ServerLoad::parse(page).is_empty(), "{:?}", String::from_utf8_lossy(page));
        }
        let huge = ServerLoad::parse(b"tgi_queue_size 1e300\nsglang:token_usage 7");
        assert_eq!((huge.waiting, huge.kv_use), (Some(MOST_REQUESTS), Some(1.0)));
        let long = [b"x 1\n".repeat(MOST_BYTES / 4), b"tgi_queue_size 1\n".to_vec()].concat();
        assert!(ServerLoad::parse(&long).is_empty());
    }
}
