//! Signals. Ctrl-C: the first asks the work to stop, so that what is finished is kept; the second ends the program.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::args::Command;
use crate::show;

/// The exit status of a program that was interrupted, as shells count.
pub(crate) const STATUS: u8 = 130;

static ASKED: AtomicBool = AtomicBool::new(false);

/// A file that grows beyond the limit of its size (`ulimit -f`) is an error of writing, as a full disk is, and does not end the program by a signal.
pub(crate) fn outlive_large_files() {
    #[cfg(unix)]
    // SAFETY: to ignore a signal runs no code of ours in its place.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}

/// True once Ctrl-C was pressed.
pub(crate) fn asked() -> bool {
    ASKED.load(Ordering::Relaxed)
}

/// Takes Ctrl-C over for commands that look at [`asked`] while they work; others end at once, as ever.
pub(crate) fn watch(command: &Command) {
    let (quiet, resumable) = match command {
        Command::Merge(args) | Command::Finish(args) => (args.running.quiet, true),
        Command::Convert(args) => (args.running.quiet, true),
        Command::Unmerge(args) => (args.running.quiet, true),
        Command::Verify(args) => (args.quiet, false),
        Command::Compare(args) => (args.quiet, false),
        Command::Calibrate(_)
        | Command::Truncate(_)
        | Command::Combine(_)
        | Command::Extract(_)
        | Command::ConvertAdapter(_) => (false, false),
        _ => return,
    };
    // Where the signal is ignored, as for a job in the background of a script, it stays so.
    let _ = ctrlc::try_set_handler(move || {
        if !ASKED.swap(true, Ordering::Relaxed) {
            qmerge_store::stop_waiting();
            if !quiet {
                show::note("\nstopping; Ctrl-C again stops at once");
            }
            return;
        }
        if resumable {
            show::note("stopped; with --resume the same command goes on with what was written, if anything was");
        }
        std::process::exit(STATUS.into());
    });
}
