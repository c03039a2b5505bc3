//! The client: one stream to one discovery server, kept open for ever; delta, or state of the world where the server knows no other.
//!
//! A proxy runs one of these for ADS and, where secrets come from another socket, a second one for SDS. [`client`] makes
//! a pair: a [`Task`], which the proxy runs on its event loop and which calls a [`Receiver`] with what arrives, and a
//! [`Client`], by which anybody (the receiver too) changes what is subscribed. The task never ends because the control
//! plane is away: that is normal, and it tries again. It is one async function on one thread; nothing in it needs
//! `Send` of the receiver.
//!
//! What it promises: resources are handed over in the order of the responses; what [`Receiver::update`] subscribes is
//! asked for before the response is acknowledged, so that the server knows what a cluster or listener led to when it
//! sees the ACK; after a loss the server of a delta stream is told what is already here, and only differences travel. A
//! stream of the state of the world begins with all of it.

use std::time::Duration;

use bytes::Bytes;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Method, Request, StatusCode};
use tokio::sync::mpsc;
use weft_protos::envoy::config::core::v3::Node;

use crate::backoff::Backoff;
use crate::connection::{self, Driver};
pub use crate::connection::{Address, OpenError};
use crate::grpc::{self, Deframer, FrameError};
use crate::refusal::Refusal;
use crate::{Protocol, Service, WILDCARD};

mod subscriptions;

use subscriptions::{Request as Asked, Subscriptions};

/// Receive windows; a whole mesh of resources must not stop at HTTP/2's default of 64 KiB.
const WINDOW_BYTES: u32 = 4 << 20;

/// Whom to follow, and who we are.
#[derive(Debug, Clone)]
pub struct Config {
    pub address: Address,
    pub service: Service,
    pub protocol: Protocol,
    /// Sent with the first request of each stream; `id` is what the control plane knows a proxy by.
    pub node: Node,
    pub backoff: Backoff,
}

/// One resource as the server sent it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resource {
    pub name: String,
    /// Other names that it may have been asked for by (virtual hosts).
    pub aliases: Vec<String>,
    pub version: String,
    /// The serialised message of the type that `Receiver::update` names.
    pub body: Bytes,
}

/// What is done with what arrives. Called on the task's own thread, one call at a time.
pub trait Receiver {
    /// Apply one response: `resources` are new or changed, `removed` are gone (or never existed, for a name that was
    /// subscribed).
    ///
    /// # Errors
    /// The resources that cannot be honoured. All others of the response must have been applied; the server is told
    /// which ones were not, and the last good version of those stays in force.
    fn update(&mut self, type_url: &str, resources: Vec<Resource>, removed: Vec<String>) -> Result<(), Vec<Refusal>>;

    /// A stream is open and the subscriptions have been sent.
    fn connected(&mut self) {}

    /// The stream is lost, or an attempt failed; the next attempt follows after `retry`.
    fn disconnected(&mut self, error: &Error, retry: Duration) {
        let _ = (error, retry);
    }
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("HTTP/2: {0}")]
    Http(#[from] h2::Error),
    #[error("the server answers with HTTP status {0}")]
    Status(StatusCode),
    #[error("the server ends the stream: grpc-status {code}, {message:?}")]
    Ended { code: String, message: String },
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("every Client was dropped")]
    Abandoned,
}

enum Command {
    Subscribe(String, Vec<String>),
    Unsubscribe(String, Vec<String>),
}

/// Changes what is subscribed. Cheap to clone; when the last one is dropped, the task ends.
#[derive(Debug, Clone)]
pub struct Client {
    commands: mpsc::UnboundedSender<Command>,
}

impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Command::Subscribe(type_url, names) => write!(f, "subscribe {type_url} {names:?}"),
            Command::Unsubscribe(type_url, names) => write!(f, "unsubscribe {type_url} {names:?}"),
        }
    }
}

impl Client {
    /// Ask for every resource of a type (LDS, CDS).
    pub fn subscribe_all(&self, type_url: &str) {
        self.subscribe(type_url, [WILDCARD]);
    }

    /// Ask for resources by name (RDS, EDS, SDS). Names that are already subscribed are not asked for again. Without any name
    /// the server learns that there may be some (VHDS), and may send what it thinks is needed.
    pub fn subscribe<N: Into<String>>(&self, type_url: &str, names: impl IntoIterator<Item = N>) {
        let names = names.into_iter().map(Into::into).collect();
        // The task is gone only if its owner dropped it; then there is nobody left to tell.
        let _ = self.commands.send(Command::Subscribe(type_url.into(), names));
    }

    /// No longer follow these names. The server does not confirm it, so drop the resources without waiting.
    pub fn unsubscribe<N: Into<String>>(&self, type_url: &str, names: impl IntoIterator<Item = N>) {
        let names = names.into_iter().map(Into::into).collect();
        let _ = self.commands.send(Command::Unsubscribe(type_url.into(), names));
    }
}

/// Keeps the stream; see [`Task::run`].
#[derive(Debug)]
pub struct Task {
    config: Config,
    commands: mpsc::UnboundedReceiver<Command>,
    subscriptions: Subscriptions,
}

/// Make a client. Nothing happens until [`Task::run`] is polled.
pub fn client(config: Config) -> (Client, Task) {
    let (sender, commands) = mpsc::unbounded_channel();
    let subscriptions = Subscriptions::new(config.protocol);
    (Client { commands: sender }, Task { config, commands, subscriptions })
}

