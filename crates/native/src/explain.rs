//! A question about one request, as JSON, and its answer. docs/reference/interfaces.md, section 5, names the keys.
//!
//! Everything that is decided is decided by `weft_core`; this file only asks and writes down. People write questions, so it has a fuzz
//! target, for which it knows nothing of Python.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};
use weft_core::balance::Balancer;
use weft_core::cluster::{Cluster, Discovery, LbPolicy, TransportSocket, UpstreamProtocol, VersionChoice};
use weft_core::cors::{Cors, Treatment};
use weft_core::decide::{Decision, Outcome, Step, decide};
use weft_core::endpoint::LoadAssignment;
use weft_core::fault::Fault;
use weft_core::format::{Command, Format, Piece};
use weft_core::hash_policy::{self, HashPolicy, HashSource};
use weft_core::header_edit::{AppendAction, HeaderEdits};
use weft_core::http_manager::HttpManager;
use weft_core::listener::{Connection, FilterChain, NetworkFilter};
use weft_core::metadata::Metadata;
use weft_core::normalise::{Normalised, normalise};
use weft_core::plan::Plan;
use weft_core::rbac::{self, Rbac, Rules, Verdict, Verdicts};
use weft_core::request::{OwnedRequest, RequestHead, Scheme};
use weft_core::respond::{Cause, Flags, ResponseFlag};
use weft_core::retry::RetryPolicy;
use weft_core::route::{Action, Forward, Target};
use weft_core::rpc::{self, RpcProxy};
use weft_core::tcp_proxy::TcpProxy;
use weft_core::tls::{CertificateSource, TrustSource, UpstreamTls};
use weft_core::trace::{Silent, Subject, Trace};

use crate::question::{Dice, Question};

/// How much is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Every outcome with its share, and what did not match and why.
    Explain,
    /// One outcome; the random values that matter must be given.
    Decide,
}

/// Answer the question `text`.
///
/// # Errors
/// The question is not JSON of that shape, no listener takes such a connection, or a random value is missing.
pub fn answer(plan: &Plan, text: &str, mode: Mode) -> Result<String, String> {
    let mut question = Question::read(text)?;
    let mut notes = Notes { items: Vec::new(), all: mode == Mode::Explain };
    let mut answer = Map::new();

    let listener = question.listener(plan)?;
    answer.insert("listener".into(), json!(&*listener.name));
    let seen = listener.inspectors(question.destination.port()).see(&question.opening);
    let source = question.source;
    let choose = |connection: &Connection<'_>| listener.chain(connection, &mut notes);
    let chosen = seen.with_connection(question.destination, source, source.ip(), choose);
    match chosen {
        None => refuse(&mut answer, "refused", Cause::FilterChainNotFound, None),
        Some(chain) => {
            answer.insert("filter_chain".into(), json!(&*chain.name));
            let denied = !question.is_in_plain_text_to(chain) && admit(chain, &question, &mut answer).is_some();
            match &chain.filter {
                _ if question.is_in_plain_text_to(chain) => refuse_plain_text(&mut answer),
                _ if denied => {}
                NetworkFilter::Tcp(filter) => tcp(plan, filter, &question, mode, &mut answer)?,
                NetworkFilter::Rpc(proxy) => call(plan, proxy, &question, mode, &mut notes, &mut answer)?,
                NetworkFilter::Http(_) if question.is_in_tls_to(chain) => {
                    refuse(&mut answer, "refused", Cause::MalformedRequest, None);
                }
                NetworkFilter::Http(manager) => {
                    if let_in(&mut question, manager, &mut answer) {
                        http(plan, manager, &question, mode, &mut notes, &mut answer)?;
                    }
                }
            }
        }
    }
    if mode == Mode::Explain {
        answer.insert("considered".into(), Value::Array(notes.items));
    }
    Ok(Value::Object(answer).to_string())
}

/// The listener waits for a ClientHello, and the connection is closed without a word.
fn refuse_plain_text(answer: &mut Map<String, Value>) {
    answer.insert("outcome".into(), json!("refused"));
    answer.insert("response_flags".into(), json!("-"));
    answer.insert("explanation".into(), json!("plain text came where TLS is expected"));
}

fn refuse(answer: &mut Map<String, Value>, outcome: &str, cause: Cause, status: Option<u16>) {
    let row = cause.row();
    answer.insert("outcome".into(), json!(outcome));
    let status = status.unwrap_or(row.status);
    // Of bytes, and of a connection that nobody takes, none is told: it ends.
    answer.insert("status".into(), if status == 0 { Value::Null } else { json!(status) });
    answer.insert("response_flags".into(), json!(row.flag.map_or("-", ResponseFlag::code)));
    answer.insert("explanation".into(), json!(row.flag.map_or(row.details, ResponseFlag::explanation)));
}

