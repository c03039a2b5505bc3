use std::borrow::Cow;

use super::*;

const DUBBO: Dubbo = Dubbo { limits: Limits::DEFAULT };

/// What a consumer of Dubbo 3.2.16 sends for `hello("x")` of a service in the group `mygroup`, with the attachment `tenant: blue` and a timeout of 700 ms.
const HELLO: &str = "dabbc2007def7eec34a41d9b000000c105322e302e3212776566742e6a756467652e4772656574657205302e302e300568656c6c6f124c6a\
    6176612f6c616e672f537472696e673b017848047061746812776566742e6a756467652e477265657465721272656d6f74652e6170706c69636174696f6e08\
    636f6e73756d657209696e7465726661636512776566742e6a756467652e477265657465720776657273696f6e05302e302e300674656e616e7404626c75650774\
    696d656f7574033730300567726f7570076d7967726f75705a";

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn message(flag: u8, status: u8, id: u64, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    write(&mut out, flag, status, id, body);
    out
}

fn text(value: Option<&[u8]>) -> Option<&str> {
    value.map(|value| std::str::from_utf8(value).unwrap())
}

#[test]
fn a_real_call_is_read_to_its_attachments() {
    let hello = bytes(HELLO);
    assert_eq!(DUBBO.frame(&hello), Ok(Frame::Length(hello.len())));
    assert_eq!(DUBBO.inspect(&hello), Ok(Message::Call { id: 0x7def_7eec_34a4_1d9b, answered: true }));
    let call = DUBBO.call(&hello).unwrap();
    assert_eq!((&*call.service, &*call.method), (&b"weft.judge.Greeter"[..], &b"hello"[..]));
    assert_eq!(text(call.version.as_deref()), Some("0.0.0"));
    assert_eq!(text(call.header(b"TENANT")), Some("blue"));
    let rest = call.rest.unwrap();
    assert_eq!(text(rest.group.as_deref()), Some("mygroup"));
    assert_eq!(rest.timeout, Some(Duration::from_millis(700)));
    assert_eq!(rest.parameters, [Some(Cow::Borrowed(&b"x"[..]))]);
}

#[test]
fn a_length_is_known_with_the_head_and_no_part_of_one_is_taken_for_more() {
    let hello = bytes(HELLO);
    for end in 0..HEAD_BYTES {
        assert_eq!(DUBBO.frame(&hello[..end]), Ok(Frame::More), "{end}");
    }
    assert_eq!(DUBBO.frame(&hello[..HEAD_BYTES]), Ok(Frame::Length(hello.len())));
}

#[test]
fn what_is_no_dubbo_is_refused_at_its_first_wrong_byte() {
    assert_eq!(DUBBO.frame(b"G"), Err(Malformed::Begin));
    assert_eq!(DUBBO.frame(&[0xda, 0xbc]), Err(Malformed::Begin));
    let long = |size: u32| message(0xc2, 0, 1, &[])[..12].iter().copied().chain(size.to_be_bytes()).collect::<Vec<_>>();
    assert_eq!(DUBBO.frame(&long(0)), Err(Malformed::TooLong(0)));
    assert_eq!(DUBBO.frame(&long(MOST_BODY_BYTES)), Ok(Frame::Length(HEAD_BYTES + (16 << 20))));
    assert_eq!(DUBBO.frame(&long(MOST_BODY_BYTES + 1)), Err(Malformed::TooLong((16 << 20) + 1)));
    assert_eq!(DUBBO.inspect(&message(0xc6, 0, 1, b"{}")), Err(Malformed::Serialization(6)));
}

#[test]
fn kinds_are_told_apart_by_the_flag() {
    for (sent, expected) in [
        (message(0x82, 0, 7, b"x"), Message::Call { id: 7, answered: false }),
        (message(0xe2, 0, 7, NULL), Message::Ping { answered: true }),
        (message(0xa2, 0, 7, NULL), Message::Ping { answered: false }),
        (message(0xa2, 0, 7, READ_ONLY), Message::GoAway),
        (message(0x22, 20, 7, NULL), Message::Pong),
    ] {
        assert_eq!(DUBBO.inspect(&sent), Ok(expected), "{sent:x?}");
    }
}

