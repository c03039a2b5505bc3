//! Which route a request takes, and what it becomes: Envoy's rules as tables of named cases.

#![allow(deprecated)] // Deprecated fields that weft reads are tested too.

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use quickcheck::{TestResult, quickcheck};
use support::*;
use weft_core::compile::Strictness;
use weft_core::matching::PathMatch;
use weft_core::request::{OwnedRequest, Scheme};
use weft_core::retry::timeout_of_a_try;
use weft_core::route::{Action, Forward, MirrorHost, Redirect, RouteTable};
use weft_core::trace::{Silent, Subject, Trace};
use weft_protos::envoy::config::core::v3::{ConfigSource, config_source};
use weft_protos::envoy::config::route::v3 as proto;
use weft_protos::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier as H;
use weft_protos::envoy::config::route::v3::query_parameter_matcher::QueryParameterMatchSpecifier as Q;
use weft_protos::envoy::config::route::v3::redirect_action::{PathRewriteSpecifier, SchemeRewriteSpecifier};
use weft_protos::envoy::config::route::v3::route_action::ClusterSpecifier;
use weft_protos::envoy::config::route::v3::route_match::PathSpecifier;
use weft_protos::envoy::config::route::v3::weighted_cluster::ClusterWeight;
use weft_protos::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use weft_protos::envoy::r#type::matcher::v3::{RegexMatchAndSubstitute, RegexMatcher, StringMatcher};
use weft_protos::envoy::r#type::v3::Int64Range;
use weft_protos::google::protobuf::{BoolValue, Duration as ProtoDuration, UInt32Value};

fn regex(text: &str) -> RegexMatcher {
    RegexMatcher { regex: text.into(), ..Default::default() }
}

fn string(pattern: MatchPattern, ignore_case: bool) -> StringMatcher {
    StringMatcher { ignore_case, match_pattern: Some(pattern) }
}

/// The name of the route that a request takes.
fn route_of(table: &RouteTable, request: &weft_core::request::OwnedRequest) -> String {
    table.route(request, &mut Fixed(0.0), &mut Silent).route.map_or("none".into(), |route| route.name.to_string())
}

#[test]
fn virtual_hosts_are_found_in_envoys_order() {
    let domains: &[&[&str]] = &[
        &["*"],
        &["reviews", "reviews:9080", "Reviews.Default.svc.cluster.local"],
        &["*.example.com"],
        &["*.api.example.com"],
        &["www.example.*"],
        &["www.*"],
        &["*-shop.example.com"],
        &["[fd77:ef7::7]", "[fd77:ef7::7]:9080"],
    ];
    let hosts = domains.iter().map(|domains| host(domains[0], domains, vec![])).collect();
    let table = table(&configuration(hosts));
    for (authority, expected) in [
        ("reviews", "reviews"),
        ("REVIEWS", "reviews"),
        ("reviews:9080", "reviews"),
        ("reviews:80", "*"),
        ("reviews.default.svc.cluster.local", "reviews"),
        ("a.example.com", "*.example.com"),
        ("a.b.example.com", "*.example.com"),
        ("a.api.example.com", "*.api.example.com"),
        (".example.com", "*"),
        ("example.com", "*"),
        ("www.example.com", "*.example.com"),
        ("www.example.org", "www.example.*"),
        ("www.other.org", "www.*"),
        ("my-shop.example.com", "*-shop.example.com"),
        ("www.", "*"),
        ("[FD77:EF7::7]:9080", "[fd77:ef7::7]"),
        ("", "*"),
    ] {
        let found = table.virtual_host(authority.as_bytes()).map(|host| host.name.to_string());
        assert_eq!(found.as_deref(), Some(expected), "{authority}");
    }
}

#[test]
fn the_port_is_ignored_only_if_the_configuration_says_so() {
    let mut configuration = configuration(vec![host("reviews", &["reviews", "[::1]"], vec![])]);
    let strict = table(&configuration);
    configuration.ignore_port_in_host_matching = true;
    let ignoring = table(&configuration);
    for (authority, with_port, without) in [
        ("reviews", true, true),
        ("reviews:1", true, false),
        ("[::1]", true, true),
        ("[::1]:80", true, false),
        ("reviews:", false, false),
        ("reviews:x", false, false),
    ] {
        assert_eq!(ignoring.virtual_host(authority.as_bytes()).is_some(), with_port, "{authority} ignoring");
        assert_eq!(strict.virtual_host(authority.as_bytes()).is_some(), without, "{authority} strict");
    }
}

#[test]
fn one_domain_in_two_virtual_hosts_is_refused_by_name() {
    let configuration = configuration(vec![host("a", &["x.y", "*.y"], vec![]), host("b", &["X.y"], vec![])]);
    let problems = RouteTable::compile(&configuration, Strictness::Refuse).unwrap_err().0;
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].path, "RouteConfiguration.virtual_hosts[1].domains[0]");
}

quickcheck! {
    /// The hashed look-up agrees with trying every domain as Envoy's documentation says it.
    fn virtual_host_lookup_agrees_with_a_linear_search(domains: Vec<(u8, u8)>, authority: (u8, u8)) -> TestResult {
        let labels = ["a", "b", "ab", "a.b", "b.a.b", "shop.a", "*"];
        let text = |(shape, label): (u8, u8)| {
            let label = labels[label as usize % labels.len()];
            match shape % 3 { 0 => label.to_owned(), 1 => format!("*.{label}"), _ => format!("{label}.*") }
        };
        let mut domains: Vec<String> = domains.into_iter().map(text).filter(|domain| domain.matches('*').count() < 2).collect();
        domains.sort();
        domains.dedup();
        let authority = text(authority).replace('*', "x");
        if domains.is_empty() { return TestResult::discard(); }
        let table = table(&configuration(domains.iter().map(|domain| host(domain, &[domain], vec![])).collect()));
        let rank = |domain: &String| -> Option<(u8, usize)> {
            if domain == "*" { return Some((0, 0)); }
            if let Some(suffix) = domain.strip_prefix('*') {
                return (authority.len() > suffix.len() && authority.ends_with(suffix)).then_some((2, suffix.len()));
            }
            if let Some(prefix) = domain.strip_suffix('*') {
                return (authority.len() > prefix.len() && authority.starts_with(prefix)).then_some((1, prefix.len()));
            }
            (*domain == authority).then_some((3, 0))
        };
        let best = domains.iter().filter_map(|domain| Some((rank(domain)?, domain))).max().map(|(_, domain)| domain.as_str());
        TestResult::from_bool(table.virtual_host(authority.as_bytes()).map(|host| &*host.name) == best)
    }
}

