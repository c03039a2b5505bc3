//! The presentation language of TLS (RFC 8446 3), as far as it is read here: in a ClientHello, and in what rustls writes into session tickets.

/// Fields one after the other: what is left of them. What ends too early is none.
pub struct Fields<'d>(pub &'d [u8]);

impl<'d> Fields<'d> {
    pub fn take(&mut self, count: usize) -> Option<&'d [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    pub fn flag(&mut self) -> Option<bool> {
        match self.take(1)? {
            [0] => Some(false),
            [1] => Some(true),
            _ => None,
        }
    }

    pub fn number16(&mut self) -> Option<u16> {
        let (&number, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u16::from_be_bytes(number))
    }

    /// Bytes behind their count, which has *WIDTH* bytes (RFC 8446 3.4).
    pub fn vector<const WIDTH: usize>(&mut self) -> Option<&'d [u8]> {
        let count = self.take(WIDTH)?.iter().fold(0, |count, &byte| count << 8 | usize::from(byte));
        self.take(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_field_is_read_whole_or_not_at_all() {
        let data = b"\x01\x12\x34\x01a\0\x02bc\0\0\x01d\0";
        let read = |data: &'static [u8]| {
            let mut fields = Fields(data);
            let numbers = (fields.flag()?, fields.number16()?);
            let vectors = (fields.vector::<1>()?, fields.vector::<2>()?, fields.vector::<3>()?);
            Some((numbers, vectors, fields.take(1)?, fields.0))
        };
        let whole = ((true, 0x1234), (&b"a"[..], &b"bc"[..], &b"d"[..]), &[0][..], &[][..]);
        assert_eq!(read(data), Some(whole));
        for length in 0..data.len() {
            assert_eq!(read(&data[..length]), None, "{length}");
        }
        assert_eq!(Fields(&[2]).flag(), None);
    }
}
