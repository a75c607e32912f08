//! How far the work is: a bar on a terminal, a line for each phase elsewhere. Both go to standard error.

use std::io::IsTerminal;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use qmerge::progress::Progress;

/// Time between two looks at the clock.
const TICK: Duration = Duration::from_millis(200);
/// A phase that is over sooner is not worth a line of a log.
const WORTH_A_LINE: Duration = Duration::from_secs(2);
/// Time between two lines of one phase.
const LINE_EVERY: Duration = Duration::from_secs(30);
/// Share of the work that is taken to have gone as predicted, so that a first lump that was quick or slow does not decide the countdown alone. The share falls as work is
/// done, and from `TRUSTED` on the measured speed alone counts.
const PRIOR: f64 = 0.02;
/// Share of the work after which the speed is known.
const TRUSTED: f64 = 0.1;

/// The countdown begins so long after the work: before, opening files and touching fresh memory takes a share of the time that it never takes again, and what is over
/// by then needs none.
const TELLING: Duration = Duration::from_secs(2);

/// Work done and time left.
pub(crate) struct Bar {
    shared: Arc<Shared>,
    ticker: Mutex<Option<JoinHandle<()>>>,
    quiet: bool,
}

struct Shared {
    state: Mutex<State>,
    /// Tells the ticker to end.
    over: Condvar,
}

/// What is known, apart from the time.
#[derive(Default)]
struct State {
    bar: Option<ProgressBar>,
    over: bool,
    countdown: Countdown,
    phase: Option<Phase>,
    /// Since when; the state's own times are counted from here.
    began: Option<Instant>,
}

struct Phase {
    name: String,
    unit: String,
    part: Option<(u64, u64)>,
    since: Duration,
    /// When a line was last printed.
    printed: Option<Duration>,
}

impl Bar {
    pub(crate) fn new(quiet: bool) -> Self {
        let shared = Shared { state: Mutex::default(), over: Condvar::new() };
        Self { shared: Arc::new(shared), ticker: Mutex::default(), quiet }
    }

    /// Removes the bar, so that the result stands alone.
    pub(crate) fn clear(&self) {
        {
            let mut state = self.shared.lock();
            state.over = true;
            self.shared.over.notify_all();
        }
        if let Some(ticker) = self.ticker.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // It cannot fail but by a defect that its own message told of.
            let _ = ticker.join();
        }
        let state = std::mem::take(&mut *self.shared.lock());
        if let Some(bar) = state.bar {
            bar.finish_and_clear();
        }
    }

    /// Changes the state. The first call starts the clock.
    fn tell(&self, change: impl FnOnce(&mut State, Duration)) {
        if self.quiet {
            return;
        }
        let mut state = self.shared.lock();
        let began = *state.began.get_or_insert_with(Instant::now);
        change(&mut state, began.elapsed());
        let mut ticker = self.ticker.lock().unwrap_or_else(PoisonError::into_inner);
        if ticker.is_none() {
            if std::io::stderr().is_terminal() {
                state.bar = Some(drawn());
            }
            let shared = Arc::clone(&self.shared);
            *ticker = Some(std::thread::spawn(move || shared.tick()));
        }
    }
}

