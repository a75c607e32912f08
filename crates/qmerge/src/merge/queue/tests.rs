use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use super::*;
use crate::error::Kind;
use crate::parallel::pool;
use crate::progress::Silent;

/// Jobs that take a while, and watch over what is at work.
#[derive(Default)]
struct Watched {
    working: AtomicUsize,
    most: AtomicUsize,
    bytes: AtomicU64,
    most_bytes: AtomicU64,
    /// Jobs that were done while the pass went on.
    beside: AtomicUsize,
    passing: AtomicBool,
    layers: Mutex<Vec<usize>>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Item {
    number: usize,
    bytes: u64,
    milliseconds: u64,
    fails: bool,
}

impl LayerJobs for Watched {
    type Job = Item;
    type Done = usize;

    fn job(&self, item: &Item) -> Result<usize> {
        let enter = |now: &AtomicU64, by: u64, most: &AtomicU64| {
            most.fetch_max(now.fetch_add(by, Ordering::SeqCst) + by, Ordering::SeqCst);
        };
        enter(&self.bytes, item.bytes, &self.most_bytes);
        self.most.fetch_max(self.working.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        self.beside.fetch_add(usize::from(self.passing.load(Ordering::SeqCst)), Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(item.milliseconds));
        self.working.fetch_sub(1, Ordering::SeqCst);
        self.bytes.fetch_sub(item.bytes, Ordering::SeqCst);
        assert!(item.bytes != 13, "thirteen");
        if item.fails { Err(Error::new(Kind::Usage, format!("job {}", item.number))) } else { Ok(item.number) }
    }

    fn layer(&self, done: &[usize]) -> Result<()> {
        self.layers.lock().unwrap().push(done.len());
        Ok(())
    }
}

/// Brings layers of jobs, each job on its own. Returns what became of the pass and of the jobs.
fn pass(work: &Watched, limits: Limits, layers: &[Vec<Item>]) -> (Result<()>, Vec<usize>, Option<Error>) {
    let queue = Queue::new(work, &Silent, limits);
    let passed = pool(limits.threads).unwrap().scope(|scope| {
        let bring = || {
            for layer in layers {
                for &job in layer {
                    work.passing.store(true, Ordering::SeqCst);
                    std::thread::sleep(Duration::from_millis(2));
                    let Item { number, bytes, milliseconds: size, .. } = job;
                    queue.add(scope, vec![Queued { size, number, bytes, job }], 1)?;
                }
                work.passing.store(false, Ordering::SeqCst);
                queue.layer(scope)?;
                assert!(queue.state().open.len() <= limits.ahead);
            }
            Ok(())
        };
        let passed = bring();
        queue.end(scope);
        passed
    });
    let (mut finished, rest, error) = queue.results();
    finished.extend(rest);
    finished.sort_unstable();
    (passed, finished, error)
}

fn item(number: usize) -> Item {
    Item { number, bytes: 3, milliseconds: 1 + number as u64 % 4, fails: false }
}

fn layers() -> Vec<Vec<Item>> {
    (0..6).map(|layer| (0..5).map(|number| item(5 * layer + number)).collect()).collect()
}

#[test]
fn every_job_is_done_once_and_no_more_at_a_time_than_may_be() {
    for (threads, ahead, bytes) in
        [(1, 0, None), (1, 1, None), (2, 1, None), (3, 2, None), (4, 0, Some(11)), (4, 1, Some(17)), (2, 0, Some(1))]
    {
        let work = Watched::default();
        let limits = Limits { threads, ahead, bytes };
        let (passed, finished, error) = pass(&work, limits, &layers());
        passed.unwrap();
        assert!(error.is_none());
        assert_eq!(finished, (0..30).collect::<Vec<_>>(), "{limits:?}");
        assert_eq!(*work.layers.lock().unwrap(), [5; 6], "{limits:?}");
        assert!(work.most.load(Ordering::SeqCst) <= threads, "{limits:?}");
        if let Some(bytes) = bytes {
            // Five held by a layer; a job that is larger than the room has it to itself.
            assert!(work.most_bytes.load(Ordering::SeqCst) <= (bytes - 1).max(3), "{limits:?}");
        }
        if ahead == 0 {
            assert_eq!(work.beside.load(Ordering::SeqCst), 0, "{limits:?}");
        }
    }
}

#[test]
fn the_pass_goes_on_while_a_layer_has_jobs_left() {
    /// Its first job ends when the next layer is there.
    struct Waiting(AtomicBool);
    impl LayerJobs for Waiting {
        type Job = usize;
        type Done = usize;
        fn job(&self, number: &usize) -> Result<usize> {
            let start = std::time::Instant::now();
            while *number == 0 && !self.0.load(Ordering::SeqCst) {
                assert!(start.elapsed() < Duration::from_secs(60), "nothing else came");
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok(*number)
        }
        fn layer(&self, _: &[usize]) -> Result<()> {
            Ok(())
        }
    }
    let work = Waiting(AtomicBool::new(false));
    let queue = Queue::new(&work, &Silent, Limits { threads: 2, ahead: 1, bytes: None });
    pool(2).unwrap().scope(|scope| {
        for number in 0..2 {
            queue.add(scope, vec![Queued { size: 0, number, bytes: 0, job: number }], 0).unwrap();
            work.0.store(number == 1, Ordering::SeqCst);
            queue.layer(scope).unwrap();
        }
        queue.end(scope);
    });
    let (finished, rest, error) = queue.results();
    assert!(rest.is_empty() && error.is_none());
    assert_eq!(finished.len(), 2);
}

#[test]
fn the_first_error_in_the_plan_counts() {
    // The first in the plan is the shortest and comes last, long after the others failed; or it is the longest, and fails last.
    let fails = |number, milliseconds| Item { milliseconds, fails: true, ..item(number) };
    for second in
        [vec![fails(8, 1), fails(7, 20), item(6), fails(5, 1)], vec![fails(5, 60), item(6), fails(7, 1), fails(8, 1)]]
    {
        let mut layers = layers();
        layers[1] = second;
        for (threads, ahead) in [(1, 0), (1, 1), (2, 0), (2, 1), (3, 2)] {
            let limits = Limits { threads, ahead, bytes: None };
            let (passed, finished, error) = pass(&Watched::default(), limits, &layers);
            assert_eq!(error.unwrap().to_string(), "job 5", "{limits:?}");
            assert_eq!(passed.unwrap_err().kind(), Kind::Cancelled);
            assert!((0..5).all(|number| finished.contains(&number)) && finished.len() < 30);
        }
    }
}

#[test]
fn a_job_that_panics_is_a_defect() {
    let layers = [vec![item(0), Item { bytes: 13, ..item(1) }], vec![item(2)]];
    let (_, _, error) = pass(&Watched::default(), Limits { threads: 2, ahead: 1, bytes: None }, &layers);
    let error = error.unwrap();
    assert_eq!(error.kind(), Kind::Bug);
    assert!(error.to_string().contains("thirteen"), "{error}");
}

#[test]
fn who_stops_keeps_what_is_done() {
    struct Stop(AtomicUsize);
    impl Progress for Stop {
        fn cancelled(&self) -> bool {
            self.0.fetch_add(1, Ordering::SeqCst) > 12
        }
    }
    let (work, stop) = (Watched::default(), Stop(AtomicUsize::new(0)));
    let queue = Queue::new(&work, &stop, Limits { threads: 2, ahead: 1, bytes: None });
    let passed = pool(2).unwrap().scope(|scope| {
        let bring = |number: usize| {
            let job = item(number);
            queue.add(scope, vec![Queued { size: 0, number, bytes: 1, job }], 1)?;
            queue.layer(scope)
        };
        let passed = (0..30).try_for_each(bring);
        queue.end(scope);
        passed
    });
    assert_eq!(passed.unwrap_err().kind(), Kind::Cancelled);
    let (finished, rest, error) = queue.results();
    assert_eq!(error.unwrap().kind(), Kind::Cancelled);
    assert!((1..30).contains(&(finished.len() + rest.len())));
}
