//! Names become addresses: a stub resolver on the main thread's event loop, which no worker ever waits for.
//!
//! Why our own is in decision 0010. It asks the hosts file and then the servers, over UDP with a random port and number for each
//! question, over TCP where the answer is too long or the configuration says so. Nothing is kept: how often is asked is
//! each cluster's own setting ([`follow`]).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use weft_core::dns::{Family, ResolverOptions};

use crate::codec::dns::{Kind, Question, Reply};

pub mod follow;
mod system;

use system::System;

/// Without EDNS an answer over UDP has at most 512 bytes (RFC 1035 4.2.1); some servers send more.
const DATAGRAM_BYTES: usize = 4096;

/// What a name stands for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// In the server's order; empty if the name does not exist or has no such address.
    pub addresses: Vec<IpAddr>,
    /// How long it may be kept, if a server said so.
    pub ttl: Option<Duration>,
}

/// Why nothing is known about a name.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    #[error("no server answered in time")]
    Timeout,
    #[error("{server}: {error}")]
    Io { server: SocketAddr, error: io::Error },
    #[error("{server} failed with code {code}")]
    Failed { server: SocketAddr, code: u8 },
    /// Refused with the configuration, unless a search list makes it too long.
    #[error("this cannot be a name in DNS")]
    Name,
}

/// Resolve *name*. Takes no longer than its timeouts allow; may be dropped at any time.
///
/// # Errors
/// Nobody said anything about the name; that it does not exist is an answer.
pub async fn lookup(options: &ResolverOptions, family: Family, name: &str) -> Result<Answer, LookupError> {
    lookup_by(&System::read(), options, family, name).await
}

async fn lookup_by(
    system: &System,
    options: &ResolverOptions,
    family: Family,
    name: &str,
) -> Result<Answer, LookupError> {
    let local = of_family(system.hosts(name), family);
    if !local.is_empty() {
        return Ok(Answer { addresses: local, ttl: None });
    }
    let mut servers = system.servers(options);
    if options.rotate {
        let first = usize::from_be_bytes(random()) % servers.len();
        servers.rotate_left(first);
    }
    let asker = Asker { options, servers };
    for candidate in system.candidates(name, options) {
        let answer = asker.resolve(&candidate, family).await?;
        if !answer.addresses.is_empty() {
            return Ok(answer);
        }
    }
    Ok(Answer::default())
}

fn of_family(addresses: Vec<IpAddr>, family: Family) -> Vec<IpAddr> {
    let (v4, v6): (Vec<_>, Vec<_>) = addresses.into_iter().partition(IpAddr::is_ipv4);
    match family {
        Family::V4 => v4,
        Family::V6 => v6,
        Family::V4Preferred => {
            if v4.is_empty() {
                v6
            } else {
                v4
            }
        }
        Family::V6Preferred => {
            if v6.is_empty() {
                v4
            } else {
                v6
            }
        }
        Family::All => [v4, v6].concat(),
    }
}

struct Asker<'o> {
    options: &'o ResolverOptions,
    servers: Vec<SocketAddr>,
}

impl Asker<'_> {
    async fn resolve(&self, name: &str, family: Family) -> Result<Answer, LookupError> {
        match family {
            Family::V4 => self.ask(name, Kind::A).await,
            Family::V6 => self.ask(name, Kind::Aaaa).await,
            Family::V4Preferred => self.first_of(name, Kind::A, Kind::Aaaa).await,
            Family::V6Preferred => self.first_of(name, Kind::Aaaa, Kind::A).await,
            Family::All => match tokio::join!(self.ask(name, Kind::A), self.ask(name, Kind::Aaaa)) {
                (Ok(v4), Ok(v6)) => Ok(Answer {
                    addresses: [v4.addresses, v6.addresses].concat(),
                    ttl: v4.ttl.into_iter().chain(v6.ttl).min(),
                }),
                (Ok(answer), Err(_)) | (Err(_), Ok(answer)) if !answer.addresses.is_empty() => Ok(answer),
                (_, Err(error)) | (Err(error), _) => Err(error),
            },
        }
    }

    /// The other family is asked for also where the server fails for this one, as some do for AAAA; then its silence is not "none".
    async fn first_of(&self, name: &str, kind: Kind, other: Kind) -> Result<Answer, LookupError> {
        let first = self.ask(name, kind).await;
        if first.as_ref().is_ok_and(|answer| !answer.addresses.is_empty()) {
            return first;
        }
        let second = self.ask(name, other).await?;
        if second.addresses.is_empty() { first } else { Ok(second) }
    }

    async fn ask(&self, name: &str, kind: Kind) -> Result<Answer, LookupError> {
        let mut last = LookupError::Timeout;
        for server in (0..self.options.tries).flat_map(|_| &self.servers) {
            // For each try a number and a port of its own: who guesses them must guess them all.
            let question = Question::new(u16::from_be_bytes(random()), name, kind).ok_or(LookupError::Name)?;
            let reply = tokio::time::timeout(self.options.timeout, self.ask_one(*server, &question)).await;
            last = match reply {
                Ok(Ok(Reply::Addresses { addresses, ttl })) => return Ok(Answer { addresses, ttl: Some(ttl) }),
                Ok(Ok(Reply::NoAddress | Reply::NoName)) => return Ok(Answer::default()),
                Ok(Ok(Reply::Failed(code))) => LookupError::Failed { server: *server, code },
                // Over TCP nothing is too long.
                Ok(Ok(Reply::Truncated)) => {
                    LookupError::Io { server: *server, error: io::ErrorKind::InvalidData.into() }
                }
                Ok(Err(error)) => LookupError::Io { server: *server, error },
                Err(_) => LookupError::Timeout,
            };
        }
        Err(last)
    }

    async fn ask_one(&self, server: SocketAddr, question: &Question) -> io::Result<Reply> {
        if !self.options.tcp {
            match over_udp(server, question).await? {
                Reply::Truncated => {}
                reply => return Ok(reply),
            }
        }
        over_tcp(server, question).await
    }
}

async fn over_udp(server: SocketAddr, question: &Question) -> io::Result<Reply> {
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    // The kernel lets only this server's datagrams through then.
    socket.connect(server).await?;
    socket.send(&question.encode()).await?;
    let mut datagram = vec![0; DATAGRAM_BYTES];
    loop {
        let length = socket.recv(&mut datagram).await?;
        // What is no answer may be a forger's; the real one may still come.
        if let Ok(Some(reply)) = question.decode(&datagram[..length]) {
            return Ok(reply);
        }
    }
}

/// RFC 1035 4.2.2: two bytes say how long the message is.
async fn over_tcp(server: SocketAddr, question: &Question) -> io::Result<Reply> {
    let mut stream = TcpStream::connect(server).await?;
    let message = question.encode();
    let length = (message.len() as u16).to_be_bytes();
    stream.write_all(&[&length[..], &message].concat()).await?;
    let mut message = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut message).await?;
    let reply = question.decode(&message).map_err(io::Error::other)?;
    reply.ok_or_else(|| io::Error::other("the answer to another question"))
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // It fails only where the system has no random numbers at all; the port is still the kernel's choice.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests;
