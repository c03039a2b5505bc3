//! The control plane's end: a Unix socket, HTTP/2, one task for each proxy's log, in a thread of its own.
//!
//! Records go straight into the [`Store`]; no interpreter is asked. A peer that sends something else loses its stream.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{HeaderValue, Request, Response, StatusCode};
use prost::DecodeError;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;

use crate::access_log::store::{Source, Store};
use crate::access_log::{PATH, entries};
use crate::grpc::{Deframer, FrameError, code};
use crate::server::socket::{self, trailers};

/// A peer that connects and says nothing is not kept longer than this.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// A proxy has a handful of logs, each of its workers one stream for each of them.
const MAX_STREAMS: u32 = 256;
const WINDOW_BYTES: u32 = 1 << 20;
const MAX_HEADER_BYTES: u32 = 16 << 10;
/// The largest batch that is accepted. Proxies are told to send 16 KiB at a time; a single record of Envoy's may hold
/// headers of 60 KiB.
const MAX_MESSAGE_BYTES: usize = 4 << 20;

/// A running service. Dropping it ends all streams and removes the socket; what is stored stays.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    /// Device and inode, so that a socket that somebody else made at the same path is left alone.
    socket: (u64, u64),
    shutdown: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listen on a Unix socket at `path`, mode 0600, and take records into `store`.
    ///
    /// # Errors
    /// The socket cannot be made, or another process is listening there (`AddrInUse`).
    pub fn bind(path: &Path, store: Arc<Store>) -> io::Result<Self> {
        let listener = socket::bind(path)?;
        let metadata = std::fs::metadata(path)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (shutdown, ended) = oneshot::channel();
        let thread = std::thread::Builder::new().name("weft-records".into()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = accept(listener, store) => {}
                    _ = ended => {}
                }
            });
        })?;
        let socket = (metadata.dev(), metadata.ino());
        Ok(Self { path: path.into(), socket, shutdown: Some(shutdown), thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shutdown = None;
        if let Some(thread) = self.thread.take() {
            // A panic there was printed when it happened; there is nothing more to do about it here.
            let _ = thread.join();
        }
        if std::fs::metadata(&self.path).is_ok_and(|it| (it.dev(), it.ino()) == self.socket) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

async fn accept(listener: std::os::unix::net::UnixListener, store: Arc<Store>) {
    let listener = UnixListener::from_std(listener).expect("the listener is non-blocking, within a runtime");
    loop {
        match listener.accept().await {
            Ok((socket, _)) => drop(tokio::spawn(serve_connection(socket, Arc::clone(&store)))),
            // Out of descriptors, say: wait until some are free rather than spin.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn serve_connection(socket: UnixStream, store: Arc<Store>) {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADER_BYTES);
    let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, builder.handshake::<_, Bytes>(socket)).await;
    let Ok(Ok(mut connection)) = handshake else { return };
    while let Some(Ok((request, respond))) = connection.accept().await {
        tokio::spawn(serve_stream(request, respond, Arc::clone(&store)));
    }
}

async fn serve_stream(request: Request<RecvStream>, mut respond: SendResponse<Bytes>, store: Arc<Store>) {
    let mut response = Response::new(());
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    if request.uri().path() != PATH {
        *response.status_mut() = StatusCode::OK;
        response.headers_mut().extend(trailers(code::UNIMPLEMENTED, "no such method"));
        let _ = respond.send_response(response, true);
        return;
    }
    let Ok(mut answer) = respond.send_response(response, false) else { return };
    let status = match receive(request.into_body(), &store).await {
        Ok(()) => trailers(0, ""),
        Err(error) => trailers(code::INVALID_ARGUMENT, &error.to_string()),
    };
    let _ = answer.send_trailers(status);
}

/// Why a stream is ended.
#[derive(Debug, thiserror::Error)]
enum StreamError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("a message does not decode: {0}")]
    Decode(#[from] DecodeError),
    #[error("the first message names no node")]
    Unnamed,
    #[error("HTTP/2: {0}")]
    Http(#[from] h2::Error),
}

async fn receive(mut body: RecvStream, store: &Store) -> Result<(), StreamError> {
    let mut deframer = Deframer::with_limit(MAX_MESSAGE_BYTES);
    let mut source: Option<Source> = None;
    while let Some(data) = body.data().await {
        let data = data?;
        deframer.push(&data);
        body.flow_control().release_capacity(data.len())?;
        while let Some(message) = deframer.next()? {
            let (identifier, entries) = entries::take_apart(message)?;
            if let Some(identifier) = identifier {
                let node = identifier.node.unwrap_or_default().id;
                source = Some(Source { node, log: identifier.log_name });
            }
            store.put(source.as_ref().ok_or(StreamError::Unnamed)?, entries);
        }
    }
    Ok(deframer.finish()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Backoff;
    use crate::access_log::Kind;
    use crate::access_log::client::{self, Batch, Client, Config};
    use crate::access_log::store::DEFAULT_LIMIT_BYTES;
    use crate::connection::Address;
    use prost::Message as _;
    use weft_protos::envoy::config::core::v3::Node;
    use weft_protos::envoy::data::accesslog::v3::{HttpAccessLogEntry, HttpRequestProperties};
    use weft_protos::envoy::service::accesslog::v3::stream_access_logs_message::HttpAccessLogEntries;

    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Place {
            let path = std::env::temp_dir().join(format!("weft-als-{}-{name}", std::process::id()));
            let _ = std::fs::remove_dir_all(&path);
            std::fs::create_dir(&path).unwrap();
            Place(path)
        }

        fn socket(&self) -> PathBuf {
            self.0.join("records.sock")
        }

        fn store(&self) -> Arc<Store> {
            Arc::new(Store::open(&self.0.join("records"), DEFAULT_LIMIT_BYTES).unwrap())
        }

        fn client(&self, limit_bytes: usize) -> (Client, client::Task) {
            client::client(Config {
                address: Address::Unix(self.socket()),
                node: Node { id: "node".into(), ..Default::default() },
                log_name: "requests".into(),
                backoff: Backoff::new(Duration::from_millis(5), Duration::from_millis(20)),
                limit_bytes,
            })
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn batch(request_ids: &[&str]) -> Batch {
        let entry = |id: &&str| HttpAccessLogEntry {
            request: Some(HttpRequestProperties { request_id: (*id).into(), ..Default::default() }),
            ..Default::default()
        };
        let entries = HttpAccessLogEntries { log_entry: request_ids.iter().map(entry).collect() };
        Batch { kind: Kind::Http, entries: entries.encode_to_vec().into(), count: request_ids.len() as u32 }
    }

    async fn until(mut condition: impl FnMut() -> bool) {
        let waiting = async {
            while !condition() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), waiting).await.expect("the condition holds at last");
    }

    #[tokio::test]
    async fn records_arrive_also_those_that_waited_for_the_service() {
        let place = Place::new("arrive");
        let (client, task) = place.client(1 << 20);
        let running = tokio::spawn(task.run(|_| {}));
        client.offer(batch(&["before"]));
        let store = place.store();
        let server = Server::bind(&place.socket(), Arc::clone(&store)).unwrap();
        client.offer(batch(&["one", "two"]));
        until(|| store.status().records == 3).await;
        assert_eq!(store.find("two")[0].source, Source { node: "node".into(), log: "requests".into() });
        assert_eq!(store.find("before").len(), 1);
        // The service goes and comes back.
        drop(server);
        until(|| !place.socket().exists()).await;
        let _server = Server::bind(&place.socket(), Arc::clone(&store)).unwrap();
        // What is on the way just when the stream breaks may be lost; what comes later is not.
        until(|| {
            client.offer(batch(&["after"]));
            !store.find("after").is_empty()
        })
        .await;
        assert_eq!(client.dropped(), 0);
        running.abort();
    }

    #[tokio::test]
    async fn a_client_that_finishes_waits_until_the_service_has_everything() {
        let place = Place::new("finish");
        let (client, task) = place.client(1 << 20);
        let running = tokio::spawn(task.run(|_| {}));
        assert!(client.finish().await.is_err(), "where nothing was offered, at once");
        // It takes connections, and does not look at them yet, as on a busy machine.
        let asleep = std::os::unix::net::UnixListener::bind(place.socket()).unwrap();
        client.offer(batch(&["last"]));
        let mut finished = client.finish();
        let waited = tokio::time::timeout(Duration::from_millis(100), &mut finished).await;
        assert!(waited.is_err(), "nobody has read anything");
        let store = place.store();
        asleep.set_nonblocking(true).unwrap();
        let serving = tokio::spawn(accept(asleep, Arc::clone(&store)));
        let _ = tokio::time::timeout(Duration::from_secs(20), finished).await.expect("it is told");
        assert_eq!(store.find("last").len(), 1);
        // It may go on.
        client.offer(batch(&["more"]));
        until(|| store.find("more").len() == 1).await;
        serving.abort();
        running.abort();
    }

    #[tokio::test]
    async fn what_nobody_takes_is_bounded_and_counted() {
        let place = Place::new("bounded");
        let (client, task) = place.client(100);
        let running = tokio::spawn(task.run(|_| {}));
        for _ in 0..50 {
            client.offer(batch(&["request", "request"]));
        }
        assert!(client.waiting_bytes() <= 100);
        let dropped = client.dropped();
        assert!(dropped >= 80, "{dropped}");
        // The last ones of a process are taken all the same.
        for _ in 0..50 {
            assert!(client.force(batch(&["last"])));
        }
        assert!(client.waiting_bytes() > 100);
        let store = place.store();
        let _server = Server::bind(&place.socket(), Arc::clone(&store)).unwrap();
        let _ = tokio::time::timeout(Duration::from_secs(20), client.finish()).await.expect("it is told");
        assert_eq!((store.find("last").len(), client.dropped()), (50, dropped));
        running.abort();
    }
}
