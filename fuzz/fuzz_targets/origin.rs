//! Requests of web pages under foreign bytes: whose pages see an answer is what a plain reading of the policy says, for every way of matching, and
//! they are told so by exactly the origin that they have. An address that is for one program lets in no request that another page can make.
//!
//! The first byte of the input says which policy. The rest is the request: a line with method and host, then a line for each field.

#![no_main]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};
use weft_core::cors::{CORS_FILTER, Cors, CrossOrigin, Treatment};
use weft_core::http_manager::HttpManager;
use weft_core::random::SplitMix;
use weft_core::request::OwnedRequest;
use weft_core::respond::Cause;
use weft_core::route::Action;
use weft_fuzz::EXTENSIONS;
use weft_protos::type_url;

/// The hosts of the address that is for one program.
const OWN: [&str; 2] = ["ratings", "127.77.3.4"];
const DIGEST: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// Matchers, and whether an origin is one of theirs, said in another way.
type Whose = (Value, fn(&str) -> bool);

/// A policy with the settings that it was made from.
struct Scene {
    policy: Arc<Cors>,
    is_theirs: fn(&str) -> bool,
    settings: Value,
}

static SCENES: LazyLock<Vec<Scene>> = LazyLock::new(|| {
    let of_shop = r"https://[a-z0-9-]+\.shop\.example(:[0-9]+)?";
    let whose: [Whose; 9] = [
        (json!([]), |_| false),
        (json!([{"exact": "https://shop.example"}]), |origin| origin == "https://shop.example"),
        (json!([{"exact": "https://Shop.example", "ignore_case": true}]), |origin| {
            origin.to_ascii_lowercase() == "https://shop.example"
        }),
        (json!([{"exact": "null"}, {"prefix": "https://shop."}]), |origin| {
            origin == "null" || origin.strip_prefix("https://shop.").is_some()
        }),
        (json!([{"suffix": ".shop.example"}]), |origin| origin.strip_suffix(".shop.example").is_some()),
        (json!([{"contains": "Shop", "ignore_case": true}]), |origin| origin.to_ascii_lowercase().contains("shop")),
        (json!([{"safe_regex": {"regex": of_shop}}]), is_of_shop),
        (json!([{"safe_regex": {"regex": "https://a|https://b"}}]), |origin| {
            ["https://a", "https://b"].contains(&origin)
        }),
        (json!([{"exact": "*"}]), |_| true),
    ];
    let settings = [
        json!({}),
        json!({"allow_methods": "*", "allow_headers": "*", "allow_credentials": true}),
        json!({"allow_methods": "GET,PUT", "allow_headers": "x-a", "expose_headers": "x-b", "max_age": "600"}),
        json!({"forward_not_matching_preflights": false, "allow_private_network_access": true}),
    ];
    let scenes = whose.iter().flat_map(|(origins, is_theirs)| {
        settings.iter().map(move |settings| Scene {
            policy: policy(origins, settings.clone()),
            is_theirs: *is_theirs,
            settings: settings.clone(),
        })
    });
    scenes.collect()
});

static OF_ONE_PROGRAM: LazyLock<HttpManager> = LazyLock::new(|| {
    weft_fuzz::manager(json!({"http_filters": [
        {"name": "caller", "typed_config": {
            "@type": "type.googleapis.com/weft.extensions.filters.v1.LocalCaller",
            "authorities": OWN,
            "credential_sha256": DIGEST,
        }},
        {"name": "router", "typed_config": {"@type": format!("{EXTENSIONS}.filters.http.router.v3.Router")}},
    ]}))
});

/// The policy of a route.
fn policy(origins: &Value, mut settings: Value) -> Arc<Cors> {
    settings["@type"] = json!(format!("{EXTENSIONS}.filters.http.cors.v3.CorsPolicy"));
    settings["allow_origin_string_match"] = origins.clone();
    let route = json!({
        "match": {"prefix": "/"},
        "route": {"cluster": "c"},
        "typed_per_filter_config": {CORS_FILTER: settings},
    });
    let routes = json!({"name": "r", "virtual_hosts": [{"name": "h", "domains": ["*"], "routes": [route]}]});
    let plan = weft_fuzz::plan(&[(type_url::ROUTE_CONFIGURATION, routes)]);
    match &plan.routes["r"].virtual_hosts[0].routes[0].action {
        Action::Forward(forward) => Arc::clone(forward.targets[0].cors.as_ref().expect("it has a policy")),
        _ => unreachable!("it was written above"),
    }
}

fuzz_target!(|input: &[u8]| {
    let [scene, bytes @ ..] = input else { return };
    let text = String::from_utf8_lossy(bytes);
    let mut lines = text.split('\n');
    let (method, authority) = lines.next().and_then(|line| line.split_once(' ')).unwrap_or_default();
    let fields = lines.filter_map(|line| line.split_once(": "));
    let request = OwnedRequest {
        method: method.to_owned(),
        authority: authority.to_owned(),
        headers: fields.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
        ..OwnedRequest::default()
    };
    shared(&request, &SCENES[usize::from(*scene) % SCENES.len()]);
    kept_apart(&request);
});

