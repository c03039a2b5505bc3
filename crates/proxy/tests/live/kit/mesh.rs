//! One running proxy and its control plane.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use weft_xds::server::{Event, Options, Server};

use super::peer::queued_bytes;
use super::{Directory, LIMIT, Peer, Setup, content, free_address, until};

/// The view that every stream sees.
const VIEW: &str = "proxy";

/// Many times what the buffers of two sockets may grow to.
pub const BACK_PRESSURE_BYTES: usize = 64 << 20;

/// A proxy, started and configured.
pub struct Mesh {
    pub address: SocketAddr,
    pub setup: Setup,
    /// Where the bootstrap says that connections come from.
    pub source: Option<IpAddr>,
    /// `overload_manager` of the bootstrap.
    pub overload: Option<Value>,
    server: Option<Server>,
    revision: u64,
    /// All that was reported so far.
    pub events: Vec<Event>,
    child: Option<Child>,
    directory: Directory,
}

impl Mesh {
    /// Start a proxy whose only listener leads to *endpoints*, once *change* has had its way with that.
    #[track_caller]
    pub fn start(endpoints: &[SocketAddr], change: impl FnOnce(&mut Setup)) -> Mesh {
        Mesh::start_with(endpoints, &[], change)
    }

    /// The same with these arguments of the command line.
    #[track_caller]
    pub fn start_with(endpoints: &[SocketAddr], arguments: &[&str], change: impl FnOnce(&mut Setup)) -> Mesh {
        let mut mesh = Mesh::prepare(endpoints);
        change(&mut mesh.setup);
        mesh.serve();
        mesh.run(arguments);
        mesh.publish();
        mesh.wait_ready();
        mesh
    }

