//! Tables of cases that stand in files of their own: the tests that run beside Envoy read them too (`tests/conformance`).

use std::collections::BTreeMap;

#[path = "../../../src/document.rs"]
mod document;

/// Bytes that somebody sends. What else a file says of them is about Envoy.
#[derive(serde::Deserialize)]
pub struct Case {
    pub name: String,
    pub bytes: String,
    /// Of the request that they answer.
    #[serde(default = "get")]
    pub method: String,
}

fn get() -> String {
    "GET".into()
}

/// The tables of a YAML file, by name.
pub fn read(file: &[u8]) -> BTreeMap<String, Vec<Case>> {
    serde_json::from_value(document::parse(file).unwrap()).unwrap()
}
