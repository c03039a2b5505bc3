//! Virtual hosts that are loaded when a request needs one (VHDS): who waits for which name, and which names are known not to exist.
//!
//! ```text
//! a worker's request --Ask--> the main thread --subscribe--> the control plane
//!                    <-Answer-- (through the worker's commands, behind the plan that has the host) <--
//! ```
//!
//! A name that was asked for stays subscribed, so that the control plane tells what becomes of it, and nobody has to ask again: neither
//! for what is here nor for what does not exist. Clients choose the names, so those that do not exist are limited in number.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

/// Names that do not exist and are remembered; the oldest gives way. As many may be waited for at a time.
const MOST_NAMES: usize = 1_000;

/// What became of an [`Ask`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The plan has the virtual host.
    Loaded,
    /// There is none.
    Unknown,
    /// The control plane is away, or too much is waited for.
    Unavailable,
}

/// A request's question for a virtual host.
#[derive(Debug)]
pub struct Ask {
    /// The route configuration.
    pub table: Arc<str>,
    /// [`weft_core::route::RouteTable::host_entry`] of the request.
    pub entry: String,
    /// Which worker the request is of.
    pub worker: usize,
    pub answer: oneshot::Sender<Answer>,
}

impl Ask {
    /// The name of the resource: `<route configuration>/<host entry>` (Envoy, "VHDS").
    pub fn name(&self) -> String {
        format!("{}/{}", self.table, self.entry)
    }
}

/// A worker's way to ask.
#[derive(Clone, Debug)]
pub struct Asking {
    pub worker: usize,
    pub asks: UnboundedSender<Ask>,
}

impl Asking {
    /// Ask; the answer comes behind the plan that it is about.
    pub fn ask(&self, table: Arc<str>, entry: String) -> oneshot::Receiver<Answer> {
        let (answer, receiver) = oneshot::channel();
        // The main thread ends with the process only.
        let _ = self.asks.send(Ask { table, entry, worker: self.worker, answer });
        receiver
    }
}

/// What the main thread knows of the names that were asked for.
#[derive(Debug, Default)]
pub struct Asked {
    /// Each that is subscribed.
    names: BTreeSet<String>,
    waiting: BTreeMap<String, Vec<Ask>>,
    /// Those of which the control plane said that they do not exist, the oldest first.
    absent: VecDeque<String>,
}

/// What has to be said to the control plane.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Change {
    pub subscribe: Vec<String>,
    pub unsubscribe: Vec<String>,
}

impl Asked {
    /// Names that are here from the start.
    pub fn resume(&mut self, names: impl IntoIterator<Item = String>) -> Change {
        let subscribe: Vec<String> = names.into_iter().collect();
        self.names.extend(subscribe.iter().cloned());
        Change { subscribe, ..Change::default() }
    }

    /// Whether the control plane said that there is no such virtual host, and nothing else since.
    pub fn is_absent(&self, name: &str) -> bool {
        self.absent.iter().any(|absent| absent == name)
    }

    /// Have *ask* wait for its answer; given back if there are too many.
    ///
    /// # Errors
    /// The ask itself.
    pub fn wait(&mut self, ask: Ask) -> Result<Change, Ask> {
        let name = ask.name();
        // Who gave up waiting needs no answer.
        self.waiting.retain(|_, asks| {
            asks.retain(|ask| !ask.answer.is_closed());
            !asks.is_empty()
        });
        if self.waiting.len() >= MOST_NAMES && !self.waiting.contains_key(&name) {
            return Err(ask);
        }
        self.waiting.entry(name.clone()).or_default().push(ask);
        let subscribe = if self.names.insert(name.clone()) { vec![name] } else { Vec::new() };
        Ok(Change { subscribe, ..Change::default() })
    }

    /// The control plane has spoken of *names*; *is_here* tells which of them are at work now, and *is_gone* which do not exist. Returns
    /// the asks that have their answer.
    pub fn hear(
        &mut self,
        names: &BTreeSet<String>,
        is_gone: impl Fn(&str) -> bool,
        is_here: impl Fn(&Ask) -> bool,
    ) -> (Vec<(Ask, Answer)>, Change) {
        let mut answered = Vec::new();
        let mut rest = BTreeMap::new();
        for (name, asks) in std::mem::take(&mut self.waiting) {
            // A host that came under another name may have this domain, too.
            let answer = if asks.first().is_some_and(&is_here) {
                Answer::Loaded
            } else if !names.contains(&name) {
                rest.insert(name, asks);
                continue;
            } else if is_gone(&name) {
                Answer::Unknown
            } else {
                // It exists, and was refused.
                Answer::Unavailable
            };
            answered.extend(asks.into_iter().map(|ask| (ask, answer)));
        }
        self.waiting = rest;
        self.absent.retain(|name| !names.contains(name));
        let gone = names.iter().filter(|name| self.names.contains(*name) && is_gone(name));
        self.absent.extend(gone.cloned());
        let too_many = self.absent.len().saturating_sub(MOST_NAMES);
        let unsubscribe: Vec<String> = self.absent.drain(..too_many).collect();
        for name in &unsubscribe {
            self.names.remove(name);
        }
        (answered, Change { unsubscribe, ..Change::default() })
    }

