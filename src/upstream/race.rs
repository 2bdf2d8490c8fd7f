//! Connects to one of several addresses: the next one has its chance while the one before hesitates
//! (Happy Eyeballs, RFC 8305 §5), whatever their families.
//!
//! Without it a host with one dead address of two costs a whole `connect_timeout`, or the request.
//!
//! ```text
//! attempt i begins   DELAY after attempt i − 1 began, or at once when one has failed;   the first to come up wins
//! ```

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

/// How long an attempt is given before the next begins: the recommended "Connection Attempt Delay".
pub(super) const DELAY: Duration = Duration::from_millis(250);

/// The first connection that comes up, and those addresses that were tried before it in vain.
pub(super) struct Raced<T> {
    pub(super) won: io::Result<(T, SocketAddr)>,
    /// Failed, or had begun before the one that won and did not come up in that time.
    pub(super) lost: Vec<SocketAddr>,
}

/// Tries the addresses in order. Dropping it ends every attempt.
pub(super) async fn race<T, F: Future<Output = io::Result<T>>>(
    addresses: &[SocketAddr],
    connect: impl Fn(SocketAddr) -> F,
) -> Raced<T> {
    let mut running = FuturesUnordered::new();
    let mut begun = Vec::with_capacity(addresses.len());
    let mut error = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    let attempt = |address: SocketAddr| {
        let connecting = connect(address);
        async move { (address, connecting.await) }
    };
    loop {
        if let Some(address) = addresses.get(begun.len()) {
            begun.push(*address);
            running.push(attempt(*address));
        } else if running.is_empty() {
            return Raced { won: Err(error), lost: begun };
        }
        let more = begun.len() < addresses.len();
        let mut pause = std::pin::pin!(tokio::time::sleep(DELAY));
        tokio::select! {
            biased;
            Some((address, ended)) = running.next() => match ended {
                Ok(connection) => {
                    begun.truncate(begun.iter().position(|a| *a == address).unwrap_or_default());
                    return Raced { won: Ok((connection, address)), lost: begun };
                }
                Err(failed) => error = io::Error::new(failed.kind(), format!("{address}: {failed}")),
            },
            () = pause.as_mut(), if more => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::policy::units::MonoTime;

    const NEVER: u64 = 1_000_000;

    /// What an address does, by its last number: connects, or fails, after so many milliseconds.
    async fn run(plan: &[(u64, bool)]) -> (Option<usize>, u128, Vec<usize>) {
        let addresses: Vec<SocketAddr> =
            (0..plan.len()).map(|i| SocketAddr::from(([10, 0, 0, i as u8], 80))).collect();
        let number = |a: SocketAddr| addresses.iter().position(|x| *x == a).unwrap();
        let began = Clock::start();
        let raced = race(&addresses, |address| {
            let (after, works) = plan[number(address)];
            async move {
                tokio::time::sleep(Duration::from_millis(after)).await;
                if works { Ok(()) } else { Err(io::ErrorKind::ConnectionRefused.into()) }
            }
        })
        .await;
        let took = began.now().since(MonoTime::ZERO).as_millis();
        (raced.won.ok().map(|(_, a)| number(a)), took, raced.lost.into_iter().map(number).collect())
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_that_answers_wins_and_one_that_hesitates_costs_a_quarter_of_a_second() {
        assert_eq!(run(&[(10, true), (1, true)]).await, (Some(0), 10, vec![]));
        assert_eq!(run(&[(NEVER, true), (10, true)]).await, (Some(1), 260, vec![0]));
        assert_eq!(run(&[(NEVER, true), (NEVER, true), (5, true)]).await, (Some(2), 505, vec![0, 1]));
        assert_eq!(run(&[(300, true), (500, true)]).await, (Some(0), 300, vec![]), "late and still first");
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_fails_is_followed_at_once() {
        assert_eq!(run(&[(1, false), (10, true)]).await, (Some(1), 11, vec![0]));
        assert_eq!(
            run(&[(1, false), (1, false), (NEVER, true), (2, true)]).await,
            (Some(3), 254, vec![0, 1, 2])
        );
        assert_eq!(run(&[(1, false), (2, false)]).await, (None, 3, vec![0, 1]));
        assert_eq!(run(&[]).await, (None, 0, vec![]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_failure_does_not_hold_up_those_that_run() {
        assert_eq!(run(&[(400, false), (300, true)]).await, (Some(1), 550, vec![0]));
        assert_eq!(run(&[(260, false), (NEVER, true), (1, true)]).await, (Some(2), 261, vec![0, 1]));
    }

    #[tokio::test]
    async fn the_reason_names_the_address() {
        let address = "10.0.0.9:80".parse().unwrap();
        let raced =
            race(&[address], |_| async { Err::<(), _>(io::ErrorKind::ConnectionRefused.into()) }).await;
        let error = raced.won.err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert!(error.to_string().starts_with("10.0.0.9:80: "), "{error}");
    }
}
