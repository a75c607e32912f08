//! GraLoRA: the matrix is cut into k × k blocks, each with a low-rank product of its own, whose factors rows and columns of blocks share.
//!
//! The block of outputs s and inputs n is (A_n[:, s·q..] · B_s[n·q.., :])ᵀ, q = r / k, beside an ordinary LoRA of rank `hybrid_r`. All of it is one product of
//! rank k·r + hybrid_r, whose factors are mostly zeros. Source: PEFT 0.21, `tuners/gralora/layer.py`.

use std::sync::Arc;

use super::factored::Factored;
use super::{AdapterConfig, Layers, Loader, Markers, Module, On, PeftMethod, Planned};
use crate::error::{Result, malformed, mismatch};

/// GraLoRA.
pub(super) struct GraLora;

impl PeftMethod for GraLora {
    fn peft_type(&self) -> &'static str {
        "GRALORA"
    }

    fn markers(&self) -> Markers {
        Markers { own: &["gralora_A", "gralora_B", "gralora_A_general", "gralora_B_general"], ..Markers::default() }
    }

    fn configure(&self, config: &AdapterConfig) -> Result<Box<dyn Layers>> {
        config.refuse_unknown(&["r", "hybrid_r", "alpha", "gralora_k", "gralora_dropout"])?;
        let fields = config.fields();
        let (r, k) = (fields.count("r", 1, 32)?, fields.count("gralora_k", 1, 2)?);
        if !r.is_multiple_of(k) {
            return Err(malformed(format!("`r` is {r}, which `gralora_k`, {k}, does not divide")));
        }
        let alpha = fields.number("alpha")?.unwrap_or(64.0);
        Ok(Box::new(Grid { r, k, hybrid: fields.count("hybrid_r", 0, 0)?, alpha }))
    }
}

#[derive(Debug)]
struct Grid {
    r: usize,
    k: usize,
    hybrid: usize,
    alpha: f64,
}

impl Layers for Grid {
    fn layer(&self, module: &Module<'_>) -> Result<Vec<Planned>> {
        let (outputs, inputs) = module.linear("GraLoRA")?;
        let Self { r, k, hybrid, alpha } = *self;
        if !outputs.is_multiple_of(k) || !inputs.is_multiple_of(k) {
            let problem =
                format!("`{}` is {outputs} × {inputs}, which {k} × {k} blocks do not fill", module.base_name());
            return Err(mismatch(problem).in_file(&module.adapter().config.path));
        }
        let (tall, wide) = (outputs / k, inputs / k);
        let a = module.sized("gralora_A", &[k, wide, r])?.to_owned();
        let b = module.sized("gralora_B", &[k, r, tall])?.to_owned();
        let mut tensors = vec![a.clone(), b.clone()];
        let mut general = None;
        if hybrid > 0 {
            let a = module.sized("gralora_A_general", &[hybrid, inputs])?.to_owned();
            let b = module.sized("gralora_B_general", &[outputs, hybrid])?.to_owned();
            tensors.extend([a.clone(), b.clone()]);
            general = Some((a, b));
        }
        let rank = k * r + hybrid;
        let make = move |loader: &Loader<'_>| {
            let (a, b) = (loader.floats(&a)?, loader.floats(&b)?);
            let q = r / k;
            let (mut left, mut right) = (vec![0.0; outputs * rank], vec![0.0; rank * inputs]);
            let set = |of: &mut Vec<f32>, at: usize, value: Option<&f32>| {
                if let (Some(to), Some(value)) = (of.get_mut(at), value) {
                    *to = *value;
                }
            };
            for (s, n, t) in (0..k).flat_map(|s| (0..k).flat_map(move |n| (0..q).map(move |t| (s, n, t)))) {
                let direction = (s * k + n) * q + t;
                for i in 0..wide {
                    set(&mut right, direction * inputs + n * wide + i, a.get((n * wide + i) * r + s * q + t));
                }
                for o in 0..tall {
                    set(&mut left, (s * tall + o) * rank + direction, b.get((s * r + n * q + t) * tall + o));
                }
            }
            if let Some((a, b)) = &general {
                let (a, b) = (loader.floats(a)?, loader.floats(b)?);
                a.iter().enumerate().for_each(|(at, x)| set(&mut right, k * r * inputs + at, Some(x)));
                for (at, x) in b.iter().enumerate() {
                    set(&mut left, at / hybrid * rank + k * r + at % hybrid, Some(x));
                }
            }
            Ok((left, right))
        };
        let scale = alpha / (r + hybrid) as f64 * module.weight();
        let change = Factored { rank, outputs, inputs, scale, round: None, beside: 0, of_base: false, make };
        Ok(vec![Planned { on: On::Matrix, outputs, inputs, change: Arc::new(change), tensors }])
    }

    fn zero_at_first(&self) -> &'static [&'static str] {
        &["gralora_B", "gralora_B_general"]
    }
}
