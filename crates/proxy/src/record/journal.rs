//! Lines of one worker on their way to their files: they gather in a buffer and are written in batches.

use std::cell::{Cell, RefCell};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use tokio::time::Instant;

use super::{BATCH_TIME, Entry, Template};

/// Lines are written when so many bytes have gathered.
const BATCH_BYTES: usize = 64 * 1024;

/// Lines of one worker on their way to their files.
#[derive(Default)]
pub struct Journal {
    /// A few, so that looking through them is cheaper than hashing a path.
    files: RefCell<Vec<Rc<JournalFile>>>,
    /// When the first of the lines that wait is to be written.
    due: Cell<Option<Instant>>,
    /// Lines that could not be written; a full disk must not stop traffic.
    pub lost: Cell<u64>,
}

struct JournalFile {
    path: Arc<Path>,
    lines: RefCell<Vec<u8>>,
    file: RefCell<Option<File>>,
}

impl Journal {
    /// Write *entry* by *template* to the file at *path*. Returns when [`Journal::flush_due`] is to be called.
    pub fn record(&self, path: &Arc<Path>, template: &Template, entry: &Entry<'_>) -> Option<Instant> {
        let file = self.file(path);
        let mut lines = file.lines.borrow_mut();
        template.write(entry, &mut lines);
        if lines.len() >= BATCH_BYTES {
            drop(lines);
            self.write_out(&file);
        }
        if self.due.get().is_none() {
            self.due.set(Some(Instant::now() + BATCH_TIME));
        }
        self.due.get()
    }

    fn file(&self, path: &Arc<Path>) -> Rc<JournalFile> {
        let is_it = |file: &&Rc<JournalFile>| file.path.as_os_str() == path.as_os_str();
        if let Some(file) = self.files.borrow().iter().find(is_it) {
            return Rc::clone(file);
        }
        let file =
            Rc::new(JournalFile { path: Arc::clone(path), lines: RefCell::new(Vec::new()), file: RefCell::new(None) });
        self.files.borrow_mut().push(Rc::clone(&file));
        file
    }

    /// Write everything that has gathered, if its time has come by *now*; else returns when it comes.
    pub fn flush_due(&self, now: Instant) -> Option<Instant> {
        let due = self.due.get()?;
        if now < due {
            return Some(due);
        }
        self.flush();
        None
    }

    /// Write everything that has gathered.
    pub fn flush(&self) {
        self.due.set(None);
        for file in self.files.borrow().iter() {
            self.write_out(file);
        }
    }

    /// Close all files, so that the next line opens them anew (log rotation, SIGUSR1).
    pub fn reopen(&self) {
        self.flush();
        for file in self.files.borrow().iter() {
            file.file.borrow_mut().take();
        }
    }

    fn write_out(&self, file: &JournalFile) {
        let mut lines = file.lines.borrow_mut();
        if lines.is_empty() {
            return;
        }
        if file.write(&lines).is_err() {
            self.lost.set(self.lost.get() + lines.iter().filter(|&&byte| byte == b'\n').count() as u64);
        }
        lines.clear();
        // A burst must not keep its memory for ever.
        lines.shrink_to(BATCH_BYTES * 2);
    }
}

impl JournalFile {
    fn write(&self, lines: &[u8]) -> io::Result<()> {
        match self.path.to_str() {
            Some("/dev/stdout") => io::stdout().write_all(lines),
            Some("/dev/stderr") => io::stderr().write_all(lines),
            _ => {
                let mut file = self.file.borrow_mut();
                let file = match &mut *file {
                    Some(file) => file,
                    none => none.insert(OpenOptions::new().create(true).append(true).mode(0o600).open(&*self.path)?),
                };
                file.write_all(lines)
            }
        }
    }
}
