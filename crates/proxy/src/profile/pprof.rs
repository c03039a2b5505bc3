//! pprof's profile.proto (github.com/google/pprof/blob/main/proto/profile.proto), as much as is written here.

use std::collections::HashMap;
use std::io::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use flate2::Compression;
use flate2::write::GzEncoder;
use weft_protos::Message;

use super::Stacks;
use super::symbols::Symbols;
use crate::loaded::Loaded;

#[derive(Clone, PartialEq, Message)]
pub struct Profile {
    #[prost(message, repeated, tag = "1")]
    pub sample_type: Vec<ValueType>,
    #[prost(message, repeated, tag = "2")]
    pub sample: Vec<Sample>,
    #[prost(message, repeated, tag = "3")]
    pub mapping: Vec<Mapping>,
    #[prost(message, repeated, tag = "4")]
    pub location: Vec<Location>,
    #[prost(message, repeated, tag = "5")]
    pub function: Vec<Function>,
    #[prost(string, repeated, tag = "6")]
    pub string_table: Vec<String>,
    #[prost(int64, tag = "9")]
    pub time_nanos: i64,
    #[prost(int64, tag = "10")]
    pub duration_nanos: i64,
    #[prost(message, optional, tag = "11")]
    pub period_type: Option<ValueType>,
    #[prost(int64, tag = "12")]
    pub period: i64,
    #[prost(int64, repeated, tag = "13")]
    pub comment: Vec<i64>,
}

/// Numbers of strings.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct ValueType {
    #[prost(int64, tag = "1")]
    pub kind: i64,
    #[prost(int64, tag = "2")]
    pub unit: i64,
}

#[derive(Clone, PartialEq, Message)]
pub struct Sample {
    /// The innermost first.
    #[prost(uint64, repeated, tag = "1")]
    pub location_id: Vec<u64>,
    #[prost(int64, repeated, tag = "2")]
    pub value: Vec<i64>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Mapping {
    #[prost(uint64, tag = "1")]
    pub id: u64,
    #[prost(uint64, tag = "2")]
    pub memory_start: u64,
    #[prost(uint64, tag = "3")]
    pub memory_limit: u64,
    #[prost(int64, tag = "5")]
    pub filename: i64,
    #[prost(bool, tag = "7")]
    pub has_functions: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct Location {
    #[prost(uint64, tag = "1")]
    pub id: u64,
    #[prost(uint64, tag = "2")]
    pub mapping_id: u64,
    #[prost(uint64, tag = "3")]
    pub address: u64,
    #[prost(message, repeated, tag = "4")]
    pub line: Vec<Line>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Line {
    #[prost(uint64, tag = "1")]
    pub function_id: u64,
}

#[derive(Clone, PartialEq, Message)]
pub struct Function {
    #[prost(uint64, tag = "1")]
    pub id: u64,
    #[prost(int64, tag = "2")]
    pub name: i64,
    #[prost(int64, tag = "3")]
    pub system_name: i64,
}

/// What a profile says of itself.
pub struct About {
    /// Of each value of a stack: what it is, and its unit.
    pub values: Vec<(&'static str, &'static str)>,
    /// What is between two samples: what it is, its unit, and how much.
    pub period: (&'static str, &'static str, i64),
    pub duration: Duration,
    pub comment: Option<String>,
    /// Functions whose names hold one of these are left out where stacks begin: those that take the sample.
    pub own: &'static [&'static str],
}

/// Texts by number; 0 is the empty one.
#[derive(Default)]
struct Strings {
    numbers: HashMap<String, i64>,
    all: Vec<String>,
}

impl Strings {
    fn number(&mut self, text: &str) -> i64 {
        if let Some(number) = self.numbers.get(text) {
            return *number;
        }
        let number = self.all.len() as i64;
        self.all.push(text.to_owned());
        self.numbers.insert(text.to_owned(), number);
        number
    }
}

/// The profile of *stacks*, each with as many values as *about* names.
pub fn profile(about: &About, modules: &[Loaded], stacks: &Stacks<Vec<i64>>) -> Profile {
    let mut strings = Strings::default();
    strings.number("");
    let mut kind = |(kind, unit): (&str, &str)| ValueType { kind: strings.number(kind), unit: strings.number(unit) };
    let sample_type = about.values.iter().copied().map(&mut kind).collect();
    let period_type = Some(kind((about.period.0, about.period.1)));
    let comment = about.comment.iter().map(|text| strings.number(text)).collect();
    let symbols = Symbols::read(modules, stacks.keys().flatten().copied());
    let mapping = modules.iter().zip(1..).map(|(module, id)| Mapping {
        id,
        memory_start: module.addresses.start,
        memory_limit: module.addresses.end,
        filename: strings.number(&module.name()),
        has_functions: true,
    });
    let mapping = mapping.collect();
    let (mut location, mut function) = (Vec::new(), Vec::new());
    let (mut locations, mut functions) = (HashMap::new(), HashMap::new());
    let mut sample = Vec::with_capacity(stacks.len());
    let is_own = |address: &u64| {
        symbols.find(*address).is_some_and(|place| about.own.iter().any(|part| place.name.contains(part)))
    };
    for (stack, values) in stacks {
        let stack = &stack[stack.iter().position(|address| !is_own(address)).unwrap_or(0)..];
        let mut place = |address: u64| -> u64 {
            *locations.entry(address).or_insert_with(|| {
                let id = location.len() as u64 + 1;
                let found = symbols.find(address);
                let mut line = Vec::new();
                if let Some(place) = found.as_ref().filter(|place| !place.symbol.is_empty()) {
                    let function_id = *functions.entry(place.symbol.to_owned()).or_insert_with(|| {
                        let id = function.len() as u64 + 1;
                        let (name, system_name) = (strings.number(&place.name), strings.number(place.symbol));
                        function.push(Function { id, name, system_name });
                        id
                    });
                    line.push(Line { function_id });
                }
                let mapping_id = found.map_or(0, |place| place.module as u64 + 1);
                location.push(Location { id, mapping_id, address, line });
                id
            })
        };
        sample
            .push(Sample { location_id: stack.iter().map(|address| place(*address)).collect(), value: values.clone() });
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Profile {
        sample_type,
        sample,
        mapping,
        location,
        function,
        string_table: strings.all,
        time_nanos: now.saturating_sub(about.duration).as_nanos() as i64,
        duration_nanos: about.duration.as_nanos() as i64,
        period_type,
        period: about.period.2,
        comment,
    }
}

impl Profile {
    /// As it is kept in files: gzip.
    pub fn encode_compressed(&self) -> std::io::Result<Vec<u8>> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(&self.encode_to_vec())?;
        encoder.finish()
    }

    /// Functions of a stack by name, the innermost first.
    #[cfg(test)]
    pub fn names(&self, sample: &Sample) -> Vec<&str> {
        let function = |id: &u64| {
            let line = self.location[*id as usize - 1].line.first()?;
            let name = self.function[line.function_id as usize - 1].name;
            Some(self.string_table[name as usize].as_str())
        };
        sample.location_id.iter().filter_map(function).collect()
    }
}