/// The proxy answers before it looks for a route. Returns false: the request was not let in.
fn turn_away(answer: &mut Map<String, Value>, cause: Cause, why: &str) -> bool {
    refuse(answer, "turned_away", cause, None);
    answer.insert("explanation".into(), json!(why));
    false
}

/// Make of the request what the proxy routes, as far as it is known here; false: the proxy answers it before.
fn let_in(question: &mut Question, manager: &HttpManager, answer: &mut Map<String, Value>) -> bool {
    if question.taken.is_some() {
        return true; // what has taken a route had been let in
    }
    if let Some(caller) = manager.local_caller() {
        // Whoever asks the forward proxy has its address from HTTP_PROXY, and the credential with it.
        let presented = caller.credential().filter(|_| caller.forward_proxy);
        if let Err(cause) = caller.admit(&question.request, presented) {
            return turn_away(answer, cause, cause.row().body);
        }
    }
    match normalise(question.request.path.as_bytes(), manager) {
        Normalised::Same => {}
        Normalised::Changed(path) => {
            question.request.path = String::from_utf8_lossy(&path).into_owned();
            answer.insert("path".into(), json!(question.request.path));
        }
        Normalised::Refused => {
            let why = "The path has a NUL, or escaped slashes that are refused.";
            return turn_away(answer, Cause::BadPath, why);
        }
        Normalised::Redirect(path) => {
            refuse(answer, "redirect", Cause::EscapedSlashes, None);
            answer.insert("location".into(), json!(String::from_utf8_lossy(&path)));
            return false;
        }
    }
    const FORWARDED_PROTO: &str = "x-forwarded-proto";
    let OwnedRequest { scheme, headers, .. } = &mut question.request;
    if !manager.believes_forwarded_proto() {
        headers.retain(|(name, _)| !name.eq_ignore_ascii_case(FORWARDED_PROTO));
    }
    let connection = Scheme::of(question.names.is_some());
    let mut told = headers
        .iter()
        .filter(|(name, _)| name.eq_ignore_ascii_case(FORWARDED_PROTO))
        .map(|(_, value)| value.as_bytes())
        .peekable();
    let is_told = told.peek().is_some();
    *scheme = Scheme::of_request(question.own_scheme, told, connection);
    if !is_told {
        headers.push((FORWARDED_PROTO.to_owned(), connection.as_str().to_owned()));
    }
    true
}

/// What the network filters of a chain say; the first refusal.
fn admit(chain: &FilterChain, question: &Question, answer: &mut Map<String, Value>) -> Option<Verdict> {
    for filter in &chain.rbac {
        let verdicts = filter.verdicts(&question.connection());
        note_rules(rbac::NETWORK_FILTER, &filter.rbac, &verdicts, answer);
        if let Some(refusal) = verdicts.refusal() {
            deny(refusal, Value::Null, answer);
            return Some(refusal.clone());
        }
    }
    None
}

/// One more RBAC filter was asked.
fn note_rules(filter: &str, rules: &Rbac, verdicts: &Verdicts, answer: &mut Map<String, Value>) {
    let told = |rules: &Option<Rules>, verdict: &Option<Verdict>| match (rules, verdict) {
        (Some(rules), Some(verdict)) => {
            json!({"action": rules.action.name(), "allowed": verdict.allowed, "policy": verdict.policy.as_deref()})
        }
        _ => Value::Null,
    };
    let note = json!({
        "filter": filter,
        "rules": told(&rules.rules, &verdicts.rules),
        "shadow_rules": told(&rules.shadow_rules, &verdicts.shadow_rules),
    });
    if let Some(notes) = answer.entry("rbac").or_insert_with(|| json!([])).as_array_mut() {
        notes.push(note);
    }
}

fn deny(refusal: &Verdict, status: Value, answer: &mut Map<String, Value>) {
    answer.insert("outcome".into(), json!("denied"));
    answer.insert("status".into(), status);
    answer.insert("response_flags".into(), json!("-"));
    answer.insert("explanation".into(), json!(refusal.details()));
}

/// The policy in words, and what it makes of the request; true: the proxy answers it.
fn consider_origin(policy: &Cors, question: &Question, answer: &mut Map<String, Value>) -> bool {
    let found = policy.consider(&question.request, &mut question.dice.clone());
    let mut described = json!({
        "origins": policy.origins.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "any_origin": policy.any_origin,
        "percent": policy.enabled.percent(),
        "allowed": found.map(|found| found.allowed),
        "treatment": found.map(|found| match found.treatment {
            Treatment::Counted => "counted",
            Treatment::PassedOn => "passed_on",
            Treatment::Answered => "answered",
        }),
    });
    let mut headers = Vec::new();
    if let Some(found) = found.filter(|found| found.treatment != Treatment::Counted) {
        if found.treatment == Treatment::Answered {
            let own = policy.preflight_headers(&question.request);
            headers.extend(own.into_iter().map(|(name, value)| (name, String::from_utf8_lossy(&value).into_owned())));
        }
        let origin = question.request.header("origin").filter(|_| found.allowed);
        for (name, value) in origin.iter().flat_map(|origin| policy.answer_headers(origin)) {
            headers.retain(|(known, _)| *known != name);
            headers.push((name, String::from_utf8_lossy(value).into_owned()));
        }
    }
    headers.sort();
    described["response_headers"] = json!(headers);
    answer.insert("cors".into(), described);
    found.is_some_and(|found| found.treatment == Treatment::Answered)
}

