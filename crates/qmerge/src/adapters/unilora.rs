//! UniLoRA: all values of the factors of all layers' LoRAs are values of one short trained vector, each times one over the root of how often it is used.
//!
//! Which value stands where is in the file (`save_indices`), or is what numpy draws from `proj_seed` for all layers together, in the order in which the model's code
//! defines them, A before B. Then not even the layers' names are in the file: they are those that the configuration targets. Source: PEFT 0.21, `tuners/unilora`.

use std::sync::{Arc, Mutex};

use super::factored::Factored;
use super::module::OTHER;
use super::numpy_random::Generator;
use super::targets;
use super::{AdapterConfig, Layers, Loader, Markers, Module, Names, On, PeftMethod, Planned};
use crate::error::{Result, malformed, mismatch};
use crate::parallel::lock;
use crate::simd::floats::round_to;

/// UniLoRA.
pub(super) struct UniLora;

const THETA: &str = "unilora_theta_d";
const INDICES: [&str; 2] = ["unilora_indices_A", "unilora_indices_B"];
const SCALES: [&str; 2] = ["unilora_scales_A", "unilora_scales_B"];

impl PeftMethod for UniLora {
    fn peft_type(&self) -> &'static str {
        "UNILORA"
    }

    fn markers(&self) -> Markers {
        Markers {
            own: &["unilora_indices_A", "unilora_indices_B", "unilora_scales_A", "unilora_scales_B"],
            shared: &[THETA],
            ..Markers::default()
        }
    }

    fn configure(&self, config: &AdapterConfig) -> Result<Box<dyn Layers>> {
        config.refuse_unknown(&[
            "r",
            "proj_seed",
            "theta_d_length",
            "unilora_dropout",
            "init_theta_d_bound",
            "save_indices",
        ])?;
        let fields = config.fields();
        let length = fields.count("theta_d_length", 1, 256)?;
        Ok(Box::new(Shared {
            config: config.clone(),
            rank: fields.count("r", 1, 4)?,
            length,
            saved: fields.flag("save_indices")?,
            draw: Arc::new(Draw { seed: fields.count("proj_seed", 0, 42)? as u64, length, last: Mutex::default() }),
        }))
    }
}

#[derive(Debug)]
struct Shared {
    config: AdapterConfig,
    rank: usize,
    length: usize,
    saved: bool,
    draw: Arc<Draw>,
}

/// What was not saved, drawn once a layer needs it.
#[derive(Debug)]
struct Draw {
    seed: u64,
    length: usize,
    /// What was drawn last, and for how many values.
    last: Mutex<Option<(u32, Arc<Drawn>)>>,
}

#[derive(Debug)]
struct Drawn {
    /// For each value of a factor the value of the vector.
    indices: Vec<u32>,
    /// For each value of the vector.
    scales: Vec<f32>,
}

/// Values of the vector and their factors, of A and of B.
#[derive(Clone, Debug)]
enum Source {
    Stored([[String; 2]; 2]),
    /// Of so many values, from one on.
    Drawn {
        draw: Arc<Draw>,
        count: u32,
        first: usize,
    },
}

impl Draw {
    /// As `generate_index` does: each value of the vector equally often, or once more, shuffled.
    fn of(&self, count: u32) -> Arc<Drawn> {
        let mut drawn = lock(&self.last);
        if let Some((own, drawn)) = &*drawn
            && *own == count
        {
            return Arc::clone(drawn);
        }
        let length = u32::try_from(self.length).unwrap_or(u32::MAX).max(1);
        let mut generator = Generator::new(self.seed);
        let mut indices: Vec<u32> = (0..length).flat_map(|at| (0..count / length).map(move |_| at)).collect();
        if !count.is_multiple_of(length) {
            indices.extend(generator.choice(length, count % length));
        }
        generator.shuffle(&mut indices);
        let mut counts = vec![0_u32; self.length];
        for at in &indices {
            if let Some(count) = counts.get_mut(*at as usize) {
                *count += 1;
            }
        }
        let scales = counts.iter().map(|count| if *count > 0 { 1.0 / (*count as f32).sqrt() } else { 0.0 }).collect();
        let new = Arc::new(Drawn { indices, scales });
        *drawn = Some((count, Arc::clone(&new)));
        new
    }
}

