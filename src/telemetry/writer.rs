//! The thread that writes the access log.
//!
//! Workers append to one bounded buffer and never wait for a disk or a pipe: what does not fit is dropped
//! and counted. Without it one reader that stops reading standard output would stop the proxy.

use std::io::{self, ErrorKind, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use prometheus::IntCounter;

/// Bytes that may wait to be written, those being written included.
pub(super) const CAPACITY: usize = 8 << 20;
/// Bytes worth a write of their own.
const BATCH: usize = 64 << 10;
/// The longest a line waits for others to be written with.
const PAUSE: Duration = Duration::from_millis(100);
/// The longest a shutdown waits for a sink that does not take the rest.
const CLOSE: Duration = Duration::from_secs(5);

#[derive(Default)]
struct State {
    pending: Vec<u8>,
    writing: usize,
    closing: bool,
    finished: bool,
}

struct Shared {
    state: Mutex<State>,
    wake: Condvar,
    done: Condvar,
    capacity: usize,
    dropped: IntCounter,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A sink behind a bounded buffer and a thread.
pub(super) struct Writer {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Writer {
    pub(super) fn start(
        sink: Box<dyn Write + Send>,
        capacity: usize,
        dropped: IntCounter,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            wake: Condvar::new(),
            done: Condvar::new(),
            capacity,
            dropped,
        });
        let for_thread = shared.clone();
        let thread = std::thread::Builder::new()
            .name("access-log".into())
            .spawn(move || run(&for_thread, Sink { out: sink, failing: false, torn: false }))?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)) })
    }

    /// Hands over one line, its line feed included. Never blocks on the sink.
    pub(super) fn append(&self, line: &[u8]) {
        let mut state = self.shared.state();
        let before = state.pending.len();
        let after = before + line.len();
        if state.closing || after + state.writing > self.shared.capacity {
            drop(state);
            self.shared.dropped.inc();
            return;
        }
        state.pending.extend_from_slice(line);
        drop(state);
        if before == 0 || (before < BATCH && after >= BATCH) {
            self.shared.wake.notify_one();
        }
    }

    /// Writes what is left and ends the thread; later lines are dropped. Calling it again does nothing.
    pub(super) fn close(&self) {
        let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        self.shared.state().closing = true;
        self.shared.wake.notify_one();
        let waited = self.shared.done.wait_timeout_while(self.shared.state(), CLOSE, |s| !s.finished);
        let finished = waited.unwrap_or_else(PoisonError::into_inner).0.finished;
        if finished {
            let _ = thread.join();
        } else {
            tracing::warn!("the access log's sink takes no more: its last lines are lost");
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.close();
    }
}

fn run(shared: &Shared, mut sink: Sink) {
    let mut batch = Vec::new();
    loop {
        let state = shared.wake.wait_while(shared.state(), |s| s.pending.is_empty() && !s.closing);
        let state = state.unwrap_or_else(PoisonError::into_inner);
        let waited = shared.wake.wait_timeout_while(state, PAUSE, |s| s.pending.len() < BATCH && !s.closing);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner).0;
        std::mem::swap(&mut batch, &mut state.pending);
        state.writing = batch.len();
        drop(state);

        shared.dropped.inc_by(sink.write(&batch));
        batch.clear();
        batch.shrink_to(2 * BATCH);

        let mut state = shared.state();
        state.writing = 0;
        if state.closing && state.pending.is_empty() {
            state.finished = true;
            shared.done.notify_all();
            return;
        }
    }
}

struct Sink {
    out: Box<dyn Write + Send>,
    failing: bool,
    torn: bool,
}

impl Sink {
    /// Writes `batch`; returns how many of its lines were lost.
    fn write(&mut self, batch: &[u8]) -> u64 {
        let mut rest = batch;
        match self.write_some(&mut rest) {
            Ok(()) => {
                if self.failing {
                    tracing::info!("the access log is written again");
                }
                self.failing = false;
                0
            }
            Err(error) => {
                if !self.failing {
                    tracing::error!(%error, "the access log cannot be written: lines are lost until it can");
                }
                self.failing = true;
                rest.iter().filter(|byte| **byte == b'\n').count() as u64
            }
        }
    }

    fn write_some(&mut self, rest: &mut &[u8]) -> io::Result<()> {
        if self.torn {
            // Half a line is out; end it, so that only that one is spoilt.
            self.out.write_all(b"\n")?;
            self.torn = false;
        }
        while !rest.is_empty() {
            match self.out.write(rest) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) => {
                    self.torn = rest.get(n - 1) != Some(&b'\n');
                    *rest = rest.get(n..).unwrap_or_default();
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use super::*;

    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl Page {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl Write for Page {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Takes nothing before it is told to.
    struct Stuck(Receiver<()>, Page);

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            self.1.write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Takes `room` bytes and then says that the disk is full, once.
    struct Full(usize, bool, Page);

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.1 {
                return self.2.write(bytes);
            }
            let n = bytes.len().min(self.0);
            self.0 -= n;
            if n == 0 {
                self.1 = true;
                return Err(ErrorKind::StorageFull.into());
            }
            self.2.write(&bytes[..n])
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn dropped() -> IntCounter {
        IntCounter::new("dropped", "test").unwrap()
    }

    #[test]
    fn closing_writes_everything_and_may_be_repeated() {
        let (page, dropped) = (Page::default(), dropped());
        let w = Writer::start(Box::new(page.clone()), CAPACITY, dropped.clone()).unwrap();
        let lines: String = (0..5000).map(|n| format!("line {n}, long enough to fill batches\n")).collect();
        lines.split_inclusive('\n').for_each(|l| w.append(l.as_bytes()));
        w.close();
        w.close();
        assert_eq!(page.text(), lines);
        assert_eq!(dropped.get(), 0);
        w.append(b"late\n");
        assert_eq!(dropped.get(), 1);
        assert_eq!(page.text(), lines);
    }

    #[test]
    fn past_its_capacity_lines_are_dropped_and_counted_and_nobody_waits() {
        let (page, dropped) = (Page::default(), dropped());
        let (go, gate) = channel();
        let w = Writer::start(Box::new(Stuck(gate, page.clone())), 100, dropped.clone()).unwrap();
        for _ in 0..15 {
            w.append(b"123456789\n");
        }
        assert_eq!(dropped.get(), 5);
        drop(go);
        w.close();
        assert_eq!(page.text(), "123456789\n".repeat(10));
    }

    #[test]
    fn a_full_disk_costs_the_lines_it_did_not_take_and_no_other() {
        let page = Page::default();
        let mut sink = Sink { out: Box::new(Full(14, false, page.clone())), failing: false, torn: false };
        assert_eq!(sink.write(b"123456789\n123456789\n123456789\n"), 2);
        assert_eq!(sink.write(b"abc\n"), 0);
        assert_eq!(page.text(), "123456789\n1234\nabc\n");
    }
}
