//! The stream core's I/O: a Unix socket, HTTP/2, one task for each stream around a [`Session`].
//!
//! Nothing a peer sends ends more than its own connection. A known gap: gRPC's C core names the socket's path as
//! `:authority`, percent-encoded, and `h2` answers RST_STREAM (hyperium/h2 #487); such clients must set
//! `grpc.default_authority`. Envoy and our own client send a plain name.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use prost::Message;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};
use weft_protos::envoy::config::core::v3::Node;
use weft_protos::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use weft_protos::type_url;

use crate::Service;
use crate::grpc::{Deframer, FrameError, code};
use crate::rope::Rope;
use crate::server::session::{Report, RequestError, Session, Variant};
use crate::server::socket::{self, trailers};
use crate::server::view::{Published, View, Views};

/// A peer that connects and says nothing is not kept longer than this.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// A client has one or two streams; this leaves room for one that opens the next before the last is closed.
const MAX_STREAMS: u32 = 16;
/// HTTP/2's default window of 64 KiB would make a reconnecting client's first request, with all its versions, slow.
const WINDOW_BYTES: u32 = 1 << 20;
/// Of all request headers together.
const MAX_HEADER_BYTES: u32 = 16 << 10;

/// What differs between uses.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long listeners wait for a client to subscribe to endpoints of clusters that it has accepted, and a revision
    /// for the first subscription of a type that the view has. It ends waiting for clients that never do.
    pub patience: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { patience: Duration::from_secs(5) }
    }
}

/// What happened on the streams, in order.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A stream's first request has come. It sees nothing until it is attached to a view.
    Connected { stream: u64, node: Box<Node>, peer_pid: Option<i32> },
    /// Nothing of this revision is left to send to this stream or to wait for. What was refused was reported before.
    Synced { stream: u64, view: String, revision: u64 },
    /// The client will not have this version, and it is not sent again. An empty name: a response that held nothing but
    /// removals.
    Refused { stream: u64, view: String, type_url: String, name: String, version: String, message: String },
    /// The stream is over.
    Closed { stream: u64 },
}

/// A running stream core. Dropping it ends all streams and removes the socket.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    path: PathBuf,
    /// Device and inode of our socket: a file that someone else has put there since is not ours to remove.
    socket: (u64, u64),
    readable: std::os::unix::net::UnixStream,
    shutdown: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    /// A copy in a forked child has no thread to end, and the socket is its parent's.
    pid: u32,
}

type Showing = watch::Sender<Option<Arc<View>>>;
type Shown = watch::Receiver<Option<Arc<View>>>;

#[derive(Debug)]
struct Shared {
    options: Options,
    catalogue: Mutex<Catalogue>,
    /// Streams that can be attached.
    streams: Mutex<HashMap<u64, mpsc::UnboundedSender<Shown>>>,
    events: Mutex<Events>,
    ids: AtomicU64,
}

#[derive(Debug, Default)]
struct Catalogue {
    views: Views,
    showing: HashMap<String, Showing>,
}

#[derive(Debug)]
struct Events {
    queue: VecDeque<Event>,
    /// Holds one byte while the queue is not empty.
    signal: std::os::unix::net::UnixStream,
}