#[test]
fn paths_match_without_query() {
    let matcher = |specifier, sensitive: bool| proto::RouteMatch {
        path_specifier: Some(specifier),
        case_sensitive: Some(BoolValue { value: sensitive }),
        ..Default::default()
    };
    let cases: &[(proto::RouteMatch, &[&str], &[&str])] = &[
        (prefix("/a"), &["/a", "/ab", "/a/b?x=1", "/a?q", "/a#f"], &["/", "/A", "/?/a"]),
        (matcher(PathSpecifier::Prefix("/a".into()), false), &["/A", "/aB"], &["/b"]),
        (matcher(PathSpecifier::Path("/a".into()), true), &["/a", "/a?x=/b"], &["/a/", "/ab", "/A"]),
        (matcher(PathSpecifier::Path("/a".into()), false), &["/A"], &["/Ab"]),
        (
            matcher(PathSpecifier::PathSeparatedPrefix("/a/b".into()), true),
            &["/a/b", "/a/b/c", "/a/b?x"],
            &["/a/bc", "/a"],
        ),
        (
            matcher(PathSpecifier::SafeRegex(regex("/[a-z]+|/x")), true),
            &["/abc", "/x", "/abc?1"],
            &["/abc1", "/", "x/abc"],
        ),
        // \d is ASCII, as in RE2.
        (matcher(PathSpecifier::SafeRegex(regex(r"/\d+")), true), &["/42"], &["/\u{664}"]),
    ];
    for (matcher, hits, misses) in cases {
        let table = routes(vec![to("r", matcher.clone())]);
        for path in *hits {
            assert_eq!(route_of(&table, &request("a", path, &[])), "r", "{path} should match {matcher:?}");
        }
        for path in *misses {
            assert_eq!(route_of(&table, &request("a", path, &[])), "none", "{path} should not match {matcher:?}");
        }
    }
}

#[test]
fn headers_match_as_envoy_matches_them() {
    let matcher = |name: &str, specifier| proto::HeaderMatcher {
        name: name.into(),
        header_match_specifier: specifier,
        ..Default::default()
    };
    let exact = |text: &str| Some(H::StringMatch(string(MatchPattern::Exact(text.into()), false)));
    let inverted = |matcher| proto::HeaderMatcher { invert_match: true, ..matcher };
    let lenient = |matcher| proto::HeaderMatcher { treat_missing_header_as_empty: true, ..matcher };
    type Case<'a> = (&'a str, proto::HeaderMatcher, &'a [(&'a str, &'a str)], bool);
    let cases: &[Case<'_>] = &[
        ("equal", matcher("end-user", exact("jason")), &[("End-User", "jason")], true),
        ("value is case sensitive", matcher("end-user", exact("jason")), &[("end-user", "Jason")], false),
        (
            "unless it ignores case",
            matcher("end-user", Some(H::StringMatch(string(MatchPattern::Exact("jason".into()), true)))),
            &[("end-user", "Jason")],
            true,
        ),
        ("name in any case", matcher("END-USER", exact("jason")), &[("end-user", "jason")], true),
        ("absent", matcher("end-user", exact("jason")), &[], false),
        ("absent never matches, inverted neither", inverted(matcher("end-user", exact("jason"))), &[], false),
        (
            "present and different, inverted",
            inverted(matcher("end-user", exact("jason"))),
            &[("end-user", "bob")],
            true,
        ),
        ("absent as empty, inverted", inverted(lenient(matcher("end-user", exact("jason")))), &[], true),
        ("absent as empty, equal to empty", lenient(matcher("end-user", exact(""))), &[], true),
        ("several fields are joined", matcher("x", exact("a,b")), &[("x", "a"), ("x", "b")], true),
        ("no specifier means present", matcher("x", None), &[("x", "")], true),
        ("present", matcher("x", Some(H::PresentMatch(true))), &[], false),
        ("absent wanted", matcher("x", Some(H::PresentMatch(false))), &[], true),
        ("present inverted", inverted(matcher("x", Some(H::PresentMatch(true)))), &[], true),
        ("prefix", matcher("x", Some(H::PrefixMatch("ab".into()))), &[("x", "abc")], true),
        ("suffix", matcher("x", Some(H::SuffixMatch("bc".into()))), &[("x", "abc")], true),
        ("contains", matcher("x", Some(H::ContainsMatch("b".into()))), &[("x", "abc")], true),
        ("regex is whole", matcher("x", Some(H::SafeRegexMatch(regex("b")))), &[("x", "abc")], false),
        ("regex", matcher("x", Some(H::SafeRegexMatch(regex("a.c")))), &[("x", "abc")], true),
        ("in range", matcher("x", Some(H::RangeMatch(Int64Range { start: -10, end: 0 }))), &[("x", "-1")], true),
        ("end is outside", matcher("x", Some(H::RangeMatch(Int64Range { start: -10, end: 0 }))), &[("x", "0")], false),
        ("not a number", matcher("x", Some(H::RangeMatch(Int64Range { start: -10, end: 10 }))), &[("x", "1.0")], false),
        ("method", matcher(":method", exact("GET")), &[], true),
        ("authority", matcher(":authority", exact("a")), &[], true),
        ("authority by its old name", matcher("Host", exact("a")), &[], true),
        ("scheme", matcher(":scheme", exact("https")), &[], false),
        ("path with query", matcher(":path", exact("/p?q=1")), &[], true),
    ];
    for (name, matcher, headers, expected) in cases {
        let matched = proto::RouteMatch { headers: vec![matcher.clone()], ..prefix("/") };
        let table = routes(vec![to("r", matched)]);
        assert_eq!(route_of(&table, &request("a", "/p?q=1", headers)) == "r", *expected, "{name}");
    }
}

