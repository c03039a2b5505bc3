//! A message made of shared pieces.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes};

/// Bytes in several pieces that are sent as one, without being copied together: a response to a thousand streams holds
/// the same encoded resources a thousand times by reference.
#[derive(Debug, Default, Clone)]
pub(crate) struct Rope {
    pieces: VecDeque<Bytes>,
    remaining: usize,
}

impl Rope {
    pub(crate) fn push(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.remaining += piece.len();
            self.pieces.push_back(piece);
        }
    }
}

impl Buf for Rope {
    fn remaining(&self) -> usize {
        self.remaining
    }

    fn chunk(&self) -> &[u8] {
        self.pieces.front().map_or(&[], |piece| &piece[..])
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let filled = slices.iter_mut().zip(&self.pieces).map(|(slice, piece)| *slice = IoSlice::new(piece));
        filled.count()
    }

    fn advance(&mut self, mut count: usize) {
        assert!(count <= self.remaining, "advanced beyond the end");
        self.remaining -= count;
        while let Some(piece) = self.pieces.front_mut() {
            if count < piece.len() {
                return piece.advance(count);
            }
            count -= piece.len();
            self.pieces.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_as_one_text_whatever_the_steps() {
        for step in 1..=8 {
            let mut rope = Rope::default();
            for piece in ["we", "", "ft", "x", "ds"] {
                rope.push(Bytes::from_static(piece.as_bytes()));
            }
            let mut text = Vec::new();
            while rope.has_remaining() {
                let mut slices = [IoSlice::new(&[]); 2];
                assert!(rope.chunks_vectored(&mut slices) >= 1);
                assert_eq!(&*slices[0], rope.chunk());
                let count = step.min(rope.chunk().len());
                text.extend_from_slice(&rope.chunk()[..count]);
                rope.advance(count);
            }
            assert_eq!(text, b"weftxds");
        }
        let mut rope = Rope::default();
        rope.push(Bytes::from_static(b"ab"));
        rope.push(Bytes::from_static(b"cd"));
        rope.advance(3);
        assert_eq!(rope.chunk(), b"d");
    }
}
