//! Client and server against each other over a real socket, and each against peers that misbehave.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::{Request, Response, StatusCode};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixStream};
use tokio::time::timeout;
use weft_protos::envoy::config::core::v3::Node;
use weft_protos::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource as Wire};
use weft_protos::google::protobuf::Any;
use weft_protos::type_url::{CLUSTER, LISTENER, ROUTE_CONFIGURATION, SECRET, kind};
use weft_xds::client::{Address, Client, Config, Error, Receiver, Resource, client};
use weft_xds::server::{Event, Options, Published, Server};
use weft_xds::{Backoff, Protocol, Refusal, Service};

const LIMIT: Duration = Duration::from_secs(20);
const ADS: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";

/// A directory that is gone with the test.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("weft-xds-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn socket(&self) -> PathBuf {
        self.0.join("xds.sock")
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

/// What a receiver has, and what it went through.
#[derive(Default)]
struct World {
    resources: BTreeMap<String, String>,
    updates: Vec<String>,
    connections: usize,
    errors: Vec<String>,
}

/// Keeps everything, follows each listener to the route of its name, and refuses bodies that say so.
struct Keeper {
    world: Rc<RefCell<World>>,
    client: Client,
}

impl Receiver for Keeper {
    fn update(&mut self, type_url: &str, resources: Vec<Resource>, removed: Vec<String>) -> Result<(), Vec<Refusal>> {
        let mut world = self.world.borrow_mut();
        let kind = kind(type_url);
        let names: Vec<_> = resources.iter().map(|it| format!("{}={}", it.name, it.version)).collect();
        world.updates.push(format!("{kind}: {} -{}", names.join(" "), removed.join(" -")));
        let mut refusals = Vec::new();
        for resource in resources {
            if resource.body.starts_with(b"bad") {
                refusals.push(Refusal { name: resource.name, reason: "it says so itself".into() });
                continue;
            }
            if type_url == LISTENER {
                self.client.subscribe(ROUTE_CONFIGURATION, [resource.name.clone()]);
            }
            let body = String::from_utf8(resource.body.to_vec()).unwrap();
            world.resources.insert(format!("{kind}/{}", resource.name), body);
        }
        for name in removed {
            world.resources.remove(&format!("{kind}/{name}"));
        }
        if refusals.is_empty() { Ok(()) } else { Err(refusals) }
    }

    fn connected(&mut self) {
        self.world.borrow_mut().connections += 1;
    }

    fn disconnected(&mut self, error: &Error, _: Duration) {
        self.world.borrow_mut().errors.push(error.to_string());
    }
}

fn published(type_url: &str, name: &str, version: &str, body: &str) -> Published {
    let body = Bytes::copy_from_slice(body.as_bytes());
    Published { type_url: type_url.into(), name: name.into(), version: version.into(), body }
}

fn config(address: Address) -> Config {
    Config {
        address,
        service: Service::Aggregated,
        protocol: Protocol::Delta,
        node: Node { id: "node".into(), ..Default::default() },
        backoff: Backoff::new(Duration::from_millis(5), Duration::from_millis(50)),
    }
}

/// Start a client on this thread; the test must be within a LocalSet.
fn keep(config: Config) -> (Client, Rc<RefCell<World>>) {
    let (handle, task) = client(config);
    let world = Rc::<RefCell<World>>::default();
    let mut keeper = Keeper { world: world.clone(), client: handle.clone() };
    tokio::task::spawn_local(async move { task.run(&mut keeper).await });
    (handle, world)
}