fn drawn() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(1000), ProgressDrawTarget::stderr_with_hz(10));
    bar.set_style(ProgressStyle::with_template("{spinner} {msg}").unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows the state until the work is over.
    fn tick(&self) {
        let mut state = self.lock();
        // Until when a server that is busy was last said to be waited for.
        let mut told = Instant::now();
        while !state.over {
            let now = state.began.map(|began| began.elapsed()).unwrap_or_default();
            let waits = qmerge_store::waiting().filter(|(_, left)| *left >= WORTH_A_LINE);
            let waits = waits.map(|(host, left)| (format!("{host} is busy, goes on in {}", in_words(left)), left));
            match &state.bar {
                Some(bar) => {
                    let (mut text, share) = (state.text(now), state.countdown.share());
                    if let Some((waits, _)) = &waits {
                        text = waits.clone();
                    }
                    if let Some(share) = share
                        && bar.position() == 0
                        && let Ok(style) = ProgressStyle::with_template("{bar:30} {percent:>3} %  {msg}")
                        && share > 0.0
                    {
                        bar.set_style(style);
                    }
                    bar.set_position((1000.0 * share.unwrap_or(0.0)) as u64);
                    bar.set_message(text);
                    bar.tick();
                }
                None => {
                    if let Some((line, left)) = waits.filter(|_| told <= Instant::now()) {
                        told = Instant::now() + left;
                        anstream::eprintln!("{line}");
                    }
                    if let Some(line) = state.line(now) {
                        anstream::eprintln!("{line}");
                    }
                }
            }
            let waited = self.over.wait_timeout_while(state, TICK, |state| !state.over);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl State {
    /// What is done, how far it is, and the time left of all.
    fn text(&self, now: Duration) -> String {
        let mut text = String::new();
        if let Some(phase) = &self.phase {
            text += &phase.name;
            if let Some((done, total)) = phase.part {
                text += &format!(": {done} of {total} {}", phase.unit);
            }
        }
        if let Some(left) = self.countdown.left(now) {
            text += if text.is_empty() { "" } else { ", " };
            text += &format!("{} left", in_words(left));
        }
        text
    }

    /// The line that is due in a log.
    fn line(&mut self, now: Duration) -> Option<String> {
        let phase = self.phase.as_ref()?;
        let due = match phase.printed {
            None => now >= phase.since + WORTH_A_LINE,
            Some(printed) => now >= printed + LINE_EVERY,
        };
        if !due {
            return None;
        }
        let text = self.text(now);
        self.phase.as_mut()?.printed = Some(now);
        Some(text)
    }
}

/// Predicts when the work will be done, from how much of it was done in which time.
#[derive(Debug, Default)]
struct Countdown {
    total: f64,
    done: f64,
    began: Duration,
    /// When something was last done.
    last: Duration,
}

impl Countdown {
    fn start(&mut self, total: u64, now: Duration) {
        *self = Self { total: total as f64, done: 0.0, began: now, last: now };
    }

    fn advance(&mut self, work: u64, now: Duration) {
        self.done += work as f64;
        self.last = now;
    }

    fn skip(&mut self, work: u64) {
        self.total -= work as f64;
    }

    /// The share that is done; `None` where the work is not known.
    fn share(&self) -> Option<f64> {
        (self.total > 0.0).then(|| (self.done / self.total).clamp(0.0, 1.0))
    }

    /// The time left, of the whole, as soon as it can be told. Work comes in lumps: between them the time runs down, but not below half of what the rest was expected to take.
    fn left(&self, now: Duration) -> Option<Duration> {
        self.share().filter(|_| now >= self.began + TELLING)?;
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let prior = PRIOR * (self.total - self.done / TRUSTED).max(0.0);
        let seconds = (self.last - self.began).as_secs_f64() + prior * 1e-9 / threads as f64;
        let expected = (self.total - self.done).max(0.0) * seconds / (self.done + prior);
        let since = now.saturating_sub(self.last).as_secs_f64();
        Some(Duration::from_secs_f64((expected - since).max(0.5 * expected).min(1e9)))
    }
}

/// A time that is left, in at most two units: never none, since a prediction may come to its end before the work does.
fn in_words(time: Duration) -> String {
    let seconds = time.as_secs_f64().ceil().max(1.0) as u64;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

impl Progress for Bar {
    fn start(&self, work: u64) {
        self.tell(|state, now| state.countdown.start(work, now));
    }

    fn advance(&self, work: u64) {
        self.tell(|state, now| state.countdown.advance(work, now));
    }

    fn skip(&self, work: u64) {
        self.tell(|state, _| state.countdown.skip(work));
    }

    fn phase(&self, name: &str, unit: &str) {
        self.tell(|state, now| {
            let (name, unit) = (name.to_owned(), unit.to_owned());
            state.phase = Some(Phase { name, unit, part: None, since: now, printed: None });
        });
    }

    fn part(&self, done: u64, total: u64) {
        self.tell(|state, _| {
            if let Some(phase) = &mut state.phase {
                phase.part = Some((done, total));
            }
        });
    }

    fn cancelled(&self) -> bool {
        crate::interrupt::asked()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    #[test]
    fn the_countdown_follows_the_measured_speed() {
        let mut countdown = Countdown::default();
        assert_eq!(countdown.left(at(1.0)), None);
        // Predicted for another machine: it takes 100 s here, whatever the units.
        for unit in [1e6, 1e9, 1e12] {
            countdown.start((100.0 * unit) as u64, at(5.0));
            for second in 1..100 {
                countdown.advance(unit as u64, at(5.0 + f64::from(second)));
                let Some(left) = countdown.left(at(5.0 + f64::from(second))) else {
                    assert_eq!(second, 1);
                    continue;
                };
                let left = left.as_secs_f64();
                let truth = f64::from(100 - second);
                assert!(second < 10 || (0.9..1.1).contains(&(left / truth)), "{unit} {second} {left}");
            }
            countdown.advance(unit as u64, at(105.0));
            assert_eq!(countdown.left(at(105.0)).unwrap(), Duration::ZERO);
            assert_eq!(countdown.share(), Some(1.0));
        }
    }

    #[test]
    fn what_an_earlier_run_did_makes_nothing_look_fast() {
        let mut countdown = Countdown::default();
        countdown.start(100_000_000_000, at(0.0));
        countdown.skip(90_000_000_000);
        for second in 1..=5 {
            countdown.advance(1_000_000_000, at(f64::from(second)));
        }
        let left = countdown.left(at(5.0)).unwrap().as_secs_f64();
        assert!((4.0..6.0).contains(&left), "{left}");
        assert_eq!(countdown.share(), Some(0.5));
    }

    #[test]
    fn the_time_runs_down_between_lumps() {
        let mut countdown = Countdown::default();
        countdown.start(100, at(0.0));
        countdown.advance(50, at(50.0));
        let left = |now| countdown.left(at(now)).unwrap().as_secs_f64();
        assert!(left(60.0) < left(50.0) - 9.0);
        assert!(left(1000.0) > 20.0);
    }

    #[test]
    fn the_first_moments_tell_nothing() {
        let mut state = State::default();
        state.countdown.start(1000, at(10.0));
        state.countdown.advance(10, at(11.5));
        assert_eq!(state.text(at(11.9)), "");
        state.countdown.advance(490, at(13.0));
        assert_eq!(state.text(at(13.0)), "3 s left");
        // All that was predicted is done, and the work goes on.
        state.countdown.advance(500, at(16.0));
        assert_eq!(state.text(at(16.5)), "1 s left");
    }

    #[test]
    fn a_log_has_a_line_for_each_phase_that_takes_long() {
        let mut state = State::default();
        assert_eq!(state.line(at(9.0)), None);
        let phase = |since| Phase {
            name: "rounding".into(),
            unit: "layers".into(),
            part: Some((12, 30)),
            since: at(since),
            printed: None,
        };
        state.phase = Some(phase(10.0));
        assert_eq!(state.line(at(11.9)), None);
        assert_eq!(state.line(at(12.1)).unwrap(), "rounding: 12 of 30 layers");
        assert_eq!(state.line(at(42.0)), None);
        state.countdown.start(1000, at(10.0));
        state.countdown.advance(500, at(42.2));
        // Half of it took 32.2 s, so the other half takes as long.
        assert_eq!(state.line(at(42.2)).unwrap(), "rounding: 12 of 30 layers, 33 s left");
    }

    #[test]
    fn times_are_read_at_a_glance() {
        for (seconds, text) in
            [(0.0, "1 s"), (0.2, "1 s"), (59.5, "1 min 0 s"), (119.0, "1 min 59 s"), (7300.0, "2 h 1 min")]
        {
            assert_eq!(in_words(at(seconds)), text);
        }
    }
}
