//! Virtual hosts that are loaded when a request needs one (VHDS): who waits for which name, and which names are known not to exist.
//!
//! ```text
//! a worker's request --Ask--> the main thread --subscribe--> the control plane
//!                    <-Answer-- (through the worker's commands, behind the plan that has the host) <--
//! ```
//!
//! A name of which the control plane has spoken stays subscribed, so that it tells what becomes of it, and nobody has to ask again: neither
//! for what is here nor for what does not exist. One of which it says nothing is let go when nobody waits for it any more. Clients choose
//! the names, so all of them are limited in number, and those that do not exist more narrowly.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

/// Names that do not exist and are remembered; the oldest gives way. As many may be waited for at a time.
const MOST_NAMES: usize = 1_000;

/// Names of which the control plane has spoken, beyond which no more are asked for: where it has a virtual host for whatever a client
/// makes up, or refuses to say, none gives way by itself. Far more than the hosts that the clients of one proxy need.
const MOST_SUBSCRIBED: usize = 10_000;

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
    /// Each that stays subscribed: the control plane has said what there is by it.
    names: BTreeSet<String>,
    /// Subscribed, too, while somebody waits.
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
        let is_new = !self.names.contains(&name);
        if is_new && self.names.len() >= MOST_SUBSCRIBED {
            return Err(ask);
        }
        // Who gave up waiting needs no answer.
        let mut unsubscribe = Vec::new();
        self.waiting.retain(|waited, asks| {
            asks.retain(|ask| !ask.answer.is_closed());
            let stays = !asks.is_empty() || *waited == name;
            if !stays && !self.names.contains(waited) {
                unsubscribe.push(waited.clone());
            }
            stays
        });
        let is_first = !self.waiting.contains_key(&name);
        if is_first && self.waiting.len() >= MOST_NAMES {
            return Err(ask);
        }
        self.waiting.entry(name.clone()).or_default().push(ask);
        let subscribe = if is_new && is_first { vec![name] } else { Vec::new() };
        Ok(Change { subscribe, unsubscribe })
    }

    /// The control plane has spoken of *names*; *is_here* tells which of them are at work now, *is_held* which came by themselves and
    /// were accepted, and *is_gone* which do not exist. Returns the asks that have their answer.
    pub fn hear(
        &mut self,
        names: &BTreeSet<String>,
        is_gone: impl Fn(&str) -> bool,
        is_held: impl Fn(&str) -> bool,
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
            self.names.insert(name);
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
        // It was let go while it was on its way, and what is here has to be followed.
        let unfollowed = names.iter().filter(|name| is_held(name) && !self.names.contains(*name));
        let subscribe: Vec<String> = unfollowed.cloned().collect();
        self.names.extend(subscribe.iter().cloned());
        (answered, Change { subscribe, unsubscribe })
    }

    /// Nobody can be asked any more: all that wait.
    pub fn give_up(&mut self) -> (Vec<Ask>, Change) {
        self.let_go(|_| false)
    }

    /// Route configurations are gone, or take no virtual hosts any more: forget what was asked for them.
    pub fn forget(&mut self, is_table: impl Fn(&str) -> bool) -> (Vec<Ask>, Change) {
        let stays = |name: &str| name.rsplit_once('/').is_some_and(|(table, _)| is_table(table));
        let mut forgotten: Vec<String> = self.names.iter().filter(|name| !stays(name)).cloned().collect();
        let (asks, Change { unsubscribe, .. }) = self.let_go(stays);
        forgotten.extend(unsubscribe);
        self.names.retain(|name| stays(name));
        self.absent.retain(|name| stays(name));
        (asks, Change { unsubscribe: forgotten, ..Change::default() })
    }

    /// The asks for names that do not stay; nobody follows those of which the control plane has said nothing.
    fn let_go(&mut self, stays: impl Fn(&str) -> bool) -> (Vec<Ask>, Change) {
        let (waiting, gone): (BTreeMap<_, _>, BTreeMap<_, _>) =
            std::mem::take(&mut self.waiting).into_iter().partition(|(name, _)| stays(name));
        self.waiting = waiting;
        let unsubscribe = gone.keys().filter(|name| !self.names.contains(*name)).cloned().collect();
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
        let (answered, change) = asked.hear(&names(&["routes/other"]), |_| false, |_| false, |_| false);
        assert!(answered.is_empty() && change == Change::default());
        let (answered, _) = asked.hear(&names(&["routes/a"]), |_| false, |_| true, |ask| ask.entry == "a");
        assert_eq!(answered.iter().map(|(_, answer)| *answer).collect::<Vec<_>>(), [Answer::Loaded; 2]);
        assert!(!asked.is_absent("routes/a"));
    }

    #[test]
    fn a_host_that_came_under_another_name_answers_too() {
        let mut asked = Asked::default();
        let (one, _one) = ask("a.example");
        asked.wait(one).unwrap();
        let (answered, _) =
            asked.hear(&names(&["routes/wild"]), |_| false, |_| true, |ask| ask.entry.ends_with(".example"));
        assert_eq!(answered[0].1, Answer::Loaded);
    }

    #[test]
    fn what_does_not_exist_is_remembered_until_it_does_and_in_a_limited_number() {
        let mut asked = Asked::default();
        let (one, _one) = ask("a");
        asked.wait(one).unwrap();
        let (answered, _) = asked.hear(&names(&["routes/a"]), |_| true, |_| false, |_| false);
        assert_eq!(answered[0].1, Answer::Unknown);
        assert!(asked.is_absent("routes/a"));
        asked.hear(&names(&["routes/a"]), |_| false, |_| true, |_| true);
        assert!(!asked.is_absent("routes/a"));
        for number in 0..MOST_NAMES + 2 {
            let (one, receiver) = ask(&number.to_string());
            asked.wait(one).unwrap();
            let (_, change) = asked.hear(&names(&[&format!("routes/{number}")]), |_| true, |_| false, |_| false);
            let oldest = number.checked_sub(MOST_NAMES).map(|number| format!("routes/{number}"));
            assert_eq!(change.unsubscribe, Vec::from_iter(oldest));
            drop(receiver);
        }
        // What nobody asked for is nobody's to remember.
        asked.hear(&names(&["routes/unasked"]), |_| true, |_| false, |_| false);
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
        assert_eq!(asked.give_up().0.len(), MOST_NAMES);
    }

    #[test]
    fn what_a_silent_control_plane_was_asked_for_is_let_go_with_the_last_who_waits() {
        let mut asked = Asked::default();
        for number in 0..3 * MOST_NAMES {
            let (one, _one) = ask(&number.to_string());
            let change = asked.wait(one).unwrap();
            assert_eq!(change.subscribe, [format!("routes/{number}")]);
            assert_eq!(change.unsubscribe, Vec::from_iter(number.checked_sub(1).map(|last| format!("routes/{last}"))));
        }
        assert_eq!((asked.names.len(), asked.waiting.len()), (0, 1));
        // Who asks for the same is not the last.
        let last = (3 * MOST_NAMES - 1).to_string();
        let (one, _one) = ask(&last);
        assert_eq!(asked.wait(one).unwrap(), Change::default());
        let (asks, change) = asked.give_up();
        assert_eq!((asks.len(), change.unsubscribe), (1, vec![format!("routes/{last}")]));
    }

    #[test]
    fn what_comes_after_it_was_let_go_is_followed_again() {
        let mut asked = Asked::default();
        let (one, receiver) = ask("late");
        asked.wait(one).unwrap();
        drop(receiver);
        let (one, _one) = ask("other");
        assert_eq!(asked.wait(one).unwrap().unsubscribe, ["routes/late"]);
        let late = names(&["routes/late"]);
        let (_, change) = asked.hear(&late, |_| false, |name| name == "routes/late", |_| false);
        assert_eq!(change, Change { subscribe: vec!["routes/late".to_owned()], ..Change::default() });
        assert_eq!(asked.hear(&late, |_| false, |_| true, |_| false).1, Change::default());
        // One that was refused was not abandoned: it stays.
        let (one, receiver) = ask("late");
        assert_eq!(asked.wait(one).unwrap(), Change::default());
        drop(receiver);
        let (one, _one) = ask("other");
        assert_eq!(asked.wait(one).unwrap(), Change::default());
    }

    #[test]
    fn where_everything_exists_names_are_limited_in_number_too() {
        let mut asked = Asked::default();
        for number in 0..MOST_SUBSCRIBED {
            let (one, _one) = ask(&number.to_string());
            asked.wait(one).unwrap();
            asked.hear(&names(&[&format!("routes/{number}")]), |_| false, |_| true, |_| true);
        }
        let (one, _one) = ask("more");
        assert!(asked.wait(one).is_err());
        let (known, _known) = ask("0");
        assert_eq!(asked.wait(known).unwrap(), Change::default());
    }

    #[test]
    fn names_of_a_table_that_is_gone_are_given_up() {
        let mut asked = Asked::default();
        assert_eq!(asked.resume(["routes/here".to_owned(), "other/here".to_owned()]).subscribe.len(), 2);
        let (one, _one) = ask("a");
        asked.wait(one).unwrap();
        let (asks, change) = asked.forget(|table| table == "other");
        assert_eq!((asks.len(), change.unsubscribe), (1, vec!["routes/here".to_owned(), "routes/a".to_owned()]));
    }
}
