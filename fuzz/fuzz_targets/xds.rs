//! Resources of a control plane under foreign bytes: compiling must end without a panic, and what is taken strictly is taken leniently,
//! too, and can be shown. The first byte of the input says of which type the rest is.

#![no_main]

use libfuzzer_sys::fuzz_target;
use weft_core::compile::Strictness;
use weft_core::honoured::json::decode;
use weft_core::plan::{Plan, Resource};
use weft_protos::type_url;

const TYPES: [&str; 4] =
    [type_url::LISTENER, type_url::ROUTE_CONFIGURATION, type_url::CLUSTER, type_url::CLUSTER_LOAD_ASSIGNMENT];

fuzz_target!(|input: &[u8]| {
    let [kind, value @ ..] = input else { return };
    let type_url = TYPES[usize::from(*kind) % TYPES.len()];
    let Ok(strict) = Resource::compile(type_url, value, Strictness::Refuse) else { return };
    Resource::compile(type_url, value, Strictness::Collect).expect("what is taken strictly is taken");
    decode(type_url, value).expect("what is taken can be shown");
    let mut plan = Plan::default();
    let name = std::sync::Arc::clone(strict.value.name());
    plan.insert(strict.value);
    plan.remove(type_url, &name);
});
