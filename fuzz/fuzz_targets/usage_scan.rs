//! Any bytes can be the body of an answer, in any pieces, and say the same.
//!
//! The checks are those of `tests/usage_scan.rs`. The pieces follow from the bytes, so that a find is one file.

#![no_main]

#[path = "../../tests/support/pieces.rs"]
mod pieces;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    // FNV-1a of the body, then xorshift64: lengths from 1 to 64
    let mut state = body.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let lengths: Vec<usize> = (0..16)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            1 + (state % 64) as usize
        })
        .collect();
    pieces::same_in_any_pieces(body, &lengths);
});
