//! Envoy's runtime, as far as weft-proxy has one: the keys of a bootstrap's static layers that are known here. The others' default values hold,
//! and layers that would change while the proxy runs are not followed; of both the log tells.

use std::time::Duration;

use weft_core::compile::Context;
use weft_protos::Message;
use weft_protos::google::protobuf::value::Kind;
use weft_protos::google::protobuf::{Struct, Value};

use crate::codec::h2::Allowances;

const PREMATURE_RESETS: &str = "overload.premature_reset_total_stream_count";
const PREMATURE_LIFETIME_SECONDS: &str = "overload.premature_reset_min_stream_lifetime_seconds";
// Envoy has none of these: its counts never shrink, and what its codec takes of such frames is fixed, or a field of its options.
const PREMATURE_RESETS_PER_SECOND: &str = "weft.http2.premature_resets_per_second";
const IDLE_FRAMES: &str = "weft.http2.idle_frames";
const IDLE_FRAMES_PER_SECOND: &str = "weft.http2.idle_frames_per_second";

/// `envoy.config.bootstrap.v3.LayeredRuntime`, without what is not followed.
#[derive(Clone, PartialEq, Message)]
pub struct LayeredRuntime {
    #[prost(message, repeated, tag = "1")]
    layers: Vec<RuntimeLayer>,
}

#[derive(Clone, PartialEq, Message)]
struct RuntimeLayer {
    #[prost(string, tag = "1")]
    name: String,
    /// `None`: a layer of another kind.
    #[prost(message, optional, tag = "2")]
    static_layer: Option<Struct>,
}

impl LayeredRuntime {
    /// What its layers say, the later ones over those before them.
    pub fn compile(&self, context: &mut Context) -> Allowances {
        let mut allowances = Allowances::default();
        context.each("layers", &self.layers, |context, layer| match &layer.static_layer {
            Some(values) => {
                context.at("static_layer", |context| read(context, "", values, &mut allowances));
            }
            None => context.pass_over("weft-proxy reads static layers only"),
        });
        allowances
    }
}

/// Keys may be nested: `overload: {x: 1}` is `overload.x: 1`.
fn read(context: &mut Context, above: &str, values: &Struct, allowances: &mut Allowances) {
    for (key, value) in &values.fields {
        let key = if above.is_empty() { key.clone() } else { format!("{above}.{key}") };
        if let Some(Kind::StructValue(inner)) = &value.kind {
            read(context, &key, inner, allowances);
            continue;
        }
        context.at(&key.clone(), |context| {
            let Allowances { resets, idle_frames } = &mut *allowances;
            let number = match key.as_str() {
                PREMATURE_RESETS => &mut resets.rate.burst,
                PREMATURE_RESETS_PER_SECOND => &mut resets.rate.per_second,
                IDLE_FRAMES => &mut idle_frames.burst,
                IDLE_FRAMES_PER_SECOND => &mut idle_frames.per_second,
                PREMATURE_LIFETIME_SECONDS => {
                    let seconds = whole_number(context, value).map(|seconds| Duration::from_secs(seconds.into()));
                    resets.lifetime = seconds.unwrap_or(resets.lifetime);
                    return;
                }
                _ => return context.pass_over("weft-proxy has no such key of the runtime: its default value holds"),
            };
            *number = whole_number(context, value).unwrap_or(*number);
        });
    }
}

fn whole_number(context: &mut Context, value: &Value) -> Option<u32> {
    let number = match value.kind {
        Some(Kind::NumberValue(number)) if number.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(&number) => {
            Some(number as u32)
        }
        _ => None,
    };
    if number.is_none() {
        context.refuse("a whole number from 0 to 4294967295 is needed");
    }
    number
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;
    use crate::bootstrap::Bootstrap;
    use crate::codec::h2::limits::{Rate, Resets};

    /// Problems by path, or what is passed over.
    fn compile(layers: &serde_json::Value) -> Result<(Allowances, Vec<String>), BTreeMap<String, String>> {
        let bootstrap = json!({"node": {"id": "a", "cluster": "c"}, "layered_runtime": {"layers": layers}});
        match Bootstrap::compile(&bootstrap) {
            Ok(bootstrap) => {
                let passed_over = bootstrap.not_applied.into_iter().map(|problem| problem.path).collect();
                Ok((bootstrap.overload.allowances, passed_over))
            }
            Err(problems) => Err(problems.0.into_iter().map(|problem| (problem.path, problem.reason)).collect()),
        }
    }

    #[test]
    fn later_layers_win_and_keys_may_be_nested() {
        let layers = json!([
            {"name": "first", "static_layer": {PREMATURE_RESETS: 5, PREMATURE_LIFETIME_SECONDS: 7}},
            {"name": "second", "static_layer": {"overload": {"premature_reset_total_stream_count": 2000}}},
            {"name": "third", "static_layer": {"weft": {"http2": {"idle_frames": 3, "idle_frames_per_second": 4}}}},
            {"name": "fourth", "static_layer": {PREMATURE_RESETS_PER_SECOND: 0}},
        ]);
        let allowances = Allowances {
            resets: Resets { rate: Rate { burst: 2000, per_second: 0 }, lifetime: Duration::from_secs(7) },
            idle_frames: Rate { burst: 3, per_second: 4 },
        };
        assert_eq!(compile(&layers), Ok((allowances, Vec::new())));
        assert_eq!(compile(&json!([])), Ok((Allowances::default(), Vec::new())));
    }

    #[test]
    fn what_is_not_known_is_told() {
        let layers = json!([
            {"name": "ours", "static_layer": {"envoy.reloadable_features.x": true, "re2": {"max_program_size": {"error_level": 1}}}},
            {"name": "admin", "admin_layer": {}},
            {"name": "disk", "disk_layer": {"symlink_root": "/srv/runtime"}},
            {"name": "rtds", "rtds_layer": {"name": "runtime"}},
        ]);
        let (allowances, mut passed_over) = compile(&layers).unwrap();
        passed_over.sort();
        assert_eq!(allowances, Allowances::default());
        assert_eq!(
            passed_over,
            [
                "Bootstrap.layered_runtime.layers[0].static_layer.envoy.reloadable_features.x",
                "Bootstrap.layered_runtime.layers[0].static_layer.re2.max_program_size.error_level",
                "Bootstrap.layered_runtime.layers[1]",
                "Bootstrap.layered_runtime.layers[2]",
                "Bootstrap.layered_runtime.layers[3]",
            ]
        );
    }

    #[test]
    fn other_values_are_refused_by_their_place() {
        for value in [json!("many"), json!(-1), json!(1.5), json!(5e9), json!(true)] {
            let problems = compile(&json!([{"name": "a", "static_layer": {PREMATURE_RESETS: value}}])).unwrap_err();
            let path = format!("Bootstrap.layered_runtime.layers[0].static_layer.{PREMATURE_RESETS}");
            assert_eq!(problems, [(path, "a whole number from 0 to 4294967295 is needed".to_owned())].into());
        }
    }
}