    /// Everything but the processes.
    pub fn prepare(endpoints: &[SocketAddr]) -> Mesh {
        let directory = Directory::new();
        let address = free_address();
        let setup = Setup::new(address, endpoints, &directory.path().join("access.log"));
        Mesh {
            address,
            setup,
            source: None,
            overload: None,
            server: None,
            revision: 0,
            events: Vec::new(),
            child: None,
            directory,
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Start the control plane.
    pub fn serve(&mut self) {
        self.server = Some(Server::bind(&self.path("xds.sock"), Options::default()).unwrap());
    }

    /// End the control plane.
    pub fn stop_serving(&mut self) {
        self.server = None;
    }

    /// Start the proxy, which need not be ready when this returns.
    pub fn run(&mut self, arguments: &[&str]) {
        let bootstrap = self.bootstrap();
        self.run_with(&bootstrap.to_string(), arguments);
    }

    /// The bootstrap of a proxy that follows this control plane.
    pub fn bootstrap(&self) -> Value {
        let pipe = |name: &str| json!({"pipe": {"path": self.path(name)}});
        let cluster = |name: &str| {
            json!({"name": name, "load_assignment": {"endpoints": [{"lb_endpoints": [
                {"endpoint": {"address": pipe("xds.sock")}}]}]}})
        };
        let mut bootstrap = json!({
            "node": {"id": "sidecar~127.0.0.1~web-v1-0.default~default.svc.cluster.local", "cluster": "web.default",
                "metadata": {"NAME": "web-v1-0", "NAMESPACE": "default", "SERVICE_ACCOUNT": "web",
                    "WORKLOAD_NAME": "web-v1", "MESH_ID": "cluster.local", "CLUSTER_ID": "here",
                    "LABELS": {"app": "web", "version": "v1"}}},
            "admin": {"address": pipe("admin.sock")},
            "static_resources": {"clusters": [cluster("xds-grpc"), cluster("sds-grpc")]},
            "dynamic_resources": {"ads_config": {"api_type": "DELTA_GRPC", "transport_api_version": "V3",
                "grpc_services": [{"envoy_grpc": {"cluster_name": "xds-grpc"}}]},
                "lds_config": {"ads": {}}, "cds_config": {"ads": {}}},
        });
        if let Some(source) = self.source {
            let address = json!({"address": source, "port_value": 0});
            bootstrap["cluster_manager"] = json!({"upstream_bind_config": {"source_address": address}});
        }
        if let Some(overload) = &self.overload {
            bootstrap["overload_manager"] = overload.clone();
        }
        bootstrap
    }

    /// Start the proxy with another bootstrap, JSON or YAML.
    pub fn run_with(&mut self, bootstrap: &str, arguments: &[&str]) {
        std::fs::write(self.path("bootstrap.json"), bootstrap).unwrap();
        let log = File::options().create(true).append(true).open(self.path("proxy.log")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_weft-proxy"));
        command.arg("-c").arg(self.path("bootstrap.json")).args(arguments).stderr(log);
        // SAFETY: prctl is async-signal-safe. A test that is killed takes its proxy with it.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        self.child = Some(command.spawn().unwrap());
    }

    /// Publish the setup as it is now, and wait until the proxy has answered to all of it.
    #[track_caller]
    pub fn publish(&mut self) {
        let revision = self.offer();
        self.wait_event(
            "the proxy's acknowledgement",
            |event| matches!(event, Event::Synced { revision: synced, .. } if *synced == revision),
        );
    }

    /// Publish the setup and wait for nobody; returns the revision.
    pub fn offer(&mut self) -> u64 {
        self.revision += 1;
        self.server.as_ref().expect("the control plane runs").publish(VIEW, self.revision, self.setup.resources());
        self.revision
    }

    /// Change the setup and publish it.
    #[track_caller]
    pub fn change(&mut self, change: impl FnOnce(&mut Setup)) {
        change(&mut self.setup);
        self.publish();
    }

    /// Wait for an event, attaching streams as they come; events of before count too.
    #[track_caller]
    pub fn wait_event(&mut self, what: &str, wanted: impl Fn(&Event) -> bool) -> Event {
        let end = Instant::now() + LIMIT;
        let mut looked = 0;
        loop {
            let server = self.server.as_ref().expect("the control plane runs");
            for event in server.events() {
                if let Event::Connected { stream, .. } = &event {
                    server.attach(*stream, VIEW);
                }
                self.events.push(event);
            }
            if let Some(event) = self.events[looked..].iter().find(|event| wanted(event)) {
                return event.clone();
            }
            looked = self.events.len();
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "waited in vain for {what}; {:?}", self.events);
            let mut poll = libc::pollfd { fd: server.signal().as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: `poll` is one live pollfd, and its descriptor is open.
            unsafe { libc::poll(&mut poll, 1, left.as_millis() as i32) };
        }
    }

    /// Attach whoever has connected by now.
    pub fn pump(&mut self) {
        let Some(server) = &self.server else { return };
        for event in server.events() {
            if let Event::Connected { stream, .. } = &event {
                server.attach(*stream, VIEW);
            }
            self.events.push(event);
        }
    }

    #[track_caller]
    pub fn wait_ready(&mut self) {
        until("the proxy is ready", || {
            self.pump();
            self.try_admin("GET", "/ready").filter(|(status, _)| *status == 200)
        });
    }

    pub fn try_admin(&self, method: &str, path: &str) -> Option<(u16, String)> {
        let (head, body) = self.ask_admin(method, path)?;
        Some((head.split(' ').nth(1)?.parse().ok()?, String::from_utf8(body).ok()?))
    }

    /// The head and the body of the answer.
    pub fn ask_admin(&self, method: &str, path: &str) -> Option<(String, Vec<u8>)> {
        let mut stream = UnixStream::connect(self.path("admin.sock")).ok()?;
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        write!(stream, "{method} {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n").ok()?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).ok()?;
        let end = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
        let body = answer.split_off(end + 4);
        Some((String::from_utf8(answer).ok()?, body))
    }

    #[track_caller]
    pub fn admin(&self, method: &str, path: &str) -> String {
        let (status, body) = self.try_admin(method, path).expect("the admin socket answers");
        assert_eq!(status, 200, "{method} {path}: {body}");
        body
    }

    /// What is in a list of `/config_dump`, such as `dynamic_active_clusters`; further parameters may follow its name.
    #[track_caller]
    pub fn dump(&self, list: &str) -> Vec<Value> {
        let mut dump: Value =
            serde_json::from_str(&self.admin("GET", &format!("/config_dump?resource={list}"))).unwrap();
        let Value::Array(items) = dump["configs"].take() else { panic!("{dump}") };
        items
    }

    /// The sum of the samples of *name* whose labels contain all of *labels*.
    pub fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let text = self.admin("GET", "/stats/prometheus");
        let samples = text.lines().filter(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
                && labels.iter().all(|label| line.contains(label))
        });
        samples.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    }

