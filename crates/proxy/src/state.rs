//! The last good configuration on disk, so that a proxy works again at once after a restart, even while the control plane is away.
//!
//! ```text
//! weft-proxy state 1\n
//! <SHA-256 of the rest, 64 hexadecimal digits>\n
//! <DeltaDiscoveryResponse: every resource with its name, version and type URL>
//! ```
//!
//! Secrets are never in it: they come from the agent, which is on this machine.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use weft_protos::Message;
use weft_protos::envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource};
use weft_protos::google::protobuf::Any;

use crate::tls::sha256_hex;

const FILE: &str = "configuration";
const HEADER: &[u8] = b"weft-proxy state 1\n";
/// Hexadecimal digits of a SHA-256, and the end of their line.
const DIGEST: usize = 65;

/// One accepted resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub type_url: String,
    pub name: String,
    pub version: String,
    pub body: bytes::Bytes,
}

/// Why the file was not used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("it is not a file of this version of weft-proxy")]
    Header,
    #[error("it is damaged: the checksum is wrong")]
    Checksum,
    #[error("it is damaged: {0}")]
    Content(#[from] prost::DecodeError),
}

/// Write *entries* so that there is always one whole file, the old one or the new one. Blocks until the disk has it.
///
/// # Errors
/// As the system reports.
pub fn write(directory: &Path, entries: Vec<Entry>) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let temporary = directory.join(format!("{FILE}.tmp"));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(&encode(entries))?;
    file.sync_all()?;
    fs::rename(&temporary, directory.join(FILE))?;
    // The rename itself is on the disk only when the directory is.
    File::open(directory)?.sync_all()
}

/// Read what was written; nothing if there is no file.
///
/// # Errors
/// The file cannot be read or is damaged.
pub fn read(directory: &Path) -> Result<Vec<Entry>, StateError> {
    match fs::read(directory.join(FILE)) {
        Ok(text) => decode(&text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

/// The file that holds *entries*.
pub fn encode(entries: Vec<Entry>) -> Vec<u8> {
    let resources = entries
        .into_iter()
        .map(|entry| Resource {
            name: entry.name,
            version: entry.version,
            resource: Some(Any { type_url: entry.type_url, value: entry.body }),
            ..Default::default()
        })
        .collect();
    let content = DeltaDiscoveryResponse { resources, ..Default::default() }.encode_to_vec();
    let mut text = HEADER.to_vec();
    text.extend_from_slice(sha256_hex(&content).as_bytes());
    text.push(b'\n');
    text.extend_from_slice(&content);
    text
}

/// The entries of a file; not every byte sequence is one.
///
/// # Errors
/// It is another version's, or damaged.
pub fn decode(text: &[u8]) -> Result<Vec<Entry>, StateError> {
    let rest = text.strip_prefix(HEADER).ok_or(StateError::Header)?;
    let (digest, content) = rest.split_at_checked(DIGEST).ok_or(StateError::Checksum)?;
    if digest.strip_suffix(b"\n") != Some(sha256_hex(content).as_bytes()) {
        return Err(StateError::Checksum);
    }
    let response = DeltaDiscoveryResponse::decode(content)?;
    let entries = response.resources.into_iter().filter_map(|resource| {
        let any = resource.resource?;
        Some(Entry { type_url: any.type_url, name: resource.name, version: resource.version, body: any.value })
    });
    Ok(entries.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn entries() -> Vec<Entry> {
        [("a", "1", &b"first"[..]), ("b", "", b"\x00\xff\n")]
            .map(|(name, version, body)| Entry {
                type_url: "type.googleapis.com/some.Type".into(),
                name: name.into(),
                version: version.into(),
                body: body.into(),
            })
            .into()
    }

    /// A directory of this test's own, removed at its end.
    struct Directory(std::path::PathBuf);

    impl Directory {
        fn new(name: &str) -> Directory {
            let path = std::env::temp_dir().join(format!("weft-state-{}-{name}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            Directory(path)
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn what_is_written_is_read_again_and_is_private() {
        let directory = Directory::new("round-trip");
        assert_eq!(read(&directory.0).unwrap(), []);
        write(&directory.0, Vec::new()).unwrap();
        write(&directory.0, entries()).unwrap();
        assert_eq!(read(&directory.0).unwrap(), entries());
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&directory.0), mode(&directory.0.join(FILE))), (0o700, 0o600));
        assert_eq!(fs::read_dir(&directory.0).unwrap().count(), 1);
    }

    #[test]
    fn any_damage_is_noticed() {
        let whole = encode(entries());
        for length in 0..whole.len() {
            assert!(decode(&whole[..length]).is_err(), "cut after {length}");
        }
        for index in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[index] ^= 0x20;
            assert!(decode(&damaged).is_err(), "byte {index}");
        }
    }
}
