//! A DNS server of the test's own.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::thread;

/// What the server says about a name.
#[derive(Clone, Debug)]
pub enum Record {
    /// These, which may be kept for *ttl* seconds; without any: the name has no address.
    Addresses { ttl: u32, addresses: Vec<Ipv4Addr> },
    /// SERVFAIL.
    Failure,
    /// Nothing at all.
    Silence,
}

#[derive(Default)]
struct Zone {
    records: BTreeMap<String, Record>,
    asked: BTreeMap<String, usize>,
    /// Ports that questions came from.
    ports: BTreeSet<u16>,
}

/// A server of names; those that it was told nothing of do not exist. It lives as long as the test's process.
pub struct Names {
    pub address: SocketAddr,
    zone: Arc<Mutex<Zone>>,
}

impl Names {
    pub fn serve() -> Names {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = socket.local_addr().unwrap();
        let zone = Arc::new(Mutex::new(Zone::default()));
        let of_server = Arc::clone(&zone);
        thread::spawn(move || {
            let mut message = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut message) {
                let mut zone = of_server.lock().unwrap();
                zone.ports.insert(from.port());
                if let Some(answer) = zone.answer(&message[..length]) {
                    let _ = socket.send_to(&answer, from);
                }
            }
        });
        Names { address, zone }
    }

    pub fn say(&self, name: &str, record: Record) {
        self.zone.lock().unwrap().records.insert(name.into(), record);
    }

    /// *addresses* of *name*, which are not to be kept.
    pub fn point(&self, name: &str, addresses: &[SocketAddr]) {
        let addresses = addresses.iter().map(|address| match address {
            SocketAddr::V4(address) => *address.ip(),
            SocketAddr::V6(_) => panic!("tests have IPv4"),
        });
        self.say(name, Record::Addresses { ttl: 0, addresses: addresses.collect() });
    }

    /// How often it was asked for *name*.
    pub fn asked(&self, name: &str) -> usize {
        self.zone.lock().unwrap().asked.get(name).copied().unwrap_or(0)
    }

    /// From how many ports it was asked.
    pub fn ports(&self) -> usize {
        self.zone.lock().unwrap().ports.len()
    }
}

impl Zone {
    fn answer(&mut self, message: &[u8]) -> Option<Vec<u8>> {
        let mut labels = Vec::new();
        let mut at = 12;
        while message[at] > 0 {
            let end = at + 1 + usize::from(message[at]);
            labels.push(std::str::from_utf8(&message[at + 1..end]).unwrap());
            at = end;
        }
        let name = labels.join(".");
        let is_v4 = message[at + 1..at + 3] == [0, 1];
        *self.asked.entry(name.clone()).or_default() += 1;
        let (flags, ttl, addresses) = match self.records.get(&name) {
            Some(Record::Addresses { ttl, addresses }) if is_v4 => (0x8180_u16, *ttl, addresses.clone()),
            Some(Record::Addresses { .. }) => (0x8180, 0, Vec::new()),
            Some(Record::Failure) => (0x8182, 0, Vec::new()),
            Some(Record::Silence) => return None,
            None => (0x8183, 0, Vec::new()),
        };
        let mut answer = message[..at + 5].to_vec();
        answer[2..4].copy_from_slice(&flags.to_be_bytes());
        answer[6..12].copy_from_slice(&[0, addresses.len() as u8, 0, 0, 0, 0]);
        for address in addresses {
            answer.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1]);
            answer.extend_from_slice(&ttl.to_be_bytes());
            answer.extend_from_slice(&[0, 4]);
            answer.extend_from_slice(&address.octets());
        }
        Some(answer)
    }
}
