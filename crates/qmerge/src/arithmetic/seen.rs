//! What is known of the inputs of a base's layers, for directions that count there.

use std::collections::HashMap;

use super::gathered::Gathered;
use crate::error::{Result, mismatch};
use crate::plan::{Action, Plan};
use crate::round::Calibration;

/// Moments of the inputs of a base's layers, and what says which of its weights the modules of adapters are.
pub struct Seen<'s> {
    /// Of a merge of the adapters into the base, in their order.
    pub plan: &'s Plan,
    /// The moments.
    pub calibration: &'s mut dyn Calibration,
}

impl std::fmt::Debug for Seen<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.calibration.about())
    }
}

impl<'s> Seen<'s> {
    /// Numbers of sites by the weight that they change. A stack's experts see different inputs, and an embedding's are tokens.
    pub(super) fn sites(&self, gathered: &Gathered<'_>) -> Result<HashMap<&'s str, Vec<usize>>> {
        let mut numbers: HashMap<(usize, &str), usize> = HashMap::new();
        for (number, site) in gathered.sites.iter().enumerate() {
            if site.experts() == 1 && !site.is_embedding() {
                numbers.extend(site.members.iter().map(|member| ((member.adapter, member.pair.a.as_str()), number)));
            }
        }
        let mut found: HashMap<&str, Vec<usize>> = HashMap::new();
        for step in &self.plan.steps {
            let Action::Recode(recode) = &step.action else { continue };
            for (adapter, edit) in &recode.edits {
                let number = edit.tensors.first().and_then(|name| numbers.get(&(*adapter, name.as_str())));
                let own = found.entry(step.name.as_str()).or_default();
                if let Some(&number) = number.filter(|number| !own.contains(number)) {
                    own.push(number);
                }
            }
        }
        if found.values().all(Vec::is_empty) {
            return Err(mismatch("the adapters change no layer of the base whose inputs could be known"));
        }
        Ok(found)
    }
}
