//! The shape of access records in files.

use serde_json::{Value, json};
use weft_protos::google::protobuf::{ListValue, Struct, Value as Message, value::Kind};

use crate::kit::resources::json_log;
use crate::kit::{Mesh, Upstream, until};

/// *value* as a message.
fn message(value: &Value) -> Message {
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(value) => Kind::BoolValue(*value),
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap()),
        Value::String(text) => Kind::StringValue(text.clone()),
        Value::Array(values) => Kind::ListValue(ListValue { values: values.iter().map(message).collect() }),
        Value::Object(_) => Kind::StructValue(fields(value)),
    };
    Message { kind: Some(kind) }
}

fn fields(value: &Value) -> Struct {
    let members = value.as_object().unwrap().iter();
    Struct { fields: members.map(|(name, value)| (name.clone(), message(value))).collect() }
}

/// As Envoy 1.40 writes them; both are compared in tests/conformance/test_access.py.
#[test]
fn commands_are_substituted_wherever_they_stand() {
    let format = json!({
        "list": ["%RESPONSE_CODE%", "a %REQ(:METHOD)%", "b %REQ(none)%", 3, null, true, {"x": "%REQ(none)%"},
            ["%PROTOCOL%", "%REQ(none)%"], "%REQ(none)%"],
        "deep": {"in": {"it": "%REQ(none)%"}, "empty": {}},
        "only": {"list": []},
        "none": null,
        "both": "%REQ(none)%%REQ(none)%",
        "text": "",
    });
    let mut mesh = Mesh::prepare(&[Upstream::saying("hello")]);
    for (name, omit) in [("whole", false), ("omitted", true)] {
        let log = json_log(&mesh.path(name), fields(&format), omit);
        mesh.setup.manager.access_log.push(log);
    }
    mesh.serve();
    mesh.run(&[]);
    mesh.publish();
    mesh.wait_ready();
    assert_eq!(mesh.client().get("/").status(), 200);
    let line = |name: &str| -> Value {
        until("the record is written", || {
            let text = std::fs::read_to_string(mesh.path(name)).unwrap_or_default();
            text.ends_with('\n').then(|| serde_json::from_str(&text).unwrap())
        })
    };
    let whole = json!({
        "list": [200, "a GET", "b -", 3, null, true, {"x": null}, ["HTTP/1.1", null], null],
        "deep": {"in": {"it": null}, "empty": {}},
        "only": {"list": []},
        "none": null,
        "both": "--",
        "text": "",
    });
    assert_eq!(line("whole"), whole);
    let omitted = json!({
        "list": [200, "a GET", "b ", 3, true, ["HTTP/1.1"]],
        "only": {"list": []},
        "both": "",
        "text": "",
    });
    assert_eq!(line("omitted"), omitted);
}
