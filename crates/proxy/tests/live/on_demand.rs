//! Virtual hosts that are loaded when a request needs them (VHDS).

use std::thread;

use serde_json::json;
use weft_protos::envoy::config::core::v3 as core;
use weft_protos::envoy::config::route::v3 as route;
use weft_protos::envoy::extensions::filters::http::on_demand::v3::OnDemand;
use weft_protos::type_url;
use weft_xds::server::{Event, Published};

use crate::kit::peer::Message;
use crate::kit::resources::{CLUSTER, ads, cluster_of, filter, published, to};
use crate::kit::{Mesh, Peer, Setup, Upstream, until};

/// No virtual host is sent with the routes, and requests wait for theirs.
fn on_demand(setup: &mut Setup) {
    setup.routes.vhds = Some(route::Vhds { config_source: Some(ads()) });
    setup.routes.virtual_hosts.clear();
    let type_name = "envoy.extensions.filters.http.on_demand.v3.OnDemand";
    setup.manager.http_filters.insert(0, filter("envoy.filters.http.on_demand", type_name, &OnDemand::default()));
}

/// The virtual host of these domains, published under the first of them.
fn host(domains: &[&str], cluster: &str) -> Published {
    let host = route::VirtualHost {
        name: domains[0].into(),
        domains: domains.iter().map(|domain| (*domain).into()).collect(),
        routes: vec![to(cluster, "/")],
        ..Default::default()
    };
    published(type_url::VIRTUAL_HOST, &format!("9080/{}", domains[0]), &host)
}

fn ask(client: &mut Peer, host: &str) -> Message {
    client.send(format!("GET /of-{host} HTTP/1.1\r\nhost: {host}\r\n\r\n"));
    client.message()
}

