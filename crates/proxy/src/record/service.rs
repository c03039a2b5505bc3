//! Records on their way to access log services: each worker gathers its own, one client for each log sends them.
//!
//! Clients run on the main thread, which carries no requests. A worker meets them once for each log, and afterwards only
//! to hand over a batch.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio::task::spawn_local;
use tokio::time::{Instant, timeout};
use weft_core::access_log::LogService;
use weft_protos::envoy::config::core::v3::Node;
use weft_xds::Backoff;
use weft_xds::access_log::Kind;
use weft_xds::access_log::client::{self, Batch, Client, Config, Task};
use weft_xds::client::Address;

use crate::bootstrap::{Bootstrap, Place};
use crate::logging;

use super::{Entry, message, sooner};

/// What may wait for a log service that is away or slow: some 3,000 records, seconds of a busy sidecar.
const LIMIT_BYTES: usize = 1024 * 1024;
/// At the end of the process a service that takes none of the last records for so long is away.
const FAREWELL_PATIENCE: Duration = Duration::from_millis(500);
/// And as long as they take some, they are waited for so long at most.
const FAREWELL_TIME: Duration = Duration::from_secs(5);

type LogName = (Box<str>, Box<str>);

/// The clients of all logs.
pub struct Services {
    node: Node,
    /// Static clusters of the bootstrap.
    places: HashMap<String, Place>,
    /// By cluster and name of the log.
    clients: Mutex<HashMap<LogName, Client>>,
    /// Whose tasks the main thread runs.
    tasks: UnboundedSender<(String, Task)>,
}

impl Services {
    /// The clients of this bootstrap, and the tasks that [`run`] takes.
    pub fn new(bootstrap: &Bootstrap) -> (Arc<Services>, UnboundedReceiver<(String, Task)>) {
        let (tasks, to_run) = unbounded_channel();
        let places = bootstrap.clusters.iter().cloned().collect();
        (Arc::new(Services { node: bootstrap.node.clone(), places, clients: Mutex::default(), tasks }), to_run)
    }

    /// The client of a log; `None`: its cluster is none of the bootstrap, which is refused on arrival.
    fn client(&self, service: &LogService) -> Option<Client> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (service.cluster.clone(), service.log_name.clone());
        if let Some(client) = clients.get(&key) {
            return Some(client.clone());
        }
        let address = match self.places.get(&*service.cluster)? {
            Place::Unix(path) => Address::Unix(path.clone()),
            Place::Tcp(address) => Address::Tcp(address.clone()),
        };
        let (client, task) = client::client(Config {
            address,
            node: self.node.clone(),
            log_name: service.log_name.to_string(),
            backoff: Backoff::default(),
            limit_bytes: LIMIT_BYTES,
        });
        // The main thread outlives the workers.
        let _ = self.tasks.send((format!("{} ({})", service.cluster, service.log_name), task));
        clients.insert(key, client.clone());
        Some(client)
    }

    fn finish(&self) -> Vec<oneshot::Receiver<()>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner).values().map(Client::finish).collect()
    }

    fn waiting_bytes(&self) -> usize {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner).values().map(Client::waiting_bytes).sum()
    }

    /// Wait until the services have everything that was handed over, if they take it.
    pub async fn farewell(&self) {
        let ends = self.finish();
        let mut all = pin!(async {
            for end in ends {
                let _ = end.await;
            }
        });
        let began = Instant::now();
        let mut waiting = self.waiting_bytes();
        while timeout(FAREWELL_PATIENCE, all.as_mut()).await.is_err() {
            let before = std::mem::replace(&mut waiting, self.waiting_bytes());
            if waiting >= before || began.elapsed() >= FAREWELL_TIME {
                return;
            }
        }
    }
}

/// Run clients as they are made, for ever. An outage is told once, and its end.
pub async fn run(mut tasks: UnboundedReceiver<(String, Task)>) {
    while let Some((name, task)) = tasks.recv().await {
        let mut away = false;
        spawn_local(task.run(move |state| match state {
            Ok(()) if std::mem::take(&mut away) => {
                log::info!(target: logging::RECORDS, "access records reach {name} again");
            }
            Ok(()) => {}
            Err(error) if !std::mem::replace(&mut away, true) => {
                log::warn!(
                    target: logging::RECORDS,
                    "access records do not reach {name}: {error}; the newest wait, others are dropped"
                );
            }
            Err(_) => {}
        }));
    }
}

/// The buffers of one worker.
pub struct Dispatch {
    services: Arc<Services>,
    /// A few, so that looking through them is cheaper than hashing.
    logs: RefCell<Vec<Buffered>>,
    /// Records that were dropped.
    pub lost: Cell<u64>,
    /// The last ones: their number is that of what was under way.
    are_last: Cell<bool>,
}

struct Buffered {
    service: Arc<LogService>,
    kind: Kind,
    client: Option<Client>,
    entries: Vec<u8>,
    count: u32,
    /// When the first of them is to be sent.
    due: Instant,
}

impl Dispatch {
    pub fn new(services: Arc<Services>) -> Dispatch {
        Dispatch { services, logs: RefCell::default(), lost: Cell::new(0), are_last: Cell::new(false) }
    }

