//! `weft._native`: a thin binding over the pure crates. No logic lives here.

mod engine;
mod explain;
mod question;
mod record_store;
mod stream_core;
mod taken;

use pyo3::prelude::*;

#[pymodule]
mod _native {
    #[pymodule_export]
    use super::engine::{Engine, validate};
    #[pymodule_export]
    use super::record_store::RecordStore;
    #[pymodule_export]
    use super::stream_core::StreamCore;
}
