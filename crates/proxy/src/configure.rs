//! Configuration arrives: receive, decode each, prepare without a lock, swap, acknowledge.
//!
//! One [`Configurator`] on the main thread is the receiver of every stream: ADS, and one more for each server of secrets. It
//! owns [`Holdings`] (what was accepted), the listening sockets, and the channels to the workers.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::task::spawn_local;
use tokio::time::timeout;
use weft_core::dns::{Dns, Heard};
use weft_core::listener::Listener;
use weft_protos::envoy::config::core::v3::Node;
use weft_protos::type_url;
use weft_xds::client::{self, Address, Client, Receiver, Resource, Task};
use weft_xds::{Backoff, Protocol, Refusal, Service};

use crate::bootstrap::{Ads, Bootstrap, Place};
use crate::clock;
use crate::dns::follow::Followers;
use crate::health_check::Checks;
use crate::listen::Sockets;
use crate::logging;
use crate::on_demand::{Answer, Ask, Asked, Change};
use crate::patience::Patience;
use crate::plan::Active;
use crate::resident;
use crate::state::{self, Entry};
use crate::warming::{AtWork, Holdings, Key, Outcome, Wanted};
use crate::worker::{Command, Draining};

/// How long the first listeners wait for the first clusters. Long enough for a control plane and an agent that have
/// just started themselves; then a proxy that serves a part is better than one that serves nothing.
const FIRST_CLUSTERS_TIME: Duration = Duration::from_secs(5);
/// Answers about names, and findings of health checks, of this time count together.
const GATHER_TIME: Duration = Duration::from_millis(5);
/// Changes of this time go to the disk together.
const SAVE_TIME: Duration = Duration::from_millis(200);
/// After so long without a change the code that reads changes is given back. Those that belong together come within less.
const QUIET_TIME: Duration = Duration::from_millis(250);
/// Where changes do not cease, that code is given back this often all the same: most of what only the first ones entered is not entered again,
/// and the rest comes back for some fifty faults.
const MAX_BUSY_TIME: Duration = Duration::from_secs(10);
/// The longest and shortest time between two looks at whether an interval of outlier detection is over.
const TICK_TIME: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// See the module.
pub struct Configurator {
    me: Weak<RefCell<Configurator>>,
    pub holdings: Holdings,
    active: Arc<Active>,
    sockets: Sockets,
    workers: Vec<UnboundedSender<Command>>,
    node: Node,
    /// Static clusters of the bootstrap.
    clusters: HashMap<String, Place>,
    ads: Option<Client>,
    secret_streams: HashMap<Arc<str>, Client>,
    subscribed: Wanted,
    /// Virtual hosts.
    asked: Asked,
    /// The control plane knows that there may be virtual hosts.
    hosts_are_open: bool,
    state_dir: Option<PathBuf>,
    changed: Rc<Notify>,
    /// There is a new generation.
    settled: Rc<Notify>,
    /// Something is not on the disk yet.
    unsaved: bool,
    draining: Draining,
    /// The time of the first clusters runs.
    is_waiting: bool,
    ads_is_connected: bool,
    /// Whose names are resolved.
    pub followers: Followers,
    /// Whose endpoints are checked.
    pub checks: Checks,
    /// What is waited for.
    patience: Patience,
    /// What is to be done is being gathered.
    is_gathering: bool,
    /// The next generation is to be made.
    is_unsettled: bool,
    /// Clusters whose balancing is to look at their endpoints anew.
    unbalanced: BTreeSet<Arc<str>>,
    /// When each cluster's ejections were looked at last, on the clock of [`clock::monotonic`].
    ticked: HashMap<Arc<str>, Duration>,
}

