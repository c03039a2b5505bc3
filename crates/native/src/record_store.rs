//! `weft._native.RecordStore`: the access log service and the store behind it, for Python.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use weft_xds::access_log::Kind;
use weft_xds::access_log::server::Server;
use weft_xds::access_log::store::{DEFAULT_LIMIT_BYTES, Found, Store};

/// Takes access records from proxies on a Unix socket and keeps them within a limit. It serves from a thread of its own.
///
/// Make it after the process has forked, not before: a thread does not cross a fork.
#[pyclass(frozen, module = "weft._native")]
pub struct RecordStore {
    store: Arc<Store>,
    /// `None` once closed.
    server: Mutex<Option<Server>>,
}

/// Node id, log, whether it is of TCP, received (seconds since 1970), serialised entry.
type Record<'py> = (String, String, bool, f64, Bound<'py, PyBytes>);

#[pymethods]
impl RecordStore {
    #[new]
    #[pyo3(signature = (socket, directory, *, limit_bytes = DEFAULT_LIMIT_BYTES))]
    fn new(py: Python<'_>, socket: PathBuf, directory: PathBuf, limit_bytes: u64) -> PyResult<Self> {
        let (store, server) = py.detach(|| {
            let store = Arc::new(Store::open(&directory, limit_bytes)?);
            let server = Server::bind(&socket, Arc::clone(&store))?;
            Ok::<_, std::io::Error>((store, server))
        })?;
        Ok(Self { store, server: Mutex::new(Some(server)) })
    }

    fn find<'py>(&self, py: Python<'py>, request_id: &str) -> Vec<Record<'py>> {
        to_python(py, py.detach(|| self.store.find(request_id)))
    }

    #[pyo3(signature = (limit, logs, *, nodes = None, failed = false))]
    fn recent<'py>(
        &self,
        py: Python<'py>,
        limit: usize,
        logs: Vec<String>,
        nodes: Option<Vec<String>>,
        failed: bool,
    ) -> Vec<Record<'py>> {
        to_python(py, py.detach(|| self.store.recent(limit, &logs, nodes.as_deref(), failed)))
    }

    fn status<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let status = py.detach(|| self.store.status());
        let answer = PyDict::new(py);
        answer.set_item("records", status.records)?;
        answer.set_item("bytes", status.bytes)?;
        answer.set_item("limit_bytes", status.limit_bytes)?;
        answer.set_item("lost", status.lost)?;
        Ok(answer)
    }

    fn close(&self, py: Python<'_>) {
        // Ending joins the thread: neither the interpreter nor the lock may be held meanwhile.
        py.detach(|| {
            let server = self.server.lock().unwrap_or_else(PoisonError::into_inner).take();
            drop(server);
        });
    }
}

fn to_python(py: Python<'_>, found: Vec<Found>) -> Vec<Record<'_>> {
    let record = |found: Found| {
        let entry = PyBytes::new(py, &found.entry);
        (found.source.node, found.source.log, found.kind == Kind::Tcp, found.received_us as f64 / 1e6, entry)
    };
    found.into_iter().map(record).collect()
}
