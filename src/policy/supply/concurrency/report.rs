//! What the law is told to learn from, and what it tells.

use crate::policy::supply::concurrency::Concurrency;
use crate::policy::supply::concurrency::pace::Kind;
use crate::policy::units::MonoTime;

/// What an endpoint's limit is learnt from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learning {
    /// From latency, tokens and refusals: a server of one's own.
    Learn {
        /// The limit before anything is known.
        start: u32,
    },
    /// From refusals alone: a hosted API, whose latency is not this client's doing. No limit until the first.
    Hosted,
    /// Nothing: a configured number.
    Fixed(u32),
    /// Nothing: no limit.
    Unlimited,
}

/// Why S moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// It was reached, and nothing spoke against more.
    Reached,
    /// Requests waited inside the server.
    WaitingInside,
    /// More in flight made no more tokens, or fewer.
    NoGain,
    /// It is lowered or raised for some seconds to see what fewer or more would make, or put back after that.
    Look,
    /// The upstream refused, or timed out.
    Refused,
    /// The server's own metrics said that requests wait in it.
    ServerSaid,
    /// The endpoint came back, perhaps as another.
    Restarted,
}

impl Cause {
    /// The word for logs and labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Reached => "reached",
            Self::WaitingInside => "waiting_inside",
            Self::NoGain => "no_gain",
            Self::Look => "look",
            Self::Refused => "refused",
            Self::ServerSaid => "server_said",
            Self::Restarted => "restarted",
        }
    }
}

/// What the law saw.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Inputs {
    /// Seconds per output token at the largest number in flight that was seen.
    pub token_seconds: Option<f64>,
    /// The same at the least number: what it takes undisturbed.
    pub token_seconds_alone: Option<f64>,
    /// Requests at which the server makes nearly all it can.
    pub knee: Option<f64>,
    /// Requests in flight that waited inside the server.
    pub waiting_inside: Option<f64>,
    /// The most in flight in the last second.
    pub in_flight: u32,
}

/// S moved by more than a tenth since the last such report.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Change {
    /// The limit last reported.
    pub from: Option<u32>,
    /// The limit now.
    pub to: Option<u32>,
    /// What moved it last.
    pub cause: Cause,
    /// What was seen.
    pub inputs: Inputs,
}

/// For metrics.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Status {
    /// The limit; none if there is no bound.
    pub limit: Option<u32>,
    /// It was never held back yet.
    pub slow_start: bool,
    /// What moved it last.
    pub cause: Option<Cause>,
    /// What was seen.
    pub inputs: Inputs,
}

impl Concurrency {
    pub(super) fn report(&mut self, now: MonoTime) -> Option<Change> {
        let (from, to) = (self.reported, self.limit());
        let moved = match (from, to) {
            (Some(a), Some(b)) => f64::from(a.abs_diff(b)) > 0.1 * f64::from(a),
            (a, b) => a != b,
        };
        let cause = self.cause.filter(|_| moved)?;
        self.reported = to;
        Some(Change { from, to, cause, inputs: self.inputs(now) })
    }

    fn inputs(&self, now: MonoTime) -> Inputs {
        let most = (0..3).max_by(|a, b| self.shares[*a].total_cmp(&self.shares[*b])).unwrap_or(0);
        let speeds = self.curves[most].speeds(now).filter(|_| most != Kind::Untokenised as usize);
        Inputs {
            token_seconds: speeds.map(|(loaded, _)| loaded.recip()),
            token_seconds_alone: speeds.map(|(_, alone)| alone.recip()),
            knee: self.knee(now).map(|k| k.at),
            waiting_inside: self.wait.last(now).map(|inside| inside.waiting),
            in_flight: self.peak,
        }
    }

    /// For metrics.
    #[must_use]
    pub fn status(&self, now: MonoTime) -> Status {
        Status {
            limit: self.limit(),
            slow_start: self.slow_start,
            cause: self.cause,
            inputs: self.inputs(now),
        }
    }
}
