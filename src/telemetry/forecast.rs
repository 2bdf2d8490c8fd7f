//! What the predictor knows and asks for, as it last said.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;

use crate::policy::predict::{Outlook, Ready};
use crate::telemetry::families::Family;

/// One group's last word.
#[derive(Clone, Debug, Default)]
struct Said {
    outlook: Option<Outlook>,
    ready: Ready,
}

/// The last word of every group's predictor.
#[derive(Clone, Debug, Default)]
pub(super) struct Forecasts(Arc<Mutex<BTreeMap<String, Said>>>);

impl Forecasts {
    pub(super) fn outlook(&self, group: &str, outlook: &Outlook) {
        self.lock().entry(group.to_owned()).or_default().outlook = Some(outlook.clone());
    }

    pub(super) fn ready(&self, group: &str, ready: Ready) {
        let mut all = self.lock();
        if let Some(said) = all.get_mut(group) {
            said.ready = ready;
        } else {
            all.insert(group.to_owned(), Said { outlook: None, ready });
        }
    }

    /// How many replicas each group asks for, as KEDA's `metrics-api` trigger reads it:
    /// `valueLocation: groups.default.desired_replicas`.
    pub(super) fn replicas(&self) -> String {
        let said = self.lock();
        let groups = said.iter().filter_map(|(group, said)| {
            let d = said.ready.replicas?;
            let desired = serde_json::json!({
                "desired_replicas": d.replicas,
                "reason": d.reason,
                "per_replica": d.per_replica,
            });
            Some((group.clone(), desired))
        });
        let groups: serde_json::Map<_, _> = groups.collect();
        format!("{}\n", serde_json::json!({ "groups": groups }))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Said>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) struct ForecastCollector {
    said: Forecasts,
    demand: Family,
    error: Family,
    confidence: Family,
    weight: Family,
    anomaly: Family,
    service: Family,
    minutes: Family,
    season: Family,
    replicas: Family,
    per_replica: Family,
    warm: Family,
}

impl ForecastCollector {
    pub(super) fn new(said: Forecasts) -> Result<Self, prometheus::Error> {
        Ok(Self {
            said,
            demand: Family::gauge(
                "tidegate_forecast_requests_per_minute",
                "Quantiles of the demand forecast for the running minute, requests per minute, from the \
                 predictor.",
                &["group", "quantile"],
            )?,
            error: Family::gauge(
                "tidegate_forecast_error",
                "How the forecasts one minute ahead have done of late, from the predictor: wape (sum of errors \
                 over sum of demand), pinball95 (requests per minute), coverage95 (share of minutes at or below \
                 the 95 % quantile).",
                &["group", "measure"],
            )?,
            confidence: Family::gauge(
                "tidegate_forecast_confidence",
                "Probability that the last scaling decision is right (kind=decision), and the one above which \
                 it is acted on (kind=threshold), from the predictor.",
                &["group", "kind"],
            )?,
            weight: Family::gauge(
                "tidegate_forecast_expert_weight",
                "Share of each expert in the forecast, 0 to 1, from the predictor.",
                &["group", "expert"],
            )?,
            anomaly: Family::gauge(
                "tidegate_anomaly_score",
                "Robust z-score of the last minute's demand against its forecast, from the predictor.",
                &["group"],
            )?,
            service: Family::gauge(
                "tidegate_service_seconds",
                "Mean time a request holds its permit, open ones included, from the predictor: the W of \
                 Little's law.",
                &["group"],
            )?,
            minutes: Family::gauge(
                "tidegate_forecast_history_minutes",
                "Minutes of demand that the predictor has watched.",
                &["group"],
            )?,
            season: Family::gauge(
                "tidegate_season_period_seconds",
                "Period of the season that leads, 0 while none does, from the predictor.",
                &["group"],
            )?,
            replicas: Family::gauge(
                "tidegate_desired_replicas",
                "Replicas of the model server that the load of the next start-up time needs, from the predictor: \
                 for KEDA's prometheus trigger or an HPA.",
                &["group"],
            )?,
            per_replica: Family::gauge(
                "tidegate_replica_capacity",
                "Requests in flight that one replica is reckoned to carry, set or learned, from the predictor.",
                &["group"],
            )?,
            warm: Family::gauge(
                "tidegate_desired_connections",
                "Upstream connections that should be open, those in use included, from the predictor.",
                &["group"],
            )?,
        })
    }
}

impl Collector for ForecastCollector {
    fn desc(&self) -> Vec<&Desc> {
        [
            &self.demand,
            &self.error,
            &self.confidence,
            &self.weight,
            &self.anomaly,
            &self.service,
            &self.minutes,
            &self.season,
            &self.replicas,
            &self.per_replica,
            &self.warm,
        ]
        .map(Family::desc)
        .to_vec()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let said = self.said.lock().clone();
        let (mut demand, mut error, mut confidence) = (Vec::new(), Vec::new(), Vec::new());
        let (mut weight, mut anomaly, mut service) = (Vec::new(), Vec::new(), Vec::new());
        let (mut minutes, mut season, mut warm) = (Vec::new(), Vec::new(), Vec::new());
        let (mut replicas, mut per_replica) = (Vec::new(), Vec::new());
        for (group, said) in &said {
            if let Some(desired) = said.ready.replicas {
                replicas.push(self.replicas.value(&[group], f64::from(desired.replicas)));
                per_replica.push(self.per_replica.value(&[group], desired.per_replica));
                warm.push(self.warm.value(&[group], f64::from(said.ready.connections)));
            }
            let Some(o) = &said.outlook else { continue };
            let high = o.quantile.to_string();
            for (quantile, value) in [("0.05", o.low), ("0.5", o.centre), (high.as_str(), o.high)] {
                demand.push(self.demand.value(&[group, quantile], value));
            }
            let e = &o.errors;
            for (measure, value) in
                [("wape", e.wape), ("pinball95", e.pinball95), ("coverage95", e.coverage95)]
            {
                error.push(self.error.value(&[group, measure], value));
            }
            for (kind, value) in [("decision", o.confidence), ("threshold", o.threshold)] {
                confidence.push(self.confidence.value(&[group, kind], value));
            }
            for (expert, value) in &o.weights {
                weight.push(self.weight.value(&[group, expert], *value));
            }
            anomaly.push(self.anomaly.value(&[group], o.anomaly));
            service.push(self.service.value(&[group], o.service));
            minutes.push(self.minutes.value(&[group], o.minutes as f64));
            season.push(self.season.value(&[group], o.season.unwrap_or_default()));
        }
        vec![
            self.demand.with(demand),
            self.error.with(error),
            self.confidence.with(confidence),
            self.weight.with(weight),
            self.anomaly.with(anomaly),
            self.service.with(service),
            self.minutes.with(minutes),
            self.season.with(season),
            self.replicas.with(replicas),
            self.per_replica.with(per_replica),
            self.warm.with(warm),
        ]
    }
}
