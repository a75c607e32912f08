//! `qmerge inspect`.

use anyhow::Result;

use crate::args::InspectArgs;
use crate::{Outcome, show};

pub(crate) fn run(args: &InspectArgs) -> Result<Outcome> {
    let found = qmerge_store::inspect(&args.path)?;
    if args.json {
        show::json(&found)?;
    } else {
        show::inspection(&found);
    }
    Ok(Outcome::Done)
}
