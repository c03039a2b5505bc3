//! The proxy's end: takes batches of encoded records from any thread and sends them when it can.
//!
//! It never makes anybody wait. What it holds is bounded: while the service is away or slow, batches beyond the limit
//! are dropped, counted, and told to whoever watches.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use h2::SendStream;
use http::{Method, Request, StatusCode};
use tokio::sync::{mpsc, oneshot};
use weft_protos::envoy::config::core::v3::Node;
use weft_protos::envoy::service::accesslog::v3::StreamAccessLogsMessage;
use weft_protos::envoy::service::accesslog::v3::stream_access_logs_message::Identifier;

use crate::access_log::{Kind, PATH};
use crate::backoff::Backoff;
use crate::connection::{self, Address, OpenError};
use crate::grpc::{self, PREFIX_BYTES};

/// The service answers nothing until the end.
const WINDOW_BYTES: u32 = 64 << 10;

/// Where records go, and whose they are.
#[derive(Debug, Clone)]
pub struct Config {
    pub address: Address,
    pub node: Node,
    /// Tells logs of one proxy apart.
    pub log_name: String,
    pub backoff: Backoff,
    /// Bytes that may wait to be sent.
    pub limit_bytes: usize,
}

/// Records of one shape, encoded: `log_entry` fields one after another.
#[derive(Debug, Clone)]
pub struct Batch {
    pub kind: Kind,
    pub entries: Bytes,
    pub count: u32,
}

/// What the task is given, in this order.
#[derive(Debug)]
enum Work {
    Batch(Batch),
    /// Nothing more comes; dropped once the service has everything.
    End(oneshot::Sender<()>),
}

#[derive(Debug, Default)]
struct Shared {
    waiting_bytes: AtomicUsize,
    dropped: AtomicU64,
}

/// Takes records. Cheap to clone, for every worker; when the last one is dropped, the task ends.
#[derive(Debug, Clone)]
pub struct Client {
    work: mpsc::UnboundedSender<Work>,
    shared: Arc<Shared>,
    limit_bytes: usize,
}

impl Client {
    /// Send `batch` some time; false: too much is waiting already, and it was dropped. Never blocks.
    pub fn offer(&self, batch: Batch) -> bool {
        self.take(batch, self.limit_bytes)
    }

    /// The same, however much is waiting: for the last records of a process, which are bounded by what it had under way.
    pub fn force(&self, batch: Batch) -> bool {
        self.take(batch, usize::MAX)
    }

    fn take(&self, batch: Batch, limit_bytes: usize) -> bool {
        let (bytes, count) = (batch.entries.len(), batch.count);
        let waiting = self.shared.waiting_bytes.fetch_add(bytes, Ordering::Relaxed);
        // The task is gone only if the process is ending.
        if waiting + bytes > limit_bytes || self.work.send(Work::Batch(batch)).is_err() {
            self.shared.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.shared.dropped.fetch_add(count.into(), Ordering::Relaxed);
            return false;
        }
        true
    }

    /// End the stream. What is returned resolves, to whatever it may be, when the service has said that it has everything
    /// that was offered before: a service that is slow to look finds a connection that was closed meanwhile empty.
    pub fn finish(&self) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        // The task is gone only if the process is ending; then nothing is waited for.
        let _ = self.work.send(Work::End(sender));
        receiver
    }

    /// Records that were dropped, ever.
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    /// Bytes of records that wait to be sent.
    pub fn waiting_bytes(&self) -> usize {
        self.shared.waiting_bytes.load(Ordering::Relaxed)
    }
}

/// Sends; see [`Task::run`].
#[derive(Debug)]
pub struct Task {
    config: Config,
    work: mpsc::UnboundedReceiver<Work>,
    shared: Arc<Shared>,
}

/// Make a client. Nothing is sent until [`Task::run`] is polled.
pub fn client(config: Config) -> (Client, Task) {
    let (sender, work) = mpsc::unbounded_channel();
    let shared = Arc::new(Shared::default());
    let limit_bytes = config.limit_bytes;
    (Client { work: sender, shared: Arc::clone(&shared), limit_bytes }, Task { config, work, shared })
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("HTTP/2: {0}")]
    Http(#[from] h2::Error),
    #[error("the service answers with HTTP status {0}")]
    Status(StatusCode),
    #[error("the service ended the stream")]
    Ended,
    #[error("every Client was dropped")]
    Abandoned,
    #[error("a Client ended the stream")]
    Finished,
}

