//! What is said where a model overflows.

use qmerge::error::{Error, Kind, Result};

use crate::model::Model;

pub(super) const OVERFLOWS: &str =
    "its inputs on the calibration text are not finite: the model's activations overflow";

/// Why the inputs of the weight `name`, or the logits, are not finite: what an adapter makes of some weight, or that the model overflows on this text.
pub(super) fn blame(model: &Model<'_>, name: Option<&str>) -> Result<Error> {
    // Magnitude after and before the edits, and whose.
    let mut largest = (0.0_f32, 0.0_f32, "");
    let (mut base, mut values) = (Vec::new(), Vec::new());
    for linear in model.linears() {
        let weight = linear.weight();
        let claim = weight.base().claim();
        let cols = claim.weight.geometry().cols;
        for rows in weight.base().chunks(1 << 17).filter(|_| weight.is_edited()) {
            weight.rows(&rows, &mut base, &mut values)?;
            if let Some(at) = values.iter().position(|x| !x.is_finite()) {
                let place = format!("[{}, {}]", rows.start + at / cols, at % cols);
                if !base[at].is_finite() {
                    let problem = format!("the base itself holds {} at {place}", base[at]);
                    return Ok(Error::new(Kind::NotFinite, problem)
                        .in_tensor(claim.weight.name())
                        .with_hint("the base is damaged: copy it again from where it was published"));
                }
                let problem = format!(
                    "the merged value is {} at {place} (base {:e}): the adapter's delta overflows",
                    values[at], base[at]
                );
                return Ok(Error::new(Kind::NotFinite, problem)
                    .in_tensor(claim.weight.name())
                    .with_hint("lower the adapter's weight, or use an earlier checkpoint of the adapter"));
            }
            let own = |values: &[f32]| values.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
            if own(&values) > largest.0 {
                largest = (own(&values), own(&base), claim.weight.name());
            }
        }
    }
    let error = match name {
        Some(name) => Error::new(Kind::NotFinite, OVERFLOWS).in_tensor(name),
        None => Error::new(Kind::NotFinite, "the model's logits are not finite: its activations overflow"),
    };
    Ok(match largest {
        (merged, base, edited) if merged > 0.0 => error.with_hint(format!(
            "of the weights that the adapter edits, `{edited}` has the largest value: {merged:e}, where the base has {base:e} at most"
        )),
        _ => error.with_hint("no adapter edits what was run: the base itself overflows, on this text at least"),
    })
}
