//! Changes before their numbers are read, and where they are put.

use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

use super::{Shared, read_floats};
use crate::dtype::Dtype;
use crate::edit::{Change, Edit, Place, Reach, Spot};
use crate::error::{Error, Kind, Result, unsupported};
use crate::formats::{Claim, Reader};
use crate::open::Checkpoint;

/// A change of one module's matrix (outputs, inputs) before its numbers are read.
pub trait ChangePlan: Debug + Send + Sync {
    /// Reads the numbers. Every value of the adapter is checked to be finite.
    fn load(&self, source: &Source<'_>) -> Result<Change>;

    /// Bytes that the loaded change holds.
    fn memory(&self) -> u64;

    /// What of the base one value of the result depends on.
    fn reach(&self) -> Reach {
        Reach::Added
    }

    /// The factor on the adapter's product, where there is one.
    fn scale(&self) -> Option<f64> {
        None
    }

    /// True if it replaces rows of an embedding, of which tied ends all take part.
    fn is_tokens(&self) -> bool {
        false
    }

    /// A plain type that the edited tensor must be stored as, instead of its own.
    fn stores_as(&self) -> Option<Dtype> {
        None
    }
}

/// What a method plans for a module.
#[derive(Debug)]
pub struct Planned {
    /// What of the module it changes.
    pub on: On,
    /// Outputs of the matrix that the change fits; of one matrix, if it is of a stack.
    pub outputs: usize,
    /// Its inputs.
    pub inputs: usize,
    /// The change.
    pub change: Arc<dyn ChangePlan>,
    /// Adapter tensors it takes.
    pub tensors: Vec<String>,
}

/// What of a module a change is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    /// Its matrix.
    Matrix,
    /// The matrix of an embedding: inputs are tokens, outputs are features.
    Embedding,
    /// Its bias, as a matrix of one input.
    Bias,
}

/// A change where it lies in one stored weight.
#[derive(Clone, Debug)]
pub struct Placed {
    /// The change.
    pub change: Arc<dyn ChangePlan>,
    /// Where it lies.
    pub place: Place,
    /// Matrices of the change that lie there, of those that the adapter has.
    pub matrices: Range<usize>,
    /// Rows and columns of the stored matrix that it fits, where it fits only one shape.
    pub shape: Option<(usize, usize)>,
    /// Where in the weight it acts, if beside others of the same adapter: one expert's rows of a stack.
    pub part: Option<(usize, usize)>,
}

impl Placed {
    /// One matrix that is a whole weight, or its transpose.
    pub(super) fn whole(change: Arc<dyn ChangePlan>, outputs: usize, inputs: usize, transposed: bool) -> Self {
        let shape = Some(if transposed { (inputs, outputs) } else { (outputs, inputs) });
        Self { change, place: Place::whole(outputs, inputs, transposed), matrices: 0..1, shape, part: None }
    }

    /// Reads the numbers. `base` is where the weight that is edited stands, before any edit.
    pub fn load(&self, tensors: &Checkpoint, base: (&Checkpoint, &Claim)) -> Result<Edit> {
        let change = self.change.load(&Source { tensors, base, placed: self })?;
        Ok(Edit::new(change, &self.place, self.change.reach()))
    }

    /// Bytes that the loaded edit holds.
    pub fn memory(&self) -> u64 {
        self.change.memory()
    }

    /// True if the edit is a sum, so that merged values keep f32; a map's result takes the base's type, as in PEFT.
    pub fn is_additive(&self) -> bool {
        self.change.reach() == Reach::Added
    }

    /// The factor on the adapter's product, where there is one.
    pub fn scale(&self) -> Option<f64> {
        self.change.scale()
    }

    /// True if it replaces rows of an embedding.
    pub fn is_tokens(&self) -> bool {
        self.change.is_tokens()
    }

    /// True if the loaded edit needs sums over the whole weight before it can be applied.
    pub fn needs_survey(&self) -> bool {
        self.place.needs_survey(self.change.reach())
    }

    /// Stored rows that have to be edited together.
    pub fn row_step(&self) -> usize {
        self.place.row_step(self.change.reach())
    }

    /// Rows and columns of the stored matrix that it fits, where it fits only one shape.
    pub fn shape(&self) -> Option<(usize, usize)> {
        self.shape
    }

    /// A plain type that the edited tensor must be stored as, instead of its own.
    pub fn stores_as(&self) -> Option<Dtype> {
        self.change.stores_as()
    }
}

/// What a change is loaded from.
pub struct Source<'s> {
    tensors: &'s Checkpoint,
    base: (&'s Checkpoint, &'s Claim),
    placed: &'s Placed,
}

impl Source<'_> {
    /// A tensor of the adapter.
    pub fn floats(&self, name: &str) -> Result<Vec<f32>> {
        read_floats(self.tensors, name)
    }

    /// A tensor that all modules share.
    pub fn shared(&self, shared: &Shared) -> Result<Arc<[f32]>> {
        shared.read(self.tensors)
    }

    /// Which matrices of a stack are wanted; of a layer, 0..1.
    pub fn matrices(&self) -> Range<usize> {
        self.placed.matrices.clone()
    }

    /// Rows of the module's own matrix before any adapter, (outputs, inputs): for changes that begin with a decomposition of the base. Of a stack, those of
    /// one of its `matrices`, by number from 0.
    pub fn base(&self, matrix: usize, outputs: Range<usize>) -> Result<Vec<f32>> {
        let (checkpoint, claim) = self.base;
        let reader = Reader::new(checkpoint, claim)?;
        let cols = reader.claim().weight.geometry().cols;
        let outside = || Error::new(Kind::Bug, "rows of the base that are not the module's");
        let spot: &Spot = self.placed.place.spots.get(matrix).ok_or_else(outside)?;
        let is_part = spot.take.start != 0 || spot.take.step != 1 || outputs.end > spot.take.len;
        if is_part {
            return Err(unsupported("the adapter needs rows of the base that lie in several weights"));
        }
        let mut found = Vec::new();
        let mut chunk = Vec::new();
        if spot.transposed {
            let inputs = spot.rows.len();
            found.resize(outputs.len() * inputs, 0.0);
            for rows in reader.chunks(1 << 17) {
                let own = rows.start.max(spot.rows.start)..rows.end.min(spot.rows.end);
                if own.is_empty() {
                    continue;
                }
                reader.rows(&own, &mut chunk)?;
                for (row, values) in own.zip(chunk.chunks_exact(cols.max(1))) {
                    let input = row - spot.rows.start;
                    for (o, x) in outputs.clone().filter_map(|o| values.get(spot.put.at(o))).enumerate() {
                        if let Some(to) = found.get_mut(o * inputs + input) {
                            *to = *x;
                        }
                    }
                }
            }
            return Ok(found);
        }
        let at = |output: usize| spot.rows.start + spot.put.at(output);
        if spot.put.step == 1 {
            reader.rows(&(at(outputs.start)..at(outputs.end)), &mut found)?;
            return Ok(found);
        }
        for output in outputs {
            reader.rows(&(at(output)..at(output) + 1), &mut chunk)?;
            found.extend_from_slice(&chunk);
        }
        Ok(found)
    }
}
