//! Just enough of a Rust reader to judge who names what: tokens with their lines, and the paths they form.
//!
//! Comments and the insides of strings are no tokens, so that prose cannot break a rule and a `//` inside a
//! string cannot hide one. Test modules (`#[cfg(test)] mod … { … }`) are left out.

use std::ops::Range;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    /// An identifier or keyword, without `r#`.
    Word(String),
    /// The inside of a string literal of any kind.
    Text(String),
    /// `::`
    Path,
    /// Any other character that means something.
    Mark(char),
    /// A number, a character or a lifetime: of no interest, but it separates.
    Other,
}

/// A path as it is written, from its first segment on: `use a::{b, c::*}` gives `a::b` and `a::c::*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) line: usize,
    pub(crate) segments: Vec<String>,
    /// What a `use` calls it here; empty where it is no `use`.
    pub(crate) alias: String,
}

impl Named {
    pub(crate) fn is_use(&self) -> bool {
        !self.alias.is_empty()
    }
}

/// One file, read.
pub(crate) struct Source {
    /// Relative to `src/`, with `/`.
    pub(crate) path: String,
    pub(crate) tokens: Vec<(Token, usize)>,
    pub(crate) paths: Vec<Named>,
    /// Lines that are not test modules.
    pub(crate) lines: usize,
}

impl Source {
    pub(crate) fn read(path: &str, text: &str) -> Self {
        let mut tokens = tokenize(text);
        let mut lines = text.lines().count();
        while let Some((span, first, last)) = test_module(&tokens) {
            lines -= last - first + 1;
            tokens.drain(span);
        }
        let paths = paths(&tokens);
        Self { path: path.to_owned(), tokens, paths, lines }
    }

    /// The module this file is: `proxy/gate.rs` is `[proxy, gate]`, `proxy/mod.rs` is `[proxy]`.
    pub(crate) fn module(&self) -> Vec<String> {
        let bare = self.path.trim_end_matches(".rs");
        let bare = bare.strip_suffix("/mod").unwrap_or(bare);
        if bare == "lib" || bare == "main" {
            Vec::new()
        } else {
            bare.split('/').map(str::to_owned).collect()
        }
    }

    /// The room a file belongs to: the first part of its path.
    pub(crate) fn room(&self) -> &str {
        self.path.split(['/', '.']).next().unwrap_or_default()
    }

    /// Where a path leads, counted from the crate's root; `None` if it does not begin in this crate.
    ///
    /// An inline module would shift `super`; the rules forbid those instead.
    pub(crate) fn resolve(&self, segments: &[String]) -> Option<Vec<String>> {
        let (mut at, mut rest) = (self.module(), segments);
        match rest.first()?.as_str() {
            "crate" => (at, rest) = (Vec::new(), &rest[1..]),
            // `main.rs` is a crate of its own and calls the library by its name
            "tidegate" => (at, rest) = (Vec::new(), &rest[1..]),
            "self" => rest = &rest[1..],
            "super" => {}
            _ => return None,
        }
        while rest.first().is_some_and(|s| s == "super") {
            at.pop();
            rest = &rest[1..];
        }
        at.extend(rest.iter().cloned());
        Some(at)
    }

    /// Lines at which `pattern` occurs: words, `::`, `.`, `(` and so on, separated by blanks.
    pub(crate) fn find(&self, pattern: &str) -> Vec<usize> {
        let wanted: Vec<Token> = pattern.split_whitespace().map(token_of).collect();
        let starts = self.tokens.windows(wanted.len());
        starts.filter(|w| w.iter().map(|(t, _)| t).eq(wanted.iter())).map(|w| w[0].1).collect()
    }

    /// The words of the file.
    pub(crate) fn words(&self) -> impl Iterator<Item = (&str, usize)> {
        self.tokens.iter().filter_map(|(t, line)| match t {
            Token::Word(w) => Some((w.as_str(), *line)),
            _ => None,
        })
    }

    /// The string literals of the file.
    pub(crate) fn texts(&self) -> impl Iterator<Item = (&str, usize)> {
        self.tokens.iter().filter_map(|(t, line)| match t {
            Token::Text(text) => Some((text.as_str(), *line)),
            _ => None,
        })
    }
}