/// What the filters that act on a request make of it, in their order; what ends the request is the outcome.
fn filter(
    manager: &HttpManager,
    decision: &Decision<'_>,
    question: &Question,
    mode: Mode,
    answer: &mut Map<String, Value>,
) {
    for step in decision.steps(manager) {
        match step {
            Step::Rbac(filter, rules) => {
                let verdicts = rules.given(&question.connection()).verdicts(&question.request, question.client);
                note_rules(&filter.name, rules, &verdicts, answer);
                if let Some(refusal) = verdicts.refusal() {
                    return deny(refusal, json!(refusal.reply().status), answer);
                }
            }
            Step::Cors(policy) => {
                if consider_origin(policy, question, answer) {
                    let row = Cause::CorsPreflight.row();
                    answer.insert("outcome".into(), json!("preflight"));
                    answer.insert("status".into(), json!(row.status));
                    answer.insert("response_flags".into(), json!("-"));
                    answer.insert("explanation".into(), json!(row.details));
                    return;
                }
            }
            // Nobody can be asked here: what is not among the resources at hand counts as not existing.
            Step::OnDemand(_) => {}
            Step::Fault => {
                answer.insert("fault".into(), decision.fault.map_or(Value::Null, |fault| describe_fault(fault)));
                strike(decision, question, mode, answer);
                if answer.get("outcome").is_some_and(|outcome| outcome == "fault") {
                    return;
                }
            }
        }
    }
}

/// Bytes have no status: the connection is reset, and the flag tells why.
fn reset(answer: &mut Map<String, Value>, cause: Cause) {
    let flag = cause.row().flag;
    answer.insert("response_flags".into(), json!(flag.map_or("-", ResponseFlag::code)));
    answer.insert("explanation".into(), json!(flag.map_or(cause.row().details, ResponseFlag::explanation)));
}

fn tcp(
    plan: &Plan,
    filter: &TcpProxy,
    question: &Question,
    mode: Mode,
    answer: &mut Map<String, Value>,
) -> Result<(), String> {
    let total: f64 = filter.clusters.iter().map(|(_, weight)| f64::from(*weight)).sum();
    answer.insert("outcome".into(), json!("tcp"));
    answer.insert("idle_timeout_ms".into(), millis(filter.idle_timeout));
    let clusters = filter.clusters.iter().map(|(name, weight)| {
        let share = f64::from(*weight) / total;
        let found = plan.clusters.get(name);
        let mut described = json!({"name": &**name, "weight": weight, "share": share, "exists": found.is_some()});
        if let Some(cluster) = found.filter(|cluster| cluster.policy.is_consistent_hash()) {
            let by: &[HashPolicy] = if filter.hash_source_ip { &[HashPolicy::SOURCE_IP] } else { &[] };
            described["hash"] = describe_hash(plan, cluster, by, question);
        }
        described
    });
    answer.insert("clusters".into(), clusters.collect());
    let chosen =
        (filter.clusters.len() == 1 || question.dice.weight.is_some()).then(|| filter.pick(&mut question.dice.clone()));
    if mode == Mode::Decide && chosen.is_none() {
        return Err("random.weight: the decision depends on it".to_owned());
    }
    let names = chosen.map_or_else(|| filter.clusters.iter().map(|(name, _)| name).collect(), |name| vec![name]);
    answer.insert(
        "endpoints".into(),
        names
            .into_iter()
            .filter_map(|name| plan.clusters.get(name))
            .flat_map(|cluster| endpoints(plan, cluster, question, false))
            .collect(),
    );
    if let Some(name) = chosen {
        answer.insert("cluster".into(), json!(&**name));
        match plan.clusters.get(name) {
            Some(cluster) => {
                answer.insert("metadata".into(), metadata(&cluster.metadata));
                if no_endpoint(plan, cluster) {
                    reset(answer, Cause::NoHealthyUpstream);
                }
            }
            None => refuse(answer, "no_cluster", Cause::TcpClusterNotFound, None),
        }
    }
    Ok(())
}

/// A call is asked about like one of gRPC: the path is `/service/method`, attachments are headers.
struct AskedCall<'q> {
    service: &'q str,
    method: &'q str,
    request: &'q OwnedRequest,
}

