//! What a workload, an upstream or a policy is asked for on the command line: `name:key=value,key=value`.
//!
//! One reader for all three, so that they have one grammar and one way to complain: an unknown key is
//! refused with the keys that would be right. Called by the `parse` functions of this room.

use std::collections::BTreeMap;

/// The longest span that can be asked for, in seconds: ten years.
const MAX_SECONDS: f64 = 3650.0 * 86_400.0;

/// The options of one name. Each is taken at most once; [`Options::finish`] refuses what nobody took.
#[derive(Debug)]
pub struct Options<'a> {
    name: &'a str,
    given: BTreeMap<&'a str, &'a str>,
    known: Vec<&'static str>,
}

impl<'a> Options<'a> {
    /// Takes `name:key=value,key=value` apart. A key without a value counts as `key=true`.
    pub fn parse(text: &'a str) -> Result<Self, String> {
        let (name, rest) = text.trim().split_once(':').unwrap_or((text.trim(), ""));
        let mut given = BTreeMap::new();
        for part in rest.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (key, value) = part.split_once('=').unwrap_or((part, "true"));
            if given.insert(key.trim(), value.trim()).is_some() {
                return Err(format!("{name}: `{}` is given twice", key.trim()));
            }
        }
        Ok(Self { name: name.trim(), given, known: Vec::new() })
    }

    /// The name before the colon.
    pub fn name(&self) -> &'a str {
        self.name
    }

    /// The value as it was written.
    pub fn text(&mut self, key: &'static str) -> Option<&'a str> {
        self.known.push(key);
        self.given.remove(key)
    }

    /// A finite number within `[0, max]`.
    pub fn number(&mut self, key: &'static str, max: f64) -> Result<Option<f64>, String> {
        let Some(text) = self.text(key) else { return Ok(None) };
        let number = text.parse().ok().filter(|x: &f64| (0.0..=max).contains(x));
        number.map(Some).ok_or_else(|| self.wrong(key, text, &format!("a number from 0 to {max}")))
    }

    /// A whole number within `[min, max]`.
    pub fn whole(&mut self, key: &'static str, min: u32, max: u32) -> Result<Option<u32>, String> {
        let Some(text) = self.text(key) else { return Ok(None) };
        let number = text.parse().ok().filter(|x| (min..=max).contains(x));
        number.map(Some).ok_or_else(|| self.wrong(key, text, &format!("a whole number from {min} to {max}")))
    }

    /// A span in seconds: `90s`, `250ms`, `15m`, `2h`, `14d`; a bare number is seconds.
    pub fn seconds(&mut self, key: &'static str) -> Result<Option<f64>, String> {
        let Some(text) = self.text(key) else { return Ok(None) };
        let seconds = seconds(text).map(Some);
        seconds.ok_or_else(|| self.wrong(key, text, "a span like 250ms, 90s, 15m, 2h or 14d"))
    }

    /// Whether a key was given as a switch: `key`, `key=true` or `key=false`.
    pub fn switch(&mut self, key: &'static str) -> Result<Option<bool>, String> {
        let Some(text) = self.text(key) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| self.wrong(key, text, "true or false"))
    }

    /// Refuses what no one asked for.
    pub fn finish(mut self) -> Result<(), String> {
        let Some((key, _)) = self.given.pop_first() else { return Ok(()) };
        self.known.sort_unstable();
        self.known.dedup();
        let known = if self.known.is_empty() { "nothing".to_owned() } else { self.known.join(", ") };
        Err(format!("{}: unknown option `{key}`; it takes {known}", self.name))
    }

    fn wrong(&self, key: &str, text: &str, right: &str) -> String {
        format!("{}: {key}={text} is not {right}", self.name)
    }
}

/// A span in seconds as [`Options::seconds`] reads it.
pub fn seconds(text: &str) -> Option<f64> {
    let unit_at = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let unit = match unit {
        "" | "s" => 1.0,
        "ms" => 0.001,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        _ => return None,
    };
    let seconds = number.trim().parse::<f64>().ok()? * unit;
    (0.0..=MAX_SECONDS).contains(&seconds).then_some(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_and_its_options() {
        let mut o = Options::parse(" poisson : rps=500, for=10m ,burst ").unwrap();
        assert_eq!(o.name(), "poisson");
        assert_eq!(o.number("rps", 1e6), Ok(Some(500.0)));
        assert_eq!(o.seconds("for"), Ok(Some(600.0)));
        assert_eq!(o.switch("burst"), Ok(Some(true)));
        assert_eq!(o.whole("n", 1, 9), Ok(None));
        o.finish().unwrap();
    }

    #[test]
    fn what_is_wrong_is_said_with_what_would_be_right() {
        let mut o = Options::parse("step:base=-1,high=NaN,n=0,for=3w,what=1").unwrap();
        assert_eq!(o.number("base", 10.0).unwrap_err(), "step: base=-1 is not a number from 0 to 10");
        assert!(o.number("high", 10.0).is_err());
        assert_eq!(o.whole("n", 1, 9).unwrap_err(), "step: n=0 is not a whole number from 1 to 9");
        assert!(o.seconds("for").unwrap_err().starts_with("step: for=3w is not a span like"));
        assert_eq!(o.finish().unwrap_err(), "step: unknown option `what`; it takes base, for, high, n");
        assert!(Options::parse("a:x=1,x=2").is_err());
    }

    #[test]
    fn spans() {
        assert_eq!(seconds("250ms"), Some(0.25));
        assert_eq!(seconds("1.5h"), Some(5400.0));
        assert_eq!(seconds("14d"), Some(1_209_600.0));
        assert_eq!(seconds("7"), Some(7.0));
        for bad in ["", "s", "-1s", "inf", "NaN", "1y", "1e30d", "5 apples"] {
            assert_eq!(seconds(bad), None, "{bad}");
        }
    }
}