#[test]
fn query_parameters_match_their_first_value() {
    let matcher = |specifier| proto::RouteMatch {
        query_parameters: vec![proto::QueryParameterMatcher {
            name: "q".into(),
            query_parameter_match_specifier: specifier,
        }],
        ..prefix("/")
    };
    let exact = Some(Q::StringMatch(string(MatchPattern::Exact("1".into()), false)));
    for (path, specifier, expected) in [
        ("/?q=1", exact.clone(), true),
        ("/?a=2&q=1", exact.clone(), true),
        ("/?q=2&q=1", exact.clone(), false),
        ("/?qq=1", exact.clone(), false),
        ("/q=1", exact.clone(), false),
        ("/?q=1#f", exact, true),
        ("/?q", Some(Q::PresentMatch(true)), true),
        ("/?q=", None, true),
        ("/", Some(Q::PresentMatch(true)), false),
    ] {
        let table = routes(vec![to("r", matcher(specifier))]);
        assert_eq!(route_of(&table, &request("a", path, &[])) == "r", expected, "{path}");
    }
}

#[test]
fn the_first_matching_route_wins_and_the_trace_says_why_others_did_not() {
    struct Notes(Vec<(bool, String)>);
    impl Trace for Notes {
        fn considered(&mut self, subject: Subject<'_>, matched: bool, reason: impl FnOnce() -> String) {
            if let Subject::Route(_) = subject {
                self.0.push((matched, reason()));
            }
        }
    }
    let jason = proto::RouteMatch {
        headers: vec![proto::HeaderMatcher {
            name: "end-user".into(),
            header_match_specifier: Some(H::ExactMatch("jason".into())),
            ..Default::default()
        }],
        ..prefix("/")
    };
    let table =
        routes(vec![to("admin", prefix("/admin")), to("v2", jason), to("v1", prefix("/")), to("never", prefix("/"))]);
    let mut notes = Notes(Vec::new());
    let found = table.route(&request("a", "/x?y", &[("end-user", "bob")]), &mut Fixed(0.0), &mut notes);
    assert_eq!(found.route.map(|route| &*route.name), Some("v1"));
    assert_eq!(
        notes.0,
        [
            (false, "wanted: path begins with `/admin`; the path is `/x`".to_owned()),
            (false, "wanted: header end-user equal to `jason`; it is `bob`".to_owned()),
            (true, "path begins with `/`".to_owned()),
        ]
    );
}

/// Matchers that are alike and of which many match the same paths, by a number.
fn alike(kind: u8, number: u16) -> proto::RouteMatch {
    let number = number % 40;
    let specifier = match kind % 10 {
        0 => PathSpecifier::Path(format!("/svc/{number}")),
        1 => PathSpecifier::Prefix(format!("/svc/{number}")),
        2 => PathSpecifier::PathSeparatedPrefix(format!("/svc/{number}")),
        3 => PathSpecifier::SafeRegex(regex(&format!("/svc/{number}[0-9]*"))),
        4 => PathSpecifier::SafeRegex(regex(&format!("/.*/{number}"))),
        5 => PathSpecifier::SafeRegex(regex(&format!("/svc/{number}|/{number}/.*"))),
        6 => PathSpecifier::SafeRegex(regex(&format!("(?i)/SVC/{number}"))),
        7 => PathSpecifier::SafeRegex(regex(&format!("/(svc/)?{number}(/x)?"))),
        8 => PathSpecifier::SafeRegex(regex(".*")),
        _ => PathSpecifier::Path(format!("/Svc/{number}")),
    };
    let mut matcher = proto::RouteMatch {
        path_specifier: Some(specifier),
        case_sensitive: Some(BoolValue { value: kind % 10 != 9 }),
        ..Default::default()
    };
    // What matches almost every path must not hide what comes after it.
    if kind.is_multiple_of(3) || kind % 10 == 8 {
        matcher.headers = vec![proto::HeaderMatcher {
            name: "number".into(),
            header_match_specifier: Some(H::ExactMatch(number.to_string())),
            ..Default::default()
        }];
    }
    matcher
}

