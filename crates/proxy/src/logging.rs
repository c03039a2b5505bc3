//! What the proxy says about itself, on standard error: a line has a time, a thread, a level, a component and a message, as Envoy's.
//!
//! The facade is the `log` crate's: a line that nobody wants costs one relaxed load and a branch, also on the request path. Levels are those of
//! components, and can be changed at any time (`/logging`, `--component-log-level`).

use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::atomic::{AtomicU8, Ordering};

use log::{LevelFilter, Log, Metadata, Record};
use weft_core::time_format::Civil;

use crate::clock;

pub const ADMIN: &str = "admin";
pub const DNS: &str = "dns";
pub const HEALTH: &str = "health_checker";
pub const HTTP: &str = "http";
pub const LISTENER: &str = "listener";
pub const MAIN: &str = "main";
pub const OVERLOAD: &str = "overload";
pub const POOL: &str = "pool";
pub const RECORDS: &str = "records";
pub const ROUTER: &str = "router";
pub const RPC: &str = "rpc";
pub const STATE: &str = "state";
pub const TCP: &str = "tcp";
pub const TLS: &str = "tls";
pub const XDS: &str = "xds";

/// Who speaks, by name.
pub const COMPONENTS: [&str; 15] =
    [ADMIN, DNS, HEALTH, HTTP, LISTENER, MAIN, OVERLOAD, POOL, RECORDS, ROUTER, RPC, STATE, TCP, TLS, XDS];

/// Envoy's names of the levels, in the order of `LevelFilter`; it has `critical` too, which nothing here is.
pub const LEVELS: [&str; 6] = ["off", "error", "warning", "info", "debug", "trace"];

const DEFAULT: LevelFilter = LevelFilter::Info;

/// The level of each component, in the order of [`COMPONENTS`].
static IN_FORCE: [AtomicU8; COMPONENTS.len()] = [const { AtomicU8::new(DEFAULT as u8) }; COMPONENTS.len()];

/// Why levels were not changed. Nothing of what was asked for has happened.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LevelError {
    #[error("unknown logger level {0:?}; there are {levels}", levels = LEVELS.join(", "))]
    Level(String),
    #[error("unknown logger name {0:?}; there are {names}", names = COMPONENTS.join(", "))]
    Component(String),
    #[error("{0:?} is not NAME:LEVEL")]
    Pair(String),
}

/// Levels as they are asked for: of all components, then of some.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    all: Option<u8>,
    some: Vec<(usize, u8)>,
}

impl Change {
    /// Every component.
    pub fn all(&mut self, level: &str) -> Result<(), LevelError> {
        self.all = Some(number(level)?);
        Ok(())
    }

    /// One component.
    pub fn one(&mut self, component: &str, level: &str) -> Result<(), LevelError> {
        let index = COMPONENTS.iter().position(|known| *known == component);
        self.some.push((index.ok_or_else(|| LevelError::Component(component.into()))?, number(level)?));
        Ok(())
    }

    /// `xds:debug,pool:info`
    pub fn pairs(&mut self, text: &str) -> Result<(), LevelError> {
        text.split(',').filter(|pair| !pair.is_empty()).try_for_each(|pair| {
            let (component, level) = pair.split_once(':').ok_or_else(|| LevelError::Pair(pair.into()))?;
            self.one(component, level)
        })
    }

    pub fn apply(&self) {
        if let Some(level) = self.all {
            IN_FORCE.iter().for_each(|it| it.store(level, Ordering::Relaxed));
        }
        for (index, level) in &self.some {
            IN_FORCE[*index].store(*level, Ordering::Relaxed);
        }
        let most = IN_FORCE.iter().map(|it| it.load(Ordering::Relaxed)).max();
        log::set_max_level(filter(most.unwrap_or_default()));
    }
}

fn number(level: &str) -> Result<u8, LevelError> {
    let found = LEVELS.iter().position(|known| *known == level);
    // There are six of them.
    found.map(|index| index as u8).ok_or_else(|| LevelError::Level(level.into()))
}

