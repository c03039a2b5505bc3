//! `/config_dump`: every resource with its state; which of them, may be said with Envoy's parameters.

use serde_json::Value;
use weft_protos::type_url;

use super::answer::Answer;
use super::question::Query;
use super::{Admin, Parameter, Response, filter};

pub const PARAMETERS: [Parameter; 3] = [
    ("include_eds", "what it asks for is there in any case: endpoints"),
    ("name_regex", "a regular expression; only resources whose name it finds"),
    ("resource", "one kind by Envoy's name, such as dynamic_listeners or static_clusters"),
];

/// Version of what the bootstrap itself holds.
const STATIC: &str = "static";

/// Envoy's name of a kind, and what belongs to it.
struct Kind {
    name: &'static str,
    type_url: &'static str,
    is_static: bool,
    /// Every one, if it is empty.
    state: &'static str,
}

const fn kind(name: &'static str, type_url: &'static str, is_static: bool, state: &'static str) -> Kind {
    Kind { name, type_url, is_static, state }
}

const KINDS: [Kind; 8] = [
    kind("static_listeners", type_url::LISTENER, true, ""),
    kind("dynamic_listeners", type_url::LISTENER, false, ""),
    kind("static_clusters", type_url::CLUSTER, true, ""),
    kind("dynamic_active_clusters", type_url::CLUSTER, false, "active"),
    kind("dynamic_warming_clusters", type_url::CLUSTER, false, "warming"),
    kind("dynamic_route_configs", type_url::ROUTE_CONFIGURATION, false, ""),
    kind("dynamic_endpoint_configs", type_url::CLUSTER_LOAD_ASSIGNMENT, false, ""),
    kind("dynamic_active_secrets", type_url::SECRET, false, ""),
];

pub fn respond(admin: &Admin, query: &Query) -> Response {
    query.flag("include_eds")?;
    let rows = admin.configurator.borrow().holdings.dump();
    select(rows, query).map(|rows| Answer::json(&rows.into()))
}

fn select(mut rows: Vec<Value>, query: &Query) -> Result<Vec<Value>, Answer> {
    if let Some(name) = query.value("resource")? {
        let Some(kind) = KINDS.iter().find(|kind| kind.name == name) else {
            let names: Vec<_> = KINDS.iter().map(|kind| kind.name).collect();
            return Err(Answer::text(
                404,
                format!("{name} not found in config dump; there are {}\n", names.join(", ")),
            ));
        };
        rows.retain(|row| {
            let is_static = row["version"] == STATIC;
            row["type_url"] == kind.type_url
                && is_static == kind.is_static
                && (kind.state.is_empty() || row["state"] == kind.state)
        });
    }
    if let Some(pattern) = filter(query, "name_regex")? {
        rows.retain(|row| row["name"].as_str().is_some_and(|name| pattern.is_match(name)));
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn resources_are_chosen_by_kind_and_name() {
        let row = |type_url: &str, name: &str, version: &str, state: &str| json!({"type_url": type_url, "name": name, "version": version, "state": state});
        let rows = || {
            vec![
                row(type_url::CLUSTER, "xds", "static", "active"),
                row(type_url::CLUSTER, "up", "1", "active"),
                row(type_url::CLUSTER, "up", "2", "warming"),
                row(type_url::LISTENER, "in", "1", "active"),
            ]
        };
        let names = |query: &str| -> Result<Vec<String>, u16> {
            let found = select(rows(), &Query::parse(query).unwrap()).map_err(|answer| answer.status)?;
            Ok(found.iter().map(|row| format!("{}@{}", row["name"].as_str().unwrap(), row["version"])).collect())
        };
        assert_eq!(names("resource=static_clusters").unwrap(), ["xds@\"static\""]);
        assert_eq!(names("resource=dynamic_active_clusters").unwrap(), ["up@\"1\""]);
        assert_eq!(names("resource=dynamic_warming_clusters").unwrap(), ["up@\"2\""]);
        assert_eq!(names("name_regex=^(in|xds)$").unwrap(), ["xds@\"static\"", "in@\"1\""]);
        assert_eq!(names("name_regex=("), Err(400));
        assert_eq!(names("resource=dynamic_scopes"), Err(404));
        assert_eq!(names("").unwrap().len(), 4);
    }
}