#[test]
fn answers_say_how_the_call_went() {
    let answer = |status: u8, body: &[u8]| match DUBBO.inspect(&message(0x02, status, 9, body)) {
        Ok(Message::Answer { id: 9, status }) => Ok(status),
        Ok(other) => panic!("{other:?}"),
        Err(error) => Err(error),
    };
    // 0x90 is the number 0.
    for (first, expected) in [
        (0x90, Status::Exception),
        (0x91, Status::Success),
        (0x92, Status::Success),
        (0x93, Status::Exception),
        (0x94, Status::Success),
        (0x95, Status::Success),
    ] {
        assert_eq!(answer(20, &[first, b'N']), Ok(expected), "{first:x}");
    }
    assert_eq!(answer(20, &[0x96]), Err(Malformed::Content));
    for (status, expected) in [
        (31, Failure::Timeout),
        (40, Failure::BadRequest),
        (60, Failure::NotFound),
        (70, Failure::Internal),
        (100, Failure::Overloaded),
    ] {
        assert_eq!(answer(status, b"\x03why"), Ok(Status::Error(expected)), "{status}");
    }
    assert_eq!(answer(21, b"\x03why"), Err(Malformed::Kind(21)));
}

#[test]
fn an_id_is_replaced_in_its_place_and_nothing_else_changes() {
    let mut hello = bytes(HELLO);
    let before = hello.clone();
    set_id(&mut hello, 5);
    assert_eq!(DUBBO.inspect(&hello), Ok(Message::Call { id: 5, answered: true }));
    set_id(&mut hello, id(&before));
    assert_eq!(hello, before);
}

#[test]
fn a_refusal_is_an_answer_under_the_callers_id_with_dubbos_status_and_a_text() {
    let hello = bytes(HELLO);
    for (refusal, status) in [
        (Refusal::NoRoute, 60),
        (Refusal::BadRequest, 40),
        (Refusal::Timeout, 31),
        (Refusal::Unavailable, 80),
        (Refusal::Overloaded, 80),
    ] {
        let mut out = Vec::new();
        DUBBO.refuse(&hello, refusal, "no route", &mut out);
        assert_eq!(DUBBO.frame(&out), Ok(Frame::Length(out.len())));
        assert!(matches!(DUBBO.inspect(&out), Ok(Message::Answer { id: 0x7def_7eec_34a4_1d9b, .. })));
        assert_eq!((out[2], out[3]), (HESSIAN2, status));
        assert_eq!(Reader::new(&out[HEAD_BYTES..]).text(), Ok(Cow::Borrowed(&b"no route"[..])));
    }
}

#[test]
fn pings_are_answered_and_a_farewell_is_one() {
    let mut out = Vec::new();
    DUBBO.pong(&message(0xe2, 0, 77, NULL), &mut out);
    assert_eq!(out, message(0x22, 20, 77, NULL));
    out.clear();
    DUBBO.ping(78, &mut out);
    assert_eq!(out, message(0xe2, 0, 78, NULL));
    out.clear();
    assert!(DUBBO.go_away(&mut out));
    assert_eq!(DUBBO.inspect(&out), Ok(Message::GoAway));
}

/// Names of a call, and then this.
fn call_with(rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    for name in ["2.0.2", "a.Service", "1.0", "go"] {
        write_text(&mut body, name);
    }
    body.extend(rest);
    message(0xc2, 0, 1, &body)
}

#[test]
fn what_cannot_be_read_behind_the_names_leaves_the_names() {
    // A description of a type that does not exist; an argument that is cut off; attachments that are no map.
    for rest in [&b"\x01Q"[..], b"\x01I", b"\x01II", b"\x00T", b"\x01[", b"\x02Lx"] {
        let sent = call_with(rest);
        let call = DUBBO.call(&sent).unwrap();
        assert_eq!((&*call.service, &*call.method, call.rest), (&b"a.Service"[..], &b"go"[..], None), "{rest:x?}");
    }
    assert_eq!(DUBBO.call(&message(0xc2, 0, 1, b"\x05short")), Err(Malformed::Content));
}

