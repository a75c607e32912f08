//! VB-LoRA: the factors of a LoRA are made of pieces of one bank of vectors that all layers share.
//!
//! Each piece of A's rows and B's columns is a mixture of the k vectors with the largest logits, by their softmax. The file holds the logits, or only which
//! vectors and how much of each but the last. Source: PEFT 0.21, `tuners/vblora`.

use std::sync::Arc;

use super::factored::Factored;
use super::module::{INCOMPLETE, OTHER};
use super::{AdapterConfig, Layers, Loader, Markers, Module, On, PeftMethod, Planned};
use crate::error::{Result, malformed, mismatch, unsupported};

/// VB-LoRA.
pub(super) struct VbLora;

const BANK: &str = "vblora_vector_bank";
const A: [&str; 3] = ["vblora_logits_A", "vblora_logits_A_topk_indices", "vblora_logits_A_topk_weights"];
const B: [&str; 3] = ["vblora_logits_B", "vblora_logits_B_topk_indices", "vblora_logits_B_topk_weights"];

impl PeftMethod for VbLora {
    fn peft_type(&self) -> &'static str {
        "VBLORA"
    }

    fn markers(&self) -> Markers {
        Markers {
            own: &[
                "vblora_logits_A",
                "vblora_logits_A_topk_indices",
                "vblora_logits_A_topk_weights",
                "vblora_logits_B",
                "vblora_logits_B_topk_indices",
                "vblora_logits_B_topk_weights",
            ],
            shared: &[BANK],
            ..Markers::default()
        }
    }

    fn configure(&self, config: &AdapterConfig) -> Result<Box<dyn Layers>> {
        config.refuse_unknown(&[
            "r",
            "num_vectors",
            "vector_length",
            "topk",
            "save_only_topk_weights",
            "vblora_dropout",
            "init_vector_bank_bound",
            "init_logits_std",
        ])?;
        let fields = config.fields();
        let (vectors, length) = (fields.count("num_vectors", 1, 256)?, fields.count("vector_length", 1, 256)?);
        let topk = fields.count("topk", 1, 2)?;
        if topk > vectors {
            return Err(malformed(format!("`topk` is {topk}, of {vectors} vectors (`num_vectors`)")));
        }
        Ok(Box::new(Bank { r: fields.count("r", 1, 4)?, vectors, length, topk }))
    }
}

#[derive(Debug)]
struct Bank {
    r: usize,
    vectors: usize,
    length: usize,
    topk: usize,
}

/// Where the mixtures of one factor stand.
#[derive(Clone, Debug)]
enum Mixtures {
    Logits(String),
    Largest { indices: String, weights: String },
}

impl Bank {
    /// The mixtures of (first, second) pieces.
    fn mixtures(
        &self,
        module: &Module<'_>,
        [logits, indices, weights]: [&'static str; 3],
        (first, second): (usize, usize),
    ) -> Result<Mixtures> {
        let tensors = module.tensors();
        match (tensors.get(logits), tensors.get(indices), tensors.get(weights)) {
            (Some(_), None, None) => {
                Ok(Mixtures::Logits(module.sized(logits, &[first, second, self.vectors])?.to_owned()))
            }
            (None, Some(_), Some(_)) => Ok(Mixtures::Largest {
                indices: module.sized(indices, &[first, second, self.topk])?.to_owned(),
                weights: module.sized(weights, &[first, second, self.topk - 1])?.to_owned(),
            }),
            (one, other, third) => {
                Err(mismatch(format!("`{}` needs `{logits}`, or both of `{indices}` and `{weights}`", module.path()))
                    .in_tensor(one.or(other).or(third).unwrap_or(""))
                    .with_hint(INCOMPLETE))
            }
        }
    }
}

impl Mixtures {
    fn tensors(&self) -> Vec<String> {
        match self {
            Self::Logits(logits) => vec![logits.clone()],
            Self::Largest { indices, weights } => vec![indices.clone(), weights.clone()],
        }
    }

