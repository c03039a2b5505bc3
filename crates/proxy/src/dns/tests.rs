use super::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What a scripted server says: flags, and addresses with 7 s to live.
type Script = fn(name: &str, kind: u16, over_tcp: bool) -> Option<(u16, Vec<IpAddr>)>;

const OK: u16 = 0x8180;
const NO_NAME: u16 = 0x8183;
const FAILURE: u16 = 0x8182;
const TRUNCATED: u16 = 0x8380;

fn reply(message: &[u8], script: Script, over_tcp: bool) -> Option<Vec<u8>> {
    let mut labels = Vec::new();
    let mut at = 12;
    while message[at] > 0 {
        labels.push(String::from_utf8_lossy(&message[at + 1..=at + usize::from(message[at])]).into_owned());
        at += usize::from(message[at]) + 1;
    }
    let (flags, addresses) =
        script(&labels.join("."), u16::from_be_bytes([message[at + 1], message[at + 2]]), over_tcp)?;
    let mut answer = message.to_vec();
    answer[2..4].copy_from_slice(&flags.to_be_bytes());
    answer[6..8].copy_from_slice(&(addresses.len() as u16).to_be_bytes());
    for address in addresses {
        let (kind, bytes) = match address {
            IpAddr::V4(address) => (1, address.octets().to_vec()),
            IpAddr::V6(address) => (28, address.octets().to_vec()),
        };
        answer.extend_from_slice(&[0xc0, 12, 0, kind, 0, 1, 0, 0, 0, 7, 0, bytes.len() as u8]);
        answer.extend(bytes);
    }
    Some(answer)
}

/// A server, and how many questions it got.
async fn serve(script: Script) -> (SocketAddr, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let (udp, tcp) = loop {
        let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        // Somebody else may have the same port of TCP.
        if let Ok(tcp) = tokio::net::TcpListener::bind(udp.local_addr().unwrap()).await {
            break (udp, tcp);
        }
    };
    let address = udp.local_addr().unwrap();
    let asked = Arc::clone(&count);
    tokio::spawn(async move {
        let mut message = [0; 512];
        loop {
            let (length, from) = udp.recv_from(&mut message).await.unwrap();
            asked.fetch_add(1, Ordering::Relaxed);
            if let Some(answer) = reply(&message[..length], script, false) {
                // Before the answer, what a forger would send.
                let mut forged = answer.clone();
                forged[0] ^= 0x55;
                udp.send_to(&forged, from).await.unwrap();
                udp.send_to(&answer[..5], from).await.unwrap();
                udp.send_to(&answer, from).await.unwrap();
            }
        }
    });
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = tcp.accept().await.unwrap();
            let mut message = vec![0; stream.read_u16().await.unwrap().into()];
            stream.read_exact(&mut message).await.unwrap();
            if let Some(answer) = reply(&message, script, true) {
                stream.write_u16(answer.len() as u16).await.unwrap();
                stream.write_all(&answer).await.unwrap();
            }
        }
    });
    (address, count)
}

fn asking(servers: &[SocketAddr]) -> ResolverOptions {
    ResolverOptions { servers: servers.into(), tries: 2, ..ResolverOptions::default() }
}

async fn ask(options: &ResolverOptions, family: Family, name: &str) -> Result<Vec<String>, String> {
    let system = System::parse("search a.test b.test", "10.9.9.9 known.test\n".into());
    let answer = lookup_by(&system, options, family, name).await.map_err(|error| error.to_string())?;
    Ok(answer.addresses.iter().map(ToString::to_string).collect())
}

fn v4(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, last])
}

fn v6() -> IpAddr {
    Ipv6Addr::LOCALHOST.into()
}

