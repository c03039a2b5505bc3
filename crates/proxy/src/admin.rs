//! The admin socket: what a person, an agent or Prometheus may ask a proxy, over HTTP/1.1, one request a connection. Paths, parameters and answers
//! are Envoy's where Envoy has them; a parameter that is not known is refused by name.
//!
//! It runs on the main thread and shares no code with the data path: nothing here may slow a request down.

use std::cell::RefCell;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use regex::Regex;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Notify;
use tokio::task::spawn_local;

use crate::bootstrap::Place;
use crate::configure::Configurator;
use crate::logging;
use crate::metrics;
use crate::metrics::snapshot::{self, Family};
use crate::overload::{Action, Overload};
use crate::worker::Draining;

mod answer;
mod clusters;
mod config_dump;
mod levels;
mod memory;
mod profiles;
mod question;
mod show;
mod stats;

use answer::Answer;
use question::{Method, Query, Question, QuestionError};

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

/// Who may ask may also end the process: nobody but its own user.
pub const SOCKET_MODE: u32 = 0o600;

fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    match std::fs::symlink_metadata(path) {
        Ok(file) if file.file_type().is_socket() => std::fs::remove_file(path)?,
        // Anything else is not ours to remove; binding says that it is in the way.
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(SOCKET_MODE))?;
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
            log::error!(target: logging::ADMIN, "cannot accept on the admin socket: {error}");
            tokio::time::sleep(ACCEPT_REST).await;
        }
    }
}

async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin, admin: Rc<Admin>) {
    let head = tokio::time::timeout(HEAD_TIME, read_head(&mut stream)).await;
    let (answer, is_head) = match head {
        Ok(Ok(Ok(question))) => {
            log::debug!(target: logging::ADMIN, "asked for {:?} {}", question.method, question.path);
            let is_head = question.method == Method::Head;
            (admin.respond(question).await, is_head)
        }
        Ok(Ok(Err(error))) => (Answer::refusal(error), false),
        // Nobody is there to be told.
        Ok(Err(_)) | Err(_) => return,
    };
    let _ = stream.write_all(&answer.encode(is_head)).await;
    let _ = stream.shutdown().await;
    if answer.quits {
        admin.quit.notify_one();
    }
}

/// Read up to the end of the headers.
async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Result<Question, QuestionError>> {
    let mut text = Vec::new();
    loop {
        if stream.read_buf(&mut text).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(parsed) = question::parse(&text).transpose() {
            return Ok(parsed);
        }
    }
}

/// Something that can be asked for.
struct Endpoint {
    /// GET (and HEAD), or POST.
    method: Method,
    path: &'static str,
    help: &'static str,
    parameters: &'static [Parameter],
    respond: Respond,
}

/// A name that may stand in the query, and what it does.
type Parameter = (&'static str, &'static str);

/// The answer; an error is one too, to a question that is no good.
type Response = Result<Answer, Answer>;

enum Respond {
    Now(fn(&Admin, &Query) -> Response),
    /// After a while.
    Later(fn(Query) -> Pin<Box<dyn Future<Output = Response>>>),
}

const FILTER: Parameter = ("filter", "a regular expression; only metrics whose name, with labels, it finds");
const USED_ONLY: Parameter = ("usedonly", "only what was counted since the start");

const ENDPOINTS: [Endpoint; 19] = [
    get("/", "this text", &[], |_, _| Ok(Answer::text(200, help()))),
    get("/certs", "certificates and roots", &[], |admin, _| Ok(Answer::json(&show::certificates(admin)))),
    get(
        "/clusters",
        "every endpoint: address, health, requests in progress; limits of clusters",
        &[("format", "text or json")],
        clusters::respond,
    ),
    get(
        "/config_dump",
        "every resource: type_url, name, version, state, what of it is not applied",
        &config_dump::PARAMETERS,
        config_dump::respond,
    ),
    Endpoint {
        method: Method::Post,
        path: "/cpuprofiler",
        help: "where time is spent from now on, as a compressed profile for `go tool pprof`",
        parameters: &profiles::CPU_PARAMETERS,
        respond: Respond::Later(|query| Box::pin(profiles::cpu(query))),
    },
    post(
        "/drain_listeners",
        "accept no more connections, and close those that are idle",
        &[("graceful", "close none, but as clients are answered")],
        |admin, query| {
            let how = if query.flag("graceful")? { Draining::Gracefully } else { Draining::Ending };
            admin.configurator.borrow_mut().drain(how);
            Ok(Answer::text(200, "OK\n"))
        },
    ),
    get("/heap_dump", "what was allocated since the heap profiler is on and is still there", &[], profiles::heap_dump),
    post("/heapprofiler", "sample what is allocated, and by whom", &profiles::HEAP_PARAMETERS, profiles::heap),
    get("/help", "this text", &[], |_, _| Ok(Answer::text(200, help()))),
    get(
        "/listeners",
        "every listener that is at work, and where it listens",
        &[("format", "text or json")],
        show::listeners,
    ),
    get("/logging", "the level of each component", &[], |_, _| Ok(levels::shown())),
    post("/logging", "change levels, and show them", &levels::PARAMETERS, levels::respond),
    get("/memory", "what is allocated, and what the system gave", &[], |_, _| Ok(memory::respond())),
    post("/quitquitquit", "drain and end", &[], |_, _| Ok(Answer { quits: true, ..Answer::text(200, "OK\n") })),
    get(
        "/ready",
        "200 when the first listeners and clusters are at work; what is done under overload",
        &[],
        |admin, _| Ok(admin.ready()),
    ),
    post("/reopen_logs", "open the files of access records anew", &[], |admin, _| {
        admin.configurator.borrow().reopen();
        Ok(Answer::text(200, "OK\n"))
    }),
    get("/server_info", "version, state, uptime", &[], |admin, _| Ok(Answer::json(&admin.server_info()))),
    get(
        "/stats",
        "what is counted",
        &[
            FILTER,
            ("format", "text, json or prometheus"),
            ("histogram_buckets", "summary, cumulative or disjoint"),
            ("type", "All, Counters, Gauges or Histograms"),
            USED_ONLY,
        ],
        |admin, query| stats::respond(admin.families(), query),
    ),
    get("/stats/prometheus", "the same for Prometheus", &[FILTER, USED_ONLY], |admin, query| {
        stats::respond_prometheus(admin.families(), query)
    }),
];

