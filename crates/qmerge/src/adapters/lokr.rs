//! LoKr: a Kronecker product of two small matrices is added.
//!
//! D = s · w1 ⊗ w2, s = alpha / r, each of the two stored whole or as a product of two factors; which, the tensors say. Of a convolution w2 has the kernel, which
//! may lie between its factors. Source: PEFT 0.21, `tuners/lokr/layer.py`.

use std::sync::Arc;

use super::loha::{Scaling, low};
use super::lora::{self, through_kernel};
use super::module::{INCOMPLETE, OTHER};
use super::{AdapterConfig, ChangePlan, Layers, Loader, Markers, Module, On, PeftMethod, Planned};
use crate::edit::{Change, Delta, Product, Tile};
use crate::error::{Result, mismatch};
use crate::linalg::transposed;
use crate::simd::matmul::{Columns, matmul};

/// LoKr.
pub(super) struct LoKr;

const ONE: [&str; 3] = ["lokr_w1", "lokr_w1_a", "lokr_w1_b"];
const TWO: [&str; 3] = ["lokr_w2", "lokr_w2_a", "lokr_w2_b"];

impl PeftMethod for LoKr {
    fn peft_type(&self) -> &'static str {
        "LOKR"
    }

    fn markers(&self) -> Markers {
        Markers {
            own: &["lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"],
            ..Markers::default()
        }
    }

    fn configure(&self, config: &AdapterConfig) -> Result<Box<dyn Layers>> {
        // How a matrix is cut stands in the shapes.
        let own = [
            "rank_dropout",
            "rank_dropout_scale",
            "module_dropout",
            "use_effective_conv2d",
            "decompose_both",
            "decompose_factor",
        ];
        Ok(Box::new(Kroneckers { scaling: Scaling::read(config, &own)? }))
    }
}

#[derive(Debug)]
struct Kroneckers {
    scaling: Scaling,
}

/// One of the two matrices: whole, or two factors of a rank.
#[derive(Clone, Debug)]
struct Small {
    tensors: Vec<String>,
    rows: usize,
    cols: usize,
    rank: usize,
}

impl Small {
    fn find(module: &Module<'_>, [whole, a, b]: [&'static str; 3], kernel: Option<&str>, rank: usize) -> Result<Self> {
        let tensors = module.tensors();
        match (tensors.get(whole), tensors.get(a), tensors.get(b)) {
            (Some(whole), None, None) if kernel.is_none() => {
                let (rows, cols) = plane(module, whole)?;
                Ok(Self { tensors: vec![whole.to_owned()], rows, cols, rank: rows.min(cols) })
            }
            (None, Some(a), Some(b)) => {
                let ((rows, rank_a), (rank_b, cols)) = (plane(module, a)?, plane(module, b)?);
                // Beside a kernel both have the rank first, and inputs are channels.
                let (rows, rank_a) = if kernel.is_some() { (rank_a, rows) } else { (rows, rank_a) };
                if let Some((have, name)) = [(rank_a, a), (rank_b, b)].into_iter().find(|(have, _)| *have != rank) {
                    let problem = format!("rank {have}, but the configuration says {rank}");
                    return Err(mismatch(problem).in_tensor(name).with_hint(OTHER));
                }
                let mut tensors = vec![a.to_owned(), b.to_owned()];
                let elements = kernel.map_or(Ok(1), |kernel| lora::kernel(module, kernel, rank))?;
                tensors.extend(kernel.map(str::to_owned));
                let cols = cols.checked_mul(elements).ok_or_else(|| mismatch("too large").in_tensor(b))?;
                Ok(Self { tensors, rows, cols, rank })
            }
            (Some(one), ..) => Err(mismatch(format!("stands beside its own factors `{a}` and `{b}`")).in_tensor(one)),
            (None, one, other) => {
                let error = mismatch(format!("`{}` has neither `{whole}` nor both of `{a}` and `{b}`", module.path()));
                Err(error.in_tensor(one.or(other).unwrap_or("")).with_hint(INCOMPLETE))
            }
        }
    }

    /// Its values (rows, cols), with the product's scale 1.
    fn load(&self, loader: &Loader<'_>) -> Result<Matrix> {
        let Self { rows, cols, rank, .. } = *self;
        let factors = match &self.tensors[..] {
            [a, b] => Some((loader.floats(a)?, loader.floats(b)?)),
            [a, b, kernel] => {
                let right = through_kernel(&loader.floats(kernel)?, &loader.floats(b)?, rank);
                Some((transposed(&loader.floats(a)?, rows), right))
            }
            _ => None,
        };
        let values = match &factors {
            Some((a, b)) => {
                let mut values = vec![0.0; rows * cols];
                let product = Product::new(rank, a.clone(), b.clone(), 1.0, None);
                product.tile(&Tile { outputs: 0..rows, inputs: 0..cols }, &mut values);
                values
            }
            None => loader.floats(self.tensors.first().map_or("", String::as_str))?,
        };
        Ok(Matrix { rows, cols, rank, values, factors })
    }
}