impl Shared {
    fn source(&self, module: &Module<'_>, (outputs, inputs): (usize, usize)) -> Result<Source> {
        let markers = INDICES.iter().chain(&SCALES);
        if self.saved || markers.clone().any(|marker| module.tensors().get(marker).is_some()) {
            let sized = |marker: &'static str, shape: &[usize]| Ok(module.sized(marker, shape)?.to_owned());
            let [a, b] = [[self.rank, inputs], [outputs, self.rank]];
            let ([index_a, index_b], [scale_a, scale_b]) = (INDICES, SCALES);
            return Ok(Source::Stored([
                [sized(index_a, &a)?, sized(scale_a, &a)?],
                [sized(index_b, &b)?, sized(scale_b, &b)?],
            ]));
        }
        let values = |shape: (usize, usize)| (self.rank as u64).checked_mul((shape.0 + shape.1) as u64);
        let sum = |shapes: Vec<(usize, usize)>| {
            shapes.into_iter().try_fold(0_u64, |sum, shape| sum.checked_add(values(shape)?))
        };
        let before = module.before("values that were not saved (`save_indices`)")?;
        let count =
            sum(module.shapes().collect()).and_then(|count| u32::try_from(count).ok()).filter(|count| *count < 1 << 31);
        let (Some(before), Some(count)) = (sum(before), count) else {
            return Err(malformed(format!(
                "`r` is {}, for which the layers' factors have 2³¹ values and more",
                self.rank
            ))
            .in_file(&self.config.path));
        };
        Ok(Source::Drawn { draw: Arc::clone(&self.draw), count, first: before as usize })
    }
}

impl Source {
    fn tensors(&self) -> Vec<String> {
        match self {
            Self::Stored(tensors) => tensors.iter().flatten().cloned().collect(),
            Self::Drawn { .. } => Vec::new(),
        }
    }

    /// Bytes of what is drawn.
    fn memory(&self) -> u64 {
        match self {
            Self::Stored(_) => 0,
            Self::Drawn { draw, count, .. } => 4 * (u64::from(*count) + 2 * draw.length as u64),
        }
    }
}

impl Layers for Shared {
    fn targets(&self, names: &Names<'_>) -> Result<Vec<String>> {
        if self.saved { Ok(Vec::new()) } else { targets::of(&self.config, names) }
    }

    fn layer(&self, module: &Module<'_>) -> Result<Vec<Planned>> {
        let (outputs, inputs) = module.linear("UniLoRA")?;
        let (rank, length) = (self.rank, self.length);
        let theta = module.shared(THETA)?;
        let have = module.shape(theta.name())?;
        if have != [length] {
            let problem = format!("shape {have:?}, but the configuration wants {:?}", [length]);
            return Err(mismatch(problem).in_tensor(theta.name()).with_hint(OTHER));
        }
        let source = self.source(module, (outputs, inputs))?;
        let mut tensors = source.tensors();
        tensors.push(theta.name().to_owned());
        // PEFT has the factors in the weight's type.
        let round = module.sixteen_bits();
        let beside = theta.memory() + source.memory() + 8 * (rank * (outputs + inputs)) as u64;
        let make = move |loader: &Loader<'_>| {
            let theta = loader.shared(&theta)?;
            let value = |at: u64, scale: f32| theta.get(at as usize).map(|x| x * scale);
            let stored = |[indices, scales]: &[String; 2]| -> Result<Vec<f32>> {
                let (places, scales) = (loader.integers(indices)?, loader.floats(scales)?);
                let values = places.iter().zip(scales).map(|(at, scale)| value(*at, scale));
                let wrong =
                    || malformed(format!("a place that is none of {length}")).in_tensor(indices).with_hint(OTHER);
                values.collect::<Option<_>>().ok_or_else(wrong)
            };
            match &source {
                Source::Stored([a, b]) => Ok((stored(b)?, stored(a)?)),
                Source::Drawn { draw, count, first } => {
                    let drawn = draw.of(*count);
                    let mut scales = drawn.scales.clone();
                    if let Some(dtype) = round {
                        round_to(dtype, &mut scales);
                    }
                    let own = drawn.indices.iter().skip(*first).map(|at| {
                        value(u64::from(*at), scales.get(*at as usize).copied().unwrap_or(f32::NAN)).unwrap_or(f32::NAN)
                    });
                    let right = own.clone().take(rank * inputs).collect();
                    Ok((own.skip(rank * inputs).take(rank * outputs).collect(), right))
                }
            }
        };
        let change =
            Factored { rank, outputs, inputs, scale: module.weight(), round: None, beside, of_base: false, make };
        Ok(vec![Planned { on: On::Matrix, outputs, inputs, change: Arc::new(change), tensors }])
    }
}
