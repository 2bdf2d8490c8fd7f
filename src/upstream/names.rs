//! The upstream's name and the addresses it has.
//!
//! A name is looked up again every `dns_refresh`, not with every connection: a burst that needs a hundred
//! connections asks once, and a resolver that fails or hangs for a minute stops nobody, because the last answer goes
//! on. Only where none of its addresses could be reached a connection asks itself, and does not wait long. One answer for some time would send every connection to its first address, so they take turns; one that
//! could not be reached goes last until the next answer (RFC 8305 §4).
//!
//! Who decides that a connection is to leave its address: [`Upstream::look_again`]. An address has left when two
//! answers in a row are without it: where a name has more addresses than an answer holds, answers differ.

use std::collections::BTreeSet;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use crate::upstream::Upstream;
use crate::upstream::pool::lock;

/// A look-up under way.
pub type Resolving<'a> = Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send + 'a>>;

/// Looks names up. The system does in production.
pub trait Resolve: Send + Sync {
    /// The addresses of `host`, best first, each with `port`.
    fn resolve<'a>(&'a self, host: &'a str, port: u16) -> Resolving<'a>;
}

/// The system's resolver: the hosts file, DNS and whatever else it is set up with.
#[derive(Clone, Copy, Debug, Default)]
pub struct System;

impl Resolve for System {
    fn resolve<'a>(&'a self, host: &'a str, port: u16) -> Resolving<'a> {
        Box::pin(async move { Ok(tokio::net::lookup_host((host, port)).await?.collect()) })
    }
}

/// How long a connection waits for a better answer than the last one.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long the resolver may take: one that never comes back would keep everybody else from asking.
const PATIENCE_WITH_RESOLVER: Duration = Duration::from_secs(30);

/// What the last answers said.
#[derive(Debug, Default)]
struct Answers {
    /// The last one, in its order.
    last: Vec<SocketAddr>,
    /// It is good until the next one comes.
    trusted: bool,
    /// Counts them.
    count: u64,
    /// Those of the one before.
    before: Vec<IpAddr>,
    /// Could not be reached since the last one came.
    failed: BTreeSet<IpAddr>,
    /// Connections begun, for whose turn it is.
    turn: usize,
}

/// One host, and what is known of its addresses.
pub(super) struct Name {
    host: String,
    port: u16,
    /// The host is an address already.
    literal: Option<IpAddr>,
    /// Somebody follows the name; else each connection asks.
    followed: bool,
    resolver: Arc<dyn Resolve>,
    answers: Mutex<Answers>,
    /// Held by whoever asks: a resolver that is slow is not asked by everybody.
    asking: tokio::sync::Mutex<()>,
}

impl Name {
    /// `host` may have the brackets of an IPv6 address.
    pub(super) fn new(host: &str, port: u16, refresh: Duration, resolver: Arc<dyn Resolve>) -> Self {
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let literal = host.parse().ok();
        let followed = !refresh.is_zero();
        Self {
            host,
            port,
            literal,
            followed,
            resolver,
            answers: Mutex::default(),
            asking: Default::default(),
        }
    }

    fn answers(&self) -> MutexGuard<'_, Answers> {
        lock(&self.answers)
    }

    /// The addresses to try, in order.
    pub(super) async fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        if let Some(ip) = self.literal {
            return Ok(vec![SocketAddr::new(ip, self.port)]);
        }
        let (trusted, known) = {
            let answers = self.answers();
            (answers.trusted, !answers.last.is_empty())
        };
        if !known {
            self.look_up().await?;
        } else if !self.followed {
            // nobody else asks: who left early would take the look-up along, and nobody would ever learn of its answer.
            // `connect_timeout` ends it
            drop(self.look_up().await);
        } else if !trusted {
            // whatever comes of it, there is the last answer
            drop(tokio::time::timeout(PATIENCE, self.look_up()).await);
        }
        Ok(self.answers().in_turn())
    }

    /// Asks the resolver, and keeps what it says. An empty answer is an error: no upstream has no address. Whoever
    /// comes while another asks takes that one's answer.
    pub(super) async fn look_up(&self) -> io::Result<()> {
        let before = self.answers().count;
        let _one = self.asking.lock().await;
        if self.answers().count != before {
            return Ok(());
        }
        let resolving = self.resolver.resolve(&self.host, self.port);
        let found = tokio::time::timeout(PATIENCE_WITH_RESOLVER, resolving).await??;
        if found.is_empty() {
            let none = format!("{} has no address", self.host);
            return Err(io::Error::new(io::ErrorKind::NotFound, none));
        }
        let mut answers = self.answers();
        answers.before = answers.last.iter().map(SocketAddr::ip).collect();
        answers.last = found;
        answers.trusted = self.followed;
        answers.count += 1;
        answers.failed.clear();
        Ok(())
    }

    /// It could not be reached: others are tried first until the next answer.
    pub(super) fn failed(&self, address: SocketAddr) {
        self.answers().failed.insert(address.ip());
    }

    /// None of its addresses could be reached: the next connection asks anew.
    pub(super) fn doubt(&self) {
        self.answers().trusted = false;
    }

    /// The addresses that connections may stay with: those of the last two answers. `None`: it is an address, or
    /// the resolver does not answer, which says nothing about the addresses.
    pub(super) async fn present(&self) -> Option<Vec<IpAddr>> {
        if self.literal.is_some() {
            return None;
        }
        if let Err(error) = self.look_up().await {
            tracing::debug!(host = %self.host, %error, "the name cannot be looked up; its addresses stay");
            return None;
        }
        let answers = self.answers();
        Some(answers.last.iter().map(SocketAddr::ip).chain(answers.before.iter().copied()).collect())
    }
}