/// The two dimensions of a matrix; of a convolution, with everything behind the first taken together.
fn plane(module: &Module<'_>, tensor: &str) -> Result<(usize, usize)> {
    match *module.shape(tensor)? {
        [rows, cols] if rows > 0 && cols > 0 => Ok((rows, cols)),
        [_, _, _, ..] if module.is_convolution() => module.matrix(tensor).and_then(|(rows, cols)| match rows * cols {
            0 => Err(mismatch("no values").in_tensor(tensor)),
            _ => Ok((rows, cols)),
        }),
        ref shape => Err(mismatch(format!("shape {shape:?}, expected a matrix")).in_tensor(tensor).with_hint(OTHER)),
    }
}

impl Layers for Kroneckers {
    fn layer(&self, module: &Module<'_>) -> Result<Vec<Planned>> {
        let (outputs, inputs) = module.linear_or_convolution("LoKr")?;
        let (rank, scale) = self.scaling.of(module)?;
        let kernel = module.tensors().get("lokr_t2");
        if let Some(kernel) = kernel.filter(|_| !module.is_convolution()) {
            return Err(mismatch("the kernel of a convolution, but the module is none").in_tensor(kernel));
        }
        let (one, two) = (Small::find(module, ONE, None, rank)?, Small::find(module, TWO, kernel, rank)?);
        let product = |a: usize, b: usize| a.checked_mul(b);
        if (product(one.rows, two.rows), product(one.cols, two.cols)) != (Some(outputs), Some(inputs)) {
            return Err(mismatch(format!(
                "a Kronecker product of [{}, {}] and [{}, {}], but `{}` has {outputs} outputs and {inputs} inputs",
                one.rows,
                one.cols,
                two.rows,
                two.cols,
                module.base_name()
            ))
            .in_tensor(one.tensors.first().map_or("", String::as_str))
            .with_hint(OTHER));
        }
        let tensors = [one.tensors.clone(), two.tensors.clone()].concat();
        let change = KroneckerPlan { one, two, scale: scale * module.weight() };
        Ok(vec![Planned { on: On::Matrix, outputs, inputs, change: Arc::new(change), tensors }])
    }

    fn zero_at_first(&self) -> &'static [&'static str] {
        &["lokr_w1", "lokr_w1_a"]
    }
}

#[derive(Debug)]
struct KroneckerPlan {
    one: Small,
    two: Small,
    scale: f64,
}

impl ChangePlan for KroneckerPlan {
    fn load(&self, loader: &Loader<'_>) -> Result<Change> {
        Ok(Change::add(Kronecker {
            one: self.one.load(loader)?,
            two: self.two.load(loader)?,
            scale: self.scale as f32,
        }))
    }

