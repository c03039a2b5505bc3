//! Names for addresses of this process.

use std::collections::HashMap;

use super::elf::Functions;
use crate::loaded::Loaded;

/// Where code is.
pub struct Place<'s> {
    /// Number of the module.
    pub module: usize,
    /// As people write it; empty if nobody knows.
    pub name: String,
    /// As the file has it.
    pub symbol: &'s str,
}

pub struct Symbols<'m> {
    modules: &'m [Loaded],
    /// Of the modules that are needed.
    functions: HashMap<usize, Functions>,
}

impl<'m> Symbols<'m> {
    /// Read the symbols of those of *modules* in which *addresses* lie; one whose file cannot be read has none.
    pub fn read(modules: &'m [Loaded], addresses: impl Iterator<Item = u64>) -> Symbols<'m> {
        let mut symbols = Symbols { modules, functions: HashMap::new() };
        for address in addresses {
            if let Some(index) = symbols.module(address) {
                let read = || Functions::read(&modules[index].path).unwrap_or_default();
                symbols.functions.entry(index).or_insert_with(read);
            }
        }
        symbols
    }

    fn module(&self, address: u64) -> Option<usize> {
        self.modules.iter().position(|module| module.addresses.contains(&address))
    }

    /// What is at *address*; `None` if it is in no module.
    pub fn find(&self, address: u64) -> Option<Place<'_>> {
        let module = self.module(address)?;
        let found = self.functions.get(&module)?.find(address - self.modules[module].base);
        let symbol = found.map_or("", |(_, symbol)| symbol);
        // `#` leaves out the hash that ends Rust's names.
        Some(Place { module, name: format!("{:#}", rustc_demangle::demangle(symbol)), symbol })
    }
}
