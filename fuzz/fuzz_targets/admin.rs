//! Questions of whoever can connect to the admin socket, under foreign bytes: taking one apart must end without a panic, and what was taken apart
//! says what it says however its query is encoded.

#![no_main]

use libfuzzer_sys::fuzz_target;

// The proxy is an executable without a library, so its parser is compiled in from its source.
#[allow(dead_code)]
#[path = "../../crates/proxy/src/admin/question.rs"]
mod question;

use question::{HEAD_BYTES, Query};

fuzz_target!(|input: &[u8]| {
    match question::parse(input) {
        Ok(Some(question)) => {
            let names: Vec<&str> = question.query.names().collect();
            assert!(names.iter().enumerate().all(|(index, name)| !names[..index].contains(name)), "each name is there once");
            let escape = |text: &str| text.bytes().map(|byte| format!("%{byte:02x}")).collect::<String>();
            let again: Vec<String> =
                question.query.pairs().map(|(name, value)| format!("{}={}", escape(name), escape(value))).collect();
            let again = Query::parse(&again.join("&")).expect("what was decoded can be encoded");
            assert!(again.pairs().eq(question.query.pairs()));
            for name in names {
                let _ = (question.query.flag(name), question.query.value(name));
            }
            // What has come as a whole is whole, whatever follows.
            let more = question::parse(&[input, b"GET / HTTP/1.1\r\n\r\n"].concat()).expect("it is HTTP").expect("it is whole");
            assert!(more == question);
        }
        Ok(None) => assert!(input.len() < HEAD_BYTES, "a head has an end"),
        Err(_) => {}
    }
    if let Ok(text) = std::str::from_utf8(input) {
        let _ = Query::parse(text);
    }
});
