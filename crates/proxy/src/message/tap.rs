//! A copy of a body that is on its way to somebody else: what passes there is fed here, and is read like any message.
//!
//! The original never waits for a copy. What a copy has not taken is kept up to a limit, and beyond it the copy is cut off.

use std::cell::RefCell;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use crate::codec::{Head, Known, Name};

use super::{Next, ReadError};

/// How a body that is copied goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// More may come.
    Open,
    /// All of it, and its trailers, have come.
    Whole,
    /// The rest will never come.
    Cut,
}

/// What one copy has still to take.
struct Backlog {
    bytes: Vec<u8>,
    /// Bytes that wait here or that the reader has at hand.
    held: usize,
    limit: usize,
    trailers: Head,
    state: State,
    /// The feeder has let the reader have its turn since this last took something.
    gave_way: bool,
    /// The reader waits for more; else only for the end, in case it is cut off.
    is_starving: bool,
    reader: Option<Waker>,
}

/// One copy's end of what is fed.
pub struct Tap(RefCell<Backlog>);

impl Tap {
    fn new(limit: usize, state: State) -> Rc<Tap> {
        Rc::new(Tap(RefCell::new(Backlog {
            bytes: Vec::new(),
            held: 0,
            limit,
            trailers: Head::default(),
            state,
            gave_way: false,
            is_starving: false,
            reader: None,
        })))
    }

    /// Of a message without a body.
    pub fn ended() -> Rc<Tap> {
        Tap::new(0, State::Whole)
    }

    /// Nobody reads it any more.
    pub fn close(&self) {
        self.0.borrow_mut().cut();
    }
}

impl Backlog {
    fn cut(&mut self) {
        self.state = State::Cut;
        self.bytes = Vec::new();
        self.wake();
    }

    fn wake(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    fn feed(&mut self, bytes: &[u8]) {
        if self.state != State::Open {
            return;
        }
        if self.held + bytes.len() > self.limit {
            return self.cut();
        }
        self.bytes.extend_from_slice(bytes);
        self.held += bytes.len();
        if std::mem::take(&mut self.is_starving) {
            self.wake();
        }
    }
}

/// Where a body is fed to its copies. Those that it is dropped in the middle of are cut off.
#[derive(Default)]
pub struct Taps(Vec<Rc<Tap>>);

impl Taps {
    /// One more copy, of which so many bytes may wait.
    pub fn open(&mut self, limit: usize) -> Rc<Tap> {
        let tap = Tap::new(limit, State::Open);
        self.0.push(Rc::clone(&tap));
        tap
    }

    /// This has passed.
    pub fn feed(&self, bytes: &[u8]) {
        self.0.iter().for_each(|tap| tap.0.borrow_mut().feed(bytes));
    }

    /// All has passed, with these trailers. Told again (another try ends the same message), it is known already.
    pub fn end(&self, trailers: &mut dyn Iterator<Item = (&[u8], &[u8])>) {
        let is_open = |tap: &&Rc<Tap>| tap.0.borrow().state == State::Open;
        if !self.0.iter().any(|tap| is_open(&tap)) {
            return;
        }
        let mut kept = Head::default();
        for (name, value) in trailers {
            kept.append(Name { bytes: name, known: Known::of(name) }, value);
        }
        for tap in self.0.iter().filter(is_open) {
            let mut backlog = tap.0.borrow_mut();
            backlog.trailers = kept.clone();
            backlog.state = State::Whole;
            backlog.wake();
        }
    }

    /// Whether a copy should have its turn before more is fed: much waits for it, and it may be that only this task's diligence keeps
    /// it from being taken. Says so once until the copy takes something: a peer that does not read is not waited for.
    pub fn should_give_way(&self) -> bool {
        self.0.iter().any(|tap| {
            let mut backlog = tap.0.borrow_mut();
            let is_much = backlog.state == State::Open && backlog.held * 2 >= backlog.limit && backlog.held > 0;
            is_much && !std::mem::replace(&mut backlog.gave_way, true)
        })
    }
}

impl Drop for Taps {
    fn drop(&mut self) {
        for tap in &self.0 {
            let mut backlog = tap.0.borrow_mut();
            if backlog.state == State::Open {
                backlog.cut();
            }
        }
    }
}

/// How far a copy has been read.
#[derive(Debug, Default)]
pub struct Reading {
    /// The span at hand.
    span: Vec<u8>,
}

pub struct Reader<'a> {
    pub tap: &'a Tap,
    pub state: &'a mut Reading,
}