impl<'q> AskedCall<'q> {
    fn of(request: &'q OwnedRequest) -> Self {
        let (service, method) = request.path.trim_start_matches('/').rsplit_once('/').unwrap_or_default();
        Self { service, method, request }
    }

    fn text(&self, name: &str) -> Option<&[u8]> {
        let found = self.request.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_bytes())
    }
}

impl rpc::Call for AskedCall<'_> {
    fn service(&self) -> &[u8] {
        self.service.as_bytes()
    }
    fn version(&self) -> Option<&[u8]> {
        self.text("version")
    }
    fn group(&self) -> Option<&[u8]> {
        self.text("group")
    }
    fn method(&self) -> &[u8] {
        self.method.as_bytes()
    }
    fn header(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        self.request.header(name)
    }
    // A question has no arguments.
    fn parameter(&self, _: usize) -> Option<Cow<'_, [u8]>> {
        None
    }
    fn is_read(&self) -> bool {
        true
    }
}

fn call(
    plan: &Plan,
    proxy: &RpcProxy,
    question: &Question,
    mode: Mode,
    notes: &mut Notes,
    answer: &mut Map<String, Value>,
) -> Result<(), String> {
    let call = AskedCall::of(&question.request);
    let decision = rpc::decide(plan, proxy, &call, &mut question.dice.clone(), notes);
    answer.insert("outcome".into(), json!("call"));
    answer.insert("protocol".into(), json!(proxy.protocol.name()));
    if let Some(route) = decision.route {
        answer.insert("route".into(), json!({"name": &*route.name, "match": route.conditions.to_string()}));
    }
    // Where a die would decide and none was given, no cluster is said to be the one.
    let is_certain = question.dice.weight.is_some() || decision.route.is_none_or(|route| route.targets.len() == 1);
    if mode == Mode::Decide && !is_certain {
        return Err("random.weight: the decision depends on it".to_owned());
    }
    if let Some(target) = decision.target.filter(|_| is_certain) {
        answer.insert("cluster".into(), json!(&**target));
    }
    match decision.outcome {
        _ if !is_certain => {
            let targets = decision.route.map_or(&[][..], |route| &*route.targets);
            let total: f64 = targets.iter().map(|(_, weight)| f64::from(*weight)).sum();
            let share = |weight: u32| f64::from(weight) / total;
            let clusters = targets
                .iter()
                .map(|(name, weight)| json!({"name": &**name, "weight": weight, "share": share(*weight)}));
            answer.insert("clusters".into(), clusters.collect());
        }
        Ok(cluster) => {
            answer.insert("metadata".into(), metadata(&cluster.metadata));
            answer.insert("endpoints".into(), endpoints(plan, cluster, question, false).into_iter().collect());
            if no_endpoint(plan, cluster) {
                refuse(answer, "call", Cause::NoHealthyUpstream, None);
            }
        }
        Err(cause @ Cause::RouteNotFound) => refuse(answer, "no_route", cause, None),
        Err(cause) => refuse(answer, "no_cluster", cause, None),
    }
    Ok(())
}

fn http(
    plan: &Plan,
    manager: &HttpManager,
    question: &Question,
    mode: Mode,
    notes: &mut Notes,
    answer: &mut Map<String, Value>,
) -> Result<(), String> {
    let mut decision = decide(plan, manager, &question.request, &mut question.dice.clone(), notes);
    if let Some(taken) = &question.taken {
        let dice = &mut question.dice.clone();
        let followed = taken.follow(plan, manager, &question.request, dice, &decision, &mut notes.items);
        answer.insert("taken".into(), json!(followed.is_some()));
        decision = followed.unwrap_or(decision);
    }
    if mode == Mode::Decide {
        need_dice(&decision, &question.dice)?;
    }
    if let Some(table) = decision.table {
        answer.insert("route_configuration".into(), json!(&*table.name));
    }
    if let Some(host) = decision.virtual_host {
        answer.insert("virtual_host".into(), json!(&*host.name));
    }
    if let Some(route) = decision.route {
        let weft = metadata(&route.metadata);
        let mut described = json!({"name": &*route.name, "match": route.conditions.to_string(), "metadata": weft});
        for key in ["origin", "rule"] {
            if let Some(value) = weft.get(key) {
                described[key] = value.clone();
            }
        }
        answer.insert("route".into(), described);
        answer.insert("metadata".into(), weft);
        // Of several destinations each is told with its own edits, and here is what is done to every request.
        let own = match &route.action {
            Action::Forward(forward) if !is_chosen(forward, question) => decision.target().map(|target| &target.edits),
            _ => None,
        };
        let is_shared = |level: &&HeaderEdits| {
            own.is_none_or(|own| !std::ptr::eq(*level, &own.request) && !std::ptr::eq(*level, &own.response))
        };
        answer.insert("request_headers".into(), edits(decision.request_edits().filter(is_shared)));
        answer.insert("response_headers".into(), edits(decision.response_edits().filter(is_shared)));
    }
    match &decision.outcome {
        Outcome::Redirect(redirect) => {
            answer.insert("outcome".into(), json!("redirect"));
            answer.insert("status".into(), json!(redirect.status));
            if let Some(route) = decision.route {
                let location = redirect.location(&route.conditions.path, &question.request);
                answer.insert("location".into(), json!(String::from_utf8_lossy(&location)));
            }
        }
        Outcome::Direct(response) => {
            answer.insert("outcome".into(), json!("direct_response"));
            answer.insert("status".into(), json!(response.status));
            answer.insert("body".into(), json!(String::from_utf8_lossy(&response.body)));
        }
        Outcome::Refuse { reply, target: None } => refuse(answer, "no_route", reply.cause, None),
        Outcome::Refuse { reply, target: Some(target) } => {
            if let Some(Action::Forward(forward)) = decision.route.map(|route| &route.action) {
                describe_forward(plan, manager, forward, &decision, question, answer);
                // With several destinations and no die for them, one that is missing is not the outcome of all.
                if is_chosen(forward, question) {
                    answer.insert("cluster".into(), json!(&*target.cluster));
                    refuse(answer, "no_cluster", reply.cause, Some(reply.status));
                }
            }
        }
        Outcome::Forward { forward, target, cluster } => {
            describe_forward(plan, manager, forward, &decision, question, answer);
            if is_chosen(forward, question) {
                answer.insert("cluster".into(), json!(&*target.cluster));
                if no_endpoint(plan, cluster) {
                    refuse(answer, "forward", Cause::NoHealthyUpstream, None);
                }
            }
        }
    }
    filter(manager, &decision, question, mode, answer);
    Ok(())
}