const fn get(
    path: &'static str,
    help: &'static str,
    parameters: &'static [Parameter],
    respond: fn(&Admin, &Query) -> Response,
) -> Endpoint {
    Endpoint { method: Method::Get, path, help, parameters, respond: Respond::Now(respond) }
}

const fn post(
    path: &'static str,
    help: &'static str,
    parameters: &'static [Parameter],
    respond: fn(&Admin, &Query) -> Response,
) -> Endpoint {
    Endpoint { method: Method::Post, path, help, parameters, respond: Respond::Now(respond) }
}

/// What there is to ask, in Envoy's words.
fn help() -> String {
    let mut text = String::from("admin commands are:\n");
    for Endpoint { method, path, help, parameters, .. } in &ENDPOINTS {
        let post = if *method == Method::Post { " (POST)" } else { "" };
        text += &format!("  {path}{post}: {help}\n");
        for (name, help) in *parameters {
            text += &format!("      {name}: {help}\n");
        }
    }
    text
}

/// The pattern that *name* gives.
fn filter(query: &Query, name: &str) -> Result<Option<Regex>, Answer> {
    let Some(pattern) = query.value(name)? else { return Ok(None) };
    Regex::new(pattern).map(Some).map_err(|error| Answer::refusal(format!("{name}={pattern}: {error}")))
}

impl Admin {
    async fn respond(&self, Question { method, path, query }: Question) -> Answer {
        let asked = if method == Method::Head { Method::Get } else { method };
        let of_path = || ENDPOINTS.iter().filter(|endpoint| endpoint.path == path);
        let Some(endpoint) = of_path().find(|endpoint| endpoint.method == asked) else {
            return match of_path().next() {
                Some(Endpoint { method: Method::Post, .. }) => Answer::text(405, "this takes a POST\n"),
                Some(_) => Answer::text(405, "this takes a GET\n"),
                None => Answer::text(404, format!("invalid path. {}", help())),
            };
        };
        let known = endpoint.parameters;
        if let Some(unknown) = query.names().find(|name| !known.iter().any(|(known, _)| known == name)) {
            let names: Vec<_> = known.iter().map(|(name, _)| *name).collect();
            let there_are =
                if names.is_empty() { "it takes none".into() } else { format!("there are {}", names.join(", ")) };
            return Answer::refusal(format!("{path} has no parameter `{unknown}`; {there_are}"));
        }
        let response = match endpoint.respond {
            Respond::Now(respond) => respond(self, &query),
            Respond::Later(respond) => respond(query).await,
        };
        response.unwrap_or_else(|refusal| refusal)
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

    /// Everything that is counted.
    fn families(&self) -> Vec<Family> {
        let configurator = self.configurator.borrow();
        let flag = |on: bool| if on { 1.0 } else { 0.0 };
        let mut families = snapshot::take(&self.metrics);
        let gauges = [
            ("envoy_server_uptime", "Seconds since the start.", self.started.elapsed().as_secs_f64().floor()),
            ("envoy_server_live", "Whether it serves and does not drain.", flag(!configurator.is_draining())),
            ("envoy_server_concurrency", "Worker threads.", self.metrics.len() as f64),
            (
                "envoy_control_plane_connected_state",
                "Whether the control plane is connected.",
                flag(configurator.ads_is_connected()),
            ),
            (
                "process_resident_memory_bytes",
                "Resident memory in bytes.",
                memory::resident_bytes().unwrap_or(0) as f64,
            ),
        ];
        families.extend(gauges.into_iter().chain(self.overload.gauges()).map(Family::gauge));
        let active = configurator.active();
        families.extend(configurator.followers.counts(|cluster| active.cluster_label(cluster)));
        families.extend(configurator.checks.counts(|cluster| active.cluster_label(cluster)));
        families.extend(active.remaining());
        families
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_question_may_come_in_pieces_and_must_come_whole() {
        let (mut client, mut server) = tokio::io::duplex(8);
        let reading = async {
            let question = read_head(&mut server).await.unwrap().unwrap();
            assert_eq!((question.method, question.path.as_str()), (Method::Get, "/ready"));
        };
        let writing = async { client.write_all(b"GET /ready HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap() };
        tokio::join!(reading, writing);
        assert!(read_head(&mut &b"GET / HTTP/1.1\r\nhost"[..]).await.is_err());
    }

    #[test]
    fn what_there_is_to_ask_is_told_once_and_in_order() {
        let paths: Vec<_> = ENDPOINTS.iter().map(|endpoint| (endpoint.path, endpoint.method == Method::Post)).collect();
        assert!(paths.is_sorted() && paths.windows(2).all(|pair| pair[0] != pair[1]), "{paths:?}");
        assert!(help().contains("\n  /logging (POST): change levels, and show them\n      level: "), "{}", help());
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
