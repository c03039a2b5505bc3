//! What is done when the process runs short: of memory, or of room for connections.
//!
//! The main thread looks from time to time ([`watch`]) and writes down what has to be done; workers read it with one relaxed load. Little is
//! done first: nobody is accepted any more (who comes waits in the kernel's queue), then connections close after their answers, then requests
//! are refused, those of routes of the priority HIGH last. All of it is over as soon as the pressure is.
//!
//! Thresholds are those of the bootstrap's `overload_manager` (envoy.config.overload.v3), or the defaults here, which are on. What one client
//! may give up is of its runtime (`crate::runtime`).

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;
use weft_core::compile::Context;
use weft_protos::Message;
use weft_protos::envoy::config::overload::v3::resource_monitor::ConfigType;
use weft_protos::envoy::config::overload::v3::trigger::TriggerOneof;
use weft_protos::envoy::config::overload::v3::{OverloadAction, OverloadManager, ThresholdTrigger};
use weft_protos::envoy::extensions::resource_monitors::downstream_connections::v3::DownstreamConnectionsConfig;
use weft_protos::envoy::extensions::resource_monitors::fixed_heap::v3::FixedHeapConfig;
use weft_protos::google::protobuf::Any;

use crate::codec::h2::Allowances;
use crate::logging;
use crate::worker::Command;

/// How often the pressure is looked at, if nothing is said. Reading it costs microseconds, and memory can grow fast.
const REFRESH: Duration = Duration::from_millis(250);
/// How far below its threshold a pressure must fall before what was done is undone, so that nothing flaps.
const RELIEF: f64 = 0.02;
/// Descriptors that are not for clients: listening sockets, files, the control plane's connections, event loops.
const OWN_DESCRIPTORS: u64 = 128;

// Envoy's names, which the bootstrap uses.
const STOP_ACCEPTING_CONNECTIONS: &str = "envoy.overload_actions.stop_accepting_connections";
const STOP_ACCEPTING_REQUESTS: &str = "envoy.overload_actions.stop_accepting_requests";
const DISABLE_HTTP_KEEPALIVE: &str = "envoy.overload_actions.disable_http_keepalive";
const FIXED_HEAP: &str = "envoy.resource_monitors.fixed_heap";
const DOWNSTREAM_CONNECTIONS: &str = "envoy.resource_monitors.global_downstream_max_connections";
const FIXED_HEAP_TYPE: &str = "envoy.extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig";
const CONNECTIONS_TYPE: &str =
    "envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig";

/// Something that is done under pressure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    StopAcceptingConnections,
    DisableHttpKeepalive,
    StopAcceptingRequests,
    /// The same for routes of the priority HIGH; it follows from the one above.
    StopAcceptingHighPriority,
}

const ACTIONS: [Action; 4] = [
    Action::StopAcceptingConnections,
    Action::DisableHttpKeepalive,
    Action::StopAcceptingRequests,
    Action::StopAcceptingHighPriority,
];

impl Action {
    fn bit(self) -> u8 {
        1 << self as u8
    }

    pub fn name(self) -> &'static str {
        match self {
            Action::StopAcceptingConnections => "stop_accepting_connections",
            Action::DisableHttpKeepalive => "disable_http_keepalive",
            Action::StopAcceptingRequests => "stop_accepting_requests",
            Action::StopAcceptingHighPriority => "stop_accepting_requests_of_high_priority",
        }
    }

    fn from_envoy(name: &str) -> Option<Action> {
        match name {
            STOP_ACCEPTING_CONNECTIONS => Some(Action::StopAcceptingConnections),
            STOP_ACCEPTING_REQUESTS => Some(Action::StopAcceptingRequests),
            DISABLE_HTTP_KEEPALIVE => Some(Action::DisableHttpKeepalive),
            _ => None,
        }
    }
}

/// What has to be done now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Actions(u8);

impl Actions {
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn contains(self, action: Action) -> bool {
        self.0 & action.bit() != 0
    }

    pub fn iter(self) -> impl Iterator<Item = Action> {
        ACTIONS.into_iter().filter(move |action| self.contains(*action))
    }
}

/// A resource whose use is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    Memory,
    Connections,
}

