//! Reads what an answer cost while it passes: one JSON object, or an event stream of them.
//!
//! The meter feeds it each piece of the body as it goes by. It needs no piece twice, keeps none, and comes to the
//! same result however the body is cut. Event streams are taken apart as in the HTML standard, section 9.2.6
//! "Interpreting an event stream": lines end with LF, CR or CRLF, one byte order mark may come first, an event's
//! `data` lines are one document, a blank line ends it, and other fields and comments do not matter.

use super::find;
use super::json::Walk;
use super::places::Findings;
use super::tokens::Usage;

/// The form of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// One JSON object.
    Json,
    /// `text/event-stream`: a JSON object in each event.
    Events,
}

/// What one piece of a body brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Events in which this piece showed a bit of the answer: text, reasoning or a call. Where the upstream reports no
    /// usage, their number stands for the number of tokens.
    pub events: u32,
    /// One of them was the first.
    pub first: bool,
}

/// What a body has said of itself so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scanned {
    /// What it cost, if it says so.
    pub usage: Option<Usage>,
    /// Events that carried a bit of the answer; 0 where the body is not a stream.
    pub events: u64,
    /// It reports an error, whatever its status said.
    pub error: bool,
    /// It said that it is over: `[DONE]`, the dialect's last event, or the end of the object.
    pub finished: bool,
}

/// Where in a line of an event stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    /// In the field's name, of which so much is `data` so far.
    Name(usize),
    /// After `data:`, where one space does not count.
    Space,
    Data,
    /// Another field, or a comment.
    Other,
}

const DATA: &[u8] = b"data";
const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// The scan of one body. Of a fixed size; it allocates nothing.
#[derive(Clone, Debug)]
pub struct UsageScan {
    form: Form,
    walk: Walk,
    findings: Findings,
    /// Bytes of a byte order mark that were seen, while one may still come.
    mark: Option<usize>,
    line: Line,
    /// The byte before was a CR, so that an LF belongs to it.
    after_cr: bool,
    /// The event has had data.
    data: bool,
    /// The event has been counted.
    counted: bool,
    events: u64,
}

impl UsageScan {
    /// A scan of a body of this form.
    #[must_use]
    pub fn new(form: Form) -> Self {
        Self {
            form,
            walk: Walk::new(form),
            findings: Findings::default(),
            mark: Some(0),
            line: Line::Name(0),
            after_cr: false,
            data: false,
            counted: false,
            events: 0,
        }
    }

    /// The next piece of the body.
    pub fn feed(&mut self, piece: &[u8]) -> Seen {
        let mut seen = Seen::default();
        let piece = self.without_mark(piece);
        match self.form {
            Form::Json => self.walk.walk(piece, &mut self.findings),
            Form::Events => self.lines(piece, &mut seen),
        }
        seen
    }

    /// What was said up to now, also if the body broke off here.
    #[must_use]
    pub fn finish(&self) -> Scanned {
        Scanned {
            usage: self.findings.found.usage(),
            events: self.events,
            error: self.findings.error,
            finished: self.findings.finished,
        }
    }

    /// The piece without the byte order mark, or the part of it, that it begins with.
    fn without_mark<'a>(&mut self, mut piece: &'a [u8]) -> &'a [u8] {
        while let (Some(seen), Some((&byte, rest))) = (self.mark, piece.split_first()) {
            if BYTE_ORDER_MARK.get(seen) == Some(&byte) {
                self.mark = Some(seen + 1).filter(|seen| *seen < BYTE_ORDER_MARK.len());
                piece = rest;
            } else {
                self.mark = None;
                if seen > 0 {
                    // half a mark is text like any other, and no text of ours begins so
                    self.line = Line::Other;
                    self.walk.give_up();
                }
            }
        }
        piece
    }

    fn lines(&mut self, mut piece: &[u8], seen: &mut Seen) {
        while let Some(&byte) = piece.first() {
            let after_cr = std::mem::take(&mut self.after_cr);
            if after_cr && byte == b'\n' {
                piece = piece.get(1..).unwrap_or_default();
                continue;
            }
            let end = find::line_end(piece);
            let (part, rest) = piece.split_at(end.unwrap_or(piece.len()));
            self.part(part, seen);
            if let Some((&end, rest)) = rest.split_first() {
                self.after_cr = end == b'\r';
                self.end_line();
                piece = rest;
            } else {
                piece = rest;
            }
        }
    }

    /// A part of a line.
    fn part(&mut self, mut part: &[u8], seen: &mut Seen) {
        while let Some((&byte, rest)) = part.split_first() {
            match self.line {
                Line::Other => return,
                Line::Data => {
                    self.walk.walk(part, &mut self.findings);
                    self.count(seen);
                    return;
                }
                Line::Space => {
                    self.line = Line::Data;
                    if byte == b' ' {
                        part = rest;
                    }
                    self.begin_data();
                }
                Line::Name(so_far) => {
                    self.line = match DATA.get(so_far) {
                        Some(expected) if *expected == byte => Line::Name(so_far + 1),
                        None if byte == b':' => Line::Space,
                        _ => Line::Other,
                    };
                    part = rest;
                }
            }
        }
    }

    /// An event's data lines are one document, with line ends in between.
    fn begin_data(&mut self) {
        if self.data {
            self.walk.walk(b"\n", &mut self.findings);
        }
        self.data = true;
    }

    fn count(&mut self, seen: &mut Seen) {
        if self.findings.output && !self.counted {
            self.counted = true;
            seen.first |= self.events == 0;
            seen.events += 1;
            self.events += 1;
        }
    }

    fn end_line(&mut self) {
        if self.line == Line::Name(0) {
            // a blank line ends the event
            self.walk.restart();
            self.findings.output = false;
            self.data = false;
            self.counted = false;
        }
        self.line = Line::Name(0);
    }
}
