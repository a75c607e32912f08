//! A progress bar on a terminal; nothing in a pipe.

use std::sync::{Mutex, MutexGuard, PoisonError};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use qmerge::merge::Progress;

/// Work done and time left, on standard error.
pub(crate) struct Bar {
    bar: Mutex<Option<ProgressBar>>,
    /// Shown until work is counted.
    spinner: Mutex<Option<ProgressBar>>,
    quiet: bool,
    /// What is counted; bytes, with their speed, if nothing is named.
    unit: Option<&'static str>,
}

impl Bar {
    pub(crate) fn new(quiet: bool) -> Self {
        Self { bar: Mutex::new(None), spinner: Mutex::new(None), quiet, unit: None }
    }

    pub(crate) fn counting(unit: &'static str) -> Self {
        Self { bar: Mutex::new(None), spinner: Mutex::new(None), quiet: false, unit: Some(unit) }
    }

    /// Removes the bar, so that the result stands alone.
    pub(crate) fn clear(&self) {
        Self::stop(&self.bar);
        Self::stop(&self.spinner);
    }

    fn target(&self) -> ProgressDrawTarget {
        if self.quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr_with_hz(10) }
    }

    fn stop(which: &Mutex<Option<ProgressBar>>) {
        if let Some(bar) = held(which).take() {
            bar.finish_and_clear();
        }
    }
}

fn held(bar: &Mutex<Option<ProgressBar>>) -> MutexGuard<'_, Option<ProgressBar>> {
    bar.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Progress for Bar {
    fn phase(&self, name: &str) {
        Self::stop(&self.spinner);
        let spinner = ProgressBar::with_draw_target(None, self.target()).with_message(name.to_owned());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
            spinner.set_style(style);
        }
        spinner.enable_steady_tick(std::time::Duration::from_millis(100));
        *held(&self.spinner) = Some(spinner);
    }

    fn part(&self, done: u64, total: u64) {
        if let Some(spinner) = &*held(&self.spinner) {
            if spinner.length().is_none()
                && let Ok(style) = ProgressStyle::with_template("{spinner} {msg}  {percent:>3} %  {eta} left")
            {
                spinner.set_style(style);
                spinner.set_length(total);
            }
            spinner.set_position(done);
        }
    }

    fn start(&self, total: u64) {
        // Several models may be downloaded one after another, each with its own bar.
        self.clear();
        let target = self.target();
        let template = match self.unit {
            None => "{bar:40} {percent:>3} %  {bytes_per_sec}  {eta} left".to_owned(),
            Some(unit) => format!("{{bar:40}} {{pos}} of {{len}} {unit}  {{eta}} left"),
        };
        let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::with_draw_target(Some(total), target).with_style(style);
        *held(&self.bar) = Some(bar);
    }

    fn cancelled(&self) -> bool {
        crate::interrupt::asked()
    }

    fn advance(&self, amount: u64) {
        if let Some(bar) = &*held(&self.bar) {
            bar.inc(amount);
        }
    }
}