/// Use of each resource as a share of what there may be.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pressures {
    pub memory: f64,
    pub connections: f64,
}

impl Pressures {
    fn of(&self, resource: Resource) -> f64 {
        match resource {
            Resource::Memory => self.memory,
            Resource::Connections => self.connections,
        }
    }
}

/// Do *action* as soon as *resource* is used to this share.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Rule {
    action: Action,
    resource: Resource,
    threshold: f64,
}

/// Limits and rules, from the bootstrap or by default.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    refresh: Duration,
    /// `None`: the system tells no limit.
    memory_bytes: Option<u64>,
    pub connections: u64,
    rules: Vec<Rule>,
    /// Of each client's connection of HTTP/2.
    pub allowances: Allowances,
}

impl Config {
    /// The defaults: memory against what the control group or the machine has, connections against what descriptors allow.
    pub fn by_default() -> Config {
        let rule = |action, resource, threshold| Rule { action, resource, threshold };
        Config {
            refresh: REFRESH,
            memory_bytes: memory_limit(),
            connections: connections_for(descriptor_limit()),
            rules: vec![
                rule(Action::StopAcceptingConnections, Resource::Memory, 0.90),
                rule(Action::DisableHttpKeepalive, Resource::Memory, 0.92),
                rule(Action::StopAcceptingRequests, Resource::Memory, 0.95),
                rule(Action::StopAcceptingHighPriority, Resource::Memory, 0.98),
                // Idle clients make room before anybody has to be refused.
                rule(Action::DisableHttpKeepalive, Resource::Connections, 0.90),
            ],
            allowances: Allowances::default(),
        }
    }

    /// What *manager* asks for; what it says nothing about is as by default.
    pub fn compile(context: &mut Context, manager: &OverloadManager) -> Config {
        let mut config = Config::by_default();
        if let Some(refresh) = context.duration("refresh_interval", manager.refresh_interval.as_ref()) {
            if refresh.is_zero() {
                context.refuse_at("refresh_interval", "must be more than nothing");
            }
            config.refresh = refresh;
        }
        context.each("resource_monitors", &manager.resource_monitors, |context, monitor| {
            let Some(ConfigType::TypedConfig(any)) = &monitor.config_type else {
                context.refuse_at("typed_config", "required");
                return;
            };
            match monitor.name.as_str() {
                FIXED_HEAP => {
                    let limit = context.at("typed_config", |context| {
                        let heap: FixedHeapConfig = decode(context, any, FIXED_HEAP_TYPE);
                        at_least_one(context, "max_heap_size_bytes", heap.max_heap_size_bytes)
                    });
                    config.memory_bytes = limit.or(config.memory_bytes);
                }
                DOWNSTREAM_CONNECTIONS => {
                    let limit = context.at("typed_config", |context| {
                        let connections: DownstreamConnectionsConfig = decode(context, any, CONNECTIONS_TYPE);
                        let count = connections.max_active_downstream_connections;
                        at_least_one(context, "max_active_downstream_connections", u64::try_from(count).unwrap_or(0))
                    });
                    config.connections = limit.unwrap_or(config.connections);
                }
                other => context.refuse_at(
                    "name",
                    format!("weft-proxy knows {FIXED_HEAP} and {DOWNSTREAM_CONNECTIONS}, and not {other:?}"),
                ),
            }
        });
        if !manager.actions.is_empty() {
            config.rules = context.each("actions", &manager.actions, rules).concat();
        }
        config
    }
}

/// The configuration of a monitor, which must be the one that its name asks for.
fn decode<M: Message + Default>(context: &mut Context, any: &Any, name: &str) -> M {
    if any.type_url.rsplit('/').next() != Some(name) {
        context.refuse(format!("expected {name}, not `{}`", any.type_url));
        return M::default();
    }
    M::decode(any.value.as_ref()).unwrap_or_else(|error| {
        context.refuse(error.to_string());
        M::default()
    })
}

fn at_least_one(context: &mut Context, field: &str, value: u64) -> Option<u64> {
    if value == 0 {
        context.refuse_at(field, "a number of at least 1 is needed");
    }
    (value > 0).then_some(value)
}

