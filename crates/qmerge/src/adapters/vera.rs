//! VeRA and PVeRA: two random matrices that all layers share, scaled by trained vectors.
//!
//! `diag(λ_b) · B · diag(λ_d) · A` is added, B and A cut to the layer. They stand in the file, or are drawn anew from `projection_prng_key`. PVeRA's A and λ_d
//! give a mean and a deviation, of which a merge takes the mean. Source: PEFT 0.21, `tuners/{vera,pvera}`.

use std::sync::{Arc, Mutex};

use super::factored::Factored;
use super::module::OTHER;
use super::torch_random::{Generator, kaiming};
use super::{AdapterConfig, Layers, Loader, Markers, Module, On, PeftMethod, Planned, Shared};
use crate::dtype::Dtype;
use crate::error::{Result, mismatch, unsupported};
use crate::parallel::lock;
use crate::simd::floats::round_to;

/// VeRA.
pub(super) struct Vera;
/// PVeRA.
pub(super) struct Pvera;

impl PeftMethod for Vera {
    fn peft_type(&self) -> &'static str {
        "VERA"
    }

    fn markers(&self) -> Markers {
        Markers { own: &["vera_lambda_b", "vera_lambda_d"], shared: &["vera_A", "vera_B"], ..Markers::default() }
    }

    fn configure(&self, config: &AdapterConfig) -> Result<Box<dyn Layers>> {
        let names = Names { a: "vera_A", b: "vera_B", lambda_b: "vera_lambda_b", lambda_d: "vera_lambda_d" };
        Ok(Box::new(Scalings::read(config, &["vera_dropout"], names, 1)?))
    }
}

impl PeftMethod for Pvera {
    fn peft_type(&self) -> &'static str {
        "PVERA"
    }

    fn markers(&self) -> Markers {
        Markers { own: &["pvera_lambda_b", "pvera_lambda_d"], shared: &["pvera_A", "pvera_B"], ..Markers::default() }
    }

    fn configure(&self, config: &AdapterConfig) -> Result<Box<dyn Layers>> {
        let names = Names { a: "pvera_A", b: "pvera_B", lambda_b: "pvera_lambda_b", lambda_d: "pvera_lambda_d" };
        // Sampling at inference is noise around what is merged, as in PEFT.
        Ok(Box::new(Scalings::read(config, &["pvera_dropout", "sample_at_inference", "generator_seed"], names, 2)?))
    }
}

#[derive(Clone, Copy, Debug)]
struct Names {
    a: &'static str,
    b: &'static str,
    lambda_b: &'static str,
    lambda_d: &'static str,
}

/// A method's configuration.
#[derive(Debug)]
struct Scalings {
    names: Names,
    rank: usize,
    /// Halves of A and λ_d, of which the first counts.
    halves: usize,
    projections: Projections,
}

impl Scalings {
    fn read(config: &AdapterConfig, own: &[&str], names: Names, halves: usize) -> Result<Self> {
        config.refuse_unknown(&[own, &["r", "d_initial"], Projections::FIELDS].concat())?;
        let rank = config.fields().count("r", 1, 256)?;
        Ok(Self { names, rank, halves, projections: Projections::read(config)? })
    }
}

impl Layers for Scalings {
    fn layer(&self, module: &Module<'_>) -> Result<Vec<Planned>> {
        let Self { names, rank, halves, .. } = *self;
        let (outputs, inputs) = module.linear(&module.adapter().config.peft_type)?;
        let lambda_b = module.sized(names.lambda_b, &[outputs])?.to_owned();
        let lambda_d = module.sized(names.lambda_d, &[rank * halves])?.to_owned();
        let draw = move |seed: u64, (most_outputs, most_inputs): (usize, usize)| {
            let mut generator = Generator::new(seed);
            let mut draw = |rows: usize, fan: usize| {
                let bound = kaiming(fan, 2.0_f64.sqrt());
                generator.uniform(-bound, bound, rows * fan)
            };
            (draw(rank * halves, most_inputs), draw(most_outputs, rank))
        };
        let (a, b) = self.projections.find(module, (names.a, names.b), rank, &draw)?;
        let (most_outputs, most_inputs) = module.largest();
        let wide = a.shape(module, &[rank * halves, most_inputs])?;
        let tall = b.shape(module, &[most_outputs, rank])?;
        let (most_inputs, most_outputs) = (wide.last().copied().unwrap_or(0), tall.first().copied().unwrap_or(0));
        for (what, have, want, tensor) in [("inputs", most_inputs, inputs, &a), ("outputs", most_outputs, outputs, &b)]
        {
            if have < want {
                let problem = format!("made for {have} {what}, but `{}` has {want}", module.base_name());
                return Err(mismatch(problem).in_tensor(tensor.name()).with_hint(OTHER));
            }
        }
        let mut tensors = vec![lambda_d.clone(), lambda_b.clone()];
        tensors.extend([&a, &b].into_iter().filter_map(|projection| projection.stored()));
        let beside = a.memory() + b.memory();
        let make = move |loader: &Loader<'_>| {
            let (lambda_b, lambda_d) = (loader.floats(&lambda_b)?, loader.floats(&lambda_d)?);
            let (a, b) = (a.read(loader)?, b.read(loader)?);
            let rows = b.chunks_exact(rank.max(1)).zip(&lambda_b);
            let left = rows.flat_map(|(row, factor)| row.iter().map(move |x| factor * x)).collect();
            let rows = a.chunks_exact(most_inputs.max(1)).zip(&lambda_d).take(rank);
            let right = rows.flat_map(|(row, factor)| row.iter().take(inputs).map(move |x| factor * x)).collect();
            Ok((left, right))
        };
        let change =
            Factored { rank, outputs, inputs, scale: module.weight(), round: None, beside, of_base: false, make };
        Ok(vec![Planned { on: On::Matrix, outputs, inputs, change: Arc::new(change), tensors }])
    }

    fn zero_at_first(&self) -> &'static [&'static str] {
        &["vera_lambda_b", "pvera_lambda_b"]
    }
}

