//! Servers that are busy and say for how long (`Retry-After`): nobody of this process asks them before.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use qmerge::error::{Error, Kind};
use qmerge::progress::stopped;
use ureq::http::{Request, Response};
use ureq::{Agent, AsSendBody, Body};

use crate::http::header;

/// Longest wait that a server may ask for: the hub counts requests in windows of five minutes.
const LONGEST: Duration = Duration::from_secs(300);
/// Longest time that one request is made again and again.
pub(crate) const IN_ALL: Duration = Duration::from_secs(600);
/// One that asks for no time is not asked without a pause.
const SHORTEST: Duration = Duration::from_millis(100);
/// Times that one request waits as it was told to.
const TRIES: u32 = 8;
/// Time between two looks at whether somebody wants to stop.
const TICK: Duration = Duration::from_millis(100);

/// Why there is no answer.
pub(crate) enum NoAnswer {
    Broken(ureq::Error),
    /// Asking again is of no use for now.
    PutOff(Error),
}

/// By host, until when nobody asks it.
static PAUSES: Mutex<BTreeMap<String, Instant>> = Mutex::new(BTreeMap::new());
static STOPPING: AtomicBool = AtomicBool::new(false);

fn pauses() -> MutexGuard<'static, BTreeMap<String, Instant>> {
    PAUSES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends all waits of this process, for good.
pub(crate) fn stop() {
    STOPPING.store(true, Ordering::Relaxed);
}

/// The host that is waited for longest, and how long still.
pub(crate) fn waiting() -> Option<(String, Duration)> {
    let now = Instant::now();
    let left = |(host, until): (&String, &Instant)| {
        Some((host.clone(), until.checked_duration_since(now).filter(|left| !left.is_zero())?))
    };
    pauses().iter().filter_map(left).max_by_key(|(_, left)| *left)
}

/// Waits, and errors if somebody wants to stop.
pub(crate) fn sleep(time: Duration) -> Result<(), Error> {
    let until = Instant::now() + time;
    loop {
        if STOPPING.load(Ordering::Relaxed) {
            return Err(stopped());
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(TICK));
    }
}

/// Makes a request, once its host is no longer to be left alone; again, where the answer says when to come back.
pub(crate) fn run<B: AsSendBody + Clone>(agent: &Agent, request: &Request<B>) -> Result<Response<Body>, NoAnswer> {
    let host = request.uri().authority().map(|host| host.as_str().rsplit('@').next().unwrap_or_default().to_owned());
    let host = host.unwrap_or_default();
    let begun = Instant::now();
    let mut number = 0;
    loop {
        number += 1;
        let until = pauses().get(&host).copied();
        if let Some(until) = until {
            // Others may have been told to wait longer meanwhile, which their own requests find out.
            sleep(until.saturating_duration_since(Instant::now())).map_err(NoAnswer::PutOff)?;
        }
        let answer = agent.run(request.clone()).map_err(NoAnswer::Broken)?;
        let Some(asked) = asked(&answer) else { return Ok(answer) };
        if asked > LONGEST {
            let (host, minutes) = (crate::redacted(&host), asked.as_secs().div_ceil(60));
            let problem = format!("{host} is too busy and asks to come back in {minutes} minutes");
            return Err(NoAnswer::PutOff(Error::new(Kind::Busy, problem).with_hint("run the command again then")));
        }
        let until = Instant::now() + asked.max(SHORTEST);
        {
            let mut pauses = pauses();
            pauses.retain(|_, until| *until > Instant::now());
            let known = pauses.entry(host.clone()).or_insert(until);
            *known = until.max(*known);
        }
        // Whoever asked decides what the last answer means.
        if number > TRIES || begun.elapsed() + asked > IN_ALL {
            return Ok(answer);
        }
    }
}

/// How long an answer asks to wait: `Retry-After`, in seconds or as a date, or the hub's `RateLimit: "api";r=0;t=55`.
fn asked(answer: &Response<Body>) -> Option<Duration> {
    if !matches!(answer.status().as_u16(), 429 | 503) {
        return None;
    }
    let date = |name| header(answer, name).and_then(seconds_of);
    let after = header(answer, "retry-after").map(str::trim);
    let seconds = after.and_then(|after| after.parse().ok());
    let until = || {
        // By the server's own clock.
        let system = || std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
        date("retry-after").map(|until| until.saturating_sub(date("date").unwrap_or_else(system)))
    };
    let window = || {
        let parts = header(answer, "ratelimit")?.split(';');
        parts.filter_map(|part| part.trim().strip_prefix("t=")?.parse().ok()).next()
    };
    seconds.or_else(until).or_else(window).map(Duration::from_secs)
}

