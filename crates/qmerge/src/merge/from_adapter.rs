//! What layers are given, guessed from the adapter alone, for a model that is not run.
//!
//! What an adapter reads says something about a layer's inputs: the gradient of A is a sum of them. So H = I + c·V Vᵀ, V a basis of the rows of A.

use std::collections::HashSet;

use rayon::prelude::*;

use crate::edited::Edited;
use crate::error::Result;
use crate::plan::{Inputs, Plan, Recode};
use crate::round::{Calibration, Demand, Directions, InputMoments, Known, LayerInputs, Take};

/// Weight of the directions that the adapter reads, where any other has 1. On SmolLM2 2 to 5 do as well; 10 loses there and on Gemma 3.
const READ: f32 = 3.0;

/// H of each weight by itself, from the adapters of a plan.
#[derive(Debug)]
pub struct FromAdapter<'a> {
    inputs: &'a Inputs,
    plan: &'a Plan,
}

impl<'a> FromAdapter<'a> {
    /// Of the weights of a plan that are rounded by what is known of their inputs.
    pub fn new(inputs: &'a Inputs, plan: &'a Plan) -> Self {
        Self { inputs, plan }
    }

    /// The weights of a base of which something may be known: matrices of layers in a format coarser than 16 bits. Of those that no adapter changes, or not by a
    /// product, nothing comes.
    pub fn weights(inputs: &Inputs) -> HashSet<String> {
        let coarse = inputs.inventory.weights.iter().map(|claim| &claim.weight);
        let matrices = coarse.filter(|weight| !weight.is_plain() && weight.shape().len() == 2);
        matrices.map(|weight| weight.name().to_owned()).collect()
    }

    fn recodes(&self) -> impl Iterator<Item = &'a Recode> {
        self.plan.recodes().filter(|recode| {
            recode.rounding.whole().is_some()
                && !recode.edits.is_empty()
                && !recode.transposed
                && recode.stack.is_none()
        })
    }
}

impl Calibration for FromAdapter<'_> {
    fn about(&self) -> String {
        "nothing but what the adapter reads".into()
    }

    fn identity(&self) -> Result<String> {
        Ok(format!("I + {READ} V Vᵀ"))
    }

    fn sees_inputs(&self) -> bool {
        false
    }

    fn demand(&self) -> Demand {
        let one = |recode: &Recode| {
            vec![LayerInputs { features: recode.inputs(), weights: vec![recode.to.name().to_owned()] }]
        };
        Demand::of_read(self.recodes().map(one).collect())
    }

    fn each(&mut self, wanted: &(dyn Fn(&str) -> bool + Sync), take: &mut dyn Take) -> Result<()> {
        for recode in self.recodes().filter(|recode| wanted(recode.to.name())) {
            let edited = Edited::new(self.inputs, recode)?;
            let of = |edits| Directions::of(edits, 0..recode.outputs(), recode.inputs());
            let Some(directions) = edited.edits().and_then(of) else {
                continue;
            };
            take.known(Known { weights: vec![recode.to.name().to_owned()], moments: moments(&directions) })?;
            take.layer()?;
        }
        Ok(())
    }
}

fn moments(directions: &Directions) -> InputMoments {
    let features = directions.inputs();
    let mut values = vec![0.0; features * features];
    values.par_chunks_mut(features).enumerate().for_each(|(i, row)| {
        let own = directions.of_input(i);
        for (j, value) in row.iter_mut().enumerate() {
            let product: f32 = own.iter().zip(directions.of_input(j)).map(|(a, b)| a * b).sum();
            *value = READ * product + if i == j { 1.0 } else { 0.0 };
        }
    });
    InputMoments { features, tokens: 0, values }
}