    /// Which vectors each piece is made of, and how much of each.
    fn read(&self, loader: &Loader<'_>, vectors: usize, topk: usize) -> Result<Vec<Vec<(usize, f64)>>> {
        match self {
            Self::Logits(name) => {
                let logits = loader.floats(name)?;
                let pieces: Option<_> = logits.chunks_exact(vectors).map(|x| largest(x, topk)).collect();
                pieces.ok_or_else(|| {
                    unsupported(format!(
                        "the {topk} largest of its logits cannot be told: others are equal to the last of them, and which of these PEFT takes is torch's choice"
                    ))
                    .in_tensor(name)
                    .with_hint("store the adapter in the type that it was trained in")
                })
            }
            Self::Largest { indices: name, weights } => {
                let (indices, weights) = (loader.integers(name)?, loader.floats(weights)?);
                let mut pieces = Vec::new();
                for (piece, indices) in indices.chunks_exact(topk).enumerate() {
                    let weights = weights.iter().skip(piece * (topk - 1)).take(topk - 1).map(|x| f64::from(*x));
                    let last = 1.0 - weights.clone().sum::<f64>();
                    if let Some(wrong) = indices.iter().find(|index| **index >= vectors as u64) {
                        let problem = format!("vector {wrong} of {vectors}");
                        return Err(malformed(problem).in_tensor(name).with_hint(OTHER));
                    }
                    pieces.push(indices.iter().map(|index| *index as usize).zip(weights.chain([last])).collect());
                }
                Ok(pieces)
            }
        }
    }
}

/// The places of the `topk` largest logits, with their softmax; none where the last of them is not the only one of its value.
fn largest(logits: &[f32], topk: usize) -> Option<Vec<(usize, f64)>> {
    // Zeros of both signs are equal.
    let mut order: Vec<(usize, f64)> = logits.iter().map(|x| f64::from(*x) + 0.0).enumerate().collect();
    order.sort_by(|a, b| b.1.total_cmp(&a.1));
    let ends = (order.get(topk.wrapping_sub(1)), order.get(topk));
    if matches!(ends, (Some(last), Some(next)) if last.1 == next.1) {
        return None;
    }
    order.truncate(topk);
    let most = order.first().map_or(0.0, |(_, logit)| *logit);
    order.iter_mut().for_each(|(_, x)| *x = libm::exp(*x - most));
    let sum: f64 = order.iter().map(|(_, x)| x).sum();
    order.iter_mut().for_each(|(_, x)| *x /= sum);
    Some(order)
}

/// Vectors of a bank, one piece after the other.
fn mixed(pieces: &[Vec<(usize, f64)>], bank: &[f32], length: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(pieces.len() * length);
    let mut sum = vec![0.0; length];
    for piece in pieces {
        sum.fill(0.0);
        for (vector, weight) in piece {
            let vector = bank.chunks_exact(length).nth(*vector).unwrap_or(&[]);
            sum.iter_mut().zip(vector).for_each(|(sum, x)| *sum += weight * f64::from(*x));
        }
        out.extend(sum.iter().map(|x| *x as f32));
    }
    out
}

impl Layers for Bank {
    fn layer(&self, module: &Module<'_>) -> Result<Vec<Planned>> {
        let (outputs, inputs) = module.linear("VB-LoRA")?;
        let Self { r, vectors, length, topk } = *self;
        if !outputs.is_multiple_of(length) || !inputs.is_multiple_of(length) {
            return Err(mismatch(format!(
                "`{}` is {outputs} × {inputs}, which vectors of {length} (`vector_length`) do not fill",
                module.base_name()
            ))
            .in_file(&module.adapter().config.path));
        }
        let a = self.mixtures(module, A, (r, inputs / length))?;
        let b = self.mixtures(module, B, (outputs / length, r))?;
        let bank = module.shared(BANK)?;
        let have = module.shape(bank.name())?;
        if have != [vectors, length] {
            let problem = format!("shape {have:?}, but the configuration wants {:?}", [vectors, length]);
            return Err(mismatch(problem).in_tensor(bank.name()).with_hint(OTHER));
        }
        let mut tensors = [a.tensors(), b.tensors()].concat();
        tensors.push(bank.name().to_owned());
        let beside = bank.memory() + 24 * (r * (outputs + inputs) / length * topk) as u64;
        let make = move |loader: &Loader<'_>| {
            let bank = loader.shared(&bank)?;
            let right = mixed(&a.read(loader, vectors, topk)?, &bank, length);
            // (outputs / length, r, length), of which the last two change places.
            let pieces = mixed(&b.read(loader, vectors, topk)?, &bank, length);
            let mut left = Vec::with_capacity(outputs * r);
            for tile in pieces.chunks_exact((r * length).max(1)) {
                left.extend((0..length).flat_map(|i| tile.iter().skip(i).step_by(length).copied()));
            }
            Ok((left, right))
        };
        let change =
            Factored { rank: r, outputs, inputs, scale: module.weight(), round: None, beside, of_base: false, make };
        Ok(vec![Planned { on: On::Matrix, outputs, inputs, change: Arc::new(change), tensors }])
    }
}

#[cfg(test)]
mod tests {
    use super::largest;

    #[test]
    fn what_is_equal_at_the_border_is_not_chosen() {
        assert_eq!(largest(&[1.0, 3.0, 2.0, 0.5], 2).map(|found| [found[0].0, found[1].0]), Some([1, 2]));
        assert_eq!(largest(&[3.0, 3.0, 2.0], 2).map(|found| found.len()), Some(2));
        assert_eq!(largest(&[1.0, 3.0, 1.0], 2), None);
        assert_eq!(largest(&[1.0, 0.0, -0.0], 2), None);
        assert_eq!(largest(&[1.0, 1.0], 2).map(|found| found.len()), Some(2));
    }
}
