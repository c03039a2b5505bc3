//! The state of the world, request by request. Delta is tested against a server in `tests/streams.rs`.

use super::*;

/// Notes what it is given, and refuses bodies that end with "bad".
#[derive(Default)]
struct Notes(Vec<String>);

impl Receiver for Notes {
    fn update(&mut self, _: &str, resources: Vec<Resource>, removed: Vec<String>) -> Result<(), Vec<Refusal>> {
        let names: Vec<_> = resources.iter().map(|it| format!("{}={}", it.name, it.version)).collect();
        self.0.push(format!("{} -{}", names.join(" "), removed.join(" -")));
        let bad = resources.into_iter().filter(|it| it.body.ends_with(b"bad"));
        let refusals: Vec<_> = bad.map(|it| Refusal { name: it.name, reason: "it says so itself".into() }).collect();
        if refusals.is_empty() { Ok(()) } else { Err(refusals) }
    }
}

/// A resource: its name in field 1, and something in field 15.
fn resource(type_url: &str, name: &str, rest: &str) -> Any {
    let text = |tag: u8, text: &str| [&[tag, text.len() as u8], text.as_bytes()].concat();
    Any { type_url: type_url.into(), value: [text(0x0a, name), text(0x7a, rest)].concat().into() }
}

fn response(type_url: &str, version: &str, resources: Vec<Any>) -> Response {
    let nonce = format!("nonce of {version}");
    Response::World(DiscoveryResponse {
        type_url: type_url.into(),
        version_info: version.into(),
        nonce,
        resources,
        ..Default::default()
    })
}

/// A request as one line: kind, version, nonce, names, and whether it refuses.
fn line(request: &Request) -> String {
    let Request::World(request) = request else { panic!("{request:?}") };
    let kind = weft_protos::type_url::kind(&request.type_url);
    let refuses = if request.error_detail.is_some() { " NACK" } else { "" };
    format!(
        "{kind} v{:?} n{:?} {}{refuses}",
        request.version_info,
        request.response_nonce,
        request.resource_names.join(",")
    )
}

fn lines(requests: &[Request]) -> Vec<String> {
    requests.iter().map(line).collect()
}

fn subscribe(type_url: &str, names: &[&str]) -> Command {
    Command::Subscribe(type_url.into(), names.iter().map(|name| (*name).into()).collect())
}