/// Whether one destination is certain: the only one, or chosen by a die of the question.
fn is_chosen(forward: &Forward, question: &Question) -> bool {
    forward.targets.len() == 1 || question.dice.weight.is_some()
}

/// A decision is one outcome only if the dice that matter are given.
fn need_dice(decision: &Decision<'_>, dice: &Dice) -> Result<(), String> {
    let weighted = matches!(decision.route.map(|route| &route.action), Some(Action::Forward(forward)) if forward.targets.len() > 1);
    let uncertain = |share: weft_core::random::Fraction| share.numerator > 0 && share.numerator < share.denominator;
    let delay = decision.fault.and_then(|fault| fault.delay).is_some_and(|delay| uncertain(delay.share));
    let abort = decision.fault.and_then(|fault| fault.abort).is_some_and(|abort| uncertain(abort.share));
    let cors = decision
        .target()
        .and_then(|target| target.cors.as_ref())
        .is_some_and(|cors| uncertain(cors.enabled) || cors.enabled.numerator == 0 && uncertain(cors.shadow_enabled));
    for (needed, given, name) in [
        (cors, dice.cors, "cors"),
        (weighted, dice.weight, "weight"),
        (delay, dice.fault_delay, "fault_delay"),
        (abort, dice.fault_abort, "fault_abort"),
    ] {
        if needed && given.is_none() {
            return Err(format!("random.{name}: the decision depends on it"));
        }
    }
    Ok(())
}

/// Whether the fault ends every request, whatever the dice say, and whichever destination they choose.
fn always_aborts(decision: &Decision<'_>) -> bool {
    let is_of_all = match decision.route.map(|route| &route.action) {
        Some(Action::Forward(forward)) if forward.targets.len() > 1 => {
            forward.targets.iter().all(|target| target.overrides.fault.is_none())
        }
        _ => true,
    };
    let abort = decision.fault.and_then(|fault| fault.abort);
    is_of_all && abort.is_some_and(|abort| abort.share.numerator >= abort.share.denominator)
}

/// Where the dice say that the fault strikes, or none is needed, the outcome is the fault's. `explain` without dice leaves it open.
fn strike(decision: &Decision<'_>, question: &Question, mode: Mode, answer: &mut Map<String, Value>) {
    let dice = &question.dice;
    let outcome = decision.strike(&mut dice.clone());
    let mut flags = Flags::NONE;
    if let Some(delay) = outcome.delay.filter(|_| mode == Mode::Decide || dice.fault_delay.is_some()) {
        answer.insert("delayed_ms".into(), millis(Some(delay)));
        flags.insert(ResponseFlag::DelayInjected);
    }
    let is_known = mode == Mode::Decide || dice.fault_abort.is_some() || always_aborts(decision);
    if let Some(status) = outcome.abort.filter(|_| is_known) {
        refuse(answer, "fault", Cause::FaultAbort, Some(status));
        flags.insert(ResponseFlag::FaultInjected);
    }
    if !flags.is_empty() {
        answer.insert("response_flags".into(), json!(flags.to_string()));
    }
}