fn filter(number: u8) -> LevelFilter {
    LevelFilter::iter().nth(number.into()).unwrap_or(LevelFilter::Trace)
}

/// Every component with the name of its level.
pub fn levels() -> impl Iterator<Item = (&'static str, &'static str)> {
    let name = |level: &AtomicU8| LEVELS[usize::from(level.load(Ordering::Relaxed))];
    COMPONENTS.into_iter().zip(IN_FORCE.iter().map(name))
}

/// Have lines written from now on.
pub fn start(change: &Change) {
    // It fails if somebody was here before, which nobody is but another test.
    let _ = log::set_logger(&StandardError);
    change.apply();
}

struct StandardError;

impl Log for StandardError {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Libraries that speak are not asked to.
        let index = COMPONENTS.iter().position(|known| *known == metadata.target());
        index.is_some_and(|index| metadata.level() as u8 <= IN_FORCE[index].load(Ordering::Relaxed))
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            // One write, so that lines of several threads do not mix. Whether anybody reads them is not our concern.
            let _ = std::io::stderr().write_all(line(record).as_bytes());
        }
    }

    fn flush(&self) {}
}

/// `[2026-11-30 09:57:59.294][worker-0][info][xds] connected to ...`
fn line(record: &Record<'_>) -> String {
    let wall = clock::since_epoch();
    let Civil { year, month, day, hour, minute, second, .. } = Civil::of(wall.as_secs());
    let millis = wall.subsec_millis();
    let level = LEVELS[record.level() as usize];
    let thread = std::thread::current();
    let mut line = format!("[{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{millis:03}");
    let _ = write!(line, "][{}][{level}][{}] ", thread.name().unwrap_or("?"), record.target());
    let begin = line.len();
    let _ = write!(line, "{}", record.args());
    // What others told us stands in messages; no line that we did not write may begin with it.
    if line[begin..].contains(char::is_control) {
        let message: String = line[begin..].chars().flat_map(escaped).collect();
        line.truncate(begin);
        line.push_str(&message);
    }
    line.push('\n');
    line
}

fn escaped(character: char) -> impl Iterator<Item = char> {
    let control = character.is_control().then(|| character.escape_default());
    let plain = control.is_none().then_some(character);
    control.into_iter().flatten().chain(plain)
}

#[cfg(test)]
mod tests {
    use log::Level;

    use super::*;

    #[test]
    fn levels_of_some_win_over_the_level_of_all_and_mistakes_change_nothing() {
        let mut change = Change::default();
        change.all("error").unwrap();
        change.pairs("xds:debug,pool:off").unwrap();
        let place = |name| COMPONENTS.iter().position(|known| *known == name).unwrap();
        let found = Change { all: Some(1), some: vec![(place(XDS), 4), (place(POOL), 0)] };
        assert_eq!(change, found);
        assert_eq!(change.pairs("xds"), Err(LevelError::Pair("xds".into())));
        assert_eq!(change.one("xsd", "info"), Err(LevelError::Component("xsd".into())));
        assert_eq!(change.all("critical"), Err(LevelError::Level("critical".into())));
    }

    #[test]
    fn the_number_of_a_level_is_its_place_among_the_names() {
        for (name, level) in LEVELS.iter().zip(LevelFilter::iter()) {
            assert_eq!(filter(number(name).unwrap()), level);
        }
    }

    #[test]
    fn a_message_is_one_line_whatever_is_in_it() {
        let message = "refused: a\nb\u{1b}[31m \"c\"";
        let text = line(&Record::builder().args(format_args!("{message}")).level(Level::Info).target(XDS).build());
        assert!(text.ends_with("][info][xds] refused: a\\nb\\u{1b}[31m \"c\"\n"), "{text}");
        assert_eq!(text.find(']'), Some("[2026-11-30 09:57:59.294".len()), "{text}");
    }
}
