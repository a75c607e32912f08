//! Numbers as people read them.

pub(super) fn count(n: u64) -> String {
    match n {
        0..10_000 => n.to_string(),
        10_000..1_000_000 => format!("{:.1} k", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} M", n as f64 / 1e6),
        _ => format!("{:.2} G", n as f64 / 1e9),
    }
}

/// So many things: one of them has no `s`.
pub(crate) fn counted(n: usize, thing: &str) -> String {
    format!("{n} {thing}{}", if n == 1 { "" } else { "s" })
}

/// The heading of what sums up a table.
pub(crate) fn all(n: usize, thing: &str) -> String {
    if n == 1 { format!("the only {thing}") } else { format!("all {}", counted(n, thing)) }
}

pub(crate) fn bytes(n: u64) -> String {
    match n {
        0..1_000_000 => format!("{:.1} kB", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", n as f64 / 1e6),
        _ => format!("{:.2} GB", n as f64 / 1e9),
    }
}

pub(super) fn seconds(s: f64) -> String {
    let whole = s.round() as u64;
    match s {
        ..0.1 => format!("{:.0} ms", 1e3 * s),
        ..100.0 => format!("{s:.2} s"),
        _ if whole < 3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}

/// With so many digits behind the point; nothing where it is not a number, and no sign before zero.
pub(super) fn fixed(x: f64, digits: usize) -> String {
    if !x.is_finite() {
        return "-".into();
    }
    let text = format!("{x:.digits$}");
    match text.strip_prefix('-') {
        Some(positive) if positive.chars().all(|c| matches!(c, '0' | '.')) => positive.to_owned(),
        _ => text,
    }
}

/// A prediction, as fine as it is true.
pub(super) fn roughly(s: f64) -> String {
    match s {
        ..1.0 => "less than a second".into(),
        ..90.0 => format!("{s:.0} s"),
        ..5400.0 => format!("{:.0} min", s / 60.0),
        _ => format!("{:.1} h", s / 3600.0),
    }
}

pub(super) fn share(x: f64) -> String {
    if x.is_finite() { format!("{} %", fixed(100.0 * x, 1)) } else { "-".into() }
}

/// One number as a share of another.
pub(super) fn ratio(x: f64, of: f64) -> String {
    if of > 0.0 { format!("{} %", fixed(100.0 * x / of, 2)) } else { "-".into() }
}

pub(super) fn figure(x: Option<f64>) -> String {
    x.map_or("-".into(), |x| fixed(x, if x.abs() < 9.9995 { 3 } else { 1 }))
}

pub(super) fn shapes(shapes: &[Vec<usize>]) -> String {
    let words: Vec<String> =
        shapes.iter().take(2).map(|shape| shape.iter().map(usize::to_string).collect::<Vec<_>>().join(" × ")).collect();
    let more = if shapes.len() > 2 { format!(", … ({})", shapes.len()) } else { String::new() };
    words.join(", ") + &more
}

/// A format, or what it becomes.
pub(super) fn change(from: &str, to: &str) -> String {
    if from == to { to.to_owned() } else { format!("{from} → {to}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_has_no_sign() {
        assert_eq!(
            (fixed(-0.0004, 3), fixed(-0.0006, 3), fixed(f64::NAN, 3)),
            ("0.000".into(), "-0.001".into(), "-".into())
        );
        assert_eq!(
            (figure(Some(-1e-9)), share(-1e-9), ratio(-1e-9, 1.0)),
            ("0.000".into(), "0.0 %".into(), "0.00 %".into())
        );
    }

    #[test]
    fn long_times_are_minutes() {
        let times = [0.0123, 2.046, 99.9, 121.4, 3599.6, 8040.0].map(seconds);
        assert_eq!(times, ["12 ms", "2.05 s", "99.90 s", "2 min 1 s", "1 h 0 min", "2 h 14 min"]);
    }

    #[test]
    fn one_is_one() {
        assert_eq!(
            (counted(1, "window"), counted(0, "window"), counted(2, "window")),
            ("1 window".into(), "0 windows".into(), "2 windows".into())
        );
    }
}
