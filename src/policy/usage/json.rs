//! Walks through one JSON document, in pieces of any size, and keeps what it says of usage.
//!
//! Only objects on the way to something of use are understood ([`places`](super::places)): at most four levels. The
//! value of any other key is skipped, however deep it is, by counting brackets outside of quotes. State is of a
//! fixed size and nothing is allocated.
//!
//! It does not judge: what is not JSON is ignored from where it stops being JSON, and a key that is written with
//! escapes is no key of ours. A number counts once the byte after it was seen, so that one that is cut off does not.

use super::find;
use super::places::{Findings, Node, Value, kind, meaning};
use super::scan::Form;

/// The place in the syntax.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Start,
    /// `[DONE]`, so many bytes of it.
    Done(u8),
    Key,
    Colon,
    Value,
    /// After a value: a comma or the end.
    Comma,
    /// In a key, or in a value of [`Value::Kind`].
    Text,
    /// In a string that is skipped.
    Quoted,
    /// After a backslash in one of the two.
    Escape,
    /// At the first byte of a string that counts unless it is empty.
    Quote,
    /// At the first byte of an object or array that counts unless it is empty.
    Bracket,
    /// In objects and arrays that are skipped.
    Skip,
    /// In a number that counts; false: it turned out to be none.
    Number(bool),
    /// In a number or word that does not count.
    Bare,
    /// Nothing more is to be learned from this document.
    Over,
}

/// Levels: root, choices, choice, delta, and root, response, usage, details.
const LEVELS: usize = 4;
/// Bytes of a key that are kept; the longest of ours has 27.
const TEXT: usize = 32;
const DONE: &[u8] = b"[DONE]";

/// The walk through one document.
#[derive(Clone, Debug)]
pub(super) struct Walk {
    form: Form,
    at: At,
    levels: [Node; LEVELS],
    depth: usize,
    /// Brackets open below the last level.
    skipping: u64,
    value: Value,
    text: [u8; TEXT],
    /// More than [`TEXT`]: it is nothing of ours.
    len: usize,
    in_key: bool,
    number: u32,
}

impl Walk {
    pub(super) const fn new(form: Form) -> Self {
        Self {
            form,
            at: At::Start,
            levels: [Node::Root; LEVELS],
            depth: 0,
            skipping: 0,
            value: Value::Nothing,
            text: [0; TEXT],
            len: 0,
            in_key: false,
            number: 0,
        }
    }

    /// A new document begins.
    pub(super) fn restart(&mut self) {
        self.at = At::Start;
        self.depth = 0;
        self.skipping = 0;
    }

    /// The rest of this document is of no use.
    pub(super) fn give_up(&mut self) {
        self.at = At::Over;
    }

    /// The next piece.
    pub(super) fn walk(&mut self, mut bytes: &[u8], findings: &mut Findings) {
        while let Some(&byte) = bytes.first() {
            let used = match self.at {
                At::Over => return,
                At::Text => self.text(bytes, findings),
                At::Quoted => self.quoted(bytes),
                At::Skip => self.skip(bytes),
                At::Number(_) => self.number(bytes, findings),
                At::Bare => self.bare(bytes),
                At::Quote | At::Bracket => self.filled(byte, findings),
                At::Escape => {
                    self.at = if self.len > 0 { At::Text } else { At::Quoted };
                    1
                }
                _ if byte.is_ascii_whitespace() => 1,
                At::Start => self.start(byte),
                At::Done(seen) => self.done(byte, seen, findings),
                At::Key => self.key(byte, findings),
                At::Colon => {
                    self.at = if byte == b':' { At::Value } else { At::Over };
                    1
                }
                At::Value => self.value(byte, findings),
                At::Comma => self.comma(byte, findings),
            };
            bytes = bytes.get(used..).unwrap_or_default();
        }
    }

    fn start(&mut self, byte: u8) -> usize {
        match byte {
            b'{' => self.enter(Node::Root),
            b'[' if self.form == Form::Events => self.at = At::Done(1),
            _ => self.at = At::Over,
        }
        1
    }

    fn done(&mut self, byte: u8, seen: u8, findings: &mut Findings) -> usize {
        let seen = seen + 1;
        let (mark, rest) = DONE.split_at(usize::from(seen).min(DONE.len()));
        self.at = match (mark.last() == Some(&byte), rest.is_empty()) {
            (true, false) => At::Done(seen),
            (same, _) => {
                findings.finished |= same;
                At::Over
            }
        };
        1
    }

    fn top(&self) -> Node {
        self.levels.get(self.depth.wrapping_sub(1)).copied().unwrap_or(Node::Root)
    }

    fn enter(&mut self, node: Node) {
        let Some(level) = self.levels.get_mut(self.depth) else {
            self.at = At::Over;
            return;
        };
        *level = node;
        self.depth += 1;
        self.open(node);
    }

    /// Before a member of `node`.
    fn open(&mut self, node: Node) {
        if node == Node::Choices {
            self.value = Value::Enter(Node::Choice);
            self.at = At::Value;
        } else {
            self.at = At::Key;
        }
    }

    fn leave(&mut self, closing: u8, findings: &mut Findings) {
        if closing != if self.top() == Node::Choices { b']' } else { b'}' } {
            self.at = At::Over;
            return;
        }
        self.depth -= 1;
        self.at = if self.depth == 0 { At::Over } else { At::Comma };
        findings.finished |= self.depth == 0 && self.form == Form::Json;
    }