fn following_clusters() -> Subscriptions {
    let mut subscriptions = Subscriptions::new(Protocol::StateOfTheWorld);
    subscriptions.apply(subscribe(type_url::LISTENER, &[WILDCARD]));
    subscriptions.apply(subscribe(type_url::CLUSTER, &[WILDCARD]));
    let first = subscriptions.first_requests();
    assert_eq!(lines(&first), [r#"Cluster v"" n"" "#, r#"Listener v"" n"" "#]);
    subscriptions
}

#[test]
fn what_is_missing_of_clusters_is_gone_and_of_endpoints_only_unchanged() {
    let mut subscriptions = following_clusters();
    let mut notes = Notes::default();
    let mut take = |subscriptions: &mut Subscriptions, type_url: &str, version: &str, names: &[&str]| {
        let resources = names.iter().map(|name| resource(type_url, name, "good")).collect();
        let verdict = subscriptions.receive(response(type_url, version, resources), &mut notes).expect("asked for");
        line(&subscriptions.answer(verdict))
    };
    let cluster = take(&mut subscriptions, type_url::CLUSTER, "1", &["a", "b"]);
    assert_eq!(cluster, r#"Cluster v"1" n"nonce of 1" "#);
    subscriptions.apply(subscribe(type_url::CLUSTER_LOAD_ASSIGNMENT, &["a", "b"]));
    assert_eq!(lines(&subscriptions.changes()), [r#"ClusterLoadAssignment v"" n"" a,b"#]);
    let endpoints = take(&mut subscriptions, type_url::CLUSTER_LOAD_ASSIGNMENT, "1", &["a", "b"]);
    assert_eq!(endpoints, r#"ClusterLoadAssignment v"1" n"nonce of 1" a,b"#);
    take(&mut subscriptions, type_url::CLUSTER_LOAD_ASSIGNMENT, "2", &["b"]);
    take(&mut subscriptions, type_url::CLUSTER, "2", &["b", "c"]);
    assert_eq!(notes.0, ["a=1 b=1 -", "a=1 b=1 -", "b=2 -", "b=2 c=2 -a"]);
    // A subscription that changes says the version and nonce of the last response.
    subscriptions.apply(Command::Unsubscribe(type_url::CLUSTER_LOAD_ASSIGNMENT.into(), vec!["a".into()]));
    subscriptions.apply(subscribe(type_url::CLUSTER_LOAD_ASSIGNMENT, &["c"]));
    assert_eq!(lines(&subscriptions.changes()), [r#"ClusterLoadAssignment v"2" n"nonce of 2" b,c"#]);
    assert_eq!(subscriptions.changes(), []);
}

#[test]
fn a_refusal_keeps_the_version_and_names_the_resource() {
    let mut subscriptions = following_clusters();
    let mut notes = Notes::default();
    let good = response(type_url::CLUSTER, "1", vec![resource(type_url::CLUSTER, "a", "good")]);
    let verdict = subscriptions.receive(good, &mut notes).expect("asked for");
    subscriptions.answer(verdict);
    let mixed = vec![resource(type_url::CLUSTER, "a", "bad"), resource(type_url::CLUSTER, "b", "good")];
    let verdict = subscriptions.receive(response(type_url::CLUSTER, "2", mixed), &mut notes).expect("asked for");
    let answer = subscriptions.answer(verdict);
    assert_eq!(line(&answer), r#"Cluster v"1" n"nonce of 2"  NACK"#);
    let Request::World(DiscoveryRequest { error_detail: Some(status), .. }) = answer else { unreachable!() };
    assert!(status.message.contains('a') && status.message.contains("it says so itself"), "{status:?}");
    // What was refused is still here in its first version, so it is gone when the server no longer has it.
    let verdict = subscriptions.receive(response(type_url::CLUSTER, "3", vec![]), &mut notes).expect("asked for");
    subscriptions.answer(verdict);
    assert_eq!(notes.0.last().map(String::as_str), Some(" -a -b"));
}

#[test]
fn no_change_is_sent_between_a_response_and_its_answer() {
    let mut subscriptions = following_clusters();
    subscriptions.apply(subscribe(type_url::SECRET, &["one"]));
    subscriptions.changes();
    let secret = response(type_url::SECRET, "1", vec![resource(type_url::SECRET, "one", "bad")]);
    let verdict = subscriptions.receive(secret, &mut Notes::default()).expect("asked for");
    // With the new nonce and without an error it would be an ACK of what is being refused.
    subscriptions.apply(subscribe(type_url::SECRET, &["two"]));
    assert_eq!(subscriptions.changes(), []);
    assert_eq!(line(&subscriptions.answer(verdict)), r#"Secret v"" n"nonce of 1" one,two NACK"#);
}

#[test]
fn a_new_stream_begins_with_the_version_and_without_a_nonce() {
    let mut subscriptions = following_clusters();
    let mut notes = Notes::default();
    let first = response(type_url::CLUSTER, "7", vec![resource(type_url::CLUSTER, "a", "good")]);
    let verdict = subscriptions.receive(first, &mut notes).expect("asked for");
    // The stream is lost before the answer is sent.
    drop(verdict);
    assert_eq!(lines(&subscriptions.first_requests()), [r#"Cluster v"7" n"" "#, r#"Listener v"" n"" "#]);
    let second = response(type_url::CLUSTER, "8", vec![]);
    let verdict = subscriptions.receive(second, &mut notes).expect("asked for");
    assert_eq!(line(&subscriptions.answer(verdict)), r#"Cluster v"8" n"nonce of 8" "#);
    assert_eq!(notes.0.last().map(String::as_str), Some(" -a"));
}

#[test]
fn resources_may_come_wrapped_and_of_a_wrong_type() {
    let mut subscriptions = following_clusters();
    let mut notes = Notes::default();
    let wrapped =
        Wrapped { name: "a".into(), resource: Some(resource(type_url::CLUSTER, "a", "good")), ..Default::default() };
    let wrapper = Any {
        type_url: "type.googleapis.com/envoy.service.discovery.v3.Resource".into(),
        value: wrapped.encode_to_vec().into(),
    };
    let wrong = resource(type_url::LISTENER, "l", "good");
    let both = response(type_url::CLUSTER, "1", vec![wrapper, wrong]);
    let verdict = subscriptions.receive(both, &mut notes).expect("asked for");
    assert_eq!(verdict.refusals[0].name, "l");
    assert_eq!(notes.0, ["a=1 -"]);
    // Nobody asked for these, and an answer without names would ask for all.
    let unasked = response(type_url::ROUTE_CONFIGURATION, "1", vec![]);
    assert!(subscriptions.receive(unasked, &mut notes).is_none());
}

/// One of them would be here and not counted as such, and so it would outlive its removal.
#[test]
fn resources_of_one_name_are_refused_and_what_was_here_stays_until_it_is_gone() {
    let mut subscriptions = following_clusters();
    let mut notes = Notes::default();
    let mut take = |version: &str, resources: Vec<Any>| {
        let verdict = subscriptions.receive(response(type_url::CLUSTER, version, resources), &mut notes).unwrap();
        let Request::World(request) = subscriptions.answer(verdict) else { unreachable!("it is the protocol") };
        let refusals = request.error_detail.as_ref().map(refusal::from_status).unwrap_or_default();
        let refused: Vec<_> = refusals.into_iter().map(|refusal| refusal.name).collect();
        (refused, std::mem::take(&mut notes.0))
    };
    let cluster = |name: &str| resource(type_url::CLUSTER, name, "good");
    take("1", vec![cluster("one")]);
    let listener = resource(type_url::LISTENER, "one", "good");
    let (refused, told) = take("2", vec![cluster("one"), listener, cluster("two")]);
    assert_eq!((refused, told), (vec!["one".to_owned(), "one".to_owned()], vec!["two=2 -".to_owned()]));
    assert_eq!(take("3", vec![cluster("two")]), (Vec::new(), vec!["two=3 -one".to_owned()]));
}

#[test]
fn what_is_given_up_and_wanted_again_at_once_is_asked_for_again() {
    let again = |subscriptions: &mut Subscriptions| {
        subscriptions.apply(Command::Unsubscribe(type_url::SECRET.into(), vec!["one".into()]));
        subscriptions.apply(subscribe(type_url::SECRET, &["one"]));
    };
    let mut subscriptions = Subscriptions::new(Protocol::Delta);
    subscriptions.apply(subscribe(type_url::SECRET, &["one", "two"]));
    subscriptions.first_requests();
    again(&mut subscriptions);
    // Not given up in the same request: whichever a server reads first, the other would undo it.
    let wanted = DeltaDiscoveryRequest {
        type_url: type_url::SECRET.into(),
        resource_names_subscribe: vec!["one".into()],
        ..Default::default()
    };
    assert_eq!(subscriptions.changes(), [Request::Delta(wanted)]);
    assert_eq!(subscriptions.changes(), []);

    let mut subscriptions = Subscriptions::new(Protocol::StateOfTheWorld);
    subscriptions.apply(subscribe(type_url::SECRET, &["one", "two"]));
    subscriptions.first_requests();
    again(&mut subscriptions);
    assert_eq!(lines(&subscriptions.changes()), [r#"Secret v"" n"" two"#, r#"Secret v"" n"" one,two"#]);
    assert_eq!(subscriptions.changes(), []);
    let secrets = ["one", "two"].map(|name| resource(type_url::SECRET, name, "good")).into();
    let verdict = subscriptions.receive(response(type_url::SECRET, "1", secrets), &mut Notes::default()).unwrap();
    again(&mut subscriptions);
    assert_eq!(subscriptions.changes(), [], "it would be an ACK");
    assert_eq!(line(&subscriptions.answer(verdict)), r#"Secret v"1" n"nonce of 1" two"#);
    assert_eq!(lines(&subscriptions.changes()), [r#"Secret v"1" n"nonce of 1" one,two"#]);
}

/// A request says what changed, and costs by that: not by how much is followed (virtual hosts, one for each name that clients ask for).
#[test]
fn a_server_that_is_told_of_each_change_alone_knows_all_that_is_wanted() {
    const NAMES: usize = 100_000;
    let name = |number: usize| format!("routes/{number}");
    let mut subscriptions = Subscriptions::new(Protocol::Delta);
    subscriptions.apply(subscribe(type_url::VIRTUAL_HOST, &[]));
    subscriptions.first_requests();
    subscriptions.apply(Command::Subscribe(type_url::VIRTUAL_HOST.into(), (0..NAMES).map(name).collect()));
    let mut known = std::collections::BTreeSet::new();
    let mut tell = |subscriptions: &mut Subscriptions| {
        for request in subscriptions.changes() {
            let Request::Delta(request) = request else { panic!("{request:?}") };
            known.extend(request.resource_names_subscribe);
            for name in request.resource_names_unsubscribe {
                assert!(known.remove(&name), "{name} is given up, and the server has never heard of it");
            }
        }
        known.len()
    };
    assert_eq!(tell(&mut subscriptions), NAMES);
    let began = std::time::Instant::now();
    for number in 0..1_000 {
        subscriptions.apply(Command::Unsubscribe(type_url::VIRTUAL_HOST.into(), vec![name(number), name(NAMES + 1)]));
        subscriptions.apply(subscribe(type_url::VIRTUAL_HOST, &[&name(NAMES + 2)]));
        subscriptions.apply(Command::Unsubscribe(type_url::VIRTUAL_HOST.into(), vec![name(NAMES + 2)]));
        assert_eq!(tell(&mut subscriptions), NAMES - number - 1);
    }
    // A copy of all names for each took more than a minute.
    assert!(began.elapsed().as_secs() < 10, "{:?}", began.elapsed());
}