impl Task {
    /// Say before the start what is already here (the last good configuration, read from disk), so that the server
    /// sends only what differs. The names count as subscribed only once somebody subscribes to them.
    pub fn resume(&mut self, type_url: &str, versions: impl IntoIterator<Item = (String, String)>) {
        self.subscriptions.resume(type_url, versions);
    }

    /// Connect, subscribe, receive, and begin again when the stream is lost. Returns when the last [`Client`] is
    /// dropped. Must run within a tokio runtime with I/O and time; dropping the future closes the connection.
    pub async fn run(mut self, receiver: &mut impl Receiver) {
        loop {
            let error = match self.stream(receiver).await {
                Err(Error::Abandoned) => return,
                Err(error) => error,
                Ok(never) => match never {},
            };
            let pause = self.config.backoff.pause();
            receiver.disconnected(&error, pause);
            let wake = tokio::time::sleep(pause);
            tokio::pin!(wake);
            loop {
                tokio::select! {
                    () = &mut wake => break,
                    command = self.commands.recv() => match command {
                        Some(command) => self.subscriptions.apply(command),
                        None => return,
                    },
                }
            }
        }
    }

    /// One stream from its beginning to its end.
    async fn stream(&mut self, receiver: &mut impl Receiver) -> Result<std::convert::Infallible, Error> {
        let mut stream = Stream::open(&self.config).await?;
        while let Ok(command) = self.commands.try_recv() {
            self.subscriptions.apply(command);
        }
        let mut node = Some(self.config.node.clone());
        for request in self.subscriptions.first_requests() {
            stream.send(request, &mut node)?;
        }
        receiver.connected();
        loop {
            tokio::select! {
                // What arrived is applied before new commands are read: an update leads to commands.
                biased;
                response = stream.receive() => {
                    let response = self.config.protocol.decode(response?)?;
                    self.config.backoff.reset();
                    let Some(verdict) = self.subscriptions.receive(response, receiver) else { continue };
                    self.send_changes(&mut stream, &mut node)?;
                    stream.send(self.subscriptions.answer(verdict), &mut node)?;
                    // Of the state of the world, what had to wait for the answer.
                    self.send_changes(&mut stream, &mut node)?;
                }
                command = self.commands.recv() => {
                    self.subscriptions.apply(command.ok_or(Error::Abandoned)?);
                    self.send_changes(&mut stream, &mut node)?;
                }
            }
        }
    }

    /// Gather the commands that are waiting, and send one request for each type that they change.
    fn send_changes(&mut self, stream: &mut Stream, node: &mut Option<Node>) -> Result<(), Error> {
        while let Ok(command) = self.commands.try_recv() {
            self.subscriptions.apply(command);
        }
        for request in self.subscriptions.changes() {
            stream.send(request, node)?;
        }
        Ok(())
    }
}

/// An open gRPC stream.
struct Stream {
    requests: SendStream<Bytes>,
    responses: Responses,
    deframer: Deframer,
    _driver: Driver,
}

enum Responses {
    /// The response's headers may come only with the first message.
    Waiting(h2::client::ResponseFuture),
    Streaming(RecvStream),
}

impl Stream {
    async fn open(config: &Config) -> Result<Self, Error> {
        let (mut sender, driver) = connection::open(&config.address, WINDOW_BYTES).await?;
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("http://xds{}", config.service.path(config.protocol)))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .expect("every part is a constant");
        let (response, requests) = sender.send_request(request, false)?;
        let responses = Responses::Waiting(response);
        Ok(Self { requests, responses, deframer: Deframer::default(), _driver: driver })
    }

    /// Queue a request. Requests are small, and at most one answers each response, so the queue is bounded by what the
    /// server sends and what we subscribe.
    fn send(&mut self, mut request: Asked, node: &mut Option<Node>) -> Result<(), Error> {
        let frame = match &mut request {
            Asked::Delta(request) => {
                request.node = node.take();
                grpc::frame(request)
            }
            Asked::World(request) => {
                request.node = node.take();
                grpc::frame(request)
            }
        };
        Ok(self.requests.send_data(frame, false)?)
    }

    /// The next response, serialised. Cancel-safe: what has arrived is kept.
    async fn receive(&mut self) -> Result<Bytes, Error> {
        loop {
            if let Some(message) = self.deframer.next()? {
                return Ok(message);
            }
            match &mut self.responses {
                Responses::Waiting(response) => {
                    let response = response.await?;
                    if response.status() != StatusCode::OK {
                        return Err(Error::Status(response.status()));
                    }
                    // "Trailers-Only": the status is already in the headers.
                    if response.headers().contains_key("grpc-status") {
                        return Err(ended(response.headers()));
                    }
                    self.responses = Responses::Streaming(response.into_body());
                }
                Responses::Streaming(body) => match body.data().await {
                    Some(data) => {
                        let data = data?;
                        self.deframer.push(&data);
                        body.flow_control().release_capacity(data.len())?;
                    }
                    None => {
                        self.deframer.finish()?;
                        return Err(ended(&body.trailers().await?.unwrap_or_default()));
                    }
                },
            }
        }
    }
}

/// The error that a stream's trailers tell.
fn ended(trailers: &HeaderMap) -> Error {
    let text =
        |name| trailers.get(name).map_or(String::new(), |it| String::from_utf8_lossy(it.as_bytes()).into_owned());
    Error::Ended { code: text("grpc-status"), message: text("grpc-message") }
}