    fn memory(&self) -> u64 {
        let of = |small: &Small| small.rows * small.cols + small.rank * (small.rows + small.cols);
        8 * (of(&self.one) + of(&self.two)) as u64
    }

    fn scale(&self) -> Option<f64> {
        Some(self.scale)
    }

    fn rank(&self) -> Option<usize> {
        let (one, two) = (&self.one, &self.two);
        low(one.rank.checked_mul(two.rank)?, one.rows * two.rows, one.cols * two.cols)
    }
}

#[derive(Debug)]
struct Matrix {
    rows: usize,
    cols: usize,
    rank: usize,
    values: Vec<f32>,
    factors: Option<(Vec<f32>, Vec<f32>)>,
}

impl Matrix {
    /// Factors (rows, rank) and (rank, cols): the stored ones, or the matrix and an identity.
    fn factors(&self) -> (Vec<f32>, Vec<f32>) {
        let identity = |n: usize| (0..n * n).map(|at| if at % (n + 1) == 0 { 1.0 } else { 0.0 }).collect();
        match &self.factors {
            Some(factors) => factors.clone(),
            None if self.cols <= self.rows => (self.values.clone(), identity(self.cols)),
            None => (identity(self.rows), self.values.clone()),
        }
    }
}

/// a (ar, ac) ⊗ b (br, bc), rows of which are one of a's and one of b's.
fn kron((a, ac): (&[f32], usize), (b, bc): (&[f32], usize)) -> Vec<f32> {
    let mut out = Vec::with_capacity(a.len() * b.len());
    for a in a.chunks_exact(ac.max(1)) {
        for b in b.chunks_exact(bc.max(1)) {
            a.iter().for_each(|a| out.extend(b.iter().map(|b| a * b)));
        }
    }
    out
}

#[derive(Debug)]
struct Kronecker {
    one: Matrix,
    two: Matrix,
    scale: f32,
}

impl Delta for Kronecker {
    fn tile(&self, tile: &Tile, out: &mut [f32]) {
        let (one, two) = (&self.one, &self.two);
        for (o, out) in tile.outputs.clone().zip(out.chunks_exact_mut(tile.inputs.len().max(1))) {
            let (row_one, row_two) = (o / two.rows * one.cols, o % two.rows * two.cols);
            for (i, out) in tile.inputs.clone().zip(out) {
                let factor = |matrix: &Matrix, at: usize| matrix.values.get(at).copied().unwrap_or(f32::NAN);
                *out = factor(one, row_one + i / two.cols) * factor(two, row_two + i % two.cols) * self.scale;
            }
        }
    }

    fn has_forward(&self) -> bool {
        true
    }

    fn forward(&self, x: &[f32], tokens: usize, y: &mut [f32]) {
        let (one, two) = (&self.one, &self.two);
        let mut inner = vec![0.0; one.cols * two.rows * tokens];
        let blocks = x.chunks_exact((two.cols * tokens).max(1));
        for (x, inner) in blocks.zip(inner.chunks_exact_mut((two.rows * tokens).max(1))) {
            matmul(&two.values, &Columns::new(x, two.cols, tokens), false, inner);
        }
        let scaled: Vec<f32> = one.values.iter().map(|value| value * self.scale).collect();
        matmul(&scaled, &Columns::new(&inner, one.cols, two.rows * tokens), true, y);
    }

    fn rank(&self) -> Option<usize> {
        let (one, two) = (&self.one, &self.two);
        low(one.rank * two.rank, one.rows * two.rows, one.cols * two.cols)
    }

    fn factors(&self) -> Option<Product> {
        let rank = self.rank()?;
        let ((left_one, right_one), (left_two, right_two)) = (self.one.factors(), self.two.factors());
        let left = kron((&left_one, self.one.rank), (&left_two, self.two.rank));
        let right = kron((&right_one, self.one.cols), (&right_two, self.two.cols));
        Some(Product::new(rank, left, right, self.scale, None))
    }
}
