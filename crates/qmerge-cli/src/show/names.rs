//! Names of weights in a table, short where the terminal is known, and the order of rows.

use std::cmp::Ordering;

use qmerge::open::model_order;

/// How the names of a table are written.
pub(super) enum Names {
    /// In full.
    Full,
    /// A number of a layer and a module, for `PREFIX.NUMBER.MODULE`. What has no number belongs to no layer.
    Layers { prefix: String, wide: usize },
    /// Without what all begin and end with.
    Short { prefix: String, suffix: &'static str },
}

const LAYER: &str = "layer";
const SUFFIX: &str = ".weight";

/// A name as what stands before a layer's number, the number, and what stands behind.
fn layer(name: &str) -> Option<(&str, &str, &str)> {
    let mut at = 0;
    for piece in name.split('.') {
        if at > 0 && piece.bytes().all(|byte| byte.is_ascii_digit()) && !piece.is_empty() {
            let module = name.get(at + piece.len() + 1..)?;
            return Some((name.get(..at - 1)?, piece, module.strip_suffix(SUFFIX).unwrap_or(module)));
        }
        at += piece.len() + 1;
    }
    None
}

impl Names {
    /// How to write these. `width` is the terminal's: where there is none, names are written in full.
    pub(super) fn of<'n>(names: impl Iterator<Item = &'n str> + Clone, width: Option<usize>) -> Self {
        if width.is_none() {
            return Self::Full;
        }
        let mut layers = names.clone().filter_map(layer);
        if let Some((prefix, number, _)) = layers.next() {
            let wide = |number: &str| number.len().max(LAYER.len());
            let all = layers.try_fold(wide(number), |most, (other, number, module)| {
                (other == prefix && !module.is_empty()).then(|| most.max(wide(number)))
            });
            if let Some(wide) = all {
                return Self::Layers { prefix: prefix.to_owned(), wide };
            }
        }
        let suffix = if names.clone().all(|name| name.ends_with(SUFFIX)) { SUFFIX } else { "" };
        let prefix = names.map(str::to_owned).reduce(|a, b| common(&a, &b)).unwrap_or_default();
        // At a dot, and never all of a name.
        let prefix = prefix.rfind('.').map_or("", |dot| &prefix[..=dot]).to_owned();
        Self::Short { prefix, suffix }
    }

    /// The heading above them; `one` is what one is called.
    pub(super) fn heading(&self, one: &str) -> String {
        match self {
            Self::Layers { wide, .. } => format!("{LAYER:>wide$}  module"),
            Self::Full | Self::Short { .. } => one.to_owned(),
        }
    }

    pub(super) fn show(&self, name: &str) -> String {
        match self {
            Self::Full => name.to_owned(),
            Self::Layers { prefix, wide } => match layer(name) {
                Some((_, number, module)) => format!("{number:>wide$}  {module}"),
                None => {
                    let outer = prefix.split_once('.').map_or("", |(outer, _)| outer);
                    let rest = name.strip_prefix(outer).and_then(|rest| rest.strip_prefix('.')).unwrap_or(name);
                    format!("{:>wide$}  {}", "-", rest.strip_suffix(SUFFIX).unwrap_or(rest))
                }
            },
            Self::Short { prefix, suffix } => {
                let rest = name.strip_prefix(prefix.as_str()).filter(|rest| rest.len() > suffix.len()).unwrap_or(name);
                rest.strip_suffix(suffix).unwrap_or(rest).to_owned()
            }
        }
    }
}

/// What two texts begin with.
fn common(a: &str, b: &str) -> String {
    a.chars().zip(b.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a).collect()
}

/// What decides a row's place.
pub(super) struct Place<'n> {
    /// What is wrong comes before what is right.
    pub(super) is_right: bool,
    /// Then what keeps least of the adapter, by what tells most of it.
    pub(super) kept: Option<f64>,
    /// Then what has the largest error.
    pub(super) error: f64,
    /// And then the model's order.
    pub(super) name: &'n str,
}

/// The worst first: the one order of all tables of weights.
pub(super) fn worst_first<T>(rows: &[T], place: impl Fn(&T) -> Place<'_>) -> Vec<&T> {
    let mut sorted: Vec<&T> = rows.iter().collect();
    sorted.sort_by(|a, b| {
        let (a, b) = (place(a), place(b));
        let kept = |place: &Place<'_>| place.kept.unwrap_or(f64::INFINITY);
        let order = a.is_right.cmp(&b.is_right).then(kept(&a).total_cmp(&kept(&b)));
        order.then(b.error.partial_cmp(&a.error).unwrap_or(Ordering::Equal)).then_with(|| model_order(a.name, b.name))
    });
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(names: &[&str]) -> (String, Vec<String>) {
        let found = Names::of(names.iter().copied(), Some(80));
        (found.heading("weight"), names.iter().map(|name| found.show(name)).collect())
    }

    #[test]
    fn names_of_layers_become_two_columns() {
        let (heading, names) = shown(&[
            "model.layers.0.self_attn.k_proj.weight",
            "model.layers.12.mlp.experts.3.w1.weight",
            "model.layers.12.self_attn.k_proj.bias",
            "model.embed_tokens.weight",
            "lm_head.weight",
        ]);
        assert_eq!(heading, "layer  module");
        assert_eq!(
            names,
            [
                "    0  self_attn.k_proj",
                "   12  mlp.experts.3.w1",
                "   12  self_attn.k_proj.bias",
                "    -  embed_tokens",
                "    -  lm_head"
            ]
        );
        assert_eq!(shown(&["h.0.attn.c_attn.weight"]).1, ["    0  attn.c_attn"]);
    }

    #[test]
    fn other_names_lose_what_all_have() {
        let (heading, names) = shown(&["encoder.block.0.q.weight", "decoder.block.0.q.weight"]);
        assert_eq!(
            (heading.as_str(), names),
            ("weight", vec!["encoder.block.0.q".to_owned(), "decoder.block.0.q".into()])
        );
        assert_eq!(shown(&["model.a.b.weight", "model.a.c.weight"]).1, ["b", "c"]);
        assert_eq!(shown(&["w"]).1, ["w"]);
        assert_eq!(shown(&["a.weight"]).1, ["a"]);
        let names = ["model.layers.0.q.weight"];
        assert_eq!(Names::of(names.into_iter(), None).show(names[0]), names[0]);
    }

    #[test]
    fn the_worst_is_first_and_the_model_s_order_decides() {
        let rows = [("l.10", true, 0.5), ("l.2", true, 0.5), ("l.3", false, 0.9), ("l.1", true, 0.1)];
        let sorted = worst_first(&rows, |row| Place { is_right: row.1, kept: Some(row.2), error: 0.0, name: row.0 });
        assert_eq!(sorted.iter().map(|row| row.0).collect::<Vec<_>>(), ["l.3", "l.1", "l.2", "l.10"]);
    }
}
