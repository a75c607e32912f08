//! Tensors of the base that an adapter's file has beside what was trained: PEFT saves the whole embedding whenever it is a target.

use crate::adapters::{Changes, Names};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::formats::Claim;
use crate::open::{Checkpoint, Entry};
use crate::simd::floats;

use super::Inputs;

/// Values compared at a time.
const CHUNK: usize = 1 << 18;

/// Leaves out what is the base's own, value for value, so that several adapters may bring it; and says where one is another, which takes the place of the base's, as with PEFT.
pub(super) fn leave_out(
    inputs: &Inputs,
    names: &Names<'_>,
    changes: &mut [Changes],
    warnings: &mut Vec<String>,
) -> Result<()> {
    for (adapter, changes) in inputs.adapters.iter().zip(changes) {
        let mut kept = Vec::new();
        for replacement in std::mem::take(&mut changes.replacements) {
            // Of an embedding that is tied and not stored, the tensor that it is.
            let tied = || names.tied_to(replacement.target.strip_suffix(".weight")?).map(|(_, claim)| claim);
            let claim = names.exact(&replacement.target).or_else(tied).filter(|claim| claim.weight.is_plain());
            let own = claim.and_then(own).zip(adapter.tensors.get(&replacement.tensor));
            let Some((own, brought)) = own.filter(|(own, brought)| !replacement.trained && own.shape == brought.shape)
            else {
                kept.push(replacement);
                continue;
            };
            let found = compared((&inputs.base, own), (&adapter.tensors, brought))?;
            if found == Likeness::Same {
                changes.ignored.push((replacement.tensor, "the base's own tensor, which came along"));
                continue;
            }
            if found == Likeness::Other {
                warnings.push(format!(
                    "{}: `{}` is not the base's `{}`, and takes its place, as with PEFT: what a merge into this base changed there before is lost",
                    adapter.path.display(),
                    replacement.tensor,
                    replacement.target
                ));
            }
            kept.push(replacement);
        }
        changes.replacements = kept;
    }
    Ok(())
}

/// The one tensor of a plain weight.
fn own(claim: &Claim) -> Option<&Entry> {
    claim.entries.first().filter(|_| claim.entries.len() == 1)
}

/// How a tensor that was brought stands to the base's.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Likeness {
    /// Value for value.
    Same,
    /// But for the rounding to its type, or the base's.
    Rounded,
    Other,
}

fn compared(a: (&Checkpoint, &Entry), b: (&Checkpoint, &Entry)) -> Result<Likeness> {
    let values = |(checkpoint, entry): (&Checkpoint, &Entry), from: usize, out: &mut [f32]| {
        let size = (entry.bytes / entry.elements().max(1)) as usize;
        let mut bytes = vec![0; out.len() * size];
        checkpoint.read_at(entry, (from * size) as u64, &mut bytes)?;
        floats::decode(entry.dtype, &bytes, out);
        Result::Ok(())
    };
    if !a.1.dtype.is_plain_float() || !b.1.dtype.is_plain_float() {
        return Ok(Likeness::Other);
    }
    let coarser = if [a.1.dtype, b.1.dtype].contains(&Dtype::BF16) { Dtype::BF16 } else { Dtype::F16 };
    let mut found = Likeness::Same;
    let elements = a.1.elements() as usize;
    let (mut left, mut right) = (Vec::new(), Vec::new());
    for from in (0..elements).step_by(CHUNK) {
        let n = CHUNK.min(elements - from);
        left.resize(n, 0.0);
        right.resize(n, 0.0);
        values(a, from, &mut left)?;
        values(b, from, &mut right)?;
        if left == right {
            continue;
        }
        floats::round_to(coarser, &mut left);
        floats::round_to(coarser, &mut right);
        if a.1.dtype == b.1.dtype || left != right {
            return Ok(Likeness::Other);
        }
        found = Likeness::Rounded;
    }
    Ok(found)
}
