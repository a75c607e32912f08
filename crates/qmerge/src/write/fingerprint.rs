//! What makes two merges the same: everything that decides a byte of the output, by name.

use serde::{Deserialize, Serialize};

/// What follows from the other facts, and is named only where none of them differs.
pub(crate) const LAYOUT: &str = "layout of the output";
/// See [`LAYOUT`].
pub(crate) const CHANGES: &str = "what is done to the weights";

/// What a calibration is taken from, which is known only once its text is written.
pub(crate) const CALIBRATION: &str = "text or file of the calibration";

/// Names and values. A value is a word that a user can read, or a hash.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fingerprint(Vec<(String, String)>);

impl Fingerprint {
    pub(crate) fn add(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.0.push((name.into(), value.into()));
    }

    fn get(&self, name: &str) -> &str {
        self.0.iter().find(|(known, _)| known == name).map_or("none", |(_, value)| value)
    }

    /// In what `now` is another merge than this one.
    pub(super) fn differences(&self, now: &Self) -> Vec<String> {
        self.differences_but(&[], now)
    }

    /// The same, but for what is not known yet and for what follows from it.
    pub(super) fn differences_before(&self, now: &Self) -> Vec<String> {
        self.differences_but(&[CALIBRATION, LAYOUT, CHANGES], now)
    }

    fn differences_but(&self, left_out: &[&str], now: &Self) -> Vec<String> {
        let mut names: Vec<&str> = Vec::new();
        for (name, _) in self.0.iter().chain(&now.0) {
            let name = name.as_str();
            if !names.contains(&name) && !left_out.contains(&name) && self.get(name) != now.get(name) {
                names.push(name);
            }
        }
        let derived = |name: &&str| [LAYOUT, CHANGES].contains(name);
        if !names.iter().all(derived) {
            names.retain(|name| !derived(name));
        }
        names.into_iter().map(|name| difference(name, self.get(name), now.get(name))).collect()
    }
}

fn difference(name: &str, before: &str, now: &str) -> String {
    // Of several files one each.
    let is_one = |value: &str| value.len() == 64 && value.bytes().all(|byte| byte.is_ascii_hexdigit());
    let hash = |value: &str| value.split(' ').all(is_one);
    match (hash(before), hash(now)) {
        (true, true) => format!("{name}: changed"),
        (true, false) => format!("{name}: now {now}"),
        (false, true) => format!("{name}: {before} before, another now"),
        (false, false) => format!("{name}: {before} before, {now} now"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_named_and_what_follows_from_them_is_not() {
        let (a, b) = ("a".repeat(64), "b".repeat(64));
        let fingerprint = |facts: &[(&str, &str)]| {
            let mut fingerprint = Fingerprint::default();
            facts.iter().for_each(|(name, value)| fingerprint.add(*name, *value));
            fingerprint
        };
        let before = fingerprint(&[("seed", "0"), ("base", &a), ("adapter 2", &a), (LAYOUT, &a)]);
        assert!(before.differences(&before).is_empty());
        let now = fingerprint(&[("seed", "7"), ("base", &b), (LAYOUT, &b)]);
        assert_eq!(before.differences(&now), ["seed: 0 before, 7 now", "base: changed", "adapter 2: now none"]);
        assert_eq!(now.differences(&before)[2], "adapter 2: none before, another now");
        // Of a folder of moments, and of what a model writes.
        let files = fingerprint(&[(CALIBRATION, &format!("{a} {b}"))]);
        assert_eq!(files.differences(&fingerprint(&[(CALIBRATION, &a)])), ["text or file of the calibration: changed"]);
        let now = fingerprint(&[("seed", "0"), ("base", &a), ("adapter 2", &a), (LAYOUT, &b)]);
        assert_eq!(before.differences(&now), ["layout of the output: changed"]);
    }
}