/// Wait until `condition` gives something. What happens on other threads and sockets has no better signal here.
async fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let wait = async {
        loop {
            if let Some(value) = condition() {
                return value;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(LIMIT, wait).await.unwrap_or_else(|_| panic!("waited in vain: {what}"))
}

/// Run `test` as a proxy would: on one thread.
fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

/// The server's events so far, with each new stream attached to the view `v`.
struct Watch<'a> {
    server: &'a Server,
    seen: Vec<Event>,
}

impl<'a> Watch<'a> {
    fn new(server: &'a Server) -> Self {
        Self { server, seen: Vec::new() }
    }

    async fn until(&mut self, what: &str, found: impl Fn(&Event) -> bool) -> Event {
        until(what, || {
            for event in self.server.events() {
                if let Event::Connected { stream, .. } = event {
                    self.server.attach(stream, "v");
                }
                self.seen.push(event);
            }
            self.seen.iter().find(|event| found(event)).cloned()
        })
        .await
    }

    async fn synced(&mut self, wanted: u64) {
        self.until("synced", |event| matches!(event, Event::Synced { revision, .. } if *revision == wanted)).await;
    }
}

#[test]
fn a_client_follows_a_view() {
    let directory = Directory::new();
    let server = Server::bind(&directory.socket(), Options::default()).unwrap();
    run(async {
        let (handle, world) = keep(config(Address::Unix(directory.socket())));
        handle.subscribe_all(CLUSTER);
        handle.subscribe_all(LISTENER);
        let mut watch = Watch::new(&server);
        let connected = watch.until("connected", |event| matches!(event, Event::Connected { .. })).await;
        let Event::Connected { node, peer_pid, .. } = connected else { unreachable!() };
        assert_eq!((node.id.as_str(), peer_pid), ("node", Some(std::process::id() as i32)));
        let resources = |route: &str| {
            vec![
                published(CLUSTER, "c", "1", "cluster"),
                published(LISTENER, "l", "1", "listener"),
                published(ROUTE_CONFIGURATION, "l", route, route),
                published(ROUTE_CONFIGURATION, "unasked", "1", ""),
            ]
        };
        server.publish("v", 1, resources("one"));
        watch.synced(1).await;
        assert_eq!(world.borrow().resources["RouteConfiguration/l"], "one");
        assert_eq!(world.borrow().resources.len(), 3);
        server.publish("v", 2, resources("two"));
        watch.synced(2).await;
        assert_eq!(world.borrow().resources["RouteConfiguration/l"], "two");
        assert_eq!(
            world.borrow().updates,
            ["Cluster: c=1 -", "Listener: l=1 -", "RouteConfiguration: l=one -", "RouteConfiguration: l=two -"],
        );
        server.publish("v", 3, vec![]);
        watch.synced(3).await;
        assert!(world.borrow().resources.is_empty());
    });
}

#[test]
fn a_client_follows_a_view_by_the_state_of_the_world() {
    let directory = Directory::new();
    let mut server = Server::bind(&directory.socket(), Options::default()).unwrap();
    run(async {
        let world_config = Config { protocol: Protocol::StateOfTheWorld, ..config(Address::Unix(directory.socket())) };
        let (handle, world) = keep(world_config);
        handle.subscribe_all(CLUSTER);
        handle.subscribe_all(LISTENER);
        // The state of the world says a resource's name in the resource: field 1, here the whole body.
        let named = |type_url: &str, name: &str, version: &str| {
            let body = format!("\x0a{}{name}", char::from(u8::try_from(name.len()).unwrap()));
            published(type_url, name, version, &body)
        };
        let keys = |world: &Rc<RefCell<World>>| world.borrow().resources.keys().cloned().collect::<Vec<_>>();
        let mut watch = Watch::new(&server);
        server.publish("v", 1, vec![named(CLUSTER, "a", "1"), named(CLUSTER, "b", "1"), named(LISTENER, "l", "1")]);
        watch.synced(1).await;
        server.publish(
            "v",
            2,
            vec![named(CLUSTER, "b", "1"), named(LISTENER, "l", "2"), named(ROUTE_CONFIGURATION, "l", "1")],
        );
        watch.synced(2).await;
        assert_eq!(keys(&world), ["Cluster/b", "Listener/l", "RouteConfiguration/l"]);
        drop(watch);
        // Another server begins from nothing, and so does what it says.
        drop(server);
        server = Server::bind(&directory.socket(), Options::default()).unwrap();
        let mut watch = Watch::new(&server);
        server.publish("v", 3, vec![named(CLUSTER, "c", "1"), named(LISTENER, "l", "2")]);
        watch.synced(3).await;
        assert_eq!(keys(&world), ["Cluster/c", "Listener/l", "RouteConfiguration/l"]);
        assert_eq!(world.borrow().connections, 2);
    });
}

#[test]
fn a_client_follows_secrets_from_their_own_service() {
    let directory = Directory::new();
    let server = Server::bind(&directory.socket(), Options::default()).unwrap();
    run(async {
        let service = Service::Secrets;
        let (handle, world) = keep(Config { service, ..config(Address::Unix(directory.socket())) });
        handle.subscribe(SECRET, ["default", "nobody's"]);
        server.publish("v", 1, vec![published(SECRET, "default", "1", "key"), published(SECRET, "other", "1", "")]);
        let mut watch = Watch::new(&server);
        watch.synced(1).await;
        assert_eq!(world.borrow().updates, ["Secret: default=1 -nobody's"]);
        handle.unsubscribe(SECRET, ["default"]);
        handle.subscribe(SECRET, ["other"]);
        until("the other secret", || world.borrow().resources.get("Secret/other").map(|_| ())).await;
        server.publish("v", 2, vec![published(SECRET, "default", "2", "new"), published(SECRET, "other", "1", "")]);
        watch.synced(2).await;
        assert_eq!(world.borrow().resources["Secret/default"], "key", "nobody asks for it any more");
    });
}

#[test]
fn a_refused_resource_is_named_and_the_others_apply() {
    let directory = Directory::new();
    let server = Server::bind(&directory.socket(), Options::default()).unwrap();
    run(async {
        let (handle, world) = keep(config(Address::Unix(directory.socket())));
        handle.subscribe_all(CLUSTER);
        let mut watch = Watch::new(&server);
        let resources = |b: &str, version: &str| {
            vec![
                published(CLUSTER, "a", "1", "good"),
                published(CLUSTER, "b", version, b),
                published(CLUSTER, "c", "1", "good"),
            ]
        };
        server.publish("v", 1, resources("bad", "1"));
        let refused = watch.until("refused", |event| matches!(event, Event::Refused { .. })).await;
        let Event::Refused { view, type_url, name, version, message, .. } = refused else { unreachable!() };
        assert_eq!((&*view, &*type_url, &*name, &*version), ("v", CLUSTER, "b", "1"));
        assert_eq!(message, "it says so itself");
        watch.synced(1).await;
        assert_eq!(world.borrow().resources.keys().collect::<Vec<_>>(), ["Cluster/a", "Cluster/c"]);
        server.publish("v", 2, resources("good", "2"));
        watch.synced(2).await;
        assert_eq!(world.borrow().updates, ["Cluster: a=1 b=1 c=1 -", "Cluster: b=2 -"]);
    });
}

#[test]
fn a_client_outlives_its_server_and_is_sent_only_what_differs() {
    let directory = Directory::new();
    run(async {
        let (handle, world) = keep(config(Address::Unix(directory.socket())));
        handle.subscribe_all(CLUSTER);
        until("a failed attempt", || (!world.borrow().errors.is_empty()).then_some(())).await;
        for (revision, gone) in [(1, "x"), (2, "y"), (3, "y")] {
            let server = Server::bind(&directory.socket(), Options::default()).unwrap();
            let resources = ["a", "x", "y"].into_iter().filter(|it| *it != gone);
            server.publish("v", revision, resources.map(|it| published(CLUSTER, it, "1", it)).collect());
            Watch::new(&server).synced(revision).await;
        }
        let world = world.borrow();
        assert_eq!(world.updates, ["Cluster: a=1 y=1 -", "Cluster: x=1 -", "Cluster:  -y"]);
        assert_eq!(world.connections, 3);
    });
}

#[test]
fn what_was_resumed_from_disk_is_not_sent() {
    let directory = Directory::new();
    let server = Server::bind(&directory.socket(), Options::default()).unwrap();
    run(async {
        server.publish("v", 1, vec![published(CLUSTER, "a", "1", ""), published(CLUSTER, "b", "2", "")]);
        let (handle, mut task) = client(config(Address::Unix(directory.socket())));
        task.resume(CLUSTER, [("a", "1"), ("b", "1"), ("c", "1")].map(|(a, b)| (a.to_owned(), b.to_owned())));
        handle.subscribe_all(CLUSTER);
        let world = Rc::<RefCell<World>>::default();
        let mut keeper = Keeper { world: world.clone(), client: handle };
        tokio::task::spawn_local(async move { task.run(&mut keeper).await });
        Watch::new(&server).synced(1).await;
        assert_eq!(world.borrow().updates, ["Cluster: b=2 -", "Cluster:  -c"]);
    });
}

#[test]
fn a_thousand_quick_publications_end_in_the_last() {
    let directory = Directory::new();
    let server = Server::bind(&directory.socket(), Options::default()).unwrap();
    run(async {
        let (handle, world) = keep(config(Address::Unix(directory.socket())));
        handle.subscribe_all(CLUSTER);
        handle.subscribe_all(LISTENER);
        let mut watch = Watch::new(&server);
        for revision in 1..=1000 {
            let version = revision.to_string();
            let both = [CLUSTER, LISTENER].map(|it| published(it, "x", &version, &version));
            server.publish("v", revision, both.into());
        }
        watch.synced(1000).await;
        let world = world.borrow();
        assert_eq!((&*world.resources["Cluster/x"], &*world.resources["Listener/x"]), ("1000", "1000"));
        assert!(world.updates.len() < 1000, "{} updates", world.updates.len());
    });
}

#[test]
fn large_worlds_pass_the_flow_control_window() {
    let directory = Directory::new();
    let server = Server::bind(&directory.socket(), Options::default()).unwrap();
    run(async {
        let (handle, world) = keep(config(Address::Unix(directory.socket())));
        handle.subscribe_all(CLUSTER);
        let body = "x".repeat(20_000);
        server.publish("v", 1, (0..1000).map(|it| published(CLUSTER, &it.to_string(), "1", &body)).collect());
        Watch::new(&server).synced(1).await;
        assert_eq!(world.borrow().resources.len(), 1000);
        assert!(world.borrow().resources.values().all(|it| *it == body));
    });
}

#[test]
fn a_second_server_does_not_take_the_socket_of_the_first() {
    let directory = Directory::new();
    let first = Server::bind(&directory.socket(), Options::default()).unwrap();
    assert_eq!(
        Server::bind(&directory.socket(), Options::default()).unwrap_err().kind(),
        std::io::ErrorKind::AddrInUse
    );
    drop(first);
    assert!(!directory.socket().exists());
    // A socket that was left behind is replaced.
    drop(std::os::unix::net::UnixListener::bind(directory.socket()).unwrap());
    assert!(directory.socket().exists());
    Server::bind(&directory.socket(), Options::default()).unwrap();
}

/// Open one gRPC stream by hand, send `body`, and return the status and trailers.
async fn call(path: &PathBuf, request: Request<()>, body: &[&[u8]], end: bool) -> (StatusCode, String) {
    let (sender, connection) = h2::client::handshake(UnixStream::connect(path).await.unwrap()).await.unwrap();
    let driver = tokio::spawn(connection);
    let (response, mut stream) = sender.ready().await.unwrap().send_request(request, false).unwrap();
    for (index, part) in body.iter().enumerate() {
        stream.send_data(Bytes::copy_from_slice(part), end && index + 1 == body.len()).unwrap();
    }
    let response = timeout(LIMIT, response).await.unwrap().unwrap();
    let status = response.status();
    let in_headers = response.headers().get("grpc-status").map(|it| it.to_str().unwrap().to_owned());
    let mut body = response.into_body();
    while let Some(data) = timeout(LIMIT, body.data()).await.unwrap() {
        body.flow_control().release_capacity(data.unwrap().len()).unwrap();
    }
    let trailers = body.trailers().await.unwrap().unwrap_or_default();
    let code = trailers.get("grpc-status").map(|it| it.to_str().unwrap().to_owned());
    driver.abort();
    (status, code.or(in_headers).unwrap_or_default())
}

fn post(path: &str) -> Request<()> {
    let request = Request::post(format!("http://xds{path}")).header("content-type", "application/grpc");
    request.body(()).unwrap()
}

#[test]
fn malformed_requests_end_their_own_stream_and_nothing_else() {
    let directory = Directory::new();
    let socket = directory.socket();
    let server = Server::bind(&socket, Options::default()).unwrap();
    run(async {
        let no_type = [0, 0, 0, 0, 0];
        /// What it is, request, DATA, whether the last DATA ends the stream, HTTP and gRPC status.
        type Case<'a> = (&'a str, Request<()>, &'a [&'a [u8]], bool, (u16, &'a str));
        let cases: [Case<'_>; 9] = [
            ("an unknown method", post("/weft.Nothing/Here"), &[b""], false, (200, "12")),
            ("a compressed message", post(ADS), &[&[1, 0, 0, 0, 0]], false, (200, "3")),
            ("a wrong flag", post(ADS), &[&[9, 0, 0, 0, 0]], false, (200, "3")),
            ("a message too long", post(ADS), &[&[0, 255, 255, 255, 255]], false, (200, "3")),
            ("no protobuf", post(ADS), &[&[0, 0, 0, 0, 2], &[0xff, 0xff]], false, (200, "3")),
            ("a request without a type", post(ADS), &[&no_type], false, (200, "3")),
            ("an end within a message", post(ADS), &[&[0, 0, 0, 0, 9, 1]], true, (200, "3")),
            ("a plain end", post(ADS), &[b""], true, (200, "0")),
            ("no gRPC at all", Request::get("http://xds/").body(()).unwrap(), &[b""], true, (405, "")),
        ];
        for (name, request, body, end, (status, code)) in cases {
            assert_eq!(
                call(&socket, request, body, end).await,
                (status.try_into().unwrap(), code.to_owned()),
                "{name}"
            );
        }
        let plain = Request::post("http://xds/").header("content-type", "text/plain").body(()).unwrap();
        assert_eq!(call(&socket, plain, &[b""], true).await.0, StatusCode::UNSUPPORTED_MEDIA_TYPE);

        for garbage in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            b"\0\0\0\0",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        ] {
            let mut stream = UnixStream::connect(&socket).await.unwrap();
            stream.write_all(garbage).await.unwrap();
            stream.shutdown().await.unwrap();
            let mut answer = Vec::new();
            // However it ends, it ends.
            let _ = timeout(LIMIT, stream.read_to_end(&mut answer)).await.unwrap();
        }

        let (handle, _world) = keep(config(Address::Unix(socket)));
        handle.subscribe_all(CLUSTER);
        server.publish("v", 1, vec![]);
        let mut watch = Watch::new(&server);
        watch.synced(1).await;
        drop(handle);
    });
}