    /// Nobody can be asked any more: all that wait.
    pub fn give_up(&mut self) -> Vec<Ask> {
        std::mem::take(&mut self.waiting).into_values().flatten().collect()
    }

    /// Route configurations are gone, or take no virtual hosts any more: forget what was asked for them.
    pub fn forget(&mut self, is_table: impl Fn(&str) -> bool) -> (Vec<Ask>, Change) {
        let stays = |name: &str| name.rsplit_once('/').is_some_and(|(table, _)| is_table(table));
        let unsubscribe: Vec<String> = self.names.iter().filter(|name| !stays(name)).cloned().collect();
        self.names.retain(|name| stays(name));
        self.absent.retain(|name| stays(name));
        let (waiting, gone): (BTreeMap<_, _>, BTreeMap<_, _>) =
            std::mem::take(&mut self.waiting).into_iter().partition(|(name, _)| stays(name));
        self.waiting = waiting;
        (gone.into_values().flatten().collect(), Change { unsubscribe, ..Change::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(entry: &str) -> (Ask, oneshot::Receiver<Answer>) {
        let (answer, receiver) = oneshot::channel();
        (Ask { table: "routes".into(), entry: entry.into(), worker: 0, answer }, receiver)
    }

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_name_is_subscribed_once_and_each_request_has_its_answer() {
        let mut asked = Asked::default();
        let (first, _first) = ask("a");
        let (second, _second) = ask("a");
        assert_eq!(asked.wait(first).unwrap().subscribe, ["routes/a"]);
        assert_eq!(asked.wait(second).unwrap(), Change::default());
        let (answered, change) = asked.hear(&names(&["routes/other"]), |_| false, |_| false);
        assert!(answered.is_empty() && change == Change::default());
        let (answered, _) = asked.hear(&names(&["routes/a"]), |_| false, |ask| ask.entry == "a");
        assert_eq!(answered.iter().map(|(_, answer)| *answer).collect::<Vec<_>>(), [Answer::Loaded; 2]);
        assert!(!asked.is_absent("routes/a"));
    }

    #[test]
    fn a_host_that_came_under_another_name_answers_too() {
        let mut asked = Asked::default();
        let (one, _one) = ask("a.example");
        asked.wait(one).unwrap();
        let (answered, _) = asked.hear(&names(&["routes/wild"]), |_| false, |ask| ask.entry.ends_with(".example"));
        assert_eq!(answered[0].1, Answer::Loaded);
    }

    #[test]
    fn what_does_not_exist_is_remembered_until_it_does_and_in_a_limited_number() {
        let mut asked = Asked::default();
        let (one, _one) = ask("a");
        asked.wait(one).unwrap();
        let (answered, _) = asked.hear(&names(&["routes/a"]), |_| true, |_| false);
        assert_eq!(answered[0].1, Answer::Unknown);
        assert!(asked.is_absent("routes/a"));
        asked.hear(&names(&["routes/a"]), |_| false, |_| true);
        assert!(!asked.is_absent("routes/a"));
        for number in 0..MOST_NAMES + 2 {
            let (one, receiver) = ask(&number.to_string());
            asked.wait(one).unwrap();
            let (_, change) = asked.hear(&names(&[&format!("routes/{number}")]), |_| true, |_| false);
            let oldest = number.checked_sub(MOST_NAMES).map(|number| format!("routes/{number}"));
            assert_eq!(change.unsubscribe, Vec::from_iter(oldest));
            drop(receiver);
        }
        // What nobody asked for is nobody's to remember.
        asked.hear(&names(&["routes/unasked"]), |_| true, |_| false);
        assert!(!asked.is_absent("routes/unasked"));
    }

    #[test]
    fn too_many_at_a_time_are_given_back_and_who_gave_up_makes_room() {
        let mut asked = Asked::default();
        let mut receivers: Vec<_> = (0..MOST_NAMES)
            .map(|number| {
                let (one, receiver) = ask(&number.to_string());
                asked.wait(one).unwrap();
                receiver
            })
            .collect();
        let (more, _more) = ask("more");
        let more = asked.wait(more).unwrap_err();
        receivers.pop();
        assert!(asked.wait(more).is_ok());
        assert_eq!(asked.give_up().len(), MOST_NAMES);
    }

    #[test]
    fn names_of_a_table_that_is_gone_are_given_up() {
        let mut asked = Asked::default();
        assert_eq!(asked.resume(["routes/here".to_owned(), "other/here".to_owned()]).subscribe.len(), 2);
        let (one, _one) = ask("a");
        asked.wait(one).unwrap();
        let (asks, change) = asked.forget(|table| table == "other");
        assert_eq!((asks.len(), change.unsubscribe), (1, vec!["routes/a".to_owned(), "routes/here".to_owned()]));
    }
}
