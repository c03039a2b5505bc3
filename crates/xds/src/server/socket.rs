//! What every gRPC server of ours begins and ends with: its socket, and the trailers of a stream.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use http::{HeaderMap, HeaderValue};

/// Listen at `path`, mode 0600, non-blocking.
///
/// # Errors
/// The socket cannot be made, or another process is listening there (`AddrInUse`). A socket that a killed process left
/// behind is replaced.
pub(crate) fn bind(path: &Path) -> io::Result<UnixListener> {
    remove_stale(path)?;
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Remove a socket on which nobody listens.
fn remove_stale(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => match UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
            _ => {
                Err(io::Error::new(io::ErrorKind::AddrInUse, format!("another process listens on {}", path.display())))
            }
        },
        // `bind` says what is wrong with anything else that stands there.
        _ => Ok(()),
    }
}

pub(crate) fn trailers(code: i32, message: &str) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", code.into());
    // Our messages are plain ASCII, which needs no percent-encoding; what a decoder quotes may be something else.
    if let Ok(message) = HeaderValue::from_str(message) {
        trailers.insert("grpc-message", message);
    }
    trailers
}