impl Task {
    /// Connect when there is something to send, send, and begin again when the stream is lost. Returns when the last
    /// [`Client`] is dropped and everything that waited is sent or lost. `tell` hears of each stream that opens, and why one
    /// ended or could not be opened. Must run within a tokio runtime.
    pub async fn run(mut self, mut tell: impl FnMut(Result<(), &str>)) {
        let mut unsent = None;
        loop {
            // Connecting waits for the first record: a proxy without traffic needs no stream.
            if unsent.is_none() {
                match self.work.recv().await {
                    Some(Work::Batch(batch)) => unsent = Some(batch),
                    Some(Work::End(_)) => continue,
                    None => return,
                }
            }
            let error = match self.stream(&mut unsent, &mut tell).await {
                Err(Error::Abandoned) => return,
                Err(Error::Finished) => continue,
                Err(error) => error,
                Ok(never) => match never {},
            };
            tell(Err(&error.to_string()));
            let pause: Duration = self.config.backoff.pause();
            tokio::time::sleep(pause).await;
        }
    }

    /// One stream from its beginning to its end. `unsent` is what the stream before did not get rid of.
    async fn stream(
        &mut self,
        unsent: &mut Option<Batch>,
        tell: &mut impl FnMut(Result<(), &str>),
    ) -> Result<Infallible, Error> {
        let (mut sender, _driver) = connection::open(&self.config.address, WINDOW_BYTES).await?;
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("http://records{PATH}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .expect("every part is a constant");
        let (response, mut requests) = sender.send_request(request, false)?;
        let mut response = std::pin::pin!(async {
            let response = response.await?;
            if response.status() != StatusCode::OK {
                return Err(Error::Status(response.status()));
            }
            let mut body = response.into_body();
            while let Some(data) = body.data().await {
                let data = data?;
                body.flow_control().release_capacity(data.len())?;
            }
            Err::<Infallible, _>(Error::Ended)
        });
        let identifier = Identifier { node: Some(self.config.node.clone()), log_name: self.config.log_name.clone() };
        let first = StreamAccessLogsMessage { identifier: Some(identifier), log_entries: None };
        send(&mut requests, grpc::frame(&first)).await?;
        tell(Ok(()));
        loop {
            let work = match unsent.take() {
                Some(batch) => Work::Batch(batch),
                None => tokio::select! {
                    work = self.work.recv() => work.ok_or(Error::Abandoned)?,
                    ended = &mut response => match ended { Err(error) => return Err(error), Ok(never) => match never {} },
                },
            };
            let batch = match work {
                Work::Batch(batch) => batch,
                Work::End(_told) => {
                    requests.send_data(Bytes::new(), true)?;
                    return match response.await {
                        Err(Error::Ended) => Err(Error::Finished),
                        Err(error) => Err(error),
                        Ok(never) => match never {},
                    };
                }
            };
            let bytes = batch.entries.len();
            let framed = frame(&batch);
            *unsent = Some(batch);
            tokio::select! {
                sent = send(&mut requests, framed) => sent?,
                ended = &mut response => match ended { Err(error) => return Err(error), Ok(never) => match never {} },
            }
            *unsent = None;
            self.shared.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.config.backoff.reset();
        }
    }
}

/// `StreamAccessLogsMessage` with its prefix, around records that are encoded already.
fn frame(batch: &Batch) -> Bytes {
    let field = batch.kind.field();
    let length = prost::encoding::key_len(field)
        + prost::encoding::encoded_len_varint(batch.entries.len() as u64)
        + batch.entries.len();
    let mut frame = BytesMut::with_capacity(PREFIX_BYTES + length);
    frame.put_slice(&grpc::prefix(length));
    prost::encoding::encode_key(field, prost::encoding::WireType::LengthDelimited, &mut frame);
    prost::encoding::encode_varint(batch.entries.len() as u64, &mut frame);
    frame.put_slice(&batch.entries);
    frame.freeze()
}

/// Hand `bytes` over as the peer's window allows, so that what waits here is what waits: h2 would queue without end.
async fn send(requests: &mut SendStream<Bytes>, mut bytes: Bytes) -> Result<(), Error> {
    while !bytes.is_empty() {
        requests.reserve_capacity(bytes.len());
        let granted = std::future::poll_fn(|context| requests.poll_capacity(context)).await;
        let capacity = granted.ok_or(Error::Ended)??;
        requests.send_data(bytes.split_to(capacity.min(bytes.len())), false)?;
    }
    Ok(())
}
