//! "Did you mean": the known name nearest to a misspelt one.

/// The candidate at most two edits away, the nearest first; `None` if there is none.
pub(super) fn nearest<'a>(path: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let name_len = path.rsplit('.').next().unwrap_or(path).len();
    candidates
        .filter(|candidate| candidate.len().abs_diff(path.len()) <= 2)
        .map(|candidate| (distance(path.as_bytes(), candidate.as_bytes()), candidate))
        // Two edits turn any three-letter name into most others: that is no resemblance.
        .filter(|(edits, _)| *edits <= 2 && edits * 2 < name_len.max(2))
        .min()
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance: insertions, deletions and replacements of a byte.
fn distance(a: &[u8], b: &[u8]) -> usize {
    let mut previous: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut row = Vec::with_capacity(b.len() + 1);
        row.push(i + 1);
        let mut left = i + 1;
        for (y, pair) in b.iter().zip(previous.windows(2)) {
            let [diagonal, above] = pair else { continue };
            left = (diagonal + usize::from(x != y)).min(above + 1).min(left + 1);
            row.push(left);
        }
        previous = row;
    }
    previous.last().copied().unwrap_or(a.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (a, b, edits) in
            [("", "", 0), ("", "abc", 3), ("kitten", "sitting", 3), ("log", "lgo", 2), ("abc", "abc", 0)]
        {
            assert_eq!(distance(a.as_bytes(), b.as_bytes()), edits, "{a} {b}");
            assert_eq!(distance(b.as_bytes(), a.as_bytes()), edits, "{b} {a}");
        }
    }

    #[test]
    fn only_a_resemblance_is_suggested() {
        let known = ["listen.address", "listen.workers", "telemetry.log"];
        let near = |path| nearest(path, known.into_iter());
        assert_eq!(near("listen.adress"), Some("listen.address"));
        assert_eq!(near("listen.worker"), Some("listen.workers"));
        assert_eq!(near("telemetry.logs"), Some("telemetry.log"));
        assert_eq!(near("telemetry.abc"), None);
        assert_eq!(near("listen.colour"), None);
    }
}