#[test]
fn arguments_of_every_kind_are_passed_over_to_the_attachments() {
    let arguments: [(&str, &[u8]); 24] = [
        ("I", b"\x90"),
        ("I", b"\xc8\x01"),
        ("I", b"\xd4\x01\x02"),
        ("I", b"I\x00\x01\x02\x03"),
        ("J", b"\xe0"),
        ("J", b"\xf8\x01"),
        ("J", b"\x3c\x01\x02"),
        ("J", b"\x59\x00\x01\x02\x03"),
        ("J", b"L\x00\x01\x02\x03\x04\x05\x06\x07"),
        ("D", b"\x5b"),
        ("D", b"\x5d\x01"),
        ("D", b"\x5e\x01\x02"),
        ("D", b"\x5f\x00\x01\x02\x03"),
        ("D", b"D\x00\x01\x02\x03\x04\x05\x06\x07"),
        ("Z", b"T"),
        ("[B", b"\x23abc"),
        ("[B", b"A\x00\x02abB\x00\x01c"),
        ("[I", b"\x72\x04[int\x91\x92"),
        ("Ljava/util/Date;", b"\x4a\x00\x00\x01\x02\x03\x04\x05\x06"),
        ("Ljava/util/List;", b"\x7a\x91\x01x"),
        ("Ljava/util/List;", b"\x57\x91N\x01xZ"),
        ("Ljava/util/Map;", b"M\x01mH\x91\x92Z\x91Z"),
        ("La/Point;", b"C\x07a.Point\x92\x01x\x01y\x60\x91\x92"),
        ("La/Point;", b"C\x07a.Point\x92\x01x\x01yO\x90\x91Q\x90"),
    ];
    for (kind, value) in arguments {
        let mut rest = Vec::new();
        write_text(&mut rest, kind);
        rest.extend(value);
        rest.extend(b"H\x06tenant\x04blue\x01n\x91Z");
        let sent = call_with(&rest);
        let call = DUBBO.call(&sent).unwrap();
        assert_eq!(text(call.header(b"tenant")), Some("blue"), "{kind} {value:x?}");
        let rest = call.rest.unwrap();
        assert_eq!((rest.parameters, rest.headers.len()), (vec![None], 1), "{kind}");
    }
}

#[test]
fn long_texts_come_in_parts_and_end_where_their_characters_end() {
    // In parts of 32 768: of one byte, of three, and beyond the first plane, which Java sends as two times three bytes.
    for (letter, count) in [("x", 40_000), ("\u{4e16}", 33_000)] {
        let mut written = Vec::new();
        write_text(&mut written, &letter.repeat(count));
        written.push(b'T');
        let mut reader = Reader::new(&written);
        assert_eq!(reader.text().unwrap(), letter.repeat(count).as_bytes());
        assert_eq!(reader.rest(), b"T");
    }
    let surrogates = b"\x02\xed\xa0\xbd\xed\xb8\x80T";
    let mut reader = Reader::new(surrogates);
    assert_eq!((reader.text().map(|text| text.len()), reader.rest()), (Ok(6), &b"T"[..]));
}

#[test]
fn nesting_without_end_is_no_stack_without_end() {
    for nest in [&b"W"[..], b"H", b"\x79", b"C\x00\x90"] {
        let mut rest = b"\x01I".to_vec();
        rest.extend(nest.repeat(100_000));
        assert_eq!(DUBBO.call(&call_with(&rest)).unwrap().rest, None);
    }
    // Lengths that were only announced cost nothing.
    for announced in [&b"X\x49\x7f\xff\xff\xff"[..], b"S\xff\xffx", b"C\x01c\x49\x7f\xff\xff\xff"] {
        assert_eq!(DUBBO.call(&call_with(&[b"\x01I", announced].concat())).unwrap().rest, None);
    }
}

#[test]
fn no_more_is_remembered_of_a_call_than_its_limits_allow() {
    let limits = Limits::DEFAULT;
    let read = |rest: &[u8]| {
        let sent = call_with(rest);
        DUBBO.call(&sent).unwrap().rest.map(|rest| (rest.parameters.len(), rest.headers.len()))
    };
    // Two bytes each.
    let attachments = |count: usize| [&b"\x00H"[..], &b"\0\0".repeat(count), b"Z"].concat();
    assert_eq!(read(&attachments(limits.headers)), Some((0, limits.headers)));
    assert_eq!(read(&attachments(limits.headers + 1)), None);
    let arguments = |count: usize| {
        let mut rest = Vec::new();
        write_text(&mut rest, &"I".repeat(count));
        rest.extend(b"\0".repeat(count));
        rest
    };
    assert_eq!(read(&arguments(limits.parameters)), Some((limits.parameters, 0)));
    assert_eq!(read(&arguments(limits.parameters + 1)), None);
    let named = |bytes: usize, place: usize| {
        let mut body = Vec::new();
        for at in 0..5 {
            write_text(&mut body, &"x".repeat(if at == place { bytes } else { 0 }));
        }
        DUBBO.call(&message(0xc2, 0, 1, &body)).map(drop)
    };
    for place in 1..4 {
        assert_eq!(named(limits.name_bytes, place), Ok(()));
        assert_eq!(named(limits.name_bytes + 1, place), Err(Malformed::Content));
    }
}

#[test]
fn types_are_counted_as_the_virtual_machine_writes_them() {
    for (description, expected) in [
        ("", Ok(0)),
        ("I", Ok(1)),
        ("Ljava/lang/String;I[[J", Ok(3)),
        ("[La/B;[I", Ok(2)),
        ("[", Err(Broken)),
        ("La", Err(Broken)),
        ("IIII", Err(Broken)),
    ] {
        assert_eq!(parameters(description.as_bytes(), 3), expected, "{description}");
    }
}
