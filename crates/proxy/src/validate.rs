//! `weft-proxy validate FILE`: would a weft-proxy honour this? The checks of a bootstrap and of resources on arrival, without a proxy.
//!
//! A file holds a bootstrap, a resource, or anything around resources that carry their `@type`: a list, a `DiscoveryResponse`, the
//! `/config_dump` of an Envoy.

use std::fmt;
use std::path::Path;

use serde_json::Value;
use weft_core::compile::{Problem, Problems, Strictness};
use weft_core::honoured::json;
use weft_core::plan::Resource;
use weft_protos::type_url;
use weft_xds::Refusal;

use crate::bootstrap::{self, Bootstrap, StartError};
use crate::document;
use crate::tls::context::{ContextError, Secrets};
use crate::tls::secrets;
use crate::warming::{self, Holdings};

/// What was found in a file.
#[derive(Debug, Default)]
pub struct Report {
    /// How many bootstraps and resources.
    checked: usize,
    refused: usize,
    /// The place in the file, and what is wrong there.
    problems: Vec<(String, Problem)>,
    /// The place in the file, and what would be accepted although nothing is done about it.
    not_applied: Vec<(String, Problem)>,
}

/// Read and check *path*.
///
/// # Errors
/// The file cannot be read, is no document, or holds nothing that could be checked.
pub fn run(path: &Path) -> Result<Report, StartError> {
    let text = std::fs::read(path).map_err(|source| StartError::Read { path: path.to_owned(), source })?;
    let value = document::parse(&text).map_err(|source| StartError::Document { path: path.to_owned(), source })?;
    let mut report = Report::default();
    if is_bootstrap(&value) {
        report.check("", bootstrap::TYPE_URL, &value);
    } else {
        report.search("", &value);
    }
    if report.checked == 0 {
        let reason = "expected a bootstrap, or resources with their `@type`: one, a list, a config dump";
        return Err(StartError::Content { path: path.to_owned(), problems: Problems::one("the file", reason) });
    }
    Ok(report)
}

impl Report {
    pub fn is_good(&self) -> bool {
        self.refused == 0
    }

    fn search(&mut self, place: &str, value: &Value) {
        match value {
            Value::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    self.search(&format!("{place}[{index}]"), item);
                }
            }
            Value::Object(members) => {
                let type_url = members.get("@type").and_then(Value::as_str).unwrap_or_default();
                if CHECKED.contains(&type_url) {
                    return self.check(place, type_url, value);
                }
                for (key, member) in members {
                    let below = if place.is_empty() { key.clone() } else { format!("{place}.{key}") };
                    if key == "bootstrap" && is_bootstrap(member) {
                        self.check(&below, bootstrap::TYPE_URL, member);
                    } else {
                        self.search(&below, member);
                    }
                }
            }
            _ => {}
        }
    }

    fn check(&mut self, place: &str, type_url: &str, value: &Value) {
        self.checked += 1;
        let at = |problems: Vec<Problem>| problems.into_iter().map(|problem| (place.to_owned(), problem));
        match compile(type_url, value) {
            Ok(not_applied) => self.not_applied.extend(at(not_applied)),
            Err(problems) => {
                self.refused += 1;
                self.problems.extend(at(problems.0));
            }
        }
    }
}

/// Types that a file may hold by themselves.
const CHECKED: [&str; 6] = [
    bootstrap::TYPE_URL,
    type_url::LISTENER,
    type_url::ROUTE_CONFIGURATION,
    type_url::CLUSTER,
    type_url::CLUSTER_LOAD_ASSIGNMENT,
    type_url::SECRET,
];

/// A bootstrap says nothing of its type.
fn is_bootstrap(value: &Value) -> bool {
    const MEMBERS: [&str; 7] = [
        "node",
        "admin",
        "static_resources",
        "staticResources",
        "dynamic_resources",
        "dynamicResources",
        "layered_runtime",
    ];
    value.as_object().is_some_and(|members| {
        !members.contains_key("@type") && members.keys().any(|key| MEMBERS.contains(&key.as_str()))
    })
}

/// What of one resource is not applied, or all that refuses it.
fn compile(type_url: &str, value: &Value) -> Result<Vec<Problem>, Problems> {
    if type_url == bootstrap::TYPE_URL {
        let bootstrap = Bootstrap::compile(value)?;
        put_to_work(&bootstrap)?;
        return Ok(bootstrap.not_applied);
    }
    let bytes = json::encode(type_url, value).map_err(Problems)?;
    if type_url == type_url::SECRET {
        return match secrets::decode(&bytes) {
            Err(problems) if !json::is_redacted(type_url, &bytes) => Err(problems),
            _ => Ok(Vec::new()),
        };
    }
    let compiled = Resource::compile(type_url, &bytes, Strictness::Refuse)?;
    let broken = warming::broken(&compiled.value, &Secrets::default());
    if broken.is_empty() || json::is_redacted(type_url, &bytes) {
        return Ok(compiled.not_applied);
    }
    let problem =
        |error: ContextError| Problem { path: type_url::kind(type_url).to_owned(), reason: error.to_string() };
    Err(Problems(broken.into_iter().map(problem).collect()))
}

/// Do with static resources as a start does, but for sockets, and those whose keys a dump has left out.
fn put_to_work(bootstrap: &Bootstrap) -> Result<(), Problems> {
    let mut holdings = Holdings::new(0, bootstrap.clusters.iter().map(|(name, _)| name.clone()));
    let mut refused = Vec::new();
    let whole = bootstrap.resources.iter().filter(|(type_url, resource)| !json::is_redacted(type_url, &resource.body));
    for (type_url, resource) in whole {
        let outcome = holdings.accept_static(type_url, resource.clone(), |_| Ok(()));
        let problem =
            |refusal: Refusal| Problem { path: format!("static_resources: {}", refusal.name), reason: refusal.reason };
        refused.extend(outcome.refusals.into_iter().map(problem));
    }
    if refused.is_empty() { Ok(()) } else { Err(Problems(refused)) }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let groups = [("refused", &self.problems), ("not applied", &self.not_applied)];
        for (what, problems) in groups {
            for (place, problem) in problems {
                write!(out, "{what}: ")?;
                if !place.is_empty() {
                    write!(out, "{place}: ")?;
                }
                writeln!(out, "{problem}")?;
            }
        }
        write!(out, "{} checked, {} refused", self.checked, self.refused)
    }
}
