//! A progress bar on a terminal; nothing in a pipe.

use std::sync::OnceLock;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use qmerge::merge::Progress;

/// Work done and time left, on standard error.
pub(crate) struct Bar {
    bar: OnceLock<ProgressBar>,
    quiet: bool,
    /// What is counted; bytes, with their speed, if nothing is named.
    unit: Option<&'static str>,
}

impl Bar {
    pub(crate) fn new(quiet: bool) -> Self {
        Self { bar: OnceLock::new(), quiet, unit: None }
    }

    pub(crate) fn counting(unit: &'static str) -> Self {
        Self { bar: OnceLock::new(), quiet: false, unit: Some(unit) }
    }

    /// Removes the bar, so that the result stands alone.
    pub(crate) fn clear(&self) {
        if let Some(bar) = self.bar.get() {
            bar.finish_and_clear();
        }
    }
}

impl Progress for Bar {
    fn start(&self, total: u64) {
        let target = if self.quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr_with_hz(10) };
        let template = match self.unit {
            None => "{bar:40} {percent:>3} %  {bytes_per_sec}  {eta} left".to_owned(),
            Some(unit) => format!("{{bar:40}} {{pos}} of {{len}} {unit}  {{eta}} left"),
        };
        let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::with_draw_target(Some(total), target).with_style(style);
        let _ = self.bar.set(bar);
    }

    fn advance(&self, amount: u64) {
        if let Some(bar) = self.bar.get() {
            bar.inc(amount);
        }
    }
}
