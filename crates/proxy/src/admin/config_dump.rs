//! `/config_dump`: every resource with its content and its state, in the form of Envoy's (envoy/admin/v3/config_dump.proto), so that what reads
//! Envoy's reads this. Which of them, may be said with Envoy's parameters.
//!
//! Beyond Envoy's form an item has `reason` where it is not active, and `not_applied` where a part of it is accepted and nothing is done about
//! it; and virtual hosts that came by themselves are a section of their own. Not there: the bootstrap, times, and what is in secrets.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use weft_core::honoured::json::decode;
use weft_protos::type_url;

use super::answer::Answer;
use super::question::Query;
use super::{Admin, Parameter, Response, filter};
use crate::warming::{Shown, State};

pub const PARAMETERS: [Parameter; 3] = [
    ("include_eds", "endpoints, too"),
    ("name_regex", "a regular expression; only resources whose name it finds"),
    ("resource", "one kind by Envoy's name, such as dynamic_listeners or static_clusters"),
];

/// A message of Envoy's that holds what there is of one type, in lists.
struct Section {
    message: &'static str,
    type_url: &'static str,
    /// What an item calls its resource.
    content: &'static str,
    lists: &'static [List],
}

struct List {
    name: &'static str,
    /// The message of its items, within that of the section.
    item: &'static str,
    part: Part,
}

/// Which resources of a type are in a list.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Static,
    Dynamic,
    DynamicActive,
    /// Those that are not active.
    DynamicWarming,
    /// All states of a name in one item.
    DynamicByState,
}

const ENDPOINTS: &str = "envoy.admin.v3.EndpointsConfigDump";
const VIRTUAL_HOSTS: &str = "weft.admin.v1.VirtualHostsConfigDump";

/// In Envoy's order.
const SECTIONS: [Section; 6] = [
    Section {
        message: "envoy.admin.v3.ClustersConfigDump",
        type_url: type_url::CLUSTER,
        content: "cluster",
        lists: &[
            List { name: "static_clusters", item: "StaticCluster", part: Part::Static },
            List { name: "dynamic_active_clusters", item: "DynamicCluster", part: Part::DynamicActive },
            List { name: "dynamic_warming_clusters", item: "DynamicCluster", part: Part::DynamicWarming },
        ],
    },
    Section {
        message: ENDPOINTS,
        type_url: type_url::CLUSTER_LOAD_ASSIGNMENT,
        content: "endpoint_config",
        lists: &[List { name: "dynamic_endpoint_configs", item: "DynamicEndpointConfig", part: Part::Dynamic }],
    },
    Section {
        message: "envoy.admin.v3.ListenersConfigDump",
        type_url: type_url::LISTENER,
        content: "listener",
        lists: &[
            List { name: "static_listeners", item: "StaticListener", part: Part::Static },
            List { name: "dynamic_listeners", item: "DynamicListener", part: Part::DynamicByState },
        ],
    },
    Section {
        message: "envoy.admin.v3.RoutesConfigDump",
        type_url: type_url::ROUTE_CONFIGURATION,
        content: "route_config",
        lists: &[List { name: "dynamic_route_configs", item: "DynamicRouteConfig", part: Part::Dynamic }],
    },
    Section {
        message: "envoy.admin.v3.SecretsConfigDump",
        type_url: type_url::SECRET,
        content: "secret",
        lists: &[
            List { name: "static_secrets", item: "StaticSecret", part: Part::Static },
            List { name: "dynamic_active_secrets", item: "DynamicSecret", part: Part::Dynamic },
        ],
    },
    Section {
        message: VIRTUAL_HOSTS,
        type_url: type_url::VIRTUAL_HOST,
        content: "virtual_host",
        lists: &[List { name: "dynamic_virtual_hosts", item: "DynamicVirtualHost", part: Part::Dynamic }],
    },
];

pub fn respond(admin: &Admin, query: &Query) -> Response {
    let configurator = admin.configurator.borrow();
    let configs = select(&configurator.holdings.shown(), query)?;
    Ok(Answer::json(&json!({"configs": configs})))
}