impl Configurator {
    pub fn new(
        bootstrap: &Bootstrap,
        sockets: Sockets,
        workers: Vec<UnboundedSender<Command>>,
        checks: Checks,
        state_dir: Option<PathBuf>,
        seed: u64,
    ) -> Rc<RefCell<Configurator>> {
        let clusters: HashMap<String, Place> = bootstrap.clusters.iter().cloned().collect();
        Rc::new_cyclic(|me| {
            RefCell::new(Configurator {
                me: Weak::clone(me),
                holdings: Holdings::new(seed, clusters.keys().cloned()),
                active: Arc::default(),
                sockets,
                workers,
                node: bootstrap.node.clone(),
                clusters,
                ads: None,
                secret_streams: HashMap::new(),
                subscribed: Wanted::default(),
                asked: Asked::default(),
                hosts_are_open: false,
                state_dir,
                changed: Rc::new(Notify::new()),
                settled: Rc::new(Notify::new()),
                unsaved: false,
                draining: Draining::No,
                is_waiting: false,
                ads_is_connected: false,
                followers: Followers::default(),
                checks,
                patience: Patience::default(),
                is_gathering: false,
                is_unsettled: false,
                unbalanced: BTreeSet::new(),
                ticked: HashMap::new(),
            })
        })
    }

    /// Put the bootstrap's own resources and the state on disk to work, begin to follow the control plane, and start what has to be done from
    /// time to time.
    ///
    /// # Errors
    /// Static resources that cannot be put to work.
    pub fn start(this: &Rc<RefCell<Configurator>>, bootstrap: Bootstrap) -> Result<(), Vec<Refusal>> {
        let mut configurator = this.borrow_mut();
        let stream = bootstrap.ads.map(|Ads { place, protocol, listeners, clusters }| {
            let (client, task) = configurator.client(&place, Service::Aggregated, protocol);
            if clusters {
                client.subscribe_all(type_url::CLUSTER);
            }
            if listeners {
                client.subscribe_all(type_url::LISTENER);
            }
            configurator.holdings.await_no_other(listeners, clusters);
            if protocol == Protocol::Delta {
                configurator.holdings.speak_delta();
            }
            configurator.ads = Some(client);
            (task, place)
        });
        if stream.is_none() {
            configurator.holdings.await_no_other(false, false);
        }
        let has_listeners = bootstrap.resources.iter().any(|(type_url, _)| *type_url == type_url::LISTENER);
        configurator.take_static(bootstrap.resources)?;
        if has_listeners && !std::mem::replace(&mut configurator.is_waiting, true) {
            // They serve even while the control plane is away.
            spawn_local(wait_for_clusters(Rc::clone(this)));
        }
        let resumed = configurator.load();
        if let Some((mut task, place)) = stream {
            for entry in resumed {
                task.resume(&entry.type_url, [(entry.name, entry.version)]);
            }
            spawn_local(follow(task, Rc::clone(this), Source::ControlPlane(place)));
        }
        spawn_local(keep_small(Rc::clone(&configurator.settled)));
        drop(configurator);
        spawn_local(keep_saving(Rc::clone(this)));
        spawn_local(keep_ticking(Rc::clone(this)));
        Ok(())
    }