quickcheck! {
    /// A long list is looked up and a short one is read; with a trace every list is read, from its beginning.
    fn a_long_list_is_as_if_it_were_read(list: Vec<(u8, u16)>, paths: Vec<(u8, u16)>, times: u8) -> TestResult {
        struct All;
        impl Trace for All {
            fn considered(&mut self, _: Subject<'_>, _: bool, _: impl FnOnce() -> String) {}
        }
        let length = list.len();
        let many = list.into_iter().cycle().take(length * usize::from(times % 8 + 1));
        let table = routes(
            many.enumerate()
                .map(|(position, (kind, number))| to(&position.to_string(), alike(kind, number ^ (position / length) as u16)))
                .collect(),
        );
        TestResult::from_bool(paths.into_iter().all(|(kind, number)| {
            let number = number % 40;
            let path = match kind % 5 {
                0 => format!("/svc/{number}"),
                1 => format!("/svc/{number}/x?y=/svc/1"),
                2 => format!("/{number}/{number}"),
                3 => format!("/SVC/{number}"),
                _ => format!("/{number}"),
            };
            let asked = request("a", &path, &[("number", &number.to_string())]);
            let read = table.route(&asked, &mut Fixed(0.0), &mut All).route.map(|route| &*route.name);
            let looked_up = table.route(&asked, &mut Fixed(0.0), &mut Silent).route.map(|route| &*route.name);
            read == looked_up
        }))
    }
}

fn by_regex(text: &str) -> proto::RouteMatch {
    proto::RouteMatch { path_specifier: Some(PathSpecifier::SafeRegex(regex(text))), ..Default::default() }
}

#[test]
fn hundreds_of_expressions_that_begin_alike_are_told_apart() {
    // What no automaton of many can be made of is tried, and only with those beside it.
    for odd in ["/[a-z]+/item-N", "/(?u:\\b)?[a-z]+/item-N"] {
        let list = (0..1200)
            .map(|at| {
                let text = if at == 700 { odd } else { "/[a-z]+/item-N" };
                to(&at.to_string(), by_regex(&text.replace('N', &at.to_string())))
            })
            .collect();
        let table = routes(list);
        for at in [0, 511, 512, 699, 700, 701, 1023, 1024, 1199] {
            assert_eq!(route_of(&table, &request("a", &format!("/any/item-{at}?x"), &[])), at.to_string());
        }
        assert_eq!(route_of(&table, &request("a", "/any/item-1200", &[])), "none");
        // Each of these is a text that the automata have not seen: they forget, and give up.
        for text in 0..300 {
            let path = format!("/{}/item-{}", "abcdefghij".repeat(40), text * 4);
            assert_eq!(route_of(&table, &request("a", &path, &[])), (text * 4).to_string());
        }
    }
}

#[test]
fn an_expression_that_is_none_by_itself_is_refused() {
    for text in ["a)|(?:b", "(", "a)", "(?i"] {
        let found = RouteTable::compile(
            &configuration(vec![host("h", &["*"], vec![to("r", by_regex(text))])]),
            Strictness::Refuse,
        );
        assert_eq!(
            found.unwrap_err().0[0].path,
            "RouteConfiguration.virtual_hosts[0].routes[0].match.safe_regex",
            "{text}"
        );
    }
}

#[test]
fn what_frames_a_message_is_edited_by_nobody() {
    let framing = ["Connection", "content-length", "TE", "transfer-encoding", "upgrade"];
    let of_connection = ["keep-alive", "Proxy-Connection"];
    let mut route = to("r", prefix("/"));
    let added: Vec<_> = framing.iter().chain(&of_connection).map(|name| add(name, "1", 0)).collect();
    route.request_headers_to_add = added.clone();
    route.response_headers_to_add = added;
    // Nothing is left of the latter two, so nothing is wrong with taking them away.
    let removed: Vec<_> = framing.iter().chain(&of_connection).map(|name| (*name).to_owned()).collect();
    route.request_headers_to_remove = removed.clone();
    route.response_headers_to_remove = removed;
    let found = RouteTable::compile(&configuration(vec![host("h", &["*"], vec![route])]), Strictness::Refuse);
    let paths: Vec<_> = found.unwrap_err().0.into_iter().map(|problem| problem.path).collect();
    let at = "RouteConfiguration.virtual_hosts[0].routes[0]";
    let mut expected = Vec::new();
    for side in ["request", "response"] {
        expected.extend((0..7).map(|index| format!("{at}.{side}_headers_to_add[{index}].header.key")));
        expected.extend((0..5).map(|index| format!("{at}.{side}_headers_to_remove[{index}]")));
    }
    assert_eq!(paths, expected);
}

fn forward(action: proto::RouteAction) -> (RouteTable, proto::RouteAction) {
    let route = proto::Route {
        r#match: Some(prefix("/old")),
        action: Some(proto::route::Action::Route(action.clone())),
        ..Default::default()
    };
    (routes(vec![route]), action)
}

fn only_forward(table: &RouteTable) -> &Forward {
    match &table.virtual_hosts[0].routes[0].action {
        Action::Forward(forward) => forward,
        other => panic!("not a forward: {other:?}"),
    }
}

fn cluster(name: &str) -> Option<ClusterSpecifier> {
    Some(ClusterSpecifier::Cluster(name.into()))
}

#[test]
fn an_absent_timeout_is_15_seconds_and_zero_is_none() {
    for (timeout, expected) in [
        (None, Some(Duration::from_secs(15))),
        (Some(ProtoDuration { seconds: 0, nanos: 0 }), None),
        (Some(ProtoDuration { seconds: 0, nanos: 500_000_000 }), Some(Duration::from_millis(500))),
    ] {
        let (table, _) = forward(proto::RouteAction { cluster_specifier: cluster("c"), timeout, ..Default::default() });
        assert_eq!(only_forward(&table).timeout, expected, "{timeout:?}");
    }
}

#[test]
fn grpc_requests_get_the_timeout_they_ask_for_if_the_route_lets_them() {
    let make = |most: Option<i64>| {
        forward(proto::RouteAction {
            cluster_specifier: cluster("c"),
            timeout: Some(ProtoDuration { seconds: 3, nanos: 0 }),
            max_grpc_timeout: most.map(|seconds| ProtoDuration { seconds, nanos: 0 }),
            ..Default::default()
        })
        .0
    };
    let seconds = |count| Some(Duration::from_secs(count));
    for (most, kind, asked, expected) in [
        (None, "application/grpc", Some("9S"), seconds(3)),
        (Some(0), "application/grpc", Some("9S"), seconds(9)),
        (Some(0), "application/grpc+proto", None, None),
        (Some(5), "application/grpc", Some("9S"), seconds(5)),
        (Some(5), "application/grpc", Some("200m"), Some(Duration::from_millis(200))),
        (Some(5), "application/grpc", None, seconds(5)),
        (Some(5), "application/grpc", Some("999999999S"), seconds(5)),
        (Some(5), "application/json", Some("9S"), seconds(3)),
        (Some(5), "application/grpc-web", Some("9S"), seconds(3)),
    ] {
        let mut headers = vec![("content-type", kind)];
        headers.extend(asked.map(|asked| ("grpc-timeout", asked)));
        let found = only_forward(&make(most)).timeout_for(&request("a", "/", &headers));
        assert_eq!(found, expected, "{most:?} {kind} {asked:?}");
    }
}

#[test]
fn a_server_is_told_of_the_limit_that_holds_for_its_call() {
    let time = |millis: i64| ProtoDuration { seconds: millis / 1000, nanos: (millis % 1000 * 1_000_000) as i32 };
    let millis = |count| Some(Duration::from_millis(count));
    let older = |most: i64| (None, Some(most));
    let newer = |limit: i64, most: Option<i64>| (Some((limit, most)), None);
    for ((stream, older), kind, asked, expected) in [
        ((None, None), "application/grpc", Some("90S"), None),
        (older(0), "application/grpc", Some("100m"), millis(100)),
        (older(300), "application/grpc", Some("100m"), millis(100)),
        (older(300), "application/grpc+proto", Some("90S"), millis(300)),
        (older(300), "application/grpc", None, millis(300)),
        (older(300), "text/plain", Some("90S"), None),
        // A try may take 2 s.
        (older(0), "application/grpc", Some("90S"), millis(2000)),
        (newer(60_000, Some(0)), "application/grpc", Some("90S"), millis(90_000)),
        (newer(60_000, Some(300)), "application/grpc", Some("90S"), millis(300)),
        (newer(60_000, Some(300)), "application/grpc", Some("nonsense"), millis(60_000)),
        (newer(300, None), "application/grpc", Some("100m"), millis(300)),
        (newer(300, None), "application/grpc", None, millis(300)),
        (newer(0, None), "application/grpc", Some("100m"), None),
        (newer(300, Some(0)), "text/plain", Some("100m"), None),
    ] {
        let (table, _) = forward(proto::RouteAction {
            cluster_specifier: cluster("c"),
            timeout: Some(time(70_000)),
            max_grpc_timeout: older.map(time),
            max_stream_duration: stream.map(|(limit, most)| proto::route_action::MaxStreamDuration {
                max_stream_duration: Some(time(limit)),
                grpc_timeout_header_max: most.map(time),
                ..Default::default()
            }),
            retry_policy: Some(proto::RetryPolicy { per_try_timeout: Some(time(2000)), ..Default::default() }),
            ..Default::default()
        });
        let forward = only_forward(&table);
        let mut headers = vec![("content-type", kind)];
        headers.extend(asked.map(|asked| ("grpc-timeout", asked)));
        let request = request("a", "/", &headers);
        let (timeout, life) = (forward.timeout_for(&request), forward.stream_duration_for(&request, None));
        let of_a_try = timeout_of_a_try(forward.retry.as_deref(), timeout);
        let told = forward.grpc_timeout_to_tell(&request, of_a_try, life);
        assert_eq!(told, expected, "{stream:?} {older:?} {kind} {asked:?}");
        assert_eq!(of_a_try, timeout.map_or(millis(2000), |limit| millis(2000).map(|own| own.min(limit))));
    }
}

#[test]
fn max_stream_duration_takes_the_place_of_both_timeouts() {
    let time = |millis: i64| ProtoDuration { seconds: 0, nanos: (millis * 1_000_000) as i32 };
    let millis = |count| Some(Duration::from_millis(count));
    // The route's limit, the most that grpc-timeout may say, what the request says, and what holds where the manager's limit is 70 ms.
    for (limit, most, asked, expected) in [
        (None, None, None, millis(70)),
        (Some(50), None, None, millis(50)),
        (Some(0), None, None, None),
        (Some(50), None, Some("20m"), millis(50)),
        (Some(50), Some(0), Some("20m"), millis(20)),
        (Some(50), Some(0), Some("90m"), millis(90)),
        (Some(50), Some(60), Some("90m"), millis(60)),
        (Some(50), Some(60), Some("nonsense"), millis(50)),
        (None, Some(60), None, millis(70)),
        (Some(0), Some(0), Some("20m"), millis(20)),
    ] {
        let (table, _) = forward(proto::RouteAction {
            cluster_specifier: cluster("c"),
            timeout: Some(time(10)),
            max_grpc_timeout: Some(time(10)),
            max_stream_duration: Some(proto::route_action::MaxStreamDuration {
                max_stream_duration: limit.map(time),
                grpc_timeout_header_max: most.map(time),
                ..Default::default()
            }),
            ..Default::default()
        });
        let forward = only_forward(&table);
        let asked: Vec<_> = asked.map(|asked| ("grpc-timeout", asked)).into_iter().collect();
        let headers = [&[("content-type", "application/grpc")], &*asked].concat();
        let request = request("a", "/", &headers);
        let found = forward.stream_duration_for(&request, millis(70));
        assert_eq!(found, expected, "{limit:?} {most:?} {asked:?}");
        assert_eq!(forward.timeout_for(&request), None);
    }
    let (table, _) = forward(proto::RouteAction { cluster_specifier: cluster("c"), ..Default::default() });
    assert_eq!(only_forward(&table).stream_duration_for(&request("a", "/", &[]), millis(70)), millis(70));
}

#[test]
fn paths_are_rewritten_and_keep_their_query() {
    let regex_rewrite = |pattern: &str, substitution: &str| {
        Some(RegexMatchAndSubstitute { pattern: Some(regex(pattern)), substitution: substitution.into() })
    };
    for (prefix_rewrite, regex_rewrite, path, expected) in [
        ("/new", None, "/old/x?y=1", "/new/x?y=1"),
        ("/", None, "/old/x", "//x"),
        ("/new", None, "/old", "/new"),
        ("", regex_rewrite("^/old/([^/]+)/(.*)$", r"/\2/\1"), "/old/a/b?c", "/b/a?c"),
        ("", regex_rewrite("o", "$0"), "/old/o", "/$0ld/$0"),
        ("", regex_rewrite("o", r"\\"), "/old", r"/\ld"),
    ] {
        let (table, _) = forward(proto::RouteAction {
            cluster_specifier: cluster("c"),
            prefix_rewrite: prefix_rewrite.into(),
            regex_rewrite,
            ..Default::default()
        });
        let rewrite = only_forward(&table).path_rewrite.as_ref().expect("there is a rewrite");
        let found = rewrite.apply(&table.virtual_hosts[0].routes[0].conditions.path, path.as_bytes());
        assert_eq!(String::from_utf8_lossy(&found), expected, "{path}");
    }
}

#[test]
fn redirects_keep_what_they_do_not_name() {
    let https = Some(SchemeRewriteSpecifier::HttpsRedirect(true));
    let scheme = |name: &str| Some(SchemeRewriteSpecifier::SchemeRedirect(name.into()));
    let plain = proto::RedirectAction::default;
    for (action, authority, path, expected) in [
        (
            proto::RedirectAction { scheme_rewrite_specifier: https.clone(), ..plain() },
            "a",
            "/old?x",
            "https://a/old?x",
        ),
        (proto::RedirectAction { scheme_rewrite_specifier: https.clone(), ..plain() }, "a:80", "/old", "https://a/old"),
        (proto::RedirectAction { scheme_rewrite_specifier: https, ..plain() }, "a:8080", "/old", "https://a:8080/old"),
        (
            proto::RedirectAction { scheme_rewrite_specifier: scheme("https"), ..plain() },
            "a:80",
            "/old",
            "https://a/old",
        ),
        (proto::RedirectAction { scheme_rewrite_specifier: scheme("ws"), ..plain() }, "a:81", "/old", "ws://a:81/old"),
        (proto::RedirectAction { port_redirect: 8443, ..plain() }, "a:80", "/old", "http://a:8443/old"),
        (proto::RedirectAction { port_redirect: 1, ..plain() }, "[::1]:80", "/old", "http://[::1]:1/old"),
        (proto::RedirectAction { host_redirect: "b".into(), ..plain() }, "a:80", "/old", "http://b/old"),
        (proto::RedirectAction { strip_query: true, ..plain() }, "a", "/old?x", "http://a/old"),
        (
            proto::RedirectAction {
                path_rewrite_specifier: Some(PathRewriteSpecifier::PathRedirect("/n".into())),
                ..plain()
            },
            "a",
            "/old?x",
            "http://a/n?x",
        ),
        (
            proto::RedirectAction {
                path_rewrite_specifier: Some(PathRewriteSpecifier::PathRedirect("/n?own".into())),
                strip_query: true,
                ..plain()
            },
            "a",
            "/old?x",
            "http://a/n?own",
        ),
        (
            proto::RedirectAction {
                path_rewrite_specifier: Some(PathRewriteSpecifier::PrefixRewrite("/n".into())),
                ..plain()
            },
            "a",
            "/old/b?x",
            "http://a/n/b?x",
        ),
    ] {
        let route = proto::Route {
            r#match: Some(prefix("/old")),
            action: Some(proto::route::Action::Redirect(action.clone())),
            ..Default::default()
        };
        let table = routes(vec![route]);
        let route = &table.virtual_hosts[0].routes[0];
        let Action::Redirect(redirect) = &route.action else { panic!("not a redirect") };
        let location = redirect.location(&route.conditions.path, &request(authority, path, &[]));
        assert_eq!(String::from_utf8_lossy(&location), expected, "{action:?}");
    }
}

#[test]
fn a_redirect_from_https_leaves_out_the_port_of_https() {
    let (scheme, any) = (Some("http".into()), PathMatch::Prefix { text: "/".into(), ignore_case: false });
    let redirect =
        Redirect { status: 301, scheme, host: None, port: None, path: None, path_rewrite: None, strip_query: false };
    for (authority, expected) in [("a:443", "http://a/"), ("a:80", "http://a:80/"), ("a", "http://a/")] {
        let request = OwnedRequest { scheme: Scheme::Https, ..request(authority, "/", &[]) };
        assert_eq!(String::from_utf8_lossy(&redirect.location(&any, &request)), expected, "{authority}");
    }
}

fn weighted(weights: &[u32]) -> RouteTable {
    let clusters = weights
        .iter()
        .enumerate()
        .map(|(index, weight)| ClusterWeight {
            name: index.to_string(),
            weight: Some(UInt32Value { value: *weight }),
            ..Default::default()
        })
        .collect();
    let specifier = ClusterSpecifier::WeightedClusters(proto::WeightedCluster { clusters, ..Default::default() });
    forward(proto::RouteAction { cluster_specifier: Some(specifier), ..Default::default() }).0
}

#[test]
fn weights_divide_the_line_in_order() {
    let table = weighted(&[0, 80, 20, 0]);
    for (die, expected) in [(0.0, "1"), (0.79, "1"), (0.8, "2"), (0.999_999, "2")] {
        assert_eq!(&*only_forward(&table).pick(&mut Fixed(die)).cluster, expected, "{die}");
    }
}

quickcheck! {
    /// A cluster of weight zero is never chosen, whatever the dice.
    fn no_share_no_request(weights: Vec<u8>, die: u64) -> TestResult {
        struct Die(u64);
        impl weft_core::random::Random for Die {
            fn draw(&mut self, _: weft_core::random::Draw) -> u64 { self.0 }
        }
        let weights: Vec<u32> = weights.into_iter().map(u32::from).collect();
        if weights.iter().sum::<u32>() == 0 { return TestResult::discard(); }
        let table = weighted(&weights);
        TestResult::from_bool(only_forward(&table).pick(&mut Die(die)).weight > 0)
    }
}

#[test]
fn everything_wrong_with_a_configuration_is_said_at_once_with_its_path() {
    let mut bad_regex = to("a", prefix("/"));
    bad_regex.r#match =
        Some(proto::RouteMatch { path_specifier: Some(PathSpecifier::SafeRegex(regex("("))), ..Default::default() });
    let weightless = proto::Route {
        action: Some(proto::route::Action::Route(proto::RouteAction {
            cluster_specifier: Some(ClusterSpecifier::WeightedClusters(proto::WeightedCluster::default())),
            ..Default::default()
        })),
        ..to("b", prefix("/"))
    };
    let nameless = to("", prefix("/"));
    let retry = proto::Route {
        action: Some(proto::route::Action::Route(proto::RouteAction {
            cluster_specifier: cluster("c"),
            retry_policy: Some(proto::RetryPolicy { retry_on: "5xx,sometimes".into(), ..Default::default() }),
            ..Default::default()
        })),
        ..to("c", prefix("/"))
    };
    let configuration = configuration(vec![host("h", &[], vec![bad_regex, weightless, nameless, retry])]);
    let problems = RouteTable::compile(&configuration, Strictness::Refuse).unwrap_err().0;
    let paths: Vec<&str> = problems.iter().map(|problem| problem.path.as_str()).collect();
    assert_eq!(
        paths,
        [
            "RouteConfiguration.virtual_hosts[0].domains",
            "RouteConfiguration.virtual_hosts[0].routes[0].match.safe_regex",
            "RouteConfiguration.virtual_hosts[0].routes[1].route.weighted_clusters",
            "RouteConfiguration.virtual_hosts[0].routes[2].route",
            "RouteConfiguration.virtual_hosts[0].routes[3].route.retry_policy.retry_on",
        ]
    );
    let lenient = RouteTable::compile(&configuration, Strictness::Collect).expect("collected, not refused");
    assert_eq!(lenient.not_applied, problems);
}

#[test]
fn header_edits_remove_then_overwrite_then_add() {
    const APPEND: i32 = 0;
    const IF_ABSENT: i32 = 1;
    const OVERWRITE: i32 = 2;
    const IF_PRESENT: i32 = 3;
    let route = proto::Route {
        request_headers_to_add: vec![
            add("X-Many", "2", APPEND),
            add("x-new", "n", IF_ABSENT),
            add("x-many", "never", IF_ABSENT),
            add("x-set", "over", OVERWRITE),
            add("x-missing", "never", IF_PRESENT),
            add("x-there", "changed", IF_PRESENT),
            add("x-protocol", "%PROTOCOL% 100%%", OVERWRITE),
            add("x-empty", "%HOSTNAME%", OVERWRITE),
        ],
        request_headers_to_remove: vec!["X-Gone".into()],
        ..to("r", prefix("/"))
    };
    let table = routes(vec![route]);
    let mut headers = HeaderList::of(&[("x-many", "1"), ("x-gone", "g"), ("x-set", "old"), ("x-there", "t")]);
    table.virtual_hosts[0].routes[0].edits.request.apply(&mut headers, &OnlyProtocol);
    let found: BTreeMap<&str, Vec<&str>> = headers.0.iter().fold(BTreeMap::new(), |mut map, (name, value)| {
        map.entry(name.as_str()).or_insert_with(Vec::new).push(value.as_str());
        map
    });
    let expected: BTreeMap<&str, Vec<&str>> = [
        ("x-many", vec!["1", "2"]),
        ("x-new", vec!["n"]),
        ("x-set", vec!["over"]),
        ("x-there", vec!["changed"]),
        ("x-protocol", vec!["HTTP/1.1 100%"]),
    ]
    .into();
    assert_eq!(found, expected);
}

/// Wants to be told of everything, so that routes are compared one after the other.
struct Everything;

impl Trace for Everything {
    fn considered(&mut self, _: Subject<'_>, _: bool, _: impl FnOnce() -> String) {}
}

quickcheck! {
    /// Many routes are looked up, and the first that matches is the same as if they were compared one after the other.
    fn a_long_list_is_searched_as_a_short_one(kinds: Vec<(u8, u8, bool)>, paths: Vec<u8>) -> TestResult {
        let text = |number: u8| ["/", "/a", "/a/b", "/a/bc", "/b", "/a/b/c", "/A", ""][usize::from(number) % 8];
        let list = kinds.iter().cycle().take(if kinds.is_empty() { 0 } else { kinds.len().max(40) }).enumerate().map(|(position, (kind, number, header))| {
            let path = text(*number).to_owned();
            let specifier = match kind % 5 {
                0 => PathSpecifier::Prefix(path),
                1 => PathSpecifier::Path(path),
                2 if path.len() > 1 => PathSpecifier::PathSeparatedPrefix(path),
                3 => PathSpecifier::SafeRegex(regex(&format!("{path}.?"))),
                _ => PathSpecifier::Prefix(path),
            };
            let headers = if *header {
                vec![proto::HeaderMatcher { name: "x-never".into(), header_match_specifier: Some(H::PresentMatch(true)), ..Default::default() }]
            } else {
                vec![]
            };
            let case_sensitive = (kind % 5 == 4).then_some(BoolValue { value: false });
            let matcher = proto::RouteMatch { path_specifier: Some(specifier), headers, case_sensitive, ..Default::default() };
            to(&position.to_string(), matcher)
        });
        let table = routes(list.collect());
        for number in paths {
            let request = request("any", &format!("{}?q=/a", text(number)), &[]);
            let slow = table.route(&request, &mut Fixed(0.0), &mut Everything).route.map(|route| route.name.clone());
            let fast = table.route(&request, &mut Fixed(0.0), &mut Silent).route.map(|route| route.name.clone());
            if slow != fast {
                return TestResult::error(format!("{request:?}: expected {slow:?}, found {fast:?}"));
            }
        }
        TestResult::passed()
    }
}

/// A table to which virtual hosts may come by themselves.
fn on_demand(virtual_hosts: Vec<proto::VirtualHost>) -> proto::RouteConfiguration {
    let ads = ConfigSource {
        config_source_specifier: Some(config_source::ConfigSourceSpecifier::Ads(Default::default())),
        ..Default::default()
    };
    proto::RouteConfiguration { vhds: Some(proto::Vhds { config_source: Some(ads) }), ..configuration(virtual_hosts) }
}

#[test]
fn a_table_takes_virtual_hosts_that_come_by_themselves() {
    let fixed = table(&on_demand(vec![host("fixed", &["fixed"], vec![to("fixed", prefix("/"))])]));
    let come = host("reviews", &["reviews", "*.reviews"], vec![to("reviews", prefix("/"))]);
    let come = std::sync::Arc::new(fixed.compile_virtual_host(&come, Strictness::Refuse).unwrap().value);
    let both = fixed.with_virtual_hosts([&come]).unwrap();
    for (authority, expected) in [("fixed", "fixed"), ("REVIEWS", "reviews"), ("a.reviews", "reviews"), ("b", "none")] {
        assert_eq!(route_of(&both, &request(authority, "/", &[])), expected, "{authority}");
    }
    assert_eq!(route_of(&fixed, &request("reviews", "/", &[])), "none");
    for (domain, expected) in [("Reviews", true), ("*.reviews", true), ("a.reviews", false), ("*", false)] {
        assert_eq!(both.names_domain(domain), expected, "{domain}");
    }
    let problems = both.with_virtual_hosts([&come]).unwrap_err().to_string();
    assert!(problems.contains("`reviews` stands in more than one virtual host"), "{problems}");
    // Another table takes none.
    let closed = table(&configuration(vec![]));
    let none = closed.compile_virtual_host(&host("a", &["a"], vec![]), Strictness::Refuse).unwrap_err().to_string();
    assert!(!closed.is_on_demand() && none.contains("has no `vhds`"), "{none}");
}

#[test]
fn a_virtual_host_is_asked_for_in_lower_case_and_without_a_port_that_does_not_matter() {
    let with_port = table(&on_demand(vec![]));
    let without = table(&proto::RouteConfiguration { ignore_port_in_host_matching: true, ..on_demand(vec![]) });
    for (authority, one, other) in [
        ("Reviews:9080", "reviews:9080", "reviews"),
        ("reviews", "reviews", "reviews"),
        ("[::1]:80", "[::1]:80", "[::1]"),
    ] {
        assert_eq!(with_port.host_entry(authority.as_bytes()).unwrap(), one);
        assert_eq!(without.host_entry(authority.as_bytes()).unwrap(), other);
    }
}

#[test]
fn nobody_is_asked_for_a_virtual_host_whose_name_is_too_long_for_a_host() {
    let table = table(&on_demand(vec![]));
    let longest = format!("{}:65535", "a".repeat(253));
    assert_eq!(table.host_entry(longest.as_bytes()).unwrap(), longest);
    assert_eq!(table.host_entry(format!("a{longest}").as_bytes()), None);
}

#[test]
fn the_most_specific_level_that_names_mirrors_has_them_all() {
    let to_cluster =
        |name: &str| proto::route_action::RequestMirrorPolicy { cluster: name.into(), ..Default::default() };
    let mut inner = to("r", prefix("/inner"));
    let Some(proto::route::Action::Route(action)) = &mut inner.action else { panic!("it forwards") };
    action.request_mirror_policies = vec![to_cluster("route")];
    let hosts = |own: Vec<proto::route_action::RequestMirrorPolicy>| proto::VirtualHost {
        request_mirror_policies: own,
        ..host("h", &["h"], vec![inner.clone(), to("r", prefix("/"))])
    };
    let other = proto::VirtualHost { domains: vec!["other".into()], ..hosts(vec![]) };
    let table = table(&proto::RouteConfiguration {
        request_mirror_policies: vec![to_cluster("table")],
        ..configuration(vec![hosts(vec![to_cluster("host"), to_cluster("second")]), other])
    });
    let mirrors = |host: usize, route: usize| {
        let Action::Forward(forward) = &table.virtual_hosts[host].routes[route].action else { panic!("it forwards") };
        forward.mirrors.iter().map(|mirror| mirror.cluster.to_string()).collect::<Vec<_>>()
    };
    assert_eq!((mirrors(0, 0), mirrors(0, 1)), (vec!["route".into()], vec!["host".into(), "second".into()]));
    assert_eq!((mirrors(1, 0), mirrors(1, 1)), (vec!["route".into()], vec!["table".into()]));
}

#[test]
fn the_host_of_a_copy_says_that_it_is_one_unless_told_otherwise() {
    for (host, expected) in [
        ("reviews", "reviews-shadow"),
        ("reviews:9080", "reviews-shadow:9080"),
        ("[::1]", "[::1]-shadow"),
        ("[::1]:80", "[::1]-shadow:80"),
        ("", "-shadow"),
    ] {
        let made = MirrorHost::Shadow.of(host.as_bytes()).expect("another host");
        assert_eq!(String::from_utf8_lossy(&made), expected);
    }
    assert_eq!(MirrorHost::Same.of(b"reviews"), None);
    assert_eq!(MirrorHost::Literal("copy".into()).of(b"reviews:1").as_deref(), Some(&b"copy"[..]));
}