#[test]
fn streams_are_reported_closed_and_names_of_secrets_may_go_without_type() {
    let directory = Directory::new();
    let server = Server::bind(&directory.socket(), Options::default()).unwrap();
    server.publish("v", 1, vec![published(SECRET, "default", "1", "key")]);
    run(async {
        let path = directory.socket();
        let request = DeltaDiscoveryRequest { resource_names_subscribe: vec!["default".into()], ..Default::default() };
        let body = request.encode_to_vec();
        let frame = [&[0, 0, 0, 0, u8::try_from(body.len()).unwrap()][..], &body].concat();
        let secrets = post("/envoy.service.secret.v3.SecretDiscoveryService/DeltaSecrets");
        let (sender, connection) = h2::client::handshake(UnixStream::connect(&path).await.unwrap()).await.unwrap();
        let driver = tokio::spawn(connection);
        let (response, mut stream) = sender.ready().await.unwrap().send_request(secrets, false).unwrap();
        stream.send_data(frame.into(), false).unwrap();
        let mut watch = Watch::new(&server);
        watch.until("connected", |event| matches!(event, Event::Connected { .. })).await;
        let mut body = timeout(LIMIT, response).await.unwrap().unwrap().into_body();
        let mut data = timeout(LIMIT, body.data()).await.unwrap().unwrap().unwrap();
        data.advance(5);
        let response = DeltaDiscoveryResponse::decode(data).unwrap();
        assert_eq!((&*response.type_url, &*response.resources[0].name), (SECRET, "default"));
        driver.abort();
        watch.until("closed", |event| matches!(event, Event::Closed { .. })).await;
    });
}

