//! The admin socket: what a person, an agent or Prometheus may ask a proxy, over HTTP/1.1, one request a connection.
//!
//! It runs on the main thread and shares no code with the data path: nothing here may slow a request down.

use std::cell::RefCell;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Notify;
use tokio::task::spawn_local;
use weft_core::balance::Host;
use weft_core::endpoint::Health;

use crate::bootstrap::Place;
use crate::configure::Configurator;
use crate::metrics;
use crate::overload::{Action, Overload};
use crate::tls::san;
use crate::tls::secrets::Secret;
use crate::worker::Draining;

/// A question is a line and a few headers.
const HEAD_BYTES: usize = 16 << 10;
const HEADERS: usize = 64;
/// How long a question may take to arrive.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// Rest after a failure to accept.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// What the answers are made of.
pub struct Admin {
    pub configurator: Rc<RefCell<Configurator>>,
    pub metrics: Vec<Arc<metrics::Shared>>,
    pub overload: Arc<Overload>,
    pub started: Instant,
    /// `node.id` of the bootstrap.
    pub node: String,
    /// Set off by `POST /quitquitquit`.
    pub quit: Rc<Notify>,
}

/// A socket that listens for questions.
pub enum Socket {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Socket {
    /// Listen at *place*. A socket file that an earlier process left is replaced; ours is for its owner only.
    ///
    /// # Errors
    /// As the system reports, with the place in the message.
    pub async fn bind(place: &Place) -> io::Result<Socket> {
        let result = match place {
            Place::Unix(path) => bind_unix(path).map(Socket::Unix),
            Place::Tcp(address) => TcpListener::bind(address).await.map(Socket::Tcp),
        };
        result.map_err(|error| io::Error::new(error.kind(), format!("the admin socket {place:?}: {error}")))
    }
}

fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    match std::fs::symlink_metadata(path) {
        Ok(file) if file.file_type().is_socket() => std::fs::remove_file(path)?,
        // Anything else is not ours to remove; binding says that it is in the way.
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Answer for ever.
pub async fn serve(socket: Socket, admin: Rc<Admin>) {
    loop {
        let accepted = match &socket {
            Socket::Unix(listener) => {
                listener.accept().await.map(|(stream, _)| drop(spawn_local(answer(stream, Rc::clone(&admin)))))
            }
            Socket::Tcp(listener) => {
                listener.accept().await.map(|(stream, _)| drop(spawn_local(answer(stream, Rc::clone(&admin)))))
            }
        };
        if let Err(error) = accepted {
            eprintln!("weft-proxy: cannot accept on the admin socket: {error}");
            tokio::time::sleep(ACCEPT_REST).await;
        }
    }
}

async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin, admin: Rc<Admin>) {
    let head = tokio::time::timeout(HEAD_TIME, read_head(&mut stream)).await;
    let answer = match head {
        Ok(Ok(Some(question))) => admin.respond(&question),
        Ok(Ok(None)) => Answer::text(400, "not an HTTP request\n"),
        // Nobody is there to be told.
        Ok(Err(_)) | Err(_) => return,
    };
    let head = format!(
        "HTTP/1.1 {} {}\r\ncontent-type: {}\r\ncontent-length: {}\r\ncache-control: no-cache\r\nconnection: close\r\n\r\n",
        answer.status,
        reason(answer.status),
        answer.content_type,
        answer.body.len()
    );
    let _ = stream.write_all(&[head.as_bytes(), answer.body.as_bytes()].concat()).await;
    let _ = stream.shutdown().await;
    if answer.quits {
        admin.quit.notify_one();
    }
}

struct Question {
    method: String,
    path: String,
    /// What is behind `?`.
    query: String,
}

/// Read up to the end of the headers; `None` if it is not HTTP. Bodies are not read: no question has one.
async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Question>> {
    let mut text = Vec::new();
    loop {
        if stream.read_buf(&mut text).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut headers = [httparse::EMPTY_HEADER; HEADERS];
        let mut request = httparse::Request::new(&mut headers);
        match request.parse(&text) {
            Ok(httparse::Status::Complete(_)) => {
                let target = request.path.unwrap_or_default();
                let (path, query) = target.split_once('?').unwrap_or((target, ""));
                let method = request.method.unwrap_or_default().into();
                return Ok(Some(Question { method, path: path.into(), query: query.into() }));
            }
            Ok(httparse::Status::Partial) if text.len() < HEAD_BYTES => {}
            _ => return Ok(None),
        }
    }
}

struct Answer {
    status: u16,
    content_type: &'static str,
    body: String,
    quits: bool,
}

impl Answer {
    fn text(status: u16, body: impl Into<String>) -> Answer {
        Answer { status, content_type: "text/plain; charset=utf-8", body: body.into(), quits: false }
    }

