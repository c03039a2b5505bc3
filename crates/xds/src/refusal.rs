//! Which resource of a response was refused and why: the one thing that a NACK of xDS does not say by itself.
//!
//! A NACK refuses a whole response and carries one `google.rpc.Status`. The text names each refused resource for people
//! and for control planes that only log it; `details` carries one `google.rpc.ErrorInfo` a resource for ours.

use prost::Message;
use weft_protos::google::protobuf::Any;
use weft_protos::google::rpc::Status;

use crate::grpc::code;

const ERROR_INFO: &str = "type.googleapis.com/google.rpc.ErrorInfo";
const REASON: &str = "RESOURCE_REFUSED";
const DOMAIN: &str = "weft";

/// A resource that cannot be honoured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub name: String,
    /// What is wrong and where, for people.
    pub reason: String,
}

/// `google.rpc.ErrorInfo` (googleapis google/rpc/error_details.proto).
#[derive(Clone, PartialEq, Message)]
struct ErrorInfo {
    #[prost(string, tag = "1")]
    reason: String,
    #[prost(string, tag = "2")]
    domain: String,
    #[prost(btree_map = "string, string", tag = "3")]
    metadata: std::collections::BTreeMap<String, String>,
}

/// What the client puts into `error_detail`.
pub(crate) fn to_status(refusals: &[Refusal]) -> Status {
    let lines: Vec<_> = refusals.iter().map(|it| format!("{}: {}", it.name, it.reason)).collect();
    let details = refusals.iter().map(|it| {
        let metadata = [("name", &it.name), ("message", &it.reason)];
        let info = ErrorInfo {
            reason: REASON.into(),
            domain: DOMAIN.into(),
            metadata: metadata.map(|(key, value)| (key.into(), value.clone())).into(),
        };
        Any { type_url: ERROR_INFO.into(), value: info.encode_to_vec().into() }
    });
    Status { code: code::INVALID_ARGUMENT, message: lines.join("\n"), details: details.collect() }
}

/// The resources that `status` names; empty if the peer does not say (Envoy, gRPC clients).
pub(crate) fn from_status(status: &Status) -> Vec<Refusal> {
    let infos = status.details.iter().filter(|any| any.type_url == ERROR_INFO);
    infos
        .filter_map(|any| {
            let mut info = ErrorInfo::decode(&any.value[..]).ok()?;
            if info.reason != REASON || info.domain != DOMAIN {
                return None;
            }
            let reason = info.metadata.remove("message").unwrap_or_default();
            Some(Refusal { name: info.metadata.remove("name")?, reason })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_names_every_refused_resource() {
        let refusals = [("a", "no such field"), ("b", "bad")]
            .map(|(name, reason)| Refusal { name: name.into(), reason: reason.into() });
        let status = to_status(&refusals);
        assert_eq!(status.message, "a: no such field\nb: bad");
        assert_eq!(from_status(&status), refusals);
    }

    #[test]
    fn details_of_others_name_nothing() {
        let mut status = to_status(&[Refusal { name: "a".into(), reason: "x".into() }]);
        status.details[0].value = b"\xff\xff".as_slice().into();
        assert!(from_status(&status).is_empty());
        status.details[0].type_url = "type.googleapis.com/google.rpc.RetryInfo".into();
        assert!(from_status(&status).is_empty());
    }
}
