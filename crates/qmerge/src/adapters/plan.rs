//! Changes before their numbers are read, and where they are put.

use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

use super::numbers::read_integers;
use super::{Shared, TaskVector, read_floats};
use crate::dtype::Dtype;
use crate::edit::{Change, Edit, Place, Reach, Spot};
use crate::error::{Error, Kind, Result, unsupported};
use crate::formats::{Claim, Reader};
use crate::open::Checkpoint;

/// A change of one module's matrix (outputs, inputs) before its numbers are read.
pub trait ChangePlan: Debug + Send + Sync {
    /// Reads the numbers. Every value of the adapter is checked to be finite.
    fn load(&self, loader: &Loader<'_>) -> Result<Change>;

    /// Bytes that the loaded change holds.
    fn memory(&self) -> u64;

    /// Matrices that it changes: of a stack, all of [`Module::matrices`](super::Module::matrices).
    fn matrices(&self) -> usize {
        1
    }

    /// What of the base one value of the result depends on.
    fn reach(&self) -> Reach {
        Reach::Added
    }

    /// True if what it does to a weight is made of the base's values, and would be another on another base.
    fn is_of_base(&self) -> bool {
        self.reach() != Reach::Added
    }

    /// The factor on the adapter's product, where there is one.
    fn scale(&self) -> Option<f64> {
        None
    }

    /// The rank of the product that it adds to a matrix, where it does nothing else.
    fn rank(&self) -> Option<usize> {
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

    /// What it is where it is not loaded, but made of rows as they are read.
    fn task_vector(&self) -> Option<&TaskVector> {
        None
    }

    /// Of factors on a layer's inputs, the same as factors on the outputs of a layer before it.
    fn before(&self) -> Option<Arc<dyn ChangePlan>> {
        None
    }

    /// Of a change of a bias that is made of the module's matrix too: the matrix' inputs. [`Loader::base`] has the rows of the matrix then.
    fn beside(&self) -> Option<usize> {
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
    /// The weight with the module's matrix, and where it lies there, if what is changed is another that is made of it ([`ChangePlan::beside`]).
    pub matrix: Option<Arc<(Claim, Place)>>,
}

impl Placed {
    /// One matrix that is a whole weight, or its transpose.
    pub(super) fn on_matrix(change: Arc<dyn ChangePlan>, outputs: usize, inputs: usize, transposed: bool) -> Self {
        let shape = Some(if transposed { (inputs, outputs) } else { (outputs, inputs) });
        let place = Place::of_matrix(outputs, inputs, transposed);
        Self { change, place, matrices: 0..1, shape, part: None, matrix: None }
    }

    /// Reads the numbers. `base` is where the weight that is edited stands, before any edit.
    pub fn load(&self, tensors: &Checkpoint, base: (&Checkpoint, &Claim)) -> Result<Edit> {
        let change = self.change.load(&Loader { tensors, base, placed: self })?;
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

    /// The rank of the product that it adds to a matrix, where it does nothing else.
    pub fn rank(&self) -> Option<usize> {
        self.change.rank()
    }

    /// True if it replaces rows of an embedding.
    pub fn is_tokens(&self) -> bool {
        self.change.is_tokens()
    }

    /// True if the loaded edit needs sums over the whole weight before it can be applied.
    pub fn needs_survey(&self) -> bool {
        self.place.needs_survey(self.change.reach()) || self.task_vector().is_some_and(TaskVector::needs_survey)
    }

    /// Stored rows that have to be edited together.
    pub fn row_step(&self) -> usize {
        self.place.row_step(self.change.reach())
    }

    /// What it is where it is not loaded, but made of rows as they are read.
    pub fn task_vector(&self) -> Option<&TaskVector> {
        self.change.task_vector()
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
pub struct Loader<'s> {
    tensors: &'s Checkpoint,
    base: (&'s Checkpoint, &'s Claim),
    placed: &'s Placed,
}

impl Loader<'_> {
    /// A tensor of the adapter.
    pub fn floats(&self, name: &str) -> Result<Vec<f32>> {
        read_floats(self.tensors, name)
    }

    /// A tensor of whole numbers from 0 on, which may be stored as floats.
    pub fn integers(&self, name: &str) -> Result<Vec<u64>> {
        read_integers(self.tensors, name)
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
        let (checkpoint, own) = self.base;
        let (claim, place) = match &self.placed.matrix {
            Some(matrix) => (&matrix.0, &matrix.1),
            None => (own, &self.placed.place),
        };
        let reader = Reader::new(checkpoint, claim)?;
        let cols = reader.claim().weight.geometry().cols;
        let outside = || Error::new(Kind::Bug, "rows of the base that are not the module's");
        let spot: &Spot = place.spots.get(matrix).ok_or_else(outside)?;
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

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::edit::Stride;
    use crate::formats;

    type Seen = (Vec<f32>, Vec<Arc<[f32]>>);

    /// Takes the base's rows and a shared tensor, and does nothing with them.
    #[derive(Debug)]
    struct Looks {
        outputs: Range<usize>,
        shared: Arc<Shared>,
        seen: Mutex<Seen>,
    }

    impl ChangePlan for Looks {
        fn load(&self, loader: &Loader<'_>) -> Result<Change> {
            let mut seen = self.seen.lock().unwrap();
            seen.0 = loader.base(0, self.outputs.clone())?;
            seen.1.push(loader.shared(&self.shared)?);
            Ok(Change::Add(Vec::new()))
        }

        fn memory(&self) -> u64 {
            self.shared.memory()
        }
    }

    fn checkpoint(name: &str, shape: &[usize]) -> (std::path::PathBuf, Checkpoint) {
        let path = std::env::temp_dir().join(format!("qmerge-plan-{}-{name}.safetensors", std::process::id()));
        let bytes: Vec<u8> = (0..shape.iter().product()).flat_map(|i: usize| (i as f32).to_le_bytes()).collect();
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.to_vec(), &bytes).unwrap();
        safetensors::serialize_to_file([(name, view)], None, &path).unwrap();
        let checkpoint = Checkpoint::open(&path).unwrap();
        (path, checkpoint)
    }

    #[test]
    fn a_change_reads_its_own_rows_of_the_base_and_what_all_share_once() {
        let (shared_path, tensors) = checkpoint("shared", &[5]);
        let (base_path, base) = checkpoint("weight", &[2, 6, 4]);
        let claim = &formats::inventory(&base).unwrap().weights[0];
        let shared = Arc::new(Shared::new("shared", 5));
        let all = Stride::first(2);
        // The second matrix of a stack: its rows, every other of its rows, and every other column as outputs.
        for (transposed, width, put, want) in [
            (false, 6, all, [24., 25., 26., 27., 28., 29., 30., 31.].as_slice()),
            (false, 6, Stride { start: 1, step: 2, len: 2 }, &[28., 29., 30., 31., 36., 37., 38., 39.]),
            (
                true,
                4,
                Stride { start: 1, step: 2, len: 2 },
                &[25., 29., 33., 37., 41., 45., 27., 31., 35., 39., 43., 47.],
            ),
        ] {
            let change = Arc::new(Looks { outputs: 0..2, shared: Arc::clone(&shared), seen: Mutex::default() });
            let spot = Spot { rows: 6..12, transposed, width, take: all, put };
            let place = Place { spots: vec![spot] };
            let plan: Arc<dyn ChangePlan> = Arc::clone(&change) as Arc<dyn ChangePlan>;
            let placed = Placed { change: plan, place, matrices: 0..1, shape: None, part: None, matrix: None };
            placed.load(&tensors, (&base, claim)).unwrap();
            placed.load(&tensors, (&base, claim)).unwrap();
            let seen = change.seen.lock().unwrap();
            assert_eq!(seen.0, want);
            assert!(Arc::ptr_eq(&seen.1[0], &seen.1[1]) && seen.1[0].len() == 5);
            drop(seen);
            // Outputs that lie in another weight.
            let half = Stride { start: 2, step: 1, len: 2 };
            let place = Place { spots: vec![Spot { rows: 6..8, transposed: false, width: 2, take: half, put: all }] };
            assert!(Placed { place, ..placed.clone() }.load(&tensors, (&base, claim)).is_err());
        }
        std::fs::remove_file(shared_path).unwrap();
        std::fs::remove_file(base_path).unwrap();
    }
}