fn token_of(written: &str) -> Token {
    match (written, written.chars().next()) {
        ("::", _) => Token::Path,
        (_, Some(c)) if !(c.is_alphanumeric() || c == '_') => Token::Mark(c),
        _ => Token::Word(written.to_owned()),
    }
}

/// Token range and first and last line of the first `#[cfg(test)] … mod name { … }`.
fn test_module(tokens: &[(Token, usize)]) -> Option<(Range<usize>, usize, usize)> {
    let is = |at: usize, what: &str| tokens.get(at).is_some_and(|(t, _)| *t == token_of(what));
    for start in 0..tokens.len() {
        let head = ["#", "[", "cfg", "(", "test", ")", "]"];
        if !head.iter().enumerate().all(|(n, what)| is(start + n, what)) {
            continue;
        }
        let mut at = start + head.len();
        while is(at, "#") {
            at = closing(tokens, at + 1)? + 1;
        }
        if is(at, "pub") {
            at += 1;
            if is(at, "(") {
                at = closing(tokens, at)? + 1;
            }
        }
        if is(at, "mod") && is(at + 2, "{") {
            let end = closing(tokens, at + 2)?;
            return Some((start..end + 1, tokens[start].1, tokens[end].1));
        }
    }
    None
}

/// The bracket that closes the one at `open`.
fn closing(tokens: &[(Token, usize)], open: usize) -> Option<usize> {
    let mut depth = 0_usize;
    for (at, (token, _)) in tokens.iter().enumerate().skip(open) {
        match token {
            Token::Mark('(' | '[' | '{') => depth += 1,
            Token::Mark(')' | ']' | '}') => {
                depth -= 1;
                if depth == 0 {
                    return Some(at);
                }
            }
            _ => {}
        }
    }
    None
}

fn paths(tokens: &[(Token, usize)]) -> Vec<Named> {
    let (mut found, mut at) = (Vec::new(), 0);
    let word = |at: usize| match tokens.get(at) {
        Some((Token::Word(w), line)) => Some((w.as_str(), *line)),
        _ => None,
    };
    while at < tokens.len() {
        match word(at) {
            // `use<'a>` is no import
            Some(("use", _)) if tokens.get(at + 1).is_some_and(|(t, _)| *t != Token::Mark('<')) => {
                at = tree(tokens, at + 1, &[], &mut found);
            }
            Some(("extern", line)) if word(at + 1).is_some_and(|(w, _)| w == "crate") => {
                let name = word(at + 2).map_or("", |(w, _)| w).to_owned();
                found.push(Named { line, segments: vec![name.clone()], alias: name });
                at += 3;
            }
            Some((first, line)) => {
                let mut segments = vec![first.to_owned()];
                at += 1;
                while let (Some((Token::Path, _)), Some((next, _))) = (tokens.get(at), word(at + 1)) {
                    segments.push(next.to_owned());
                    at += 2;
                }
                if segments.len() > 1 {
                    found.push(Named { line, segments, alias: String::new() });
                }
            }
            None => at += 1,
        }
    }
    found
}

/// Reads one use tree that begins at `at` below `prefix`; returns where it ends.
fn tree(tokens: &[(Token, usize)], mut at: usize, prefix: &[String], found: &mut Vec<Named>) -> usize {
    let mut segments = prefix.to_vec();
    let mut line = tokens.get(at).map_or(0, |(_, line)| *line);
    while let Some((token, here)) = tokens.get(at) {
        match token {
            Token::Path => at += 1,
            Token::Mark('{') => {
                at += 1;
                while tokens.get(at).is_some_and(|(t, _)| *t != Token::Mark('}')) {
                    at = tree(tokens, at, &segments, found);
                    at += usize::from(tokens.get(at).is_some_and(|(t, _)| *t == Token::Mark(',')));
                }
                return at + 1;
            }
            Token::Mark('*') => {
                line = *here;
                segments.push("*".into());
                at += 1;
            }
            Token::Word(w) if w == "as" => break,
            Token::Word(w) => {
                line = *here;
                // `a::{self}` names `a`
                if w != "self" || segments.is_empty() {
                    segments.push(w.clone());
                }
                at += 1;
            }
            _ => break,
        }
    }
    let mut alias = segments.last().cloned().unwrap_or_default();
    if let (Some((Token::Word(as_), _)), Some((Token::Word(name), _))) = (tokens.get(at), tokens.get(at + 1))
        && as_ == "as"
    {
        alias.clone_from(name);
        at += 2;
    }
    found.push(Named { line, segments, alias });
    at
}