    /// See [`super::Recorder::expect_last`].
    pub fn expect_last(&self) {
        self.are_last.set(true);
    }

    /// Keep a record for *service*. Returns when [`Dispatch::flush_due`] is to be called, if it is sooner for this record.
    pub fn record(&self, service: &Arc<LogService>, entry: &Entry<'_>) -> Option<Instant> {
        let kind = if entry.request.is_some() { Kind::Http } else { Kind::Tcp };
        let mut logs = self.logs.borrow_mut();
        // Listeners come and go with equal logs of their own.
        let known = logs.iter().position(|log| {
            log.kind == kind && (Arc::ptr_eq(&log.service, service) || is_same_log(&log.service, service))
        });
        let index = known.unwrap_or_else(|| {
            let (service, client) = (Arc::clone(service), self.services.client(service));
            logs.push(Buffered { service, kind, client, entries: Vec::new(), count: 0, due: Instant::now() });
            logs.len() - 1
        });
        let log = &mut logs[index];
        message::write(service, entry, &mut log.entries);
        log.count += 1;
        if log.entries.len() >= service.buffer_bytes {
            self.send(log);
            return None;
        }
        (log.count == 1).then(|| {
            log.due = Instant::now() + service.flush_interval;
            log.due
        })
    }

    pub fn flush(&self) {
        for log in self.logs.borrow_mut().iter_mut().filter(|log| log.count > 0) {
            self.send(log);
        }
    }

    /// Send what has waited long enough by *now*; returns when the next of the others has.
    pub fn flush_due(&self, now: Instant) -> Option<Instant> {
        let mut next = None;
        for log in self.logs.borrow_mut().iter_mut().filter(|log| log.count > 0) {
            if log.due <= now {
                self.send(log);
            } else {
                next = sooner(next, Some(log.due));
            }
        }
        next
    }

    fn send(&self, log: &mut Buffered) {
        let count = std::mem::take(&mut log.count);
        let capacity = log.entries.len();
        let entries = Bytes::from(std::mem::replace(&mut log.entries, Vec::with_capacity(capacity)));
        let batch = Batch { kind: log.kind, entries, count };
        let taken = match &log.client {
            Some(client) if self.are_last.get() => client.force(batch),
            Some(client) => client.offer(batch),
            None => false,
        };
        if !taken {
            self.lost.set(self.lost.get() + u64::from(count));
        }
    }
}

fn is_same_log(one: &LogService, other: &LogService) -> bool {
    one.log_name == other.log_name && one.cluster == other.cluster
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::identify::{Ends, Facts};
    use crate::record::{Outcome, Subject};

    fn log(name: &str, buffer_bytes: usize, flush_millis: u64) -> Arc<LogService> {
        Arc::new(LogService {
            cluster: "records".into(),
            log_name: name.into(),
            buffer_bytes,
            flush_interval: Duration::from_millis(flush_millis),
            request_headers: Box::default(),
            response_headers: Box::default(),
            response_trailers: Box::default(),
            tags: Box::default(),
        })
    }

    #[tokio::test(start_paused = true)]
    async fn records_of_a_log_wait_as_long_as_it_says_and_until_so_many_bytes_have_gathered() {
        let (tasks, _to_run) = unbounded_channel();
        let services = Services { node: Node::default(), places: HashMap::new(), clients: Mutex::default(), tasks };
        let dispatch = Dispatch::new(Arc::new(services));
        let ends = Ends { remote: "10.0.0.1:40000".parse().unwrap(), local: "10.0.0.2:80".parse().unwrap() };
        let facts = Facts::plain(ends, ends.remote);
        let (clock, outcome) = (Clock::new(), Outcome::default());
        let record = |log: &Arc<LogService>| {
            let entry = Entry {
                subject: Subject::Connection,
                clock: &clock,
                start: Duration::ZERO,
                facts: &facts,
                outcome: &outcome,
                request: None,
                version: None,
                response: None,
                chain_name: "",
            };
            dispatch.record(log, &entry)
        };
        let start = Instant::now();
        let at = |millis| Some(start + Duration::from_millis(millis));
        let (late, soon, full) = (log("late", 1 << 20, 5000), log("soon", 1 << 20, 50), log("full", 1, 5000));
        assert_eq!(record(&late), at(5000));
        assert_eq!(record(&soon), at(50));
        assert_eq!(record(&soon), None, "it leaves with the one before");
        // There is nobody to have them, so what is sent is lost, which is counted.
        assert_eq!(dispatch.lost.take(), 0);
        assert_eq!(record(&full), None);
        assert_eq!(dispatch.lost.take(), 1);
        tokio::time::advance(Duration::from_millis(49)).await;
        assert_eq!(dispatch.flush_due(Instant::now()), at(50));
        assert_eq!(dispatch.lost.take(), 0);
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(dispatch.flush_due(Instant::now()), at(5000));
        assert_eq!(dispatch.lost.take(), 2);
        tokio::time::advance(Duration::from_millis(4950)).await;
        assert_eq!(dispatch.flush_due(Instant::now()), None);
        assert_eq!(dispatch.lost.take(), 1);
    }
}
