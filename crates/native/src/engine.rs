//! `Engine` and `validate`: the proxy's decision code for Python. Shapes of question and answer are in `question.rs` and `explain.rs`.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use weft_core::compile::{Problem, Strictness};
use weft_core::honoured;
use weft_core::plan::{Plan, Resource};
use weft_protos::type_url;

use crate::explain::{self, Mode};

/// The proxy's decision code on a set of resources; immutable once made.
#[pyclass(frozen, module = "weft._native")]
pub struct Engine {
    plan: Plan,
    not_applied: Vec<NotApplied>,
}

/// Type URL and name of a resource, path of the field, reason.
type NotApplied = (String, String, String, String);

#[pymethods]
impl Engine {
    /// Compile `(type_url, name, serialised resource)`s.
    ///
    /// With `strict=False` what weft does not honour is collected in `not_applied` instead of raised, to read what another control plane made.
    #[new]
    #[pyo3(signature = (resources, *, strict = true))]
    fn new(resources: Vec<(String, String, Vec<u8>)>, strict: bool) -> PyResult<Self> {
        let strictness = if strict { Strictness::Refuse } else { Strictness::Collect };
        let mut plan = Plan::default();
        let mut not_applied = Vec::new();
        let mut refused = Vec::new();
        for (type_url, name, value) in resources {
            let note = |problems: Vec<Problem>, list: &mut Vec<NotApplied>| {
                list.extend(
                    problems.into_iter().map(|problem| (type_url.clone(), name.clone(), problem.path, problem.reason)),
                );
            };
            // Keys and certificates decide nothing; they are only held to the list of honoured fields.
            if type_url == type_url::SECRET {
                let problems = honoured::walk(&type_url, &value);
                note(problems, if strict { &mut refused } else { &mut not_applied });
                continue;
            }
            match Resource::compile(&type_url, &value, strictness) {
                Ok(compiled) => {
                    note(compiled.not_applied, &mut not_applied);
                    plan.insert(compiled.value);
                }
                Err(problems) => note(problems.0, if strict { &mut refused } else { &mut not_applied }),
            }
        }
        if refused.is_empty() {
            return Ok(Self { plan, not_applied });
        }
        let lines: Vec<_> =
            refused.into_iter().map(|(_, name, path, reason)| format!("{name}: {path}: {reason}")).collect();
        Err(PyValueError::new_err(lines.join("\n")))
    }

    /// What was left out, under `strict=False`: `(type_url, resource, field path, reason)`.
    #[getter]
    fn not_applied(&self) -> Vec<NotApplied> {
        self.not_applied.clone()
    }

    /// Answer a question with everything that was considered. JSON in, JSON out; ValueError for a question that makes no sense.
    fn explain(&self, request: &str) -> PyResult<String> {
        explain::answer(&self.plan, request, Mode::Explain).map_err(PyValueError::new_err)
    }

    /// Answer a question as the proxy would; random values that matter must be given.
    fn decide(&self, request: &str) -> PyResult<String> {
        explain::answer(&self.plan, request, Mode::Decide).map_err(PyValueError::new_err)
    }
}

/// Everything in a serialised resource that weft-proxy would not honour: `(field path, reason)`.
#[pyfunction]
pub fn validate(type_url: &str, value: &[u8]) -> Vec<(String, String)> {
    let problems = if type_url == type_url::SECRET {
        honoured::walk(type_url, value)
    } else {
        Resource::compile(type_url, value, Strictness::Refuse).err().map_or_else(Vec::new, |problems| problems.0)
    };
    problems.into_iter().map(|problem| (problem.path, problem.reason)).collect()
}
