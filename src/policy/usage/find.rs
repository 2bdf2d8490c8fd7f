//! Finds the next byte of a kind, many bytes at a time.
//!
//! Nearly all of an answer is text between two quotes, or a vector of numbers. Walking through that byte by byte
//! would cost more than the rest of the scan together.

/// Bytes looked at in one go. The compiler makes a few vector instructions of it.
const BLOCK: usize = 32;

/// Where the first byte is for which `wanted` holds.
#[inline(always)]
fn first(bytes: &[u8], wanted: impl Fn(u8) -> bool + Copy) -> Option<usize> {
    let (blocks, rest) = bytes.as_chunks::<BLOCK>();
    for (n, block) in blocks.iter().enumerate() {
        if block.iter().fold(false, |any, &b| any | wanted(b)) {
            return block.iter().position(|&b| wanted(b)).map(|at| n * BLOCK + at);
        }
    }
    let at = rest.iter().position(|&b| wanted(b))?;
    Some(blocks.len() * BLOCK + at)
}

/// The end of a line: CR or LF.
pub(super) fn line_end(bytes: &[u8]) -> Option<usize> {
    first(bytes, |b| (b == b'\n') | (b == b'\r'))
}

/// What ends or interrupts the plain text of a string: a quote or a backslash.
pub(super) fn quote_or_escape(bytes: &[u8]) -> Option<usize> {
    first(bytes, |b| (b == b'"') | (b == b'\\'))
}

/// What matters between the brackets of a value that is skipped: a bracket, a brace or a quote.
pub(super) fn bracket_or_quote(bytes: &[u8]) -> Option<usize> {
    // `[` and `{`, `]` and `}` differ in one bit
    first(bytes, |b| (b | 0x20 == b'{') | (b | 0x20 == b'}') | (b == b'"'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_first_wherever_it_is_and_nothing_else() {
        for len in 0..100 {
            let plain = vec![b'x'; len];
            for find in [line_end, quote_or_escape, bracket_or_quote] {
                assert_eq!(find(&plain), None, "{len}");
            }
            for at in 0..len {
                let mut bytes = plain.clone();
                bytes[len - 1] = b'"';
                bytes[at] = b'"';
                assert_eq!(quote_or_escape(&bytes), Some(at), "{at} of {len}");
                bytes[len - 1] = b'\n';
                bytes[at] = b'\r';
                assert_eq!(line_end(&bytes), Some(at), "{at} of {len}");
            }
        }
    }

    #[test]
    fn every_byte_is_one_of_them_or_not() {
        for b in 0..=u8::MAX {
            assert_eq!(line_end(&[b]).is_some(), b"\r\n".contains(&b), "{b}");
            assert_eq!(quote_or_escape(&[b]).is_some(), b"\"\\".contains(&b), "{b}");
            assert_eq!(bracket_or_quote(&[b]).is_some(), b"\"[]{}".contains(&b), "{b}");
        }
    }
}
