//! The order of a model's tensors as people count: layer 2 before layer 10.

use std::cmp::Ordering;

/// Compares two names with the numbers in them taken as numbers.
pub fn model_order(a: &str, b: &str) -> Ordering {
    pieces(a).cmp(pieces(b)).then_with(|| a.cmp(b))
}

/// A name's pieces between dots, with numbers read.
fn pieces(name: &str) -> impl Iterator<Item = (Option<u64>, &str)> {
    name.split('.').map(|piece| match piece.parse() {
        Ok(number) => (Some(number), ""),
        Err(_) => (None, piece),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_counted() {
        let mut names = ["model.layers.10.b", "model.layers.2.b", "lm_head", "model.layers.2.a", "model.layers.02.a"];
        names.sort_by(|a, b| model_order(a, b));
        assert_eq!(
            names,
            ["lm_head", "model.layers.02.a", "model.layers.2.a", "model.layers.2.b", "model.layers.10.b"]
        );
        assert_eq!(model_order("a.99999999999999999999999", "a.99999999999999999999999"), Ordering::Equal);
    }
}