    fn key(&mut self, byte: u8, findings: &mut Findings) -> usize {
        match byte {
            b'"' => self.collect(true),
            b'}' => self.leave(byte, findings),
            _ => self.at = At::Over,
        }
        1
    }

    fn comma(&mut self, byte: u8, findings: &mut Findings) -> usize {
        match byte {
            b',' => self.open(self.top()),
            b'}' | b']' => self.leave(byte, findings),
            _ => self.at = At::Over,
        }
        1
    }

    fn collect(&mut self, in_key: bool) {
        self.in_key = in_key;
        self.len = 0;
        self.at = At::Text;
    }

    fn text(&mut self, bytes: &[u8], findings: &mut Findings) -> usize {
        let end = find::quote_or_escape(bytes);
        let (run, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
        let len = self.len.saturating_add(run.len());
        if let Some(place) = self.text.get_mut(self.len..len) {
            place.copy_from_slice(run);
        }
        self.len = len.min(TEXT + 1);
        match rest.first() {
            None => return run.len(),
            Some(b'"') => {
                let text = self.text.get(..self.len).unwrap_or_default();
                if self.in_key {
                    self.value = meaning(self.top(), text, self.form);
                    self.at = At::Colon;
                } else {
                    kind(text, findings);
                    self.at = At::Comma;
                }
            }
            Some(_) => {
                self.len = TEXT + 1;
                self.at = At::Escape;
            }
        }
        run.len() + 1
    }

    fn value(&mut self, byte: u8, findings: &mut Findings) -> usize {
        match (byte, self.value) {
            (b']', _) if self.top() == Node::Choices => self.leave(byte, findings),
            (b'"', Value::Kind) => self.collect(false),
            (b'"', Value::Output | Value::Delta | Value::Error) => self.at = At::Quote,
            (b'"', _) => self.quote(),
            (b'{', Value::Enter(Node::Choices)) => self.bracket(At::Skip),
            (b'{', Value::Enter(node)) => self.enter(node),
            (b'{', Value::Delta) => self.enter(Node::Delta),
            (b'[', Value::Enter(Node::Choices)) => self.enter(Node::Choices),
            (b'{' | b'[', Value::Output | Value::Error) => self.bracket(At::Bracket),
            (b'{' | b'[', _) => self.bracket(At::Skip),
            (b'0'..=b'9', Value::Count(_)) => {
                self.number = 0;
                self.at = At::Number(true);
                return 0;
            }
            (b'}' | b']' | b',' | b':', _) => self.at = At::Over,
            _ => self.at = At::Bare,
        }
        1
    }

    /// A string begins that is skipped.
    fn quote(&mut self) {
        self.len = 0;
        self.at = At::Quoted;
    }

    /// An object or array begins that is skipped.
    fn bracket(&mut self, at: At) {
        self.skipping = 1;
        self.at = at;
    }

    /// The first byte within quotes or brackets that count unless they are empty.
    fn filled(&mut self, byte: u8, findings: &mut Findings) -> usize {
        let empty = if self.at == At::Quote {
            self.quote();
            byte == b'"'
        } else if byte.is_ascii_whitespace() {
            return 1;
        } else {
            self.at = At::Skip;
            matches!(byte, b'}' | b']')
        };
        let mark = if self.value == Value::Error { &mut findings.error } else { &mut findings.output };
        *mark |= !empty;
        0
    }

    fn quoted(&mut self, bytes: &[u8]) -> usize {
        let Some(end) = find::quote_or_escape(bytes) else { return bytes.len() };
        self.at = match bytes.get(end) {
            Some(b'\\') => At::Escape,
            _ if self.skipping > 0 => At::Skip,
            _ => At::Comma,
        };
        end + 1
    }

    fn skip(&mut self, bytes: &[u8]) -> usize {
        let Some(end) = find::bracket_or_quote(bytes) else { return bytes.len() };
        match bytes.get(end) {
            Some(b'"') => self.quote(),
            Some(b'{' | b'[') => self.skipping = self.skipping.saturating_add(1),
            _ => {
                self.skipping -= 1;
                if self.skipping == 0 {
                    self.at = At::Comma;
                }
            }
        }
        end + 1
    }

    fn number(&mut self, bytes: &[u8], findings: &mut Findings) -> usize {
        let end = bytes.iter().position(|b| !b.is_ascii_digit()).unwrap_or(bytes.len());
        let (digits, rest) = bytes.split_at(end);
        for digit in digits {
            self.number = self.number.saturating_mul(10).saturating_add(u32::from(digit - b'0'));
        }
        let Some(&next) = rest.first() else { return end };
        if !ends_bare(next) {
            // a fraction or worse: no count of anything
            self.at = At::Bare;
        } else {
            if let Value::Count(field) = self.value {
                findings.found.set(field, self.number);
            }
            self.at = At::Comma;
        }
        end
    }

    fn bare(&mut self, bytes: &[u8]) -> usize {
        match bytes.iter().position(|b| ends_bare(*b)) {
            None => bytes.len(),
            Some(end) => {
                self.at = At::Comma;
                end
            }
        }
    }
}

fn ends_bare(byte: u8) -> bool {
    matches!(byte, b',' | b'}' | b']') || byte.is_ascii_whitespace()
}
