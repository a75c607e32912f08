//! PEANuT: what is added is a small network's answer to the base's own columns.
//!
//! With h = f(A·w) for each column w of W, then h ← f(E·h) for each encoder and h ← f(D·h) + the h before the encoder for each decoder, the column `scaling · B·h` is
//! added. The network reads weights, not inputs, so a weight holds what it does. Source: PEFT 0.21, `tuners/peanut/layer.py`.

use std::sync::Arc;

use super::factored::Factored;
use super::{AdapterConfig, Layers, Loader, Markers, Module, On, PeftMethod, Planned, of_base};
use crate::error::{Result, unsupported};
use crate::linalg::transposed;

/// PEANuT.
pub(super) struct Peanut;

const A: &str = "peanut_A";
const B: &str = "peanut_B";
/// Tensors of each layer on the way in, and of each on the way out.
const ENCODERS: [&str; 8] = [
    "peanut_encoders.0",
    "peanut_encoders.1",
    "peanut_encoders.2",
    "peanut_encoders.3",
    "peanut_encoders.4",
    "peanut_encoders.5",
    "peanut_encoders.6",
    "peanut_encoders.7",
];
const DECODERS: [&str; 8] = [
    "peanut_decoders.0",
    "peanut_decoders.1",
    "peanut_decoders.2",
    "peanut_decoders.3",
    "peanut_decoders.4",
    "peanut_decoders.5",
    "peanut_decoders.6",
    "peanut_decoders.7",
];

impl PeftMethod for Peanut {
    fn peft_type(&self) -> &'static str {
        "PEANUT"
    }

    fn markers(&self) -> Markers {
        // Evaluated by the compiler.
        #[allow(clippy::indexing_slicing)]
        const OWN: [&str; 18] = {
            let mut own = [A; 18];
            own[1] = B;
            let mut at = 0;
            while at < 8 {
                own[2 + at] = ENCODERS[at];
                own[10 + at] = DECODERS[at];
                at += 1;
            }
            own
        };
        Markers { own: &OWN, ..Markers::default() }
    }

    fn configure(&self, config: &AdapterConfig) -> Result<Box<dyn Layers>> {
        config.refuse_unknown(&["r", "depth", "act_fn", "scaling"])?;
        let fields = config.fields();
        let depth = fields.count("depth", 0, 0)?;
        if depth > ENCODERS.len() {
            let problem = format!("`depth` is {depth}, and this version merges up to {}", ENCODERS.len());
            return Err(unsupported(problem).with_hint("let PEFT merge it"));
        }
        let name = fields.text("act_fn")?.unwrap_or_else(|| "relu".to_owned());
        let activation = ACTIVATIONS.iter().find(|(own, _)| *own == name).map(|(_, activation)| *activation);
        let activation = activation.ok_or_else(|| {
            let known: Vec<_> = ACTIVATIONS.iter().map(|(name, _)| *name).collect();
            unsupported(format!(
                "`act_fn` is \"{name}\", which this version does not know (it knows {})",
                known.join(", ")
            ))
            .with_hint("let PEFT merge it")
        })?;
        Ok(Box::new(Network {
            rank: fields.count("r", 1, 32)?,
            depth,
            activation,
            scaling: fields.number("scaling")?.unwrap_or(1.0),
        }))
    }
}

type Activation = fn(f64) -> f64;

/// transformers' names for activations.
const ACTIVATIONS: &[(&str, Activation)] = &[
    ("relu", |x| x.max(0.0)),
    ("linear", |x| x),
    ("relu2", |x| x.max(0.0) * x.max(0.0)),
    ("relu6", |x| x.clamp(0.0, 6.0)),
    ("leaky_relu", |x| if x < 0.0 { 0.01 * x } else { x }),
    ("sigmoid", sigmoid),
    ("silu", |x| x * sigmoid(x)),
    ("swish", |x| x * sigmoid(x)),
    ("tanh", libm::tanh),
    ("gelu", gelu),
    ("gelu_python", gelu),
    ("gelu_new", gelu_tanh),
    ("gelu_pytorch_tanh", gelu_tanh),
    ("quick_gelu", |x| x * sigmoid(1.702 * x)),
    ("mish", |x| x * libm::tanh(libm::log1p(libm::exp(x)))),
];

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + libm::exp(-x))
}

fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + libm::erf(x * std::f64::consts::FRAC_1_SQRT_2))
}

fn gelu_tanh(x: f64) -> f64 {
    0.5 * x * (1.0 + libm::tanh((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x)))
}

#[derive(Debug)]
struct Network {
    rank: usize,
    depth: usize,
    activation: Activation,
    scaling: f64,
}

impl Layers for Network {
    fn layer(&self, module: &Module<'_>) -> Result<Vec<Planned>> {
        let (outputs, inputs) = module.linear("PEANuT")?;
        let (rank, activation) = (self.rank, self.activation);
        let a = module.sized(A, &[rank, outputs])?.to_owned();
        let b = module.sized(B, &[outputs, rank])?.to_owned();
        let inner = |markers: &[&'static str; 8]| -> Result<Vec<String>> {
            markers.iter().take(self.depth).map(|marker| Ok(module.sized(marker, &[rank, rank])?.to_owned())).collect()
        };
        let (encoders, decoders) = (inner(&ENCODERS)?, inner(&DECODERS)?);
        let mut tensors = vec![a.clone(), b.clone()];
        tensors.extend(encoders.iter().chain(&decoders).cloned());
        let make = move |loader: &Loader<'_>| {
            let columns: Vec<f64> = transposed(&loader.floats(&a)?, outputs).into_iter().map(f64::from).collect();
            let mut h = of_base::product(loader, (outputs, inputs), &columns, rank)?;
            h.iter_mut().for_each(|x| *x = activation(*x));
            let layer = |name: &str, h: &[f64]| -> Result<Vec<f64>> {
                let mut out = product(&loader.floats(name)?, h, rank, inputs);
                out.iter_mut().for_each(|x| *x = activation(*x));
                Ok(out)
            };
            let mut before = Vec::new();
            for name in &encoders {
                let next = layer(name, &h)?;
                before.push(std::mem::replace(&mut h, next));
            }
            for name in &decoders {
                h = layer(name, &h)?;
                let residual = before.pop().unwrap_or_default();
                h.iter_mut().zip(residual).for_each(|(x, residual)| *x += residual);
            }
            Ok((loader.floats(&b)?, h.into_iter().map(|x| x as f32).collect()))
        };
        let change = Factored {
            rank,
            outputs,
            inputs,
            scale: self.scaling * module.weight(),
            round: module.sixteen_bits(),
            beside: 8 * (rank * outputs + (self.depth + 2) * rank * inputs) as u64 + of_base::memory(inputs),
            of_base: true,
            make,
        };
        Ok(vec![Planned { on: On::Matrix, outputs, inputs, change: Arc::new(change), tensors }])
    }

    fn zero_at_first(&self) -> &'static [&'static str] {
        &[B]
    }
}

/// M · H, (rank, rank) and (rank, inputs).
fn product(m: &[f32], h: &[f64], rank: usize, inputs: usize) -> Vec<f64> {
    let mut out = vec![0.0; rank * inputs];
    for (m, out) in m.chunks_exact(rank.max(1)).zip(out.chunks_exact_mut(inputs.max(1))) {
        for (m, h) in m.iter().zip(h.chunks_exact(inputs.max(1))) {
            out.iter_mut().zip(h).for_each(|(out, h)| *out += f64::from(*m) * h);
        }
    }
    out
}