    fn json(value: &Value) -> Answer {
        let body = format!("{value:#}\n");
        Answer { status: 200, content_type: "application/json", body, quits: false }
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        _ => "Service Unavailable",
    }
}

impl Admin {
    fn respond(&self, Question { method, path, query }: &Question) -> Answer {
        match (method.as_str(), path.as_str()) {
            ("GET" | "HEAD", "/ready") => self.ready(),
            ("GET", "/stats/prometheus" | "/stats") => Answer {
                status: 200,
                content_type: "text/plain; version=0.0.4; charset=utf-8",
                body: self.stats(),
                quits: false,
            },
            ("GET", "/config_dump") => Answer::json(&self.configurator.borrow().holdings.dump().into()),
            ("GET", "/clusters") => Answer::json(&self.clusters()),
            ("GET", "/certs") => Answer::json(&self.certificates()),
            ("GET", "/server_info") => Answer::json(&self.server_info()),
            ("POST", "/drain_listeners") => {
                let is_graceful = query.split('&').any(|it| it == "graceful");
                self.configurator.borrow_mut().drain(if is_graceful { Draining::Gracefully } else { Draining::Ending });
                Answer::text(200, "OK\n")
            }
            ("POST", "/quitquitquit") => Answer { quits: true, ..Answer::text(200, "OK\n") },
            (_, "/drain_listeners" | "/quitquitquit") => Answer::text(405, "this takes a POST\n"),
            ("GET", _) => Answer::text(404, HELP),
            _ => Answer::text(405, HELP),
        }
    }

    fn state(&self) -> &'static str {
        let configurator = self.configurator.borrow();
        match (configurator.is_draining(), configurator.holdings.is_live()) {
            (true, _) => "DRAINING",
            (false, true) => "LIVE",
            (false, false) => "PRE_INITIALIZING",
        }
    }

    fn ready(&self) -> Answer {
        let state = self.state();
        let mut text = format!("{state}\n");
        let actions = self.overload.actions();
        if !actions.is_empty() {
            // It serves those whom it has, so it is as ready as it was.
            let names: Vec<_> = actions.iter().map(Action::name).collect();
            text.push_str(&format!("OVERLOADED: {}\n", names.join(", ")));
        }
        Answer::text(if state == "LIVE" { 200 } else { 503 }, text)
    }

    fn stats(&self) -> String {
        let configurator = self.configurator.borrow();
        let flag = |on: bool| if on { 1.0 } else { 0.0 };
        let mut gauges = vec![
            ("envoy_server_uptime", "Seconds since the start.", self.started.elapsed().as_secs_f64().floor()),
            ("envoy_server_live", "Whether it serves and does not drain.", flag(!configurator.is_draining())),
            ("envoy_server_concurrency", "Worker threads.", self.metrics.len() as f64),
            (
                "envoy_control_plane_connected_state",
                "Whether the control plane is connected.",
                flag(configurator.ads_is_connected()),
            ),
            ("process_resident_memory_bytes", "Resident memory in bytes.", resident_bytes().unwrap_or(0) as f64),
        ];
        gauges.extend(self.overload.gauges());
        let mut text = metrics::render(&self.metrics, &gauges);
        configurator.followers.render(&mut text);
        configurator.checks.render(&mut text);
        text
    }

    fn clusters(&self) -> Value {
        let configurator = self.configurator.borrow();
        let cluster = |(name, upstream): (&Arc<str>, &Arc<crate::plan::Upstream>)| {
            let hosts = upstream.balancer.as_ref().map_or(&[][..], |balancer| balancer.hosts());
            json!({"name": **name, "endpoints": hosts.iter().map(|host| endpoint(host)).collect::<Vec<_>>()})
        };
        configurator.holdings.upstreams().map(cluster).collect()
    }