/// A server by hand, on TCP: takes one stream a connection and gives it to `serve`.
async fn scripted<F: Future<Output = ()>>(
    listener: &TcpListener,
    serve: impl FnOnce(h2::RecvStream, h2::server::SendResponse<Bytes>) -> F,
) {
    let (socket, _) = timeout(LIMIT, listener.accept()).await.unwrap().unwrap();
    let mut connection = h2::server::handshake(socket).await.unwrap();
    let (request, respond) = timeout(LIMIT, connection.accept()).await.unwrap().unwrap().unwrap();
    assert_eq!(request.uri().path(), ADS);
    let script = serve(request.into_body(), respond);
    tokio::pin!(script);
    tokio::select! {
        () = &mut script => {}
        _ = async { while connection.accept().await.is_some() {} } => script.await,
    }
    connection.graceful_shutdown();
    let _ = timeout(LIMIT, async { while connection.accept().await.is_some() {} }).await;
}

async fn next_request(body: &mut h2::RecvStream) -> DeltaDiscoveryRequest {
    let mut buffer = Vec::new();
    loop {
        if let [0, a, b, c, d, rest @ ..] = &buffer[..]
            && rest.len() == u32::from_be_bytes([*a, *b, *c, *d]) as usize
        {
            return DeltaDiscoveryRequest::decode(rest).unwrap();
        }
        let data: Bytes = timeout(LIMIT, body.data()).await.unwrap().unwrap().unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
        buffer.extend_from_slice(&data);
    }
}

