//! What holds for the usage scan of any bytes, in any pieces. Its properties and its fuzz target share this.

use tidegate::policy::usage::{Form, Scanned, UsageScan};

/// Scans `body` in the pieces that `lengths` gives, over and over, and checks what the pieces brought.
pub(crate) fn in_pieces(form: Form, body: &[u8], lengths: &[usize]) -> Scanned {
    let mut scan = UsageScan::new(form);
    let (mut rest, mut events, mut firsts) = (body, 0, 0);
    let mut lengths = lengths.iter().cycle();
    while !rest.is_empty() {
        let length = lengths.next().copied().unwrap_or(rest.len());
        let (piece, after) = rest.split_at(length.clamp(1, rest.len()));
        let seen = scan.feed(piece);
        assert!(!seen.first || (seen.events > 0 && events == 0), "the first is in the first piece with any");
        events += u64::from(seen.events);
        firsts += u64::from(seen.first);
        rest = after;
    }
    let scanned = scan.finish();
    assert_eq!(events, scanned.events, "pieces and whole count the same events");
    assert_eq!(firsts, events.min(1), "exactly one is the first");
    scanned
}

/// However it is cut, a body says the same; a form that it has not is no harm.
pub(crate) fn same_in_any_pieces(body: &[u8], lengths: &[usize]) {
    for form in [Form::Json, Form::Events] {
        let whole = in_pieces(form, body, &[]);
        assert_eq!(in_pieces(form, body, lengths), whole, "{form:?} in pieces of {lengths:?}");
        assert_eq!(in_pieces(form, body, &[1]), whole, "{form:?} byte by byte");
        assert!(whole.events <= body.len() as u64 / 8, "an event has at least eight bytes");
    }
}
