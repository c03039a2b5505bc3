//! `weft._native.StreamCore`: the stream core of `weft-xds` for Python.

use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use prost::Message;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::pybacked::{PyBackedBytes, PyBackedStr};
use pyo3::types::{PyBytes, PyTuple};
use weft_xds::server::{Event, Options, Published, Server};

/// An xDS server on a Unix socket. It serves from a thread of its own, which never waits for the interpreter.
///
/// Make it after the process has forked, not before: a thread does not cross a fork.
#[pyclass(frozen, module = "weft._native")]
pub struct StreamCore {
    /// `None` once closed.
    server: Mutex<Option<Server>>,
}

/// A resource as Python gives it: type URL, name, version, serialised message.
type Resource = (PyBackedStr, PyBackedStr, PyBackedStr, PyBackedBytes);

impl StreamCore {
    fn lock(&self) -> MutexGuard<'_, Option<Server>> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, call: impl FnOnce(&Server) -> T) -> PyResult<T> {
        self.lock().as_ref().map(call).ok_or_else(|| PyValueError::new_err("the stream core is closed"))
    }
}

#[pymethods]
impl StreamCore {
    #[new]
    fn new(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let server = py.detach(|| Server::bind(&path, Options::default()))?;
        Ok(Self { server: Mutex::new(Some(server)) })
    }

    fn publish(&self, py: Python<'_>, view: &str, revision: u64, resources: Vec<Resource>) -> PyResult<()> {
        py.detach(|| {
            let published = |(type_url, name, version, body): Resource| Published {
                type_url: type_url.to_string(),
                name: name.to_string(),
                version: version.to_string(),
                body: Bytes::from_owner(body),
            };
            self.with(|server| server.publish(view, revision, resources.into_iter().map(published).collect()))
        })
    }

    fn withdraw(&self, py: Python<'_>, view: &str) -> PyResult<()> {
        py.detach(|| self.with(|server| server.withdraw(view)))
    }

    fn attach(&self, py: Python<'_>, stream: u64, view: &str) -> PyResult<()> {
        py.detach(|| self.with(|server| server.attach(stream, view)))
    }

    fn events<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyTuple>>> {
        let events = py.detach(|| self.with(Server::events))?;
        events.into_iter().map(|event| to_python(py, event)).collect()
    }

    fn fileno(&self) -> PyResult<i32> {
        self.with(|server| server.signal().as_raw_fd())
    }

    fn close(&self, py: Python<'_>) {
        // Ending joins the thread: neither the interpreter nor the lock may be held meanwhile.
        py.detach(|| {
            let server = self.lock().take();
            drop(server);
        });
    }
}

fn to_python(py: Python<'_>, event: Event) -> PyResult<Bound<'_, PyTuple>> {
    match event {
        Event::Connected { stream, node, peer_pid } => {
            ("connected", stream, PyBytes::new(py, &node.encode_to_vec()), peer_pid).into_pyobject(py)
        }
        Event::Synced { stream, view, revision } => ("synced", stream, view, revision).into_pyobject(py),
        Event::Refused { stream, view, type_url, name, version, message } => {
            ("refused", stream, view, type_url, name, version, message).into_pyobject(py)
        }
        Event::Closed { stream } => ("closed", stream).into_pyobject(py),
    }
}
