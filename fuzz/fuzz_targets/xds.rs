//! Resources of a control plane under foreign bytes: compiling must end without a panic, and what is taken strictly is taken leniently,
//! too, and can be shown. Virtual hosts that come by themselves are found by their domains; of secrets roots are as many as certificates.
//! The first byte of the input says of which type the rest is.

#![no_main]

use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use prost::Message;
use serde_json::json;
use weft_core::compile::Strictness;
use weft_core::honoured::json::decode;
use weft_core::plan::{Plan, Resource};
use weft_core::route::RouteTable;
use weft_protos::envoy::config::route::v3 as proto;
use weft_protos::type_url;

// The proxy is an executable without a library, so its code is compiled in from its source.
/// As in the proxy, without what signs and seals: that is for a library in C.
#[allow(dead_code)]
#[path = "../../crates/proxy/src/tls"]
mod tls {
    use std::sync::Arc;

    use rustls::sign::SigningKey;
    use rustls_pki_types::PrivateKeyDer;

    pub mod pem;
    pub mod san;
    pub mod secrets;

    pub mod tickets {
        use weft_core::tls::TICKET_KEY_BYTES;

        pub struct Key;

        impl Key {
            pub fn read(bytes: &[u8]) -> Option<Key> {
                (bytes.len() == TICKET_KEY_BYTES).then_some(Key)
            }
        }
    }

    pub fn signing_key(_: &PrivateKeyDer<'_>) -> Result<Arc<dyn SigningKey>, rustls::Error> {
        Err(rustls::Error::General("nothing is signed here".into()))
    }
}
#[allow(dead_code)]
#[path = "../../crates/proxy/src/virtual_hosts.rs"]
mod virtual_hosts;

use tls::secrets::{self, Secret};
use virtual_hosts::VirtualHosts;

const TYPES: [&str; 6] = [
    type_url::LISTENER,
    type_url::ROUTE_CONFIGURATION,
    type_url::CLUSTER,
    type_url::CLUSTER_LOAD_ASSIGNMENT,
    type_url::SECRET,
    type_url::VIRTUAL_HOST,
];

/// What virtual hosts are added to.
static BASE: LazyLock<Arc<RouteTable>> = LazyLock::new(|| {
    let routes = json!({
        "name": "routes",
        "vhds": {"config_source": {"ads": {}}},
        "virtual_hosts": [{"name": "fixed", "domains": ["fixed"]}],
    });
    let plan = weft_fuzz::plan(&[(type_url::ROUTE_CONFIGURATION, routes)]);
    Arc::clone(&plan.routes["routes"])
});

fuzz_target!(|input: &[u8]| {
    let [kind, value @ ..] = input else { return };
    match TYPES[usize::from(*kind) % TYPES.len()] {
        type_url::SECRET => secret(value),
        type_url::VIRTUAL_HOST => virtual_host(value),
        type_url => resource(type_url, value),
    }
});

fn resource(type_url: &str, value: &[u8]) {
    let Ok(strict) = Resource::compile(type_url, value, Strictness::Refuse) else { return };
    Resource::compile(type_url, value, Strictness::Collect).expect("what is taken strictly is taken");
    decode(type_url, value).expect("what is taken can be shown");
    let mut plan = Plan::default();
    let name = Arc::clone(strict.value.name());
    plan.insert(strict.value);
    plan.remove(type_url, &name);
}

fn secret(value: &[u8]) {
    let Ok((name, secret)) = secrets::decode(value) else { return };
    let shown = decode(type_url::SECRET, value).expect("what is taken can be shown");
    assert_eq!(shown["name"].as_str().unwrap_or_default(), name);
    match secret {
        Secret::Identity(_) => unreachable!("nothing signs here"),
        Secret::Roots(roots) => {
            assert_eq!(roots.store.len(), roots.certificates.len());
            assert!(!roots.certificates.is_empty());
            assert!(roots.revoked.as_ref().is_none_or(|revoked| revoked.lists.len() == revoked.der.len()));
        }
        Secret::TicketKeys(keys) => assert!(!keys.is_empty()),
    }
}

fn virtual_host(value: &[u8]) {
    let resource = |name: &str| weft_xds::client::Resource {
        name: name.into(),
        aliases: Vec::new(),
        version: String::new(),
        body: Bytes::copy_from_slice(value),
    };
    let mut hosts = VirtualHosts::default();
    if hosts.accept(Some(&BASE), resource("routes/one")).is_err() {
        return;
    }
    decode(type_url::VIRTUAL_HOST, value).expect("what is taken can be shown");
    hosts.accept(Some(&BASE), resource("routes/other")).expect_err("its domains belong to the first");
    hosts.rebase(&BASE).expect("nothing else is inherited");
    hosts.settle(|_| Some(&BASE));
    let table = hosts.table("routes").expect("it was put together");
    for domain in proto::VirtualHost::decode(value).expect("it was decoded before").domains {
        assert!(table.names_domain(&domain), "{domain:?}");
    }
    assert!(hosts.remove("routes/one"));
    hosts.accept(Some(&BASE), resource("routes/other")).expect("its domains are nobody's any more");
}
