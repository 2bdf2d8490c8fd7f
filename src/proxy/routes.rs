//! Where requests can go: the upstream groups, and which of them serves a model.
//!
//! A group is one queue, one gate, and the endpoints behind it; which of them takes a request is the gate's word.
//! Made by `app` once, shared by all workers.

use std::sync::Arc;

use crate::policy::supply::{RetryParams, Routing};
use crate::policy::units::EndpointId;
use crate::proxy::Gate;
use crate::proxy::seldom::Seldom;
use crate::upstream::Upstream;

/// One upstream group.
pub struct Group {
    name: Arc<str>,
    gate: Arc<Gate>,
    endpoints: Vec<Arc<Upstream>>,
    strangers: bool,
}

impl Group {
    /// A group behind `gate`, whose endpoints are numbered as they stand here. There must be one.
    #[must_use]
    pub fn new(name: impl Into<Arc<str>>, gate: Arc<Gate>, endpoints: Vec<Arc<Upstream>>) -> Self {
        endpoints.iter().for_each(|endpoint| gate.costs().keep(endpoint.params().named_models()));
        let mut keyless = endpoints.iter().map(|e| e.params()).filter(|params| params.takes_clients_keys());
        let first = keyless.next();
        let strangers = keyless.any(|params| first.is_some_and(|first| !first.is_of_one_house_with(params)));
        Self { name: name.into(), gate, endpoints, strangers }
    }

    /// Its name on metrics and in logs.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The door to its engine.
    #[must_use]
    pub fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    /// Its endpoints, by number.
    #[must_use]
    pub fn endpoints(&self) -> &[Arc<Upstream>] {
        &self.endpoints
    }

    /// Clients' own keys pass to endpoints of different houses: what was meant for one is not to be tried on another.
    pub(super) fn has_strangers(&self) -> bool {
        self.strangers
    }

    pub(super) fn endpoint(&self, id: EndpointId) -> Option<&Arc<Upstream>> {
        self.endpoints.get(usize::from(id.0))
    }
}

/// All groups, and which models go to which.
pub struct Routes {
    routing: Routing,
    groups: Vec<Group>,
    retry: RetryParams,
    by_model: bool,
    /// What the log has been told of them.
    pub(super) seldom: Seldom,
}

impl Routes {
    /// `groups` are those of `routing`, in its order.
    #[must_use]
    pub fn new(routing: Routing, groups: Vec<Group>, retry: RetryParams) -> Self {
        let picky = |upstream: &Arc<Upstream>| {
            let params = upstream.params();
            !params.rename.is_empty() || !params.supply.models.iter().any(|pattern| pattern == "*")
        };
        let by_model = groups.len() > 1 || groups.iter().any(|group| group.endpoints.iter().any(picky));
        Self { routing, groups, retry, by_model, seldom: Seldom::default() }
    }

    /// One group with every model.
    #[must_use]
    pub fn single(group: Group, retry: RetryParams) -> Self {
        let all = ["*".to_owned()];
        let routing = Routing::new(&[&all]).unwrap_or_else(|_| Routing::default());
        Self::new(routing, vec![group], retry)
    }

    /// The groups, in order.
    #[must_use]
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// `[retry]`.
    pub(super) fn retry(&self) -> &RetryParams {
        &self.retry
    }

    /// Whether what becomes of a request depends on the model it names.
    pub(super) fn depend_on_model(&self) -> bool {
        self.by_model
    }

    /// The number of the group that serves this model, or of the one for requests that name none.
    pub(super) fn group_of(&self, model: Option<&str>) -> Option<usize> {
        match model {
            Some(model) => self.routing.group_of(model),
            None => Some(self.routing.default_group()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::policy::engine;
    use crate::upstream::{Params, Secret};

    #[test]
    fn endpoints_are_strangers_where_clients_keys_pass_to_different_houses() {
        let strangers = |endpoints: &[(&str, Option<&str>)]| {
            let clock = Clock::start();
            let endpoint = |(url, key): &(&str, Option<&str>)| {
                let api_key = key.map(|key| Secret::new(key.to_owned()));
                let params = Params { base_url: url.parse().unwrap(), api_key, ..Params::default() };
                let dial = Box::new(
                    crate::upstream::Network::new(&params, Arc::new(crate::upstream::System)).unwrap(),
                );
                Upstream::with_dial(params, dial, 1, clock).unwrap()
            };
            let gate = Gate::new(engine::Params::default(), clock, |_, _| {});
            Group::new("g", gate, endpoints.iter().map(endpoint).collect()).has_strangers()
        };
        let (a, b) = ("http://a.example/v1", "http://b.example/v1");
        assert!(!strangers(&[(a, None)]) && !strangers(&[(a, None), (b, None)]), "servers of one's own");
        let (a, b) = ("https://a.example/v1", "https://b.example/v1");
        assert!(strangers(&[(a, None), (b, None)]) && strangers(&[(a, None), (a, Some("k")), (b, None)]));
        assert!(!strangers(&[(a, None), (a, None)]) && !strangers(&[(a, None), (b, Some("k"))]));
        assert!(!strangers(&[(a, Some("k")), (b, Some("l"))]));
    }
}