    fn take_static(&mut self, resources: Vec<(&'static str, Resource)>) -> Result<(), Vec<Refusal>> {
        let mut refused = Vec::new();
        // One by one and in the file's order: clusters come before listeners.
        for (type_url, resource) in resources {
            let sockets = &mut self.sockets;
            let open = |listener: &Listener| sockets.open(listener).map_err(|error| error.to_string());
            let outcome = self.holdings.accept_static(type_url, resource, open);
            // What of them is not applied was told with the bootstrap.
            report_refused(type_url, &outcome.refusals);
            refused.extend(outcome.refusals);
        }
        if refused.is_empty() {
            self.settle();
            Ok(())
        } else {
            Err(refused)
        }
    }

    /// Apply what the state directory holds; returns what was accepted of it.
    fn load(&mut self) -> Vec<Entry> {
        let Some(directory) = self.state_dir.clone() else { return Vec::new() };
        let entries = match state::read(&directory) {
            Ok(entries) => entries,
            Err(error) => {
                log::warn!(target: logging::STATE, "the state in {} is not used: {error}", directory.display());
                return Vec::new();
            }
        };
        if entries.is_empty() {
            return entries;
        }
        let mut refused = HashSet::new();
        // What names others comes first, as on the wire.
        for type_url in [
            type_url::CLUSTER,
            type_url::CLUSTER_LOAD_ASSIGNMENT,
            type_url::LISTENER,
            type_url::ROUTE_CONFIGURATION,
            type_url::VIRTUAL_HOST,
        ] {
            let resources = entries.iter().filter(|entry| entry.type_url == type_url).map(|entry| Resource {
                name: entry.name.clone(),
                aliases: Vec::new(),
                version: entry.version.clone(),
                body: entry.body.clone(),
            });
            let resources = resources.collect();
            self.holdings.note_arrival(type_url);
            for refusal in self.accept(None, type_url, resources, Vec::new()).0 {
                refused.insert((type_url, refusal.name));
            }
        }
        self.settle();
        let taken = entries.len() - refused.len();
        log::info!(target: logging::STATE, "{taken} resources taken over from {}", directory.display());
        let is_refused =
            |entry: &Entry| refused.iter().any(|(type_url, name)| *type_url == entry.type_url && *name == entry.name);
        entries.into_iter().filter(|entry| !is_refused(entry)).collect()
    }

    fn accept(
        &mut self,
        source: Option<&Arc<str>>,
        type_url: &str,
        resources: Vec<Resource>,
        removed: Vec<String>,
    ) -> (Vec<Refusal>, bool) {
        let draining = self.is_draining();
        let sockets = &mut self.sockets;
        let outcome = self.holdings.accept(source, type_url, resources, removed, |listener| {
            if draining { Ok(()) } else { sockets.open(listener).map_err(|error| error.to_string()) }
        });
        report(type_url, &outcome);
        (outcome.refusals, outcome.changed)
    }

    fn update(
        &mut self,
        source: Option<&Arc<str>>,
        type_url: &str,
        resources: Vec<Resource>,
        removed: Vec<String>,
    ) -> Result<(), Vec<Refusal>> {
        // Versions belong on the disk even where the content is the same.
        let to_save = type_url != type_url::SECRET && !(resources.is_empty() && removed.is_empty());
        let is_first = source.is_none() && self.holdings.note_arrival(type_url);
        let spoken_of = SpokenOf::of(type_url, &resources, &removed).filter(|_| source.is_none());
        let (refusals, changed) = self.accept(source, type_url, resources, removed);
        if changed || is_first {
            self.settle();
        }
        if let Some(spoken_of) = spoken_of {
            self.hear_of_hosts(&spoken_of);
        }
        if to_save && self.state_dir.is_some() {
            self.unsaved = true;
            self.changed.notify_one();
        }
        if refusals.is_empty() { Ok(()) } else { Err(refusals) }
    }

    /// Make the next generation and give it to the workers.
    fn settle(&mut self) {
        // What goes to work by its first checks is to know what they found.
        self.rebalance();
        let was_live = self.holdings.is_live();
        self.active = Arc::new(self.holdings.settle(&self.active));
        self.tell(|| Command::Plan(Arc::clone(&self.active)));
        self.hand_out_sockets();
        self.subscribe();
        self.settled.notify_one();
        if self.holdings.knows_clusters() && !std::mem::replace(&mut self.is_waiting, true) {
            self.me.upgrade().map(|me| spawn_local(wait_for_clusters(me)));
        }
        if !was_live && self.holdings.is_live() {
            log::info!(target: logging::MAIN, "ready; {} addresses listened on", self.sockets.len());
        }
    }

    /// A resource has not come in the time that whoever names it allows.
    pub fn do_without(&mut self, key: &Key, limit: Duration) {
        if self.holdings.do_without(key) {
            let (type_url, name) = key;
            let kind = type_url::kind(type_url);
            log::warn!(target: logging::XDS, "{kind} {name} has not come within {limit:?}: going on without");
            // Thousands that were asked for at once are given up at once.
            self.settle_soon();
        }
    }

    /// A request waits for a virtual host.
    pub fn ask(&mut self, ask: Ask) {
        let answer = if self.holdings.has_virtual_host(&ask.table, &ask.entry) {
            Answer::Loaded
        } else if !self.holdings.is_on_demand(&ask.table) || self.asked.is_absent(&ask.name()) {
            Answer::Unknown
        } else if !self.ads_is_connected {
            Answer::Unavailable
        } else {
            match self.asked.wait(ask) {
                Ok(change) => self.follow_hosts(change),
                Err(ask) => self.answer(ask, Answer::Unavailable),
            }
            return;
        };
        self.answer(ask, answer);
    }

    /// The control plane has spoken of virtual hosts.
    fn hear_of_hosts(&mut self, spoken_of: &SpokenOf) {
        let holdings = &self.holdings;
        let (answered, change) = self.asked.hear(
            &spoken_of.names,
            |name| spoken_of.removed.contains(name),
            |name| holdings.holds_virtual_host(name),
            |ask| holdings.has_virtual_host(&ask.table, &ask.entry),
        );
        self.follow_hosts(change);
        for (ask, answer) in answered {
            self.answer(ask, answer);
        }
    }

    /// Behind the plan in the worker's queue.
    fn answer(&self, ask: Ask, answer: Answer) {
        log::debug!(target: logging::XDS, "virtual host {}, which a request needs: {answer:?}", ask.name());
        let _ = self.workers[ask.worker].send(Command::Answer(ask.answer, answer));
    }

    fn follow_hosts(&self, Change { subscribe, unsubscribe }: Change) {
        let Some(ads) = &self.ads else { return };
        if !subscribe.is_empty() {
            ads.subscribe(type_url::VIRTUAL_HOST, subscribe);
        }
        if !unsubscribe.is_empty() {
            ads.unsubscribe(type_url::VIRTUAL_HOST, unsubscribe);
        }
    }

    /// What became of a lookup: the addresses of *name*, `None` if nothing is known.
    pub fn hear(&mut self, cluster: &Arc<str>, dns: &Arc<Dns>, name: &Arc<str>, answer: Option<Vec<IpAddr>>) -> Heard {
        let heard = self.holdings.hear(cluster, dns, name, answer);
        self.followers.count(cluster, heard);
        if heard.changed {
            self.settle_soon();
        }
        heard
    }

    /// Make the next generation for this and what else comes at about the same time.
    pub fn settle_soon(&mut self) {
        self.is_unsettled = true;
        self.gather_soon();
    }

    /// The same for what is said of the endpoints of a cluster: of thousands many may change at once.
    pub fn balance_soon(&mut self, cluster: &Arc<str>) {
        self.unbalanced.insert(Arc::clone(cluster));
        self.gather_soon();
    }

    fn rebalance(&mut self) {
        for cluster in std::mem::take(&mut self.unbalanced) {
            self.holdings.balancers(&cluster).for_each(|balancer| balancer.look_again());
        }
    }

    fn gather_soon(&mut self) {
        if !std::mem::replace(&mut self.is_gathering, true) {
            self.me.upgrade().map(|me| spawn_local(gather(me)));
        }
    }

    /// After the plan, so that a worker knows the listener of a socket when its first connection comes; and has closed
    /// the sockets that the plan does not name.
    fn hand_out_sockets(&mut self) {
        if self.is_draining() {
            return;
        }
        let active = self.active.sockets.keys().cloned().collect();
        for (key, sockets) in self.sockets.hand_out(&active, &self.holdings.accepted_sockets()) {
            for (worker, socket) in self.workers.iter().zip(sockets) {
                // A worker that has ended ends the process.
                let _ = worker.send(Command::Listen(key.clone(), socket));
            }
        }
    }

    fn tell(&self, command: impl Fn() -> Command) {
        for worker in &self.workers {
            let _ = worker.send(command());
        }
    }

    /// Subscribe to what is newly named, and give up what is no longer.
    fn subscribe(&mut self) {
        let wanted = self.holdings.wanted().clone();
        let before = std::mem::replace(&mut self.subscribed, wanted.clone());
        let nothing = BTreeSet::new();
        if let Some(ads) = &self.ads {
            follow_names(ads, type_url::CLUSTER_LOAD_ASSIGNMENT, &before.assignments, &wanted.assignments);
            follow_names(ads, type_url::ROUTE_CONFIGURATION, &before.routes, &wanted.routes);
        }
        self.subscribe_hosts();
        self.followers.follow(&wanted.names, &self.me);
        self.checks.follow(self.holdings.checked(), &self.me);
        self.patience.follow(&wanted.missing, &self.me);
        let sources: BTreeSet<_> = before.secrets.keys().chain(wanted.secrets.keys()).cloned().collect();
        for source in sources {
            let old = before.secrets.get(&source).unwrap_or(&nothing);
            let new = wanted.secrets.get(&source).unwrap_or(&nothing);
            if let Some(stream) = self.secret_stream(source.as_ref()) {
                follow_names(&stream, type_url::SECRET, old, new);
            }
        }
    }

    /// The same for virtual hosts: by name only those that requests asked for, now or before a restart.
    fn subscribe_hosts(&mut self) {
        let holdings = &self.holdings;
        let (gone, change) = self.asked.forget(|table| holdings.is_on_demand(table));
        self.follow_hosts(change);
        for ask in gone {
            self.answer(ask, Answer::Unknown);
        }
        if let (Some(ads), true, false) = (&self.ads, self.holdings.has_on_demand(), self.hosts_are_open) {
            ads.subscribe::<String>(type_url::VIRTUAL_HOST, []);
            self.hosts_are_open = true;
            let resumed = self.asked.resume(self.holdings.virtual_hosts());
            self.follow_hosts(resumed);
        }
    }

    /// The stream for the secrets of a server, opened when it is first needed.
    fn secret_stream(&mut self, cluster: Option<&Arc<str>>) -> Option<Client> {
        let Some(cluster) = cluster else { return self.ads.clone() };
        if let Some(stream) = self.secret_streams.get(cluster) {
            return Some(stream.clone());
        }
        let place = self.clusters.get(&**cluster)?.clone();
        let (client, task) = self.client(&place, Service::Secrets, Protocol::Delta);
        spawn_local(follow(task, self.me.upgrade()?, Source::Secrets(Arc::clone(cluster), place)));
        self.secret_streams.insert(Arc::clone(cluster), client.clone());
        Some(client)
    }

    fn client(&self, place: &Place, service: Service, protocol: Protocol) -> (Client, Task) {
        let address = match place {
            Place::Unix(path) => Address::Unix(path.clone()),
            Place::Tcp(address) => Address::Tcp(address.clone()),
        };
        let node = self.node.clone();
        client::client(client::Config { address, service, protocol, node, backoff: Backoff::default() })
    }

    /// Accept no more connections, and close those that exist as they become idle.
    pub fn drain(&mut self, how: Draining) {
        if how > self.draining {
            self.draining = how;
            self.tell(|| Command::Drain(how));
            match how {
                Draining::Ending => self.sockets.close_held(),
                Draining::Gracefully | Draining::No => self.sockets.leave(),
            }
        }
    }

    /// Open record files anew.
    pub fn reopen(&self) {
        self.tell(|| Command::Reopen);
    }

    /// End the workers.
    pub fn stop(&self) {
        self.tell(|| Command::Stop);
    }

    /// What workers work by.
    pub fn active(&self) -> &Active {
        &self.active
    }

    pub fn is_draining(&self) -> bool {
        self.draining > Draining::No
    }

    pub fn ads_is_connected(&self) -> bool {
        self.ads_is_connected
    }

    /// Write to the disk what is not there yet; blocks.
    pub fn save(&mut self) {
        if let (true, Some(directory)) = (std::mem::take(&mut self.unsaved), &self.state_dir) {
            report_save(directory, state::write(directory, self.holdings.entries()));
        }
    }

    /// End the intervals of outlier detection that are over; how long until the next look.
    fn tick(&mut self, now: Duration) -> Duration {
        let (shortest, mut pause) = TICK_TIME;
        let mut ticked = HashMap::new();
        for AtWork { name, upstream, .. } in self.holdings.clusters() {
            let (Some(outlier), Some(balancer)) = (&upstream.cluster.outlier, &upstream.balancer) else { continue };
            let mut last = self.ticked.get(name).copied().unwrap_or(now);
            if now.saturating_sub(last) >= outlier.interval {
                balancer.tick(now);
                last = now;
            }
            pause = pause.min((last + outlier.interval).saturating_sub(now));
            ticked.insert(Arc::clone(name), last);
        }
        self.ticked = ticked;
        pause.max(shortest)
    }
}

/// The virtual hosts that a response is about.
struct SpokenOf {
    names: BTreeSet<String>,
    /// Of these, what does not exist.
    removed: BTreeSet<String>,
}

impl SpokenOf {
    /// `None` for responses of another type.
    fn of(type_url: &str, resources: &[Resource], removed: &[String]) -> Option<SpokenOf> {
        if type_url != type_url::VIRTUAL_HOST {
            return None;
        }
        let removed: BTreeSet<String> = removed.iter().cloned().collect();
        let named = resources.iter().flat_map(|resource| resource.aliases.iter().chain([&resource.name]));
        Some(SpokenOf { names: named.chain(&removed).cloned().collect(), removed })
    }
}

/// Which stream it is.
enum Source {
    ControlPlane(Place),
    /// With the cluster that names it.
    Secrets(Arc<str>, Place),
}

impl Source {
    fn cluster(&self) -> Option<&Arc<str>> {
        match self {
            Source::ControlPlane(_) => None,
            Source::Secrets(cluster, _) => Some(cluster),
        }
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (what, place) = match self {
            Source::ControlPlane(place) => ("the control plane", place),
            Source::Secrets(_, place) => ("the server of secrets", place),
        };
        match place {
            Place::Unix(path) => write!(out, "{what} at {}", path.display()),
            Place::Tcp(address) => write!(out, "{what} at {address}"),
        }
    }
}

/// One stream's way to the configurator.
struct Stream {
    configurator: Rc<RefCell<Configurator>>,
    source: Source,
    /// What the log said last, so that a control plane that is away fills no disk.
    told: Option<bool>,
}

impl Stream {
    fn note(&mut self, connected: bool) -> bool {
        if let Source::ControlPlane(_) = self.source {
            let mut configurator = self.configurator.borrow_mut();
            configurator.ads_is_connected = connected;
            if !connected {
                let (asks, change) = configurator.asked.give_up();
                configurator.follow_hosts(change);
                for ask in asks {
                    configurator.answer(ask, Answer::Unavailable);
                }
            }
        }
        self.told.replace(connected) != Some(connected)
    }
}

impl Receiver for Stream {
    fn update(&mut self, type_url: &str, resources: Vec<Resource>, removed: Vec<String>) -> Result<(), Vec<Refusal>> {
        let kind = type_url::kind(type_url);
        // Names and versions only: what is in a secret is nobody's business.
        for Resource { name, version, body, .. } in &resources {
            let (bytes, source) = (body.len(), &self.source);
            log::debug!(target: logging::XDS, "{kind} {name} version {version:?}, {bytes} bytes, from {source}");
        }
        if !removed.is_empty() {
            log::debug!(target: logging::XDS, "{kind} {} removed by {}", removed.join(", "), self.source);
        }
        let count = resources.len();
        let result = self.configurator.borrow_mut().update(self.source.cluster(), type_url, resources, removed);
        let verdict = if result.is_ok() { "ACK" } else { "NACK" };
        log::debug!(target: logging::XDS, "{verdict} of {count} {kind} to {}", self.source);
        result
    }

