//! The one SSE event that is sent over and over, known byte for byte to both ends. It carries the
//! microsecond it was written at, so that the reader sees how long each event was under way.

use std::time::{SystemTime, UNIX_EPOCH};

const BEFORE: &[u8] = b"data: {\"id\":\"chatcmpl-peers\",\"object\":\"chat.completion.chunk\",\"created\":1760000000,\"model\":\"fake-model\",\"system_fingerprint\":\"";
const AFTER: &[u8] =
    b"\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" token\"},\"logprobs\":null,\"finish_reason\":null}]}\n\n";
const DIGITS: usize = 16;
const LENGTH: usize = BEFORE.len() + DIGITS + AFTER.len();

/// What ends a stream, as OpenAI does it.
pub const DONE: &[u8] = b"data: [DONE]\n\n";

pub fn now_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros() as u64)
}

/// One event framed as one HTTP chunk, to be stamped and written again and again.
pub struct Stamp {
    bytes: Vec<u8>,
    at: usize,
}

impl Stamp {
    pub fn new() -> Self {
        let mut bytes = format!("{LENGTH:x}\r\n").into_bytes();
        let at = bytes.len() + BEFORE.len();
        bytes.extend_from_slice(BEFORE);
        bytes.extend_from_slice(&[b'0'; DIGITS]);
        bytes.extend_from_slice(AFTER);
        bytes.extend_from_slice(b"\r\n");
        Self { bytes, at }
    }

    pub fn stamped(&mut self) -> &[u8] {
        let mut left = now_us();
        for digit in self.bytes[self.at..self.at + DIGITS].iter_mut().rev() {
            *digit = b'0' + (left % 10) as u8;
            left /= 10;
        }
        &self.bytes
    }
}

/// What an arriving event was.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    Sent {
        at_us: u64,
    },
    Done,
    /// Not what the upstream wrote.
    Damaged,
}

/// Puts events together again from pieces cut anywhere.
#[derive(Default)]
pub struct Events {
    pending: Vec<u8>,
}

impl Events {
    pub fn push(&mut self, piece: &[u8], mut each: impl FnMut(Event)) {
        self.pending.extend_from_slice(piece);
        let mut from = 0;
        loop {
            let rest = &self.pending[from..];
            let whole = rest.len() >= LENGTH && rest[LENGTH - 2..LENGTH] == *b"\n\n";
            let end = match whole {
                true => LENGTH,
                false => match rest.windows(2).position(|w| w == b"\n\n") {
                    Some(at) => at + 2,
                    None => break,
                },
            };
            each(read(&rest[..end]));
            from += end;
        }
        self.pending.drain(..from);
    }
}

fn read(event: &[u8]) -> Event {
    if event == DONE {
        return Event::Done;
    }
    let digits = event.strip_prefix(BEFORE).and_then(|rest| rest.strip_suffix(AFTER));
    let digits = digits.filter(|digits| digits.len() == DIGITS && digits.iter().all(u8::is_ascii_digit));
    match digits {
        Some(digits) => {
            Event::Sent { at_us: digits.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0')) }
        }
        None => Event::Damaged,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_survive_every_cut() {
        let mut stamp = Stamp::new();
        let framed = stamp.stamped().to_vec();
        let event = &framed[framed.len() - 2 - LENGTH..framed.len() - 2];
        let mut bytes = [event, event, DONE].concat();
        for cut in 0..bytes.len() {
            let mut seen = Vec::new();
            let mut events = Events::default();
            events.push(&bytes[..cut], |event| seen.push(event));
            events.push(&bytes[cut..], |event| seen.push(event));
            assert_eq!(seen.len(), 3, "cut at {cut}");
            assert!(matches!(seen[0], Event::Sent { at_us } if at_us.abs_diff(now_us()) < 60_000_000));
            assert_eq!(seen[2], Event::Done);
        }
        bytes[20] ^= 1;
        let mut seen = Vec::new();
        Events::default().push(&bytes, |event| seen.push(event));
        assert_eq!(seen[0], Event::Damaged);
    }
}