fn framed(message: &impl Message) -> Bytes {
    let body = message.encode_to_vec();
    [&[0][..], &u32::try_from(body.len()).unwrap().to_be_bytes(), &body].concat().into()
}

#[test]
fn a_client_survives_servers_that_misbehave() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (handle, world) = keep(config(Address::Tcp(address)));
        handle.subscribe_all(CLUSTER);
        let ok = || Response::new(());
        scripted(&listener, |_, mut respond| async move {
            let response = Response::builder().status(503).body(()).unwrap();
            respond.send_response(response, true).unwrap();
        })
        .await;
        scripted(&listener, |_, mut respond| async move {
            let response = Response::builder().header("grpc-status", "12").body(()).unwrap();
            respond.send_response(response, true).unwrap();
        })
        .await;
        scripted(&listener, |_, mut respond| async move {
            respond.send_response(ok(), false).unwrap().send_data(Bytes::from_static(b"\x01\0\0\0\0"), true).unwrap();
        })
        .await;
        scripted(&listener, |_, mut respond| async move {
            respond
                .send_response(ok(), false)
                .unwrap()
                .send_data(Bytes::from_static(b"\0\0\0\0\x02\xff\xff"), true)
                .unwrap();
        })
        .await;
        // Dropped before the handshake.
        drop(timeout(LIMIT, listener.accept()).await.unwrap().unwrap());
        scripted(&listener, |mut requests, mut respond| async move {
            let first = next_request(&mut requests).await;
            assert_eq!((first.node.unwrap().id.as_str(), &*first.type_url), ("node", CLUSTER));
            assert!(first.resource_names_subscribe.is_empty(), "the wildcard in the form that every server knows");
            let mut responses = respond.send_response(ok(), false).unwrap();
            let resource = |name: &str, url: &str, body: &'static [u8]| Wire {
                name: name.into(),
                version: "1".into(),
                resource: Some(Any { type_url: url.into(), value: Bytes::from_static(body) }),
                ..Default::default()
            };
            let resources =
                vec![resource("good", CLUSTER, b""), resource("odd", LISTENER, b""), resource("bad", CLUSTER, b"bad")];
            let response =
                DeltaDiscoveryResponse { type_url: CLUSTER.into(), nonce: "n".into(), resources, ..Default::default() };
            responses.send_data(framed(&response), false).unwrap();
            let answer = next_request(&mut requests).await;
            assert_eq!(answer.response_nonce, "n");
            assert!(answer.node.is_none(), "the node is sent once a stream");
            let error = answer.error_detail.unwrap();
            assert!(error.message.contains("odd: the resource is a ") && error.message.contains("bad: it says so"));
            assert_eq!(error.details.len(), 2);
        })
        .await;
        scripted(&listener, |mut requests, _respond| async move {
            let again = next_request(&mut requests).await;
            assert_eq!(again.initial_resource_versions, [("good".to_owned(), "1".to_owned())].into());
        })
        .await;
        let errors = world.borrow().errors.join("\n");
        for expected in ["status 503", "grpc-status 12", "compressed", "does not decode"] {
            assert!(errors.contains(expected), "{expected} in {errors}");
        }
        drop(handle);
    });
}

