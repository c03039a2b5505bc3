//! Changes of protocol that a configuration allows: WebSocket and its like, and tunnels (CONNECT).

use weft_protos::envoy::config::route::v3::route_action::upgrade_config::ConnectConfig;

use crate::compile::Context;

/// One protocol that may, or may not, take over a request's connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upgrade {
    /// `websocket`, or [`Upgrade::CONNECT`]; compared in any case.
    pub name: Box<str>,
    /// Allowed.
    pub enabled: bool,
    /// The tunnel ends here: its bytes go to the cluster as they are. Otherwise the upstream gets the CONNECT.
    pub terminates: bool,
}

impl Upgrade {
    /// The name of the method that opens tunnels.
    pub const CONNECT: &'static str = "CONNECT";

    /// Understand one of `upgrade_configs`.
    pub(crate) fn compile(context: &mut Context, name: &str, enabled: bool, connect: Option<&ConnectConfig>) -> Self {
        let is_connect = name.eq_ignore_ascii_case(Self::CONNECT);
        if name.is_empty() {
            context.refuse_at("upgrade_type", "required");
        } else if name.eq_ignore_ascii_case("h2c") {
            context.refuse_at("upgrade_type", "HTTP/2 in clear text is spoken with prior knowledge, not by upgrade");
        } else if name.eq_ignore_ascii_case("connect-udp") {
            context.refuse_at("upgrade_type", "CONNECT-UDP is not supported");
        }
        if connect.is_some() && !is_connect {
            context.refuse_at("connect_config", format!("only for `CONNECT`, not for `{name}`"));
        }
        Self { name: name.into(), enabled, terminates: connect.is_some() }
    }

    /// What *upgrades* say about the protocol *name*.
    pub fn find<'u>(upgrades: &'u [Self], name: &[u8]) -> Option<&'u Self> {
        upgrades.iter().find(|upgrade| upgrade.name.as_bytes().eq_ignore_ascii_case(name))
    }
}

/// Each protocol is named once.
pub(crate) fn refuse_repeated(context: &mut Context, upgrades: &[Upgrade]) {
    for (index, upgrade) in upgrades.iter().enumerate() {
        if Upgrade::find(&upgrades[..index], upgrade.name.as_bytes()).is_some() {
            context.refuse_at(
                &format!("upgrade_configs[{index}].upgrade_type"),
                format!("`{}` is here twice", upgrade.name),
            );
        }
    }
}