    /// The endpoints of the cluster that the setup has, as `/clusters` shows them; `address` as text, and flags of health, which are not
    /// there where they do not hold, `null`.
    pub fn endpoints(&self) -> Vec<Value> {
        let clusters: Value = serde_json::from_str(&self.admin("GET", "/clusters?format=json")).unwrap();
        let statuses = clusters["cluster_statuses"].as_array().unwrap();
        let found = statuses.iter().find(|it| it["name"] == *self.setup.cluster.name);
        let mut hosts = found.and_then(|it| it["host_statuses"].as_array().cloned()).unwrap_or_default();
        for host in &mut hosts {
            let at = &host["address"]["socket_address"];
            let ip: IpAddr = at["address"].as_str().unwrap().parse().unwrap();
            host["address"] = SocketAddr::new(ip, at["port_value"].as_u64().unwrap() as u16).to_string().into();
            host["health"] = host["health_status"].take();
        }
        hosts
    }

    pub fn client(&self) -> Peer {
        Peer::connect(self.address)
    }

    /// The records so far.
    pub fn records(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.path("access.log")).unwrap_or_default();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}"))).collect()
    }

    /// Wait until there are *count* records.
    #[track_caller]
    pub fn wait_records(&self, count: usize) -> Vec<Value> {
        until("records are written", || Some(self.records()).filter(|records| records.len() >= count))
    }

    /// The record of the one request for *path*.
    #[track_caller]
    pub fn record(&self, path: &str) -> Value {
        until("the record is written", || self.records().into_iter().find(|record| record["path"] == path))
    }

    /// The first record has this status, these flags and these details.
    #[track_caller]
    pub fn expect_record(&self, path: &str, status: u16, flags: &str, details: &str) -> Value {
        let record = self.record(path);
        let seen = (&record["response_code"], &record["response_flags"], &record["response_code_details"]);
        assert_eq!(seen, (&json!(status), &json!(flags), &json!(details)), "{record}");
        record
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the proxy runs").id()
    }

    pub fn signal(&self, signal: i32) {
        // SAFETY: the child was not waited for, so its pid is its own.
        unsafe { libc::kill(self.pid() as i32, signal) };
    }

    /// Wait for the proxy's own end.
    #[track_caller]
    pub fn wait_exit(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("the proxy runs");
        until("the proxy ends", || child.try_wait().unwrap())
    }

    /// Resident memory of the proxy.
    pub fn resident_bytes(&self) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/statm", self.pid())).unwrap();
        text.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
    }

    /// The most that was resident at once.
    pub fn peak_resident_bytes(&self) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// Have *writer* send far more than what lies between it and *reader* can hold, who does not read at first: the proxy's memory stays
    /// as it is, and then all of it arrives.
    #[track_caller]
    pub fn expect_back_pressure(&self, writer: &mut Peer, reader: &mut Peer) {
        let before = self.resident_bytes();
        let sent = content(BACK_PRESSURE_BYTES);
        std::thread::scope(|scope| {
            let sender = scope.spawn(|| writer.send(&sent));
            let begin = reader.take(1);
            // The sender is stuck: what it sent fills the sockets' buffers and no more, so its writes stand still.
            let mut last = (0, Instant::now());
            until("the transfer stands still", || {
                let queued = queued_bytes(reader.socket());
                if queued != last.0 {
                    last = (queued, Instant::now());
                }
                (last.1.elapsed() > Duration::from_millis(100)).then_some(())
            });
            assert!(!sender.is_finished());
            let grown = self.resident_bytes().saturating_sub(before);
            assert!(grown < 4 << 20, "{grown} bytes more");
            let rest = reader.take(sent.len() - 1);
            assert!([begin, rest].concat() == sent, "it is not what was sent");
            sender.join().unwrap();
        });
    }

    /// What the proxy said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("proxy.log")).unwrap_or_default()
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("the proxy said:\n{}the records are:", self.log());
            eprintln!("{}", std::fs::read_to_string(self.path("access.log")).unwrap_or_default());
        }
    }
}

/// At least this much has passed since *since*.
#[track_caller]
pub fn expect_passed(since: Instant, least: Duration) {
    let passed = since.elapsed();
    assert!(passed >= least, "{passed:?} is less than {least:?}");
}