#[test]
fn what_an_update_subscribes_is_asked_for_before_the_update_is_acknowledged() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (handle, _world) = keep(config(Address::Tcp(listener.local_addr().unwrap().to_string())));
        handle.subscribe_all(LISTENER);
        scripted(&listener, |mut requests, mut respond| async move {
            next_request(&mut requests).await;
            let mut responses = respond.send_response(Response::new(()), false).unwrap();
            let any = Any { type_url: LISTENER.into(), value: Bytes::new() };
            let resource = Wire { name: "l".into(), version: "1".into(), resource: Some(any), ..Default::default() };
            let (type_url, resources) = (LISTENER.to_owned(), vec![resource]);
            let response = DeltaDiscoveryResponse { type_url, nonce: "1".into(), resources, ..Default::default() };
            responses.send_data(framed(&response), false).unwrap();
            let routes = next_request(&mut requests).await;
            assert_eq!(
                (&*routes.type_url, &*routes.resource_names_subscribe),
                (ROUTE_CONFIGURATION, &["l".into()][..])
            );
            let answer = next_request(&mut requests).await;
            assert_eq!((&*answer.type_url, &*answer.response_nonce), (LISTENER, "1"));
        })
        .await;
        drop(handle);
    });
}

#[test]
fn the_task_ends_with_the_last_client() {
    run(async {
        let directory = Directory::new();
        let (handle, task) = client(config(Address::Unix(directory.socket())));
        struct Nobody;
        impl Receiver for Nobody {
            fn update(&mut self, _: &str, _: Vec<Resource>, _: Vec<String>) -> Result<(), Vec<Refusal>> {
                Ok(())
            }
        }
        let running = tokio::task::spawn_local(async move { task.run(&mut Nobody).await });
        tokio::task::yield_now().await;
        drop(handle);
        timeout(LIMIT, running).await.unwrap().unwrap();
    });
}
