//! Bootstraps under foreign bytes: reading YAML must end without a panic, what was read can be written as JSON and read again, and
//! what becomes a message is one that the walk over honoured fields can read, and that can be shown and read again. What can be started by
//! can be started by as it is shown.

#![no_main]

use libfuzzer_sys::fuzz_target;
use weft_core::honoured;

// The proxy is an executable without a library, so its code is compiled in from its source.
#[allow(dead_code)]
#[path = "../../crates/proxy/src/bootstrap.rs"]
mod bootstrap;
#[allow(dead_code)]
#[path = "../../crates/proxy/src/clock.rs"]
mod clock;
#[allow(dead_code, unused_imports)]
#[path = "../../crates/proxy/src/codec/mod.rs"]
mod codec;
#[allow(dead_code)]
#[path = "../../crates/proxy/src/document.rs"]
mod document;
#[allow(dead_code)]
#[path = "../../crates/proxy/src/logging.rs"]
mod logging;
#[allow(dead_code)]
#[path = "../../crates/proxy/src/overload.rs"]
mod overload;
#[path = "../../crates/proxy/src/runtime.rs"]
mod runtime;

/// As in the proxy, what a bootstrap asks of its socket.
mod admin {
    pub const SOCKET_MODE: u32 = 0o600;
}

/// As in the proxy, without the socket.
mod edge {
    #[allow(dead_code)]
    #[derive(Clone, Debug, PartialEq)]
    pub struct Edge {
        pub socket: std::path::PathBuf,
        pub workload: String,
    }
}

/// As in the proxy, what the watch over its resources tells.
mod worker {
    #[allow(dead_code)]
    pub enum Command {
        Overload,
    }
}

use bootstrap::{Bootstrap, TYPE_URL};

fuzz_target!(|input: &[u8]| {
    let Ok(value) = document::parse(input) else { return };
    let written = serde_json::to_vec(&value).expect("a value is JSON");
    document::parse(&written).expect("what was written is read");
    if let Ok(message) = honoured::json::encode(TYPE_URL, &value) {
        honoured::walk(TYPE_URL, &message);
        let shown = honoured::json::decode(TYPE_URL, &message).expect("what was written can be shown");
        let again = honoured::json::encode(TYPE_URL, &shown).expect("what is shown can be written");
        assert_eq!(honoured::json::decode(TYPE_URL, &again).as_ref(), Some(&shown));
        if let Ok(bootstrap) = Bootstrap::compile(&value) {
            assert!(!bootstrap.node.id.is_empty());
            let again = Bootstrap::compile(&shown).expect("it means the same");
            assert_eq!(again.resources, bootstrap.resources);
            assert_eq!((again.admin, again.source, again.ads), (bootstrap.admin, bootstrap.source, bootstrap.ads));
        }
    }
});
