//! `/logging`: which lines of the log are written, shown and changed in Envoy's way.

use std::fmt::Write as _;

use super::answer::Answer;
use super::question::Query;
use super::{Admin, Parameter, Response};
use crate::logging::{self, COMPONENTS, Change};

/// `level`, `paths`, and each component.
pub const PARAMETERS: [Parameter; COMPONENTS.len() + 2] = {
    let mut parameters = [("", "a level of this component alone"); COMPONENTS.len() + 2];
    parameters[0] = ("level", "a level of all: off, error, warning, info, debug or trace");
    parameters[1] = ("paths", "levels of some: NAME:LEVEL,NAME:LEVEL");
    let mut index = 0;
    while index < COMPONENTS.len() {
        parameters[index + 2].0 = COMPONENTS[index];
        index += 1;
    }
    parameters
};

pub fn respond(_: &Admin, query: &Query) -> Response {
    change(query)?.apply();
    Ok(shown())
}

/// What is asked for. All of it is done, or nothing.
fn change(query: &Query) -> Result<Change, Answer> {
    let mut change = Change::default();
    for (name, value) in query.pairs() {
        let result = match name {
            "level" => change.all(value),
            "paths" => change.pairs(value),
            component => change.one(component, value),
        };
        result.map_err(|error| Answer::refusal(format!("error: {error}")))?;
    }
    Ok(change)
}

/// Envoy's list.
pub fn shown() -> Answer {
    let mut text = String::from("active loggers:\n");
    for (component, level) in logging::levels() {
        let _ = writeln!(text, "  {component}: {level}");
    }
    Answer::text(200, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_whole_or_refused() {
        let ask = |query: &str| change(&Query::parse(query).unwrap());
        assert!(ask("level=warning&xds=debug&paths=pool:off,dns:trace").is_ok());
        for query in ["level=loud", "xds=", "paths=pool", "paths=loop:info", "level=info&xds=loud"] {
            assert_eq!(ask(query).unwrap_err().status, 400, "{query}");
        }
    }
}
