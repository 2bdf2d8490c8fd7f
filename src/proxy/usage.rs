//! What requests cost: expected before they are sent, read from their answers while these pass.
//!
//! [`Costs`] is a group's memory of it, shared by all workers; its lock is held for one look-up or one lesson. A
//! [`Reading`] goes with one answer. It sees each piece as it goes by and holds none back. Without this the token
//! buckets would be charged by a rule of thumb, and nobody could say what a model's tokens take.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::header::{self, HeaderMap};
use hyper::http::response;

use crate::policy::units::{ModelId, MonoTime, Sample, Tokens};
use crate::policy::usage::{Ask, Estimate, Estimator, Form, Names, Scanned, Usage, UsageScan};
use crate::telemetry::{Cost, Endpoint, EstimateErrors, Record, Unread};

/// What the requests of a group cost, model by model.
#[derive(Default)]
pub struct Costs(Mutex<(Names, Estimator)>);

/// What a request was expected to cost, and on what ground.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Expected {
    pub(super) model: ModelId,
    ask: Ask,
    estimate: Estimate,
}

impl Expected {
    /// Tokens of the prompt.
    pub(super) fn prompt(&self) -> Tokens {
        self.estimate.prompt
    }

    /// Prompt and answer together.
    pub(super) fn cost(&self) -> Tokens {
        self.estimate.cost()
    }
}

impl Costs {
    /// These models never have to share what is known of them.
    pub(super) fn keep<'a>(&self, models: impl IntoIterator<Item = &'a str>) {
        self.lock().0.keep(models);
    }

    /// What a request to `model` will probably cost.
    pub(super) fn expect(&self, model: Option<&str>, ask: Ask) -> Expected {
        let mut inner = self.lock();
        let (names, estimator) = &mut *inner;
        let model = model.map_or(Names::OTHER, |model| names.number(model));
        Expected { model, ask, estimate: estimator.estimate(model, ask) }
    }

    /// The upstream has answered for `model`, and this is what it did cost, if it said so.
    fn learn(&self, model: Option<&str>, expected: &Expected, usage: Option<&Usage>) {
        let mut inner = self.lock();
        let (names, estimator) = &mut *inner;
        // what was asked for as one of many may have a number of its own by now
        let numbered = model.map(|model| names.answered(model));
        if let Some(gone) = numbered.and_then(|numbered| numbered.gone) {
            estimator.forget(gone);
        }
        if let Some(usage) = usage {
            let model = numbered.map_or(Names::OTHER, |numbered| numbered.id);
            estimator.observe(model, expected.ask, expected.estimate, usage);
        }
    }

    /// The model that goes by this number; `None`: it is shared by all that have none of their own.
    #[must_use]
    pub fn model(&self, id: ModelId) -> Option<String> {
        self.lock().0.name(id).map(str::to_owned)
    }

    /// How far the estimates were off of late.
    #[must_use]
    pub fn errors(&self) -> EstimateErrors {
        let inner = self.lock();
        EstimateErrors { prompt: inner.1.prompt_error(), output: inner.1.output_error() }
    }

    fn lock(&self) -> MutexGuard<'_, (Names, Estimator)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What bounds the answer: what the request says, or that there is none in tokens.
pub(super) fn bound(endpoint: Endpoint, max_tokens: Option<u64>) -> Option<u64> {
    match endpoint {
        Endpoint::Embeddings | Endpoint::Moderations | Endpoint::Rerank => Some(0),
        _ => max_tokens,
    }
}

/// The reading of one answer.
pub(super) struct Reading {
    scan: Result<UsageScan, Unread>,
    events: bool,
    first: Option<MonoTime>,
    last: MonoTime,
}

/// What an answer turned out to be.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Told {
    /// Its pace, where it is whole and can be reckoned.
    pub(super) sample: Option<Sample>,
    /// It reports an error, though its status did not.
    pub(super) error: bool,
}

impl Reading {
    /// Of a successful answer with this head.
    pub(super) fn new(head: &response::Parts, now: MonoTime) -> Option<Self> {
        if !head.status.is_success() {
            return None;
        }
        let form = form(&head.headers);
        Some(Self {
            events: form == Ok(Form::Events),
            scan: form.map(UsageScan::new),
            first: None,
            last: now,
        })
    }