/// Nothing panics while it holds one of these locks; if it did, the data would still be whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Server {
    /// Listen on a Unix socket at `path`, mode 0600, and serve from a thread of its own.
    ///
    /// # Errors
    /// The socket cannot be made, or another process is listening there (`AddrInUse`). A socket that a killed process
    /// left behind is replaced.
    pub fn bind(path: &Path, options: Options) -> io::Result<Self> {
        let listener = socket::bind(path)?;
        let metadata = std::fs::metadata(path)?;
        let (readable, signal) = std::os::unix::net::UnixStream::pair()?;
        readable.set_nonblocking(true)?;
        signal.set_nonblocking(true)?;
        let shared = Arc::new(Shared {
            options,
            catalogue: Mutex::default(),
            streams: Mutex::default(),
            events: Mutex::new(Events { queue: VecDeque::new(), signal }),
            ids: AtomicU64::new(1),
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (shutdown, ended) = oneshot::channel();
        let serving = shared.clone();
        let thread = std::thread::Builder::new().name("weft-xds".into()).spawn(move || {
            // When this returns, the runtime and with it every connection is dropped.
            runtime.block_on(async {
                tokio::select! {
                    () = accept(listener, serving) => {}
                    _ = ended => {}
                }
            });
        })?;
        let socket = (metadata.dev(), metadata.ino());
        let (shutdown, thread) = (Some(shutdown), Some(thread));
        Ok(Self { shared, path: path.into(), socket, readable, shutdown, thread, pid: std::process::id() })
    }

    /// Replace the whole content of a view. Streams that are behind skip to the newest.
    pub fn publish(&self, view: &str, revision: u64, resources: Vec<Published>) {
        let mut catalogue = lock(&self.shared.catalogue);
        let published = catalogue.views.publish(view, revision, resources);
        catalogue.showing(view).send_replace(Some(published));
    }

    /// Show nothing more under this name. Clients keep what they have.
    pub fn withdraw(&self, view: &str) {
        let mut catalogue = lock(&self.shared.catalogue);
        catalogue.views.withdraw(view);
        if let Some(showing) = catalogue.showing.get(view) {
            showing.send_replace(None);
            if showing.is_closed() {
                catalogue.showing.remove(view);
            }
        }
    }

    /// Let a stream see a view, which may be published later. A stream that is closed already is none.
    pub fn attach(&self, stream: u64, view: &str) {
        let shown = lock(&self.shared.catalogue).showing(view).subscribe();
        if let Some(attach) = lock(&self.shared.streams).get(&stream) {
            // The stream may end at this very moment.
            let _ = attach.send(shown);
        }
    }

    /// Take what has happened since the last call.
    pub fn events(&self) -> Vec<Event> {
        let mut events = lock(&self.shared.events);
        // The byte goes under the same lock as the events, so none of them is left without its byte.
        let _ = (&self.readable).read(&mut [0; 8]);
        events.queue.drain(..).collect()
    }

    /// Readable while there are events.
    pub fn signal(&self) -> BorrowedFd<'_> {
        self.readable.as_fd()
    }

    /// End all streams, end the thread, remove the socket. Further calls do nothing.
    pub fn close(&mut self) {
        if self.pid != std::process::id() {
            std::mem::forget((self.shutdown.take(), self.thread.take()));
            return;
        }
        self.shutdown = None;
        if let Some(thread) = self.thread.take() {
            // A panic there was printed when it happened; there is nothing more to do about it here.
            let _ = thread.join();
            let ours = std::fs::metadata(&self.path).is_ok_and(|it| (it.dev(), it.ino()) == self.socket);
            if ours {
                let _ = std::fs::remove_file(&self.path);
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.close();
    }
}

impl Catalogue {
    fn showing(&mut self, view: &str) -> &Showing {
        if !self.showing.contains_key(view) {
            self.showing.insert(view.to_owned(), watch::channel(None).0);
        }
        &self.showing[view]
    }
}

impl Shared {
    fn tell(&self, event: Event) {
        let mut events = lock(&self.events);
        if events.queue.is_empty() {
            // Cannot fill up: the byte before was taken with the events before.
            let _ = events.signal.write(&[1]);
        }
        events.queue.push_back(event);
    }
}

async fn accept(listener: std::os::unix::net::UnixListener, shared: Arc<Shared>) {
    let listener = UnixListener::from_std(listener).expect("the listener is non-blocking, within a runtime");
    loop {
        match listener.accept().await {
            Ok((socket, _)) => drop(tokio::spawn(serve_connection(socket, shared.clone()))),
            // Out of descriptors, say: wait until some are free rather than spin.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn serve_connection(socket: UnixStream, shared: Arc<Shared>) {
    let peer_pid = socket.peer_cred().ok().and_then(|it| it.pid());
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADER_BYTES);
    let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, builder.handshake::<_, Rope>(socket)).await;
    let Ok(Ok(mut connection)) = handshake else { return };
    // An error ends the connection, and with it its streams, which report it as their end.
    while let Some(Ok((request, respond))) = connection.accept().await {
        tokio::spawn(serve_request(request, respond, peer_pid, shared.clone()));
    }
}

/// Find out what is asked for, and refuse what is no stream of ours (PROTOCOL-HTTP2.md, "Responses").
async fn serve_request(
    request: Request<RecvStream>,
    mut respond: SendResponse<Rope>,
    peer_pid: Option<i32>,
    shared: Arc<Shared>,
) {
    let content_type = request.headers().get("content-type").map(HeaderValue::as_bytes).unwrap_or_default();
    let response = |status: StatusCode| {
        let mut response = Response::new(());
        *response.status_mut() = status;
        response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        response
    };
    if request.method() != Method::POST {
        let _ = respond.send_response(response(StatusCode::METHOD_NOT_ALLOWED), true);
        return;
    }
    if !content_type.starts_with(b"application/grpc") {
        let _ = respond.send_response(response(StatusCode::UNSUPPORTED_MEDIA_TYPE), true);
        return;
    }
    let Some((service, variant)) = method(request.uri().path()) else {
        let mut response = response(StatusCode::OK);
        response.headers_mut().extend(trailers(code::UNIMPLEMENTED, "no such method"));
        let _ = respond.send_response(response, true);
        return;
    };
    let Ok(responses) = respond.send_response(response(StatusCode::OK), false) else { return };
    let stream = shared.ids.fetch_add(1, Ordering::Relaxed);
    let (attach, attached) = mpsc::unbounded_channel();
    lock(&shared.streams).insert(stream, attach);
    let mut stream = Stream {
        id: stream,
        service,
        variant,
        peer_pid,
        requests: request.into_body(),
        deframer: Deframer::default(),
        responses,
        session: Session::new(variant, shared.options.patience),
        attached,
        connected: false,
        shared,
    };
    if let Err(error) = stream.serve().await {
        let status = trailers(error.code(), &error.to_string());
        let _ = stream.responses.send_trailers(status);
    }
}

/// The streams that are served.
fn method(path: &str) -> Option<(Service, Variant)> {
    [Service::Aggregated, Service::Secrets].into_iter().find_map(|service| match path {
        _ if path == service.delta_path() => Some((service, Variant::Delta)),
        _ if path == service.state_of_the_world_path() => Some((service, Variant::StateOfTheWorld)),
        _ => None,
    })
}

/// Why a stream ended before its client wanted it.
#[derive(Debug, thiserror::Error)]
enum StreamError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error("HTTP/2: {0}")]
    Http(#[from] h2::Error),
}

impl StreamError {
    fn code(&self) -> i32 {
        match self {
            StreamError::Frame(_) | StreamError::Request(_) => code::INVALID_ARGUMENT,
            StreamError::Http(_) => code::INTERNAL,
        }
    }
}

/// One stream: its half of HTTP/2 on both sides, and its session.
struct Stream {
    id: u64,
    service: Service,
    variant: Variant,
    peer_pid: Option<i32>,
    requests: RecvStream,
    deframer: Deframer,
    responses: SendStream<Rope>,
    session: Session,
    attached: mpsc::UnboundedReceiver<Shown>,
    connected: bool,
    shared: Arc<Shared>,
}

impl Drop for Stream {
    fn drop(&mut self) {
        lock(&self.shared.streams).remove(&self.id);
        if self.connected {
            self.shared.tell(Event::Closed { stream: self.id });
        }
    }
}

impl Stream {
    /// Serve until the client ends the stream.
    async fn serve(&mut self) -> Result<(), StreamError> {
        let mut shown: Option<Shown> = None;
        loop {
            let deadline = self.session.deadline();
            tokio::select! {
                data = self.requests.data() => match data {
                    Some(data) => self.receive(data?)?,
                    None => {
                        self.deframer.finish()?;
                        self.responses.send_trailers(trailers(0, ""))?;
                        return Ok(());
                    }
                },
                Some(view) = self.attached.recv() => {
                    let mut view = view;
                    self.session.show(view.borrow_and_update().clone());
                    shown = Some(view);
                }
                view = changed(&mut shown) => self.session.show(view),
                () = at(deadline) => {}
            }
            for response in self.session.send(Instant::now()) {
                // Queued without asking for capacity: at most one response of each type is on its way, its pieces are
                // shared with all other streams, and a client that does not read cannot acknowledge and gets no more.
                self.responses.send_data(response, false)?;
            }
            for report in self.session.reports() {
                self.shared.tell(event(self.id, report));
            }
        }
    }

    fn receive(&mut self, data: Bytes) -> Result<(), StreamError> {
        self.deframer.push(&data);
        self.requests.flow_control().release_capacity(data.len())?;
        while let Some(message) = self.deframer.next()? {
            match self.variant {
                Variant::Delta => {
                    let mut request = DeltaDiscoveryRequest::decode(message).map_err(FrameError::from)?;
                    self.introduce(request.node.take());
                    self.name_type(&mut request.type_url);
                    self.session.delta(request)?;
                }
                Variant::StateOfTheWorld => {
                    let mut request = DiscoveryRequest::decode(message).map_err(FrameError::from)?;
                    self.introduce(request.node.take());
                    self.name_type(&mut request.type_url);
                    self.session.state_of_the_world(request)?;
                }
            }
        }
        Ok(())
    }

    /// Report the stream with its first request, which carries the node (xDS protocol, "ACK/NACK and versioning").
    fn introduce(&mut self, node: Option<Node>) {
        if !self.connected {
            self.connected = true;
            let node = Box::new(node.unwrap_or_default());
            self.session.introduce(&node.user_agent_name);
            self.shared.tell(Event::Connected { stream: self.id, node, peer_pid: self.peer_pid });
        }
    }

    /// On a stream of one type the type URL may be left out.
    fn name_type(&self, type_url: &mut String) {
        if self.service == Service::Secrets && type_url.is_empty() {
            type_url::SECRET.clone_into(type_url);
        }
    }
}

/// The next content of the view that is shown; never, if there is none.
async fn changed(shown: &mut Option<Shown>) -> Option<Arc<View>> {
    match shown {
        Some(view) => match view.changed().await {
            Ok(()) => view.borrow_and_update().clone(),
            // The sender is gone only when the server is closing.
            Err(_) => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

fn event(stream: u64, report: Report) -> Event {
    match report {
        Report::Synced { view, revision } => Event::Synced { stream, view: (*view).into(), revision },
        Report::Refused { view, type_url, name, version, message } => Event::Refused {
            stream,
            view: (*view).into(),
            type_url,
            name: (*name).into(),
            version: (*version).into(),
            message,
        },
    }
}