fn tokenize(text: &str) -> Vec<(Token, usize)> {
    let chars: Vec<char> = text.chars().collect();
    let (mut at, mut line, mut tokens) = (0, 1, Vec::new());
    let get = |at: usize| chars.get(at).copied().unwrap_or('\0');
    while at < chars.len() {
        let (c, start, first_line) = (chars[at], at, line);
        let mut token = None;
        match c {
            '/' if get(at + 1) == '/' => {
                while at < chars.len() && chars[at] != '\n' {
                    at += 1;
                }
            }
            '/' if get(at + 1) == '*' => {
                let mut depth = 0;
                while at < chars.len() {
                    match (chars[at], get(at + 1)) {
                        ('/', '*') => (depth, at) = (depth + 1, at + 2),
                        ('*', '/') => (depth, at) = (depth - 1, at + 2),
                        _ => at += 1,
                    }
                    if depth == 0 {
                        break;
                    }
                }
            }
            '"' => (token, at) = string(&chars, at),
            '\'' => (token, at) = quote(&chars, at),
            ':' if get(at + 1) == ':' => (token, at) = (Some(Token::Path), at + 2),
            _ if c.is_ascii_digit() => {
                while get(at).is_alphanumeric() || get(at) == '_' {
                    at += 1;
                }
                token = Some(Token::Other);
            }
            _ if c.is_alphabetic() || c == '_' => {
                while get(at).is_alphanumeric() || get(at) == '_' {
                    at += 1;
                }
                let word: String = chars[start..at].iter().collect();
                let hashes = chars[at..].iter().take_while(|c| **c == '#').count();
                let raw = matches!(word.as_str(), "r" | "br" | "cr");
                if raw && get(at + hashes) == '"' {
                    (token, at) = raw_string(&chars, at + hashes + 1, hashes);
                } else if matches!(word.as_str(), "b" | "c") && get(at) == '"' {
                    (token, at) = string(&chars, at);
                } else if word == "b" && get(at) == '\'' {
                    (token, at) = quote(&chars, at);
                } else if raw && hashes == 1 {
                    // `r#type`: the word follows
                    at += 1;
                } else {
                    token = Some(Token::Word(word));
                }
            }
            _ => {
                at += 1;
                token = (!c.is_whitespace()).then_some(Token::Mark(c));
            }
        }
        line += chars[start..at].iter().filter(|c| **c == '\n').count();
        tokens.extend(token.map(|token| (token, first_line)));
    }
    tokens
}

/// A string that begins with the `"` at `at`.
fn string(chars: &[char], mut at: usize) -> (Option<Token>, usize) {
    let mut inside = String::new();
    at += 1;
    while at < chars.len() && chars[at] != '"' {
        let width = if chars[at] == '\\' { 2 } else { 1 };
        inside.extend(&chars[at..(at + width).min(chars.len())]);
        at += width;
    }
    (Some(Token::Text(inside)), (at + 1).min(chars.len()))
}

fn raw_string(chars: &[char], start: usize, hashes: usize) -> (Option<Token>, usize) {
    let ends =
        |at: usize| chars[at] == '"' && chars[at + 1..].iter().take_while(|c| **c == '#').count() >= hashes;
    let end = (start..chars.len()).find(|at| ends(*at)).unwrap_or(chars.len());
    (Some(Token::Text(chars[start..end].iter().collect())), (end + 1 + hashes).min(chars.len()))
}

/// A character literal or a lifetime.
fn quote(chars: &[char], at: usize) -> (Option<Token>, usize) {
    // `b'x'` is handed over at its quote, too
    let get = |at: usize| chars.get(at).copied().unwrap_or('\0');
    let mut end = at + 1;
    if get(end) == '\\' {
        end += 2;
        while end < chars.len() && get(end) != '\'' {
            end += 1;
        }
        end += 1;
    } else if get(end + 1) == '\'' {
        end += 2;
    } else {
        while get(end).is_alphanumeric() || get(end) == '_' {
            end += 1;
        }
    }
    (Some(Token::Other), end.min(chars.len()))
}
