//! Headers to add and remove, compiled; applied with Envoy's order within one level and between levels.

use weft_protos::envoy::config::core::v3::HeaderValueOption;
use weft_protos::envoy::config::core::v3::header_value_option::HeaderAppendAction;

use crate::compile::Context;
use crate::format::{Format, Variables};

/// What adding does when the header is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AppendAction {
    /// Another field of the same name.
    AppendOrAdd,
    /// Nothing.
    AddIfAbsent,
    /// Replaces all fields of the name.
    OverwriteOrAdd,
    /// Replaces if there, else nothing.
    OverwriteIfExists,
}

/// One header to add.
#[derive(Debug, Clone)]
pub struct Addition {
    /// Lower-case.
    pub name: Box<str>,
    /// The value, often a plain text.
    pub value: Format,
    /// See [`AppendAction`].
    pub action: AppendAction,
    /// An empty value is added too.
    pub keep_empty: bool,
}

/// The edits of one level (route, virtual host...), in the order of the configuration.
#[derive(Debug, Clone, Default)]
pub struct HeaderEdits {
    /// Lower-case names, removed before anything is added.
    pub remove: Box<[Box<str>]>,
    /// What is added.
    pub add: Box<[Addition]>,
}

/// The headers of a message, as far as edits touch them. Names are lower-case; comparison must ignore case.
/// `:authority`, `host` and `:path` may be set on requests.
pub trait Headers {
    /// Whether a field of the name is there.
    fn contains(&self, name: &str) -> bool;
    /// Replace all fields of the name by one.
    fn set(&mut self, name: &str, value: &[u8]);
    /// Add one field.
    fn append(&mut self, name: &str, value: &[u8]);
    /// Remove all fields of the name.
    fn remove(&mut self, name: &str);
}

/// Fields about one connection that go no further than it, whatever a configuration says; lower-case.
const ALWAYS_REMOVED: [&str; 2] = ["keep-alive", "proxy-connection"];

/// Fields that the proxy writes itself, by the message and the connection that it goes to (RFC 9110 7.6.1, RFC 9112 6); lower-case.
///
/// Envoy adds and removes them as it is told: `content-length: 3,7`, or `transfer-encoding: chunked` before a body that is not. What is
/// between two proxies would then end where each of them thinks.
const FRAMING: [&str; 5] = ["connection", "content-length", "te", "transfer-encoding", "upgrade"];

/// RFC 9110 5.5: a field that holds one of these ends, or does not, depending on who reads it.
fn is_control(byte: u8) -> bool {
    matches!(byte, b'\r' | b'\n' | 0)
}

/// Refuse a *text* that goes into a head and would not stay in its place there.
pub(crate) fn refuse_controls(context: &mut Context, field: &str, text: &str) {
    if text.bytes().any(is_control) {
        context.refuse_at(field, "CR, LF and NUL are not allowed in what goes into a header");
    }
}

impl HeaderEdits {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.add.is_empty()
    }

    /// Apply to `headers`. Within one level: remove, then overwrite, then add, with conditions judged before the first addition (as Envoy).
    pub fn apply(&self, headers: &mut (impl Headers + ?Sized), variables: &(impl Variables + ?Sized)) {
        for name in &self.remove {
            headers.remove(name);
        }
        let mut formatted = Vec::new();
        // Two passes instead of a list of what is to be done: the first overwrites, the second adds.
        // A condition of the second pass must not see what the first one set, so it is remembered; edits of one level are few.
        let absent: Vec<bool> = self.add.iter().map(|addition| !headers.contains(&addition.name)).collect();
        for pass_overwrites in [true, false] {
            for (addition, &was_absent) in self.add.iter().zip(&absent) {
                let (overwrites, wanted) = match addition.action {
                    AppendAction::AppendOrAdd => (false, true),
                    AppendAction::AddIfAbsent => (false, was_absent),
                    AppendAction::OverwriteOrAdd => (true, true),
                    AppendAction::OverwriteIfExists => (true, !was_absent),
                };
                if !wanted || overwrites != pass_overwrites {
                    continue;
                }
                let value = match addition.value.literal() {
                    Some(text) => text.as_bytes(),
                    None => {
                        formatted.clear();
                        addition.value.write(variables, "", &mut formatted);
                        // RFC 9110 5.5: some of what is written comes from peers, names in certificates for instance, which may hold anything.
                        for byte in &mut formatted {
                            if is_control(*byte) {
                                *byte = b' ';
                            }
                        }
                        formatted.as_slice()
                    }
                };
                if value.is_empty() && !addition.keep_empty {
                    continue;
                }
                if overwrites {
                    headers.set(&addition.name, value);
                } else {
                    headers.append(&addition.name, value);
                }
            }
        }
    }

    pub(crate) fn compile(
        context: &mut Context,
        (add_field, add): (&str, &[HeaderValueOption]),
        (remove_field, remove): (&str, &[String]),
    ) -> Self {
        let add = context.each(add_field, add, |context, option| {
            let header = option.header.as_ref()?;
            if header.key.is_empty() {
                context.refuse_at("header.key", "required");
            }
            // As Envoy: what rewrites them is the route's action, and an edit would come between it and what was matched.
            if header.key.starts_with(':') || header.key.eq_ignore_ascii_case("host") {
                context.refuse_at(
                    "header.key",
                    format!(
                        "`{}` cannot be added; host_rewrite_literal and prefix_rewrite change host and path",
                        header.key
                    ),
                );
            }
            refuse_controls(context, "header.key", &header.key);
            let name = header.key.to_ascii_lowercase();
            if FRAMING.contains(&name.as_str()) || ALWAYS_REMOVED.contains(&name.as_str()) {
                context.refuse_at("header.key", format!("weft-proxy writes `{}` itself", header.key));
            }
            let value = if header.raw_value.is_empty() {
                header.value.as_str()
            } else {
                std::str::from_utf8(&header.raw_value).unwrap_or_else(|_| {
                    context.refuse_at("header.raw_value", "not UTF-8");
                    ""
                })
            };
            refuse_controls(
                context,
                if header.raw_value.is_empty() { "header.value" } else { "header.raw_value" },
                value,
            );
            let action = match (&option.append, option.append_action()) {
                // The deprecated `append` rules where it is set, as in Envoy.
                (Some(append), _) if append.value => AppendAction::AppendOrAdd,
                (Some(_), _) => AppendAction::OverwriteOrAdd,
                (None, HeaderAppendAction::AppendIfExistsOrAdd) => AppendAction::AppendOrAdd,
                (None, HeaderAppendAction::AddIfAbsent) => AppendAction::AddIfAbsent,
                (None, HeaderAppendAction::OverwriteIfExistsOrAdd) => AppendAction::OverwriteOrAdd,
                (None, HeaderAppendAction::OverwriteIfExists) => AppendAction::OverwriteIfExists,
            };
            Some(Addition {
                name: name.into(),
                value: context.at("header.value", |context| Format::compile(context, value)),
                action,
                keep_empty: option.keep_empty_value,
            })
        });
        let remove = context.each(remove_field, remove, |context, name| {
            if name.is_empty() || name.starts_with(':') || name.eq_ignore_ascii_case("host") {
                context.refuse(format!("`{name}` cannot be removed"));
            }
            let name = name.to_ascii_lowercase();
            if FRAMING.contains(&name.as_str()) {
                context.refuse(format!("weft-proxy writes `{name}` itself"));
            }
            name.into_boxed_str()
        });
        Self { add: add.into_iter().flatten().collect(), remove: remove.into() }
    }
}