impl Reader<'_> {
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<Next, ReadError>> {
        let mut backlog = self.tap.0.borrow_mut();
        if backlog.state == State::Cut {
            return Poll::Ready(Err(ReadError::Closed));
        }
        if self.state.span.is_empty() {
            std::mem::swap(&mut self.state.span, &mut backlog.bytes);
        }
        if !self.state.span.is_empty() {
            return Poll::Ready(Ok(Next::Span));
        }
        if backlog.state == State::Whole {
            return Poll::Ready(Ok(Next::End));
        }
        backlog.is_starving = true;
        backlog.reader = Some(context.waker().clone());
        Poll::Pending
    }

    pub fn span(&self) -> &[u8] {
        &self.state.span
    }

    pub fn consume(&mut self) {
        let mut backlog = self.tap.0.borrow_mut();
        backlog.held -= self.state.span.len();
        backlog.gave_way = false;
        self.state.span.clear();
    }

    /// Ready when it has been cut off.
    pub fn poll_gone(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut backlog = self.tap.0.borrow_mut();
        if backlog.state == State::Cut {
            return Poll::Ready(());
        }
        backlog.reader = Some(context.waker().clone());
        Poll::Pending
    }

    pub fn may_have_trailers(&self) -> bool {
        let backlog = self.tap.0.borrow();
        backlog.state == State::Open || backlog.trailers.fields().next().is_some()
    }

    pub fn with_trailers<T>(
        &self,
        look: impl for<'t> FnOnce(&mut dyn Iterator<Item = (&'t [u8], &'t [u8])>) -> T,
    ) -> T {
        look(&mut self.tap.0.borrow().trailers.fields())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_cut(tap: &Tap) -> bool {
        tap.0.borrow().state == State::Cut
    }

    fn next(reader: &mut Reader<'_>) -> Poll<Option<Vec<u8>>> {
        reader.poll_next(&mut Context::from_waker(Waker::noop())).map(|next| match next {
            Ok(Next::Span) => {
                let span = reader.span().to_vec();
                reader.consume();
                Some(span)
            }
            Ok(Next::End) => None,
            Err(error) => panic!("{error}"),
        })
    }

    #[test]
    fn a_copy_is_read_as_it_was_fed_and_ends_with_the_trailers() {
        let mut taps = Taps::default();
        let tap = taps.open(100);
        let mut state = Reading::default();
        let mut reader = Reader { tap: &tap, state: &mut state };
        assert_eq!(next(&mut reader), Poll::Pending);
        taps.feed(b"ab");
        taps.feed(b"cd");
        assert_eq!(next(&mut reader), Poll::Ready(Some(b"abcd".to_vec())));
        assert_eq!(next(&mut reader), Poll::Pending);
        taps.feed(b"e");
        taps.end(&mut [(&b"x-sum"[..], &b"5"[..])].into_iter());
        taps.end(&mut std::iter::empty());
        drop(taps);
        assert_eq!(next(&mut reader), Poll::Ready(Some(b"e".to_vec())));
        assert_eq!(next(&mut reader), Poll::Ready(None));
        let trailers = reader.with_trailers(|trailers| trailers.map(|(name, _)| name.to_vec()).collect::<Vec<_>>());
        assert_eq!(trailers, [b"x-sum".to_vec()]);
    }

    #[test]
    fn a_copy_that_cannot_keep_up_is_cut_off_and_its_memory_given_back() {
        let mut taps = Taps::default();
        let (slow, quick) = (taps.open(8), taps.open(8));
        taps.feed(b"abcd");
        let mut state = Reading::default();
        let mut reader = Reader { tap: &quick, state: &mut state };
        assert_eq!(next(&mut reader), Poll::Ready(Some(b"abcd".to_vec())));
        assert!(taps.should_give_way(), "half of what may wait does");
        assert!(!taps.should_give_way(), "it had its turn");
        taps.feed(b"efghi");
        assert!(is_cut(&slow) && !is_cut(&quick));
        assert_eq!(slow.0.borrow().bytes.capacity(), 0);
        assert_eq!(next(&mut reader), Poll::Ready(Some(b"efghi".to_vec())));
    }

    #[test]
    fn what_a_reader_has_at_hand_counts_until_it_is_consumed() {
        let mut taps = Taps::default();
        let tap = taps.open(8);
        taps.feed(b"abcdef");
        let mut state = Reading::default();
        let mut reader = Reader { tap: &tap, state: &mut state };
        let polled = reader.poll_next(&mut Context::from_waker(Waker::noop()));
        assert!(matches!(polled, Poll::Ready(Ok(Next::Span))));
        taps.feed(b"ghi");
        assert!(is_cut(&tap));
    }

    #[test]
    fn a_message_that_is_given_up_in_the_middle_cuts_its_copies_off() {
        let mut taps = Taps::default();
        let (cut, whole) = (taps.open(8), Tap::ended());
        taps.feed(b"ab");
        drop(taps);
        assert!(is_cut(&cut) && !is_cut(&whole));
    }
}
