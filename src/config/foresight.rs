//! `[predict]`: what the predictor aims for, and what the operator knows that no history tells.

use super::reader::Reader;
use super::values::{self, Value};
use crate::policy::predict::{Baseline, Calendar, ReplicaParams, WindowParams};

const LIST: &str = "predict.calendar";

/// `"9-18: 200, 0-24: 20"`.
pub(super) fn baseline(value: &Value) -> Result<Baseline, String> {
    Baseline::parse(&values::string(value)?)
}

/// `[predict.replicas]`.
pub(super) fn replicas(r: &mut Reader) -> ReplicaParams {
    let d = ReplicaParams::default();
    let params = ReplicaParams {
        start: r.take("predict.replicas.start", values::duration).unwrap_or(d.start),
        per_replica: r.take("predict.replicas.per_replica", values::fraction),
        headroom: r.take("predict.replicas.headroom", values::fraction).unwrap_or(d.headroom),
        min: r.take("predict.replicas.min", values::count).unwrap_or(d.min),
        max: r.take("predict.replicas.max", values::count).unwrap_or(d.max),
    };
    r.check(&["predict.replicas"], params, ReplicaParams::try_new)
}

/// The windows of `[[predict.calendar]]`, numbered from 0.
pub(super) fn calendar(r: &mut Reader) -> Calendar {
    if r.is_written(LIST) {
        r.close(LIST, "is a list: write [[predict.calendar]], with two brackets on each side");
        ask(r, &format!("{LIST}.0"));
        return Calendar::default();
    }
    let indices = r.children(LIST);
    for index in indices.iter().filter(|index| index.parse::<u16>().is_err()) {
        r.close(&format!("{LIST}.{index}"), "windows are numbered: TIDEGATE_PREDICT__CALENDAR__0__CRON");
    }
    let mut windows = Vec::new();
    for index in indices.iter().filter(|index| index.parse::<u16>().is_ok()) {
        windows.push(window(r, &format!("{LIST}.{index}")));
    }
    if windows.is_empty() {
        // asked for although nobody wrote one: these are the settings there are
        ask(r, &format!("{LIST}.0"));
    }
    Calendar::new(windows)
}

fn window(r: &mut Reader, section: &str) -> WindowParams {
    let cron = format!("{section}.cron");
    if !r.is_set(&cron) {
        r.fault(&cron, "is missing: say when the window begins, such as \"0 9 * * 1-5\"");
    }
    let mut params = ask(r, section);
    // what could not be read has its fault already
    if !r.is_set(&cron) || r.is_faulty(&cron) {
        params.cron = "0 0 * * *".into();
    }
    r.check(&[section], params, WindowParams::try_new)
}

fn ask(r: &mut Reader, section: &str) -> WindowParams {
    let key = |name: &str| format!("{section}.{name}");
    let zone = |value: &Value| {
        let name = values::string(value)?;
        jiff::tz::TimeZone::get(&name).map_err(|_| {
            format!("{name:?} is no time zone: write a name such as \"Europe/Berlin\" or \"UTC\"")
        })
    };
    WindowParams {
        cron: r.take(&key("cron"), values::string).unwrap_or_default(),
        duration: r.take(&key("duration"), values::duration).unwrap_or(std::time::Duration::from_secs(3600)),
        factor: r.take(&key("factor"), values::fraction).unwrap_or(1.0),
        floor_rpm: r.take(&key("floor_rpm"), values::fraction).unwrap_or(0.0),
        zone: r.take(&key("time_zone"), zone).unwrap_or(jiff::tz::TimeZone::UTC),
    }
}