fn rules(context: &mut Context, file: &OverloadAction) -> Vec<Rule> {
    let Some(action) = Action::from_envoy(&file.name) else {
        let known = format!("{STOP_ACCEPTING_CONNECTIONS}, {STOP_ACCEPTING_REQUESTS} and {DISABLE_HTTP_KEEPALIVE}");
        context.refuse_at("name", format!("weft-proxy knows {known}, and not {:?}", file.name));
        return Vec::new();
    };
    let of_triggers = context.each("triggers", &file.triggers, |context, trigger| {
        let resource = match trigger.name.as_str() {
            FIXED_HEAP => Resource::Memory,
            DOWNSTREAM_CONNECTIONS => Resource::Connections,
            other => {
                context.refuse_at("name", format!("there is no resource monitor {other:?}"));
                return Vec::new();
            }
        };
        let Some(TriggerOneof::Threshold(ThresholdTrigger { value: threshold })) = trigger.trigger_oneof else {
            context.refuse_at("threshold", "required");
            return Vec::new();
        };
        if !(0.0..=1.0).contains(&threshold) {
            context.refuse_at("threshold.value", format!("{threshold} is no share from 0 to 1"));
        }
        let mut rules = vec![Rule { action, resource, threshold }];
        if action == Action::StopAcceptingRequests {
            // Half of the way from there to the end belongs to what matters most.
            let threshold = threshold + (1.0 - threshold) / 2.0;
            rules.push(Rule { action: Action::StopAcceptingHighPriority, resource, threshold });
        }
        rules
    });
    of_triggers.concat()
}

/// What the workers and the main thread share.
#[derive(Debug)]
pub struct Overload {
    actions: AtomicU8,
    /// Connections of clients that were accepted and are not closed.
    connections: AtomicU64,
    limit: u64,
    /// For whoever asks, in thousandths.
    memory: AtomicU64,
    pub allowances: Allowances,
}

/// A connection that counts against the limit of the process.
pub struct Admission<'o>(Option<&'o Overload>);

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        if let Some(overload) = self.0 {
            overload.connections.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Overload {
    pub fn new(config: &Config) -> Overload {
        Overload {
            actions: AtomicU8::new(0),
            connections: AtomicU64::new(0),
            limit: config.connections,
            memory: AtomicU64::new(0),
            allowances: config.allowances,
        }
    }

    /// What has to be done; one relaxed load.
    pub fn actions(&self) -> Actions {
        Actions(self.actions.load(Ordering::Relaxed))
    }

    /// Take a connection in; `None` if there are as many as there may be.
    pub fn admit(&self, ignore_limit: bool) -> Option<Admission<'_>> {
        if ignore_limit {
            return Some(Admission(None));
        }
        let before = self.connections.fetch_add(1, Ordering::Relaxed);
        let admission = Admission(Some(self));
        (before < self.limit).then_some(admission)
    }

    /// The pressures as they were seen last.
    pub fn pressures(&self) -> Pressures {
        let connections = self.connections.load(Ordering::Relaxed) as f64 / self.limit as f64;
        Pressures { memory: self.memory.load(Ordering::Relaxed) as f64 / 1000.0, connections }
    }

    /// Gauges under Envoy's names: name, what it shows, and its value.
    pub fn gauges(&self) -> [(&'static str, &'static str, f64); 5] {
        let (actions, pressures) = (self.actions(), self.pressures());
        let flag = |action| if actions.contains(action) { 1.0 } else { 0.0 };
        let percent = |share: f64| (share * 100.0).floor();
        [
            (
                "envoy_overload_envoy_overload_actions_stop_accepting_connections_active",
                "Whether no connections are accepted, for overload.",
                flag(Action::StopAcceptingConnections),
            ),
            (
                "envoy_overload_envoy_overload_actions_disable_http_keepalive_active",
                "Whether connections close after their answers, for overload.",
                flag(Action::DisableHttpKeepalive),
            ),
            (
                "envoy_overload_envoy_overload_actions_stop_accepting_requests_active",
                "Whether requests are refused, for overload.",
                flag(Action::StopAcceptingRequests),
            ),
            (
                "envoy_overload_envoy_resource_monitors_fixed_heap_pressure",
                "Memory in percent of what there may be.",
                percent(pressures.memory),
            ),
            (
                "envoy_overload_envoy_resource_monitors_global_downstream_max_connections_pressure",
                "Connections of clients in percent of those that there may be.",
                percent(pressures.connections),
            ),
        ]
    }
}

