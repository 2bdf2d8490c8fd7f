//! Small writes in one piece.
//!
//! hyper hands over a chunk as three slices: its length, its data, a line break. For a few hundred bytes
//! the kernel takes longer to gather them than we take to copy them together; large writes stay gathered.
//! Both sides of the proxy write through here.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::AsyncWrite;

/// Up to this many bytes are copied together.
const SMALL: usize = 2048;

/// Writes `bufs`, gathered or copied together, whichever is quicker. May write less than all of it.
pub fn poll_write_slices<W: AsyncWrite + ?Sized>(
    io: Pin<&mut W>,
    cx: &mut Context<'_>,
    bufs: &[IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    let total: usize = bufs.iter().map(|slice| slice.len()).sum();
    if bufs.len() > 1 && total <= SMALL {
        let mut joined = [0; SMALL];
        let mut end = 0;
        for slice in bufs {
            joined[end..end + slice.len()].copy_from_slice(slice);
            end += slice.len();
        }
        return io.poll_write(cx, &joined[..end]);
    }
    io.poll_write_vectored(cx, bufs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Waker;

    fn write(parts: &[&[u8]], room: usize) -> (usize, Vec<u8>) {
        let mut out = vec![0; room];
        let mut io = io::Cursor::new(&mut out[..]);
        let slices: Vec<_> = parts.iter().map(|p| IoSlice::new(p)).collect();
        let mut cx = Context::from_waker(Waker::noop());
        match poll_write_slices(Pin::new(&mut io), &mut cx, &slices) {
            Poll::Ready(Ok(n)) => (n, out[..n].to_vec()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_written_is_a_prefix_of_the_slices_together() {
        assert_eq!(write(&[b"5\r\n", b"hello", b"\r\n"], 100), (10, b"5\r\nhello\r\n".to_vec()));
        assert_eq!(write(&[b"5\r\n", b"hello", b"\r\n"], 4), (4, b"5\r\nh".to_vec()));
        assert_eq!(write(&[], 4).0, 0);
        let large = vec![7; SMALL];
        let (n, out) = write(&[b"a", &large], 10_000);
        assert!(n >= 1 && [b"a".as_slice(), &large].concat().starts_with(&out));
        assert_eq!(write(&[b"a", &large[..SMALL - 1]], 10_000).0, SMALL);
    }
}