fn select(rows: &[Shown], query: &Query) -> Result<Vec<Value>, Answer> {
    let with_endpoints = query.flag("include_eds")?;
    let pattern = filter(query, "name_regex")?;
    let named = by_name(rows.iter().filter(|row| pattern.as_ref().is_none_or(|pattern| pattern.is_match(row.name))));
    if let Some(name) = query.value("resource")? {
        let lists = || SECTIONS.iter().flat_map(|section| section.lists.iter().map(move |list| (section, list)));
        let Some((section, list)) = lists().find(|(_, list)| list.name == name) else {
            let names: Vec<_> = lists().map(|(_, list)| list.name).collect();
            return Err(Answer::text(
                404,
                format!("{name} not found in config dump; there are {}\n", names.join(", ")),
            ));
        };
        let message = format!("{}.{}", section.message, list.item);
        return Ok(section.items(list.part, &named).map(|item| typed(&message, item)).collect());
    }
    let mut configs = Vec::new();
    for section in SECTIONS.iter().filter(|section| section.message != ENDPOINTS || with_endpoints) {
        let mut members = Map::new();
        for list in section.lists {
            let items: Vec<_> = section.items(list.part, &named).map(Value::Object).collect();
            if !items.is_empty() {
                members.insert(list.name.into(), items.into());
            }
        }
        // Envoy has no such section, and few have such virtual hosts.
        if section.message != VIRTUAL_HOSTS || !members.is_empty() {
            configs.push(typed(section.message, members));
        }
    }
    Ok(configs)
}

fn typed(message: &str, mut members: Map<String, Value>) -> Value {
    members.insert("@type".into(), format!("type.googleapis.com/{message}").into());
    members.into()
}

/// The states of one name.
#[derive(Clone, Copy, Default)]
struct States<'h> {
    active: Option<&'h Shown<'h>>,
    warming: Option<&'h Shown<'h>>,
    refused: Option<&'h Shown<'h>>,
}

/// Type URL, name, and the server that sent it: two servers of secrets may each have one of the same name.
type Key<'h> = (&'h str, &'h str, Option<&'h str>);

fn by_name<'h>(rows: impl Iterator<Item = &'h Shown<'h>>) -> BTreeMap<Key<'h>, States<'h>> {
    let mut named: BTreeMap<_, States> = BTreeMap::new();
    for row in rows {
        let states = named.entry((row.type_url, row.name, row.source)).or_default();
        match row.state {
            State::Active => states.active = Some(row),
            State::Warming => states.warming = Some(row),
            State::Refused => states.refused = Some(row),
        }
    }
    named
}

impl Section {
    fn items<'n>(
        &'n self,
        part: Part,
        named: &'n BTreeMap<Key<'n>, States<'n>>,
    ) -> impl Iterator<Item = Map<String, Value>> + use<'n> {
        named
            .iter()
            .filter(|((type_url, ..), _)| *type_url == self.type_url)
            .filter_map(move |((_, name, _), states)| self.item(part, name, states))
    }

    fn item(&self, part: Part, name: &str, states: &States) -> Option<Map<String, Value>> {
        let States { active, warming, refused } = *states;
        let is_static = active.or(warming).is_some_and(|row| row.is_static);
        if is_static != (part == Part::Static) {
            return None;
        }
        let (row, refused) = match part {
            Part::Static => (active.or(warming), None),
            Part::Dynamic => (active, refused),
            // What was refused last is told with what is newest.
            Part::DynamicActive if active.is_none() => return None,
            Part::DynamicActive => (active, refused.filter(|_| warming.is_none())),
            Part::DynamicWarming if warming.is_none() && active.is_some() => return None,
            Part::DynamicWarming => (warming, refused),
            Part::DynamicByState => {
                let mut item = named(name);
                let states = [("active_state", active), ("warming_state", warming)];
                let states = states.into_iter().filter_map(|(state, row)| Some((state, row?)));
                item.extend(states.map(|(state, row)| (state.to_owned(), self.version(row).into())));
                item.extend(refused.map(error_state));
                return Some(item);
            }
        };
        // Without a resource, or with one that is not shown, only this says which it is; a virtual host calls itself otherwise.
        let is_named = self.message == VIRTUAL_HOSTS || row.is_none_or(|row| row.body.is_empty());
        let mut item = if is_named { named(name) } else { Map::new() };
        item.extend(row.map(|row| self.version(row)).unwrap_or_default());
        item.extend(refused.map(error_state));
        Some(item)
    }

    /// One version of a resource.
    fn version(&self, row: &Shown) -> Map<String, Value> {
        let mut members = Map::new();
        if !row.is_static {
            members.insert("version_info".into(), row.version.into());
        }
        if let Some(content) = decode(row.type_url, row.body).filter(|_| !row.body.is_empty()) {
            members.insert(self.content.into(), content);
        }
        if !row.reason.is_empty() {
            members.insert("reason".into(), row.reason.into());
        }
        if !row.not_applied.is_empty() {
            let fields = row.not_applied.iter().map(|it| json!({"field": it.path, "reason": it.reason}));
            members.insert("not_applied".into(), fields.collect());
        }
        members
    }
}

fn named(name: &str) -> Map<String, Value> {
    Map::from_iter([("name".to_owned(), name.into())])
}

/// `envoy.admin.v3.UpdateFailureState`
fn error_state(refused: &Shown) -> (String, Value) {
    ("error_state".into(), json!({"version_info": refused.version, "details": refused.reason}))
}

