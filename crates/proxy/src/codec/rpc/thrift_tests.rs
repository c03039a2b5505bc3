use super::*;

fn framed(message: &[u8]) -> Vec<u8> {
    [&(message.len() as u32).to_be_bytes()[..], message].concat()
}

/// In the strict binary protocol.
fn binary(kind: u8, name: &str, id: u32, content: &[u8]) -> Vec<u8> {
    let mut out = vec![0x80, 0x01, 0, kind];
    out.extend((name.len() as u32).to_be_bytes());
    out.extend(name.as_bytes());
    out.extend(id.to_be_bytes());
    out.extend(content);
    out
}

fn compact(kind: u8, name: &str, id: u32, content: &[u8]) -> Vec<u8> {
    let mut out = vec![0x82, kind << 5 | 1];
    write_varint(&mut out, id);
    write_varint(&mut out, name.len() as u32);
    out.extend(name.as_bytes());
    out.extend(content);
    out
}

/// A header frame: HeaderFormat.md.
fn header(info: &[u8], message: &[u8]) -> Vec<u8> {
    let mut head = info.to_vec();
    head.resize(head.len().next_multiple_of(4), 0);
    let mut out = vec![0x0f, 0xff, 0, 0, 0, 0, 0, 9];
    out.extend(((head.len() / 4) as u16).to_be_bytes());
    out.extend(head);
    out.extend(message);
    framed(&out)
}

const AUTO: Thrift = Thrift { transport: None, encoding: None, limits: Limits::DEFAULT };

#[test]
fn calls_are_read_in_both_protocols_and_transports() {
    // Binary has number 0 in a header, compact 2; no transforms; one block of two headers.
    let info = |protocol: u8| [&[protocol, 0, 1, 2][..], b"\x06tenant\x04blue\x01k\x01v"].concat();
    for (sent, headers) in [
        (framed(&binary(CALL, "Adder:add", 300, b"\0")), 0),
        (framed(&compact(CALL, "Adder:add", 300, b"\0")), 0),
        (header(&info(0), &binary(CALL, "Adder:add", 300, b"\0")), 2),
        (header(&info(2), &compact(CALL, "Adder:add", 300, b"\0")), 2),
    ] {
        assert_eq!(AUTO.frame(&sent), Ok(Frame::Length(sent.len())));
        assert_eq!(AUTO.inspect(&sent), Ok(Message::Call { id: 300, answered: true }), "{sent:x?}");
        let call = AUTO.call(&sent).unwrap();
        assert_eq!((&*call.service, &*call.method), (&b"Adder"[..], &b"Adder:add"[..]));
        assert_eq!(call.header(b"Tenant"), (headers > 0).then_some(&b"blue"[..]));
        assert_eq!(call.rest.unwrap().headers.len(), headers);
    }
}

#[test]
fn no_more_is_remembered_of_a_message_than_its_limits_allow() {
    let headers = |count: usize| {
        let mut info = vec![0, 0, 1];
        write_varint(&mut info, count as u32);
        info.resize(info.len() + 2 * count, 0);
        AUTO.inspect(&header(&info, &binary(CALL, "add", 1, b"\0"))).map(drop)
    };
    assert_eq!(headers(Limits::DEFAULT.headers), Ok(()));
    assert_eq!(headers(Limits::DEFAULT.headers + 1), Err(Malformed::Content));
    for (bytes, expected) in
        [(Limits::DEFAULT.name_bytes, Ok(())), (Limits::DEFAULT.name_bytes + 1, Err(Malformed::Content))]
    {
        let name = "x".repeat(bytes);
        for message in [binary(CALL, &name, 1, b"\0"), compact(CALL, &name, 1, b"\0")] {
            assert_eq!(AUTO.inspect(&framed(&message)).map(drop), expected, "{bytes}");
        }
    }
}

#[test]
fn a_name_without_a_service_has_none() {
    let sent = framed(&binary(ONE_WAY, "ping", 1, b"\0"));
    assert_eq!(AUTO.inspect(&sent), Ok(Message::Call { id: 1, answered: false }));
    let call = AUTO.call(&sent).unwrap();
    assert_eq!((&*call.service, &*call.method), (&b""[..], &b"ping"[..]));
}

#[test]
fn what_has_no_length_or_a_wrong_one_is_refused() {
    assert_eq!(AUTO.frame(&[0, 0, 0]), Ok(Frame::More));
    // Unframed: binary, compact.
    assert_eq!(AUTO.frame(&binary(CALL, "x", 1, b"\0")), Err(Malformed::Begin));
    assert_eq!(AUTO.frame(&compact(CALL, "xyz", 1, b"\0")), Err(Malformed::Begin));
    assert_eq!(AUTO.frame(&[0; 4]), Err(Malformed::Begin));
    assert_eq!(AUTO.frame(b"GET / HTTP/1.1"), Err(Malformed::TooLong(0x4745_5420)));
}