/// Look at the pressures for ever; write down what has to be done, say it in the log, and wake the workers when that changes.
pub async fn watch(config: Config, overload: Arc<Overload>, workers: Vec<UnboundedSender<Command>>) {
    loop {
        tokio::time::sleep(config.refresh).await;
        let memory = match config.memory_bytes {
            Some(limit) => own_memory_bytes().unwrap_or(0) as f64 / limit as f64,
            None => 0.0,
        };
        overload.memory.store((memory * 1000.0) as u64, Ordering::Relaxed);
        let pressures = Pressures { memory, ..overload.pressures() };
        let before = overload.actions();
        let actions = judge(&config.rules, &pressures, before);
        if actions == before {
            continue;
        }
        overload.actions.store(actions.0, Ordering::Relaxed);
        let level = if actions.is_empty() { log::Level::Info } else { log::Level::Warn };
        log::log!(target: logging::OVERLOAD, level, "{}", describe(&config, actions, &pressures));
        for worker in &workers {
            // A worker that has ended ends the process.
            let _ = worker.send(Command::Overload);
        }
    }
}

/// What has to be done at these pressures, where *before* is done already.
fn judge(rules: &[Rule], pressures: &Pressures, before: Actions) -> Actions {
    rules.iter().fold(Actions::default(), |actions, rule| {
        let relief = if before.contains(rule.action) { RELIEF } else { 0.0 };
        let is_due = pressures.of(rule.resource) >= rule.threshold - relief;
        Actions(actions.0 | if is_due { rule.action.bit() } else { 0 })
    })
}

fn describe(config: &Config, actions: Actions, pressures: &Pressures) -> String {
    let memory = config.memory_bytes.map_or_else(String::new, |limit| {
        format!("{:.0} % of {} MiB of memory, ", pressures.memory * 100.0, limit >> 20)
    });
    let used = format!("{memory}{:.0} % of {} connections", pressures.connections * 100.0, config.connections);
    if actions.is_empty() {
        return format!("overload is over: {used}");
    }
    let names: Vec<_> = actions.iter().map(Action::name).collect();
    format!("overload: {used}; doing {}", names.join(", "))
}

/// Let the process have as many descriptors as the system allows; how many that is.
pub fn raise_descriptor_limit() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is valid for writes, then for reads, of its size.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 && limit.rlim_cur < limit.rlim_max {
            let all = libc::rlimit { rlim_cur: limit.rlim_max, ..limit };
            // What was allowed before is enough to go on with.
            libc::setrlimit(libc::RLIMIT_NOFILE, &all);
        }
    }
    descriptor_limit()
}

fn descriptor_limit() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is valid for writes of its size.
    match unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } {
        0 => limit.rlim_cur,
        _ => 1024,
    }
}

/// Most clients have a descriptor to an upstream at their side; idle ones do not.
fn connections_for(descriptors: u64) -> u64 {
    (descriptors.saturating_sub(OWN_DESCRIPTORS) / 4 * 3).max(1)
}

/// Memory that this process has for itself and cannot give up: resident pages that no file stands behind.
fn own_memory_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    // proc(5): total, resident, shared, ... in pages.
    let mut pages = text.split_ascii_whitespace().skip(1).map_while(|number| number.parse::<u64>().ok());
    let (resident, shared) = (pages.next()?, pages.next()?);
    // SAFETY: no pointers are involved.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    Some(resident.saturating_sub(shared) * u64::try_from(page).ok()?)
}

/// What the control group allows, or the machine has.
fn memory_limit() -> Option<u64> {
    let physical = {
        // SAFETY: no pointers are involved.
        let (pages, size) = unsafe { (libc::sysconf(libc::_SC_PHYS_PAGES), libc::sysconf(libc::_SC_PAGESIZE)) };
        u64::try_from(pages).ok().zip(u64::try_from(size).ok()).map(|(pages, size)| pages * size)
    };
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let allowed = groups.lines().filter_map(|line| group_limit(line, Path::new("/sys/fs/cgroup"))).min();
    allowed.into_iter().chain(physical).min()
}

