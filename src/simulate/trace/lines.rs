//! Lines of a stream, one at a time, none longer than a bound: a file without line feeds must not fill memory.

use std::io::{self, BufRead};

/// Longer lines are cut here; what is cut is a bad row.
const MAX_LINE: usize = 1 << 20;

/// One line, without its end.
#[derive(Debug)]
pub(super) struct Line<'a> {
    /// Counted from 1.
    pub(super) number: u64,
    pub(super) text: std::borrow::Cow<'a, str>,
    /// It was longer than we read.
    pub(super) cut: bool,
}

/// The lines of `input`.
#[derive(Debug)]
pub(super) struct Lines<R> {
    input: R,
    line: Vec<u8>,
    number: u64,
    cut: bool,
    /// The line read last is to be read again: the first row of a file without a header.
    again: bool,
}

impl<R: BufRead> Lines<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input, line: Vec::new(), number: 0, cut: false, again: false }
    }

    /// The next line that is not blank; `None` at the end.
    pub(super) fn next(&mut self) -> io::Result<Option<Line<'_>>> {
        if std::mem::take(&mut self.again) {
            return Ok(Some(self.current()));
        }
        while self.fill()? {
            self.number += 1;
            let mark: &[u8] = if self.number == 1 { b"\xef\xbb\xbf" } else { b"" };
            if self.line.starts_with(mark) {
                self.line.drain(..mark.len());
            }
            if !self.line.trim_ascii().is_empty() {
                return Ok(Some(self.current()));
            }
        }
        Ok(None)
    }

    /// Gives the line that was read last once more.
    pub(super) fn push_back(&mut self) {
        self.again = true;
    }

    fn current(&self) -> Line<'_> {
        let text = String::from_utf8_lossy(self.line.trim_ascii());
        Line { number: self.number, text, cut: self.cut }
    }

    /// Whether there was another line.
    fn fill(&mut self) -> io::Result<bool> {
        self.line.clear();
        self.cut = false;
        let mut any = false;
        loop {
            let chunk = match self.input.fill_buf() {
                Ok(chunk) => chunk,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            };
            if chunk.is_empty() {
                return Ok(any);
            }
            any = true;
            let end = chunk.iter().position(|byte| *byte == b'\n');
            let part = chunk.get(..end.unwrap_or(chunk.len())).unwrap_or_default();
            let room = MAX_LINE - self.line.len();
            self.cut |= part.len() > room;
            self.line.extend_from_slice(part.get(..room.min(part.len())).unwrap_or_default());
            let used = part.len() + usize::from(end.is_some());
            self.input.consume(used);
            if end.is_some() {
                return Ok(true);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_numbered_and_blank_ones_left_out() {
        let mut lines = Lines::new(&b"\xef\xbb\xbfa\r\n\n \nb"[..]);
        let line = lines.next().unwrap().unwrap();
        assert_eq!((line.number, &*line.text), (1, "a"));
        lines.push_back();
        assert_eq!(lines.next().unwrap().unwrap().text, "a");
        let line = lines.next().unwrap().unwrap();
        assert_eq!((line.number, &*line.text), (4, "b"));
        assert!(lines.next().unwrap().is_none());
    }

    #[test]
    fn an_endless_line_is_cut() {
        let mut text = vec![b'x'; 3 * MAX_LINE];
        text.extend_from_slice(b"\nnext\n");
        let mut lines = Lines::new(io::BufReader::new(&text[..]));
        let line = lines.next().unwrap().unwrap();
        assert!(line.cut && line.text.len() == MAX_LINE);
        let line = lines.next().unwrap().unwrap();
        assert_eq!((line.number, &*line.text, line.cut), (2, "next", false));
    }
}