    fn connected(&mut self) {
        if self.note(true) {
            log::info!(target: logging::XDS, "connected to {}", self.source);
        }
    }

    fn disconnected(&mut self, error: &client::Error, retry: Duration) {
        log::debug!(target: logging::XDS, "{}: {error}; again in {retry:?}", self.source);
        if self.note(false) {
            log::warn!(
                target: logging::XDS,
                "{} is away ({error}); trying again, and working by what is known",
                self.source
            );
        }
    }
}

/// Say what was refused, and what is not applied.
fn report(type_url: &str, outcome: &Outcome) {
    report_refused(type_url, &outcome.refusals);
    let kind = type_url::kind(type_url);
    for (name, problem) in &outcome.not_applied {
        log::info!(target: logging::XDS, "not applied, in {kind} {name} and wherever else it stands: {problem}");
    }
}

fn report_refused(type_url: &str, refusals: &[Refusal]) {
    for Refusal { name, reason, .. } in refusals {
        log::warn!(target: logging::XDS, "refused {} {name}: {reason}", type_url::kind(type_url));
    }
}

async fn follow(task: Task, configurator: Rc<RefCell<Configurator>>, source: Source) {
    task.run(&mut Stream { configurator, source, told: None }).await;
}

fn follow_names(client: &Client, type_url: &str, old: &BTreeSet<Arc<str>>, new: &BTreeSet<Arc<str>>) {
    let added: Vec<&str> = new.difference(old).map(|name| &**name).collect();
    if !added.is_empty() {
        client.subscribe(type_url, added);
    }
    let gone: Vec<&str> = old.difference(new).map(|name| &**name).collect();
    if !gone.is_empty() {
        client.unsubscribe(type_url, gone);
    }
}

async fn wait_for_clusters(configurator: Rc<RefCell<Configurator>>) {
    tokio::time::sleep(FIRST_CLUSTERS_TIME).await;
    let mut configurator = configurator.borrow_mut();
    if configurator.holdings.wait_no_longer() {
        configurator.settle();
    }
}

/// Hand on what requests ask for.
pub async fn keep_answering(configurator: Rc<RefCell<Configurator>>, mut asks: UnboundedReceiver<Ask>) {
    while let Some(ask) = asks.recv().await {
        configurator.borrow_mut().ask(ask);
    }
}

/// Do once what answers ask for that come at about the same time.
async fn gather(configurator: Rc<RefCell<Configurator>>) {
    tokio::time::sleep(GATHER_TIME).await;
    let mut configurator = configurator.borrow_mut();
    configurator.is_gathering = false;
    if std::mem::take(&mut configurator.is_unsettled) {
        configurator.settle();
    } else {
        configurator.rebalance();
    }
}

async fn keep_saving(configurator: Rc<RefCell<Configurator>>) {
    let changed = Rc::clone(&configurator.borrow().changed);
    loop {
        changed.notified().await;
        tokio::time::sleep(SAVE_TIME).await;
        let (directory, entries) = {
            let mut configurator = configurator.borrow_mut();
            let Some(directory) = configurator.state_dir.clone() else { return };
            configurator.unsaved = false;
            (directory, configurator.holdings.entries())
        };
        // Beside the loop: a busy disk must not keep configuration waiting.
        let written = tokio::task::spawn_blocking(move || {
            report_save(&directory, state::write(&directory, entries));
        });
        let _ = written.await;
    }
}

fn report_save(directory: &std::path::Path, result: std::io::Result<()>) {
    if let Err(error) = result {
        log::error!(target: logging::STATE, "the state cannot be kept in {}: {error}", directory.display());
    }
}

/// Give back the code that changes needed, once they are over.
async fn keep_small(settled: Rc<Notify>) {
    loop {
        settled.notified().await;
        quiet(&settled).await;
        resident::give_back_code();
    }
}

/// Wait until nothing has *changed* for [`QUIET_TIME`], at most [`MAX_BUSY_TIME`].
async fn quiet(changed: &Notify) {
    let is_quiet = async { while timeout(QUIET_TIME, changed.notified()).await.is_ok() {} };
    let _ = timeout(MAX_BUSY_TIME, is_quiet).await;
}

async fn keep_ticking(configurator: Rc<RefCell<Configurator>>) {
    loop {
        let pause = configurator.borrow_mut().tick(clock::monotonic());
        tokio::time::sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, sleep};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_is_quiet_when_no_change_has_come_for_a_while_or_they_do_not_cease() {
        let pause = QUIET_TIME / 2;
        for (changes, expected) in [(0, QUIET_TIME), (10, pause * 10 + QUIET_TIME), (1000, MAX_BUSY_TIME)] {
            let changed = Notify::new();
            let changing = async {
                for _ in 0..changes {
                    sleep(pause).await;
                    changed.notify_one();
                }
                std::future::pending().await
            };
            let began = Instant::now();
            tokio::select! {
                () = quiet(&changed) => assert_eq!(began.elapsed(), expected, "{changes} changes"),
                () = changing => {}
            }
        }
    }
}