impl Answers {
    /// Families in alternation, beginning with the first one's (RFC 8305 §4); within a family each takes its turn,
    /// and those that failed come last.
    fn in_turn(&mut self) -> Vec<SocketAddr> {
        let turn = self.turn;
        self.turn = turn.wrapping_add(1);
        let family = |wanted: bool| {
            let mut of: Vec<SocketAddr> =
                self.last.iter().copied().filter(|a| a.is_ipv6() == wanted).collect();
            let by = turn.checked_rem(of.len()).unwrap_or_default();
            of.rotate_left(by);
            of.sort_by_key(|address| self.failed.contains(&address.ip()));
            of
        };
        let first_is_v6 = self.last.first().is_some_and(SocketAddr::is_ipv6);
        let (mut one, mut other) = (family(first_is_v6).into_iter(), family(!first_is_v6).into_iter());
        let mut mixed = Vec::with_capacity(self.last.len());
        while mixed.len() < self.last.len() {
            mixed.extend(one.next());
            mixed.extend(other.next());
        }
        mixed.sort_by_key(|address| self.failed.contains(&address.ip()));
        mixed
    }
}

impl Upstream {
    /// Looks its name up again and has connections to addresses that have left end: idle ones now, others after
    /// what they serve. How many leave.
    pub async fn look_again(&self) -> usize {
        let Some(present) = self.dial.present().await else { return 0 };
        let leaving = self.pool.leave_all_but(&present);
        if leaving > 0 {
            tracing::info!(upstream = %self.name(), leaving, ?present, "its name has other addresses; connections leave");
        }
        leaving
    }
}