#[tokio::test]
async fn each_family_is_asked_for_as_configured() {
    let script: Script = |name, kind, _| {
        Some(match (name, kind) {
            ("both.test", 1) | ("four.test", 1) => (OK, vec![v4(2), v4(1)]),
            ("both.test", 28) => (OK, vec![v6()]),
            ("four.test", _) => (OK, vec![]),
            _ => (NO_NAME, vec![]),
        })
    };
    let (server, _) = serve(script).await;
    let options = asking(&[server]);
    for (family, both, four) in [
        (Family::V4, &["10.0.0.2", "10.0.0.1"][..], &["10.0.0.2", "10.0.0.1"][..]),
        (Family::V6, &["::1"], &[]),
        (Family::V4Preferred, &["10.0.0.2", "10.0.0.1"], &["10.0.0.2", "10.0.0.1"]),
        (Family::V6Preferred, &["::1"], &["10.0.0.2", "10.0.0.1"]),
        (Family::All, &["10.0.0.2", "10.0.0.1", "::1"], &["10.0.0.2", "10.0.0.1"]),
    ] {
        assert_eq!(ask(&options, family, "both.test").await.unwrap(), both, "{family:?}");
        assert_eq!(ask(&options, family, "four.test").await.unwrap(), four, "{family:?}");
        assert!(ask(&options, family, "none.test").await.unwrap().is_empty(), "{family:?}");
    }
    let answer = lookup_by(&System::default(), &options, Family::All, "both.test").await.unwrap();
    assert_eq!(answer.ttl, Some(Duration::from_secs(7)));
}

#[tokio::test]
async fn a_server_that_fails_is_no_answer_and_the_next_is_asked() {
    let (broken, asked) = serve(|_, _, _| Some((FAILURE, vec![]))).await;
    let (good, _) = serve(|_, _, _| Some((OK, vec![v4(1)]))).await;
    assert_eq!(ask(&asking(&[broken, good]), Family::V4, "a.test").await.unwrap(), ["10.0.0.1"]);
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    let error = ask(&asking(&[broken]), Family::V4, "a.test").await.unwrap_err();
    assert_eq!(error, format!("{broken} failed with code 2"));
    assert_eq!(asked.load(Ordering::Relaxed), 3);
    // Nobody listens there.
    let gone = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    assert!(ask(&asking(&[gone]), Family::V4, "a.test").await.is_err());
    assert_eq!(ask(&asking(&[gone, good]), Family::V4, "a.test").await.unwrap(), ["10.0.0.1"]);
}

#[tokio::test]
async fn failing_for_one_family_is_not_having_no_address() {
    let script: Script = |name, kind, _| match (name, kind) {
        (_, 28) => Some((FAILURE, vec![])),
        ("four.test", _) => Some((OK, vec![v4(1)])),
        _ => Some((OK, vec![])),
    };
    let (server, _) = serve(script).await;
    let options = asking(&[server]);
    for family in [Family::V6Preferred, Family::All] {
        assert_eq!(ask(&options, family, "four.test").await.unwrap(), ["10.0.0.1"], "{family:?}");
        assert!(ask(&options, family, "none.test").await.is_err(), "{family:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_server_is_left_after_its_time() {
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let options = asking(&[silent.local_addr().unwrap()]);
    let began = tokio::time::Instant::now();
    assert_eq!(ask(&options, Family::V4, "a.test").await.unwrap_err(), "no server answered in time");
    assert_eq!(began.elapsed().as_secs(), 10);
}

#[tokio::test]
async fn what_is_too_long_for_udp_comes_over_tcp() {
    let script: Script =
        |_, _, over_tcp| Some(if over_tcp { (OK, (0..200).map(v4).collect()) } else { (TRUNCATED, vec![]) });
    let (server, asked) = serve(script).await;
    assert_eq!(ask(&asking(&[server]), Family::V4, "many.test").await.unwrap().len(), 200);
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    let at_once = ResolverOptions { tcp: true, ..asking(&[server]) };
    assert_eq!(ask(&at_once, Family::V4, "many.test").await.unwrap().len(), 200);
    assert_eq!(asked.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn the_hosts_file_comes_first_and_the_search_list_is_used() {
    let (server, asked) = serve(|name, _, _| match name {
        "api.b.test" => Some((OK, vec![v4(1)])),
        _ => Some((NO_NAME, vec![])),
    })
    .await;
    let options = asking(&[server]);
    assert_eq!(ask(&options, Family::V4, "Known.test").await.unwrap(), ["10.9.9.9"]);
    assert_eq!(asked.load(Ordering::Relaxed), 0);
    assert_eq!(ask(&options, Family::V4, "api").await.unwrap(), ["10.0.0.1"]);
    // api.a.test, api.b.test
    assert_eq!(asked.load(Ordering::Relaxed), 2);
    assert!(ask(&options, Family::V4, "api.").await.unwrap().is_empty());
}
