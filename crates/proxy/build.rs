//! How the executable is linked.

use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs};

/// What the demo's proxies enter, at first between two changes of configuration: mangled names, `*` for what differs between builds. `tools/order/order.py` writes it.
const ORDER: &str = "order.txt";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={ORDER}");
    // The addresses that the loader must fill in take 0.5 MiB as a table and 10 KiB packed, and all of it becomes resident
    // in every proxy. glibc reads the packed form since 2.36; an older linker does not know the option and ignores it.
    println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    // The kernel maps code by 64 KiB around what is touched. What runs stands side by side, so that little else comes
    // with it (decision 0008). GNU ld and LLD read the script; names that do not exist say nothing to them.
    let directory = env::var("OUT_DIR").expect("cargo sets it for build scripts");
    let script = Path::new(&directory).join("order.ld");
    let names = fs::read_to_string(ORDER).expect("the list is beside this file");
    fs::write(&script, linker_script(names.lines().filter(|line| !line.starts_with('#'))))
        .expect("cargo made the directory");
    println!("cargo:rustc-link-arg-bins=-Wl,-T,{}", script.display());
}

/// One section for the functions of these names, before that of all others.
fn linker_script<'n>(names: impl Iterator<Item = &'n str>) -> String {
    let mut script = String::from("SECTIONS\n{\n  .text.entered : {\n");
    for name in names {
        // What is marked cold is in a section of another name.
        let _ = writeln!(script, "    *(.text.{name} .text.unlikely.{name})");
    }
    script.push_str("  }\n}\nINSERT BEFORE .text;\n");
    script
}