    /// A piece of the body goes by. True if it has the first token of a stream.
    pub(super) fn piece(&mut self, piece: &[u8], now: MonoTime) -> bool {
        let Ok(scan) = &mut self.scan else { return false };
        let seen = scan.feed(piece);
        if seen.first {
            self.first = Some(now);
        }
        if seen.events > 0 {
            self.last = now;
        }
        seen.first
    }

    /// The answer said that it is over; its body's end may still be on the way.
    pub(super) fn told_all(&self) -> bool {
        self.scan.as_ref().is_ok_and(|scan| scan.finish().finished)
    }

    /// The body is over, `whole` or not: tells the record, and the group if there is something to learn.
    pub(super) fn tell(
        &self,
        record: &mut Record,
        expected: &Expected,
        costs: &Costs,
        whole: bool,
        now: MonoTime,
    ) -> Told {
        let scanned = match &self.scan {
            Ok(scan) => scan.finish(),
            Err(why) => {
                record.cost.unread = Some(*why);
                if whole {
                    costs.learn(record.model.as_deref(), expected, None);
                }
                return Told { sample: None, error: false };
            }
        };
        let tokens = self.tokens(&scanned);
        record.cost = Cost {
            usage: scanned.usage.unwrap_or_default(),
            unread: scanned.usage.is_none().then_some(if whole { Unread::Absent } else { Unread::CutShort }),
            per_token: self.per_token(&scanned, tokens),
        };
        if !whole || scanned.error {
            return Told { sample: None, error: scanned.error };
        }
        costs.learn(record.model.as_deref(), expected, scanned.usage.as_ref());
        let none = expected.ask.max_tokens == Some(0) || scanned.usage.is_some();
        let sample = tokens.or(none.then_some(0)).zip(record.dispatched).map(|(output, dispatched)| {
            let head = record.first_byte.unwrap_or(now);
            let last = if self.events { self.last } else { now };
            let said =
                scanned.usage.and_then(|usage| Some((usage.prompt?, usage.uncounted.unwrap_or_default())));
            let (prompt, uncounted) = said.unwrap_or((expected.estimate.prompt, expected.estimate.uncounted));
            Sample {
                prompt,
                uncounted,
                output: Tokens(output),
                first: self.first.unwrap_or(head).since(dispatched),
                last: last.since(dispatched),
                stream: self.events,
            }
        });
        Told { sample, error: false }
    }

    /// Tokens of the answer: as reported, else a stream's events.
    fn tokens(&self, scanned: &Scanned) -> Option<u64> {
        let reported = scanned.usage.and_then(|usage| usage.output).map(|tokens| tokens.0);
        reported.or((scanned.events > 0).then_some(scanned.events))
    }

    fn per_token(&self, scanned: &Scanned, tokens: Option<u64>) -> Option<Duration> {
        let reasoning = scanned.usage.and_then(|usage| usage.reasoning).unwrap_or_default().0;
        let spoken = tokens?.saturating_sub(reasoning);
        // reasoning that was kept back is no part of what came between the first token and the last
        let tokens = if scanned.events > spoken { tokens? } else { spoken };
        let gaps = u32::try_from(tokens.checked_sub(1).filter(|gaps| *gaps > 0)?).ok()?;
        Some(self.last.since(self.first?) / gaps)
    }
}

/// What to read it as.
fn form(headers: &HeaderMap) -> Result<Form, Unread> {
    let text = |name| headers.get(name).and_then(|v| v.to_str().ok()).map(str::trim).unwrap_or_default();
    let encoding = text(header::CONTENT_ENCODING);
    if headers.contains_key(header::CONTENT_ENCODING) && !encoding.eq_ignore_ascii_case("identity") {
        return Err(Unread::Encoded);
    }
    let kind = text(header::CONTENT_TYPE).split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match kind.as_str() {
        "text/event-stream" => Ok(Form::Events),
        "application/json" => Ok(Form::Json),
        kind if kind.ends_with("+json") => Ok(Form::Json),
        _ => Err(Unread::Form),
    }
}