/// Seconds since 1970 of `Sun, 06 Nov 1994 08:49:37 GMT`.
fn seconds_of(date: &str) -> Option<u64> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let words: Vec<&str> = date.split_whitespace().collect();
    let [_, day, month, year, time, "GMT"] = words[..] else { return None };
    let (day, year): (u64, u64) = (day.parse().ok()?, year.parse().ok()?);
    let month = MONTHS.iter().position(|name| *name == month)? as u64 + 1;
    let parts: Vec<u64> = time.split(':').map(str::parse).collect::<Result<_, _>>().ok()?;
    let [hours, minutes, seconds] = parts[..] else { return None };
    if !(1970..10_000).contains(&year) || !(1..=31).contains(&day) || hours > 23 || minutes > 59 || seconds > 60 {
        return None;
    }
    // Years that begin in March end with the day that not all have.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1 - 719_468;
    Some(days * 86_400 + hours * 3600 + minutes * 60 + seconds)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;

    use super::*;

    /// An address that gives these answers, one for each request.
    fn answering(answers: Vec<String>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}/x", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
                lines.take_while(|line| !line.is_empty()).for_each(drop);
                stream
                    .write_all(
                        format!("HTTP/1.1 {answer}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n").as_bytes(),
                    )
                    .unwrap();
            }
        });
        address
    }

    fn asking(address: &str) -> (Result<u16, Error>, Duration) {
        let begun = Instant::now();
        let request = Request::get(address).body(()).unwrap();
        let answer = match run(&crate::http::agent().unwrap(), &request) {
            Ok(answer) => Ok(answer.status().as_u16()),
            Err(NoAnswer::PutOff(error)) => Err(error),
            Err(NoAnswer::Broken(error)) => panic!("{error}"),
        };
        (answer, begun.elapsed())
    }

    #[test]
    fn a_server_is_left_alone_for_as_long_as_it_says() {
        for busy in [
            "503 X\r\nRetry-After: 1",
            "429 X\r\nRetry-After: Sun, 06 Nov 1994 08:49:38 GMT\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT",
            "429 X\r\nRateLimit: \"api\";r=0;t=1",
        ] {
            let address = answering(vec![busy.into(), "200 X".into()]);
            let (answer, took) = asking(&address);
            assert_eq!(answer.unwrap(), 200);
            assert!((1000..3000).contains(&took.as_millis()), "{took:?}");
        }
        // Others of this process leave it alone too.
        let address = answering(vec!["503 X\r\nRetry-After: 2".into(), "200 X".into(), "200 X".into()]);
        let first = std::thread::spawn({
            let address = address.clone();
            move || asking(&address).0.unwrap()
        });
        std::thread::sleep(Duration::from_millis(500));
        let host = address.trim_start_matches("http://").trim_end_matches("/x").to_owned();
        assert!(pauses().contains_key(&host) && waiting().is_some());
        let (answer, took) = asking(&address);
        assert_eq!((answer.unwrap(), first.join().unwrap()), (200, 200));
        assert!(took.as_millis() > 1000, "{took:?}");
    }

    #[test]
    fn nobody_waits_for_hours() {
        for long in ["503 X\r\nRetry-After: 7200", "429 X\r\nRetry-After: Fri, 31 Dec 9999 23:59:59 GMT"] {
            let (answer, took) = asking(&answering(vec![long.into()]));
            let error = answer.unwrap_err();
            assert!(error.kind() == Kind::Busy && error.message().contains("asks to come back in"), "{error}");
            assert!(took.as_secs() < 5);
        }
        // One that never has time, and what cannot be read.
        let (answer, took) = asking(&answering(vec!["503 X\r\nRetry-After: 0".into(); 9]));
        assert_eq!(answer.unwrap(), 503);
        assert!((700..5000).contains(&took.as_millis()), "{took:?}");
        for odd in ["503 X\r\nRetry-After: soon", "503 X\r\nRetry-After: -5", "503 X", "500 X\r\nRetry-After: 60"] {
            let (answer, took) = asking(&answering(vec![odd.into()]));
            assert!(answer.unwrap() >= 500 && took.as_secs() < 5);
        }
    }

    #[test]
    fn dates() {
        // What Python's `email.utils` says of them.
        for (date, seconds) in [
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(784_111_777)),
            ("Thu, 01 Jan 1970 00:00:00 GMT", Some(0)),
            ("Tue, 29 Feb 2028 23:59:59 GMT", Some(1_835_481_599)),
            ("Fri, 31 Dec 9999 23:59:59 GMT", Some(253_402_300_799)),
            ("Sun, 06 Nov 1994 08:49 GMT", None),
            ("Sun, 06 Now 1994 08:49:37 GMT", None),
        ] {
            assert_eq!(seconds_of(date), seconds, "{date}");
        }
    }
}