fn describe_fault(fault: &Fault) -> Value {
    let mut described = Map::new();
    if let Some(delay) = fault.delay {
        described.insert("delay_ms".into(), millis(Some(delay.duration)));
        described.insert("delay_percent".into(), json!(delay.share.percent()));
    }
    if let Some(abort) = fault.abort {
        described.insert("abort_status".into(), json!(abort.status));
        described.insert("abort_percent".into(), json!(abort.share.percent()));
    }
    Value::Object(described)
}

fn describe_forward(
    plan: &Plan,
    manager: &HttpManager,
    forward: &Forward,
    decision: &Decision<'_>,
    question: &Question,
    answer: &mut Map<String, Value>,
) {
    answer.insert("outcome".into(), json!("forward"));
    let mut before = 0u64;
    let mut clusters = Vec::new();
    for target in &forward.targets {
        let weight = u64::from(target.weight);
        // The die that falls in the middle of this destination's share: the same decision code, asked about each of them.
        let middle = (before as f64 + weight as f64 / 2.0) / forward.total_weight as f64;
        before += weight;
        clusters.push(describe_target(plan, manager, forward, target, middle, question));
    }
    answer.insert("clusters".into(), Value::Array(clusters));
    let chosen: Vec<&Target> = match decision.target() {
        Some(target) if is_chosen(forward, question) => vec![target],
        _ => forward.targets.iter().filter(|target| target.weight > 0).collect(),
    };
    let eligible = chosen
        .iter()
        .filter_map(|target| plan.clusters.get(&target.cluster))
        .flat_map(|cluster| endpoints(plan, cluster, question, true));
    answer.insert("endpoints".into(), eligible.collect());
    answer.insert("timeout_ms".into(), millis(forward.timeout_for(&question.request)));
    answer.insert("idle_timeout_ms".into(), millis(forward.idle_timeout.unwrap_or(manager.stream_idle_timeout)));
    answer.insert("retry".into(), forward.retry.as_deref().map_or(Value::Null, describe_retry));
    let path = decision.path_rewrite(question.request.path.as_bytes());
    let host = if is_chosen(forward, question) { decision.host_rewrite() } else { forward.host_rewrite.as_ref() };
    answer.insert(
        "rewrite".into(),
        json!({
            "path": path.map(|path| String::from_utf8_lossy(&path).into_owned()),
            "authority": host.map(|host| &**host),
        }),
    );
    let mirrors = forward.mirrors.iter().map(|mirror| {
        let cluster = plan.clusters.get(&mirror.cluster);
        let copied_to = cluster.map_or_else(Vec::new, |cluster| endpoints(plan, cluster, question, true));
        json!({
            "cluster": &*mirror.cluster,
            "percent": mirror.share.percent(),
            "exists": cluster.is_some(),
            "endpoints": copied_to,
        })
    });
    answer.insert("mirror".into(), mirrors.collect());
}

/// What decides on the endpoint of *cluster*, which balances by consistent hashing: each property that is looked at, what the request
/// has of it, the key that comes of them, and whose it is.
fn describe_hash(plan: &Plan, cluster: &Cluster, policies: &[HashPolicy], question: &Question) -> Value {
    let client = hash_policy::Client { address: question.client, remote: question.source, local: question.destination };
    let hashed = hash_policy::hash(policies, &question.request, &client);
    // Who the client is may matter to one that another property has not decided for.
    let anybody = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let by_anybody = hash_policy::Client { address: anybody, ..client };
    let is_by_client = hash_policy::hash(policies, &question.request, &by_anybody).key != hashed.key;
    let is_of_unknown = is_by_client && !question.is_client_known;
    // A cookie that is made here says the same for every request of a connection, and a question need not come by one.
    let is_known = (hashed.cookies.is_empty() || question.source.port() != 0) && !is_of_unknown;
    let key = hashed.key.filter(|_| is_known);
    let endpoint = key.and_then(|key| {
        let balancer = Balancer::new(cluster, plan.assignment_of(cluster)?, None, 0);
        balancer.picker().pick(Some(key), &mut question.dice.clone(), 1, |_| false).ok()
    });
    let looked_at = policies.iter().map(|policy| {
        let is_unknown = policy.source == HashSource::SourceIp && !question.is_client_known;
        json!({
            "of": policy.source.to_string(),
            "value": policy.source.value(&question.request, &client).filter(|_| !is_unknown),
            "terminal": policy.terminal,
        })
    });
    json!({
        "by": if matches!(cluster.policy, LbPolicy::Maglev { .. }) { "maglev" } else { "ring" },
        "policies": looked_at.collect::<Vec<_>>(),
        "key": key.map(|key| format!("{key:016x}")),
        "endpoint": endpoint.map(|host| host.endpoint.address.to_string()),
        "makes_cookie": !hashed.cookies.is_empty(),
        "of_unknown_client": is_of_unknown,
        "origin": metadata(&cluster.metadata)["origins"]["loadBalancer"],
    })
}