#[cfg(test)]
mod tests {
    use weft_core::compile::Problem;

    use super::*;

    const EMPTY: Shown = Shown {
        type_url: type_url::CLUSTER,
        name: "up",
        source: None,
        version: "1",
        state: State::Active,
        is_static: false,
        body: &[],
        not_applied: &[],
        reason: "",
    };

    /// `Cluster {name: "up"}`
    const UP: &[u8] = b"\x0a\x02up";

    fn asked(rows: &[Shown], query: &str) -> Result<Value, u16> {
        select(rows, &Query::parse(query).unwrap()).map(Value::Array).map_err(|answer| answer.status)
    }

    #[test]
    fn resources_are_chosen_by_kind_and_name() {
        let rows = [
            Shown { name: "xds", is_static: true, ..EMPTY },
            EMPTY,
            Shown { version: "2", state: State::Warming, reason: "it waits", ..EMPTY },
            Shown { type_url: type_url::LISTENER, name: "in", ..EMPTY },
        ];
        let names = |query: &str| -> Result<Vec<String>, u16> {
            let found = asked(&rows, query)?;
            Ok(found.as_array().unwrap().iter().map(|item| item["name"].as_str().unwrap().to_owned()).collect())
        };
        assert_eq!(names("resource=static_clusters").unwrap(), ["xds"]);
        assert_eq!(names("resource=dynamic_active_clusters").unwrap(), ["up"]);
        assert_eq!(names("resource=dynamic_warming_clusters").unwrap(), ["up"]);
        assert_eq!(names("resource=dynamic_listeners&name_regex=^(in|xds)$").unwrap(), ["in"]);
        assert!(names("resource=dynamic_listeners&name_regex=^xds$").unwrap().is_empty());
        assert_eq!(names("name_regex=("), Err(400));
        assert_eq!(names("resource=dynamic_scopes"), Err(404));
        let sections = |query: &str| -> Vec<String> {
            let found = asked(&rows, query).unwrap();
            let types = found.as_array().unwrap().iter().map(|section| section["@type"].as_str().unwrap());
            types.map(|name| name.rsplit('.').next().unwrap().to_owned()).collect()
        };
        let all = ["ClustersConfigDump", "ListenersConfigDump", "RoutesConfigDump", "SecretsConfigDump"];
        assert_eq!(sections(""), all);
        assert_eq!(sections("include_eds")[..2], ["ClustersConfigDump", "EndpointsConfigDump"]);
    }

    #[test]
    fn an_item_has_what_envoy_s_has() {
        let problem = Problem { path: "Cluster.a".into(), reason: "no need".into() };
        let active = Shown { body: UP, not_applied: std::slice::from_ref(&problem), ..EMPTY };
        let refused = Shown { version: "3", state: State::Refused, reason: "it is bad", ..EMPTY };
        let item = |rows: &[Shown], list: &str| asked(rows, &format!("resource={list}")).unwrap();
        assert_eq!(
            item(&[active, refused], "dynamic_active_clusters"),
            json!([{
                "@type": "type.googleapis.com/envoy.admin.v3.ClustersConfigDump.DynamicCluster",
                "version_info": "1",
                "cluster": {"@type": type_url::CLUSTER, "name": "up"},
                "not_applied": [{"field": "Cluster.a", "reason": "no need"}],
                "error_state": {"version_info": "3", "details": "it is bad"},
            }])
        );
        assert_eq!(item(&[active, refused], "dynamic_warming_clusters"), json!([]));
        assert_eq!(
            item(&[refused], "dynamic_warming_clusters"),
            json!([{
                "@type": "type.googleapis.com/envoy.admin.v3.ClustersConfigDump.DynamicCluster",
                "name": "up",
                "error_state": {"version_info": "3", "details": "it is bad"},
            }])
        );
        assert_eq!(item(&[refused], "dynamic_active_clusters"), json!([]));
    }

    #[test]
    fn a_listener_has_all_its_states_in_one_item() {
        let row = |version, state, reason| Shown {
            type_url: type_url::LISTENER,
            name: "in",
            version,
            state,
            reason,
            ..EMPTY
        };
        let rows = [row("1", State::Active, ""), row("2", State::Warming, "it waits"), row("3", State::Refused, "bad")];
        assert_eq!(
            asked(&rows, "resource=dynamic_listeners").unwrap(),
            json!([{
                "@type": "type.googleapis.com/envoy.admin.v3.ListenersConfigDump.DynamicListener",
                "name": "in",
                "active_state": {"version_info": "1"},
                "warming_state": {"version_info": "2", "reason": "it waits"},
                "error_state": {"version_info": "3", "details": "bad"},
            }])
        );
    }
}