    fn certificates(&self) -> Value {
        let configurator = self.configurator.borrow();
        let mut secrets: Vec<_> = configurator.holdings.secrets().iter().collect();
        secrets.sort_by_key(|(name, _)| Arc::clone(name));
        let row = |(name, secret): (&Arc<str>, &Secret)| match secret {
            Secret::Identity(identity) => json!({
                "name": **name,
                "uri": identity.uri,
                "chain": identity.key.cert.iter().map(|it| certificate(it)).collect::<Vec<_>>(),
            }),
            Secret::Roots(roots) => json!({
                "name": **name,
                "roots": roots.certificates.iter().map(|it| certificate(it)).collect::<Vec<_>>(),
            }),
            Secret::TicketKeys(keys) => json!({"name": **name, "session_ticket_keys": keys.len()}),
        };
        secrets.into_iter().map(row).collect()
    }

    fn server_info(&self) -> Value {
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "state": self.state(),
            "node": self.node,
            "pid": std::process::id(),
            "uptime_seconds": self.started.elapsed().as_secs(),
            "concurrency": self.metrics.len(),
        })
    }
}

const HELP: &str = "\
GET  /ready              200 when the first listeners and clusters are at work; what is done under overload
GET  /stats/prometheus   metrics
GET  /config_dump        every resource: type_url, name, version, state, what of it is not applied
GET  /clusters           every endpoint: address, health, requests in progress
GET  /certs              certificates and roots
GET  /server_info        version, state, uptime
POST /drain_listeners    accept no more connections, and close those that are idle; ?graceful: only as clients are answered
POST /quitquitquit       drain and end
";

fn endpoint(host: &Host) -> Value {
    let health = match host.endpoint.health {
        Health::Healthy => "healthy",
        Health::Degraded => "degraded",
        Health::Unhealthy => "unhealthy",
    };
    let mut row = json!({
        "address": host.endpoint.address.to_string(),
        "hostname": *host.endpoint.hostname,
        "health": health,
        "ejected": host.is_ejected(),
        "active_requests": host.active(),
        "weight": host.endpoint.weight,
        "priority": host.priority,
    });
    if let Some(active) = host.active_health() {
        let flags = [
            ("failed_active_health_check", active.is_failed()),
            ("pending_active_hc", active.is_unchecked()),
            ("active_hc_timeout", active.is_timed_out()),
            ("failed_active_degraded_check", active.is_degraded()),
            ("excluded_via_immediate_hc_fail", active.is_excluded()),
            ("pending_dynamic_removal", host.leaving),
        ];
        for (name, flag) in flags {
            row[name] = flag.into();
        }
    }
    row
}

fn certificate(der: &[u8]) -> Value {
    let names = san::names(der);
    json!({"uris": names.uris, "dns": names.dns, "not_after": san::not_after(der)})
}

/// Memory that this process occupies.
fn resident_bytes() -> Option<u64> {
    // Fields of /proc/self/statm are in pages: total, resident, ... (proc(5)).
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split_ascii_whitespace().nth(1)?.parse().ok()?;
    // SAFETY: no pointers are involved.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    Some(pages * u64::try_from(page).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ask(request: &[u8]) -> io::Result<Option<Question>> {
        read_head(&mut &request[..]).await
    }

    #[tokio::test]
    async fn a_question_is_its_method_and_path() {
        let question = ask(b"POST /quit?now=1 HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap().unwrap();
        assert_eq!((question.method.as_str(), question.path.as_str()), ("POST", "/quit"));
    }

    #[tokio::test]
    async fn what_is_not_http_is_told_from_what_was_cut_off() {
        assert!(ask(b"\x16\x03\x01\x02\x00\x01").await.unwrap().is_none());
        assert!(ask(b"GET / HTTP/1.1\r\nhost").await.is_err());
        let long = [b"GET / HTTP/1.1\r\na: ".as_slice(), &[b'x'; HEAD_BYTES]].concat();
        assert!(ask(&long).await.unwrap().is_none());
    }

    #[test]
    fn this_process_occupies_memory() {
        assert!(resident_bytes().unwrap() > 1 << 20);
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_another_file_is_not() {
        let path = std::env::temp_dir().join(format!("weft-admin-{}.sock", std::process::id()));
        drop(bind_unix(&path).unwrap());
        drop(bind_unix(&path).unwrap());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "mine").unwrap();
        let refused = bind_unix(&path).is_err();
        std::fs::remove_file(&path).unwrap();
        assert!(refused);
    }
}