fn describe_target(
    plan: &Plan,
    manager: &HttpManager,
    forward: &Forward,
    target: &Target,
    die: f64,
    question: &Question,
) -> Value {
    let mut described = json!({
        "name": &*target.cluster,
        "weight": target.weight,
        "share": f64::from(target.weight) / forward.total_weight as f64,
        "exists": plan.clusters.contains_key(&target.cluster),
    });
    if !plan.clusters.contains_key(&target.cluster) {
        described["status"] = json!(forward.cluster_not_found_status);
    }
    let from_cluster = plan.clusters.get(&target.cluster).map(|cluster| &cluster.metadata);
    let origin = if target.metadata.weft.is_some() { Some(&target.metadata) } else { from_cluster };
    if let Some(origin) = origin {
        described["metadata"] = metadata(origin);
    }
    if let Some(cluster) = plan.clusters.get(&target.cluster).filter(|cluster| cluster.policy.is_consistent_hash()) {
        described["hash"] = describe_hash(plan, cluster, &forward.hash, question);
    }
    if forward.targets.len() > 1 && target.weight > 0 {
        let mut dice = Dice { weight: Some(die), ..question.dice.clone() };
        let decision = decide(plan, manager, &question.request, &mut dice, &mut Silent);
        described["request_headers"] = edits(std::iter::once(&target.edits.request));
        described["response_headers"] = edits(std::iter::once(&target.edits.response));
        if let Some(fault) = decision.fault {
            described["fault"] = describe_fault(fault);
        }
        if let Some(host) = target.host_rewrite.as_ref().filter(|_| forward.host_rewrite.is_none()) {
            described["authority"] = json!(&**host);
        }
    }
    described
}

fn describe_retry(policy: &RetryPolicy) -> Value {
    json!({
        "attempts": policy.retries,
        "on": &*policy.on_text,
        "per_try_timeout_ms": millis(policy.per_try_timeout),
        "status_codes": &*policy.status_codes,
        "base_interval_ms": millis(Some(policy.base_interval)),
        "max_interval_ms": millis(Some(policy.max_interval)),
        "avoid_previous_hosts": policy.avoid_previous_hosts,
        "host_selection_attempts": policy.host_selection_attempts,
    })
}

fn no_endpoint(plan: &Plan, cluster: &Cluster) -> bool {
    match (&cluster.discovery, plan.assignment_of(cluster)) {
        // Only the proxy itself knows what DNS says.
        (Discovery::OriginalDst | Discovery::Dns(_), _) => false,
        (_, None) => true,
        (_, Some(assignment)) => balancer(cluster, assignment).shares().is_empty(),
    }
}

/// What a balancer does of which nothing is known but its configuration: health checks pass.
fn balancer(cluster: &Cluster, assignment: &LoadAssignment) -> Arc<Balancer> {
    let balancer = Balancer::new(cluster, assignment, None, 0);
    balancer.assume_checked();
    balancer
}

/// The endpoints that the balancer may choose, and those that it may not; with the version of HTTP if it is *http* that goes there.
fn endpoints(plan: &Plan, cluster: &Cluster, question: &Question, http: bool) -> Vec<Value> {
    let choice = |transport: &TransportSocket| http.then(|| choice(cluster, transport, question));
    let version =
        |transport: &TransportSocket| choice(transport).map_or(Value::Null, |choice| version(cluster, choice));
    let tls =
        |socket: &TransportSocket| socket.tls.as_deref().map_or(Value::Null, |tls| describe_tls(tls, choice(socket)));
    let Some(assignment) = plan.assignment_of(cluster) else {
        if matches!(cluster.discovery, Discovery::OriginalDst) {
            return vec![json!({
                "cluster": &*cluster.name,
                "address": question.destination.to_string(),
                "healthy": true,
                "weight": 1,
                "share": 1.0,
                "metadata": {},
                "tls": tls(&cluster.transport),
                "http": version(&cluster.transport),
            })];
        }
        return Vec::new();
    };
    let balancer = balancer(cluster, assignment);
    let shares = balancer.shares();
    let described = balancer.hosts().iter().map(|host| {
        let share = shares.iter().find(|(chosen, _)| Arc::ptr_eq(chosen, host)).map_or(0.0, |(_, share)| *share);
        json!({
            "cluster": &*cluster.name,
            "address": host.endpoint.address.to_string(),
            "healthy": host.is_healthy(),
            "checked": host.active_health().is_some(),
            "weight": host.endpoint.weight,
            "priority": host.priority,
            "share": share,
            "metadata": host.endpoint.metadata.istio.as_deref().map_or_else(|| json!({}), parse),
            "tls": tls(cluster.transport_for(&host.endpoint)),
            "http": version(cluster.transport_for(&host.endpoint)),
        })
    });
    described.collect()
}

