//! Choosing an endpoint by a hash asks nobody for memory: an allocator that counts says so.

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::SocketAddr;

use support::endpoints::*;
use support::{Fixed, request};
use weft_core::balance::Balancer;
use weft_core::compile::Strictness;
use weft_core::hash_policy::{Client, hash};
use weft_core::route::{Action, RouteTable};
use weft_protos::envoy::config::core::v3::HealthStatus::Healthy;
use weft_protos::envoy::config::route::v3::route;
use weft_protos::envoy::config::route::v3::route_action::HashPolicy;
use weft_protos::envoy::config::route::v3::route_action::hash_policy::{
    ConnectionProperties, Cookie, Header, PolicySpecifier, QueryParameter,
};

thread_local! {
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

/// The system's, and a count of what each thread asks for.
struct Counting;

// SAFETY: every call is the system allocator's own, with the arguments as they came; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: the caller keeps to the contract of `alloc`, which is the same here.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `pointer` came from `alloc` above, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_pick_by_a_hash_takes_no_memory() {
    let policy = |specifier| HashPolicy { terminal: false, policy_specifier: Some(specifier) };
    let mut hashed = support::to("c", support::prefix("/"));
    let Some(route::Action::Route(action)) = &mut hashed.action else { panic!("it forwards") };
    action.hash_policy = vec![
        policy(PolicySpecifier::Header(Header { header_name: "x-user".into(), ..Default::default() })),
        policy(PolicySpecifier::Cookie(Cookie { name: "user".into(), ..Default::default() })),
        policy(PolicySpecifier::QueryParameter(QueryParameter { name: "q".into() })),
        policy(PolicySpecifier::ConnectionProperties(ConnectionProperties { source_ip: true })),
    ];
    let configuration = support::configuration(vec![support::host("any", &["*"], vec![hashed])]);
    let table = RouteTable::compile(&configuration, Strictness::Refuse).expect("honoured").value;
    let Action::Forward(forward) = &table.virtual_hosts[0].routes[0].action else { panic!("it forwards") };
    let client = Client {
        address: "2001:db8::7".parse().expect("an address"),
        remote: SocketAddr::from(([10, 0, 0, 7], 40_000)),
        local: SocketAddr::from(([10, 0, 0, 1], 80)),
    };
    let asked =
        request("a", "/?p=1&q=2", &[("x-user", "b"), ("x-user", "a"), ("cookie", "a=b"), ("cookie", "user=\"me\"")]);
    for policy in [2, 5] {
        let cluster = cluster(|cluster| cluster.lb_policy = policy);
        let endpoints = (1..=9).map(|port| endpoint(port, port, Healthy)).collect();
        let balancer = Balancer::new(&cluster, &assignment(vec![locality(0, 1, endpoints)]), None, 0);
        let mut picker = balancer.picker();
        let before = COUNT.get();
        for _ in 0..100 {
            let key = hash(&forward.hash, &asked, &client).key;
            assert!(key.is_some() && picker.pick(key, &mut Fixed(0.0), 3, is_even).is_ok());
        }
        assert_eq!(COUNT.get() - before, 0);
    }
}

/// Avoids half of them, so that several are looked at.
fn is_even(host: &weft_core::balance::Host) -> bool {
    host.endpoint.weight.is_multiple_of(2)
}