/// What a policy makes of a request, beside what the Fetch standard and Envoy's documentation make of it.
fn shared(request: &OwnedRequest, scene: &Scene) {
    let Scene { policy, is_theirs, settings } = scene;
    let found = policy.consider(request, &mut SplitMix::new(1));
    let Some(origin) = joined(request, "origin").filter(|origin| !origin.is_empty()) else {
        return assert_eq!(found, None);
    };
    let allowed = is_theirs(&origin);
    let method = joined(request, "access-control-request-method").unwrap_or_default();
    let asks_first = request.method == "OPTIONS" && !method.is_empty();
    let is_kept = settings["forward_not_matching_preflights"] == false;
    let treatment = if asks_first && (allowed || is_kept) { Treatment::Answered } else { Treatment::PassedOn };
    assert_eq!(found, Some(CrossOrigin { allowed, treatment }), "{origin:?}");

    let mut wanted = vec![("access-control-allow-origin", origin.clone())];
    wanted.extend(
        (settings["allow_credentials"] == true).then(|| ("access-control-allow-credentials", "true".to_owned())),
    );
    let of_settings = |name: &'static str, key: &str| settings[key].as_str().map(|value| (name, value.to_owned()));
    wanted.extend(of_settings("access-control-expose-headers", "expose_headers"));
    assert_eq!(told(policy.answer_headers(origin.as_bytes())), wanted);

    let mut wanted: Vec<(&str, String)> = Vec::new();
    wanted.extend(
        (settings["allow_credentials"] == true).then(|| ("access-control-allow-credentials", "true".to_owned())),
    );
    let headers = joined(request, "access-control-request-headers").unwrap_or_default();
    for (name, key, asked) in [
        ("access-control-allow-methods", "allow_methods", method),
        ("access-control-allow-headers", "allow_headers", headers),
    ] {
        wanted.extend(of_settings(name, key).map(|(name, value)| (name, if value == "*" { asked } else { value })));
    }
    wanted.extend(of_settings("access-control-max-age", "max_age"));
    let of_private = joined(request, "access-control-request-private-network").is_some_and(|asked| asked == "true");
    if of_private && settings["allow_private_network_access"] == true {
        wanted.push(("access-control-allow-private-network", "true".to_owned()));
    }
    let own = policy.preflight_headers(request);
    assert_eq!(told(own.iter().map(|(name, value)| (*name, &**value))), wanted);
}

/// Whether the address that is for one program lets the request in.
fn kept_apart(request: &OwnedRequest) {
    let caller = OF_ONE_PROGRAM.local_caller().expect("it was written above");
    let is_host = is_own(&request.authority);
    let is_of_own_page = joined(request, "origin")
        .is_none_or(|origin| origin.split_once("://").is_some_and(|(scheme, host)| is_scheme(scheme) && is_own(host)));
    let is_of_own_site =
        joined(request, "sec-fetch-site").is_none_or(|site| ["none", "same-origin"].contains(&site.as_str()));
    let expected = match (is_host, is_of_own_page && is_of_own_site) {
        (false, _) => Err(Cause::ForeignHost),
        (true, false) => Err(Cause::ForeignOrigin),
        (true, true) => Ok(()),
    };
    assert_eq!(caller.admit(request, None), expected);
    assert_eq!(caller.admit(request, Some("")), Err(Cause::CredentialRequired));
    let proven = if is_host { Ok(()) } else { Err(Cause::ForeignHost) };
    assert_eq!(caller.admit(request, Some(DIGEST)), proven);
}

fn told<'a>(headers: impl Iterator<Item = (&'static str, &'a [u8])>) -> Vec<(&'static str, String)> {
    headers.map(|(name, value)| (name, String::from_utf8(value.to_vec()).expect("it was text"))).collect()
}

/// All fields of that name (RFC 9110 5.3).
fn joined(request: &OwnedRequest, wanted: &str) -> Option<String> {
    let fields = request.headers.iter().filter(|(name, _)| name.to_ascii_lowercase() == wanted);
    let values: Vec<&str> = fields.map(|(_, value)| value.as_str()).collect();
    (!values.is_empty()).then(|| values.join(","))
}

/// The regular expression, by hand.
fn is_of_shop(origin: &str) -> bool {
    let Some(host) = origin.strip_prefix("https://") else { return false };
    let (host, port) = host.split_once(':').unwrap_or((host, "0"));
    let is_of_label = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let is_label = |label: &str| !label.is_empty() && label.bytes().all(is_of_label);
    host.strip_suffix(".shop.example").is_some_and(is_label) && is_port(port)
}

/// A host of the program's address, with or without a port.
fn is_own(authority: &str) -> bool {
    let lower = authority.to_ascii_lowercase();
    let rest = OWN.iter().find_map(|own| lower.strip_prefix(own));
    rest.is_some_and(|rest| rest.is_empty() || rest.strip_prefix(':').is_some_and(is_port))
}

fn is_port(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// RFC 3986 3.1.
fn is_scheme(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.chars().all(|other| other.is_ascii_alphanumeric() || "+-.".contains(other))
}