/// How the version of HTTP over this transport comes about.
fn choice(cluster: &Cluster, transport: &TransportSocket, question: &Question) -> VersionChoice {
    let tunnel = question.request.method == "CONNECT" || question.request.header("upgrade").is_some();
    cluster.http.version_for(transport, false, tunnel)
}

/// What that version is, and where it is written.
fn version(cluster: &Cluster, choice: VersionChoice) -> Value {
    let name = match choice {
        _ if cluster.http.protocol == UpstreamProtocol::Downstream => "downstream",
        VersionChoice::Http1 | VersionChoice::OfferHttp1 => "HTTP/1.1",
        VersionChoice::Http2 => "HTTP/2",
        VersionChoice::Endpoint => "endpoint",
    };
    json!({"version": name, "origin": metadata(&cluster.metadata)["origins"]["h2UpgradePolicy"]})
}

/// *choice* is that of the version of HTTP; none for bytes.
fn describe_tls(tls: &UpstreamTls, choice: Option<VersionChoice>) -> Value {
    let certificates = tls.common.certificates.iter().map(|source| match source {
        CertificateSource::Secret(secret) => &*secret.name,
        CertificateSource::Inline { .. } => "inline",
    });
    let trust = tls.common.trust.as_ref().map(|source| match source {
        TrustSource::Secret(secret) => &*secret.name,
        TrustSource::Inline(_) => "inline",
    });
    let names = tls.common.sans.iter().map(|san| san.matcher.to_string());
    let mut alpn: Vec<_> = tls.common.spoken_alpn().collect();
    if let Some(choice) = choice.filter(|_| alpn.is_empty()) {
        alpn.extend(choice.unlisted());
    }
    let alpn = alpn.iter().map(|name| String::from_utf8_lossy(name));
    json!({
        "sni": tls.sni.as_deref(),
        "certificate": certificates.collect::<Vec<_>>().first(),
        "trust": trust,
        "names": names.collect::<Vec<_>>(),
        "alpn": alpn.collect::<Vec<_>>(),
    })
}

/// Edits of all levels in the order of application: `remove` happens first within a level.
fn edits<'e>(levels: impl Iterator<Item = &'e HeaderEdits>) -> Value {
    let (mut set, mut add, mut absent, mut present, mut remove) = (vec![], vec![], vec![], vec![], vec![]);
    for level in levels {
        remove.extend(level.remove.iter().map(|name| json!(&**name)));
        for addition in &level.add {
            let entry = json!([&*addition.name, text(&addition.value)]);
            match addition.action {
                AppendAction::OverwriteOrAdd => set.push(entry),
                AppendAction::AppendOrAdd => add.push(entry),
                AppendAction::AddIfAbsent => absent.push(entry),
                AppendAction::OverwriteIfExists => present.push(entry),
            }
        }
    }
    json!({"set": set, "add": add, "add_if_absent": absent, "set_if_present": present, "remove": remove})
}

/// A header value as text; values that only a live request has stand as `<response code>`.
fn text(format: &Format) -> String {
    let piece = |piece: &Piece| match piece {
        Piece::Text(text) => text.to_string(),
        Piece::Value(Command::RequestHeader { name, .. }) => format!("<request header {name}>"),
        Piece::Value(command) => format!("<{command:?}>"),
    };
    format.0.iter().map(piece).collect()
}

fn metadata(metadata: &Metadata) -> Value {
    metadata.weft.as_deref().map_or_else(|| json!({}), parse)
}

fn parse(text: &str) -> Value {
    // The text was written by weft_core::metadata, so it is JSON.
    serde_json::from_str(text).unwrap_or_else(|_| json!({}))
}

fn millis(duration: Option<Duration>) -> Value {
    match duration {
        None => Value::Null,
        Some(duration) if duration.subsec_nanos() % 1_000_000 == 0 => json!(duration.as_millis() as u64),
        Some(duration) => json!(duration.as_secs_f64() * 1000.0),
    }
}

/// The trace of an explanation.
struct Notes {
    items: Vec<Value>,
    all: bool,
}

impl Trace for Notes {
    fn considered(&mut self, subject: Subject<'_>, matched: bool, reason: impl FnOnce() -> String) {
        if !self.all {
            return;
        }
        let (kind, name, origin) = match subject {
            Subject::FilterChain(chain) => ("filter_chain", &chain.name, &chain.metadata),
            Subject::VirtualHost(host) => ("virtual_host", &host.name, &host.metadata),
            Subject::Route(route) => ("route", &route.name, &route.metadata),
            Subject::RpcRoute(route) => ("route", &route.name, &Metadata::default()),
        };
        self.items.push(json!({kind: &**name, "matched": matched, "reason": reason(), "metadata": metadata(origin)}));
    }

    fn wants_all(&self) -> bool {
        self.all
    }
}