/// The least limit of a control group and those around it. *line* is of /proc/self/cgroup: `0::/path`, or `7:memory:/path` of version 1.
fn group_limit(line: &str, mount: &Path) -> Option<u64> {
    let mut fields = line.splitn(3, ':').skip(1);
    let (controllers, path) = (fields.next()?, fields.next()?);
    let (root, file) = match controllers {
        "" => (mount.to_owned(), "memory.max"),
        names if names.split(',').any(|name| name == "memory") => (mount.join("memory"), "memory.limit_in_bytes"),
        _ => return None,
    };
    Path::new(path.trim_start_matches('/'))
        .ancestors()
        // "max" is no number, and no limit.
        .filter_map(|group| std::fs::read_to_string(root.join(group).join(file)).ok()?.trim().parse().ok())
        .min()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::bootstrap::Bootstrap;

    const HEAP: &str = "type.googleapis.com/envoy.extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig";
    const CONNECTIONS: &str =
        "type.googleapis.com/envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig";

    /// As the bootstrap's `overload_manager`; what is wrong with it, one line for each.
    fn config(text: Value) -> Result<Config, String> {
        let bootstrap = serde_json::json!({"node": {"id": "n"}, "overload_manager": text});
        Bootstrap::compile(&bootstrap).map(|bootstrap| bootstrap.overload).map_err(|problems| problems.to_string())
    }

    fn names(actions: Actions) -> Vec<&'static str> {
        actions.iter().map(Action::name).collect()
    }

    #[test]
    fn pressure_rises_step_by_step_and_falls_with_a_margin() {
        let rules = Config::by_default().rules;
        let mut actions = Actions::default();
        for (memory, expected) in [
            (0.89, &[][..]),
            (0.90, &["stop_accepting_connections"]),
            (0.92, &["stop_accepting_connections", "disable_http_keepalive"]),
            (0.95, &["stop_accepting_connections", "disable_http_keepalive", "stop_accepting_requests"]),
            (
                0.99,
                &[
                    "stop_accepting_connections",
                    "disable_http_keepalive",
                    "stop_accepting_requests",
                    "stop_accepting_requests_of_high_priority",
                ],
            ),
            (0.935, &["stop_accepting_connections", "disable_http_keepalive", "stop_accepting_requests"]),
            (0.925, &["stop_accepting_connections", "disable_http_keepalive"]),
            (0.885, &["stop_accepting_connections"]),
            (0.87, &[]),
        ] {
            actions = judge(&rules, &Pressures { memory, connections: 0.5 }, actions);
            assert_eq!(names(actions), expected, "at {memory}");
        }
        let idle_clients_go = judge(&rules, &Pressures { memory: 0.1, connections: 0.95 }, actions);
        assert_eq!(names(idle_clients_go), ["disable_http_keepalive"]);
    }

    #[test]
    fn the_bootstrap_says_what_is_done_when() {
        let read = config(serde_json::json!({
            "refresh_interval": "0.5s",
            "resource_monitors": [
                {"name": FIXED_HEAP, "typed_config": {"@type": HEAP, "max_heap_size_bytes": "1048576"}},
                {"name": DOWNSTREAM_CONNECTIONS, "typed_config": {"@type": CONNECTIONS, "max_active_downstream_connections": 7}},
            ],
            "actions": [{"name": STOP_ACCEPTING_REQUESTS, "triggers": [{"name": FIXED_HEAP, "threshold": {"value": 0.8}}]}],
        }))
        .unwrap();
        assert_eq!((read.refresh, read.memory_bytes, read.connections), (Duration::from_millis(500), Some(1 << 20), 7));
        let rules: Vec<_> = read.rules.iter().map(|rule| (rule.action, rule.resource, rule.threshold)).collect();
        let memory = Resource::Memory;
        assert_eq!(
            rules,
            [(Action::StopAcceptingRequests, memory, 0.8), (Action::StopAcceptingHighPriority, memory, 0.9)]
        );
        assert_eq!(config(serde_json::json!({})).unwrap(), Config::by_default());
    }

    #[test]
    fn what_the_bootstrap_asks_for_in_vain_is_named() {
        let monitor = |name: &str, typed: Value| serde_json::json!({"resource_monitors": [{"name": name, "typed_config": typed}]});
        let action =
            |name: &str, trigger: Value| serde_json::json!({"actions": [{"name": name, "triggers": [trigger]}]});
        let threshold = serde_json::json!({"value": 0.5});
        let heap = |field: &str, value: u64| serde_json::json!({"@type": HEAP, field: value});
        for (text, expected) in [
            (
                monitor("envoy.resource_monitors.cpu", heap("max_heap_size_bytes", 1)),
                "resource_monitors[0].name: weft-proxy knows",
            ),
            (
                monitor(FIXED_HEAP, serde_json::json!({"@type": HEAP})),
                "[0].typed_config.max_heap_size_bytes: a number of at least 1 is needed",
            ),
            (monitor(FIXED_HEAP, heap("more", 2)), "[0].typed_config.more"),
            (
                monitor(DOWNSTREAM_CONNECTIONS, heap("max_heap_size_bytes", 1)),
                "[0].typed_config: expected envoy.extensions",
            ),
            (
                action(
                    "envoy.overload_actions.shrink_heap",
                    serde_json::json!({"name": FIXED_HEAP, "threshold": threshold}),
                ),
                "actions[0].name: weft-proxy knows",
            ),
            (
                action(STOP_ACCEPTING_REQUESTS, serde_json::json!({"name": "x", "threshold": threshold})),
                "triggers[0].name: there is no resource monitor",
            ),
            (
                action(STOP_ACCEPTING_REQUESTS, serde_json::json!({"name": FIXED_HEAP, "threshold": {"value": 95}})),
                "threshold.value: 95 is no share",
            ),
            (
                action(STOP_ACCEPTING_REQUESTS, serde_json::json!({"name": FIXED_HEAP, "scaled": {}})),
                "triggers[0].scaled",
            ),
            (
                action(STOP_ACCEPTING_REQUESTS, serde_json::json!({"name": FIXED_HEAP})),
                "triggers[0].threshold: required",
            ),
            (serde_json::json!({"refresh_interval": "often"}), "overload_manager.refresh_interval"),
            (serde_json::json!({"refresh_interval": "0s"}), "overload_manager.refresh_interval: must be more"),
            (serde_json::json!({"loadshed_points": [{"name": "x"}]}), "overload_manager.loadshed_points"),
        ] {
            let error = config(text).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn no_more_connections_are_admitted_than_there_may_be() {
        let overload = Overload::new(&Config { connections: 2, ..Config::by_default() });
        let (first, second) = (overload.admit(false), overload.admit(false));
        assert!(first.is_some() && second.is_some() && overload.admit(false).is_none());
        assert!(overload.admit(true).is_some());
        assert_eq!(overload.pressures().connections, 1.0);
        drop(first);
        assert!(overload.admit(false).is_some());
    }

    #[test]
    fn control_groups_limit_those_within() {
        let mount = std::env::temp_dir().join(format!("weft-cgroup-{}", std::process::id()));
        for (path, text) in [
            ("pod/memory.max", "3000\n"),
            ("pod/app/memory.max", "max\n"),
            ("memory/a/memory.limit_in_bytes", "9223372036854771712\n"),
            ("memory/memory.limit_in_bytes", "5000\n"),
        ] {
            std::fs::create_dir_all(mount.join(path).parent().unwrap()).unwrap();
            std::fs::write(mount.join(path), text).unwrap();
        }
        let found = ["0::/pod/app", "4:cpu,memory:/a", "4:memory:/elsewhere", "2:cpu:/pod", "nonsense"]
            .map(|line| group_limit(line, &mount));
        std::fs::remove_dir_all(&mount).unwrap();
        assert_eq!(found, [Some(3000), Some(5000), Some(5000), None, None]);
    }

    #[test]
    fn this_process_has_memory_and_a_limit() {
        let (own, limit) = (own_memory_bytes().unwrap(), memory_limit().unwrap());
        assert!(own > 1 << 16 && own < limit, "{own} of {limit}");
        assert!(connections_for(descriptor_limit()) > 1);
    }
}