/// The random matrices of a method that shares two of them: stored, or drawn.
#[derive(Debug)]
pub(super) struct Projections {
    seed: u64,
    saved: bool,
    /// What was drawn last, for which most outputs and inputs, and rounded to what.
    drawn: Mutex<Option<(DrawnFor, Drawn)>>,
}

/// Ranks up to here are drawn for layers of any size.
const MOST_RANK: usize = 4096;

/// Most outputs and inputs, and the type of 16 bits that the base has.
type DrawnFor = ((usize, usize), Option<Dtype>);
/// Two matrices.
type Drawn = [Arc<[f32]>; 2];

impl Projections {
    /// Fields that say where they come from.
    pub(super) const FIELDS: &[&str] = &["projection_prng_key", "save_projection"];

    pub(super) fn read(config: &AdapterConfig) -> Result<Self> {
        let fields = config.fields();
        Ok(Self {
            seed: fields.count("projection_prng_key", 0, 0)? as u64,
            saved: fields.flag_or("save_projection", true)?,
            drawn: Mutex::new(None),
        })
    }

    /// The two of them. `draw` gets the seed, and the most outputs and inputs of the adapter's layers.
    pub(super) fn find(
        &self,
        module: &Module<'_>,
        (a, b): (&'static str, &'static str),
        rank: usize,
        draw: &dyn Fn(u64, (usize, usize)) -> (Vec<f32>, Vec<f32>),
    ) -> Result<(Projection, Projection)> {
        if self.saved || module.shared(a).is_ok() || module.shared(b).is_ok() {
            return Ok((Projection::Stored(module.shared(a)?), Projection::Stored(module.shared(b)?)));
        }
        let (most_outputs, most_inputs) = module.largest();
        // A larger rank adds nothing, and its matrices may be larger than memory.
        let most = most_outputs.max(most_inputs).max(MOST_RANK);
        if rank > most {
            return Err(unsupported(format!("r is {rank}: of random matrices that are not saved this version draws those of rank {most} at most here"))
                .with_hint("save them with the adapter (save_projection=True)"));
        }
        let mut drawn = lock(&self.drawn);
        // PEFT gives them the type of a base that is stored as it is.
        let wanted = (module.largest(), module.sixteen_bits());
        let [one, two] = match &*drawn {
            Some((own, both)) if *own == wanted => both.clone(),
            _ => {
                let (mut one, mut two) = draw(self.seed, module.largest());
                if let (_, Some(dtype)) = wanted {
                    round_to(dtype, &mut one);
                    round_to(dtype, &mut two);
                }
                let both: Drawn = [one.into(), two.into()];
                *drawn = Some((wanted, both.clone()));
                both
            }
        };
        Ok((Projection::Drawn(a, one), Projection::Drawn(b, two)))
    }
}

/// One of them.
#[derive(Clone, Debug)]
pub(super) enum Projection {
    Stored(Arc<Shared>),
    Drawn(&'static str, Arc<[f32]>),
}

impl Projection {
    /// Its values.
    pub(super) fn read(&self, loader: &Loader<'_>) -> Result<Arc<[f32]>> {
        match self {
            Self::Stored(shared) => loader.shared(shared),
            Self::Drawn(_, values) => Ok(Arc::clone(values)),
        }
    }

    /// Bytes that its values take.
    pub(super) fn memory(&self) -> u64 {
        match self {
            Self::Stored(shared) => shared.memory(),
            Self::Drawn(_, values) => 4 * values.len() as u64,
        }
    }

    fn name(&self) -> &str {
        match self {
            Self::Stored(shared) => shared.name(),
            Self::Drawn(name, _) => name,
        }
    }

    /// Its tensor.
    pub(super) fn stored(&self) -> Option<String> {
        matches!(self, Self::Stored(_)).then(|| self.name().to_owned())
    }

    /// Its dimensions: of what is stored those of the tensor, which may differ from `drawn` only where that goes by the layers' sizes.
    pub(super) fn shape(&self, module: &Module<'_>, drawn: &[usize]) -> Result<Vec<usize>> {
        let Self::Stored(shared) = self else { return Ok(drawn.to_vec()) };
        let (have, sizes) = (module.shape(shared.name())?, module.largest());
        let by_size = |want: usize| want == sizes.0 || want == sizes.1 || want == sizes.0.min(sizes.1);
        let fits = have.len() == drawn.len()
            && have.iter().zip(drawn).all(|(have, want)| have == want || *have > *want && by_size(*want));
        if fits {
            return Ok(have.to_vec());
        }
        let problem = format!("shape {have:?}, but the configuration and the base want {drawn:?}");
        Err(mismatch(problem).in_tensor(shared.name()).with_hint(OTHER))
    }
}