/// Names of the virtual hosts that the proxy has.
fn held(mesh: &Mesh) -> Vec<String> {
    mesh.dump("dynamic_virtual_hosts").iter().map(|item| item["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_request_waits_for_its_virtual_host_and_others_find_it_there() {
    let mesh = Mesh::start(&[Upstream::saying("hello")], |setup| {
        on_demand(setup);
        setup.more.extend([host(&["reviews", "reviews:9080"], CLUSTER), host(&["ratings"], CLUSTER)]);
    });
    assert!(held(&mesh).is_empty());
    let callers: Vec<_> = (0..8)
        .map(|_| {
            let mut client = mesh.client();
            thread::spawn(move || ask(&mut client, "Reviews").text())
        })
        .collect();
    for caller in callers {
        assert_eq!(caller.join().unwrap(), "hello");
    }
    assert_eq!(ask(&mut mesh.client(), "reviews:9080").text(), "hello");
    assert_eq!(held(&mesh), ["9080/reviews"]);
}

#[test]
fn what_does_not_exist_is_asked_for_once_and_found_when_it_comes() {
    let mut mesh = Mesh::start(&[Upstream::saying("hello")], on_demand);
    let mut client = mesh.client();
    assert_eq!(ask(&mut client, "nobody").status(), 404);
    mesh.expect_record("/of-nobody", 404, "NR", "route_not_found");
    // The name stays subscribed: what comes by it is there before anybody asks again.
    mesh.change(|setup| setup.more.push(host(&["nobody"], CLUSTER)));
    assert_eq!(held(&mesh), ["9080/nobody"]);
    assert_eq!(ask(&mut client, "nobody").text(), "hello");
    mesh.change(|setup| setup.more.clear());
    assert_eq!(ask(&mut client, "nobody").status(), 404);
    mesh.stop_serving();
    until("the control plane is missed", || mesh.log().contains("is away").then_some(()));
    // Known not to exist, and not known at all.
    assert_eq!(ask(&mut client, "nobody").status(), 404);
    // No host has such a name, so there is nobody to ask for it.
    assert_eq!(ask(&mut client, &"long".repeat(100)).status(), 404);
    let other = ask(&mut client, "other");
    assert_eq!((other.status(), other.text().as_str()), (503, "the routes of this host have not been loaded"));
    mesh.expect_record("/of-other", 503, "NR", "virtual_host_not_loaded");
}

#[test]
fn a_virtual_host_changes_with_its_table_and_by_itself() {
    let mut mesh = Mesh::start(&[Upstream::saying("old")], |setup| {
        on_demand(setup);
        setup.more.extend(cluster_of("other", &[Upstream::saying("new")]));
        setup.more.push(host(&["reviews"], CLUSTER));
    });
    let mut client = mesh.client();
    assert_eq!(ask(&mut client, "reviews").text(), "old");
    mesh.change(|setup| {
        setup.more.pop();
        setup.more.push(host(&["reviews"], "other"));
    });
    assert_eq!(ask(&mut client, "reviews").text(), "new");
    mesh.change(|setup| {
        setup.routes.response_headers_to_add = vec![core::HeaderValueOption {
            header: Some(core::HeaderValue { key: "x-table".into(), value: "2".into(), ..Default::default() }),
            ..Default::default()
        }];
    });
    let answer = ask(&mut client, "reviews");
    assert_eq!((answer.text().as_str(), answer.get("x-table")), ("new", Some("2")));
}

#[test]
fn one_that_cannot_be_honoured_is_refused_by_name_and_its_requests_are_told() {
    let mut mesh = Mesh::start(&[Upstream::saying("hello")], |setup| {
        on_demand(setup);
        setup.more.extend([host(&["reviews"], CLUSTER), host(&["double", "REVIEWS"], CLUSTER)]);
    });
    let mut client = mesh.client();
    assert_eq!(ask(&mut client, "reviews").text(), "hello");
    assert_eq!(ask(&mut client, "double").status(), 503);
    mesh.expect_record("/of-double", 503, "NR", "virtual_host_not_loaded");
    let refusal = mesh.wait_event("a refusal", |event| matches!(event, Event::Refused { .. }));
    let Event::Refused { name, message, .. } = refusal else { unreachable!("it was waited for") };
    assert_eq!(name, "9080/double");
    assert!(message.contains("`REVIEWS` belongs to a virtual host of 9080/reviews"), "{message}");
    assert_eq!(ask(&mut client, "reviews").text(), "hello");
}

#[test]
fn what_was_loaded_outlives_the_process_while_the_control_plane_is_away() {
    let mut mesh = Mesh::prepare(&[Upstream::saying("kept")]);
    on_demand(&mut mesh.setup);
    mesh.setup.more.push(host(&["reviews"], CLUSTER));
    let state = mesh.path("state").to_str().unwrap().to_owned();
    mesh.serve();
    mesh.run(&["--state-dir", &state]);
    mesh.publish();
    mesh.wait_ready();
    assert_eq!(ask(&mut mesh.client(), "reviews").text(), "kept");
    mesh.stop_serving();
    mesh.signal(libc::SIGTERM);
    assert!(mesh.wait_exit().success());
    mesh.run(&["--state-dir", &state]);
    mesh.wait_ready();
    assert_eq!(ask(&mut mesh.client(), "reviews").text(), "kept");
    // It is followed again, too.
    mesh.serve();
    let other = Upstream::saying("changed");
    mesh.change(|setup| {
        setup.more = cluster_of("other", &[other]).into();
        setup.more.push(host(&["reviews"], "other"));
    });
    let mut client = mesh.client();
    until("the change is in force", || (ask(&mut client, "reviews").text() == "changed").then_some(()));
}

#[test]
fn without_the_filter_nobody_waits() {
    let mesh = Mesh::start(&[Upstream::saying("hello")], |setup| {
        on_demand(setup);
        setup.manager.http_filters.remove(0);
        setup.more.push(host(&["reviews"], CLUSTER));
    });
    assert_eq!(ask(&mut mesh.client(), "reviews").status(), 404);
    assert!(held(&mesh).is_empty());
}

#[test]
fn a_client_that_goes_away_while_it_waits_leaves_nothing_behind() {
    let mut mesh = Mesh::start(&[Upstream::saying("hello")], on_demand);
    // A control plane that shows nothing answers nothing.
    let is_connected = |mesh: &Mesh| mesh.metric("envoy_control_plane_connected_state", &[]) == 1.0;
    mesh.stop_serving();
    until("the proxy knows that it is away", || (!is_connected(&mesh)).then_some(()));
    mesh.serve();
    // Its stream is there before the proxy has its answer, and until then nobody can be asked.
    until("the proxy is back", || is_connected(&mesh).then_some(()));
    let mut client = mesh.client();
    client.send("GET / HTTP/1.1\r\nhost: reviews\r\n\r\n");
    drop(client);
    mesh.expect_record("/", 0, "DC", "downstream_remote_disconnect");
    mesh.setup.more.push(host(&["reviews"], CLUSTER));
    mesh.publish();
    assert_eq!(ask(&mut mesh.client(), "reviews").text(), "hello");
    assert_eq!(json!(held(&mesh)), json!(["9080/reviews"]));
}