#[test]
fn a_configured_transport_and_protocol_are_the_only_ones() {
    let plain = framed(&binary(CALL, "x", 1, b"\0"));
    let headed = header(&[0, 0], &binary(CALL, "x", 1, b"\0"));
    let only = |transport, encoding| Thrift { transport, encoding, ..AUTO };
    assert!(only(Some(Transport::Framed), Some(Encoding::Binary)).inspect(&plain).is_ok());
    assert_eq!(only(Some(Transport::Header), None).inspect(&plain), Err(Malformed::Begin));
    assert_eq!(only(None, Some(Encoding::Compact)).inspect(&plain), Err(Malformed::Begin));
    assert!(only(Some(Transport::Header), None).inspect(&headed).is_ok());
    assert_eq!(only(Some(Transport::Framed), None).inspect(&headed), Err(Malformed::Begin));
}

#[test]
fn a_reply_is_a_result_by_its_first_field() {
    for (content, expected) in [
        (&b"\x08\0\0\0\0\0\x05\0"[..], Status::Success),
        (b"\0", Status::Success),
        (b"\x0c\0\x01\0\0", Status::Exception),
    ] {
        let sent = framed(&binary(REPLY, "x", 1, content));
        assert_eq!(AUTO.inspect(&sent), Ok(Message::Answer { id: 1, status: expected }), "{content:x?}");
    }
    // Compact: field 0 cannot be written as a difference; field 1 can.
    for (content, expected) in
        [(&b"\x05\x00\x0a\0"[..], Status::Success), (b"\0", Status::Success), (b"\x1c\0\0", Status::Exception)]
    {
        let sent = framed(&compact(REPLY, "x", 1, content));
        assert_eq!(AUTO.inspect(&sent), Ok(Message::Answer { id: 1, status: expected }), "{content:x?}");
    }
    assert_eq!(AUTO.inspect(&framed(&binary(REPLY, "x", 1, b""))), Err(Malformed::Content));
    assert_eq!(AUTO.inspect(&framed(&binary(9, "x", 1, b"\0"))), Err(Malformed::Kind(9)));
}

#[test]
fn a_refusal_is_an_exception_that_is_read_back_in_the_callers_own_form() {
    let info = b"\x00\x00\x01\x01\x01k\x01v";
    for sent in [
        framed(&binary(CALL, "Adder:add", 7, b"\0")),
        framed(&compact(CALL, "Adder:add", 7, b"\0")),
        header(info, &binary(CALL, "Adder:add", 7, b"\0")),
        header(b"\x02\x00", &compact(CALL, "Adder:add", 7, b"\0")),
    ] {
        for (refusal, expected) in [
            (Refusal::NoRoute, Failure::NotFound),
            (Refusal::BadRequest, Failure::BadRequest),
            (Refusal::Unavailable, Failure::Internal),
            (Refusal::Overloaded, Failure::Internal),
            (Refusal::Timeout, Failure::Internal),
        ] {
            let mut out = Vec::new();
            AUTO.refuse(&sent, refusal, "no endpoint", &mut out);
            assert_eq!(AUTO.frame(&out), Ok(Frame::Length(out.len())));
            let status = Status::Error(expected);
            assert_eq!(AUTO.inspect(&out), Ok(Message::Answer { id: 7, status }), "{out:x?}");
            let (asked, answered) = (AUTO.open(&sent).unwrap(), AUTO.open(&out).unwrap());
            assert_eq!((answered.transport, answered.encoding), (asked.transport, asked.encoding));
            assert_eq!((answered.name, answered.sequence), (asked.name, asked.sequence));
            assert!(out.windows(11).any(|window| window == b"no endpoint"));
        }
    }
}

#[test]
fn headers_that_are_compressed_cut_off_or_without_number_are_refused() {
    let message = binary(CALL, "x", 1, b"\0");
    assert_eq!(AUTO.inspect(&header(&[0, 1, 1], &message)), Err(Malformed::Serialization(1)));
    assert_eq!(AUTO.inspect(&header(&[0, 0, 1, 9, 1, b'k'], &message)), Err(Malformed::Content));
    assert_eq!(AUTO.inspect(&header(&[0, 0, 1, 0xff, 0xff, 0xff, 0xff, 0xff], &message)), Err(Malformed::Content));
    let many = [&[0, 0, 1, 0x81, 0x08][..], &[0; 2 * 1025]].concat();
    assert_eq!(AUTO.inspect(&header(&many, &message)), Err(Malformed::Content));
    // A size that is longer than the frame.
    assert_eq!(AUTO.inspect(&framed(&[0x0f, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff])), Err(Malformed::Content));
}

#[test]
fn numbers_of_one_to_five_bytes_are_read_back() {
    for number in [0, 1, 127, 128, 300, 16383, 16384, u32::MAX] {
        let mut out = Vec::new();
        write_varint(&mut out, number);
        assert_eq!(Reader(&out).varint(), Ok(number));
    }
    assert_eq!(Reader(&[0xff, 0xff, 0xff, 0xff, 0x10]).varint(), Err(Malformed::Content));
    for (number, expected) in [(0, 0), (1, -1), (2, 1), (u32::MAX, i32::MIN), (u32::MAX - 1, i32::MAX)] {
        assert_eq!(zigzag(number), expected);
    }
}