/// Looks again every `dns_refresh`. Runs until it is dropped.
pub async fn follow_dns(upstream: Arc<Upstream>) {
    let every = upstream.params().dns_refresh;
    if every.is_zero() {
        return std::future::pending().await;
    }
    loop {
        tokio::time::sleep(every).await;
        upstream.look_again().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers with what was last put in; an empty list is an error.
    #[derive(Default)]
    struct Book {
        page: Mutex<Vec<SocketAddr>>,
        asked: std::sync::atomic::AtomicUsize,
        takes: std::sync::atomic::AtomicU64,
    }

    impl Book {
        fn say(&self, addresses: &[&str]) {
            *lock(&self.page) = addresses.iter().map(|a| a.parse().unwrap()).collect();
        }

        fn takes(&self, secs: u64) {
            self.takes.store(secs, std::sync::atomic::Ordering::Relaxed);
        }

        fn asked(&self) -> usize {
            self.asked.load(std::sync::atomic::Ordering::Relaxed)
        }
    }

    impl Resolve for Book {
        fn resolve<'a>(&'a self, _: &'a str, _: u16) -> Resolving<'a> {
            self.asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let page = lock(&self.page).clone();
            let takes = self.takes.load(std::sync::atomic::Ordering::Relaxed);
            Box::pin(async move {
                tokio::task::yield_now().await;
                pass(takes).await;
                if page.is_empty() { Err(io::Error::other("down")) } else { Ok(page) }
            })
        }
    }

    fn name(refresh: u64) -> (Name, Arc<Book>) {
        let book = Arc::new(Book::default());
        (Name::new("host", 80, Duration::from_secs(refresh), book.clone()), book)
    }

    async fn ips(name: &Name) -> Vec<String> {
        name.addresses().await.unwrap().iter().map(|a| a.ip().to_string()).collect()
    }

    async fn pass(secs: u64) {
        tokio::time::sleep(Duration::from_secs(secs)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_used_until_the_next_one_or_until_it_is_doubted() {
        let (name, book) = name(30);
        assert!(name.addresses().await.is_err(), "nothing is known");
        book.say(&["10.0.0.1:80"]);
        for _ in 0..5 {
            assert_eq!(ips(&name).await, ["10.0.0.1"]);
        }
        assert_eq!(book.asked(), 2);
        book.say(&["10.0.0.2:80"]);
        pass(31).await;
        assert_eq!(ips(&name).await, ["10.0.0.1"], "who follows the name asks, not who connects");
        assert!(name.look_up().await.is_ok());
        assert_eq!(ips(&name).await, ["10.0.0.2"]);
        book.say(&[]);
        assert!(name.look_up().await.is_err());
        assert_eq!(ips(&name).await, ["10.0.0.2"], "the resolver is down");
        assert_eq!(book.asked(), 4);
        name.doubt();
        assert_eq!(ips(&name).await, ["10.0.0.2"], "it is still down");
        book.say(&["10.0.0.3:80"]);
        assert_eq!(ips(&name).await, ["10.0.0.3"], "asked anew");
        assert_eq!(book.asked(), 6);
    }

    #[tokio::test(start_paused = true)]
    async fn a_resolver_that_hangs_stops_nobody_who_knows_an_address() {
        let (name, book) = name(30);
        book.say(&["10.0.0.1:80"]);
        ips(&name).await;
        book.takes(3600);
        let clock = crate::clock::Clock::start();
        let passed = || clock.now().as_secs();
        pass(100).await;
        let mut follows = Box::pin(name.look_up());
        assert!(futures_util::poll!(follows.as_mut()).is_pending());
        assert_eq!(ips(&name).await, ["10.0.0.1"]);
        assert_eq!(passed(), 100);
        name.doubt();
        let all = (0..100).map(|_| ips(&name));
        for ips in futures_util::future::join_all(all).await {
            assert_eq!(ips, ["10.0.0.1"]);
        }
        assert_eq!(passed(), 101, "a moment's hope");
        assert_eq!(book.asked(), 2, "one at a time");
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_comes_while_another_asks_takes_its_answer() {
        let (name, book) = name(30);
        book.say(&["10.0.0.1:80"]);
        let all = (0..100).map(|_| ips(&name));
        for ips in futures_util::future::join_all(all).await {
            assert_eq!(ips, ["10.0.0.1"]);
        }
        assert_eq!(book.asked(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn addresses_take_turns_and_failed_ones_come_last() {
        let (name, book) = name(30);
        book.say(&["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"]);
        let mut firsts = BTreeSet::new();
        for _ in 0..3 {
            let ips = ips(&name).await;
            assert_eq!(ips.iter().collect::<BTreeSet<_>>().len(), 3);
            firsts.insert(ips[0].clone());
        }
        assert_eq!(firsts.len(), 3);
        name.failed("10.0.0.2:80".parse().unwrap());
        for _ in 0..3 {
            assert_eq!(ips(&name).await[2], "10.0.0.2");
        }
        assert!(name.look_up().await.is_ok());
        let mut firsts = BTreeSet::new();
        for _ in 0..3 {
            firsts.insert(ips(&name).await[0].clone());
        }
        assert_eq!(firsts.len(), 3, "a new answer is a new chance");
    }

    #[tokio::test(start_paused = true)]
    async fn families_alternate_and_the_answer_s_first_one_comes_first() {
        let (name, book) = name(30);
        book.say(&["[::1]:80", "[::2]:80", "10.0.0.1:80"]);
        for _ in 0..4 {
            let ips = ips(&name).await;
            assert_eq!((ips[0].starts_with("::"), ips[1].as_str()), (true, "10.0.0.1"), "{ips:?}");
        }
        name.failed("[::1]:80".parse().unwrap());
        name.failed("[::2]:80".parse().unwrap());
        assert_eq!(ips(&name).await[0], "10.0.0.1", "no attempt goes to the dead family first");
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_has_left_when_two_answers_are_without_it() {
        let (name, book) = name(30);
        book.say(&["10.0.0.1:80"]);
        let present =
            async || name.present().await.map(|ips| ips.iter().map(IpAddr::to_string).collect::<Vec<_>>());
        assert_eq!(present().await.unwrap(), ["10.0.0.1"]);
        book.say(&["10.0.0.2:80"]);
        assert_eq!(present().await.unwrap(), ["10.0.0.2", "10.0.0.1"]);
        book.say(&[]);
        assert_eq!(present().await, None, "no answer says nothing");
        book.say(&["10.0.0.2:80"]);
        assert_eq!(present().await.unwrap(), ["10.0.0.2", "10.0.0.2"]);
        let literal = Name::new("[::1]", 80, Duration::from_secs(1), book.clone());
        assert_eq!(literal.present().await, None);
        assert_eq!(literal.addresses().await.unwrap(), ["[::1]:80".parse().unwrap()]);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_refresh_each_connection_asks() {
        let (name, book) = name(0);
        book.say(&["10.0.0.1:80"]);
        ips(&name).await;
        ips(&name).await;
        assert_eq!(book.asked(), 2);
        book.say(&["10.0.0.2:80"]);
        book.takes(3);
        assert_eq!(ips(&name).await, ["10.0.0.2"], "it is slow, but it knows better");
    }

    #[tokio::test(start_paused = true)]
    async fn a_resolver_that_never_comes_back_is_asked_again() {
        let (name, book) = name(30);
        book.say(&["10.0.0.1:80"]);
        book.takes(3600);
        assert!(name.look_up().await.is_err());
        book.takes(0);
        assert_eq!(ips(&name).await, ["10.0.0.1"]);
    }
}
